"""Mask reading: which pixels are defective, at the size of the mask or of the anomaly map."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from skpbas._inputs.images import Geometry, image_shape
from skpbas.errors import InvalidTargetError

Mask = NDArray[np.bool_]

_SHOWN_LEVELS = 6


@dataclass(frozen=True)
class MaskPixels:
    """The defective pixels of a mask.

    Attributes
    ----------
    defective : ndarray of shape (H, W), bool
    levels : ndarray of shape (k,)
        The values in the mask, ascending, if there are more than two; otherwise empty.
    """

    defective: Mask
    levels: NDArray[Any]


def mask_pixels(mask: Any, name: str) -> MaskPixels:
    """Read a mask from an array, a PIL image or a path, with the rules and errors of ``read_mask``."""
    values, high = _values(mask, name)
    if values.dtype.kind == "b":
        return MaskPixels(values.astype(bool), np.empty(0))
    levels = np.unique(values)
    if levels.size and levels[0] > 0:
        raise InvalidTargetError(
            f"{name} has no pixel of value 0: its values are {_listed(levels)}. A mask is 0 where the image is normal; "
            "if another value marks normal pixels, pass mask != value; if all pixels are defective, pass a boolean "
            "array"
        )
    if len(levels) <= 2:
        return MaskPixels(values != 0, np.empty(0))
    return MaskPixels(values > high / 2, levels)


def are_defective(masks: Iterable[Any], name: str = "y") -> Mask:
    """Return whether each mask has a defective pixel: (n,)."""
    reader = _Reader(name)
    found = np.fromiter((mask is not None and reader.read(i, mask).any() for i, mask in enumerate(masks)), bool)
    reader.warn_of_levels()
    return found


def masks_at_map_size(
    masks: Any, X: Sequence[Any] | NDArray[Any], map_shape: tuple[int, int], resize: str, *, name: str = "y"
) -> tuple[list[Mask | None], Mask]:
    """Resample masks to the geometry of the anomaly maps by nearest neighbor.

    Parameters
    ----------
    masks : sequence of arrays (h, w), PIL images, paths or None, or array (n, h, w)
        Each at its image's size or the size of the anomaly map.
    X : array or sequence of images
    map_shape : (int, int)
        Height and width of the anomaly maps.
    resize : {"stretch", "crop"}
        How images are resized to ``map_shape``.
    name : str
        Name of the masks in error messages.

    Returns
    -------
    resized : list of ndarray of shape ``map_shape``, bool, or None
        None if no pixel of the anomaly map is defective.
    anomalous : ndarray of shape (n,), bool
        Whether each mask has a defective pixel at its own size.

    Raises
    ------
    InvalidTargetError
        A mask cannot be read, or has neither the size of its image nor that of the anomaly map; the message names it.
    """
    resized: list[Mask | None] = []
    anomalous = np.zeros(len(masks), bool)
    reader = _Reader(name)
    for i, mask in enumerate(masks):
        if mask is None:
            resized.append(None)
            continue
        pixels = reader.read(i, mask)
        anomalous[i] = pixels.any()
        if pixels.shape != map_shape or resize == "crop":
            input_shape = image_shape(X[i], f"X[{i}]")
            if pixels.shape == input_shape:
                pixels = Geometry.of(input_shape, map_shape, resize).view_of_mask(pixels)
            elif pixels.shape != map_shape:
                raise InvalidTargetError(
                    f"{name}[{i}]{_path(mask)} is {_size(pixels.shape)}; its image X[{i}]{_path(X[i])} is "
                    f"{_size(input_shape)} and the anomaly map {_size(map_shape)} (height x width): the mask must have "
                    "one of these sizes"
                )
        resized.append(pixels if pixels.any() else None)
    reader.warn_of_levels()
    return resized, anomalous


class _Reader:
    """Reads masks one at a time, and warns once about those with more than two values."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._n_graded, self._first = 0, ""

    def read(self, index: int, mask: Any) -> Mask:
        pixels = mask_pixels(mask, f"{self.name}[{index}]{_path(mask)}")
        if pixels.levels.size:
            self._n_graded += 1
            self._first = self._first or f"{self.name}[{index}]{_path(mask)} contains {_listed(pixels.levels)}"
        return pixels.defective

    def warn_of_levels(self) -> None:
        if self._n_graded:
            warnings.warn(
                f"{self._n_graded} masks have more than two values; the first, {self._first}. Pixels above half of the "
                "type's range are treated as defective. If the values mean something else, pass boolean arrays",
                UserWarning,
                stacklevel=4,
            )


def _values(mask: Any, name: str) -> tuple[NDArray[Any], float]:
    """Return the values of a mask (H, W) and the upper end of its range."""
    if isinstance(mask, (str, PathLike)):
        try:
            with Image.open(mask) as image:
                return _values_of_image(image, name)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # SyntaxError: broken PNG chunk
            raise InvalidTargetError(f"{name} cannot be read as a mask: {error}") from error
    if isinstance(mask, Image.Image):
        return _values_of_image(mask, name)
    values = np.asarray(mask)
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        raise InvalidTargetError(
            f"{name}: a mask must be a numeric or boolean array (H, W), got shape {values.shape}, dtype {values.dtype}"
        )
    return values, _highest(values, name)


def _values_of_image(image: Image.Image, name: str) -> tuple[NDArray[Any], float]:
    image = ImageOps.exif_transpose(image)
    if image.mode == "1":
        return np.asarray(image), 1.0
    if image.mode in ("LA", "La"):
        image = image.getchannel("L")
    elif image.mode not in ("L", "I", "F") and not image.mode.startswith("I;16"):
        image = image.convert("RGB")  # palette colors count, opacity does not
    values = np.asarray(image)
    if values.ndim == 3:
        values = values.max(axis=2)
    highest = _highest(values, name)
    return values, max(highest, 65535.0) if image.mode == "I" else highest  # 16-bit values in 32-bit mode


def _highest(values: NDArray[Any], name: str) -> float:
    """Return the upper end of the range of a mask's type, inferred from the values for wide types."""
    if values.size == 0 or values.dtype.kind == "b":
        return 1.0
    low, high = float(values.min()), float(values.max())  # NaN if any value is NaN
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0:
        raise InvalidTargetError(
            f"{name}: the values of a mask must be finite and non-negative, got [{low:.4g}, {high:.4g}]"
        )
    if values.dtype in (np.uint8, np.int8, np.uint16):
        return float(np.iinfo(values.dtype).max)
    ranges = (1.0, 255.0, 65535.0) if values.dtype.kind == "f" else (255.0, 65535.0)
    return next((limit for limit in ranges if high <= limit), high)


def _listed(levels: NDArray[Any]) -> str:
    shown = [f"{level:g}" for level in levels[:_SHOWN_LEVELS]]
    if len(levels) <= _SHOWN_LEVELS:
        return ", ".join(shown)
    return f"{len(levels)} values, {', '.join(shown)}, ..., {levels[-1]:g}"


def _path(item: Any) -> str:
    return f" ({item})" if isinstance(item, (str, PathLike)) else ""


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
