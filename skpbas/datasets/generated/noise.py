"""Random fields that everything else is made of: fractal, Perlin and cellular (Worley) noise.

Lengths are in units of the image's shorter side, so a pattern keeps its looks at every image size.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.floating[Any]]  # float32 wherever speed counts
Shape = tuple[int, int]


@lru_cache(maxsize=16)
def plane(shape: Shape) -> tuple[Field, Field]:
    """Return the coordinates x (1, W) and y (H, 1) of the pixels, zero in the image's middle."""
    side = min(shape)
    y, x = (((np.arange(n) - (n - 1) / 2) / side).astype(np.float32) for n in shape)
    x.flags.writeable = y.flags.writeable = False  # shared by all callers
    return x[None, :], y[:, None]


def rotated(x: Field, y: Field, angle: float) -> tuple[Field, Field]:
    """Return coordinates along and across a direction (radians, from x toward y)."""
    cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
    return cos * x + sin * y, cos * y - sin * x


def smoothstep(low: float, high: float, values: Field) -> Field:
    """Rise smoothly from 0 at `low` to 1 at `high`; falls where `high` is below `low`."""
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
    finest: float = 0.0,
    stretch: float = 1.0,
    angle: float = 0.0,
) -> Field:
    """Return 1/f**exponent noise of mean 0 and standard deviation 1.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the draws.
    shape : (int, int)
        Height and width, pixels.
    exponent : float, default=1.0
        Fall of the amplitude with frequency: 0 is white, 1 cloudy, 2 very smooth.
    coarsest : float, default=1.0
        Size of the largest structures, in shorter sides.
    finest : float, default=0.0
        Size below which structures fade, in shorter sides; 0 keeps all of them.
    stretch : float, default=1.0
        How much longer structures are along `angle` than across it.
    angle : float, default=0.0
        Direction of the stretch, radians.

    Returns
    -------
    ndarray of shape (H, W), float32
        The noise; its opposite borders match.

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
        gain *= np.exp(-squared * np.float32(finest**2))
    gain[0, 0] = 0  # zero mean
    noise: Field = fft.irfft2(fft.rfft2(white_noise(rng, shape)) * gain, s=shape)
    noise /= max(float(noise.std()), 1e-12)
    return noise


def perlin_noise(rng: np.random.Generator, shape: Shape, cells: float) -> Field:
    """Return Perlin's gradient noise with `cells` lattice cells to the shorter side, about -1 to 1."""
    x, y = plane(shape)
    across, down = (x - x.min()) * np.float32(cells), (y - y.min()) * np.float32(cells)
    column, row = across[0].astype(np.int32), down[:, 0].astype(np.int32)
    fx, fy = across - np.floor(across), down - np.floor(down)
    turn = rng.uniform(0, 2 * np.pi, (row[-1] + 2, column[-1] + 2)).astype(np.float32)
    cos, sin = np.cos(turn), np.sin(turn)

    def corner(dy: int, dx: int) -> Field:
        at = np.ix_(row + dy, column + dx)
        ramp: Field = cos[at] * (fx - dx) + sin[at] * (fy - dy)
        return ramp

    sx, sy = (t * t * t * (t * (6 * t - 15) + 10) for t in (fx, fy))
    top = corner(0, 0) + sx * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + sx * (corner(1, 1) - corner(1, 0))
    noise: Field = (top + sy * (bottom - top)) * np.float32(1.5)
    return noise


def worley_noise(rng: np.random.Generator, shape: Shape, cells: float, warp: float = 0.0) -> tuple[Field, Field, Field]:
    """Return cellular noise: one random point to a lattice cell, every pixel belongs to the nearest.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of the draws.
    shape : (int, int)
        Height and width, pixels.
    cells : float
        Cells to the shorter side.
    warp : float, default=0.0
        How far cell borders wander, in cells.

    Returns
    -------
    nearest, second : ndarray of shape (H, W), float32
        Distances to the nearest and second nearest point, in cells.
    tone : ndarray of shape (H, W), float32
        A random number in [0, 1) for each point, seen all over its cell.
    """
    x, y = plane(shape)
    u, v = (np.broadcast_to((t - t.min()) * np.float32(cells), shape) for t in (x, y))
    if warp > 0:
        wander = fractal_noise(rng, shape, 1.5, coarsest=1.5 / cells) * np.float32(warp)
        u, v = u + wander, v - np.roll(wander, shape[1] // 3, axis=1)
    margin = 2 + int(np.ceil(4 * warp))
    column, row = np.floor(u).astype(np.int32) + margin, np.floor(v).astype(np.int32) + margin
    lattice = (int(row.max()) + 2, int(column.max()) + 2)
    jitter = rng.uniform(0.1, 0.9, (2, *lattice)).astype(np.float32)
    tones = rng.random(lattice, dtype=np.float32).ravel()
    points_x = (jitter[0] + np.arange(lattice[1], dtype=np.float32) - margin).ravel()
    points_y = (jitter[1] + np.arange(lattice[0], dtype=np.float32)[:, None] - margin).ravel()
    home = np.clip(row, 1, lattice[0] - 2) * lattice[1] + np.clip(column, 1, lattice[1] - 2)
    nearest = np.full(shape, np.inf, dtype=np.float32)
    second = nearest.copy()
    owner = np.zeros(shape, dtype=np.int32)
    for step in (dy * lattice[1] + dx for dy in (-1, 0, 1) for dx in (-1, 0, 1)):
        there = home + step
        squared = np.square(points_x[there] - u) + np.square(points_y[there] - v)
        closer = squared < nearest
        np.minimum(second, np.maximum(squared, nearest), out=second)
        np.copyto(nearest, squared, where=closer)
        np.copyto(owner, there, where=closer)
    return np.sqrt(nearest), np.sqrt(second), tones[owner]
