"""What users say of their images: labels or masks, in scikit-learn's outlier encoding."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas.errors import InvalidTargetError


def normal_rows(y: Any, n_images: int) -> NDArray[np.intp]:
    """Return the indices of the images that training may use.

    Parameters
    ----------
    y : None, labels or masks
        Labels (n,): +1 normal, -1 anomalous. Masks (n, H, W), or a sequence of masks, paths of masks and None:
        an image with any non-zero pixel is anomalous. None: all are normal.
    n_images : int

    Raises
    ------
    InvalidTargetError
        Another length or another shape.
    """
    if y is None:
        return np.arange(n_images)
    if not hasattr(y, "__len__"):
        raise InvalidTargetError(f"y must be labels (n,) or masks (n, H, W), got {type(y).__name__}")
    if len(y) != n_images:
        raise InvalidTargetError(f"y has {len(y)} entries for {n_images} images")
    if _are_masks(y):
        return np.flatnonzero([not _has_defect(mask, i) for i, mask in enumerate(y)])
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InvalidTargetError(f"y must be labels (n,) or masks (n, H, W), got shape {labels.shape}")
    values = np.unique(labels)
    if set(values.tolist()) <= {-1, 1} and labels.dtype.kind in "if":
        return np.flatnonzero(labels == 1)
    warnings.warn(
        f"y is left aside: it holds {values[:4].tolist()}, and fit reads labels as +1 (normal) and -1 (anomalous). "
        "If 1 marks the anomalous images, give np.where(y == 1, -1, 1), so that they are left out of training",
        UserWarning,
        stacklevel=3,
    )
    return np.arange(n_images)


def _are_masks(y: Any) -> bool:
    if isinstance(y, np.ndarray) and y.dtype != object:
        return y.ndim == 3
    return any(
        item is None or isinstance(item, (str, PathLike, Image.Image)) or np.ndim(item) == 2
        for item in (y if isinstance(y, Sequence) else list(y))
    )


def _has_defect(mask: Any, index: int) -> bool:
    if mask is None:
        return False
    if isinstance(mask, (str, PathLike)):
        try:
            with Image.open(mask) as image:
                return bool(np.asarray(image).any())
        except OSError as error:
            raise InvalidTargetError(f"y[{index}] ({mask}) cannot be read as a mask: {error}") from error
    pixels = np.asarray(mask)
    if pixels.ndim != 2:
        raise InvalidTargetError(f"y[{index}]: a mask is (H, W), got shape {pixels.shape}")
    return bool(pixels.any())
