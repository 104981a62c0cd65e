"""Mask reading: which pixels are defective, at the size of the mask or of the anomaly map."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from skpbas._inputs.checks import image_items
from skpbas._inputs.decoding import decoding, image_shape, opened
from skpbas._inputs.geometry import Geometry
from skpbas._inputs.tensors import is_tensor
from skpbas.errors import InvalidImageError, InvalidTargetError

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


def is_missing(entry: Any) -> bool:
    """Return whether an entry stands for "no mask": None, an empty string, or a table's NaN, NA or NaT."""
    if isinstance(entry, str):
        return not entry.strip()
    if isinstance(entry, (float, np.floating)):
        return bool(np.isnan(entry))
    return entry is None or type(entry).__name__ in ("NAType", "NaTType")  # pandas is not a requirement


def with_maps(detector: Any) -> Any:
    """Return the detector that makes the anomaly maps of one that wraps it, such as ConformalThreshold."""
    while not hasattr(detector, "map_shape_") and hasattr(detector, "detector_"):
        detector = detector.detector_
    return detector


def resize_of(detector: Any) -> str:
    """Return how the detector that makes the anomaly maps brings images to their size."""
    detector = with_maps(detector)
    fitted = getattr(detector, "_reading", detector)  # a parameter may have been changed since the fit
    resize: str = getattr(fitted, "resize", "stretch")
    return resize


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
    if levels[-1] <= high / 2:
        raise InvalidTargetError(
            f"{name} has {len(levels)} values, of which none is above half of its type's range ({high:g}): "
            f"{_listed(levels)}. If they are the classes of defects, pass mask > 0; for an image without a defect pass "
            "None"
        )
    return MaskPixels(values > high / 2, levels)


def are_defective(masks: Iterable[Any], name: str = "y") -> Mask:
    """Return whether each mask has a defective pixel: (n,)."""
    reader = _Reader(name)
    found = np.fromiter((not is_missing(mask) and reader.read(i, mask).any() for i, mask in enumerate(masks)), bool)
    reader.warn()
    return found


def masks_at_map_size(
    masks: Any,
    X: Any,
    map_shape: tuple[int, int],
    resize: str,
    *,
    name: str = "y",
    before: Any = None,
) -> tuple[list[Mask | None], Mask]:
    """Resample masks to the geometry of the anomaly maps by nearest neighbor.

    Parameters
    ----------
    masks : sequence of arrays (h, w), PIL images, paths or missing entries, or array (n, h, w)
        Each at its image's size, or at the size of the anomaly map if that shows the whole image.
    X : array or sequence of images
        As the detector receives them.
    map_shape : (int, int)
        Height and width of the anomaly maps.
    resize : {"stretch", "crop"}
        How images are resized to ``map_shape``.
    name : str
        Name of the masks in error messages.
    before : array or sequence, default=None
        The input of the pipeline whose transformers returned X. A transformer that changes an image's size may crop it.

    Returns
    -------
    resized : list of ndarray of shape ``map_shape``, bool, or None
        None if no pixel of the anomaly map is defective.
    anomalous : ndarray of shape (n,), bool
        Whether each mask has a defective pixel at its own size.

    Raises
    ------
    InvalidTargetError
        A mask cannot be read, or its size does not tell which part of its image it shows; the message names it.
    """
    X = image_items(X)
    if before is not None:
        before = image_items(before)
        before = before if len(before) == len(X) else [None] * len(X)  # a table of several columns
    resized: list[Mask | None] = []
    anomalous = np.zeros(len(masks), bool)
    reader = _Reader(name)
    for i, mask in enumerate(masks):
        if is_missing(mask):
            resized.append(None)
            continue
        pixels = reader.read(i, mask)
        anomalous[i] = pixels.any()
        if pixels.shape != map_shape or resize == "crop" or before is not None:
            input_shape = image_shape(X[i], f"X[{i}]")
            geometry = Geometry.of(input_shape, map_shape, resize)
            if pixels.shape == input_shape:
                whole, pixels = pixels, geometry.view_of_mask(pixels)
                if geometry.unseen:
                    reader.note_unseen(i, mask, _inside(whole, geometry), whole)
            elif pixels.shape != map_shape:
                raise InvalidTargetError(
                    f"{name}[{i}]{_path(mask)} is {_size(pixels.shape)}; its image X[{i}]{_path(X[i])} is "
                    f"{_size(input_shape)} and the anomaly map {_size(map_shape)} (height x width): the mask must have "
                    "one of these sizes"
                )
            elif geometry.unseen or (before is not None and _shape_if_known(before[i]) != input_shape):
                cropped = 'resize="crop" cuts off a part' if geometry.unseen else "the pipeline may have cut off a part"
                raise InvalidTargetError(
                    f"{name}[{i}]{_path(mask)} has the size of the anomaly map, {_size(map_shape)} (height x width), "
                    f"but not that of its image X[{i}]{_path(X[i])}, {_size(input_shape)}, of which {cropped}: pass "
                    f"the mask at the size of the image that reaches the detector, {_size(input_shape)}"
                )
        resized.append(pixels if pixels.any() else None)
    reader.warn()
    return resized, anomalous


def _inside(mask: Mask, geometry: Geometry) -> Mask:
    """Return the part of an image's mask (h, w) that is inside the view."""
    for axis in (0, 1):
        n = mask.shape[axis]
        position = (np.arange(n) + 0.5) * geometry.resized_shape[axis] / n - geometry.offset[axis]
        mask = mask.compress((position >= 0) & (position < geometry.view_shape[axis]), axis=axis)
    return mask


def _shape_if_known(item: Any) -> tuple[int, int] | None:
    """Return the height and width of an input of a pipeline if it is an image."""
    try:
        return image_shape(item, "")
    except Exception:  # noqa: BLE001 - anything may come into a pipeline
        return None


class _Reader:
    """Reads masks one at a time, and warns once about those with more than two values or defects outside the view."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._n_graded, self._first_graded = 0, ""
        self._n_unseen, self._n_only_unseen, self._first_unseen = 0, 0, ""

    def _named(self, index: int, mask: Any) -> str:
        return f"{self.name}[{index}]{_path(mask)}"

    def read(self, index: int, mask: Any) -> Mask:
        pixels = mask_pixels(mask, self._named(index, mask))
        if pixels.levels.size:
            self._n_graded += 1
            self._first_graded = self._first_graded or f"{self._named(index, mask)} contains {_listed(pixels.levels)}"
        return pixels.defective

    def note_unseen(self, index: int, mask: Any, inside: Mask, whole: Mask) -> None:
        """Record a mask if it has defective pixels outside the view."""
        if np.count_nonzero(inside) < np.count_nonzero(whole):
            self._n_unseen += 1
            self._n_only_unseen += not inside.any()
            self._first_unseen = self._first_unseen or self._named(index, mask)

    def warn(self, stacklevel: int = 4) -> None:
        if self._n_graded:
            warnings.warn(
                f"{_masks_have(self._n_graded)} more than two values; the first, {self._first_graded}. Pixels above "
                "half of the type's range are treated as defective. If the values mean something else, pass boolean "
                "arrays",
                UserWarning,
                stacklevel=stacklevel,
            )
        if self._n_unseen:
            warnings.warn(
                f'{_masks_have(self._n_unseen)} defective pixels outside the part of an image that resize="crop" '
                f"keeps, {self._n_only_unseen} of them only there; the first is {self._first_unseen}. Pixel metrics do "
                'not count these pixels; resize="stretch" inspects whole images',
                UserWarning,
                stacklevel=stacklevel,
            )


def _values(mask: Any, name: str) -> tuple[NDArray[Any], float]:
    """Return the values of a mask (H, W) and the upper end of its range."""
    try:
        if isinstance(mask, (str, PathLike)):
            with opened(mask, name) as image:
                return _values_of_image(image, name)
        if isinstance(mask, Image.Image):
            with decoding(name):
                return _values_of_image(mask, name)
    except InvalidImageError as error:
        raise InvalidTargetError(f"cannot read a mask: {error}") from error
    if is_tensor(mask):
        mask = numbers_of(mask, name)
    if np.ma.is_masked(mask):
        raise InvalidTargetError(f"{name} is an array with hidden entries: pass {name}.filled(0)")
    try:
        values = np.asarray(mask)
    except Exception as error:  # noqa: BLE001 - an object's own conversion may raise anything
        raise InvalidTargetError(f"{name}: a mask must be a numeric or boolean array (H, W): {error}") from None
    if values.ndim != 2 or values.dtype.kind not in "biuf":
        single = ": pass mask[0]" if values.ndim == 3 and len(values) == 1 else ""
        single = ": pass mask[..., 0]" if values.ndim == 3 and values.shape[-1] == 1 else single
        raise InvalidTargetError(
            f"{name}: a mask must be a numeric or boolean array (H, W), got shape {values.shape}, dtype "
            f"{values.dtype}{single}"
        )
    return values, _highest(values, name)


def _values_of_image(image: Image.Image, name: str) -> tuple[NDArray[Any], float]:
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise InvalidTargetError(
            f"{name} has {image.n_frames} pages or frames, any of which may mark defects: pass one of them"  # type: ignore[attr-defined]
        )
    alpha = image.getchannel("A") if "A" in image.getbands() else None
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
    if alpha is not None and not values.any() and len(set(alpha.getextrema())) > 1:
        raise InvalidTargetError(
            f"{name} is black everywhere and its opacity varies: if the opacity marks defects, pass "
            "np.asarray(mask)[..., -1] > 0"
        )
    highest = _highest(values, name)
    return values, max(highest, 65535.0) if image.mode == "I" else highest  # 16-bit values in 32-bit mode


def numbers_of(tensor: Any, name: str) -> NDArray[Any]:
    """Return a tensor of labels or of a mask as an array."""
    try:
        of_numpy = tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor
        numbers: NDArray[Any] = of_numpy.numpy(force=True)
    except Exception as error:
        raise InvalidTargetError(f"{name} is a tensor that cannot be converted to an array ({error})") from error
    return numbers


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


def _masks_have(n: int) -> str:
    return "1 mask has" if n == 1 else f"{n} masks have"


def _path(item: Any) -> str:
    return f" ({item})" if isinstance(item, (str, PathLike)) else ""


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
