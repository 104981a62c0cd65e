"""Scorers for scikit-learn's model selection: ``scorer(estimator, X, y)``, higher is better."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn import get_config
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import MetadataRequest

from skpbas._inputs.mask_reader import masks_at_map_size
from skpbas._inputs.targets import anomalous_rows, are_masks, check_length
from skpbas.errors import InvalidTargetError
from skpbas.metrics import image_ap, image_auroc, pixel_metrics

__all__ = [
    "SCORERS",
    "AnomalyScorer",
    "image_ap_scorer",
    "image_auroc_scorer",
    "pixel_ap_scorer",
    "pixel_auroc_scorer",
    "pixel_pro_scorer",
]

_IMAGE_METRICS: Mapping[str, Callable[[Any, Any], float]] = {"image_auroc": image_auroc, "image_ap": image_ap}
_PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_pro")
_METRICS = (*_IMAGE_METRICS, *_PIXEL_METRICS)

_Result = tuple[float, NDArray[np.float32]]


class AnomalyScorer:
    """Measure a fitted detector on images with labels or masks, all metrics from one pass over the images.

    Give it to ``GridSearchCV``, ``cross_validate`` and their like as ``scoring=``; with several metrics ``refit=``
    names the one that decides. The metrics are those of :mod:`skpbas.metrics`.

    Parameters
    ----------
    metrics : str or sequence of str, default=("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")
        One name: a call returns a float. Several: it returns a dict.
    max_fpr : float, default=0.3
        Where the integration of "pixel_pro" ends, in (0, 1].
    undefined : "raise" or float, default="raise"
        What to do about a metric that y leaves undefined because it shows one class only. "raise": an error; a
        number, such as ``float("nan")``: return it. ``learning_curve``, ``validation_curve`` and, by default, halving
        searches score the training images too, and these are all good.

    Raises
    ------
    ValueError
        An unknown metric, or a `max_fpr` or `undefined` out of range.

    See Also
    --------
    skpbas.model_selection.NormalKFold : Puts good and anomalous images into every test fold.

    Notes
    -----
    The estimator may be a :class:`~skpbas.PBASDetector`, a ``Pipeline`` that ends in one, a fitted search of either, or
    anything with ``score_samples`` (for image metrics) and ``iter_scores_and_maps`` (for pixel metrics).

    Pixel metrics hold the maps of all images scored, float32 at the model's size: 0.25 MiB an image at 256 pixels.

    Where metadata routing is enabled, ``scorer.set_score_request(masks=True)`` lets masks come apart from y:
    ``search.fit(X, labels, masks=masks)``. Image metrics then read y, pixel metrics masks.

    A scikit-learn search takes an error of a scorer for nan by default, with a warning; ``error_score="raise"`` stops
    at it.

    Examples
    --------
    >>> from skpbas import PBASDetector
    >>> from skpbas.datasets import make_inspection_images
    >>> from skpbas.scorers import AnomalyScorer
    >>> data = make_inspection_images(8, 4, size=64, random_state=0)
    >>> detector = PBASDetector("embedded", image_size=64, max_epochs=1, random_state=0)
    >>> detector = detector.fit(data.images, data.labels)
    >>> scores = AnomalyScorer(("image_auroc", "pixel_pro"))(detector, data.images, data.masks)
    >>> sorted(scores)
    ['image_auroc', 'pixel_pro']
    """

    def __init__(
        self, metrics: str | Iterable[str] = _METRICS, *, max_fpr: float = 0.3, undefined: str | float = "raise"
    ) -> None:
        self.metrics = metrics if isinstance(metrics, str) else tuple(metrics)
        self.max_fpr, self.undefined = max_fpr, undefined
        if unknown := [name for name in self._names if name not in _METRICS]:
            raise ValueError(f"metrics holds {unknown}; expected names out of {list(_METRICS)}")
        if not self._names:
            raise ValueError(f"metrics is empty; expected names out of {list(_METRICS)}")
        if not (isinstance(max_fpr, (int, float)) and 0 < max_fpr <= 1):
            raise ValueError(f"max_fpr is {max_fpr!r}; expected a number in (0, 1]")
        if not (undefined == "raise" or isinstance(undefined, (int, float))):
            raise ValueError(f"undefined is {undefined!r}; expected 'raise' or a number, such as float('nan')")

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.metrics,) if isinstance(self.metrics, str) else self.metrics

    def __repr__(self) -> str:
        given = [repr(self.metrics)] if self.metrics != _METRICS else []
        given += [f"max_fpr={self.max_fpr!r}"] if self.max_fpr != 0.3 else []
        given += [f"undefined={self.undefined!r}"] if self.undefined != "raise" else []
        return f"AnomalyScorer({', '.join(given)})"

    def __call__(self, estimator: Any, X: Any, y: Any = None, *, masks: Any = None) -> float | dict[str, float]:
        """Score a fitted estimator.

        Parameters
        ----------
        estimator : object
            Fitted.
        X : array or sequence of images
            As for :class:`~skpbas.PBASDetector`.
        y : labels or masks
            Labels (n,): +1 for a good and -1 for an anomalous image, or {0, 1} or booleans with 1 for an anomalous one;
            for image metrics. Masks: an array (n, h, w), or a sequence of arrays, PIL images, paths, and None for good
            images, each at its image's own size or at the map's, non-zero where defective; for all metrics.
        masks : masks, default=None
            What pixel metrics take in place of y, where masks are routed.

        Returns
        -------
        float or dict of str to float
            The metric, or a dict of them in the order of ``metrics``.

        Raises
        ------
        InvalidTargetError
            y or masks do not fit the images or the metrics, or show one class only.
        InvalidImageError
            An image that cannot be used.
        TypeError
            The estimator has no method to score with.
        """
        X = X if hasattr(X, "__len__") else list(X)
        detector, X = _detector_and_images(estimator, X)
        of_images = [name for name in self._names if name in _IMAGE_METRICS]
        of_pixels = [name for name in self._names if name in _PIXEL_METRICS]
        truth = _Truth(len(X), y, masks, of_images, of_pixels)
        if of_pixels:
            results, map_shape = _start(_method(detector, "iter_scores_and_maps", of_pixels)(X), detector)
            truth.bring_to_maps(X, map_shape, getattr(detector, "resize", "stretch"))
        values: dict[str, float] = {}  # y and masks are checked before the images have all been through the network
        if of_images and (problem := truth.one_class_of_images()):
            values |= self._undefined(of_images, problem)
        if of_pixels and (problem := truth.no_defective_pixel()):
            values |= self._undefined(of_pixels, problem)
        wanted = [name for name in self._names if name not in values]
        if wanted and of_pixels:
            scores, maps = zip(*results, strict=True)
            names = [name for name in wanted if name in _PIXEL_METRICS]
            values |= pixel_metrics(truth.seen, maps, metrics=names, max_fpr=self.max_fpr) if names else {}
        elif wanted:
            scores = _method(detector, "score_samples", of_images)(X)
        for name in wanted:
            if name in _IMAGE_METRICS:
                values[name] = _IMAGE_METRICS[name](truth.anomalous, -np.asarray(scores, dtype=np.float64))
        return values[self.metrics] if isinstance(self.metrics, str) else {name: values[name] for name in self._names}

    def _undefined(self, names: Sequence[str], problem: str) -> dict[str, float]:
        if self.undefined == "raise":
            raise InvalidTargetError(f"{' and '.join(names)} cannot be computed: {problem}")
        return dict.fromkeys(names, float(self.undefined))

    def set_score_request(self, *, masks: bool | str | None) -> Self:
        """Say whether masks are routed to this scorer.

        Parameters
        ----------
        masks : bool, str or None
            True: they are, under this name; a str: under that name; False: they are not; None: whoever passes masks is
            asked to decide.

        Returns
        -------
        AnomalyScorer
            Itself; for a scorer of this module (``pixel_pro_scorer``), which all code shares, a copy.

        Raises
        ------
        RuntimeError
            Metadata routing is not enabled.
        """
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                "set_score_request needs sklearn.set_config(enable_metadata_routing=True); without routing, give masks "
                "as y"
            )
        scorer = copy.copy(self) if any(self is shared for shared in SCORERS.values()) else self
        scorer._masks_request = masks
        return scorer

    def get_metadata_routing(self) -> MetadataRequest:
        """Return what scikit-learn may route to a call.

        Returns
        -------
        MetadataRequest
        """
        request = MetadataRequest(owner=self)
        request.score.add_request(param="masks", alias=self._masks_request)
        return request

    _masks_request: bool | str | None = None


image_auroc_scorer = AnomalyScorer("image_auroc")
image_ap_scorer = AnomalyScorer("image_ap")
pixel_auroc_scorer = AnomalyScorer("pixel_auroc")
pixel_ap_scorer = AnomalyScorer("pixel_ap")
pixel_pro_scorer = AnomalyScorer("pixel_pro")

SCORERS: dict[str, AnomalyScorer] = {
    "image_auroc": image_auroc_scorer,
    "image_ap": image_ap_scorer,
    "pixel_auroc": pixel_auroc_scorer,
    "pixel_ap": pixel_ap_scorer,
    "pixel_pro": pixel_pro_scorer,
}
"""The scorers of one metric each, by its name."""


class _Truth:
    """What y and masks say of the images, checked as far as can be before these have been through the network.

    Attributes
    ----------
    anomalous : ndarray of shape (n,), bool
        By y, where it holds labels; else by the masks.
    seen : list of ndarray (H, W) or None
        The masks at the maps' size, after :meth:`bring_to_maps`.
    """

    def __init__(self, n_images: int, y: Any, masks: Any, of_images: Sequence[str], of_pixels: Sequence[str]) -> None:
        if y is None and masks is None:
            raise InvalidTargetError(
                f"{' and '.join([*of_images, *of_pixels])} need y: labels (+1 good, -1 anomalous), or masks for all "
                "metrics; for good images alone, skpbas.model_selection.synthetic_validation makes defective ones"
            )
        self.n_images = n_images
        self.seen: list[NDArray[np.bool_] | None] = []
        self._name, self._masks = ("y", y) if masks is None else ("masks", masks)
        self._labelled = y is not None and not (masks is None and are_masks(y))
        if masks is not None:
            check_length(masks, n_images, "masks")
            if not are_masks(masks):
                raise InvalidTargetError("masks holds labels; expected masks (h, w), and None for good images")
        if self._labelled or not of_pixels:
            name, target = ("masks", masks) if y is None else ("y", y)
            self.anomalous = anomalous_rows(target, n_images, name=name, zero_one=True)
        else:
            check_length(y if masks is None else masks, n_images, self._name)
        if of_pixels and not are_masks(self._masks):
            raise InvalidTargetError(
                f"{' and '.join(of_pixels)} compare pixels, and y holds labels: give masks as y (arrays, PIL images or "
                "paths, None for good images), or beside it with metadata routing: "
                "scorer.set_score_request(masks=True) and fit(X, y, masks=masks)"
            )

    def bring_to_maps(self, X: Any, map_shape: tuple[int, int], resize: str) -> None:
        """Read the masks, and bring them to where the maps are."""
        self.seen, anomalous = masks_at_map_size(self._masks, X, map_shape, resize, name=self._name)
        if self._labelled and (contradicting := np.flatnonzero(self.anomalous != anomalous)).size:
            i = contradicting[0]
            raise InvalidTargetError(
                f"y[{i}] says {'anomalous' if self.anomalous[i] else 'good'}, and masks[{i}] marks "
                f"{'pixels' if anomalous[i] else 'no pixel'} ({contradicting.size} of {self.n_images} samples disagree)"
            )
        self.anomalous = anomalous

    def one_class_of_images(self) -> str:
        """Say what is wrong where image metrics are undefined."""
        n_anomalous = int(self.anomalous.sum())
        if 0 < n_anomalous < self.n_images:
            return ""
        return f"all {self.n_images} images are {'anomalous' if n_anomalous else 'good'}; {_BOTH}"

    def no_defective_pixel(self) -> str:
        """Say what is wrong where pixel metrics are undefined."""
        if any(mask is not None for mask in self.seen):
            return ""
        if n := int(self.anomalous.sum()):
            return f"the defects of {n} masks are too small to be left at the maps' size; raise image_size"
        return f"all {self.n_images} images are good, no mask marks a pixel; {_BOTH}"


_BOTH = (
    "expected good and anomalous ones. In cross-validation, cv=skpbas.model_selection.NormalKFold() puts both into "
    "every test fold; where training images are scored too, as in learning_curve, give "
    "AnomalyScorer(..., undefined=float('nan'))"
)


def _detector_and_images(estimator: Any, X: Any) -> tuple[Any, Any]:
    """Look into searches and pipelines; images go through a pipeline's earlier steps."""
    while True:
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif isinstance(estimator, Pipeline):
            *earlier, (_, last) = estimator.steps
            for _, step in earlier:
                X = X if step is None or step == "passthrough" else step.transform(X)
            estimator = last
        else:
            return estimator, X


def _start(results: Iterator[_Result], detector: Any) -> tuple[Iterator[_Result], tuple[int, int]]:
    """Return the results and the maps' height and width, which a detector of another kind shows by its first map."""
    shape = getattr(detector, "map_shape_", None)
    if shape is None:
        first = next(results)
        shape, results = first[1].shape, itertools.chain([first], results)
    return results, (int(shape[0]), int(shape[1]))


def _method(detector: Any, name: str, metrics: Sequence[str]) -> Callable[..., Any]:
    method = getattr(detector, name, None)
    if not callable(method):
        raise TypeError(
            f"{' and '.join(metrics)} need an estimator with {name}, such as PBASDetector or a pipeline that ends in "
            f"one; got {type(detector).__name__}"
        )
    return method
