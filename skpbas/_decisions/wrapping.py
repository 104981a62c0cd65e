"""Anomaly maps, regions and streams of a detector that an estimator wraps, judged by the estimator's threshold."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpbas._decisions.deciding import UNSURE_RATE, check_min_area, check_unsure_rate
from skpbas._decisions.regions import Region, regions_of
from skpbas._features.streaming import Result
from skpbas._inputs.images import check_stream

__all__ = ["WrappingMixin"]


@dataclass(frozen=True)
class Judged:
    """What an estimator says about n images, by the scores of the detectors that it wraps.

    Attributes
    ----------
    scores, margins, p_values : ndarray of shape (n,)
    """

    scores: NDArray[np.float64]
    margins: NDArray[np.float64]
    p_values: NDArray[np.float64]

    def verdicts(self, unsure_rate: float) -> NDArray[np.str_]:
        """Return "anomalous" for what is flagged, "unsure" for other p-values up to a rate, "normal" for the rest."""
        return np.where(self.margins < 0, "anomalous", np.where(self.p_values <= unsure_rate, "unsure", "normal"))


def _detector_has(method: str) -> Callable[[Any], bool]:
    """Return a check that the wrapped detector has a method, for ``available_if``."""

    def check(self: Any) -> bool:
        getattr(getattr(self, "detector_", self.detector), method)
        return True

    return check


class WrappingMixin:
    """Methods of a fitted estimator whose ``detector_`` makes anomaly maps, and whose threshold decides.

    ``_judges()`` are the detectors whose scores ``_judge`` turns into its own: (n_judges, n) into :class:`Judged`.
    """

    detector_: Any
    _snapshot: Callable[[], Any]

    @property
    def map_threshold_(self) -> float:
        """Threshold of the detector on its anomaly maps."""
        threshold: float = self.detector_.map_threshold_
        return threshold

    @available_if(_detector_has("anomaly_map"))  # type: ignore[untyped-decorator]
    def anomaly_map(self, X: Any, size: str = "model") -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return the detector's anomaly maps: see :meth:`PBASDetector.anomaly_map() <skpbas.PBASDetector.anomaly_map>`.

        Parameters
        ----------
        X : array or sequence of images
        size : {"model", "input"}, default="model"

        Returns
        -------
        ndarray of shape (n, H, W), or list of ndarray of shape (H_i, W_i)
        """
        check_is_fitted(self)
        return self.detector_.anomaly_map(X, size=size)

    @available_if(_detector_has("iter_anomaly_maps"))  # type: ignore[untyped-decorator]
    def iter_anomaly_maps(self, X: Any, size: str = "model") -> Iterator[NDArray[np.float32]]:
        """Yield the anomaly maps of :meth:`anomaly_map` one by one, in constant memory.

        Parameters
        ----------
        X : array, sequence or iterable of images
        size : {"model", "input"}, default="model"

        Yields
        ------
        ndarray of shape (H, W), float32
        """
        check_is_fitted(self)
        return self.detector_.iter_anomaly_maps(X, size=size)

    @available_if(_detector_has("anomaly_mask"))  # type: ignore[untyped-decorator]
    def anomaly_mask(self, X: Any, size: str = "model") -> NDArray[np.bool_] | list[NDArray[np.bool_]]:
        """Return which pixels are anomalous: those where the anomaly map is above ``map_threshold_``.

        See :meth:`PBASDetector.anomaly_mask() <skpbas.PBASDetector.anomaly_mask>`. The threshold is the detector's: the
        guaranteed rate is one of images, not of pixels.

        Parameters
        ----------
        X : array or sequence of images
        size : {"model", "input"}, default="model"

        Returns
        -------
        ndarray of shape (n, H, W), or list of ndarray of shape (H_i, W_i), bool
        """
        check_is_fitted(self)
        return self.detector_.anomaly_mask(X, size=size)

    @available_if(_detector_has("find_regions"))  # type: ignore[untyped-decorator]
    def find_regions(self, X: Any, size: str = "input", min_area: int = 1) -> list[list[Region]]:
        """Return the connected regions of each image where its anomaly map is above ``map_threshold_``.

        As :meth:`PBASDetector.find_regions() <skpbas.PBASDetector.find_regions>`, but an image that :meth:`predict`
        of this estimator calls anomalous has at least one region.

        Parameters
        ----------
        X : array or sequence of images
        size : {"input", "model"}, default="input"
        min_area : int, default=1

        Returns
        -------
        list of list of Region
            For each image, most anomalous first.
        """
        check_min_area(min_area)
        check_is_fitted(self)
        now = self._snapshot()
        return [
            regions_of(anomaly_map, now.map_threshold_, min_area=int(min_area), at_least_one=judged.margins[0] < 0)
            for judged, anomaly_map in now._iter_judged(X, size)
        ]

    @available_if(_detector_has("iter_scores_and_maps"))  # type: ignore[untyped-decorator]
    def iter_scores_and_maps(self, X: Any, size: str = "model") -> Iterator[tuple[float, NDArray[np.float32]]]:
        """Yield ``score_samples`` and ``anomaly_map`` of one image after another, in constant memory.

        Parameters
        ----------
        X : array, sequence or iterable of images
        size : {"model", "input"}, default="model"

        Yields
        ------
        (float, ndarray of shape (H, W))
        """
        judged = self._iter_judged(X, size)
        return ((float(judgment.scores[0]), anomaly_map) for judgment, anomaly_map in judged)

    @available_if(_detector_has("score_stream"))  # type: ignore[untyped-decorator]
    def score_stream(
        self, images: Any, *, on_error: str = "raise", maps: bool = True, unsure_rate: float = UNSURE_RATE
    ) -> Iterator[Result]:
        """Yield a result for each image of a stream, in order.

        Parameters
        ----------
        images : array, sequence or iterable of images
        on_error : {"raise", "skip"}, default="raise"
        maps : bool, default=True
            As for :meth:`PBASDetector.score_stream() <skpbas.PBASDetector.score_stream>`. With ``cv``, an image takes
            one pass for each fold, and one more with maps.
        unsure_rate : float in (0, 0.5], default=0.05
            As for :meth:`verdicts`.

        Yields
        ------
        Result
            Its ``label``, ``p_value`` and ``verdict`` are those of :meth:`predict`, :meth:`p_values` and
            :meth:`verdicts`.
        """
        check_unsure_rate(unsure_rate)
        check_is_fitted(self)
        now = self._snapshot()
        judges = now._judges()
        detectors = now._with_maps(judges) if maps else judges
        streams = [
            detector.score_stream(items, on_error=on_error, maps=maps and detector is now.detector_)
            for detector, items in zip(detectors, _for_each(detectors, images, "images"), strict=True)
        ]

        def judged(results: tuple[Result, ...]) -> Result:
            unusable = next((result for result in results if result.score is None), None)
            if unusable is not None:
                return unusable
            scores = np.array([[result.score] for result in results[-len(judges) :]])
            judgment = now._judge(scores)
            return replace(
                results[0],
                score=float(judgment.scores[0]),
                label=1 if judgment.margins[0] >= 0 else -1,
                p_value=float(judgment.p_values[0]),
                verdict=str(judgment.verdicts(unsure_rate)[0]),
            )

        return map(judged, zip(*streams, strict=True))

    def _with_maps(self, judges: list[Any]) -> list[Any]:
        """Return detectors whose first makes the anomaly maps, and whose last are the judges."""
        return judges if judges[0] is self.detector_ else [self.detector_, *judges]

    def _iter_judged(self, X: Any, size: str) -> Iterator[tuple[Judged, NDArray[np.float32]]]:
        """Return an iterator over what is said about each image, and its anomaly map."""
        check_is_fitted(self)
        now = self._snapshot()
        judges = now._judges()
        detectors = now._with_maps(judges)
        streams = [
            detector.iter_scores_and_maps(items, size=size if detector is now.detector_ else "model")
            for detector, items in zip(detectors, _for_each(detectors, X, "X"), strict=True)
        ]
        return (
            (now._judge(np.array([[score] for score, _ in results[-len(judges) :]])), results[0][1])
            for results in zip(*streams, strict=True)
        )


def _for_each(detectors: list[Any], X: Any, name: str) -> list[Any]:
    """Return the images for each of several detectors that are advanced together; items of an iterator are shared."""
    if len(detectors) == 1 or (hasattr(X, "__len__") and hasattr(X, "__getitem__")):
        return [X] * len(detectors)
    return _shared(iter(check_stream(X, name)), len(detectors))


def _shared(source: Iterator[Any], n: int) -> list[Iterator[Any]]:
    """Return n iterators over the items of one; an item is held until all have taken it, not longer.

    ``itertools.tee`` holds up to 57 items longer.
    """
    waiting: list[deque[Any]] = [deque() for _ in range(n)]

    def items(own: deque[Any]) -> Iterator[Any]:
        while True:
            if not own:
                try:
                    item = next(source)
                except StopIteration:
                    return
                for queue in waiting:
                    queue.append(item)
                del item
            yield own.popleft()

    return [items(queue) for queue in waiting]
