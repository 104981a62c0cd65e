"""What users say of their images: labels or masks, in scikit-learn's outlier encoding."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

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
    check_length(y, n_images)
    if are_masks(y):
        return np.flatnonzero(~marked(y))
    labels = label_column(y)
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


def anomalous_rows(y: Any, n_images: int, *, name: str = "y", zero_one: bool = False) -> NDArray[np.bool_]:
    """Say of each image whether y calls it anomalous; what cannot be read is refused.

    Parameters
    ----------
    y : labels or masks
        As for :func:`normal_rows`.
    n_images : int
    name : str
        What errors call it.
    zero_one : bool
        Whether {0, 1} and booleans are read too, 1 and True being anomalous.

    Returns
    -------
    ndarray of shape (n,), bool

    Raises
    ------
    InvalidTargetError
        Another length, shape or encoding.
    """
    check_length(y, n_images, name)
    if are_masks(y):
        return marked(y, name)
    labels = np.asarray(label_column(y, name).tolist())  # numbers, even where y holds them as objects
    values, known = set(labels.tolist()), labels.dtype.kind in "ifb"
    if known and labels.dtype.kind != "b" and values <= {-1, 1}:
        return labels == -1
    if known and zero_one and values <= {0, 1}:
        return labels == 1
    shown = ", ".join(sorted(map(repr, values))[:5]) + (", ..." if len(values) > 5 else "")
    expected = f"{name} holds {shown}; expected +1 for a good and -1 for an anomalous image"
    if zero_one:
        raise InvalidTargetError(f"{expected}, or 0 (False) and 1 (True)")
    convert = f": np.where({name} == 1, -1, 1) if 1 marks the anomalous images" if values <= {0, 1} else ""
    raise InvalidTargetError(f"{expected}, as fit does{convert}; or masks")


def check_length(y: Any, n_images: int, name: str = "y") -> None:
    """Check that there is an entry an image."""
    if not hasattr(y, "__len__"):
        raise InvalidTargetError(f"{name} must be labels (n,) or masks (n, H, W), got {type(y).__name__}")
    if len(y) != n_images:
        raise InvalidTargetError(f"{name} has {len(y)} entries for {n_images} images")


def are_masks(y: Any) -> bool:
    """Say whether y is made of masks; otherwise it should be labels."""
    if isinstance(y, np.ndarray) and y.dtype != object:
        return y.ndim == 3
    return any(
        item is None or isinstance(item, (str, PathLike, Image.Image)) or np.ndim(item) == 2
        for item in (y if isinstance(y, Sequence) else list(y))
    )


def label_column(y: Any, name: str = "y") -> NDArray[Any]:
    """Return labels as an array (n,); a column (n, 1) will do."""
    labels = np.asarray(y)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise InvalidTargetError(f"{name} must be labels (n,) or masks (n, H, W), got shape {labels.shape}")
    return labels


def marked(masks: Iterable[Any], name: str = "y") -> NDArray[np.bool_]:
    """Say of each mask whether it has a defective pixel."""
    defective = (mask is not None and mask_pixels(mask, f"{name}[{i}]").any() for i, mask in enumerate(masks))
    return np.fromiter(defective, bool)


def mask_pixels(mask: Any, name: str) -> NDArray[np.bool_]:
    """Return a mask (H, W), True where it is not zero: an array, a PIL image or the path of one.

    Raises
    ------
    InvalidTargetError
        It cannot be read, or is not (H, W).
    """
    if isinstance(mask, (str, PathLike)):
        try:
            with Image.open(mask) as image:
                return _pixels_of_image(image)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: a broken PNG chunk
            raise InvalidTargetError(f"{name} ({mask}) cannot be read as a mask: {error}") from error
    if isinstance(mask, Image.Image):
        return _pixels_of_image(mask)
    pixels = np.asarray(mask)
    if pixels.ndim != 2 or pixels.dtype.kind not in "biuf":
        raise InvalidTargetError(
            f"{name}: a mask is (H, W), non-zero where defective, got shape {pixels.shape}, dtype {pixels.dtype}"
        )
    return pixels != 0


def _pixels_of_image(image: Image.Image) -> NDArray[np.bool_]:
    pixels: NDArray[Any] = np.asarray(ImageOps.exif_transpose(image)) != 0
    if pixels.ndim == 3:
        n_colours = len([band for band in image.getbands() if band not in "Aa"])  # opaque black is no defect
        return np.logical_or.reduce(pixels[..., :n_colours], axis=2)
    return pixels
