"""Thresholds with a guaranteed false alarm rate, by conformal prediction on held-out normal images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
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
from skpbas._decisions.deciding import p_values_of
from skpbas._features.streaming import Result
from skpbas._inputs.images import check_images
from skpbas._inputs.parameters import WholeNumber, draw_seed
from skpbas._inputs.targets import normal_rows
from skpbas._training.pickling import SealingMixin
from skpbas._training.snapshots import SnapshotMixin
from skpbas.errors import CalibrationError, InvalidImageError

__all__ = ["ConformalThreshold"]


def _detector_has(method: str) -> Callable[[ConformalThreshold], bool]:
    """Return a check that the wrapped detector has a method, for ``available_if``."""

    def check(self: ConformalThreshold) -> bool:
        getattr(getattr(self, "detector_", self.detector), method)
        return True

    return check


class ConformalThreshold(
    SealingMixin,
    SnapshotMixin,
    MetaEstimatorMixin,  # type: ignore[misc]
    OutlierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """Flag at most a given fraction of unseen normal images, for any detector and any distribution of its scores.

    Split conformal prediction [1]_: some normal images are held out of training. Their n scores s_1 <= ... <= s_n set
    the threshold: ``offset_ = s_k`` with ``k = floor(max_false_alarm_rate * (n + 1))``, and an image is flagged if its
    score is lower. The score of a new normal image has any rank among them with equal probability, so

        P(flagged) <= k / (n + 1) <= max_false_alarm_rate,

    with equality on the left if there are no ties [2]_. n must be at least 1 / max_false_alarm_rate - 1, which is 99
    images for 1%.

    Parameters
    ----------
    detector : estimator with ``fit`` and ``score_samples``
        Such as :class:`~skpbas.PBASDetector`; a clone of it is fitted. Its own threshold is not used. A detector in a
        ``sklearn.frozen.FrozenEstimator`` is not refitted: all normal images are used for calibration and must not
        include its training images.
    max_false_alarm_rate : float, default=0.01
        Largest probability, in (0, 1), of flagging a normal image.
    calibration_size : float or int, default=0.5
        Normal images to hold out: a fraction in (0, 1), rounded up, or a number. Ignored with a frozen detector.
    random_state : int, RandomState or None, default=None
        Selects the held-out images. numpy's global random state is neither read nor changed.

    Attributes
    ----------
    detector_ : estimator
        The fitted detector.
    offset_ : float
        Threshold on ``score_samples``: ``decision_function = score_samples - offset_``.
    calibration_scores_ : ndarray of shape (n,), float64
        ``score_samples`` of the held-out images, ascending.
    false_alarm_rate_ : float
        ``k / (n + 1)``: the guaranteed rate, at or slightly below ``max_false_alarm_rate``.
    n_features_in_ : int
        Number of features, if the detector defines it.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of features, if the detector defines them.

    Notes
    -----
    X is passed to the detector; for images it is an array (n, H, W, 3) or (n, H, W), or a sequence of paths, PIL images
    or arrays.

    The guarantee requires that new images are exchangeable with the held-out ones: the same part, camera and lighting.
    It holds on average over the choice of held-out images. For one choice, the long-run rate follows the Beta
    distribution with parameters k and n + 1 - k: for n = 99 and 1%, it has mean 1% and standard deviation 1%; for
    n = 999, 0.3%. Several pictures of one part count as one: keep them together, with a frozen detector and a split by
    part. Images that y marks as anomalous are excluded; unmarked ones among the held-out images lower the threshold,
    so that fewer images are flagged.

    ``cross_val_predict`` with its default method, "predict", accepts labels as y. With "decision_function" it encodes
    labels as 0, 1, ..., as for classifiers: pass normal images without y.

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
    >>> normal = np.random.default_rng(0).normal(size=(400, 2))
    >>> detector = ConformalThreshold(IsolationForest(random_state=0), max_false_alarm_rate=0.05, random_state=0)
    >>> detector.fit(normal).predict([[0.0, 0.0], [9.0, 9.0]])
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
            WholeNumber(1),
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
        """Fit the detector on some of the normal images, and calibrate the threshold on the others.

        Parameters
        ----------
        X : array or sequence
            Input of the detector.
        y : None, labels or masks
            Which images are normal, as in :meth:`PBASDetector.fit() <skpbas.PBASDetector.fit>`. Others are excluded.

        Returns
        -------
        ConformalThreshold
            The fitted estimator.

        Raises
        ------
        CalibrationError
            Too few normal images are held out for ``max_false_alarm_rate``, or none are left for training (both raised
            before training), or the detector returns non-finite scores.
        InvalidTargetError
            y does not fit X, or is neither labels nor masks (0 and 1, booleans, words): the message has the conversion.
        """
        self._validate_params()
        if isinstance(X, (str, bytes, PathLike, set, frozenset)) or hasattr(self.detector, "anomaly_map"):
            X = check_images(X)  # before training: names all files that are missing, as they are numbered in X
        (X,) = indexable(X)  # converts sparse matrices to CSR
        normal = normal_rows(y, _num_samples(X))
        if len(normal) == 0:
            raise CalibrationError("fit needs normal samples, got n_samples=0: X is empty, or y marks all as anomalous")
        frozen = isinstance(self.detector, FrozenEstimator)
        n_calibration = len(normal) if frozen else self._n_held_out(len(normal))
        rank = self._rank(n_calibration, len(normal))
        if frozen:
            check_is_fitted(self.detector)
            held_out, detector = normal, self.detector
        else:
            order = np.random.default_rng(draw_seed(self.random_state)).permutation(normal)
            held_out, training = np.sort(order[:n_calibration]), np.sort(order[n_calibration:])
            detector = clone(self.detector).fit(self._take(X, training))
        scores = np.sort(np.asarray(detector.score_samples(self._take(X, held_out)), dtype=np.float64))
        if not np.isfinite(scores).all():
            n_bad = np.count_nonzero(~np.isfinite(scores))
            raise CalibrationError(
                f"{type(detector).__name__}.score_samples returned NaN or infinity for {n_bad} of {n_calibration} "
                "held-out samples"
            )
        fitted = self._draft()
        fitted.detector_ = detector
        fitted.calibration_scores_ = scores
        fitted.offset_ = float(scores[rank - 1])
        fitted.false_alarm_rate_ = rank / (n_calibration + 1)
        for name in ("n_features_in_", "feature_names_in_"):
            fitted.__dict__.pop(name, None)  # of an earlier fit
            if hasattr(detector, name):
                setattr(fitted, name, getattr(detector, name))
        return self._adopt(fitted)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return the detector's scores; higher is more normal.

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), float64

        Raises
        ------
        InvalidImageError
            The detector's score of a sample is NaN or positive infinity; the message names the first. Minus infinity
            is the most anomalous score.
        """
        check_is_fitted(self)
        detector = self.detector_
        scores = np.asarray(detector.score_samples(X), dtype=np.float64)
        bad = np.flatnonzero(np.isnan(scores) | (scores == np.inf))
        if len(bad):
            raise InvalidImageError(
                f"X[{bad[0]}]: the score of {type(detector).__name__} is {scores[bad[0]]} ({len(bad)} of {len(scores)} "
                "scores are NaN or infinite): check the sample and the detector"
            )
        return scores

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return ``score_samples(X) - offset_``: negative for anomalous images.

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), float64
        """
        now = self._snapshot()
        return now.score_samples(X) - now.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Predict labels: +1 for normal images, -1 for anomalous ones.

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), int64
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Return conformal p-values: the probability that a normal image scores this low or lower.

        The p-value of a score s is ``(1 + #{i : s_i <= s}) / (n + 1)``. For a normal image, P(p-value <= a) <= a for
        any level a. An image is flagged if its p-value is at most ``max_false_alarm_rate``. For several images, the
        procedure of Benjamini and Hochberg (``scipy.stats.false_discovery_control``) bounds the fraction of normal
        images among the flagged ones (the second reference of the class).

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), float64 in [1 / (n_calibration + 1), 1]
        """
        now = self._snapshot()
        return p_values_of(now.score_samples(X), now.calibration_scores_)

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
        """Yield ``score_samples`` and ``anomaly_map`` of one image after another, from one pass of the network.

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

    @available_if(_detector_has("score_stream"))  # type: ignore[untyped-decorator]
    def score_stream(self, images: Any, *, on_error: str = "raise", maps: bool = True) -> Iterator[Result]:
        """Yield a result with a p-value for each image of a stream, in order.

        Parameters
        ----------
        images : array, sequence or iterable of images
        on_error : {"raise", "skip"}, default="raise"
        maps : bool, default=True
            As for :meth:`PBASDetector.score_stream() <skpbas.PBASDetector.score_stream>`.

        Yields
        ------
        Result
            Its ``label`` and ``p_value`` are those of :meth:`predict` and :meth:`p_values`.
        """
        check_is_fitted(self)
        now = self._snapshot()
        stream = now.detector_.score_stream(images, on_error=on_error, maps=maps)
        offset, calibration_scores = now.offset_, now.calibration_scores_

        def judged(result: Result) -> Result:
            if result.score is None:
                return result
            label = 1 if result.score >= offset else -1
            p_value = float(p_values_of(np.array([result.score]), calibration_scores)[0])
            return replace(result, label=label, p_value=p_value)

        return map(judged, stream)

    def _n_held_out(self, n_normal: int) -> int:
        size: Any = self.calibration_size
        n = int(size) if isinstance(size, Integral) else math.ceil(size * n_normal)
        if n >= n_normal:
            raise CalibrationError(
                f"calibration_size={size} holds out {n} normal samples of n_samples={n_normal}, which leaves none for "
                "training: provide more samples, or lower calibration_size"
            )
        return n

    def _rank(self, n: int, n_normal: int) -> int:
        """Return k: the threshold is the k-th lowest of n calibration scores."""
        rate = float(self.max_false_alarm_rate)
        rank = _largest_rank(rate, n)
        if rank == 0:
            needed = _fewest_images(rate)
            available = (
                f"there are {n}"
                if isinstance(self.detector, FrozenEstimator)
                else f"calibration_size={self.calibration_size} holds out {n} of {n_normal}"
            )
            raise CalibrationError(
                f"max_false_alarm_rate={rate:g} needs at least {needed} held-out normal samples (1/rate - 1), but "
                f"{available}: provide more{self._larger_split(needed, n_normal)}, or set max_false_alarm_rate to "
                f"{_rounded_up(1 / (n + 1)):g} or more, the smallest rate that {n} samples can guarantee"
            )
        return rank

    def _larger_split(self, needed: int, n_normal: int) -> str:
        if isinstance(self.detector, FrozenEstimator) or n_normal < needed + 2:
            return ""
        return f", set calibration_size={needed}, which leaves {n_normal - needed} for training"

    def _take(self, X: Any, rows: NDArray[np.intp]) -> Any:
        inputs = get_tags(self.detector).input_tags
        if isinstance(X, np.ndarray) and X.ndim > 2 and inputs.three_d_array and not inputs.two_d_array:
            return [X[row] for row in rows]  # views: the array may be larger than memory
        return _safe_indexing(X, rows)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        inner = get_tags(self.detector)
        tags.input_tags = inner.input_tags
        tags.non_deterministic = inner.non_deterministic
        return tags


def _largest_rank(rate: float, n: int) -> int:
    """Return the largest k with k / (n + 1) <= rate, which flags exactly the p-values up to ``rate``."""
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
    """Return the rate, rounded up to three significant digits."""
    digits = 2 - math.floor(math.log10(rate))
    return math.ceil(rate * 10**digits) / 10**digits
