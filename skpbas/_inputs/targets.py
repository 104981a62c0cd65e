"""Labels and masks, in scikit-learn's encoding of outliers."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._inputs.mask_reader import are_defective
from skpbas.errors import InvalidTargetError


def normal_rows(y: Any, n_images: int) -> NDArray[np.intp]:
    """Return the indices of the normal images.

    Parameters
    ----------
    y : None, labels or masks
        Labels (n,): +1 normal, -1 anomalous. Masks (n, H, W), or a sequence of masks, paths of masks and None:
        an image with any non-zero pixel is anomalous. None: all are normal.
    n_images : int

    Raises
    ------
    InvalidTargetError
        Wrong length or shape.
    """
    if y is None:
        return np.arange(n_images)
    check_length(y, n_images)
    if are_masks(y):
        return np.flatnonzero(~are_defective(y))
    labels = label_column(y)
    values = np.unique(labels)
    if set(values.tolist()) <= {-1, 1} and labels.dtype.kind in "if":
        return np.flatnonzero(labels == 1)
    warnings.warn(
        f"y is ignored: it contains {values[:4].tolist()}, but fit expects labels +1 (normal) and -1 (anomalous). "
        "If 1 marks anomalous images, pass np.where(y == 1, -1, 1) to exclude them from training",
        UserWarning,
        stacklevel=3,
    )
    return np.arange(n_images)


def anomalous_rows(y: Any, n_images: int, *, name: str = "y", zero_one: bool = False) -> NDArray[np.bool_]:
    """Return whether each image is anomalous.

    Parameters
    ----------
    y : labels or masks
        As for :func:`normal_rows`.
    n_images : int
    name : str
        Name of y in error messages.
    zero_one : bool
        Whether to accept {0, 1} and booleans too, with 1 and True for anomalous.

    Returns
    -------
    ndarray of shape (n,), bool

    Raises
    ------
    InvalidTargetError
        Wrong length, shape or encoding.
    """
    check_length(y, n_images, name)
    if are_masks(y):
        return are_defective(y, name)
    labels = np.asarray(label_column(y, name).tolist())  # numbers, even if the dtype is object
    values, known = set(labels.tolist()), labels.dtype.kind in "ifb"
    if known and labels.dtype.kind != "b" and values <= {-1, 1}:
        return labels == -1
    if known and zero_one and values <= {0, 1}:
        return labels == 1
    shown = ", ".join(sorted(map(repr, values))[:5]) + (", ..." if len(values) > 5 else "")
    expected = f"{name} contains {shown}; expected +1 for normal and -1 for anomalous images"
    if zero_one:
        raise InvalidTargetError(f"{expected}, or 0 (False) and 1 (True)")
    convert = f": np.where({name} == 1, -1, 1) if 1 marks anomalous images" if values <= {0, 1} else ""
    raise InvalidTargetError(f"{expected}, as fit does{convert}; or masks")


def check_length(y: Any, n_images: int, name: str = "y") -> None:
    """Check that there is one entry per image."""
    if not hasattr(y, "__len__"):
        raise InvalidTargetError(f"{name} must be labels (n,) or masks (n, H, W), got {type(y).__name__}")
    if len(y) != n_images:
        raise InvalidTargetError(f"{name} has {len(y)} entries for {n_images} images")


def are_masks(y: Any) -> bool:
    """Return whether y consists of masks; otherwise it should be labels."""
    if isinstance(y, np.ndarray) and y.dtype != object:
        return y.ndim == 3
    return any(
        item is None or isinstance(item, (str, PathLike, Image.Image)) or np.ndim(item) == 2
        for item in (y if isinstance(y, Sequence) else list(y))
    )


def label_column(y: Any, name: str = "y") -> NDArray[Any]:
    """Return labels as an array (n,); a column (n, 1) is accepted."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InvalidTargetError(f"{name} must be labels (n,) or masks (n, H, W), got shape {labels.shape}")
    return labels
