"""Thresholds with a guaranteed false alarm rate, by conformal prediction on normal images that are held out."""

from __future__ import annotations

import math
from numbers import Integral, Real
from os import PathLike
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, MetaEstimatorMixin, OutlierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags, indexable
from sklearn.utils.validation import check_is_fitted

from skpbas._compat import HasMethods, Interval, RealNotInt, _num_samples, _safe_indexing
from skpbas._decisions.conformal import (
    cross_bound,
    cross_margins,
    cross_p_values,
    fewest_images,
    largest_rank,
    rounded_up,
    scores_of_margins,
)
from skpbas._decisions.deciding import UNSURE_RATE, check_unsure_rate, p_values_of
from skpbas._decisions.wrapping import Judged, WrappingMixin
from skpbas._inputs.images import check_images
from skpbas._inputs.parameters import WholeNumber, draw_seed
from skpbas._inputs.targets import normal_rows
from skpbas._training.pickling import SealingMixin
from skpbas._training.snapshots import SnapshotMixin
from skpbas.errors import CalibrationError, InvalidImageError

__all__ = ["ConformalThreshold"]


class ConformalThreshold(
    SealingMixin,
    SnapshotMixin,
    WrappingMixin,
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

    With few images, ``cv`` uses all of them both for training and for calibration: cross-conformal prediction [3]_. For
    each of K folds, a detector is fitted without it and scores its images. A new image is scored by all K, and compared
    with the scores of a fold by that fold's detector; it is flagged if at most k - 1 of all n are at most as high, with
    k as above. Its false alarm rate is near k / (n + 1) in practice. What is guaranteed is ``false_alarm_bound_``:

        P(flagged) <= 2 (k + K - 1) / (n + K),

    or a lower number where one is proved; see :ref:`cross-conformal` in the user guide.

    Parameters
    ----------
    detector : estimator with ``fit`` and ``score_samples``
        Such as :class:`~skpbas.PBASDetector`; a clone of it is fitted. Its own threshold is not used. A detector in a
        ``sklearn.frozen.FrozenEstimator`` is not refitted: all normal images are used for calibration and must not
        include its training images.
    max_false_alarm_rate : float, default=0.01
        Largest probability, in (0, 1), of flagging a normal image. With ``cv``, the rate that is aimed for.
    calibration_size : float or int, default=0.5
        Normal images to hold out: a fraction in (0, 1), rounded up, or a number. Ignored with a frozen detector and
        with ``cv``.
    cv : int or None, default=None
        None: some images are held out. An int from 2 on: number of folds, of nearly equal size; the detector is fitted
        ``cv + 1`` times, and all normal images are used. With ``memory`` of :class:`~skpbas.PBASDetector`, the network
        sees each image once in fit.
    random_state : int, RandomState or None, default=None
        Selects the held-out images or the folds. numpy's global random state is neither read nor changed.

    Attributes
    ----------
    detector_ : estimator
        The fitted detector. With ``cv``, it is fitted on all normal images, and only makes anomaly maps.
    offset_ : float
        Threshold on ``score_samples``: ``decision_function = score_samples - offset_``; with ``cv``, up to rounding.
    calibration_scores_ : ndarray of shape (n,), float64
        Scores of the held-out images, ascending. With ``cv``, those of all normal images, each by the detector that was
        fitted without its fold.
    false_alarm_rate_ : float
        ``k / (n + 1)``: the guaranteed rate, at or slightly below ``max_false_alarm_rate``. With ``cv``, the rate that
        is aimed for.
    false_alarm_bound_ : float
        What is guaranteed: the largest probability of flagging a normal image. Without ``cv``, ``false_alarm_rate_``.
    fold_detectors_ : list of estimator
        With ``cv`` only: the detectors that were each fitted without one fold.
    fold_scores_ : list of ndarray, float64
        With ``cv`` only: the scores of each fold's images, ascending; together ``calibration_scores_``.
    map_threshold_ : float
        That of ``detector_``, if it has one.
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
    part. With ``cv``, the guarantee holds on average over the choice of all images.

    Images that y marks as anomalous are excluded; unmarked ones among the held-out images lower the threshold, so that
    fewer images are flagged.

    With ``cv``, prediction takes one pass of the network per fold and image, and one more for anomaly maps. Regions and
    masks are those of ``detector_`` at its own threshold ``map_threshold_``.

    ``cross_val_predict`` with its default method, "predict", accepts labels as y. With "decision_function" it encodes
    labels as 0, 1, ..., as for classifiers: pass normal images without y.

    References
    ----------
    .. [1] Vovk, Gammerman, Shafer: "Algorithmic Learning in a Random World", Springer, 2005.
    .. [2] Bates, Candès, Lei, Romano, Sesia: "Testing for outliers with conformal p-values", Annals of Statistics
       51(1), 2023, doi:10.1214/22-AOS2244.
    .. [3] Vovk: "Cross-conformal predictors", Annals of Mathematics and Artificial Intelligence 74, 2015.

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

    30 images, which would be too few to hold out half of them:

    >>> detector.set_params(cv=5).fit(normal[:30]).predict([[0.0, 0.0], [9.0, 9.0]])
    array([ 1, -1])
    >>> round(detector.false_alarm_rate_, 3), round(detector.false_alarm_bound_, 3)
    (0.032, 0.143)
    """

    detector_: Any
    offset_: float
    calibration_scores_: NDArray[np.float64]
    false_alarm_rate_: float
    false_alarm_bound_: float
    fold_detectors_: list[Any]
    fold_scores_: list[NDArray[np.float64]]

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        "detector": [HasMethods(["fit", "score_samples"])],
        "max_false_alarm_rate": [Interval(Real, 0, 1, closed="neither")],
        "calibration_size": [
            WholeNumber(1),
            Interval(RealNotInt, 0, 1, closed="neither"),
        ],
        "cv": [WholeNumber(2), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        detector: Any,
        *,
        max_false_alarm_rate: float = 0.01,
        calibration_size: float | int = 0.5,
        cv: int | None = None,
        random_state: Any = None,
    ) -> None:
        self.detector = detector
        self.max_false_alarm_rate = max_false_alarm_rate
        self.calibration_size = calibration_size
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Fit the detector on some of the normal images, and calibrate the threshold on the others; see ``cv``.

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
            Too few normal images are held out for ``max_false_alarm_rate``, none are left for training, there are fewer
            than ``cv``, or ``cv`` is given with a frozen detector (all raised before training), or the detector returns
            non-finite scores.
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
        fitted = self._draft()
        for name in ("fold_detectors_", "fold_scores_", "n_features_in_", "feature_names_in_"):
            fitted.__dict__.pop(name, None)  # of an earlier fit
        of_fit = self._split(X, normal) if self.cv is None else self._crossed(X, normal, int(self.cv))
        for name, value in of_fit.items():
            setattr(fitted, name, value)
        for name in ("n_features_in_", "feature_names_in_"):
            if hasattr(fitted.detector_, name):
                setattr(fitted, name, getattr(fitted.detector_, name))
        return self._adopt(fitted)

    def _split(self, X: Any, normal: NDArray[np.intp]) -> dict[str, Any]:
        """Return the fitted attributes if some images calibrate."""
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
        scores = self._calibration_scores(detector, X, held_out)
        rate = rank / (n_calibration + 1)
        return {
            "detector_": detector,
            "calibration_scores_": scores,
            "offset_": float(scores[rank - 1]),
            "false_alarm_rate_": rate,
            "false_alarm_bound_": rate,
        }

    def _crossed(self, X: Any, normal: NDArray[np.intp], n_folds: int) -> dict[str, Any]:
        """Return the fitted attributes if the images of each fold calibrate a detector of the others."""
        n = len(normal)
        if isinstance(self.detector, FrozenEstimator):
            raise CalibrationError(
                f"cv={n_folds} fits the detector {n_folds + 1} times, but a FrozenEstimator is not fitted again: set "
                "cv=None, so that all normal samples calibrate it, or pass the detector without FrozenEstimator"
            )
        if n < n_folds:
            raise CalibrationError(
                f"cv={n_folds} needs at least {n_folds} normal samples, one for each fold, got n_samples={n}: provide "
                "more samples, or lower cv"
            )
        rank = self._rank(n, n)
        order = np.random.default_rng(draw_seed(self.random_state)).permutation(normal)
        folds = [np.sort(fold) for fold in np.array_split(order, n_folds)]
        detectors, fold_scores = [], []
        for fold in folds:
            detectors.append(clone(self.detector).fit(self._take(X, np.setdiff1d(normal, fold))))
            fold_scores.append(self._calibration_scores(detectors[-1], X, fold))
        scores = np.sort(np.concatenate(fold_scores))
        return {
            "detector_": clone(self.detector).fit(self._take(X, normal)),
            "fold_detectors_": detectors,
            "fold_scores_": fold_scores,
            "calibration_scores_": scores,
            "offset_": float(scores[rank - 1]),
            "false_alarm_rate_": rank / (n + 1),
            "false_alarm_bound_": cross_bound([len(fold) for fold in folds], rank),
        }

    def _calibration_scores(self, detector: Any, X: Any, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return the scores of held-out samples, ascending."""
        scores = np.sort(np.asarray(detector.score_samples(self._take(X, rows)), dtype=np.float64))
        if not np.isfinite(scores).all():
            n_bad = np.count_nonzero(~np.isfinite(scores))
            raise CalibrationError(
                f"{type(detector).__name__}.score_samples returned NaN or infinity for {n_bad} of {len(rows)} "
                "held-out samples"
            )
        return scores

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Return scores; higher is more normal.

        They are the detector's. With ``cv``, ``decision_function(X) + offset_``, and lower than ``offset_`` exactly if
        flagged.

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), float64

        Raises
        ------
        InvalidImageError
            A detector's score of a sample is NaN or positive infinity; the message names the first. Minus infinity
            is the most anomalous score.
        """
        return self._judged(X).scores

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return how far images are above the threshold: negative for anomalous images.

        This is ``score_samples(X) - offset_``. With ``cv``, the k-th largest of the n differences between the score of
        an image by the detector of a fold and a calibration score of that fold.

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), float64
        """
        return self._judged(X).margins

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

        With ``cv``, each s_i is compared with the image's score by the detector of the same fold. Then
        P(p-value <= a) is near a, and its bound is that of the class; there is none for the procedure.

        Parameters
        ----------
        X : array or sequence

        Returns
        -------
        ndarray of shape (n,), float64 in [1 / (n + 1), 1]
        """
        return self._judged(X).p_values

    def verdicts(self, X: Any, unsure_rate: float = UNSURE_RATE) -> NDArray[np.str_]:
        """Say of each image whether it is normal, anomalous, or to be looked at by a person.

        "anomalous": :meth:`predict` flags it. "unsure": it does not, but its p-value is at most ``unsure_rate``.
        "normal": all others.

        Parameters
        ----------
        X : array or sequence
        unsure_rate : float in (0, 0.5], default=0.05

        Returns
        -------
        ndarray of shape (n,), str
        """
        check_unsure_rate(unsure_rate)
        return self._judged(X).verdicts(unsure_rate)

    def _judges(self) -> list[Any]:
        """Return the detectors whose scores decide."""
        folds: list[Any] | None = getattr(self, "fold_detectors_", None)
        return [self.detector_] if folds is None else folds

    def _judge(self, scores: NDArray[np.float64]) -> Judged:
        """Judge n images by the scores of the detectors that decide, (n_detectors, n); NaN counts as the lowest."""
        if not hasattr(self, "fold_detectors_"):
            return Judged(scores[0], scores[0] - self.offset_, p_values_of(scores[0], self.calibration_scores_))
        scores, folds = np.where(np.isnan(scores), -np.inf, scores), self.fold_scores_
        rank = round(self.false_alarm_rate_ * (len(self.calibration_scores_) + 1))
        margins = cross_margins(scores, folds, rank)
        return Judged(scores_of_margins(margins, self.offset_), margins, cross_p_values(scores, folds))

    def _judged(self, X: Any) -> Judged:
        check_is_fitted(self)
        now = self._snapshot()
        return now._judge(np.stack([_checked_scores(judge, X) for judge in now._judges()]))

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
        rank = largest_rank(rate, n)
        if rank == 0:
            needed, reach = fewest_images(rate), "guarantee" if self.cv is None else "aim for"
            if self.cv is not None:
                needs, available = f"normal samples (1/rate - 1) with cv={self.cv}", f"there are {n}"
            elif isinstance(self.detector, FrozenEstimator):
                needs, available = "held-out normal samples (1/rate - 1)", f"there are {n}"
            else:
                needs = "held-out normal samples (1/rate - 1)"
                available = f"calibration_size={self.calibration_size} holds out {n} of {n_normal}"
            raise CalibrationError(
                f"max_false_alarm_rate={rate:g} needs at least {needed} {needs}, but {available}: provide "
                f"more{self._larger_split(needed, n_normal)}, or set max_false_alarm_rate to "
                f"{rounded_up(1 / (n + 1)):g} or more, the smallest rate that {n} samples can {reach}"
            )
        return rank

    def _larger_split(self, needed: int, n_normal: int) -> str:
        """Return the ways to calibrate by more of the images."""
        if self.cv is not None or isinstance(self.detector, FrozenEstimator):
            return ""
        split = f", set calibration_size={needed}, which leaves {n_normal - needed} for training"
        return (split if n_normal >= needed + 2 else "") + (", set cv=5" if n_normal >= max(needed, 5) else "")

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


def _checked_scores(detector: Any, X: Any) -> NDArray[np.float64]:
    """Return a detector's scores of new samples, which may be minus infinity."""
    scores = np.asarray(detector.score_samples(X), dtype=np.float64)
    bad = np.flatnonzero(np.isnan(scores) | (scores == np.inf))
    if len(bad):
        raise InvalidImageError(
            f"X[{bad[0]}]: the score of {type(detector).__name__} is {scores[bad[0]]} ({len(bad)} of {len(scores)} "
            "scores are NaN or infinite): check the sample and the detector"
        )
    return scores
