"""The methods of a detector that decide: labels, p-values, masks and regions, by thresholds from normal images."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skpbas._compat import Interval
from skpbas._decisions.judging import UNSURE_RATE, Judge, p_values_of
from skpbas._decisions.regions import Region, regions_of
from skpbas._inputs.parameters import WholeNumber
from skpbas._training.threshold import offset_at_rate, offset_of_ratios

__all__ = ["UNSURE_RATE", "DecisionMixin", "Judge", "p_values_of"]


class DecisionMixin:
    """Decisions of a fitted detector about images."""

    _snapshot: Callable[[], Any]
    model_: Any
    offset_: Any
    training_scores_: Any
    false_alarm_rate: float
    contamination: Any

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return ``score_samples(X) - offset_``: negative for anomalous images.

        Parameters
        ----------
        X : array or sequence of images

        Returns
        -------
        ndarray of shape (n,), float64
        """
        now = self._snapshot()
        margins: NDArray[np.float64] = now.score_samples(X) - now.offset_
        return margins

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Predict labels: +1 for normal images, -1 for anomalous ones.

        Parameters
        ----------
        X : array or sequence of images

        Returns
        -------
        ndarray of shape (n,), int64
        """
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Return the share of the training images that are at least as anomalous, counting the image itself.

        With n training images, r of which score as low as an image or lower when they are scored as if they were new,
        its p-value is (1 + r) / (1 + n). About a share a of unseen normal images has a p-value of at most a. This is an
        approximation: a training image scored as if it were new is not a new one, and only the mean difference is
        corrected for (see "Threshold" in the user guide). For a guarantee, see
        :class:`~skpbas.calibration.ConformalThreshold`. Without ``patch_score="fused"`` training images are scored as
        they are, and p-values are too small.

        Parameters
        ----------
        X : array or sequence of images

        Returns
        -------
        ndarray of shape (n,), float64 in (0, 1]
        """
        check_is_fitted(self)
        now = self._snapshot()
        return now._judge().p_values(now.score_samples(X))

    def verdicts(self, X: Any, unsure_rate: float = UNSURE_RATE) -> NDArray[np.str_]:
        """Say of each image whether it is normal, anomalous, or to be looked at by a person.

        "anomalous": :meth:`predict` flags it. "unsure": it does not, but would at the false-alarm rate ``unsure_rate``,
        which few normal images and many of the missed defects reach. "normal": all others. An image is as unusual as
        the most unusual share ``false_alarm_rate`` of normal ones in the first case, and as the most unusual share
        ``unsure_rate`` in the second.

        Parameters
        ----------
        X : array or sequence of images
        unsure_rate : float in (0, 0.5], default=0.05
            If it is not larger than ``false_alarm_rate``, or than a number given as ``contamination``, no image is
            "unsure".

        Returns
        -------
        ndarray of shape (n,), str
            "normal", "unsure" or "anomalous".
        """
        check_is_fitted(self)
        now = self._snapshot()
        return now._judge(unsure_rate).verdicts(now.score_samples(X))

    def _judge(self, unsure_rate: float = UNSURE_RATE) -> Judge:
        """Return what decides about scores."""
        check_unsure_rate(unsure_rate)
        scores, bias = self.training_scores_, getattr(self.model_.patch_scorer, "bias", None)
        if self.contamination != "auto":
            unsure_offset = float(np.quantile(scores, float(unsure_rate)))  # as offset_ is
        elif bias is not None:
            unsure_offset = float(bias) * offset_of_ratios(-scores, float(unsure_rate))
        else:
            unsure_offset = offset_at_rate(scores, self.offset_, self.false_alarm_rate, float(unsure_rate))
        normal_scores = np.sort(scores if bias is None else float(bias) * scores)
        return Judge(self.offset_, unsure_offset, normal_scores)

    def anomaly_mask(self, X: Any, size: str = "model") -> NDArray[np.bool_] | list[NDArray[np.bool_]]:
        """Return which pixels are anomalous: those where the anomaly map is above ``map_threshold_``.

        Parameters
        ----------
        X : array or sequence of images
        size : {"model", "input"}, default="model"
            As for :meth:`anomaly_map`. What a crop did not see is False.

        Returns
        -------
        ndarray of shape (n, H, W), bool
            A list of (H_i, W_i) arrays if the images' sizes differ.
        """
        now = self._snapshot()
        check_is_fitted(self)
        masks = [anomaly_map > now.map_threshold_ for anomaly_map in now.iter_anomaly_maps(X, size=size)]
        return masks if len({mask.shape for mask in masks}) > 1 else np.stack(masks)

    def find_regions(self, X: Any, size: str = "input", min_area: int = 1) -> list[list[Region]]:
        """Return the connected regions of each image where its anomaly map is above ``map_threshold_``.

        An image that :meth:`predict` calls anomalous has at least one region: the most anomalous one, if none reaches
        ``min_area``, or the surroundings of its map's maximum, if no pixel is above the threshold.

        Parameters
        ----------
        X : array or sequence of images
        size : {"input", "model"}, default="input"
            Whether boxes, areas and centroids are in pixels of the image itself or of the anomaly map.
        min_area : int, default=1
            Smallest area of a region, in these pixels.

        Returns
        -------
        list of list of Region
            For each image, most anomalous first.

        Examples
        --------
        >>> from skpbas import PBASDetector
        >>> from skpbas.datasets import make_inspection_images
        >>> data = make_inspection_images(16, 2, kind="wood", defects=["stain"], size=64, random_state=0)
        >>> detector = PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0).fit(data.images[:16])
        >>> (regions,) = detector.find_regions(data.images[17:])
        >>> top, left, height, width = regions[0].bbox
        >>> bool(data.masks[17, top : top + height, left : left + width].any())
        True
        """
        check_min_area(min_area)
        check_is_fitted(self)
        now = self._snapshot()
        return [
            regions_of(anomaly_map, now.map_threshold_, min_area=int(min_area), at_least_one=score < now.offset_)
            for score, anomaly_map in now.iter_scores_and_maps(X, size=size)
        ]


def check_min_area(min_area: Any) -> None:
    """Refuse a ``min_area`` that is no number of pixels."""
    if not WholeNumber(1).is_satisfied_by(min_area):
        raise ValueError(f"min_area={min_area!r}: expected a whole number of pixels, 1 or more")


def check_unsure_rate(unsure_rate: Any) -> None:
    """Raise if it is no rate."""
    if not Interval(Real, 0, 0.5, closed="right").is_satisfied_by(unsure_rate):
        raise ValueError(f"unsure_rate={unsure_rate!r}: expected a number in (0, 0.5]")
