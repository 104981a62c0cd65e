"""Validation, decoding and resizing of images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from skpbas.errors import ImageNotFoundError, InvalidImageError

_EXPECTED_X = (
    "X must be images: an array (n, H, W, 3) or (n, H, W), or a sequence of paths, PIL images or arrays (H, W[, 3])"
)
_CROP_WARNING_SHARE = 0.05
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


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
        """Return the geometry of an image: "stretch" shows all of it, "crop" its center."""
        if resize == "stretch":
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

    def view(self, image: Tensor) -> Tensor:
        """Resize and crop a (C, h, w) image to the view, with antialiased bilinear interpolation; the dtype is kept."""
        if tuple(image.shape[-2:]) != self.resized_shape:
            image = F.interpolate(
                image[None], self.resized_shape, mode="bilinear", align_corners=False, antialias=True
            )[0]
        (top, left), (height, width) = self.offset, self.view_shape
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
            position = (torch.arange(n_in, dtype=torch.float64) + 0.5) * (n_resized / n_in) - 0.5 - self.offset[axis]
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


class ImageSequence:
    """Checked images, decoded one at a time on request.

    Parameters
    ----------
    items : array or sequence
        Return value of :func:`check_images`.
    image_size : (int, int)
        Height and width of the model's input, in pixels.
    resize : {"stretch", "crop"}
    smallest : int
        Smallest allowed side of an image, in pixels: the network's stride.

    Raises
    ------
    InvalidImageError
        By :meth:`load`, for an unusable image.
    """

    def __init__(self, items: Any, *, image_size: tuple[int, int], resize: str, smallest: int) -> None:
        self.items = items
        self.image_size = image_size
        self.resize = resize
        self.smallest = smallest
        self._cropped: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int) -> tuple[Tensor, Geometry]:
        """Return the model's view of an image, (3, H, W) uint8 or float32 in [0, 1], and its geometry."""
        name = _name(self.items[index], index)
        pixels = _to_pixels(self.items[index], name)
        height, width = pixels.shape[:2]
        if min(height, width) < self.smallest:
            raise InvalidImageError(
                f"{name} is {height} x {width} pixels (height x width), smaller than {self.smallest}, the network "
                "stride at its deepest layer; pass a single image as X[None]"
            )
        geometry = Geometry.of((height, width), self.image_size, self.resize)
        self.note(index, geometry)
        channels = torch.from_numpy(np.ascontiguousarray(np.atleast_3d(pixels))).movedim(-1, 0)
        return geometry.view(channels).expand(3, -1, -1), geometry

    def note(self, index: int, geometry: Geometry) -> None:
        """Record how much of an image the crop leaves out."""
        if geometry.unseen > _CROP_WARNING_SHARE:
            self._cropped[index] = geometry.unseen

    def warn_of_crops(self) -> None:
        """Warn once if the crop left out more than 5% of any image loaded so far."""
        if self._cropped:
            worst = max(self._cropped.values())
            warnings.warn(
                f'resize="crop" discards up to {worst:.0%} of the area of {len(self._cropped)} of {len(self)} images; '
                'resize="stretch" uses whole images',
                UserWarning,
                stacklevel=4,
            )
            self._cropped.clear()


def check_images(X: Any) -> Sequence[Any] | NDArray[Any]:
    """Check X without decoding files, and return it as an array or a sequence.

    Raises
    ------
    InvalidImageError
        X is not a sequence of images, is empty, or is an array with invalid pixel values.
    ImageNotFoundError
        A path does not name a file.
    """
    if isinstance(X, (str, bytes, PathLike)):
        raise InvalidImageError(
            f"{_EXPECTED_X}; got the single path {str(X)!r}; pass a list, such as sorted(Path(folder).glob('*.png'))"
        )
    if isinstance(X, Image.Image):
        raise InvalidImageError(f"{_EXPECTED_X}; got a single PIL image; pass [image]")
    if isinstance(X, Tensor):
        X = X.numpy(force=True)
    if isinstance(X, np.ndarray):
        if X.ndim == 1 and X.dtype.kind in "OUT":
            X = X.tolist()
        else:
            _check_image_array(X)
            return X
    if not isinstance(X, Sequence):
        try:
            X = list(X)
        except TypeError:
            raise InvalidImageError(f"{_EXPECTED_X}; got {type(X).__name__}") from None
    if len(X) == 0:
        raise InvalidImageError(f"{_EXPECTED_X}; got 0 images")
    for index, item in enumerate(X):  # fail now and not after hours of work
        if isinstance(item, (str, PathLike)) and not Path(item).is_file():
            raise ImageNotFoundError(f"X[{index}]: no such file: {str(item)!r}")
    return X


def image_shape(item: Any, name: str) -> tuple[int, int]:
    """Return the height and width of an image after EXIF rotation; only the header of a file is read.

    Raises
    ------
    ImageNotFoundError, InvalidImageError
        The file does not exist or is not an image.
    """
    if isinstance(item, (str, PathLike)):
        try:
            with Image.open(item) as image:
                return _shape_as_shown(image)
        except FileNotFoundError:
            raise ImageNotFoundError(f"{name} ({item}): no such file") from None
        except UnidentifiedImageError:
            raise InvalidImageError(f"{name} ({item}) is not an image that Pillow can read") from None
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InvalidImageError(f"{name} ({item}) cannot be opened: {error}") from error
    if isinstance(item, Image.Image):
        return _shape_as_shown(item)
    height, width = (*np.shape(item), 1, 1)[:2]  # wrapped estimators may take other data
    return int(height), int(width)


def _shape_as_shown(image: Image.Image) -> tuple[int, int]:
    exif = Image.Image.getexif(image)  # PngImageFile.getexif would decode the image
    width, height = image.size
    return (width, height) if exif.get(ExifTags.Base.Orientation) in _ROTATED else (height, width)


def _check_image_array(X: NDArray[Any]) -> None:
    if X.ndim not in (3, 4):
        raise InvalidImageError(f"{_EXPECTED_X}; got an array of {X.ndim} dimensions, shape {X.shape}")
    if X.ndim == 4 and X.shape[-1] not in (1, 3, 4):
        hint = " channels must come last: X.transpose(0, 2, 3, 1)" if X.shape[1] in (1, 3, 4) else ""
        raise InvalidImageError(f"{_EXPECTED_X}; got shape {X.shape};{hint or ' the last axis must be 1, 3 or 4'}")
    if len(X) == 0:
        raise InvalidImageError(f"{_EXPECTED_X}; got 0 images (shape {X.shape})")
    for index in range(len(X)):  # X may be memory-mapped and larger than memory
        _check_values(X[index], f"X[{index}]")


def _check_values(pixels: NDArray[Any], name: str) -> None:
    """Check the dtype, and the range of floats."""
    if pixels.dtype in (np.uint8, np.uint16):
        return
    if pixels.dtype.kind != "f":
        raise InvalidImageError(
            f"{name}: got dtype {pixels.dtype}; expected uint8, uint16, or floats in [0, 1] (X.astype(np.uint8)?)"
        )
    if pixels.size == 0:
        return
    low, high = float(pixels.min()), float(pixels.max())  # NaN if any value is NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InvalidImageError(f"{name} contains NaN or infinity")
    if low < 0 or high > 1:
        raise InvalidImageError(
            f"{name}: float pixels must be in [0, 1], got [{low:.4g}, {high:.4g}]; divide by the largest possible "
            "value, or pass uint8"
        )


def _name(item: Any, index: int) -> str:
    return f"X[{index}] ({item})" if isinstance(item, (str, PathLike)) else f"X[{index}]"


def _to_pixels(item: Any, name: str) -> NDArray[Any]:
    """Decode an item to (H, W) or (H, W, 3), uint8 or float32 in [0, 1]."""
    if isinstance(item, (str, PathLike)):
        pixels = _read(Path(item), name)
    elif isinstance(item, Image.Image):
        pixels = _from_pil(item, name)
    else:
        pixels = item.numpy(force=True) if isinstance(item, Tensor) else np.asarray(item)
        if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[-1] not in (1, 3, 4)):
            raise InvalidImageError(
                f"{name}: an image must be an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a PIL image or a path; "
                f"got {type(item).__name__} of shape {pixels.shape}"
            )
        _check_values(pixels, name)
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
    if pixels.dtype == np.uint16:
        return (pixels / np.float32(65535)).astype(np.float32)
    if pixels.dtype == np.uint8:
        return pixels if pixels.flags.writeable else pixels.copy()
    return pixels.astype(np.float32)


def _read(path: Path, name: str) -> NDArray[Any]:
    try:
        with Image.open(path) as image:
            return _from_pil(image, name)
    except FileNotFoundError:
        raise ImageNotFoundError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise InvalidImageError(f"{name} is not an image that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise InvalidImageError(f"{name} is too large: {error}; see PIL.Image.MAX_IMAGE_PIXELS") from None
    except (OSError, SyntaxError, EOFError) as error:  # Pillow raises SyntaxError for broken PNG chunks
        raise InvalidImageError(f"{name} is damaged or truncated: {error}") from error


def _from_pil(image: Image.Image, name: str) -> NDArray[Any]:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode == "I":
        pixels = np.asarray(image)
        if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
            raise InvalidImageError(
                f"{name}: 32-bit integer image with values in [{pixels.min()}, {pixels.max()}]; "
                "expected 16-bit values in [0, 65535]"
            )
        return pixels.astype(np.uint16)
    if image.mode == "F":
        pixels = np.asarray(image)
        _check_values(pixels, name)
        return pixels
    if image.mode in ("L", "RGB"):
        return np.asarray(image)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.asarray(image.convert("L" if image.mode in ("1", "LA", "La") else "RGB"))
