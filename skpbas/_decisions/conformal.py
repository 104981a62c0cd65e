"""Conformal prediction from calibration scores: ranks, p-values and margins across folds, and what is guaranteed."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]
_CHUNK = 2**20  # differences that are held at a time


def largest_rank(rate: float, n: int) -> int:
    """Return the largest k with k / (n + 1) <= rate, which flags exactly the p-values up to ``rate``."""
    rank = math.floor(rate * (n + 1))
    while (rank + 1) / (n + 1) <= rate:  # 0.29 * 100 is 28.999... in floating point
        rank += 1
    while rank / (n + 1) > rate:
        rank -= 1
    return rank


def fewest_images(rate: float) -> int:
    """Return the smallest n with 1 / (n + 1) <= rate."""
    n = max(math.ceil(1 / rate) - 2, 0)
    while largest_rank(rate, n) == 0:
        n += 1
    return n


def rounded_up(rate: float) -> float:
    """Return the rate, rounded up to three significant digits."""
    digits = 2 - math.floor(math.log10(rate))
    return math.ceil(rate * 10**digits) / 10**digits


def cross_p_values(scores: Scores, fold_scores: Sequence[Scores]) -> Scores:
    """Return (1 + number of calibration scores at most as high) / (n + 1), each compared within its fold.

    Parameters
    ----------
    scores : ndarray of shape (n_folds, n_images)
        Scores of new images by each fold's detector, without NaN.
    fold_scores : sequence of ndarray
        Calibration scores of each fold, ascending; n in total.
    """
    counts = [np.searchsorted(known, new, side="right") for known, new in zip(fold_scores, scores, strict=True)]
    p_values: Scores = (1 + np.sum(counts, axis=0)) / (1 + sum(map(len, fold_scores)))
    return p_values


def cross_margins(scores: Scores, fold_scores: Sequence[Scores], rank: int) -> Scores:
    """Return the ``rank``-th largest difference between an image's scores and the calibration scores of their folds.

    It is negative exactly if at most ``rank - 1`` calibration scores are at most as high as the image's: a difference
    of floats is negative, zero or positive exactly if the first is lower, equal or higher. Parameters are those of
    :func:`cross_p_values`.
    """
    lowest = [known[:rank] for known in fold_scores]  # a fold has at most rank of the rank largest differences
    folds = np.repeat(np.arange(len(lowest)), [len(known) for known in lowest])
    known = np.concatenate(lowest)[:, None]
    margins = np.empty(scores.shape[1])
    step = max(1, _CHUNK // len(known))
    for start in range(0, len(margins), step):
        here = slice(start, start + step)
        with np.errstate(over="ignore"):
            differences = scores[folds, here] - known
        margins[here] = np.partition(differences, -rank, axis=0)[-rank]
    return margins


def scores_of_margins(margins: Scores, offset: float) -> Scores:
    """Return ``margins + offset``, lower than ``offset`` exactly where a margin is negative."""
    with np.errstate(over="ignore"):
        scores: Scores = margins + offset
    return np.where(margins < 0, np.minimum(scores, np.nextafter(offset, -np.inf)), scores)


def cross_bound(sizes: Sequence[int], rank: int) -> float:
    """Return a bound on the probability that a normal image is flagged: "Cross-conformal" in the user guide proves it.

    Parameters
    ----------
    sizes : sequence of int
        Number of images of each fold.
    rank : int
        An image is flagged if at most ``rank - 1`` calibration scores are at most as high as its scores.
    """
    levels = np.sort(np.concatenate([np.arange(1, size + 2) / (size + 1) for size in sizes]))
    of_levels = np.cumsum(levels)[rank - 1 :] / np.arange(1, len(levels) - rank + 2)
    bounds = [1.0, float(of_levels.min())]
    if len(set(sizes)) == 1:
        bounds.append((2 * (rank - 1) + sizes[0]) / (sum(sizes) + sizes[0]))
    return min(bounds)
