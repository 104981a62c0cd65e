"""Perlin noise and cellular (Worley) noise, in addition to the noise of the package."""

from __future__ import annotations

import numpy as np

from skpbas.datasets.generated.noise import Field, Shape, fractal_noise, plane


def perlin_noise(rng: np.random.Generator, shape: Shape, cells: float) -> Field:
    """Return Perlin noise (H, W), about -1 to 1, with `cells` lattice cells along the shorter side."""
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
    """Return Worley noise: each lattice cell has a random point, and each pixel belongs to the nearest one.

    Parameters
    ----------
    rng : numpy.random.Generator
        Generator to draw from.
    shape : (int, int)
        Height and width, pixels.
    cells : float
        Number of lattice cells along the shorter side.
    warp : float, default=0.0
        Standard deviation of the distortion of the borders, in cells.

    Returns
    -------
    nearest, second : ndarray of shape (H, W), float32
        Distances to the nearest and second nearest points, in cells.
    tone : ndarray of shape (H, W), float32
        A random number in [0, 1) for each point, the same for all pixels that belong to it.
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
