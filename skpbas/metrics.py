"""Metrics of detection and localization: arrays in, floats out; higher scores mean more anomalous.

The pixel metrics are exact: every distinct score is a threshold, and tied scores form one step. The curves rise only at
the scores of defective pixels, which are few. So the normal pixels are only sorted and counted: how many are above, and
how many at or above, each score of a defective pixel. All metrics follow from these counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from .errors import InvalidTargetError

__all__ = ["image_ap", "image_auroc", "pixel_ap", "pixel_auroc", "pixel_metrics", "pixel_pro", "pro_curve"]

_Array: TypeAlias = npt.NDArray[Any]
_Floats: TypeAlias = npt.NDArray[np.float64]
_Counts: TypeAlias = npt.NDArray[np.int64]
_Masks: TypeAlias = npt.ArrayLike | Sequence[npt.ArrayLike | None]
_Maps: TypeAlias = npt.ArrayLike | Sequence[npt.ArrayLike]

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


# Images ---------------------------------------------------------------------------------------------------


def image_auroc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Area under the ROC curve of image scores.

    Parameters
    ----------
    labels : array-like of shape (n_images,)
        +1 for a normal and -1 for an anomalous image, as in scikit-learn's outlier detection, or booleans or
        {0, 1} with 1 for an anomalous image. Both classes must occur.
    scores : array-like of shape (n_images,)
        Finite scores, higher for more anomalous images.

    Returns
    -------
    float
        The area, in [0, 1]; 0.5 for uninformative scores.

    Raises
    ------
    InvalidTargetError
        If labels have other values or only one class, or if scores do not match them.

    Examples
    --------
    >>> image_auroc([1, 1, -1, -1], [0.1, 0.6, 0.4, 0.9])
    0.75
    """
    return float(roc_auc_score(*_checked_labels_and_scores(labels, scores)))


def image_ap(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float:
    """Average precision of image scores.

    Parameters
    ----------
    labels : array-like of shape (n_images,)
        As for :func:`image_auroc`.
    scores : array-like of shape (n_images,)
        Finite scores, higher for more anomalous images.

    Returns
    -------
    float
        The average precision, in (0, 1].

    Raises
    ------
    InvalidTargetError
        If labels have other values or only one class, or if scores do not match them.

    Examples
    --------
    >>> round(image_ap([1, 1, -1, -1], [0.1, 0.6, 0.4, 0.9]), 4)
    0.8333
    """
    return float(average_precision_score(*_checked_labels_and_scores(labels, scores)))


# Pixels ---------------------------------------------------------------------------------------------------


def pixel_auroc(masks: _Masks, maps: _Maps) -> float:
    """Area under the ROC curve over the pixels of all images.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width), or sequence of 2-D masks or None
        Booleans or integers, non-zero where defective. In a sequence, None stands for a normal image.
    maps : array-like of shape (n_images, height, width), or sequence of 2-D anomaly maps
        Finite scores, higher for more anomalous pixels. Sizes may differ between the images of a sequence.

    Returns
    -------
    float
        The area, in [0, 1]; 0.5 for uninformative scores.

    Raises
    ------
    InvalidTargetError
        If masks and maps do not match, have invalid values, or contain only one class of pixels.

    Examples
    --------
    >>> pixel_auroc([[[0, 0], [1, 1]]], [[[0.1, 0.6], [0.4, 0.9]]])
    0.75
    """
    return pixel_metrics(masks, maps, metrics=("pixel_auroc",))["pixel_auroc"]


def pixel_ap(masks: _Masks, maps: _Maps) -> float:
    """Average precision over the pixels of all images.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width), or sequence of 2-D masks or None
        As for :func:`pixel_auroc`.
    maps : array-like of shape (n_images, height, width), or sequence of 2-D anomaly maps
        As for :func:`pixel_auroc`.

    Returns
    -------
    float
        The average precision, in (0, 1].

    Raises
    ------
    InvalidTargetError
        If masks and maps do not match, have invalid values, or contain only one class of pixels.

    Examples
    --------
    >>> round(pixel_ap([[[0, 0], [1, 1]]], [[[0.1, 0.6], [0.4, 0.9]]]), 4)
    0.8333
    """
    return pixel_metrics(masks, maps, metrics=("pixel_ap",))["pixel_ap"]


def pixel_pro(masks: _Masks, maps: _Maps, *, max_fpr: float = 0.3) -> float:
    """Area under the per-region overlap (PRO) curve up to a false positive rate, normalized to [0, 1].

    Each 8-connected region of a mask has the same weight, regardless of its size. The curve is the exact one of
    :func:`pro_curve`, linearly interpolated at `max_fpr`.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width), or sequence of 2-D masks or None
        As for :func:`pixel_auroc`.
    maps : array-like of shape (n_images, height, width), or sequence of 2-D anomaly maps
        As for :func:`pixel_auroc`.
    max_fpr : float, default=0.3
        Upper limit of the integration, in (0, 1].

    Returns
    -------
    float
        The area divided by `max_fpr`, in [0, 1].

    Raises
    ------
    InvalidTargetError
        If masks and maps do not match, have invalid values, or contain only one class of pixels.
    ValueError
        If `max_fpr` is outside (0, 1].

    References
    ----------
    .. [1] P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. "MVTec AD: A Comprehensive Real-World Dataset for
       Unsupervised Anomaly Detection". CVPR 2019.
    .. [2] P. Bergmann, K. Batzner, M. Fauser, D. Sattlegger, C. Steger. "The MVTec Anomaly Detection Dataset:
       A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection". IJCV 129, 2021.

    Examples
    --------
    >>> masks = [[[1, 0, 1, 1]]]
    >>> maps = [[[0.9, 0.5, 0.7, 0.1]]]
    >>> pixel_pro(masks, maps, max_fpr=1.0)
    0.75
    """
    return pixel_metrics(masks, maps, metrics=("pixel_pro",), max_fpr=max_fpr)["pixel_pro"]


def pro_curve(masks: _Masks, maps: _Maps) -> tuple[_Floats, _Floats, _Floats]:
    """Per-region overlap against the false positive rate: the vertices of the exact curve.

    At a threshold, the overlap is the mean over all 8-connected regions of the fraction of the region at or above it;
    the false positive rate is the fraction of all normal pixels at or above it. Vertices inside a horizontal segment,
    where only normal pixels are added, are omitted.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width), or sequence of 2-D masks or None
        As for :func:`pixel_auroc`.
    maps : array-like of shape (n_images, height, width), or sequence of 2-D anomaly maps
        As for :func:`pixel_auroc`.

    Returns
    -------
    fpr : ndarray of shape (n_vertices,)
        False positive rates, ascending from 0 to 1.
    pro : ndarray of shape (n_vertices,)
        Overlaps, ascending from 0 to 1.
    thresholds : ndarray of shape (n_vertices,)
        Thresholds, descending from infinity; a pixel is flagged if its score is at or above it.

    Raises
    ------
    InvalidTargetError
        If masks and maps do not match, have invalid values, or contain only one class of pixels.

    References
    ----------
    .. [1] P. Bergmann, M. Fauser, D. Sattlegger, C. Steger. "MVTec AD: A Comprehensive Real-World Dataset for
       Unsupervised Anomaly Detection". CVPR 2019.

    Examples
    --------
    >>> fpr, pro, thresholds = pro_curve([[[1, 0, 1, 1]]], [[[0.9, 0.5, 0.7, 0.1]]])
    >>> fpr
    array([0., 0., 0., 1., 1.])
    >>> pro
    array([0.  , 0.5 , 0.75, 0.75, 1.  ])
    >>> thresholds
    array([inf, 0.9, 0.7, 0.5, 0.1])
    """
    ranking, normal = _rank(masks, maps)
    n_normal = ranking.n_normal
    # Each score has two vertices, before and after its pixels are added; the last vertex includes every pixel.
    reached = np.append(np.column_stack([ranking.above, ranking.alarms]).ravel(), n_normal)
    before = np.append(0.0, ranking.overlap[:-1])
    overlap = np.append(np.column_stack([before, ranking.overlap]).ravel(), 1.0)
    thresholds = np.empty(overlap.size)
    thresholds[1::2] = ranking.scores
    # The threshold of the vertex before is the lowest normal score above; without one, the vertex is not new.
    thresholds[::2] = normal[np.minimum(n_normal - reached[::2], n_normal - 1)]
    new = (np.diff(reached, prepend=0) > 0) | (np.diff(overlap, prepend=0.0) > 0)
    return (
        np.append(0.0, reached[new] / n_normal),
        np.append(0.0, overlap[new]),
        np.append(np.inf, thresholds[new]),
    )


def pixel_metrics(
    masks: _Masks,
    maps: _Maps,
    *,
    metrics: Sequence[str] = ("pixel_auroc", "pixel_ap", "pixel_pro"),
    max_fpr: float = 0.3,
) -> dict[str, float]:
    """Several pixel metrics from one sort of the scores.

    Parameters
    ----------
    masks : array-like of shape (n_images, height, width), or sequence of 2-D masks or None
        As for :func:`pixel_auroc`.
    maps : array-like of shape (n_images, height, width), or sequence of 2-D anomaly maps
        As for :func:`pixel_auroc`.
    metrics : sequence of {"pixel_auroc", "pixel_ap", "pixel_pro"}, default=all three
        Metrics to compute.
    max_fpr : float, default=0.3
        Upper limit of the integration of "pixel_pro", in (0, 1].

    Returns
    -------
    dict of str to float
        The metrics, in the given order.

    Raises
    ------
    InvalidTargetError
        If masks and maps do not match, have invalid values, or contain only one class of pixels.
    ValueError
        If `metrics` contains an unknown name, or `max_fpr` is outside (0, 1].

    Examples
    --------
    >>> pixel_metrics([[[0, 0], [1, 1]]], [[[0.1, 0.2], [0.8, 0.9]]])
    {'pixel_auroc': 1.0, 'pixel_ap': 1.0, 'pixel_pro': 1.0}
    """
    known = ("pixel_auroc", "pixel_ap", "pixel_pro")
    names = (metrics,) if isinstance(metrics, str) else tuple(metrics)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"metrics contains {unknown}; expected names from {list(known)}")
    max_fpr = _checked_max_fpr(max_fpr)
    # PRO alone does not need the normal pixels beyond its limit sorted.
    ranking = _rank(masks, maps, max_fpr if set(names) == {"pixel_pro"} else 1.0)[0]
    compute: dict[str, Callable[[], float]] = {
        "pixel_auroc": ranking.auroc,
        "pixel_ap": ranking.ap,
        "pixel_pro": lambda: ranking.pro(max_fpr),
    }
    return {name: compute[name]() for name in names}


# Ranking of the pixels ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranking:
    """Counts at each distinct score of the defective pixels as a threshold, highest score first."""

    scores: _Array  # (n_scores,) distinct scores of defective pixels
    hits: _Counts  # (n_scores,) defective pixels at or above the score
    overlap: _Floats  # (n_scores,) mean over regions of the fraction at or above the score
    above: _Counts  # (n_scores,) normal pixels above the score
    alarms: _Counts  # (n_scores,) normal pixels at or above the score
    n_normal: int  # all normal pixels

    def auroc(self) -> float:
        return self._area(self.hits, max_fpr=1.0)

    def ap(self) -> float:
        precision = self.hits / (self.hits + self.alarms)
        return min(1.0, float(_rises(self.hits) @ precision) / int(self.hits[-1]))

    def pro(self, max_fpr: float) -> float:
        return self._area(self.overlap, max_fpr)

    def _area(self, heights: _Counts | _Floats, max_fpr: float) -> float:
        """Return the normalized area under a curve that rises to these heights at the scores."""
        rises = _rises(heights)
        limit = max_fpr * self.n_normal
        # A rise counts from its midpoint to the limit: it is a ramp if normal pixels tie with the score.
        cut = int(np.searchsorted(self.alarms, limit, side="right"))
        area = float(rises[:cut] @ (limit - (self.above[:cut] + self.alarms[:cut]) / 2))
        # At most one ramp crosses the limit.
        if cut < rises.size and (run := limit - self.above[cut]) > 0:
            area += float(rises[cut] * run**2 / (2 * (self.alarms[cut] - self.above[cut])))
        return min(1.0, area / limit / float(heights[-1]))


def _rises(heights: _Array) -> _Array:
    rises = heights.copy()
    rises[1:] -= heights[:-1]
    return rises


def _rank(masks: _Masks, maps: _Maps, max_fpr: float = 1.0) -> tuple[_Ranking, _Array]:
    """Rank the scores of the defective pixels, and sort those of the normal pixels up to max_fpr."""
    normal, defective, region_sizes = _pooled_scores(*_checked_masks_and_maps(masks, maps))
    order = np.argsort(defective)[::-1]
    defective = defective[order]
    overlap = np.cumsum(1.0 / region_sizes[order])
    del order, region_sizes
    hits = np.append(np.flatnonzero(defective[1:] != defective[:-1]) + 1, defective.size)
    scores = defective[hits - 1]
    overlap = overlap[hits - 1] / overlap[-1]  # the full sum is the number of regions
    del defective
    top = _sorted_top(normal, max_fpr)
    above = top.size - np.searchsorted(top, scores, side="right")
    alarms = top.size - np.searchsorted(top, scores, side="left")
    return _Ranking(scores, hits, overlap, above, alarms, normal.size), top


def _sorted_top(scores: _Array, fraction: float) -> _Array:
    """Sort the highest scores in place: slightly more than the fraction, and all ties with the last one."""
    first = max(scores.size - int(fraction * scores.size) - 1, 0)
    if first > 0:
        scores.partition(first)
        n_tied = int(np.count_nonzero(scores[:first] == scores[first]))
        scores[first - n_tied : first] = scores[first]  # the overwritten values are not needed
        first -= n_tied
    top = scores[first:]
    top.sort()
    return top


def _pooled_scores(masks: list[_Array | None], maps: list[_Array]) -> tuple[_Array, _Array, _Array]:
    """Return the scores of all normal pixels, those of all defective pixels, and the region size of the latter."""
    n_pixels = sum(scores.size for scores in maps)
    n_defective = sum(int(np.count_nonzero(mask)) for mask in masks if mask is not None)
    if n_defective == 0 or n_defective == n_pixels:
        only = "normal" if n_defective == 0 else "defective"
        raise InvalidTargetError(
            f"masks mark {n_defective} of {n_pixels} pixels as defective: all are {only}; "
            "expected at least one normal and one defective pixel"
        )
    dtype = np.result_type(*{scores.dtype for scores in maps})
    normal = np.empty(n_pixels - n_defective, dtype)
    defective = np.empty(n_defective, dtype)
    region_sizes = np.empty(n_defective, np.int32)
    i = j = 0
    for index, (mask, scores) in enumerate(zip(masks, maps, strict=True)):
        if n_bad := scores.size - np.count_nonzero(np.isfinite(scores)):
            raise InvalidTargetError(f"maps[{index}] contains {n_bad} NaN or infinite values; expected finite scores")
        inside = np.zeros(scores.shape, dtype=bool) if mask is None else mask != 0
        sizes = _sizes_of_regions(inside)
        end_i, end_j = i + scores.size - sizes.size, j + sizes.size
        normal[i:end_i] = scores[~inside]
        defective[j:end_j] = scores[inside]
        region_sizes[j:end_j] = sizes
        i, j = end_i, end_j
    return normal, defective, region_sizes


def _sizes_of_regions(inside: npt.NDArray[np.bool_]) -> _Counts:
    """Return the region size of each defective pixel of a mask, in row-major order."""
    rows = np.flatnonzero(inside.any(axis=1))
    if rows.size == 0:
        return np.empty(0, np.int64)
    band = inside[rows[0] : rows[-1] + 1]  # labeling time grows with the area
    regions = ndimage.label(band, _EIGHT_CONNECTED)[0][band]
    sizes: _Counts = np.bincount(regions)[regions]
    return sizes


# Checks ---------------------------------------------------------------------------------------------------


def _checked_masks_and_maps(masks: _Masks, maps: _Maps) -> tuple[list[_Array | None], list[_Array]]:
    mask_list, map_list = _listed("masks", masks), _listed("maps", maps)
    if len(mask_list) != len(map_list):
        raise InvalidTargetError(
            f"masks has {len(mask_list)} entries and maps has {len(map_list)}; expected one mask "
            "(or None for a normal image) for each map"
        )
    if not map_list:
        raise InvalidTargetError("masks and maps are empty; expected at least one image")
    for index, scores in enumerate(map_list):
        if scores is None or scores.ndim != 2 or scores.dtype.kind not in "fiub":
            raise InvalidTargetError(f"maps[{index}] is {_described(scores)}; expected a 2-D array of scores")
        mask = mask_list[index]
        if mask is None:
            continue
        if mask.dtype.kind not in "iub":
            raise InvalidTargetError(
                f"masks[{index}] is {_described(mask)}; expected booleans or integers, non-zero where "
                "defective (for example mask > 0.5)"
            )
        if mask.shape != scores.shape:
            raise InvalidTargetError(
                f"masks[{index}] has shape {mask.shape}; expected {scores.shape}, the shape of maps[{index}]"
            )
    return mask_list, [scores for scores in map_list if scores is not None]


def _listed(name: str, images: Any) -> list[_Array | None]:
    try:
        return [None if image is None else np.asarray(image) for image in images]
    except (TypeError, ValueError) as error:
        raise InvalidTargetError(
            f"{name} ({type(images).__name__}) cannot be read: {error}; expected an array of shape "
            "(n_images, height, width) or a sequence of 2-D arrays"
        ) from error


def _described(array: _Array | None) -> str:
    return "None" if array is None else f"an array of shape {array.shape} and dtype {array.dtype}"


def _checked_max_fpr(max_fpr: Any) -> float:
    if not (isinstance(max_fpr, Real) and 0 < float(max_fpr) <= 1):
        raise ValueError(f"max_fpr is {max_fpr!r}; expected a number in (0, 1]")
    return float(max_fpr)


def _checked_labels_and_scores(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[_Array, _Array]:
    """Return whether each image is anomalous, and the scores."""
    labels, scores = np.asarray(labels), np.asarray(scores)
    if labels.ndim != 1 or scores.shape != labels.shape:
        raise InvalidTargetError(
            f"labels has shape {labels.shape} and scores has shape {scores.shape}; expected (n_images,) for both"
        )
    if scores.dtype.kind not in "fiub":
        raise InvalidTargetError(f"scores has dtype {scores.dtype}; expected numbers")
    if (bad := np.flatnonzero(~np.isfinite(scores))).size:
        raise InvalidTargetError(f"scores[{bad[0]}] is {scores[bad[0]]}; expected finite scores")
    values = set(labels.tolist())
    if values not in ({-1, 1}, {0, 1}):
        some = ", ".join(map(repr, sorted(values, key=repr)[:5])) + (", ..." if len(values) > 5 else "")
        raise InvalidTargetError(
            f"labels contains {some or 'nothing'}; expected both classes, as +1 (normal) and -1 (anomalous), "
            "or as 0 or False (normal) and 1 or True (anomalous)"
        )
    return labels == (-1 if -1 in values else 1), scores
