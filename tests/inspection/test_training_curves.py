"""The course of a training: lines are the detector's loss curve."""

from __future__ import annotations

import math

import pytest
from helpers import small_detector
from sklearn.pipeline import make_pipeline

from skpbas.calibration import ConformalThreshold
from skpbas.inspection import TrainingDisplay

plt = pytest.importorskip("matplotlib.pyplot")


def test_the_lines_are_the_terms_of_the_loss_and_the_radius(fitted):
    display = TrainingDisplay.from_estimator(fitted)
    loss, radius = display.ax_
    lines = {line.get_label(): list(line.get_ydata()) for line in loss.lines}
    curve = fitted.loss_curve_
    assert lines["sum"] == curve["loss"]
    assert lines["normal"] == curve["normal"]
    assert lines["anomaly"] == curve["anomaly"]
    assert lines["chance (2 ln 2)"] == [2 * math.log(2)] * 2
    assert list(radius.lines[0].get_ydata()) == curve["center"]
    assert list(radius.lines[0].get_xdata()) == list(range(1, fitted.n_iter_ + 1))
    assert (radius.get_xlabel(), loss.get_ylabel(), radius.get_ylabel()) == ("epoch", "loss", "radius r")


def test_without_synthesis_the_loss_is_the_radius(good_images):
    detector = small_detector(synthesis=None, patch_score="distance", max_epochs=1).fit(good_images)
    display = TrainingDisplay.from_estimator(detector)
    assert display.ax_.shape == (1,)
    assert display.ax_[0].get_ylabel() == "radius r = loss"


def test_a_detector_within_pipelines_and_thresholds_is_found(good_images, fitted):
    conformal = ConformalThreshold(small_detector(max_epochs=1), max_false_alarm_rate=0.3, random_state=0)
    conformal.fit(good_images)
    display = TrainingDisplay.from_estimator(make_pipeline("passthrough", conformal))
    assert display.loss_curve == conformal.detector_.loss_curve_


def test_what_was_not_trained_is_an_error_that_says_so():
    from sklearn.ensemble import IsolationForest

    with pytest.raises(TypeError, match="TrainingDisplay needs a PBASDetector, or what contains one; got Isolation"):
        TrainingDisplay.from_estimator(IsolationForest().fit([[0.0], [1.0]]))


def test_the_axes_of_the_caller_are_used(fitted):
    figure, axes = plt.subplots(2, 1)
    assert list(TrainingDisplay.from_estimator(fitted, ax=axes).ax_) == list(axes)
    with pytest.raises(ValueError, match="ax holds 3 axes: expected one, or 2"):
        TrainingDisplay.from_estimator(fitted, ax=plt.subplots(3, 1)[1])
    assert figure.axes == list(axes)
