"""The course of a training: terms of the loss, and the radius of normal features, per epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skpbas._inputs.mask_reader import with_maps
from skpbas.inspection._plotting import DEFECTIVE, GOOD, NEUTRAL, THIRD, ink, legend_above, place_of, pyplot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TERMS = {
    "loss": ("sum", None, "solid"),
    "normal": ("normal", GOOD, "dashed"),
    "anomaly": ("anomaly", DEFECTIVE, "dashdot"),
}


class TrainingDisplay:
    """Terms of the loss, and the radius r, after each epoch of a training.

    r, the term "center", is the mean distance of good features to their centers (Eq. 6). "normal" and "anomaly" are the
    cross-entropies of the discriminator on good and on synthetic features (Eq. 8 and 9), summed over its heads; heads
    that cannot tell the two apart have ln 2 each, the dotted line. Create it with :meth:`from_estimator`, or with a
    ``loss_curve_`` and :meth:`plot`.

    Parameters
    ----------
    loss_curve : mapping of str to sequence of float
        ``loss_curve_``: "loss", "center" and, with synthesis, "normal" and "anomaly".
    n_heads : int or None, default=None
        Heads of the discriminator; None: no dotted line.

    Attributes
    ----------
    figure_ : Figure
    ax_ : ndarray of Axes, of shape (2,)
        Of the loss, and of the radius. Without synthesis they are the same, and there is one, (1,).

    Examples
    --------
    >>> from skpbas.inspection import TrainingDisplay
    >>> curve = {"loss": [3.1, 2.7], "center": [0.6, 0.5], "normal": [1.3, 1.1], "anomaly": [1.2, 1.1]}
    >>> TrainingDisplay(curve, n_heads=2).plot().ax_[1].get_ylabel()
    'radius r'
    """

    figure_: Figure
    ax_: NDArray[Any]

    def __init__(self, loss_curve: Mapping[str, Sequence[float]], *, n_heads: int | None = None) -> None:
        self.loss_curve, self.n_heads = loss_curve, n_heads

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None) -> Self:
        """Draw the training of a detector.

        Parameters
        ----------
        estimator : PBASDetector
            Fitted; also one within a :class:`~skpbas.calibration.ConformalThreshold`, a pipeline or a search.
        ax : Axes, or two Axes, default=None
            As for :meth:`plot`.

        Returns
        -------
        TrainingDisplay

        Raises
        ------
        TypeError
            The estimator has no ``loss_curve_``.
        """
        pyplot(cls.__name__)
        detector = trained_detector(estimator, cls.__name__)
        head = getattr(detector, "discriminator_", None)
        return cls(detector.loss_curve_, n_heads=None if head is None else int(head.output.out_features)).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : Axes, or two Axes, default=None
            None: a new figure. A single Axes is divided.

        Returns
        -------
        TrainingDisplay
            The display itself.
        """
        has_terms = "normal" in self.loss_curve
        self.ax_ = _axes(ax, 2 if has_terms else 1)
        from matplotlib.ticker import MaxNLocator

        self.figure_ = self.ax_[0].figure
        epochs = np.arange(1, len(self.loss_curve["center"]) + 1)
        style: dict[str, Any] = {"linewidth": 2, **({"marker": "o"} if len(epochs) == 1 else {})}
        if has_terms:
            for name, (label, color, line) in _TERMS.items():
                color = ink(self.ax_[0]) if color is None else color
                self.ax_[0].plot(epochs, self.loss_curve[name], color=color, linestyle=line, label=label, **style)
            if self.n_heads:
                chance = self.n_heads * math.log(2)
                self.ax_[0].axhline(chance, color=NEUTRAL, linestyle="dotted", label=f"chance ({self.n_heads} ln 2)")
            self.ax_[0].set_ylabel("loss")
            legend_above(self.ax_[0], n_columns=2)
            self.ax_[0].tick_params(labelbottom=False)
        self.ax_[-1].plot(epochs, self.loss_curve["center"], color=THIRD, **style)
        self.ax_[-1].set(xlabel="epoch", ylabel="radius r" if has_terms else "radius r = loss")
        for axes in self.ax_:
            axes.set_ylim(0, 1.08 * max(float(np.max(line.get_ydata())) for line in axes.get_lines()))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.25)
        return self


def trained_detector(estimator: Any, user: str) -> Any:
    """Return the trained detector within searches, pipelines and thresholds.

    Raises
    ------
    TypeError
        There is none.
    """
    check_is_fitted(estimator)
    while not hasattr(estimator, "loss_curve_"):
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif hasattr(estimator, "steps"):
            estimator = estimator.steps[-1][1]
        elif with_maps(estimator) is not estimator:
            estimator = with_maps(estimator)
        else:
            raise TypeError(f"{user} needs a PBASDetector, or what contains one; got {type(estimator).__name__}")
    return estimator


def _axes(ax: Any, n: int) -> NDArray[Any]:
    plt = pyplot("TrainingDisplay")
    given = None if ax is None else np.array(ax, dtype=object).ravel()
    if given is not None and len(given) == n:
        return given
    if given is not None and len(given) != 1:
        raise ValueError(f"ax holds {len(given)} axes: expected one, or {n}")
    figure = plt.figure(layout="constrained") if given is None else given[0].figure
    ratios = [2, 1][:n]
    grid = (
        figure.add_gridspec(n, 1, height_ratios=ratios)
        if given is None
        else place_of(given[0]).subgridspec(n, 1, height_ratios=ratios)
    )
    first = figure.add_subplot(grid[0])
    return np.array([first, *(figure.add_subplot(grid[i], sharex=first) for i in range(1, n))], dtype=object)
