"""Curves around regions, as paths of SVG."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Curve = NDArray[np.float64]
"""Rows and columns (k, 2) of a closed curve; the center of the first pixel is at (0.5, 0.5)."""

_MOST_POINTS = 500
_SIDES = (  # to a neighbor that is not inside; start and end of the side between the two, clockwise
    ((-1, 0), (0, 0), (0, 1)),
    ((0, 1), (0, 1), (1, 1)),
    ((1, 0), (1, 1), (1, 0)),
    ((0, -1), (1, 0), (0, 0)),
)


def outlines(values: NDArray[Any], level: float) -> list[Curve]:
    """Return the closed curves around all that is above a level, interpolated between the centers of pixels.

    Parameters
    ----------
    values : ndarray of shape (H, W)
        NaN is below every level; so is what lies beyond the edges, along which curves are closed.
    level : float
    """
    values = np.pad(values.astype(np.float64), 1, constant_values=np.nan)
    inside = values > level
    width = values.shape[1] + 1
    starts, ends, points = [], [], []
    for (down, right), first, second in _SIDES:
        outside = ~np.roll(inside, (-down, -right), axis=(0, 1))
        row, column = np.nonzero(inside & outside)
        within, beyond = values[row, column], values[row + down, column + right]
        share = (within - level) / (within - beyond)
        share = np.where(np.isfinite(share), share, 0.5).clip(0, 1)
        starts.append((row + first[0]) * width + column + first[1])
        ends.append((row + second[0]) * width + column + second[1])
        points.append(np.stack([row - 0.5 + share * down, column - 0.5 + share * right], axis=1))
    return [np.concatenate(points)[side] for side in _closed(np.concatenate(starts), np.concatenate(ends))]


def _closed(starts: NDArray[np.intp], ends: NDArray[np.intp]) -> list[list[int]]:
    """Return the sides in the order in which they meet, one list for each closed curve."""
    leaving: dict[int, list[int]] = {}
    for side, start in enumerate(starts.tolist()):
        leaving.setdefault(start, []).append(side)
    curves, to = [], ends.tolist()
    for first in range(len(to)):
        if first not in leaving[int(starts[first])]:
            continue
        curve, corner = [], int(starts[first])
        while leaving[corner]:
            curve.append(leaving[corner].pop())
            corner = to[curve[-1]]
        curves.append(curve)
    return curves


def as_path(curves: list[Curve], place: Callable[[Curve], Curve]) -> str:
    """Return curves as the ``d`` of an SVG path, of about 500 points at most.

    Parameters
    ----------
    curves : list of ndarray of shape (k, 2)
    place : callable
        Brings rows and columns to those of the drawing.
    """
    step = 1 + sum(map(len, curves)) // _MOST_POINTS
    pieces = []
    for curve in curves:
        tenths = np.rint(10 * place(curve[:: max(1, min(step, len(curve) // 4))])[:, ::-1]).astype(int)
        start, *steps = np.diff(tenths, axis=0, prepend=0).tolist()  # relative to the last point, which is shorter
        pieces.append("M" + _pair(start) + "l" + " ".join(map(_pair, steps)) + "Z")
    return "".join(pieces)


def _pair(tenths: list[int]) -> str:
    x, y = tenths
    return f"{x / 10:g},{y / 10:g}"
