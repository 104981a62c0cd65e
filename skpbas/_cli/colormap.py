"""Color mapping of anomaly maps, without matplotlib."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter


def color_table() -> NDArray[np.uint8]:
    """Return a colormap of 256 colors from near black through violet and orange to pale yellow.

    Lightness rises linearly in OKLCh, which is perceptually uniform, so the order of values is visible in grayscale and
    to color-blind viewers.

    Returns
    -------
    ndarray of shape (256, 3), uint8
        sRGB.
    """
    t = np.linspace(0.0, 1.0, 256)
    lightness = 0.15 + 0.8 * t
    hue = np.deg2rad(285.0 + 180.0 * t)  # violet, red, orange, yellow
    chroma = 0.05 + 0.13 * np.sin(np.pi * np.clip(t, 0.0, 1.0)) ** 0.8
    a, b = chroma * np.cos(hue), chroma * np.sin(hue)
    # Oklab to linear sRGB (Ottosson 2020)
    cones = np.stack(
        [
            lightness + 0.3963377774 * a + 0.2158037573 * b,
            lightness - 0.1055613458 * a - 0.0638541728 * b,
            lightness - 0.0894841775 * a - 1.2914855480 * b,
        ]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip(to_rgb @ cones**3, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.round(255 * encoded.T).astype(np.uint8)


def color_map(anomaly_map: NDArray[np.floating[Any]], low: float, high: float) -> NDArray[np.uint8]:
    """Map the values of an anomaly map (H, W) between ``low`` and ``high`` to colors (H, W, 3)."""
    colors: NDArray[np.uint8] = color_table()[np.round(255 * _scaled(anomaly_map, low, high)).astype(np.intp)]
    return colors


def map_limits(threshold: float) -> tuple[float, float]:
    """Return the ends of the color scale of anomaly maps, halfway from the threshold to 0 and to 1.

    They depend on the threshold alone, so that all pictures of a detector have one scale. What is far below the
    threshold is black, so good parts do not glow.

    Examples
    --------
    >>> from skpbas._cli.colormap import map_limits
    >>> map_limits(0.625), map_limits(0.25)
    ((0.3125, 0.8125), (0.125, 0.625))
    """
    return threshold / 2, (1 + threshold) / 2


def pinned(anomaly_map: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.float64]:
    """Return an anomaly map on the scale of colors, [0, 1], on which a detector's threshold is 0.5 in every picture.

    What is below or above :func:`map_limits` is 0 or 1; NaN, which a crop did not see, is 0.
    """
    values = np.nan_to_num(anomaly_map.astype(np.float64), nan=0.0)
    low, high = map_limits(threshold)
    scaled: NDArray[np.float64] = np.interp(values, [low, threshold, high], [0.0, 0.5, 1.0])
    return scaled


def contour(above: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """Return the pixels just outside the regions of a mask (H, W), up to ``thickness`` away."""
    regions = Image.fromarray(np.uint8(255) * above)
    return np.asarray(regions.filter(ImageFilter.MaxFilter(2 * thickness + 1))) > np.asarray(regions)


def overlay(
    image: NDArray[np.uint8],
    anomaly_map: NDArray[np.floating[Any]],
    low: float,
    high: float,
    strength: NDArray[np.float64] | None = None,
) -> NDArray[np.uint8]:
    """Blend the colors of an anomaly map over an image (H, W, 3).

    ``strength`` (H, W), in [0, 1], is how much of the image is covered; None: lower values are more transparent.
    """
    opacity = 0.75 * (_scaled(anomaly_map, low, high) if strength is None else strength)[..., None]
    mixed = (1 - opacity) * image + opacity * color_map(anomaly_map, low, high)
    return np.round(mixed).astype(np.uint8)


def _scaled(anomaly_map: NDArray[np.floating[Any]], low: float, high: float) -> NDArray[np.float64]:
    return np.clip((anomaly_map.astype(np.float64) - low) / max(high - low, 1e-12), 0.0, 1.0)
