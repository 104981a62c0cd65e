"""Scores of good and of defective images, and the threshold between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skpbas._decisions.deciding import UNSURE_RATE, check_unsure_rate
from skpbas._decisions.judging import Judge
from skpbas._inputs.targets import anomalous_rows
from skpbas.inspection._plotting import (
    DEFECTIVE,
    FOURTH,
    GOOD,
    NEUTRAL,
    THIRD,
    axes_or_new,
    check_choice,
    ink,
    legend_above,
    percent,
    pyplot,
)
from skpbas.scorers import detector_and_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SCALES = ("auto", "linear", "asinh")
_WIDE = 8.0  # a linear axis is no longer than this many ranges of the margins of good images
_BINS = 40

_Group: TypeAlias = tuple[str, NDArray[np.float64], str]


class ScoreDistributionDisplay:
    """Distribution of the margins of images: how far they are from the threshold, and on which side.

    A margin is ``decision_function``: below 0 is anomalous. Each row is a group of images: heights are shares of the
    group, on one scale, and each image is a tick below. Create it with :meth:`from_estimator` or
    :meth:`from_predictions`.

    Parameters
    ----------
    margins : array-like of shape (n,)
        ``decision_function``; NaN counts as anomalous and is not drawn.
    anomalous : array-like of shape (n,), bool, or None, default=None
        Which images are defective. None: unknown.
    training_margins : array-like of shape (m,) or None, default=None
        Of images that set the threshold.
    unsure_margin : float or None, default=None
        Images with margins from 0 up to this are "unsure".
    false_alarm_rate, unsure_rate : float or None, default=None
        Share of good images that the threshold aims to flag, and that the unsure band aims to reach.

    Attributes
    ----------
    false_alarms_, misses_, unsure_ : int or None
        Good images with margins below 0, defective ones that have none, and images in the unsure band; None if unknown.
    figure_ : Figure
    ax_ : Axes

    Examples
    --------
    >>> from skpbas.inspection import ScoreDistributionDisplay
    >>> scores = [-1.0, -1.2, -2.4, -5.0, -1.9, -9.0]
    >>> labels = [1, 1, 1, -1, -1, -1]
    >>> display = ScoreDistributionDisplay.from_predictions(scores, labels, offset=-2.0, unsure_offset=-1.8)
    >>> display.false_alarms_, display.misses_, display.unsure_
    (1, 1, 1)
    """

    figure_: Figure
    ax_: Axes

    def __init__(
        self,
        margins: ArrayLike,
        anomalous: ArrayLike | None = None,
        *,
        training_margins: ArrayLike | None = None,
        unsure_margin: float | None = None,
        false_alarm_rate: float | None = None,
        unsure_rate: float | None = None,
    ) -> None:
        self.margins, self.anomalous = np.asarray(margins, dtype=float), anomalous
        self.training_margins, self.unsure_margin = training_margins, unsure_margin
        self.false_alarm_rate, self.unsure_rate = false_alarm_rate, unsure_rate
        flagged = ~(self.margins >= 0)
        defective = None if anomalous is None else np.asarray(anomalous, dtype=bool)
        self.false_alarms_ = None if defective is None else int((flagged & ~defective).sum())
        self.misses_ = None if defective is None else int((~flagged & defective).sum())
        self.unsure_ = None if unsure_margin is None else int((~flagged & (self.margins < unsure_margin)).sum())

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        unsure_rate: float | None = None,
        scale: str = "auto",
        ax: Any = None,
    ) -> Self:
        """Score images, and draw the distribution of their margins.

        Parameters
        ----------
        estimator : fitted detector
            Or a pipeline that ends in one. ``training_scores_`` are drawn too, or the ``calibration_scores_`` of a
            :class:`~skpbas.calibration.ConformalThreshold` without ``cv``.
        X : array or sequence of images
        y : labels, masks or None, default=None
            Which images are defective: +1 normal, -1 anomalous; {0, 1} or booleans with 1 for anomalous ones; or masks.
            None: unknown.
        unsure_rate : float in (0, 0.5] or None, default=None
            As for ``verdicts``; None: 0.05, or that of an :class:`~skpbas.runtime.OnnxDetector`, which has no other.
        scale : {"auto", "linear", "asinh"}, default="auto"
            As for :meth:`plot`.
        ax : Axes, default=None
            None: a new figure.

        Returns
        -------
        ScoreDistributionDisplay
        """
        pyplot(cls.__name__)
        if unsure_rate is not None:
            check_unsure_rate(unsure_rate)
        detector, X = detector_and_images(estimator, X)
        margins = detector.decision_function(X)
        anomalous = None if y is None else anomalous_rows(y, len(margins), zero_one=True)
        display = cls(margins, anomalous, **_limits(detector, unsure_rate))
        return display.plot(scale=scale, ax=ax)

    @classmethod
    def from_predictions(
        cls,
        scores: ArrayLike,
        y: Any = None,
        *,
        offset: float,
        training_scores: ArrayLike | None = None,
        unsure_offset: float | None = None,
        scale: str = "auto",
        ax: Any = None,
    ) -> Self:
        """Draw the distribution of the margins of scores.

        Parameters
        ----------
        scores : array-like of shape (n,)
            ``score_samples``: higher is more normal.
        y : labels, masks or None, default=None
            As for :meth:`from_estimator`.
        offset : float
            The threshold: images with lower scores are anomalous.
        training_scores : array-like of shape (m,) or None, default=None
        unsure_offset : float or None, default=None
            Images with scores from ``offset`` up to this are "unsure".
        scale : {"auto", "linear", "asinh"}, default="auto"
        ax : Axes, default=None

        Returns
        -------
        ScoreDistributionDisplay
        """
        margins = np.asarray(scores, dtype=float) - offset
        display = cls(
            margins,
            None if y is None else anomalous_rows(y, len(margins), zero_one=True),
            training_margins=None if training_scores is None else np.asarray(training_scores, dtype=float) - offset,
            unsure_margin=None if unsure_offset is None else unsure_offset - offset,
        )
        return display.plot(scale=scale, ax=ax)

    def plot(self, *, scale: str = "auto", ax: Any = None) -> Self:
        """Draw.

        Parameters
        ----------
        scale : {"auto", "linear", "asinh"}, default="auto"
            "asinh": linear around the threshold, logarithmic farther away, so that clear defects do not squeeze what
            matters into a few pixels; "auto": if some margins are far beyond those of good images.
        ax : Axes, default=None
            None: a new figure.

        Returns
        -------
        ScoreDistributionDisplay
            The display itself.
        """
        check_choice(scale, "scale", _SCALES)
        self.ax_ = ax = axes_or_new(ax, type(self).__name__)
        self.figure_ = ax.figure
        groups = self._groups()
        drawn = np.concatenate([values for _, values, _ in groups] + [[0.0, self.unsure_margin or 0.0]])
        edges = self._set_scale(scale, groups, float(drawn.min()), float(drawn.max()))
        shares = [np.histogram(values, edges)[0] / max(len(values), 1) for _, values, _ in groups]
        largest = max(float(share.max()) for share in shares) or 1.0
        for row, ((_, values, color), share) in enumerate(zip(groups, shares, strict=True)):
            ax.stairs(row + 0.8 * share / largest, edges, baseline=row, fill=True, color=color, alpha=0.85)
            ax.plot(values, np.full(len(values), row - 0.06), "|", color=color, markersize=5, alpha=0.8)
        if self.unsure_margin is not None and self.unsure_margin > 0:
            reach = "" if self.unsure_rate is None else f": flagged at {percent(self.unsure_rate)} false alarms"
            ax.axvspan(0, self.unsure_margin, color=FOURTH, alpha=0.3, linewidth=0, zorder=0, label=f"unsure{reach}")
        aim = "" if self.false_alarm_rate is None else f": aims at {percent(self.false_alarm_rate)} false alarms"
        ax.axvline(0, color=ink(ax), linewidth=1.5, linestyle="dashed", label=f"threshold{aim}")
        ax.set(xlabel="margin (below 0: anomalous)", ylim=(-0.15, len(groups) - 0.1))
        ax.set_yticks(np.arange(len(groups)) + 0.25, [f"{name}\n{len(values)}" for name, values, _ in groups])
        ax.tick_params(axis="y", length=0)
        legend_above(ax, title=self._summary())
        return self

    def _set_scale(self, scale: str, groups: list[_Group], low: float, high: float) -> NDArray[np.float64]:
        """Scale the x-axis, and return the edges of the bins."""
        near = next((np.abs(values) for name, values, _ in groups if name != "defective" and len(values)), np.ones(1))
        width = float(np.quantile(near, 0.9)) or 1.0  # within which most good images are
        if scale == "asinh" or (scale == "auto" and high - low > _WIDE * width):
            self.ax_.set_xscale("asinh", linear_width=width)
            ticks = _rounded_ticks(low, high, width)
            self.ax_.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            self.ax_.minorticks_off()
            return np.sinh(_edges(np.arcsinh(low / width), np.arcsinh(high / width))) * width
        return _edges(low, high)

    def _groups(self) -> list[_Group]:
        """Return name, finite margins and color of each group, in the order of their rows from the bottom."""
        margins, finite = self.margins, np.isfinite(self.margins)
        if self.anomalous is None:
            groups: list[_Group] = [("images", margins[finite], THIRD)]
        else:
            anomalous = np.asarray(self.anomalous, dtype=bool)
            groups = [
                ("defective", margins[finite & anomalous], DEFECTIVE),
                ("good", margins[finite & ~anomalous], GOOD),
            ]
        if self.training_margins is not None:
            groups.append(("training", np.asarray(self.training_margins, dtype=float), NEUTRAL))
        return groups

    def _summary(self) -> str:
        n = len(self.margins)
        unsure = [] if self.unsure_ is None else [f"unsure: {self.unsure_} of {n}"]
        if self.anomalous is None:
            return ", ".join([f"anomalous: {int((~(self.margins >= 0)).sum())} of {n}", *unsure])
        n_defective = int(np.asarray(self.anomalous, dtype=bool).sum())
        rows = [("false alarms", self.false_alarms_, n - n_defective), ("missed", self.misses_, n_defective)]
        return "\n".join(f"{name}: {k} of {of} ({percent(round((k or 0) / of, 3))})" for name, k, of in rows if of)


def _limits(detector: Any, unsure_rate: float | None) -> dict[str, Any]:
    """Return what a detector knows of its threshold, as the display takes it."""
    of_export = getattr(detector, "metadata_", {}).get("unsure_rate")
    if of_export is not None and unsure_rate not in (None, of_export):
        raise ValueError(f"unsure_rate={unsure_rate!r}: an exported detector knows {of_export} only")
    if unsure_rate is None:
        unsure_rate = UNSURE_RATE if of_export is None else float(of_export)
    if hasattr(detector, "training_scores_"):
        unsure = detector._judge(unsure_rate).unsure_offset
        scores, rate = detector.training_scores_, detector.contamination
        rate = detector.false_alarm_rate if rate == "auto" else rate
    elif hasattr(detector, "calibration_scores_") and not hasattr(detector, "fold_detectors_"):
        scores, rate = detector.calibration_scores_, detector.max_false_alarm_rate
        rank = int(unsure_rate * (len(scores) + 1) * (1 + 1e-12))  # p-values up to the rate are below this score
        unsure = np.sort(scores)[rank - 1] if rank else detector.offset_
    elif isinstance(judge := getattr(detector, "_judge", None), Judge):  # an exported detector
        unsure, scores, rate = judge.unsure_offset, judge.normal_scores, None
    else:
        return {}
    return {
        "training_margins": scores - detector.offset_,
        "unsure_margin": max(float(unsure - detector.offset_), 0.0),
        "false_alarm_rate": None if rate is None else float(rate),
        "unsure_rate": unsure_rate,
    }


def _edges(low: float, high: float) -> NDArray[np.float64]:
    """Return the edges of bins that hold all from ``low`` <= 0 to ``high`` >= 0; 0 is one, so no bin has two sides."""
    step = (high - low) / _BINS or 1.0
    edges: NDArray[np.float64] = step * np.arange(np.floor(low / step) - 1, np.ceil(high / step) + 2)
    return edges


def _rounded_ticks(low: float, high: float, width: float) -> list[float]:
    """Return ticks 0, and 1, 2 and 5 times powers of ten on both sides, spread over an asinh axis."""
    span = np.arcsinh(high / width) - np.arcsinh(low / width)
    steps = [m * 10.0**e for e in range(-6, 7) for m in (1, 2, 5)]
    ticks = [0.0]
    for sign, limit in ((1, high), (-1, -low)):
        last = 0.0
        for value in (sign * step for step in steps if step <= limit):
            if abs(np.arcsinh(value / width) - np.arcsinh(last / width)) > span / 9:
                ticks.append(value)
                last = value
    return sorted(ticks)
