"""The threshold of ``contamination="auto"``, from normal images alone (see "Threshold" in the user guide).

An image score is a maximum over patches, so on the logit scale (probabilities are bounded by 1) the scores of normal
images follow a Gumbel distribution. If training images can be scored as if they were new, as in the fused score, it is
fitted to their own scores: to the logarithms, because fused scores are ratios of distances. Their variance is averaged
with a usual one, which matters for few images, and the caller multiplies the result by two ratios of new images' scores
to these: one is measured, as own exemplars are left out (see ``exemplars.py``); the other is what it was on several
products, as the discriminator has seen the training images (``discriminator_bias``).

By the discriminator alone, scores of training images are lower and closer together than those of unseen images, the
more so the fewer images there are. Then a second head is trained on one half of the images, for the same number of
epochs; its scores of the other half, in standard deviations of the half that it was trained on, predict the detector's
scores of unseen images. Training on half of the images widens the gap, so the estimate errs toward fewer false alarms.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm as normal
from scipy.stats import t as student

FALSE_ALARM_RATE = 0.01
_LARGEST_LOGARITHM = 80.0  # keeps the offset of two very different images within float32
USUAL_STD, _PRIOR_WEIGHT = 0.12, 4  # of logarithms of image scores: 0.06 to 0.25 within products; in images
_ROBUST_PRIOR_WEIGHT = 20  # a quantile says less of the spread than a variance
_UPPER_QUANTILE = 0.85  # unchanged by a tenth of odd images
_SMALLEST_RATIO = 0.5  # 1 to 4 on products, 0 for equal images
_ODD = 5.0  # deviations above the median, of many images, beyond which one is odd
FEWEST_IMAGES, ENOUGH_IMAGES = 5, 20  # different ones
SMALLEST_SPLIT = 4  # images: two to train on, two held out


def warn_of_few_images(fingerprints: Sequence[str], stacklevel: int = 2) -> None:
    """Warn if there are too few different training images for a threshold."""
    if (n_different := len(set(fingerprints))) < FEWEST_IMAGES:
        warnings.warn(
            f"{n_different} different images of {len(fingerprints)} show little of how good ones vary, so the "
            f"threshold is a guess: give {ENOUGH_IMAGES} or more, or check it on images that were not in fit",
            UserWarning,
            stacklevel=stacklevel,
        )


def auto_offset(
    scores: NDArray[np.float64],
    halves: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    *,
    shift: float = 1.0,
    rate: float = FALSE_ALARM_RATE,
) -> float:
    """Estimate the score that about a share ``rate`` of unseen normal images falls below.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        ``score_samples`` of the training images.
    halves : (ndarray of shape (n_seen,), ndarray of shape (n_unseen,)), at least 2 each, or None
        Scores by the second head of its training half and of the other half. None: unseen images are assumed to
        have the same spread as the training images.
    shift : float
        Without a second head: how much lower unseen images score, in standard deviations of the training images; 0 if
        the training images were scored as if they were new.
    rate : float, default=0.01
        In (0, 0.5].

    Returns
    -------
    float
    """
    ratio, n = 1.0, len(scores)
    if halves is not None:
        seen, unseen = halves
        std = max(seen.std(ddof=1), np.finfo(np.float32).eps)  # equal images have zero spread
        shift, ratio, n = (seen.mean() - unseen.mean()) / std, unseen.std(ddof=1) / std, len(unseen)
    return float(scores.mean() - scores.std(ddof=1) * (shift + ratio * _quantile(rate, n, n - 1)))


def _quantile(rate: float, n: int, degrees: float) -> float:
    """Return what a share ``rate`` of new scores exceeds, in standard deviations above the mean, both of n scores.

    Few images estimate the spread poorly: Student's t, with these degrees of freedom, replaces the normal distribution.
    """
    widened = student.ppf(1 - rate, degrees) / normal.ppf(1 - rate) if rate < 0.5 else 1.0
    return float(widened * math.sqrt(1 + 1 / n) * _gumbel_quantile(rate))


def _gumbel_quantile(rate: float) -> float:
    """Return what a share ``rate`` of a Gumbel distribution exceeds, in standard deviations above its mean."""
    return (-math.log(-math.log1p(-rate)) - np.euler_gamma) * math.sqrt(6) / math.pi


def offset_at_rate(scores: NDArray[np.float64], offset: float, rate: float, other: float) -> float:
    """Return about the offset at another rate, if ``offset`` is that at ``rate`` and images score as by Gumbel.

    ``scores`` (n,): of the training images, whose mean score counts as usual.
    """
    usual, ratio = float(scores.mean()), _gumbel_quantile(other) / max(_gumbel_quantile(rate), _gumbel_quantile(0.4))
    return usual - max(usual - offset, 0.0) * max(ratio, 0.0)


def discriminator_bias(n_images: int) -> float:
    """Return the ratio of scores of images that the discriminator has not seen to those of its training images.

    Measured after the default training on 10, 20 and 40 images of five products at 256 pixels as 1.13, 1.08 and 1.04;
    at 64 pixels, where an image has fewer patches, as 1.2 for 20. Fewer than ten images count as ten. Both err toward
    flagging.
    """
    return math.exp(2 / (max(n_images, 10) + 6))


def oddness(ratios: NDArray[np.float64], usual_std: float = USUAL_STD) -> NDArray[np.float64]:
    """Return how many standard deviations ratios (n,) lie above their median, on a logarithmic scale.

    The deviation is that of the upper half, as its quantile tells it, so that a tenth of odd images does not hide among
    themselves; and ``usual_std`` counts as much as that of twenty images.
    """
    logarithms = np.log(np.maximum(ratios, np.finfo(np.float32).eps))
    median, upper = np.quantile(logarithms, [0.5, _UPPER_QUANTILE])
    std = (upper - median) / normal.ppf(_UPPER_QUANTILE)
    n = len(logarithms)
    variance = (_ROBUST_PRIOR_WEIGHT * usual_std**2 + n * std**2) / (_ROBUST_PRIOR_WEIGHT + n)
    deviations: NDArray[np.float64] = (logarithms - median) / math.sqrt(variance)
    return deviations


def largest_usual(n_images: int) -> float:
    """Return the oddness beyond which one of ``n_images`` is odd: as rare by Student's t as 5 deviations."""
    degrees = n_images + _ROBUST_PRIOR_WEIGHT - 1
    return float(student.ppf(normal.cdf(_ODD), degrees) * math.sqrt(1 + 1 / n_images))


def offset_of_ratios(ratios: NDArray[np.float64], rate: float = FALSE_ALARM_RATE) -> float:
    """Estimate the offset from ratios (n,) of images scored as if they were new; higher is more anomalous.

    Their logarithms have about the same spread on most products, which counts as much as a few images. Images that are
    far from all others do not count.
    """
    ratios = ratios[oddness(ratios) <= largest_usual(len(ratios))]
    logarithms = np.log(np.maximum(ratios, _SMALLEST_RATIO))
    n, degrees = len(logarithms), len(logarithms) - 1 + _PRIOR_WEIGHT
    variance = (_PRIOR_WEIGHT * USUAL_STD**2 + (n - 1) * logarithms.var(ddof=1)) / degrees
    level = logarithms.mean() + math.sqrt(variance) * _quantile(rate, n, degrees)
    return -math.exp(min(level, _LARGEST_LOGARITHM))
