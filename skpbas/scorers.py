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

from skpbas._inputs.mask_reader import masks_at_map_size, resize_of
from skpbas._inputs.targets import anomalous_rows, are_masks, entries_of
from skpbas.errors import InvalidTargetError
from skpbas.metrics import image_ap, image_auroc, image_partial_auroc, miss_rate, pixel_metrics
from skpbas.metrics._image_metrics import checked_max_fpr

__all__ = [
    "SCORERS",
    "AnomalyScorer",
    "image_ap_scorer",
    "image_auroc_scorer",
    "image_partial_auroc_scorer",
    "neg_miss_rate_scorer",
    "pixel_ap_scorer",
    "pixel_auroc_scorer",
    "pixel_pro_scorer",
]

_IMAGE_METRICS: Mapping[str, Callable[[Any, Any, float], float]] = {
    "image_auroc": lambda labels, scores, _: image_auroc(labels, scores),
    "image_ap": lambda labels, scores, _: image_ap(labels, scores),
    "image_partial_auroc": image_partial_auroc,
    "neg_miss_rate": lambda labels, scores, max_fpr: -miss_rate(labels, scores, max_fpr),
}
_PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "pixel_pro")
_METRICS = (*_IMAGE_METRICS, *_PIXEL_METRICS)
_DEFAULT_METRICS = ("image_auroc", "image_ap", *_PIXEL_METRICS)

_Result = tuple[float, NDArray[np.float32]]


class AnomalyScorer:
    """Evaluate a fitted detector on images with labels or masks, with all metrics from one pass over the images.

    Pass it as ``scoring=`` to ``GridSearchCV``, ``cross_validate`` and similar tools; with several metrics, ``refit=``
    selects the one to optimize. The metrics are those of :mod:`skpbas.metrics`.

    Parameters
    ----------
    metrics : str or sequence of str, default=("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "pixel_pro")
        With one name, a call returns a float; with several, a dict. Also "image_partial_auroc" and "neg_miss_rate",
        which is minus the miss rate, so that higher is better.
    max_fpr : float, default=0.3
        Upper limit of the integration of "pixel_pro", in (0, 1].
    max_image_fpr : float, default=0.05
        Largest false alarm rate of "image_partial_auroc" and "neg_miss_rate", in (0, 1].
    undefined : "raise" or float, default="raise"
        What to do if a metric is undefined because y contains only one class. "raise": raise an error; a number, such
        as ``float("nan")``: return it. ``learning_curve``, ``validation_curve`` and, by default, halving searches also
        score the training images, which are all normal.

    Raises
    ------
    ValueError
        An unknown metric, or an invalid `max_fpr` or `undefined`.

    See Also
    --------
    skpbas.model_selection.NormalKFold : Puts normal and anomalous images into every test fold.

    Notes
    -----
    The estimator may be a :class:`~skpbas.PBASDetector`, a ``Pipeline`` that ends in one, a fitted search over either,
    or any object with ``score_samples`` (for image metrics) and ``iter_scores_and_maps`` (for pixel metrics).

    Pixel metrics hold the anomaly maps of all images in memory: 0.25 MiB per image at 256 pixels (float32).

    With metadata routing enabled, ``scorer.set_score_request(masks=True)`` allows passing masks separately from y:
    ``search.fit(X, labels, masks=masks)``. Image metrics then use y, pixel metrics masks.

    By default a scikit-learn search turns an error of a scorer into nan, with a warning; ``error_score="raise"``
    propagates it.

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
        self,
        metrics: str | Iterable[str] = _DEFAULT_METRICS,
        *,
        max_fpr: float = 0.3,
        max_image_fpr: float = 0.05,
        undefined: str | float = "raise",
    ) -> None:
        self.metrics = metrics if isinstance(metrics, str) else tuple(metrics)
        self.max_fpr, self.max_image_fpr, self.undefined = max_fpr, max_image_fpr, undefined
        if unknown := [name for name in self._names if name not in _METRICS]:
            raise ValueError(f"metrics contains {unknown}; expected names from {list(_METRICS)}")
        if not self._names:
            raise ValueError(f"metrics is empty; expected names from {list(_METRICS)}")
        for name, limit in (("max_fpr", max_fpr), ("max_image_fpr", max_image_fpr)):
            checked_max_fpr(limit, name)
        if not (undefined == "raise" or isinstance(undefined, (int, float))):
            raise ValueError(f"undefined is {undefined!r}; expected 'raise' or a number, such as float('nan')")

    @property
    def _names(self) -> tuple[str, ...]:
        return (self.metrics,) if isinstance(self.metrics, str) else self.metrics

    @property
    def __name__(self) -> str:
        """The metric, or "anomaly_scores" for several: scikit-learn's displays of curves label their axes with it."""
        return self.metrics if isinstance(self.metrics, str) else "anomaly_scores"

    def __repr__(self) -> str:
        given = [repr(self.metrics)] if self.metrics != _DEFAULT_METRICS else []
        given += [f"max_fpr={self.max_fpr!r}"] if self.max_fpr != 0.3 else []
        given += [f"max_image_fpr={self.max_image_fpr!r}"] if self.max_image_fpr != 0.05 else []
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
            For image metrics, labels (n,): +1 for normal and -1 for anomalous images, or {0, 1} or booleans with 1 for
            anomalous ones. For all metrics, masks: an array (n, h, w), or a sequence of arrays, PIL images, paths, and
            None, NaN or "" for normal images; see :func:`skpbas.masks.read_mask`. A mask has the size of its image as
            the detector receives it, after the transformers of a pipeline, or the size of the anomaly map, unless
            ``resize="crop"`` or a transformer may have cut off a part of the image.
        masks : masks, default=None
            Used by pixel metrics instead of y, if masks are routed.

        Returns
        -------
        float or dict of str to float
            The metric, or a dict of metrics in the order of ``metrics``.

        Raises
        ------
        InvalidTargetError
            y or masks do not match the images or the metrics, cannot be read, or contain only one class.
        InvalidImageError
            An unusable image.
        TypeError
            The estimator lacks the required method.
        """
        X = X if hasattr(X, "__len__") else list(X)
        given = X
        detector, X = detector_and_images(estimator, X)
        image_names = [name for name in self._names if name in _IMAGE_METRICS]
        pixel_names = [name for name in self._names if name in _PIXEL_METRICS]
        truth = _Truth(len(X), y, masks, image_names, pixel_names)
        if pixel_names:
            results, map_shape = _with_map_shape(_method(detector, "iter_scores_and_maps", pixel_names)(X), detector)
            resize = resize_of(detector)
            truth.resample_masks(X, map_shape, resize, before=None if X is given else given)
        values: dict[str, float] = {}  # y and masks are checked before the network has processed all images
        if image_names and (problem := truth.undefined_for_images()):
            values |= self._undefined(image_names, problem)
        if pixel_names and (problem := truth.undefined_for_pixels()):
            values |= self._undefined(pixel_names, problem)
        wanted = [name for name in self._names if name not in values]
        if wanted and pixel_names:
            scores, maps = zip(*results, strict=True)
            names = [name for name in wanted if name in _PIXEL_METRICS]
            values |= pixel_metrics(truth.resized, maps, metrics=names, max_fpr=self.max_fpr) if names else {}
        elif wanted:
            scores = _method(detector, "score_samples", image_names)(X)
        for name in wanted:
            if name in _IMAGE_METRICS:
                image_scores = -np.asarray(scores, dtype=np.float64)
                values[name] = _IMAGE_METRICS[name](truth.anomalous, image_scores, self.max_image_fpr)
        return values[self.metrics] if isinstance(self.metrics, str) else {name: values[name] for name in self._names}

    def _undefined(self, names: Sequence[str], problem: str) -> dict[str, float]:
        if self.undefined == "raise":
            raise InvalidTargetError(f"{' and '.join(names)} cannot be computed: {problem}")
        return dict.fromkeys(names, float(self.undefined))

    def set_score_request(self, *, masks: bool | str | None) -> Self:
        """Set whether masks are routed to this scorer.

        Parameters
        ----------
        masks : bool, str or None
            True: route masks; a str: route them under that name; False: do not; None: raise an error if masks are
            passed.

        Returns
        -------
        AnomalyScorer
            The scorer itself; for a shared scorer of this module, such as ``pixel_pro_scorer``, a copy.

        Raises
        ------
        RuntimeError
            Metadata routing is not enabled.
        """
        if not get_config()["enable_metadata_routing"]:
            raise RuntimeError(
                "set_score_request needs sklearn.set_config(enable_metadata_routing=True); without routing, pass masks "
                "as y"
            )
        scorer = copy.copy(self) if any(self is shared for shared in SCORERS.values()) else self
        scorer._masks_request = masks
        return scorer

    def get_metadata_routing(self) -> MetadataRequest:
        """Return the metadata routing of this scorer.

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
image_partial_auroc_scorer = AnomalyScorer("image_partial_auroc")
neg_miss_rate_scorer = AnomalyScorer("neg_miss_rate")
pixel_auroc_scorer = AnomalyScorer("pixel_auroc")
pixel_ap_scorer = AnomalyScorer("pixel_ap")
pixel_pro_scorer = AnomalyScorer("pixel_pro")

SCORERS: dict[str, AnomalyScorer] = {
    "image_auroc": image_auroc_scorer,
    "image_ap": image_ap_scorer,
    "image_partial_auroc": image_partial_auroc_scorer,
    "neg_miss_rate": neg_miss_rate_scorer,
    "pixel_auroc": pixel_auroc_scorer,
    "pixel_ap": pixel_ap_scorer,
    "pixel_pro": pixel_pro_scorer,
}
"""Single-metric scorers by name."""


class _Truth:
    """Labels and masks of the images, checked as far as possible before the network runs.

    Attributes
    ----------
    anomalous : ndarray of shape (n,), bool
        From y if it has labels, otherwise from the masks.
    resized : list of ndarray (H, W) or None
        The masks at the size of the anomaly maps, after :meth:`resample_masks`.
    """

    def __init__(
        self, n_images: int, y: Any, masks: Any, image_names: Sequence[str], pixel_names: Sequence[str]
    ) -> None:
        if y is None and masks is None:
            raise InvalidTargetError(
                f"y is required for {' and '.join([*image_names, *pixel_names])}: labels (+1 normal, -1 anomalous), or "
                "masks for all metrics; without anomalous images, see skpbas.model_selection.synthetic_validation"
            )
        self.n_images, self._resize = n_images, "stretch"
        self.resized: list[NDArray[np.bool_] | None] = []
        self._name = "y" if masks is None else "masks"
        self._masks = entries_of(y if masks is None else masks, n_images, self._name)
        hold_masks = are_masks(self._masks)
        if masks is not None and not hold_masks:
            raise InvalidTargetError("masks contains labels; expected masks (h, w), and None for normal images")
        self._apart = masks is not None and y is not None and y is not masks
        if self._apart or not (pixel_names and hold_masks):
            name, target = ("y", y) if self._apart else (self._name, self._masks)
            self.anomalous = anomalous_rows(target, n_images, name=name, zero_one=True)
        if pixel_names and not hold_masks:
            raise InvalidTargetError(
                f"cannot compute {' and '.join(pixel_names)} from labels: pass masks as y (arrays, PIL images or "
                "paths, None for normal images), or separately with metadata routing: "
                "scorer.set_score_request(masks=True) and fit(X, y, masks=masks)"
            )

    def resample_masks(self, X: Any, map_shape: tuple[int, int], resize: str, before: Any) -> None:
        """Read the masks, and resample them to the anomaly maps."""
        self._resize = resize
        self.resized, anomalous = masks_at_map_size(self._masks, X, map_shape, resize, name=self._name, before=before)
        if self._apart and (contradicting := np.flatnonzero(self.anomalous != anomalous)).size:
            i = contradicting[0]
            raise InvalidTargetError(
                f"y[{i}] is {'anomalous' if self.anomalous[i] else 'normal'}, but masks[{i}] marks "
                f"{'pixels' if anomalous[i] else 'no pixel'} ({contradicting.size} of {self.n_images} samples disagree)"
            )
        self.anomalous = anomalous

    def undefined_for_images(self) -> str:
        """Return why image metrics are undefined, or an empty string."""
        n_anomalous = int(self.anomalous.sum())
        if 0 < n_anomalous < self.n_images:
            return ""
        return f"all {self.n_images} images are {'anomalous' if n_anomalous else 'normal'}; {_EXPECTED_BOTH}"

    def undefined_for_pixels(self) -> str:
        """Return why pixel metrics are undefined, or an empty string."""
        if any(mask is not None for mask in self.resized):
            return ""
        if n := int(self.anomalous.sum()):
            outside = 'are outside the part that resize="crop" keeps, or ' if self._resize == "crop" else ""
            return f"the defects of {n} masks {outside}vanish at the size of the anomaly maps; increase image_size"
        return f"all {self.n_images} images are normal, no mask marks a pixel; {_EXPECTED_BOTH}"


_EXPECTED_BOTH = (
    "expected normal and anomalous ones. In cross-validation, cv=skpbas.model_selection.NormalKFold() puts both into "
    "every test fold; if training images are scored too, as in learning_curve, use "
    "AnomalyScorer(..., undefined=float('nan'))"
)


def detector_and_images(estimator: Any, X: Any) -> tuple[Any, Any]:
    """Unwrap searches and pipelines, and apply the earlier steps of a pipeline to the images."""
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


def _with_map_shape(results: Iterator[_Result], detector: Any) -> tuple[Iterator[_Result], tuple[int, int]]:
    """Return the results and the size (height, width) of the anomaly maps; reads the first one if unknown."""
    shape = getattr(detector, "map_shape_", None)
    if shape is None:
        first = next(results)
        shape, results = first[1].shape, itertools.chain([first], results)
    return results, (int(shape[0]), int(shape[1]))


def _method(detector: Any, name: str, metrics: Sequence[str]) -> Callable[..., Any]:
    method = getattr(detector, name, None)
    if not callable(method):
        raise TypeError(
            f"cannot compute {' and '.join(metrics)}: expected an estimator with {name}, such as PBASDetector or a "
            f"pipeline that ends in one; got {type(detector).__name__}"
        )
    return method
