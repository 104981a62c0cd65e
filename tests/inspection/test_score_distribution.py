"""The distribution of scores: counts are those of the detector's own labels and verdicts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import small_detector, textured_images

from skpbas.calibration import ConformalThreshold
from skpbas.errors import InvalidTargetError
from skpbas.inspection import ScoreDistributionDisplay
from skpbas.runtime import OnnxDetector

pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def mixed():
    """Eight good images and six with squares of growing contrast."""
    images = textured_images(14, seed=5)
    for i, gray in enumerate(np.linspace(0, 120, 6).astype(int)):
        square = images[8 + i, 20:30, 20:30]
        images[8 + i, 20:30, 20:30] = np.clip(square.astype(int) + gray, 0, 255)
    return images, np.array([1] * 8 + [-1] * 6)


def heights(ax):
    return [patch.get_data() for patch in ax.patches if type(patch).__name__ == "StepPatch"]


def legend(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_counts_are_those_of_predict_and_verdicts(fitted, mixed):
    images, labels = mixed
    display = ScoreDistributionDisplay.from_estimator(fitted, images, labels, unsure_rate=0.4)
    flagged, unsure = fitted.predict(images) == -1, fitted.verdicts(images, unsure_rate=0.4) == "unsure"
    assert display.false_alarms_ == (flagged & (labels == 1)).sum()
    assert display.misses_ == (~flagged & (labels == -1)).sum()
    assert display.unsure_ == unsure.sum()
    title = display.ax_.get_legend().get_title().get_text()
    assert f"false alarms: {display.false_alarms_} of 8" in title
    assert f"missed: {display.misses_} of 6" in title


def test_each_row_holds_the_shares_of_its_own_group(fitted, mixed):
    images, labels = mixed
    display = ScoreDistributionDisplay.from_estimator(fitted, images, labels)
    names = [label.get_text() for label in display.ax_.get_yticklabels()]
    assert names == ["defective\n6", "good\n8", f"training\n{len(fitted.training_scores_)}"]
    margins = fitted.decision_function(images)
    groups = [margins[labels == -1], margins[labels == 1], fitted.training_scores_ - fitted.offset_]
    rows = heights(display.ax_)
    shares = [np.histogram(group, edges)[0] / len(group) for group, (_, edges, _) in zip(groups, rows, strict=True)]
    assert [share.sum() for share in shares] == pytest.approx([1, 1, 1])
    largest = max(share.max() for share in shares)
    for row, (share, (values, _, _)) in enumerate(zip(shares, rows, strict=True)):
        assert values == pytest.approx(row + 0.8 * share / largest)


def test_the_threshold_is_at_zero_and_names_the_rate_aimed_at(fitted, mixed):
    display = ScoreDistributionDisplay.from_estimator(fitted, mixed[0])
    (line,) = [line for line in display.ax_.lines if line.get_linestyle() == "--"]
    assert list(line.get_xdata()) == [0, 0]
    assert "threshold: aims at 1 % false alarms" in legend(display)
    assert "unsure: flagged at 5 % false alarms" in legend(display)


def test_without_labels_nothing_is_called_false_or_missed(fitted, mixed):
    display = ScoreDistributionDisplay.from_estimator(fitted, mixed[0])
    assert display.false_alarms_ is None
    assert display.misses_ is None
    title = display.ax_.get_legend().get_title().get_text()
    assert title.startswith(f"anomalous: {(fitted.predict(mixed[0]) == -1).sum()} of 14, unsure: ")


@pytest.mark.parametrize("cv", [None, 2])
def test_a_conformal_threshold_is_drawn_with_its_own_band(fitted, good_images, mixed, cv):
    images, labels = mixed
    detector = small_detector(max_epochs=1)
    conformal = ConformalThreshold(detector, max_false_alarm_rate=0.25, cv=cv, random_state=0).fit(good_images)
    display = ScoreDistributionDisplay.from_estimator(conformal, images, labels, unsure_rate=0.5)
    assert display.false_alarms_ == ((conformal.predict(images) == -1) & (labels == 1)).sum()
    if cv is None:
        assert display.unsure_ == (conformal.verdicts(images, unsure_rate=0.5) == "unsure").sum()
    else:
        assert display.unsure_ is None


class Exported(OnnxDetector):
    """An exported detector without the export, which takes longer than all tests here."""

    def __init__(self, detector):
        self.detector, self.offset_, self._judge = detector, detector.offset_, detector._judge()

    def score_samples(self, X):
        return self.detector.score_samples(X)


def test_an_exported_detector_has_the_same_rows_and_band(fitted, mixed):
    exported = Exported(fitted)
    exported.metadata_ = {"unsure_rate": 0.05}
    display = ScoreDistributionDisplay.from_estimator(exported, *mixed)
    assert display.unsure_ == (exported.verdicts(mixed[0]) == "unsure").sum()
    assert len(display.training_margins) == len(fitted.training_scores_)
    with pytest.raises(ValueError, match=r"unsure_rate=0.1: an exported detector knows 0.05 only"):
        ScoreDistributionDisplay.from_estimator(exported, mixed[0], unsure_rate=0.1)


def test_clear_defects_do_not_squeeze_the_good_images():
    good, clear = np.linspace(-1.5, -1, 50), np.full(5, -400.0)
    labels = np.repeat([1, -1], [50, 5])
    display = ScoreDistributionDisplay.from_predictions(np.r_[good, clear], labels, offset=-1.6)
    assert display.ax_.get_xscale() == "asinh"
    display.figure_.canvas.draw()
    left, right = (display.ax_.transData.transform((x, 0))[0] for x in (good[0] + 1.6, good[-1] + 1.6))
    assert (right - left) / display.ax_.get_window_extent().width > 0.05
    near = ScoreDistributionDisplay.from_predictions(good, offset=-1.6)
    assert near.ax_.get_xscale() == "linear"


@pytest.mark.parametrize("scale", ["linear", "asinh"])
def test_no_bar_lies_on_both_sides_of_the_threshold(scale):
    scores = np.random.default_rng(0).normal(0.3, 1.0, 200)
    display = ScoreDistributionDisplay.from_predictions(scores, offset=0.0, scale=scale)
    ((values, edges, _),) = heights(display.ax_)
    assert 0 in edges
    n_below = round(values[edges[1:] <= 0].sum() / 0.8 * max(np.histogram(scores, edges)[0]))
    assert n_below == (scores < 0).sum()
    assert np.histogram(scores, edges)[0].sum() == 200


def test_a_score_that_is_not_a_number_counts_as_anomalous_and_is_not_drawn():
    scores = [-1.0, np.nan, -np.inf, -1.2]
    display = ScoreDistributionDisplay.from_predictions(scores, [1, 1, -1, -1], offset=-1.5)
    assert (display.false_alarms_, display.misses_) == (1, 1)
    assert [label.get_text() for label in display.ax_.get_yticklabels()] == ["defective\n1", "good\n1"]


def test_an_unknown_scale_is_an_error_that_names_the_choices():
    with pytest.raises(ValueError, match="scale='log': choose one of 'auto', 'linear', 'asinh'"):
        ScoreDistributionDisplay.from_predictions([1.0], offset=0.0, scale="log")


def test_labels_of_another_length_are_an_error(fitted, mixed):
    with pytest.raises(InvalidTargetError, match="y has 3 entries for 14 images"):
        ScoreDistributionDisplay.from_estimator(fitted, mixed[0], [1, 1, -1])
