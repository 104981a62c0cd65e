"""Exact ranking of pixels by their scores, from which all pixel metrics follow.

Every distinct score is a threshold, and tied scores form one step. The curves rise only at the scores of defective
pixels, which are few. So the normal pixels are only sorted and counted: how many are above, and how many at or above,
each score of a defective pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from skpbas.errors import InvalidTargetError

Array: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float64]
Masks: TypeAlias = npt.ArrayLike | Sequence[npt.ArrayLike | None]
Maps: TypeAlias = npt.ArrayLike | Sequence[npt.ArrayLike]
_Counts: TypeAlias = npt.NDArray[np.int64]

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Ranking:
    """Counts at each distinct score of the defective pixels as a threshold, highest score first."""

    scores: Array  # (n_scores,) distinct scores of defective pixels
    hits: _Counts  # (n_scores,) defective pixels at or above the score
    overlap: Floats  # (n_scores,) mean over regions of the fraction at or above the score
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

    def _area(self, heights: _Counts | Floats, max_fpr: float) -> float:
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


def _rises(heights: Array) -> Array:
    rises = heights.copy()
    rises[1:] -= heights[:-1]
    return rises


def rank(masks: Masks, maps: Maps, max_fpr: float = 1.0) -> tuple[Ranking, Array]:
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
    return Ranking(scores, hits, overlap, above, alarms, normal.size), top


def _sorted_top(scores: Array, fraction: float) -> Array:
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


def _pooled_scores(masks: list[Array | None], maps: list[Array]) -> tuple[Array, Array, Array]:
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


def _checked_masks_and_maps(masks: Masks, maps: Maps) -> tuple[list[Array | None], list[Array]]:
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


def _listed(name: str, images: Any) -> list[Array | None]:
    try:
        return [None if image is None else np.asarray(image) for image in images]
    except (TypeError, ValueError) as error:
        raise InvalidTargetError(
            f"{name} ({type(images).__name__}) cannot be read: {error}; expected an array of shape "
            "(n_images, height, width) or a sequence of 2-D arrays"
        ) from error


def _described(array: Array | None) -> str:
    return "None" if array is None else f"an array of shape {array.shape} and dtype {array.dtype}"
