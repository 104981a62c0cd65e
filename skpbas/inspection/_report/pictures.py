"""Photos and anomaly maps as small files, in colors that mean the same in all pictures."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._cli.colormap import color_table, pinned

LARGEST_PAGE = 28_500_000
"""Bytes of a page that are shared among its images."""

_ROW_BYTES = 1_000  # of an image in table and data
_SHARES = 12_000, 80_000  # least and most that an image gets
_LEAST_PHOTO = 4_000
_QUALITIES = (88, 76, 64, 52)
_SMALLEST_SIDE = 120
_MAP_SIDE = 80
_N_COLORS = 48
_INVISIBLE, _AT_THRESHOLD, _MOST_OPAQUE = 0.42, 0.45, 0.8  # place below which nothing is drawn; opacities


def share_of_page(n_images: int) -> int:
    """Return how many bytes of a page the pictures of each of n images may have."""
    least, most = _SHARES
    return max(least, min(most, LARGEST_PAGE // max(n_images, 1) - _ROW_BYTES))


def photo_bytes(share: int, taken: int) -> int:
    """Return how large a photo may be, whose base64 is what remains of an image's share of the page."""
    return max(_LEAST_PHOTO, (share - taken) * 3 // 4)


def photo(pixels: NDArray[Any], side: int, most_bytes: int, gain: float = 1.0) -> str:
    """Return an image as a JPEG file in base64, as fine as the number of bytes allows.

    Parameters
    ----------
    pixels : ndarray of shape (H, W) or (H, W, 3)
        uint8, uint16, or floats in [0, 1].
    side : int
        Longer side, in pixels; a smaller image is not enlarged.
    most_bytes : int
        Of the file; only an image of 120 pixels may have more.
    gain : float
        Factor on the values of images that are not uint8.
    """
    if pixels.dtype != np.uint8:
        scale = 255 * gain / (65535 if pixels.dtype == np.uint16 else 1)
        pixels = np.rint(pixels * np.float32(scale)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    while True:
        for quality in _QUALITIES:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=quality, optimize=True)
            if file.tell() <= most_bytes or max(image.size) <= _SMALLEST_SIDE:
                return _in_text(file)
            if file.tell() > 3 * most_bytes:  # no quality is low enough
                break
        smaller = max(_SMALLEST_SIDE, int(max(image.size) * min(0.8, 1.2 * math.sqrt(most_bytes / file.tell()))))
        image.thumbnail((smaller, smaller), Image.Resampling.BICUBIC)


def heat(anomaly_map: NDArray[np.float32], threshold: float) -> str | None:
    """Return an anomaly map as a PNG file in base64, transparent well below the threshold; None if it is everywhere.

    Parameters
    ----------
    anomaly_map : ndarray of shape (H, W)
        In [0, 1]; NaN is transparent.
    threshold : float
    """
    small = Image.fromarray(np.nan_to_num(anomaly_map.astype(np.float32)))
    small.thumbnail((_MAP_SIDE, _MAP_SIDE), Image.Resampling.BOX)
    place = pinned(np.asarray(small), threshold)
    if place.max() <= _INVISIBLE:
        return None
    image = Image.fromarray(np.rint(place * (_N_COLORS - 1)).astype(np.uint8))
    places = np.linspace(0, 1, _N_COLORS)
    image.putpalette(_colors(places).tobytes())
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True, transparency=np.rint(255 * _opacity(places)).astype(np.uint8).tobytes())
    return _in_text(file)


def legend(n: int = 12) -> list[str]:
    """Return n colors of anomaly maps in hexadecimal, from 0 to 1; the threshold is in the middle."""
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in _colors(np.linspace(0, 1, n)).tolist()]


def _colors(places: NDArray[np.float64]) -> NDArray[np.uint8]:
    colors: NDArray[np.uint8] = color_table()[np.rint(255 * places).astype(np.intp)]
    return colors


def _opacity(places: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.interp(places, [_INVISIBLE, 0.5, 1.0], [0.0, _AT_THRESHOLD, _MOST_OPAQUE])


def _in_text(file: io.BytesIO) -> str:
    return base64.b64encode(file.getvalue()).decode("ascii")
