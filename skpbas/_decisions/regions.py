"""Regions of anomaly maps: where the defects are, how large, and how anomalous."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["Region"]

_NEIGHBORS = np.ones((3, 3), dtype=bool)  # pixels that touch at a corner belong together


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """Connected pixels of an anomaly map that are anomalous.

    Attributes
    ----------
    bbox : (int, int, int, int)
        Top, left, height and width of the smallest box around it, in pixels of the map.
    area : int
        Number of pixels.
    centroid : (float, float)
        Row and column of its center of mass.
    score : float
        Largest value of the anomaly map in it, in [0, 1].
    mask : ndarray of shape (height, width), bool
        Its pixels within the box.
    """

    bbox: tuple[int, int, int, int]
    area: int
    centroid: tuple[float, float]
    score: float
    mask: NDArray[np.bool_]


def regions_of(
    anomaly_map: NDArray[np.float32], threshold: float, *, min_area: int = 1, at_least_one: bool = False
) -> list[Region]:
    """Return the regions above a threshold, most anomalous first.

    Parameters
    ----------
    anomaly_map : ndarray of shape (H, W)
        NaN is below every threshold.
    threshold : float
    min_area : int, default=1
        Smallest area of a region, in pixels.
    at_least_one : bool, default=False
        Return the most anomalous region if none is large enough; if no pixel is above the threshold, the surroundings
        of the largest value, down to halfway to the map's median.
    """
    regions = _above(anomaly_map, threshold)
    large = [region for region in regions if region.area >= min_area]
    if large or not at_least_one or not np.isfinite(anomaly_map).any():
        return large
    if not regions:
        peak, middle = np.nanmax(anomaly_map), np.nanmedian(anomaly_map)
        regions = _above(anomaly_map, np.nextafter(min((peak + middle) / 2, peak), -np.inf, dtype=np.float32))
    return regions[:1]


def _above(anomaly_map: NDArray[np.float32], threshold: float) -> list[Region]:
    labels, n_regions = ndimage.label(anomaly_map > threshold, structure=_NEIGHBORS)
    regions = []
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels, n_regions), 1):
        mask = labels[rows, columns] == label
        of_rows, of_columns = np.nonzero(mask)
        regions.append(
            Region(
                bbox=(rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start),
                area=len(of_rows),
                centroid=(float(rows.start + of_rows.mean()), float(columns.start + of_columns.mean())),
                score=float(anomaly_map[rows, columns][mask].max()),
                mask=mask,
            )
        )
    return sorted(regions, key=lambda region: region.score, reverse=True)
