"""Coordinates and random fields, which everything else is made of.

The unit of length is the shorter side of the image, so a pattern looks the same at every image size.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.floating[Any]]  # float32 wherever speed matters
Shape = tuple[int, int]

FINEST = 1 / (128 * math.sqrt(2))
"""Wavelength of the finest structures, in shorter sides of the image: what 256 pixels show, diagonals included."""


@lru_cache(maxsize=16)
def plane(shape: Shape) -> tuple[Field, Field]:
    """Return the pixels' coordinates x (1, W) and y (H, 1), in shorter sides, zero at the center of the image."""
    side = min(shape)
    y, x = (((np.arange(n) - (n - 1) / 2) / side).astype(np.float32) for n in shape)
    x.flags.writeable = y.flags.writeable = False  # shared by all callers
    return x[None, :], y[:, None]


def rotated(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    """Return the coordinates along and across a direction, given as an angle in radians from x toward y."""
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def smoothstep(low: float, high: float, values: Field) -> Field:
    """Return a smooth step from 0 at `low` to 1 at `high`; `high` may be smaller than `low`."""
    t = np.clip((values - np.float32(low)) * np.float32(1.0 / (high - low)), 0, 1)
    rise: Field = t * t * (3 - 2 * t)
    return rise


def white_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> Field:
    """Return independent standard normal values."""
    noise: Field = rng.standard_normal(shape, dtype=np.float32)
    return noise


def fractal_noise(
    rng: np.random.Generator,
    shape: Shape,
    exponent: float = 1.0,
    *,
    coarsest: float = 1.0,
    finest: float = FINEST,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> Field:
    """Return 1/f**exponent noise of mean 0 and standard deviation 1.

    Parameters
    ----------
    rng : numpy.random.Generator
        Generator to draw from.
    shape : (int, int)
        Height and width, pixels.
    exponent : float, default=1.0
        How fast the amplitude falls with frequency: 0 is white noise, 1 cloudy, 2 very smooth.
    coarsest : float, default=1.0
        Size of the largest structures, in shorter sides of the image.
    finest : float, default=FINEST
        Wavelength below which structures fade, in shorter sides of the image; 0 keeps all of them. Without it, rough
        noise would turn into noise of single pixels in large images, and its coarse structures would fade.
    stretch : float, default=1.0
        How many times longer structures are along `angle` than across it.
    angle : float, default=0.0
        Direction of the stretch, radians.

    Returns
    -------
    ndarray of shape (H, W), float32
        The noise, which is periodic: opposite borders match.

    Examples
    --------
    >>> import numpy as np
    >>> from skpbas.datasets.generated.noise import fractal_noise
    >>> noise = fractal_noise(np.random.default_rng(0), (32, 48))
    >>> noise.shape, f"{noise.std():.2f}"
    ((32, 48), '1.00')
    """
    side = min(shape)
    fy = fft.fftfreq(shape[0], 1 / side).astype(np.float32)[:, None]
    fx = fft.rfftfreq(shape[1], 1 / side).astype(np.float32)[None, :]
    along, across = rotated(fx, fy, angle)
    squared = np.square(along * np.float32(stretch)) + np.square(across)
    gain = (squared + np.float32(coarsest**-2)) ** np.float32(-exponent / 2)
    if finest > 0:
        beyond = np.maximum(np.sqrt(np.square(fx) + np.square(fy)) * np.float32(finest) - 1, 0)
        gain *= np.exp(-np.square(2 * beyond))
    gain[0, 0] = 0  # zero mean
    noise: Field = fft.irfft2(fft.rfft2(white_noise(rng, shape)) * gain, s=shape)
    noise /= max(float(noise.std()), 1e-12)
    return noise
