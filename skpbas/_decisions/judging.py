"""Labels, p-values and verdicts of scores; needs no torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNSURE_RATE = 0.05
"""Share of unseen normal images that are not called normal, by default."""


@dataclass(frozen=True)
class Judge:
    """Decisions about scores (n,), higher for more normal images.

    Attributes
    ----------
    offset, unsure_offset : float
        An image below the first is anomalous; one that is not, but below the second, is unsure.
    normal_scores : ndarray of shape (m,)
        Of normal images as if they were new, ascending.
    """

    offset: float
    unsure_offset: float
    normal_scores: NDArray[np.float64]

    def labels(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return +1 for normal scores and -1 for anomalous ones."""
        return np.where(scores >= self.offset, 1, -1)

    def p_values(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of normal images that score as low or lower, counting the image itself."""
        return p_values_of(scores, self.normal_scores)

    def verdicts(self, scores: NDArray[np.float64]) -> NDArray[np.str_]:
        """Return "normal", "unsure" or "anomalous" for each score."""
        sure = np.where(scores >= self.offset, "normal", "anomalous")
        return np.where((scores >= self.offset) & (scores < self.unsure_offset), "unsure", sure)


def p_values_of(scores: NDArray[np.float64], normal_scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (1 + number of normal scores at most as high) / (n + 1) for each score; NaN counts as the lowest.

    ``normal_scores`` (n,) are ascending.
    """
    n_lower = np.searchsorted(normal_scores, np.where(np.isnan(scores), -np.inf, scores), side="right")
    return (1 + n_lower) / (len(normal_scores) + 1)
