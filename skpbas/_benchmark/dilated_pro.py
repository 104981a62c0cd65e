"""The PRO of the authors' released code, to compare with published figures; the package's own is exact."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from skpbas.errors import InvalidTargetError

_N_THRESHOLDS, _SIDE, _MAX_FPR = 200, 5, 0.3


def dilated_pro(masks: Sequence[NDArray[np.bool_] | None], maps: Sequence[NDArray[np.float32]]) -> float:
    """Return PRO with predictions dilated inside the regions, which makes it larger than the exact one.

    200 equally spaced thresholds from the lowest score on; the overlap is that of regions with predictions dilated by
    5 x 5 pixels, the false positive rate that of predictions as they are. Points at a rate below 0.3 are integrated,
    without the area left of the first, and divided by the largest rate among them instead of 0.3.

    Parameters
    ----------
    masks : sequence of ndarray of shape (H, W), bool, or None
    maps : sequence of ndarray of shape (H, W)

    Raises
    ------
    InvalidTargetError
        No defective or no normal pixel, or no two false positive rates below 0.3.
    """
    low, high = min(float(one.min()) for one in maps), max(float(one.max()) for one in maps)
    if not np.isfinite([low, high]).all() or low == high:
        raise InvalidTargetError("the dilated PRO needs finite anomaly maps that are not all equal")
    thresholds = np.arange(low, high, (high - low) / _N_THRESHOLDS)
    overlaps, normal = [], []
    for mask, scores in zip(masks, maps, strict=True):
        mask = np.zeros(scores.shape, bool) if mask is None else np.asarray(mask, bool)
        normal.append(scores[~mask])
        if not mask.any():
            continue
        # a pixel is in the dilated prediction where the largest score around it is above the threshold
        around = ndimage.maximum_filter(scores, size=_SIDE, mode="constant", cval=-np.inf)
        regions, n = ndimage.label(mask, np.ones((3, 3)))
        overlaps += [_above(around[regions == region], thresholds) for region in range(1, n + 1)]
    if not overlaps or not sum(map(len, normal)):
        raise InvalidTargetError("the dilated PRO needs defective and normal pixels")
    fpr = _above(np.concatenate(normal), thresholds)
    kept = fpr < _MAX_FPR
    if not fpr[kept].any():
        raise InvalidTargetError("the dilated PRO needs a threshold with a false positive rate between 0 and 0.3")
    share = fpr[kept] / fpr[kept].max()
    return float(np.trapezoid(np.mean(overlaps, axis=0)[kept][::-1], share[::-1]))


def _above(values: NDArray[np.float32], thresholds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of values above each threshold."""
    ordered = np.sort(values.astype(np.float64))
    return 1 - np.searchsorted(ordered, thresholds, side="right") / len(ordered)
