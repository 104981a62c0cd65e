"""The threshold that ``contamination="auto"`` sets, from good images alone (METHOD, "Threshold").

An image's score is a maximum over its patches, so on the logit scale (probabilities end at 1) scores of good images
follow a Gumbel law. Those of the training images do not show it: they are lower than unseen images' and closer
together, the more so the fewer there are. So a second head is trained, on one half of the images and for as many
epochs; how the other half scores there, measured in deviations of the half it has seen, says how unseen images will
score with the detector itself. A half makes for a larger gap than the whole: the estimate errs toward fewer alarms.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

FALSE_ALARM_RATE = 0.01
SMALLEST_SPLIT = 4  # images: two to see, two to keep unseen
_GUMBEL_QUANTILE = (-math.log(-math.log1p(-FALSE_ALARM_RATE)) - np.euler_gamma) * math.sqrt(6) / math.pi


def auto_offset(
    scores: NDArray[np.float64], seen: NDArray[np.float64] | None = None, unseen: NDArray[np.float64] | None = None
) -> float:
    """Estimate the score below which about 1 in 100 unseen good images lie.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        ``score_samples`` of the training images.
    seen, unseen : ndarray of shape (n_seen,), (n_unseen,), at least 2 each, or None
        Scores by the second head, of the half it was trained on and of the other. None (too few images to split):
        unseen images are taken to score one training deviation lower, and to spread no more.

    Returns
    -------
    float
    """
    shift, ratio, n = 1.0, 1.0, len(scores)
    if seen is not None and unseen is not None:
        deviation = max(seen.std(ddof=1), np.finfo(np.float32).eps)  # equal images have none
        shift, ratio, n = (seen.mean() - unseen.mean()) / deviation, unseen.std(ddof=1) / deviation, len(unseen)
    # few images show their spread badly: Student's t in the place of the normal law
    few = student.ppf(1 - FALSE_ALARM_RATE, n - 1) / student.ppf(1 - FALSE_ALARM_RATE, 10**9) * math.sqrt(1 + 1 / n)
    return float(scores.mean() - scores.std(ddof=1) * (shift + ratio * few * _GUMBEL_QUANTILE))
