"""Decoding of images: files, PIL images, arrays and tensors to pixels."""

from __future__ import annotations

import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from skpbas._inputs.formats import IMAGE_FORMATS
from skpbas._inputs.tensors import is_tensor
from skpbas.errors import ImageNotFoundError, InvalidImageError, SkpbasError

Pixels = NDArray[Any]

_EXPECTED_IMAGE = "an image must be an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), a PIL image or a path"
_LOADING = threading.Lock()  # an image may occur twice in X, and is loaded by one thread at a time
_STRIP = 2**18  # pixels converted at a time, which limits memory
_ROTATED = (5, 6, 7, 8)  # EXIF orientations that swap height and width
_UPRIGHT: dict[int, Callable[[Pixels], Pixels]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: np.swapaxes(pixels, 0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(np.swapaxes(pixels, 0, 1), 2),
    8: lambda pixels: np.rot90(pixels),
}


@dataclass(frozen=True)
class Decoded:
    """Pixels of an image, and what was left out of them.

    Attributes
    ----------
    pixels : ndarray of shape (H, W) or (H, W, 3)
        uint8, uint16, or floats in [0, 1]; upright.
    transparent : bool
        Whether transparent pixels were blended with white.
    more_frames : bool
        Whether the file has further pages or frames.
    """

    pixels: Pixels
    transparent: bool = False
    more_frames: bool = False


@dataclass(frozen=True, eq=False)
class MaskedImage:
    """An image with pixels that count for nothing: see :func:`skpbas.masks.ignoring`.

    Attributes
    ----------
    image : array, PIL image or path
    ignored : mask or None
        True where pixels do not count; at the size of the image.
    """

    image: Any
    ignored: Any


def unmasked(item: Any) -> Any:
    """Return the image itself."""
    while isinstance(item, MaskedImage):
        item = item.image
    return item


def item_name(item: Any, index: int, of: str = "X") -> str:
    """Return the name of an image in errors: its index, and its path if it has one."""
    item = unmasked(item)
    return f"{of}[{index}] ({item})" if isinstance(item, (str, PathLike)) else f"{of}[{index}]"


# Files ----------------------------------------------------------------------------------------------------


def check_regular_file(path: str | PathLike[str], name: str) -> None:
    """Check that a path names a regular file. Opening a named pipe would block forever.

    Raises
    ------
    ImageNotFoundError
        There is no such file.
    InvalidImageError
        It is a folder, a pipe or a device, or is not accessible.
    """
    if not str(path):
        raise InvalidImageError(f"{name} is an empty path")
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise ImageNotFoundError(f"{name}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise InvalidImageError(f"{name} cannot be opened: {error}") from error
    if stat.S_ISDIR(mode):
        raise InvalidImageError(f"{name} is a folder: list its images with skpbas.datasets.list_images({str(path)!r})")
    if not stat.S_ISREG(mode):
        raise InvalidImageError(f"{name} is not a regular file, but a pipe, a socket or a device")


@contextmanager
def opened(path: str | PathLike[str], name: str) -> Iterator[Image.Image]:
    """Open an image file; any error of a decoder becomes an InvalidImageError that names the file."""
    check_regular_file(path, name)
    with decoding(name), Image.open(path, formats=known_formats()) as image:
        yield image


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """Convert any error of a decoder to an InvalidImageError with the image's name and the cause.

    Pillow's decoders raise OSError, SyntaxError, EOFError, ValueError, RuntimeError, MemoryError, struct.error and
    more, and warnings where the caller turns them into errors.
    """
    try:
        yield
    except SkpbasError:
        raise
    except FileNotFoundError:
        raise ImageNotFoundError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise InvalidImageError(
            f"{name} is not an image that Pillow can read as {', '.join(IMAGE_FORMATS)}; "
            "add other formats to skpbas.datasets.IMAGE_FORMATS"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidImageError(f"{name} is too large: {error}; see PIL.Image.MAX_IMAGE_PIXELS") from error
    except MemoryError as error:
        raise InvalidImageError(f"{name} is damaged or too large for memory (MemoryError: {error})") from error
    except Exception as error:
        raise InvalidImageError(f"{name} is damaged or truncated ({type(error).__name__}: {error})") from error


def known_formats() -> list[str]:
    """Return the formats that this build of Pillow supports; WebP and JPEG 2000 are optional."""
    if any(name not in Image.OPEN for name in IMAGE_FORMATS):
        Image.init()
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def image_shape(item: Any, name: str) -> tuple[int, int]:
    """Return the height and width of an image after EXIF rotation; only the header of a file is read.

    Raises
    ------
    ImageNotFoundError, InvalidImageError
        The file does not exist or is not an image.
    """
    item = unmasked(item)
    if isinstance(item, (str, PathLike)):
        name = f"{name} ({item})"
        with opened(item, name) as image:
            return _shape_as_shown(image)
    if isinstance(item, Image.Image):
        with decoding(name):
            return _shape_as_shown(item)
    height, width = (*np.shape(item), 1, 1)[:2]  # wrapped estimators may take other data
    return int(height), int(width)


def _shape_as_shown(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    # PngImageFile.getexif would decode the image
    return (width, height) if _orientation(Image.Image.getexif(image)) in _ROTATED else (height, width)


def _orientation(exif: Image.Exif) -> Any:
    return exif.get(ExifTags.Base.Orientation)


# Pixels ---------------------------------------------------------------------------------------------------


def decode(item: Any, name: str) -> Decoded:
    """Return the pixels of an image.

    Raises
    ------
    ImageNotFoundError, InvalidImageError
        The image is unusable.
    """
    item = unmasked(item)
    if isinstance(item, (str, PathLike)):
        with opened(item, name) as image:
            return _from_pil(image, name)
    if isinstance(item, Image.Image):
        with decoding(name), _LOADING:
            return _from_pil(item, name)
    return _without_alpha(checked_array(item, name), name)


def check_values(pixels: Pixels, name: str) -> None:
    """Check the dtype, and the range of floats."""
    if pixels.dtype in (np.uint8, np.uint16):
        return
    if pixels.dtype.kind != "f":
        raise InvalidImageError(
            f"{name}: got dtype {pixels.dtype}; expected uint8, uint16, or floats in [0, 1]{_of_dtype(pixels)}"
        )
    if pixels.size == 0:
        return
    low, high = float(pixels.min()), float(pixels.max())  # NaN if any value is NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise InvalidImageError(f"{name} contains NaN or infinity")
    if low < 0 or high > 1:
        raise InvalidImageError(
            f"{name}: float pixels must be in [0, 1], got [{low:.4g}, {high:.4g}]; "
            + (
                "pass images before they are normalized by a mean and a standard deviation"
                if low < 0
                else "divide by the largest possible value, or pass uint8"
            )
        )


def _of_dtype(pixels: Pixels) -> str:
    """Return the way out for pixels of another type."""
    if pixels.dtype.kind == "b":
        return ": pass 255 * image.astype(np.uint8)"
    if pixels.dtype.kind not in "iu" or pixels.size == 0:
        return ""
    low, high = int(pixels.min()), int(pixels.max())
    fitting = next((kind for kind in (np.uint8, np.uint16) if low >= 0 and high <= np.iinfo(kind).max), None)
    values = f"; its values are in [{low}, {high}]"
    return f"{values}: pass image.astype(np.{fitting.__name__})" if fitting else values


def tensor_to_array(tensor: Any, name: str) -> Pixels:
    """Return a tensor as an array; raise if numpy has no such type."""
    if str(tensor.dtype) == "torch.bfloat16":
        raise InvalidImageError(f"{name} is a bfloat16 tensor, which numpy does not support: pass {name}.float()")
    try:
        array: Pixels = tensor.numpy(force=True)
    except Exception as error:
        raise InvalidImageError(f"{name} is a tensor that cannot be converted to an array ({error})") from error
    return array


def checked_array(item: Any, name: str) -> Pixels:
    """Return an array or tensor unchanged, with its axes and values checked.

    Raises
    ------
    InvalidImageError
        The item is not an image; the message names what it is.
    """
    pixels = _as_array(item, name)
    check_values(pixels, name)
    return pixels


def _as_array(item: Any, name: str) -> Pixels:
    if is_tensor(item):
        pixels = tensor_to_array(item, name)
    elif isinstance(item, np.ndarray):
        pixels = item
    elif isinstance(item, Mapping):
        key = next((key for key in ("image", "img", "path", "pixel_values") if key in item), next(iter(item), "image"))
        raise InvalidImageError(
            f"{name} is a dict with the keys {list(item)[:8]}: pass only the images, [item[{key!r}] for item in X]"
        )
    elif _is_pair(item):
        raise InvalidImageError(
            f"{name} is a {type(item).__name__} of {len(item)}, such as the (image, label) of a torch Dataset: pass "
            "only the images, [item[0] for item in X]"
        )
    else:
        try:
            pixels = np.asarray(item)
        except Exception as error:  # noqa: BLE001 - an object's own conversion may raise anything
            raise InvalidImageError(f"{name}: {_EXPECTED_IMAGE}; got {type(item).__name__} ({error})") from None
        if pixels.ndim == 0:
            shown = f" {item}" if isinstance(item, (int, float)) else ""
            raise InvalidImageError(f"{name}: {_EXPECTED_IMAGE}; got {type(item).__name__}{shown}")
    if pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4)):
        return pixels
    raise InvalidImageError(
        f"{name}: {_EXPECTED_IMAGE}; got {type(item).__name__} of shape {tuple(pixels.shape)}{_way_out(item, pixels)}"
    )


def _is_pair(item: Any) -> bool:
    """Return whether a tuple or list holds an image and something else, rather than rows of pixels."""
    if not isinstance(item, (tuple, list)) or not item:
        return False
    first = item[0]
    return isinstance(first, (Image.Image, str, PathLike)) or (
        (isinstance(first, np.ndarray) or is_tensor(first)) and first.ndim > 1
    )


def _way_out(item: Any, pixels: Pixels) -> str:
    if pixels.ndim == 4:
        return ": a batch; pass its images one by one"
    if pixels.ndim != 3:
        return ""
    if pixels.shape[0] in (1, 3, 4):
        return f": channels must come last, image.{channels_last(item, batch=False)}"
    return f": {too_many_channels(pixels.shape, 'image')}"


def too_many_channels(shape: tuple[int, ...], name: str) -> str:
    """Return what is wrong with the number of channels of (..., H, W, C), and the way out."""
    n, of_channels = shape[-1], "the last axis must be 1, 3 or 4"
    if n <= 4:
        return of_channels
    if n > min(shape[-3:]):
        return f"{of_channels}: if the channels are another axis, move it to the end, and choose three of them"
    return f"{of_channels}; choose three of the {n} channels, such as {name}[..., :3]"


def channels_last(images: Any, *, batch: bool) -> str:
    """Return the call that moves the channels to the last axis."""
    method = "permute" if is_tensor(images) else "transpose"
    return f"{method}(0, 2, 3, 1)" if batch else f"{method}(1, 2, 0)"


def _from_pil(image: Image.Image, name: str) -> Decoded:
    image.load()
    # the later images of an MPO file are previews of its first
    more_frames = image.format != "MPO" and bool(getattr(image, "is_animated", False)) and image.tell() == 0
    convert = _conversion(image)
    pixels, lowest, highest = _in_strips(image, convert)
    if image.mode == "I" and (lowest < 0 or highest > 65535):
        raise InvalidImageError(
            f"{name}: 32-bit integer image with values in [{lowest}, {highest}]; expected 16-bit values in [0, 65535]"
        )
    if pixels.dtype.kind == "f":
        check_values(pixels, name)
    if lowest == 0 and highest == 0 and convert is _blended:
        raise InvalidImageError(f"{name} is transparent everywhere: no pixel is visible")
    upright = _UPRIGHT.get(_orientation(image.getexif()))
    return Decoded(
        pixels if upright is None else upright(pixels),
        transparent=convert is _blended and lowest < 255,
        more_frames=more_frames,
    )


Strip = tuple[Pixels, float, float]
"""Rows of pixels, and the lowest and highest of the values to check: opacity, or pixels."""


def _conversion(image: Image.Image) -> Callable[[Image.Image], Strip]:
    """Return the function that converts rows of an image to pixels."""
    if image.mode.startswith("I;16"):
        return lambda rows: (np.asarray(rows).astype(np.uint16), 0, 0)
    if image.mode in ("I", "F"):
        return _deep
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or image.has_transparency_data:
        return _blended
    mode = "L" if image.mode in ("1", "L") else "RGB"
    return lambda rows: (np.asarray(rows if rows.mode == mode else rows.convert(mode)), 0, 0)


def _deep(rows: Image.Image) -> Strip:
    values = np.asarray(rows)
    lowest, highest = (values.min(), values.max()) if values.size else (0, 0)
    return (values if rows.mode == "F" else values.astype(np.uint16)), lowest, highest


def _blended(rows: Image.Image) -> Strip:
    """Return rows blended with white, and the lowest and highest opacity."""
    gray = rows.mode in ("1", "L", "LA", "La")
    if rows.mode not in ("LA", "RGBA"):
        rows = rows.convert("LA" if rows.mode == "La" else "RGBA")
    values = np.asarray(rows)
    alpha = values[..., -1]
    seen = _on_white(values, 255)
    return seen[..., 0] if gray else seen, int(alpha.min()), int(alpha.max())


def _in_strips(image: Image.Image, convert: Callable[[Image.Image], Strip]) -> Strip:
    """Convert an image to one array, a strip of rows at a time."""
    width, height = image.size
    step = max(1, _STRIP // max(width, 1))
    if height <= step:
        return convert(image)
    whole, lowest, highest = None, np.inf, -np.inf
    for top in range(0, height, step):
        rows, low, high = convert(image.crop((0, top, width, min(top + step, height))))
        if whole is None:
            whole = np.empty((height, *rows.shape[1:]), rows.dtype)
        whole[top : top + len(rows)] = rows
        lowest, highest = min(lowest, low), max(highest, high)
    assert whole is not None
    return whole, lowest, highest


def _without_alpha(pixels: Pixels, name: str) -> Decoded:
    """Drop an axis of one channel, or blend by the fourth channel, the opacity, with white."""
    if pixels.ndim == 2:
        return Decoded(pixels)
    if pixels.shape[-1] < 4:
        return Decoded(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    opaque = np.iinfo(pixels.dtype).max if pixels.dtype.kind == "u" else 1
    alpha = pixels[..., 3]
    if alpha.size and alpha.max() == 0:
        raise InvalidImageError(
            f"{name} is transparent everywhere: its fourth channel is 0; if it is not opacity, pass image[..., :3]"
        )
    if alpha.size == 0 or alpha.min() >= opaque:
        return Decoded(pixels[..., :3])
    return Decoded(_on_white(pixels, opaque), transparent=True)


def _on_white(pixels: Pixels, opaque: float) -> Pixels:
    """Blend (H, W, C + 1), whose last channel is the opacity, with white: (H, W, C), rounded."""
    colors, alpha = pixels[..., :-1], pixels[..., -1:]
    if pixels.size == 0 or alpha.min() >= opaque:
        return colors
    share = alpha / np.float32(opaque)
    blended = colors * share + np.float32(opaque) * (1 - share)
    return (np.rint(blended) if pixels.dtype.kind == "u" else blended).astype(pixels.dtype)


def pixels_in_range(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return pixels as (H, W, C), uint8 or float32 in [0, 1], as torch accepts them, without a copy if possible."""
    if pixels.dtype == np.uint16:
        pixels = np.divide(pixels, np.float32(65535), dtype=np.float32)
    elif pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32, copy=False)
    if not pixels.flags.writeable:
        pixels = pixels.copy()
    return np.ascontiguousarray(np.atleast_3d(pixels))


def check_size(shape: tuple[int, int], smallest: int, name: str) -> None:
    """Check that an image is not smaller than the network's stride.

    Raises
    ------
    InvalidImageError
    """
    if min(shape) < smallest:
        raise InvalidImageError(
            f"{name} is {shape[0]} x {shape[1]} pixels (height x width), smaller than {smallest}, the network "
            "stride at its deepest layer; pass a single image as X[None]"
        )
