"""Metrics of image scores: labels and scores in, floats out."""

from __future__ import annotations

from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from skpbas.errors import InvalidTargetError

_Array: TypeAlias = npt.NDArray[Any]


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
    return float(roc_auc_score(*checked_labels_and_scores(labels, scores)))


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
    return float(average_precision_score(*checked_labels_and_scores(labels, scores)))


def image_partial_auroc(labels: npt.ArrayLike, scores: npt.ArrayLike, max_fpr: float = 0.05) -> float:
    """Area under the ROC curve of image scores at low false alarm rates.

    The area up to ``max_fpr``, standardized as by McClish [1]_: 0.5 for uninformative scores, 1 for perfect ones.

    Parameters
    ----------
    labels : array-like of shape (n_images,)
        As for :func:`image_auroc`.
    scores : array-like of shape (n_images,)
        Finite scores, higher for more anomalous images.
    max_fpr : float, default=0.05
        Upper limit of the false alarm rate, in (0, 1].

    Returns
    -------
    float
        The standardized area, at most 1; below 0.5 for scores that are worse than uninformative ones.

    Raises
    ------
    InvalidTargetError
        If labels have other values or only one class, or if scores do not match them.
    ValueError
        If `max_fpr` is outside (0, 1].

    References
    ----------
    .. [1] D. K. McClish. "Analyzing a Portion of the ROC Curve". Medical Decision Making 9(3), 1989.

    Examples
    --------
    >>> round(image_partial_auroc([1, 1, -1, -1], [0.1, 0.6, 0.4, 0.9], max_fpr=0.5), 4)
    0.6667
    """
    max_fpr = checked_max_fpr(max_fpr)
    return float(roc_auc_score(*checked_labels_and_scores(labels, scores), max_fpr=max_fpr))


def miss_rate(labels: npt.ArrayLike, scores: npt.ArrayLike, max_fpr: float = 0.05) -> float:
    """Share of the anomalous images that are missed where few normal images are flagged.

    The smallest miss rate over all thresholds at which at most ``max_fpr`` of the normal images are flagged. Equal
    scores are flagged together; nothing is interpolated.

    Parameters
    ----------
    labels : array-like of shape (n_images,)
        As for :func:`image_auroc`.
    scores : array-like of shape (n_images,)
        Finite scores, higher for more anomalous images.
    max_fpr : float, default=0.05
        Largest false alarm rate, in (0, 1]. With n normal images, it has an effect in steps of 1 / n.

    Returns
    -------
    float
        The miss rate, in [0, 1]; lower is better.

    Raises
    ------
    InvalidTargetError
        If labels have other values or only one class, or if scores do not match them.
    ValueError
        If `max_fpr` is outside (0, 1].

    Examples
    --------
    >>> miss_rate([1, 1, 1, 1, -1, -1], [0.1, 0.2, 0.3, 0.6, 0.4, 0.9])
    0.5
    >>> miss_rate([1, 1, 1, 1, -1, -1], [0.1, 0.2, 0.3, 0.6, 0.4, 0.9], max_fpr=0.25)
    0.0
    """
    max_fpr = checked_max_fpr(max_fpr)
    fpr, tpr, _ = roc_curve(*checked_labels_and_scores(labels, scores), drop_intermediate=False)
    return float(1 - tpr[fpr <= max_fpr].max())


def checked_max_fpr(max_fpr: Any, name: str = "max_fpr") -> float:
    """Return a limit of the false positive rate, checked to be in (0, 1]."""
    if isinstance(max_fpr, (bool, np.bool_)) or not (isinstance(max_fpr, Real) and 0 < float(max_fpr) <= 1):
        raise ValueError(f"{name} is {max_fpr!r}; expected a number in (0, 1]")
    return float(max_fpr)


def checked_labels_and_scores(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[_Array, _Array]:
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
