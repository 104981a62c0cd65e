"""A threshold with a promise: conformal prediction on good images that training has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, OutlierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags, indexable
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skpbas._compat import HasMethods, Interval, RealNotInt, _num_samples, _safe_indexing
from skpbas._inputs.images import check_images
from skpbas._inputs.parameters import draw_seed
from skpbas._inputs.targets import normal_rows
from skpbas._training.pickling import SealingMixin
from skpbas.errors import CalibrationError

__all__ = ["ConformalThreshold"]


def _detector_has(method: str) -> Callable[[ConformalThreshold], bool]:
    """Say whether the detector in use has a method: what it does not have is not there in the wrapper either."""

    def check(self: ConformalThreshold) -> bool:
        getattr(getattr(self, "detector_", self.detector), method)
        return True

    return check


class ConformalThreshold(SealingMixin, MetaEstimatorMixin, OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """Flag at most a given share of unseen good images, whatever the detector and the law of its scores.

    Split conformal prediction [1]_: some good images are held out of training. Their n scores s_1 <= ... <= s_n set
    the threshold: with ``k = floor(max_false_alarm_rate * (n + 1))``, ``offset_ = s_k``, and an image is flagged if its
    score is below. A new good image is as likely to fall between any two of them, so that

        P(flagged) <= k / (n + 1) <= max_false_alarm_rate,

    with equality on the left where no scores tie [2]_. n must be at least 1 / max_false_alarm_rate - 1: 99 images for
    1 %.

    Parameters
    ----------
    detector : estimator with ``fit`` and ``score_samples``
        Such as :class:`~skpbas.PBASDetector`; a clone of it is fitted. Its own threshold is not used. In a
        ``sklearn.frozen.FrozenEstimator`` it stays as it is, and all good images given calibrate: then they must be
        others than those it was trained on.
    max_false_alarm_rate : float, default=0.01
        Largest probability, in (0, 1), with which a good image may be flagged.
    calibration_size : float or int, default=0.5
        Good images that are held out: a share in (0, 1), rounded up, or a number. Ignored with a frozen detector.
    random_state : int, RandomState or None, default=None
        Draws the images that are held out. The global stream of numpy is neither read nor changed.

    Attributes
    ----------
    detector_ : estimator
        The fitted detector.
    offset_ : float
        Threshold on ``score_samples``: ``decision_function = score_samples - offset_``.
    calibration_scores_ : ndarray of shape (n,), float64
        ``score_samples`` of the images held out, ascending.
    false_alarm_rate_ : float
        ``k / (n + 1)``: what is promised, at or a little below ``max_false_alarm_rate``.
    n_features_in_ : int
        Number of features, if the detector has it.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features, if the detector has them.

    Notes
    -----
    X is what the detector takes; for images an array (n, H, W, 3) or (n, H, W), or a sequence of paths, PIL images or
    arrays.

    The promise is for images that come as those held out came: the same part, camera and light (exchangeable, in
    statistics). It holds on the average over the choice of held-out images. With one choice, the rate in the long run
    follows the Beta distribution with parameters k and n + 1 - k: for n = 99 and 1 %, a mean of 1 % and a deviation of
    1 %; for n = 999, of 0.3 %. Several pictures of one part count as one: keep all of them on one side, with a frozen
    detector and a split by part. Images that y marks as anomalous are left out; unmarked ones among those held out
    lower the threshold, so that fewer images are flagged.

    ``cross_val_predict`` takes the labels as y with its default method, "predict". With "decision_function" it numbers
    them anew, from 0, for classifiers' sake: give it good images and no y.

    References
    ----------
    .. [1] Vovk, Gammerman, Shafer: "Algorithmic Learning in a Random World", Springer, 2005.
    .. [2] Bates, Candès, Lei, Romano, Sesia: "Testing for outliers with conformal p-values", Annals of Statistics
       51(1), 2023, doi:10.1214/22-AOS2244.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from skpbas.calibration import ConformalThreshold
    >>> good = np.random.default_rng(0).normal(size=(400, 2))
    >>> detector = ConformalThreshold(IsolationForest(random_state=0), max_false_alarm_rate=0.05, random_state=0)
    >>> detector.fit(good).predict([[0.0, 0.0], [9.0, 9.0]])
    array([ 1, -1])
    >>> detector.p_values([[9.0, 9.0]]) < 0.05
    array([ True])
    """

    detector_: Any
    offset_: float
    calibration_scores_: NDArray[np.float64]
    false_alarm_rate_: float

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "detector": [HasMethods(["fit", "score_samples"])],
        "max_false_alarm_rate": [Interval(Real, 0, 1, closed="neither")],
        "calibration_size": [
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="neither"),
        ],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        detector: Any,
        *,
        max_false_alarm_rate: float = 0.01,
        calibration_size: float | int = 0.5,
        random_state: Any = None,
    ) -> None:
        self.detector = detector
        self.max_false_alarm_rate = max_false_alarm_rate
        self.calibration_size = calibration_size
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the detector on some of the good images, and set the threshold by the others.

        Parameters
        ----------
        X : array or sequence
            What the detector takes.
        y : None, labels or masks
            Which are good, as in :meth:`PBASDetector.fit() <skpbas.PBASDetector.fit>`. Anomalous ones are left out.

        Returns
        -------
        ConformalThreshold
            Itself.

        Raises
        ------
        CalibrationError
            Too few good images are held out for ``max_false_alarm_rate``, or none is left to train on; said before
            training. Also if the detector gives scores that are not finite.
        InvalidTargetError
            y does not fit X.
        """
        self._validate_params()
        if isinstance(X, (str, bytes, PathLike)):
            check_images(X)  # says that a list is expected
        (X,), (y,) = indexable(X), indexable(y)  # of sparse formats not all are
        good = normal_rows(y, _num_samples(X))
        if len(good) == 0:
            raise CalibrationError("fit needs good samples, got n_samples=0: X is empty, or y marks all as anomalous")
        frozen = isinstance(self.detector, FrozenEstimator)
        n_calibration = len(good) if frozen else self._n_held_out(len(good))
        rank = self._rank(n_calibration, len(good))
        if frozen:
            check_is_fitted(self.detector)
            held_out, detector = good, self.detector
        else:
            order = np.random.default_rng(draw_seed(self.random_state)).permutation(good)
            held_out, training = np.sort(order[:n_calibration]), np.sort(order[n_calibration:])
            detector = clone(self.detector).fit(self._take(X, training))
        scores = np.sort(np.asarray(detector.score_samples(self._take(X, held_out)), dtype=np.float64))
        if not np.isfinite(scores).all():
            n_bad = np.count_nonzero(~np.isfinite(scores))
            raise CalibrationError(
                f"{type(detector).__name__}.score_samples gave NaN or infinity for {n_bad} of {n_calibration} held-out "
                "samples: they set no threshold"
            )
        self.detector_ = detector
        self.calibration_scores_ = scores
        self.offset_ = float(scores[rank - 1])
        self.false_alarm_rate_ = rank / (n_calibration + 1)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(detector, name):
                setattr(self, name, getattr(detector, name))
            else:
                self.__dict__.pop(name, None)  # of an earlier fit
        return self

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return the detector's scores; higher is more normal.

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), float64
        """
        check_is_fitted(self)
        return np.asarray(self.detector_.score_samples(X), dtype=np.float64)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return ``score_samples(X) - offset_``: negative for anomalous images.

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), float64
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Say of each image whether it is good, +1, or anomalous, -1.

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), int64
        """
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Return the probability that a good image would score as low as this one, or lower.

        The conformal p-value ``(1 + #{i : s_i <= s}) / (n + 1)`` of a score s. For a good image it is at or below any
        level a with probability at most a. An image is flagged where it is at or below ``max_false_alarm_rate``. Of
        images judged together, Benjamini and Hochberg's procedure on their p-values
        (``scipy.stats.false_discovery_control``) bounds the share of good ones among those flagged (the class's second
        reference).

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), float64 in [1 / (n_calibration + 1), 1]
        """
        scores = self.score_samples(X)
        n_lower = np.searchsorted(self.calibration_scores_, scores, side="right")
        return (1 + n_lower) / (len(self.calibration_scores_) + 1)

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
        """Yield the maps of :meth:`anomaly_map` one by one, in memory that does not grow with their number.

        Parameters
        ----------
        X : array or sequence of images
        size : {"model", "input"}, default="model"

        Yields
        ------
        ndarray of shape (H, W), float32
        """
        check_is_fitted(self)
        return self.detector_.iter_anomaly_maps(X, size=size)

    @available_if(_detector_has("iter_scores_and_maps"))  # type: ignore[untyped-decorator]
    def iter_scores_and_maps(self, X: Any, size: str = "model") -> Iterator[tuple[float, NDArray[np.float32]]]:
        """Yield ``score_samples`` and ``anomaly_map`` of image after image, from one pass of the network.

        Parameters
        ----------
        X : array or sequence of images
        size : {"model", "input"}, default="model"

        Yields
        ------
        (float, ndarray of shape (H, W))
        """
        check_is_fitted(self)
        return self.detector_.iter_scores_and_maps(X, size=size)

    def _n_held_out(self, n_good: int) -> int:
        size: Any = self.calibration_size
        n = int(size) if isinstance(size, Integral) else math.ceil(size * n_good)
        if n >= n_good:
            raise CalibrationError(
                f"calibration_size={size} holds out {n} good samples, and there are n_samples={n_good}: none is left "
                "to train on; give more, or a smaller calibration_size"
            )
        return n

    def _rank(self, n: int, n_good: int) -> int:
        """Return k: the threshold is the k-th lowest of n calibration scores."""
        rate = float(self.max_false_alarm_rate)
        rank = _largest_rank(rate, n)
        if rank == 0:
            needed = _fewest_images(rate)
            where = (
                f"{n} calibrate"
                if isinstance(self.detector, FrozenEstimator)
                else f"calibration_size={self.calibration_size} holds out {n} of {n_good}"
            )
            raise CalibrationError(
                f"max_false_alarm_rate={rate:g} needs at least {needed} held-out good samples (1/rate - 1), and "
                f"{where}: give more{self._more_held_out(needed, n_good)}, or set max_false_alarm_rate to "
                f"{_rounded_up(1 / (n + 1)):g} or more, the smallest rate that {n} can promise"
            )
        return rank

    def _more_held_out(self, needed: int, n_good: int) -> str:
        if isinstance(self.detector, FrozenEstimator) or n_good < needed + 2:
            return ""
        return f", set calibration_size={needed}, which leaves {n_good - needed} to train on"

    def _take(self, X: Any, rows: NDArray[np.intp]) -> Any:
        inputs = get_tags(self.detector).input_tags
        if isinstance(X, np.ndarray) and X.ndim > 2 and inputs.three_d_array and not inputs.two_d_array:
            return [X[row] for row in rows]  # views: an array of images may be larger than memory
        return _safe_indexing(X, rows)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.detector)
        tags.input_tags = inner.input_tags
        tags.non_deterministic = inner.non_deterministic
        return tags


def _largest_rank(rate: float, n: int) -> int:
    """Return the largest k with k / (n + 1) <= rate, so that exactly the p-values up to ``rate`` are flagged."""
    rank = math.floor(rate * (n + 1))
    while (rank + 1) / (n + 1) <= rate:  # 0.29 * 100 is 28.999... in floating point
        rank += 1
    while rank / (n + 1) > rate:
        rank -= 1
    return rank


def _fewest_images(rate: float) -> int:
    """Return the smallest n with 1 / (n + 1) <= rate."""
    n = max(math.ceil(1 / rate) - 2, 0)
    while _largest_rank(rate, n) == 0:
        n += 1
    return n


def _rounded_up(rate: float) -> float:
    """Return a rate with three digits that is not below the one given."""
    digits = 2 - math.floor(math.log10(rate))
    return math.ceil(rate * 10**digits) / 10**digits
