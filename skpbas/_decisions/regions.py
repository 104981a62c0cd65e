"""Regions of anomaly maps: where the defects are, how large, and how anomalous; needs numpy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Region"]


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
    regions = []
    for rows, columns in connected(anomaly_map > threshold):
        top, left = int(rows.min()), int(columns.min())
        mask = np.zeros((int(rows.max()) - top + 1, int(columns.max()) - left + 1), dtype=bool)
        mask[rows - top, columns - left] = True
        regions.append(
            Region(
                bbox=(top, left, *mask.shape),
                area=len(rows),
                centroid=(float(rows.mean()), float(columns.mean())),
                score=float(anomaly_map[rows, columns].max()),
                mask=mask,
            )
        )
    return sorted(regions, key=lambda region: region.score, reverse=True)


def connected(mask: NDArray[np.bool_]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Return the rows and columns of each set of connected pixels, in the order of their first pixels.

    Pixels that touch at a corner belong together. A run of pixels in a row takes the smallest label of the runs that it
    touches, and then the label of that label, until nothing changes.

    Parameters
    ----------
    mask : ndarray of shape (H, W)
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return []
    width = mask.shape[1] + 2  # so that the runs of two rows never touch at the image's edges
    places = rows * width + columns
    starts = np.concatenate([[True], np.diff(places) > 1])
    of_pixel = np.cumsum(starts) - 1
    first = places[starts]
    last = places[np.concatenate([starts[1:], [True]])]
    # the runs of the row above that end at or behind the left neighbor, up to those that start before the right one
    lowest = np.searchsorted(last, first - width - 1)
    counts = np.maximum(np.searchsorted(first, last - width + 1, side="right") - lowest, 0)
    below = np.repeat(np.arange(len(first)), counts)
    above = np.repeat(lowest, counts) + np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    label = np.arange(len(first))
    while not (label[below] == label[above]).all():
        smaller = np.minimum(label[below], label[above])
        larger = np.maximum(label[below], label[above])
        np.minimum.at(label, larger, smaller)
        while (label[label] != label).any():
            label = label[label]
    labels = label[of_pixel]
    order = np.argsort(labels, kind="stable")
    ends = np.flatnonzero(np.diff(labels[order])) + 1
    return list(zip(np.split(rows[order], ends), np.split(columns[order], ends), strict=True))
