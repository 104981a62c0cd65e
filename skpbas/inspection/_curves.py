"""Trade-offs between false alarms and what is found: ROC curves of images, PRO curves of pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import auc, roc_curve

from skpbas._inputs.targets import anomalous_rows
from skpbas.inspection._plotting import (
    EDGE,
    as_percent,
    axes_or_new,
    check_choice,
    legend_above,
    percent,
    pyplot,
    set_rate_scale,
)
from skpbas.masks import to_map_size
from skpbas.metrics import pro_curve
from skpbas.metrics._image_metrics import checked_labels_and_scores, checked_max_fpr
from skpbas.scorers import detector_and_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_SCALES = ("linear", "symlog")
_FINEST_PIXELS = 1e-4  # false-alarm rate of pixels down to which an axis is logarithmic


class RocCurveDisplay:
    """ROC curve of images for outlier detectors: how many defects are found at which false-alarm rate.

    scikit-learn's display of that name takes classifiers only. The curve is exact: its steps are the false-alarm rates
    that thresholds can reach, and nothing is interpolated. Create it with :meth:`from_estimator` or
    :meth:`from_predictions`.

    Parameters
    ----------
    fpr, tpr : ndarray of shape (k,)
        False-alarm rates, ascending, and detection rates.
    roc_auc : float or None, default=None
    n_good : int or None, default=None
        Number of good images: no smaller rate than 1 / n_good can be measured.
    operating_point : (float, float) or None, default=None
        False-alarm rate and detection rate at the detector's own threshold.
    name : str or None, default=None

    Attributes
    ----------
    line_ : Line2D
    figure_ : Figure
    ax_ : Axes

    Examples
    --------
    >>> from skpbas.inspection import RocCurveDisplay
    >>> display = RocCurveDisplay.from_predictions([-0.1, -0.6, -0.4, -0.9], [1, 1, -1, -1], offset=-0.5)
    >>> display.roc_auc
    0.75
    >>> display.operating_point
    (0.5, 0.5)
    """

    line_: Line2D
    figure_: Figure
    ax_: Axes

    def __init__(
        self,
        fpr: NDArray[np.float64],
        tpr: NDArray[np.float64],
        *,
        roc_auc: float | None = None,
        n_good: int | None = None,
        operating_point: tuple[float, float] | None = None,
        name: str | None = None,
    ) -> None:
        self.fpr, self.tpr, self.roc_auc, self.n_good = fpr, tpr, roc_auc, n_good
        self.operating_point, self.name = operating_point, name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any,
        *,
        name: str | None = None,
        fpr_scale: str = "symlog",
        max_fpr: float = 1.0,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Score images by ``decision_function``, and draw the curve.

        Parameters
        ----------
        estimator : fitted outlier detector
            Any with ``decision_function``, below 0 for anomalous images; also a pipeline or a search.
        X : array or sequence of images
        y : labels or masks
            +1 normal, -1 anomalous; {0, 1} or booleans with 1 for anomalous images; or masks.
        name : str, default=None
            In the legend; None: the class of the estimator.
        fpr_scale : {"symlog", "linear"}, default="symlog"
        max_fpr : float, default=1.0
        ax : Axes, default=None
        **kwargs
            As for :meth:`plot`.

        Returns
        -------
        RocCurveDisplay

        Raises
        ------
        InvalidTargetError
            y does not match X, or has only one class.
        """
        pyplot(cls.__name__)
        margins = estimator.decision_function(X)
        name = type(estimator).__name__ if name is None else name
        options = {"fpr_scale": fpr_scale, "max_fpr": max_fpr, "ax": ax, **kwargs}
        return cls.from_predictions(margins, y, offset=0.0, name=name, **options)

    @classmethod
    def from_predictions(
        cls,
        scores: ArrayLike,
        y: Any,
        *,
        offset: float | None = None,
        name: str | None = None,
        fpr_scale: str = "symlog",
        max_fpr: float = 1.0,
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of scores.

        Parameters
        ----------
        scores : array-like of shape (n,)
            ``score_samples``: higher is more normal, as for :class:`ScoreDistributionDisplay`, and finite. The
            functions of :mod:`skpbas.metrics` take the opposite, ``-scores``.
        y : labels or masks
            As for :meth:`from_estimator`.
        offset : float, default=None
            The threshold: images with lower scores are anomalous. The operating point that is marked.
        name : str, default=None
        fpr_scale : {"symlog", "linear"}, default="symlog"
        max_fpr : float, default=1.0
        ax : Axes, default=None
        **kwargs
            As for :meth:`plot`.

        Returns
        -------
        RocCurveDisplay

        Raises
        ------
        InvalidTargetError
            Labels of only one class, or that do not match the scores; scores that are not finite.
        """
        pyplot(cls.__name__)
        anomalous = anomalous_rows(y, len(np.atleast_1d(scores)), zero_one=True)
        anomalous, scores = checked_labels_and_scores(np.where(anomalous, -1, 1), scores)
        fpr, tpr, _ = roc_curve(anomalous, -scores.astype(float), drop_intermediate=False)
        point = None
        if offset is not None:
            flagged = scores < offset
            point = float(flagged[~anomalous].mean()), float(flagged[anomalous].mean())
        n_good = int((~anomalous).sum())
        display = cls(fpr, tpr, roc_auc=float(auc(fpr, tpr)), n_good=n_good, operating_point=point, name=name)
        return display.plot(fpr_scale=fpr_scale, max_fpr=max_fpr, ax=ax, **kwargs)

    def plot(
        self, *, name: str | None = None, fpr_scale: str = "symlog", max_fpr: float = 1.0, ax: Any = None, **kwargs: Any
    ) -> Self:
        """Draw.

        Parameters
        ----------
        name : str, default=None
            In the legend; None: the name of the display.
        fpr_scale : {"symlog", "linear"}, default="symlog"
            Axis of the false-alarm rate. "symlog": logarithmic down to one good image, with 0 at its left end, so that
            low rates are readable.
        max_fpr : float, default=1.0
            Right end of that axis, in (0, 1].
        ax : Axes, default=None
            None: a new figure. Several curves may share one.
        **kwargs
            Passed to matplotlib's ``plot``.

        Returns
        -------
        RocCurveDisplay
            The display itself.
        """
        check_choice(fpr_scale, "fpr_scale", _SCALES)
        max_fpr = checked_max_fpr(max_fpr)
        self.ax_ = ax = axes_or_new(ax, type(self).__name__)
        self.figure_ = ax.figure
        name = self.name if name is None else name
        label = ", ".join([*filter(None, [name]), *([] if self.roc_auc is None else [f"AUROC {self.roc_auc:.3f}"])])
        options = {"label": label or None, "drawstyle": "steps-post", "linewidth": 2, "clip_on": True, **kwargs}
        (self.line_,) = ax.plot(self.fpr, self.tpr, **options)
        if self.operating_point is not None:
            fpr, tpr = self.operating_point
            text = f"threshold: {percent(tpr)} found, {percent(fpr)} false alarms"
            ax.plot(fpr, tpr, "o", color=self.line_.get_color(), markersize=8, clip_on=False, label=text, zorder=3)
        set_rate_scale(ax, fpr_scale, 1 / self.n_good if self.n_good else 1e-3, max_fpr)
        ax.set(xlabel="false alarms (share of good images)", ylabel="defective images found")
        ax.set_ylim(-5 * EDGE, 1 + 5 * EDGE)
        as_percent(ax.yaxis)
        legend_above(ax)
        return self


class ProCurveDisplay:
    """PRO curve: how much of the defects anomaly maps cover at which false-positive rate of pixels.

    PRO, per-region overlap, is the share of a defect's pixels that are flagged, averaged over all defects whatever
    their size. The curve is that of :func:`skpbas.metrics.pro_curve`: every distinct value of the maps is a threshold.
    Create it with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    fpr, pro : ndarray of shape (k,)
        False-positive rates of pixels, ascending, and overlaps.
    pixel_pro : float or None, default=None
        Area up to ``max_fpr``, divided by it.
    max_fpr : float, default=0.3
        Limit of the integration, in (0, 1].
    operating_point : (float, float) or None, default=None
        False-positive rate and overlap at ``map_threshold_``.
    name : str or None, default=None

    Attributes
    ----------
    line_ : Line2D
    figure_ : Figure
    ax_ : Axes

    Examples
    --------
    >>> from skpbas.inspection import ProCurveDisplay
    >>> display = ProCurveDisplay.from_predictions([[[1, 0, 1, 1]]], [[[0.9, 0.5, 0.7, 0.1]]], max_fpr=1.0)
    >>> display.pixel_pro
    0.75
    """

    line_: Line2D
    figure_: Figure
    ax_: Axes

    def __init__(
        self,
        fpr: NDArray[np.float64],
        pro: NDArray[np.float64],
        *,
        pixel_pro: float | None = None,
        max_fpr: float = 0.3,
        operating_point: tuple[float, float] | None = None,
        name: str | None = None,
    ) -> None:
        self.fpr, self.pro, self.pixel_pro, self.max_fpr = fpr, pro, pixel_pro, max_fpr
        self.operating_point, self.name = operating_point, name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        masks: Any,
        *,
        name: str | None = None,
        max_fpr: float = 0.3,
        fpr_scale: str = "linear",
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Compute anomaly maps, and draw the curve.

        Parameters
        ----------
        estimator : fitted detector
            Or a pipeline that ends in one.
        X : array or sequence of images
        masks : sequence of masks
            As for :func:`skpbas.masks.to_map_size`; None for a good image.
        name : str, default=None
            In the legend; None: the class of the detector.
        max_fpr : float, default=0.3
        fpr_scale : {"linear", "symlog"}, default="linear"
        ax : Axes, default=None
        **kwargs
            As for :meth:`plot`.

        Returns
        -------
        ProCurveDisplay

        Raises
        ------
        InvalidTargetError
            Masks that do not match X, or mark no pixel.
        """
        pyplot(cls.__name__)
        detector, X = detector_and_images(estimator, X)
        name = type(detector).__name__ if name is None else name
        seen = to_map_size(masks, X, detector)
        options = {"max_fpr": max_fpr, "fpr_scale": fpr_scale, "ax": ax, **kwargs}
        threshold = float(detector.map_threshold_)
        return cls.from_predictions(seen, detector.anomaly_map(X), threshold=threshold, name=name, **options)

    @classmethod
    def from_predictions(
        cls,
        masks: Any,
        anomaly_maps: Any,
        *,
        threshold: float | None = None,
        name: str | None = None,
        max_fpr: float = 0.3,
        fpr_scale: str = "linear",
        ax: Any = None,
        **kwargs: Any,
    ) -> Self:
        """Draw the curve of anomaly maps.

        Parameters
        ----------
        masks : array of shape (n, h, w), or sequence of 2-D masks or None
        anomaly_maps : array of shape (n, h, w), or sequence of 2-D maps
            Higher is more anomalous, as for :func:`skpbas.metrics.pro_curve`.
        threshold : float, default=None
            Pixels above it are flagged: the operating point that is marked.
        name : str, default=None
        max_fpr : float, default=0.3
        fpr_scale : {"linear", "symlog"}, default="linear"
        ax : Axes, default=None
        **kwargs
            As for :meth:`plot`.

        Returns
        -------
        ProCurveDisplay

        Raises
        ------
        InvalidTargetError
            Masks and maps that do not match, or masks that mark no pixel.
        """
        pyplot(cls.__name__)
        max_fpr = checked_max_fpr(max_fpr)
        fpr, pro, thresholds = pro_curve(masks, anomaly_maps)
        point = None
        if threshold is not None:
            above = int(np.searchsorted(-thresholds, -threshold, side="left")) - 1  # the last vertex above it
            point = _share_of_normal_pixels_above(threshold, masks, anomaly_maps), float(pro[above])
        area = _area_up_to(fpr, pro, max_fpr)
        display = cls(fpr, pro, pixel_pro=area, max_fpr=max_fpr, operating_point=point, name=name)
        return display.plot(fpr_scale=fpr_scale, ax=ax, **kwargs)

    def plot(self, *, name: str | None = None, fpr_scale: str = "linear", ax: Any = None, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        name : str, default=None
            In the legend; None: the name of the display.
        fpr_scale : {"linear", "symlog"}, default="linear"
            Axis of the false-positive rate. "linear": PRO is the share of the picture below the curve; "symlog":
            logarithmic down to 0.01 %, where thresholds of detectors lie.
        ax : Axes, default=None
            None: a new figure. Several curves may share one.
        **kwargs
            Passed to matplotlib's ``plot``.

        Returns
        -------
        ProCurveDisplay
            The display itself.
        """
        check_choice(fpr_scale, "fpr_scale", _SCALES)
        self.ax_ = ax = axes_or_new(ax, type(self).__name__)
        self.figure_ = ax.figure
        name = self.name if name is None else name
        area = [] if self.pixel_pro is None else [f"PRO {self.pixel_pro:.3f} up to {percent(self.max_fpr)}"]
        label = ", ".join([*filter(None, [name]), *area])
        (self.line_,) = ax.plot(self.fpr, self.pro, **{"label": label or None, "linewidth": 2, **kwargs})
        if self.operating_point is not None:
            fpr, pro = self.operating_point
            text = f"threshold: {percent(pro)} covered, {percent(fpr)} false"
            ax.plot(fpr, pro, "o", color=self.line_.get_color(), markersize=8, clip_on=False, label=text, zorder=3)
        set_rate_scale(ax, fpr_scale, _FINEST_PIXELS, self.max_fpr)
        ax.set(xlabel="false positives (share of normal pixels)", ylabel="PRO (mean share covered)")
        ax.set_ylim(-5 * EDGE, 1 + 5 * EDGE)
        as_percent(ax.yaxis)
        legend_above(ax)
        return self


def _area_up_to(fpr: NDArray[np.float64], pro: NDArray[np.float64], limit: float) -> float:
    """Return the area below a curve up to a limit, divided by it; the last segment is interpolated."""
    inside = fpr <= limit
    end = np.interp(limit, fpr, pro)
    x, y = np.append(fpr[inside], limit), np.append(pro[inside], end)
    return float(np.trapezoid(y, x) / limit)


def _share_of_normal_pixels_above(threshold: float, masks: Any, anomaly_maps: Any) -> float:
    """Return the share; the vertices of a PRO curve leave out where only normal pixels are added."""
    n_flagged = n_normal = 0
    for mask, anomaly_map in zip(masks, anomaly_maps, strict=True):
        normal = np.asarray(anomaly_map) if mask is None else np.asarray(anomaly_map)[np.asarray(mask) == 0]
        n_flagged, n_normal = n_flagged + int((normal > threshold).sum()), n_normal + normal.size
    return n_flagged / n_normal
