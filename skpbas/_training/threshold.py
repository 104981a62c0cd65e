"""The threshold that ``contamination="auto"`` sets, from good images alone (METHOD, "Threshold").

An image's score is a maximum over its patches, so on the logit scale (probabilities end at 1) scores of good images
follow a Gumbel law. Where training images can be scored as if they were new, their own scores show it: in the fused
score, whose scores are ratios of distances, by their logarithms. The discriminator's do not: they are lower than unseen
images' and closer together, the more so the fewer there are. Then a second head is trained, on one half of the images
and for as many epochs; how the other half scores there, measured in deviations of the half it has seen, says how unseen
images will score with the detector itself. A half makes for a larger gap than the whole: the estimate errs toward fewer
alarms.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

FALSE_ALARM_RATE = 0.01
_LARGEST_LOGARITHM = 80.0  # two images that differ wildly would call for more than a float32 holds
SMALLEST_SPLIT = 4  # images: two to see, two to keep unseen
_GUMBEL_QUANTILE = (-math.log(-math.log1p(-FALSE_ALARM_RATE)) - np.euler_gamma) * math.sqrt(6) / math.pi


def auto_offset(
    scores: NDArray[np.float64],
    halves: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    *,
    shift: float = 1.0,
) -> float:
    """Estimate the score below which about 1 in 100 unseen good images lie.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        ``score_samples`` of the training images.
    halves : (ndarray of shape (n_seen,), ndarray of shape (n_unseen,)), at least 2 each, or None
        Scores by the second head, of the half it was trained on and of the other. None: unseen images are taken to
        spread no more than the training images.
    shift : float
        Without a second head: by how many deviations of the training images unseen ones score lower; 0 where the
        training images were scored as if they were new.

    Returns
    -------
    float
    """
    ratio, n = 1.0, len(scores)
    if halves is not None:
        seen, unseen = halves
        deviation = max(seen.std(ddof=1), np.finfo(np.float32).eps)  # equal images have none
        shift, ratio, n = (seen.mean() - unseen.mean()) / deviation, unseen.std(ddof=1) / deviation, len(unseen)
    # few images show their spread badly: Student's t in the place of the normal law
    few = student.ppf(1 - FALSE_ALARM_RATE, n - 1) / student.ppf(1 - FALSE_ALARM_RATE, 10**9) * math.sqrt(1 + 1 / n)
    return float(scores.mean() - scores.std(ddof=1) * (shift + ratio * few * _GUMBEL_QUANTILE))


def offset_of_ratios(ratios: NDArray[np.float64]) -> float:
    """Estimate the offset from ratios (n,), higher for more anomalous, of images scored as if they were new."""
    logarithms = np.log(np.maximum(ratios, np.finfo(np.float32).eps))
    return -math.exp(min(-auto_offset(-logarithms, shift=0.0), _LARGEST_LOGARITHM))
