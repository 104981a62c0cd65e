"""Masks brought to where the anomaly maps are."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from skpbas._inputs.images import Geometry
from skpbas._inputs.targets import mask_pixels
from skpbas.errors import ImageNotFoundError, InvalidImageError, InvalidTargetError

_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange height and width


def image_shape(item: Any, name: str) -> tuple[int, int]:
    """Return an image's height and width as the detector sees it, from a file's header alone.

    Raises
    ------
    ImageNotFoundError, InvalidImageError
        A file that is missing or no image.
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
    height, width = (*np.shape(item), 1, 1)[:2]  # whatever a wrapper takes for an image
    return int(height), int(width)


def _shape_as_shown(image: Image.Image) -> tuple[int, int]:
    exif = Image.Image.getexif(image)  # PNG's own would decode the image in search of later chunks
    width, height = image.size
    return (width, height) if exif.get(ExifTags.Base.Orientation) in _TURNED else (height, width)


def masks_at_map_size(
    masks: Any, X: Sequence[Any] | NDArray[Any], map_shape: tuple[int, int], resize: str, *, name: str = "y"
) -> tuple[list[NDArray[np.bool_] | None], NDArray[np.bool_]]:
    """Bring masks to the geometry of the images' anomaly maps, nearest.

    Parameters
    ----------
    masks : sequence of arrays (h, w), PIL images, paths or None, or array (n, h, w)
        At the images' own sizes or already at the maps'; any non-zero pixel is defective.
    X : array or sequence of images
    map_shape : (int, int)
        Height and width of the maps.
    resize : {"stretch", "crop"}
        How images are brought to that.
    name : str
        What errors call the masks.

    Returns
    -------
    seen : list of ndarray of shape ``map_shape``, bool, or None
        None where nothing of the map is defective.
    anomalous : ndarray of shape (n,), bool
        Whether a mask has a defective pixel at its own size.

    Raises
    ------
    InvalidTargetError
        A mask that cannot be read, or whose size is neither its image's nor the map's; its sample is named.
    """
    seen: list[NDArray[np.bool_] | None] = []
    anomalous = np.zeros(len(masks), bool)
    for i, mask in enumerate(masks):
        if mask is None:
            seen.append(None)
            continue
        pixels = mask_pixels(mask, f"{name}[{i}]")
        anomalous[i] = pixels.any()
        if pixels.shape != map_shape or resize == "crop":
            of_image = image_shape(X[i], f"X[{i}]")
            if pixels.shape == of_image:
                pixels = Geometry.of(of_image, map_shape, resize).view_of_mask(pixels)
            elif pixels.shape != map_shape:
                raise InvalidTargetError(
                    f"{name}[{i}]{_path(mask)} is {_size(pixels.shape)}; its image X[{i}]{_path(X[i])} is "
                    f"{_size(of_image)} and the map {_size(map_shape)} (height x width): give the mask at one of these "
                    "sizes"
                )
        seen.append(pixels if pixels.any() else None)
    return seen, anomalous


def _path(item: Any) -> str:
    return f" ({Path(item)})" if isinstance(item, (str, PathLike)) else ""


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
