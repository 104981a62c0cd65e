"""The shape of the network's input, by the parameters ``image_size`` and ``resize`` and by the training images."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skpbas._inputs.decoding import MaskedImage, image_shape
from skpbas._inputs.parameters import height_and_width
from skpbas.core.backbones.extractor import MULTIPLE

DEFAULT_SIZE = 256
"""Default of ``image_size``."""

_LARGEST_ASPECT = 4.0
_LARGEST_MAGNIFICATION = 4.0  # of tiles
_LARGEST_REDUCTION = 4.0  # per side, beyond which the default size raises a warning
_N_PEEKED = 5  # items of a sequence that loads on access


def input_shape(image_size: Any, resize: str, shapes: NDArray[np.int64]) -> tuple[int, int]:
    """Return the height and width of the network's input.

    Parameters
    ----------
    image_size : int or (int, int)
    resize : {"aspect", "stretch", "crop"}
        "aspect" with a single size s: about s x s pixels in the median aspect ratio of the images.
    shapes : ndarray of shape (n, 2)
        Heights and widths of training images.
    """
    height, width = height_and_width(image_size)
    if resize != "aspect" or not isinstance(image_size, Integral) or not len(shapes):
        return height, width
    return shape_of_area(height, median_aspect(shapes))


def tiled_shape(image_size: Any, tile: int, resize: str, shapes: NDArray[np.int64]) -> tuple[int, int]:
    """Return the height and width to which images are brought before tiles of ``image_size`` pixels are cut.

    Parameters
    ----------
    image_size : int
        Side of a tile as the network sees it.
    tile : int
        Side of a tile in pixels of the images.
    resize : {"aspect", "stretch"}
    shapes : ndarray of shape (n, 2)
        Heights and widths of training images; their medians count.

    Raises
    ------
    ValueError
        A parameter does not go with tiles, or ``tile`` does not go with the images.
    """
    if not isinstance(image_size, Integral):
        raise ValueError(f"image_size={image_size!r} with tile={tile}: tiles are square, give one number")
    if resize == "crop":
        raise ValueError(f'resize="crop" with tile={tile}: tiles cover whole images; use the default, "aspect"')
    if (magnification := int(image_size) / int(tile)) > _LARGEST_MAGNIFICATION:
        raise ValueError(
            f"tile={tile} with image_size={image_size} magnifies images {magnification:.0f} times: tile is the side of "
            f"a tile in pixels of the images, and tile={image_size} shows every pixel"
        )
    if not len(shapes):
        return int(image_size), int(image_size)
    median = np.median(shapes, axis=0)
    if tile > median.max():
        raise ValueError(
            f"tile={tile} is larger than the images, of {median[0]:.0f} x {median[1]:.0f} pixels (height x width): use "
            "tile=None to inspect them as a whole"
        )
    height, width = median * magnification
    return max(round(height), MULTIPLE), max(round(width), MULTIPLE)


def shape_of_area(side: int, aspect: float) -> tuple[int, int]:
    """Return height and width of about side x side pixels in an aspect ratio (height / width) of at most 4 : 1.

    Both are multiples of 16, unless they are equal: then they are ``side``.
    """
    root = math.sqrt(min(max(aspect, 1 / _LARGEST_ASPECT), _LARGEST_ASPECT))
    height, width = (max(round(exact / MULTIPLE), 1) * MULTIPLE for exact in (side * root, side / root))
    return (side, side) if height == width else (height, width)


def median_aspect(shapes: NDArray[np.int64]) -> float:
    """Return the median of height / width, on a logarithmic scale."""
    return float(np.exp(np.median(np.log(shapes[:, 0] / shapes[:, 1]))))


def peek_shapes(items: Any, rows: NDArray[np.intp], n_workers: int = 1) -> tuple[NDArray[np.int64], Any]:
    """Return the heights and widths (n, 2) of the images at ``rows``, and the items, to be used instead.

    Of files only the headers are read. Of a sequence that loads its items on access, five are loaded, and kept until
    they are accessed the next time. Unusable images are left out: reading them raises their error.
    """
    if isinstance(items, np.ndarray):
        return np.tile(np.array(items.shape[1:3]), (len(rows), 1)), items
    if isinstance(items, (list, tuple)):
        peeked = {row: items[row] for row in rows.tolist()}
    else:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, _N_PEEKED).round().astype(np.intp))]
        items = _Peeked(items, rows)
        peeked = items.peeked
    with ThreadPoolExecutor(n_workers, thread_name_prefix="skpbas-headers") as pool:
        shapes = [shape for shape in pool.map(_shape, peeked.values(), peeked) if shape is not None]
    return np.array(shapes, np.int64).reshape(-1, 2), items


def warn_of_reduction(shapes: NDArray[np.int64], image_size: Any, shape: tuple[int, int], resize: str) -> None:
    """Warn if the default size leaves less than one pixel in four per side of most images."""
    if not len(shapes) or not isinstance(image_size, Integral) or image_size != DEFAULT_SIZE:
        return
    median = np.median(shapes, axis=0)
    reductions = median / np.array(shape)
    reduction = float(reductions.min() if resize == "crop" else reductions.max())
    if reduction > _LARGEST_REDUCTION:
        enough = math.ceil(DEFAULT_SIZE * reduction / _LARGEST_REDUCTION / MULTIPLE) * MULTIPLE
        warnings.warn(
            f"image_size={DEFAULT_SIZE} reduces images of {median[0]:.0f} x {median[1]:.0f} pixels (height x width) by "
            f"a factor {reduction:.1f} to {shape[0]} x {shape[1]}: a detail of {reduction:.0f} pixels becomes a single "
            f"one. For small defects pass a larger image_size ({enough} takes "
            f"{(enough / DEFAULT_SIZE) ** 2:.1f} times as long), or tile, to inspect the image piece by piece",
            UserWarning,
            stacklevel=5,
        )


class _Peeked(Sequence[Any]):
    """A sequence some of whose items have been loaded; each is given out once."""

    def __init__(self, items: Any, rows: NDArray[np.intp]) -> None:
        self._items = items
        self.peeked = {row: _own(items[row]) for row in rows.tolist()}

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self.peeked.pop(index) if index in self.peeked else self._items[index]


def _own(item: Any) -> Any:
    """Return a copy of pixels: the sequence may use their memory for the next item."""
    if isinstance(item, MaskedImage):
        return MaskedImage(_own(item.image), item.ignored)
    if isinstance(item, np.ndarray):
        return item.copy()
    return item.clone() if isinstance(item, Tensor) else item


def _shape(item: Any, row: int) -> tuple[int, int] | None:
    try:
        height, width = image_shape(item, f"X[{row}]")
    except Exception:  # noqa: BLE001 - reading the image will raise its error, with those of all others
        return None
    return (height, width) if height > 0 and width > 0 else None
