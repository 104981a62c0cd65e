"""What training does to features: the boundary around good ones, and the distances to the centers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.utils import check_random_state

from skpbas._inputs.images import check_images
from skpbas._inputs.targets import are_masks, entries_of
from skpbas.core.centers import nearest_center
from skpbas.errors import InvalidTargetError
from skpbas.inspection._patch_features import boundary_of, center_distances
from skpbas.inspection._plotting import (
    DEFECTIVE,
    FOURTH,
    GOOD,
    NEUTRAL,
    THIRD,
    as_percent,
    axes_or_new,
    check_choice,
    histogram_edges,
    ink,
    legend_above,
    place_of,
    pyplot,
)
from skpbas.inspection._training_curves import trained_detector
from skpbas.masks import to_map_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_VIEWS = ("radial", "projection")
_GROUPS: dict[str, tuple[str, dict[str, Any]]] = {
    "synthetic": ("synthetic", {"color": FOURTH, "marker": "^", "s": 9, "alpha": 0.5}),
    "good": ("good", {"color": GOOD, "marker": "o", "s": 7, "alpha": 0.5}),
    "real": ("defective", {"color": DEFECTIVE, "marker": "x", "s": 16, "alpha": 0.8, "linewidths": 1.0}),
    "center": ("centers", {"marker": "+", "s": 22, "linewidths": 1.0}),
}


class BoundaryDisplay:
    """Patch features in two dimensions: good ones, centers, synthetic anomalies around them, and real ones.

    Shows what the discriminator learns to tell apart: synthetic anomalies lie farther from their centers than the good
    features that they come from, and real ones at best farther still. Two of hundreds of dimensions show little:
    features that overlap here may be far apart. Create it with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    good, center : ndarray of shape (n, 2)
        Projected features of good patches, and the centers.
    synthetic, real : ndarray of shape (n, 2) or None, default=None
        Synthetic anomalies, and features of defective patches.
    radius : float or None, default=None
        r, the mean distance of good features to their centers, if positions are relative to the nearest center.

    Attributes
    ----------
    figure_ : Figure
    ax_ : Axes

    Examples
    --------
    >>> import numpy as np
    >>> from skpbas.inspection import BoundaryDisplay
    >>> good = np.random.default_rng(0).normal(size=(200, 8))
    >>> display = BoundaryDisplay.from_predictions(good, good[:20] / 2, 1.3 * good)
    >>> display.good.shape
    (200, 2)
    """

    figure_: Figure
    ax_: Axes

    def __init__(
        self,
        good: NDArray[Any],
        center: NDArray[Any],
        synthetic: NDArray[Any] | None = None,
        real: NDArray[Any] | None = None,
        *,
        radius: float | None = None,
    ) -> None:
        self.good, self.center, self.synthetic, self.real = good, center, synthetic, real
        self.radius = radius

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        masks: Any = None,
        *,
        n_patches: int = 1000,
        view: str = "radial",
        projection: Any = None,
        random_state: Any = None,
        ax: Any = None,
    ) -> Self:
        """Compute features of images, and draw them.

        Parameters
        ----------
        estimator : PBASDetector
            Fitted; also one within a :class:`~skpbas.calibration.ConformalThreshold`, a pipeline or a search.
        X : array or sequence of images
            As the detector receives them; good ones and, with masks, defective ones.
        masks : sequence of masks or None, default=None
            True defects; None for a good image. Patches of good images are good, those inside a mask are defective.
            None: all images are good.
        n_patches : int, default=1000
            Patches of each group, drawn at random.
        view : {"radial", "projection"}, default="radial"
            "radial": relative to the nearest center, which is in the middle, at the true distance from it; only the
            direction is projected. "projection": all features and centers, projected.
        projection : transformer, default=None
            To two dimensions; its clone is fitted to the good features. None: ``PCA(2)``.
        random_state : int, RandomState or None, default=None
            Draws patches and noise.
        ax : Axes, default=None
            None: a new figure.

        Returns
        -------
        BoundaryDisplay

        Raises
        ------
        InvalidTargetError
            Masks that do not match X, labels, or masks of all images.
        """
        pyplot(cls.__name__)
        detector, items = trained_detector(estimator, cls.__name__), check_images(X)
        entries = entries_of([None] * len(items) if masks is None else masks, len(items), "masks")
        if not are_masks(entries):
            raise InvalidTargetError("masks contains labels; expected masks (h, w), and None for good images")
        seen = to_map_size(entries, items, detector)
        good = [i for i, mask in enumerate(seen) if mask is None]
        bad = [i for i, mask in enumerate(seen) if mask is not None]
        if not good:
            raise InvalidTargetError(f"masks mark defects in all {len(items)} images: pass good ones too")
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        features = boundary_of(
            detector, [items[i] for i in good], [items[i] for i in bad], [seen[i] for i in bad], n_patches, seed
        )
        return cls.from_predictions(
            features.good, features.center, features.synthetic, features.real, view=view, projection=projection, ax=ax
        )

    @classmethod
    def from_predictions(
        cls,
        good: ArrayLike,
        center: ArrayLike,
        synthetic: ArrayLike | None = None,
        real: ArrayLike | None = None,
        *,
        view: str = "radial",
        projection: Any = None,
        ax: Any = None,
    ) -> Self:
        """Project features, and draw them.

        Parameters
        ----------
        good, center : array-like of shape (n, d)
            Features of good patches, and centers.
        synthetic, real : array-like of shape (n, d) or None, default=None
        view : {"radial", "projection"}, default="radial"
            "radial": relative to the nearest center, which is in the middle, at the true distance from it; only the
            direction is projected. "projection": all features and centers, projected.
        projection : transformer, default=None
            To two dimensions; its clone is fitted to the good features. None: ``PCA(2)``.
        ax : Axes, default=None

        Returns
        -------
        BoundaryDisplay
        """
        check_choice(view, "view", _VIEWS)
        given = {"good": good, "center": center, "synthetic": synthetic, "real": real}
        groups = {name: np.asarray(g, dtype=np.float64) for name, g in given.items() if g is not None}
        groups = {name: features for name, features in groups.items() if len(features)}
        projection = PCA(2, svd_solver="covariance_eigh") if projection is None else clone(projection)
        if view == "projection":
            projection.fit(groups["good"])
            points = {name: _in_two(projection, features) for name, features in groups.items()}
            return cls(points["good"], points["center"], points.get("synthetic"), points.get("real")).plot(ax=ax)
        centers = groups.pop("center")
        rays = {name: features - centers[_nearest(features, centers)] for name, features in groups.items()}
        projection.fit(rays["good"])
        origin = _in_two(projection, np.zeros_like(centers[:1]))
        points = {name: _at_distance(_in_two(projection, ray) - origin, ray) for name, ray in rays.items()}
        radius = float(np.linalg.norm(rays["good"], axis=1).mean())
        middle = np.zeros((1, 2))
        return cls(points["good"], middle, points.get("synthetic"), points.get("real"), radius=radius).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : Axes, default=None
            None: a new figure.

        Returns
        -------
        BoundaryDisplay
            The display itself.
        """
        self.ax_ = ax = axes_or_new(ax, type(self).__name__)
        self.figure_ = ax.figure
        for name, (label, style) in _GROUPS.items():
            points = getattr(self, name)
            if points is not None:
                centers = {
                    "color": ink(ax),
                    **({"alpha": 0.35, "zorder": 0.9} if self.radius is None else {"zorder": 3}),
                }
                style = {**(centers if name == "center" else {}), **style}
                label = label if self.radius is not None and name == "center" else f"{label} ({len(points)})"
                ax.scatter(points[:, 0], points[:, 1], label=label, rasterized=True, **style)
        if self.radius is None:
            ax.set(xlabel="component 1", ylabel="component 2")
        else:
            angles = np.linspace(0, 2 * np.pi, 181)
            circle = self.radius * np.cos(angles), self.radius * np.sin(angles)
            ax.plot(*circle, color=ink(ax), linewidth=1.5, label=f"r = {self.radius:.3g}", zorder=3)
            ax.set_xlabel("distance to the nearest center")
            reach = 1.05 * max(
                float(np.abs(getattr(self, name)).max()) for name in _GROUPS if getattr(self, name) is not None
            )
            ax.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
            for axis in (ax.xaxis, ax.yaxis):
                axis.set_major_formatter(lambda value, _: f"{abs(value):g}")
        legend_above(ax, n_columns=2)
        return self


def _nearest(features: NDArray[Any], center: NDArray[Any]) -> NDArray[np.intp]:
    """Return the index of the most similar center of each feature, by cosine similarity."""
    found: NDArray[np.intp] = nearest_center(torch.from_numpy(features), torch.from_numpy(center)).numpy()
    return found


def _in_two(projection: Any, features: NDArray[Any]) -> NDArray[np.float64]:
    points = np.asarray(projection.transform(features), dtype=np.float64)
    if points.shape[1:] != (2,):
        raise ValueError(f"projection={projection!r} returns an array of shape {points.shape}: expected two dimensions")
    return points


def _at_distance(directions: NDArray[np.float64], rays: NDArray[Any]) -> NDArray[np.float64]:
    """Return points (n, 2) in these directions, as far from the origin as the rays (n, d) are long."""
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    points: NDArray[np.float64] = directions / np.maximum(lengths, np.finfo(float).tiny)
    return points * np.linalg.norm(rays, axis=1, keepdims=True)


class CenterDisplay:
    """Distances of good patches to their nearest centers: mean centers, aligned ones, and after training.

    The nearer a center is to what it stands for, the tighter is the boundary that can be drawn around it. Maps show the
    mean distance at each position, in one color scale, and histograms all patches. Parts that lie differently in each
    image have no good mean center: alignment finds nearer ones. Distances before training are those of the features t,
    those after it of phi(t) to ``center_``; if ``projector_init`` is not "identity", the two are in other units.
    Create it with :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    mean, aligned, trained : ndarray of shape (n, h, w)
        Distances at the patches of n images; NaN where patches do not count.

    Attributes
    ----------
    figure_ : Figure
    ax_ : ndarray of Axes, of shape (4,)
        Of the three maps, and of the histograms.
    colorbar_ : Colorbar

    Examples
    --------
    >>> import numpy as np
    >>> from skpbas.inspection import CenterDisplay
    >>> distances = np.random.default_rng(0).gamma(4, size=(5, 8, 8))
    >>> display = CenterDisplay.from_predictions(distances, 0.8 * distances, 0.5 * distances)
    >>> display.ax_[3].get_xlabel()
    'distance to the nearest center'
    """

    figure_: Figure
    ax_: NDArray[Any]
    colorbar_: Any

    def __init__(self, mean: ArrayLike, aligned: ArrayLike, trained: ArrayLike) -> None:
        self.mean, self.aligned, self.trained = (np.asarray(d, dtype=float) for d in (mean, aligned, trained))

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, *, ax: Any = None) -> Self:
        """Compute the center sets and distances of images, and draw them.

        Parameters
        ----------
        estimator : PBASDetector
            Fitted; also one within a :class:`~skpbas.calibration.ConformalThreshold`, a pipeline or a search.
        X : array or sequence of images
            Good ones, at least two; the features of all are held in memory: at 256 pixels 1.5 MiB per image for
            ResNet18 and 6 MiB for WideResNet50-2.
        ax : Axes, or four Axes, default=None
            None: a new figure. A single Axes is divided.

        Returns
        -------
        CenterDisplay
        """
        pyplot(cls.__name__)
        detector = trained_detector(estimator, cls.__name__)
        return cls.from_predictions(*center_distances(detector, X), ax=ax)

    @classmethod
    def from_predictions(cls, mean: ArrayLike, aligned: ArrayLike, trained: ArrayLike, *, ax: Any = None) -> Self:
        """Draw distances.

        Parameters
        ----------
        mean, aligned, trained : array-like of shape (n, h, w)
            To mean centers, to aligned ones, and after training.
        ax : Axes, or four Axes, default=None

        Returns
        -------
        CenterDisplay
        """
        return cls(mean, aligned, trained).plot(ax=ax)

    def plot(self, *, ax: Any = None) -> Self:
        """Draw.

        Parameters
        ----------
        ax : Axes, or four Axes, default=None
            None: a new figure. A single Axes is divided.

        Returns
        -------
        CenterDisplay
            The display itself.
        """
        self.ax_ = _center_axes(ax)
        self.figure_ = self.ax_[0].figure
        groups = {
            "mean": (self.mean, NEUTRAL, "dotted"),
            "aligned": (self.aligned, GOOD, "dashed"),
            "trained": (self.trained, THIRD, "solid"),
        }
        maps = [np.nanmean(distances, axis=0) for distances, _, _ in groups.values()]
        highest = max(float(np.nanmax(values)) for values in maps)
        edges = histogram_edges(*(distances for distances, _, _ in groups.values()))
        histogram = self.ax_[3]
        for axes, values, (name, (distances, color, line)) in zip(self.ax_, maps, groups.items(), strict=False):
            shown = axes.imshow(values, cmap="cividis", vmin=0, vmax=highest)
            axes.set(xticks=[], yticks=[])
            axes.set_title(name, fontsize="small")
            counted = distances[np.isfinite(distances)]
            shares = np.histogram(counted, edges)[0] / len(counted)
            style = {"color": color, "linestyle": line, "linewidth": 2}
            histogram.stairs(shares, edges, label=f"{name}: {counted.mean():.3g} on average", **style)
        self.colorbar_ = self.figure_.colorbar(shown, ax=list(self.ax_[:3]), pad=0.02, aspect=10)
        self.colorbar_.set_label("mean distance", fontsize="small")
        histogram.set(xlabel="distance to the nearest center", ylabel="patches", xlim=(0, edges[-1]))
        as_percent(histogram.yaxis)
        histogram.legend(loc="upper right", frameon=False, fontsize="small")
        return self


def _center_axes(ax: Any) -> NDArray[Any]:
    plt = pyplot("CenterDisplay")
    given = None if ax is None else np.array(ax, dtype=object).ravel()
    if given is not None and len(given) == 4:
        return given
    if given is not None and len(given) != 1:
        raise ValueError(f"ax holds {len(given)} axes: expected one, or four")
    if given is None:
        figure = plt.figure(layout="constrained")
        grid = figure.add_gridspec(2, 3)
    else:
        figure = given[0].figure
        grid = place_of(given[0]).subgridspec(2, 3)
    places = [grid[0, 0], grid[0, 1], grid[0, 2], grid[1, :]]
    return np.array([figure.add_subplot(place) for place in places], dtype=object)
