"""The threshold that ``contamination="auto"`` sets, from the training images alone (METHOD, "Threshold").

An image's score is a maximum over its patches, so scores of good images follow a Gumbel law on the logit scale (not
on that of probabilities, which end at 1). Two things stand between the training images' scores and the quantile of
unseen ones, and both are measured: training images score lower than unseen ones, and spread less
(``benchmarks/optimism.py``: one half of the training images against the other, which overstates it a little); and few
images show their spread badly, for which Student's t stands in.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

FALSE_ALARM_RATE = 0.01
_SHIFT = 1.5  # of unseen scores' mean, in deviations of training scores
_RATIO = 1.5  # of the deviations, unseen to training


def auto_offset(scores: NDArray[np.float64]) -> float:
    """Estimate the score below which about 1 in 100 unseen good images lie.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        ``score_samples`` of the training images, n at least 2.

    Returns
    -------
    float
    """
    n = len(scores)
    standard_gumbel = (-math.log(-math.log1p(-FALSE_ALARM_RATE)) - np.euler_gamma) * math.sqrt(6) / math.pi
    few = student.ppf(1 - FALSE_ALARM_RATE, n - 1) / student.ppf(1 - FALSE_ALARM_RATE, 10**9) * math.sqrt(1 + 1 / n)
    return float(scores.mean() - scores.std(ddof=1) * few * (_SHIFT + _RATIO * standard_gumbel))
