"""Checks on X, and its images one by one, decoded and resized to the network's input."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from skpbas._inputs.comparison import Comparison
from skpbas._inputs.decoding import (
    channels_last,
    check_regular_file,
    check_values,
    decode,
    image_shape,
    item_name,
    tensor_to_array,
    too_many_channels,
    unmasked,
)
from skpbas._inputs.image_statistics import GoodStatistics, ImageStatistics
from skpbas.errors import ImageNotFoundError, InvalidImageError

__all__ = ["Geometry", "ImageSequence", "check_images", "check_stream", "image_shape", "of_several"]

_EXPECTED = (
    "must be images: an array (n, H, W, 3) or (n, H, W), or a sequence of paths, PIL images or arrays (H, W[, 3])"
)
_SHOWN_FILES = 10
_LARGEST_RESIZED = 16  # in views: of longer images only the part around the view is resized
_CROP_WARNING_SHARE = 0.05
_ASPECT_WARNING = math.log(1.5) + 1e-9


@dataclass(frozen=True)
class Geometry:
    """Position of the network's view within an image.

    Attributes
    ----------
    input_shape : (int, int)
        Height and width of the image, in pixels.
    resized_shape : (int, int)
        The whole image's height and width after resizing.
    offset : (int, int)
        Top and left edge of the view in the resized image.
    view_shape : (int, int)
        Height and width of the view, which is the model's input.
    """

    input_shape: tuple[int, int]
    resized_shape: tuple[int, int]
    offset: tuple[int, int]
    view_shape: tuple[int, int]

    @classmethod
    def of(cls, input_shape: tuple[int, int], view_shape: tuple[int, int], resize: str) -> Geometry:
        """Return the geometry of an image: "aspect" and "stretch" show all of it, "crop" its center."""
        if resize != "crop":
            return cls(input_shape, view_shape, (0, 0), view_shape)
        scale = max(view_shape[0] / input_shape[0], view_shape[1] / input_shape[1])
        height = max(view_shape[0], int(input_shape[0] * scale + 1e-6))
        width = max(view_shape[1], int(input_shape[1] * scale + 1e-6))
        offset = (round((height - view_shape[0]) / 2), round((width - view_shape[1]) / 2))
        return cls(input_shape, (height, width), offset, view_shape)

    @property
    def unseen(self) -> float:
        """Fraction of the image outside the view, in [0, 1)."""
        return 1.0 - (self.view_shape[0] * self.view_shape[1]) / (self.resized_shape[0] * self.resized_shape[1])

    @property
    def detail(self) -> float:
        """Share of the resized image's resolution that the image has: 1, or less where it is enlarged."""
        (height, width), (resized_height, resized_width) = self.input_shape, self.resized_shape
        return min(1.0, height / resized_height, width / resized_width)

    def view(self, image: Tensor) -> Tensor:
        """Resize and crop a (C, h, w) image to the view, with antialiased bilinear interpolation; the dtype is kept."""
        (top, left), (height, width) = self.offset, self.view_shape
        if math.prod(self.resized_shape) > _LARGEST_RESIZED * height * width:
            return _view_by_pillow(image, self)
        if tuple(image.shape[-2:]) != self.resized_shape:
            image = F.interpolate(
                image[None], self.resized_shape, mode="bilinear", align_corners=False, antialias=True
            )[0]
        return image[:, top : top + height, left : left + width]

    def view_of_mask(self, mask: NDArray[Any]) -> NDArray[np.bool_]:
        """Resample a mask (h, w) of the image to the view by nearest neighbor, aligned at pixel centers."""
        seen = mask.astype(bool)
        for axis in (0, 1):
            center = np.arange(self.view_shape[axis]) + self.offset[axis] + 0.5
            source = (center * mask.shape[axis] / self.resized_shape[axis]).astype(np.intp)
            seen = seen.take(source, axis=axis)
        return seen

    def to_input(self, anomaly_map: Tensor) -> Tensor:
        """Resize an anomaly map of the view to the image's size, bilinear; NaN outside the view."""
        for axis in (0, 1):
            n_in, n_resized, n_view = self.input_shape[axis], self.resized_shape[axis], self.view_shape[axis]
            # pixel centers of the image in view coordinates
            pixel = torch.arange(n_in, dtype=torch.float64, device="cpu")
            position = (pixel + 0.5) * (n_resized / n_in) - 0.5 - self.offset[axis]
            outside = (position < -0.5) | (position > n_view - 0.5)
            position = position.clamp(0, n_view - 1)
            below = position.floor().long().clamp(max=max(n_view - 2, 0))
            above = (below + 1).clamp(max=n_view - 1)
            weight = (position - below).float()
            weight[outside] = float("nan")
            shape = (-1, 1) if axis == 0 else (1, -1)
            anomaly_map = torch.lerp(
                anomaly_map.index_select(axis, below), anomaly_map.index_select(axis, above), weight.view(shape)
            )
        return anomaly_map


@dataclass(frozen=True)
class ViewDetails:
    """What is known of the model's view of an image besides its pixels.

    Attributes
    ----------
    geometry : Geometry
    transparent, more_frames : bool
        What decoding left out: see :class:`~skpbas._inputs.decoding.Decoded`.
    statistics : ImageStatistics or None
        What the image is like apart from its content.
    """

    geometry: Geometry
    transparent: bool = False
    more_frames: bool = False
    statistics: ImageStatistics | None = None


class ImageSequence:
    """Checked images, decoded one at a time on request.

    Parameters
    ----------
    items : array, sequence or iterator
        Return value of :func:`check_images` or :func:`check_stream`.
    image_size : (int, int)
        Height and width of the model's input, in pixels.
    resize : {"aspect", "stretch", "crop"}
    smallest : int
        Smallest allowed side of an image, in pixels: the network's stride.
    name : str
        Name of the sequence in errors.
    aspect : float or None
        Height / width of the training images: a warning names images that differ from it much.
    good : GoodStatistics or None
        What the training images were like: warnings name images that differ.

    Raises
    ------
    InvalidImageError
        By :meth:`load`, for an unusable image.
    """

    def __init__(
        self,
        items: Any,
        *,
        image_size: tuple[int, int],
        resize: str,
        smallest: int,
        name: str = "X",
        aspect: float | None = None,
        good: GoodStatistics | None = None,
    ) -> None:
        self.items = items
        self.image_size = image_size
        self.resize = resize
        self.smallest = smallest
        self.name = name
        self.aspect = aspect
        self._comparison = None if good is None else Comparison(good)
        self._distorted: dict[int, str] = {}
        self._cropped: dict[int, float] = {}
        self._transparent: dict[int, str] = {}
        self._more_frames: dict[int, str] = {}
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int) -> tuple[Tensor, Geometry]:
        """Return the model's view of an image, (3, H, W) uint8 or float32 in [0, 1], and its geometry."""
        view, details = self.view(index, self.items[index])
        return view, details.geometry

    def view(self, index: int, item: Any) -> tuple[Tensor, ViewDetails]:
        """Return the model's view of an item of the sequence, and its details."""
        name = item_name(item, index, self.name)
        decoded = decode(item, name)
        height, width = decoded.pixels.shape[:2]
        if min(height, width) < self.smallest:
            raise InvalidImageError(
                f"{name} is {height} x {width} pixels (height x width), smaller than {self.smallest}, the network "
                "stride at its deepest layer; pass a single image as X[None]"
            )
        geometry = Geometry.of((height, width), self.image_size, self.resize)
        pixels = _for_torch(decoded.pixels)
        channels = torch.from_numpy(pixels).movedim(-1, 0)
        view = geometry.view(channels)
        statistics = ImageStatistics.of(decoded.pixels.dtype, pixels, view)
        details = ViewDetails(geometry, decoded.transparent, decoded.more_frames, statistics)
        self.note(index, name, details)
        if view.untyped_storage().data_ptr() == channels.untyped_storage().data_ptr():
            view = view.clone()  # a caller may use the memory of an array again
        return view.expand(3, -1, -1), details

    def note(self, index: int, name: str, details: ViewDetails) -> None:
        """Record what the view of an image leaves out, and how the image differs from those of ``fit``."""
        if details.geometry.unseen > _CROP_WARNING_SHARE:
            self._cropped[index] = details.geometry.unseen
        height, width = details.geometry.input_shape
        if self.aspect is not None and abs(math.log(height / width / self.aspect)) > _ASPECT_WARNING:
            self._distorted[index] = f"{name}, {height} x {width}"
        if details.transparent:
            self._transparent[index] = name
        if details.more_frames:
            self._more_frames[index] = name
        if self._comparison is not None:
            self._comparison.note(index, name, details)

    def warn(self, stacklevel: int = 4) -> None:
        """Warn once of each thing that was left out of, or is different in, the images loaded so far."""
        cropped, self._cropped = self._cropped, {}  # a stream may be endless, so nothing is kept
        transparent, self._transparent = self._transparent, {}
        more_frames, self._more_frames = self._more_frames, {}
        distorted, self._distorted = self._distorted, {}
        total = f"{len(self.items)} images" if hasattr(self.items, "__len__") else "the images"
        texts = {}
        if cropped:
            texts["crop"] = (
                f'resize="crop" discards up to {max(cropped.values()):.0%} of the area of {len(cropped)} of {total}; '
                'resize="stretch" uses whole images'
            )
        if distorted:
            texts["aspect"] = (
                f"{len(distorted)} of {total} are distorted, because their aspect ratio differs by more than a factor "
                f"1.5 from {self.aspect:.3g} : 1 (height : width), that of what the network sees; the first is "
                f"{distorted[min(distorted)]}. Pass images of one aspect ratio, at most 4 : 1, such as crops"
            )
        if transparent:
            texts["alpha"] = (
                f"transparent pixels are blended with white in {len(transparent)} of {total}, first in "
                f"{transparent[min(transparent)]}; pass images without an alpha channel if hidden colors matter"
            )
        if more_frames:
            texts["frames"] = (
                f"only the first of several pages or frames is used in {len(more_frames)} of {total}, first in "
                f"{more_frames[min(more_frames)]}; pass each as an image of its own if the others matter"
            )
        if self._comparison is not None:
            texts |= self._comparison.texts(total)
        for kind, text in texts.items():
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(text, UserWarning, stacklevel=stacklevel)


def _for_torch(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return pixels as (H, W, C) in a memory layout and dtype that torch accepts, without a copy if possible."""
    if pixels.dtype == np.uint16:
        pixels = np.divide(pixels, np.float32(65535), dtype=np.float32)
    elif pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32, copy=False)
    if not pixels.flags.writeable:
        pixels = pixels.copy()
    return np.ascontiguousarray(np.atleast_3d(pixels))


def _view_by_pillow(image: Tensor, geometry: Geometry) -> Tensor:
    """Resize only the part of a (C, h, w) image that the view shows, with the filter's margin around it."""
    region, box = [], []
    for axis in (0, 1):
        scale = geometry.input_shape[axis] / geometry.resized_shape[axis]
        start = geometry.offset[axis] * scale
        stop = start + geometry.view_shape[axis] * scale
        reach = max(scale, 1.0) + 1
        first = max(0, math.floor(start - reach))
        region.append(slice(first, min(geometry.input_shape[axis], math.ceil(stop + reach))))
        box.append((max(0.0, start - first), min(float(region[-1].stop - first), stop - first)))
    part = image[:, region[0], region[1]].numpy()
    size = (geometry.view_shape[1], geometry.view_shape[0])
    (top, bottom), (left, right) = box
    views = [
        np.array(
            Image.fromarray(np.ascontiguousarray(channel)).resize(
                size, Image.Resampling.BILINEAR, box=(left, top, right, bottom)
            )
        )
        for channel in part
    ]
    return torch.from_numpy(np.stack(views))


# Checks ---------------------------------------------------------------------------------------------------


def check_images(X: Any, name: str = "X", *, each: bool = True) -> Sequence[Any] | NDArray[Any]:
    """Check X without decoding files, and return it as an array or a sequence.

    A sequence that loads its items on access is returned as it is, and no item is accessed.

    Parameters
    ----------
    X : array or sequence of images
        A generator is read to its end.
    name : str
        Name of X in errors.
    each : bool
        Check each path and the values of each image in an array.

    Raises
    ------
    InvalidImageError
        X is not a sequence of images, is empty, or is an array with invalid pixel values.
    ImageNotFoundError
        Paths do not name files.
    """
    _refuse_what_is_no_sequence(X, name)
    if isinstance(X, Tensor):
        _check_tensor(X, name)
        X = tensor_to_array(X, name)
    elif _is_table(X):
        X = _only_column(X, name)
    if isinstance(X, np.ndarray):
        if X.ndim == 2 and X.shape[1] == 1 and X.dtype.kind in "OUT":
            X = X[:, 0]  # a column of paths
        if not (X.ndim == 1 and X.dtype.kind in "OUT"):
            _check_image_array(X, name)
            for index in range(len(X) if each else 0):  # X may be memory-mapped and larger than memory
                check_values(X[index], f"{name}[{index}]")
            return X
        X = X.tolist()
    if not _is_indexed(X):
        X = list(_iterable(X, name))
    if len(X) == 0:
        raise InvalidImageError(f"{_what(name)}; got 0 images")
    if each and isinstance(X, (list, tuple)):
        _check_paths(X, name)  # fail now and not after hours of work
    return X


def image_items(X: Any) -> Any:
    """Return images that were checked elsewhere, or other samples, by position: a column's values, a list, or X."""
    if isinstance(X, np.ndarray):
        return X[:, 0] if X.ndim == 2 and X.shape[1] == 1 and X.dtype.kind in "OUT" else X
    if _is_table(X):
        return _only_column(X, "X") if not hasattr(X, "columns") or len(X.columns) == 1 else X
    return X if _is_indexed(X) and not isinstance(X, Mapping) else list(X)


def check_stream(X: Any, name: str = "X", *, each: bool = True) -> Any:
    """Check X as :func:`check_images` does, but return an iterator as it is, without advancing it."""
    if isinstance(X, (Tensor, np.ndarray)) or _is_table(X) or _is_indexed(X):
        return check_images(X, name, each=each)
    _refuse_what_is_no_sequence(X, name)
    return _iterable(X, name)


def _is_indexed(X: Any) -> bool:
    return hasattr(X, "__len__") and hasattr(X, "__getitem__")


def _iterable(X: Any, name: str) -> Iterable[Any]:
    if not isinstance(X, Iterable):
        raise InvalidImageError(f"{_what(name)}; got {type(X).__name__}")
    return X


def _what(name: str) -> str:
    return f"{name} {_EXPECTED}"


def _refuse_what_is_no_sequence(X: Any, name: str) -> None:
    if isinstance(X, (str, bytes, PathLike)):
        raise InvalidImageError(f"{_what(name)}; got {_single_path(X)}")
    if isinstance(X, Image.Image):
        raise InvalidImageError(f"{_what(name)}; got a single PIL image; pass [image]")
    if isinstance(X, Mapping):
        keys = [key for key in X if isinstance(key, str)]
        key = next((key for key in ("images", "image", "paths", "path") if key in keys), None)
        way_out = f"pass {name}[{key!r}]" if key else f"pass list({name}.values()) if its values are the images"
        raise InvalidImageError(f"{_what(name)}; got a {type(X).__name__} with the keys {list(X)[:8]}: {way_out}")
    if isinstance(X, (set, frozenset)):
        raise InvalidImageError(f"{_what(name)}; got a {type(X).__name__}, which has no order; pass sorted({name})")
    if isinstance(X, DataLoader):
        raise InvalidImageError(
            f"{_what(name)}; got a DataLoader, which yields batches; pass its dataset's images, "
            "[image for batch in loader for image in batch], channels last"
        )


def _single_path(X: Any) -> str:
    path = Path(fspath(X) if not isinstance(X, bytes) else X.decode(errors="replace"))
    try:
        is_folder = path.is_dir()
    except ValueError:  # a null character
        is_folder = False
    if is_folder:
        return f"the folder {str(path)!r}: list its images with skpbas.datasets.list_images({str(path)!r})"
    return f"the single path {str(path)!r}; pass a list, [path]"


def _is_table(X: Any) -> bool:
    """Return whether X is a table or a column of pandas or the like."""
    return hasattr(X, "columns") or (hasattr(X, "to_numpy") and hasattr(X, "dtype") and hasattr(X, "name"))


def _only_column(X: Any, name: str) -> list[Any]:
    """Return the values of a table's only column, or of a column, in their order."""
    if not hasattr(X, "columns"):
        return list(X)
    columns = list(getattr(X, "column_names", X.columns))  # pyarrow's columns are the data
    if len(columns) != 1:
        raise InvalidImageError(
            f"{_what(name)}; got a {type(X).__name__} with the columns {columns[:8]}: pass the column of paths, such "
            f"as {name}[{(columns or ['path'])[0]!r}]"
        )
    column = X[columns[0]]
    return list(column.to_pylist() if hasattr(column, "to_pylist") else column)


def _check_tensor(X: Tensor, name: str) -> None:
    shape = tuple(X.shape)
    if X.ndim == 4 and X.shape[-1] not in (1, 3, 4) and X.shape[1] in (1, 3, 4):
        raise InvalidImageError(
            f"{_what(name)}; got a tensor of shape {shape}; channels must come last: "
            f"{name}.{channels_last(X, batch=True)}"
        )
    if X.ndim == 3 and X.shape[0] in (3, 4) and X.shape[-1] not in (1, 3, 4):
        raise InvalidImageError(
            f"{name} is a tensor of shape {shape}, by torch's convention one image of {shape[0]} channels: pass "
            f"{name}.{channels_last(X, batch=False)}[None] for that image, or {name}[..., None] for {shape[0]} "
            "grayscale images"
        )


def _check_image_array(X: NDArray[Any], name: str) -> None:
    shape = tuple(X.shape)
    if X.ndim not in (3, 4):
        single = f"; pass a single image as {name}[None]" if X.ndim == 2 else ""
        raise InvalidImageError(f"{_what(name)}; got an array of {X.ndim} dimensions, shape {shape}{single}")
    if X.ndim == 3 and X.shape[-1] in (1, 3, 4) and len(X):
        raise InvalidImageError(f"{_what(name)}; got shape {shape}: pass a single image as {name}[None]")
    if X.ndim == 4 and X.shape[-1] not in (1, 3, 4):
        way_out = (
            f"channels must come last: {name}.transpose(0, 2, 3, 1)"
            if X.shape[1] in (1, 3, 4)
            else too_many_channels(X.shape, name)
        )
        raise InvalidImageError(f"{_what(name)}; got shape {shape}; {way_out}")
    if len(X) == 0:
        raise InvalidImageError(f"{_what(name)}; got 0 images (shape {shape})")


def _check_paths(X: Sequence[Any], name: str) -> None:
    """Check that all paths name files; one error names all that do not."""
    errors: list[InvalidImageError] = []
    for index, item in enumerate(map(unmasked, X)):
        if isinstance(item, (str, PathLike)):
            try:
                check_regular_file(item, item_name(item, index, name))
            except InvalidImageError as error:
                errors.append(error)
    if errors:
        raise of_several(errors, len(X))


def of_several(errors: Sequence[InvalidImageError], n_images: int) -> InvalidImageError:
    """Return one error for all unusable images: the only one, or a list of the first ten."""
    if len(errors) == 1:
        return errors[0]
    kind = ImageNotFoundError if all(isinstance(error, ImageNotFoundError) for error in errors) else InvalidImageError
    lines = [str(error) for error in errors[:_SHOWN_FILES]]
    if len(errors) > _SHOWN_FILES:
        lines.append(f"and {len(errors) - _SHOWN_FILES} more")
    return kind(f"{len(errors)} of {n_images} images are unusable:\n  " + "\n  ".join(lines))
