"""Metrics of anomaly maps: masks and maps in, floats out. All are exact: every distinct score is a threshold."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from skpbas.metrics._image_metrics import checked_max_fpr
from skpbas.metrics._ranking import Floats, Maps, Masks, rank


def pixel_auroc(masks: Masks, maps: Maps) -> float:
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


def pixel_ap(masks: Masks, maps: Maps) -> float:
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


def pixel_pro(masks: Masks, maps: Maps, *, max_fpr: float = 0.3) -> float:
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


def pro_curve(masks: Masks, maps: Maps) -> tuple[Floats, Floats, Floats]:
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
    ranking, normal = rank(masks, maps)
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
    masks: Masks,
    maps: Maps,
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
    max_fpr = checked_max_fpr(max_fpr)
    # PRO alone does not need the normal pixels beyond its limit sorted.
    ranking = rank(masks, maps, max_fpr if set(names) == {"pixel_pro"} else 1.0)[0]
    compute: dict[str, Callable[[], float]] = {
        "pixel_auroc": ranking.auroc,
        "pixel_ap": ranking.ap,
        "pixel_pro": lambda: ranking.pro(max_fpr),
    }
    return {name: compute[name]() for name in names}
