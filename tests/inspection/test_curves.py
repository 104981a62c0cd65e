"""ROC and PRO curves: equal to the metrics, and to slow counts."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import textured_images
from sklearn.ensemble import IsolationForest

from skpbas.errors import InvalidTargetError
from skpbas.inspection import ProCurveDisplay, RocCurveDisplay, ScoreDistributionDisplay
from skpbas.metrics import image_auroc, pixel_pro, pro_curve

pytest.importorskip("matplotlib.pyplot")


@pytest.fixture(scope="module")
def scored():
    rng = np.random.default_rng(3)
    labels = np.repeat([1, -1], [60, 25])
    scores = np.round(np.r_[rng.normal(0, 1, 60), rng.normal(-1.5, 1, 25)], 1)  # with ties
    return scores, labels


@pytest.fixture(scope="module")
def mapped():
    rng = np.random.default_rng(4)
    masks, maps = np.zeros((6, 24, 32), bool), rng.random((6, 24, 32))
    masks[3, 2:8, 3:9] = masks[4, 10:20, 10:14] = masks[4, 2:4, 20:30] = masks[5, 5, 5] = True
    return masks, np.where(masks, 0.3 + 0.7 * maps, 0.8 * maps)


def text_of(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_the_roc_curve_is_what_counting_at_every_threshold_gives(scored):
    scores, labels = scored
    display = RocCurveDisplay.from_predictions(scores, labels)
    counted = {(0.0, 0.0)} | {
        (float((scores[labels == 1] <= t).mean()), float((scores[labels == -1] <= t).mean())) for t in scores
    }
    assert set(zip(display.fpr.tolist(), display.tpr.tolist(), strict=True)) == counted
    assert list(display.line_.get_xdata()) == display.fpr.tolist()
    assert display.roc_auc == pytest.approx(image_auroc(labels, -scores))


def test_scores_mean_the_same_in_both_displays_of_scores(scored):
    scores, labels = scored
    offset = float(np.quantile(scores[labels == 1], 0.05))  # one of the scores, which is normal
    curve = RocCurveDisplay.from_predictions(scores, labels, offset=offset)
    margins = ScoreDistributionDisplay.from_predictions(scores, labels, offset=offset)
    assert curve.operating_point == pytest.approx((margins.false_alarms_ / 60, 1 - margins.misses_ / 25))
    assert curve.roc_auc > 0.8


def test_scores_and_labels_in_the_wrong_order_are_an_error(scored):
    scores, labels = scored
    with pytest.raises(InvalidTargetError, match="y contains"):
        RocCurveDisplay.from_predictions(labels, scores)


def test_a_curve_takes_masks_for_labels_and_whole_numbers_for_scores():
    masks = [None, None, np.eye(4), np.eye(4)]
    assert RocCurveDisplay.from_predictions(np.uint8([3, 2, 1, 0]), masks).roc_auc == 1


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_a_score_that_is_not_finite_is_an_error_that_names_it(bad):
    with pytest.raises(InvalidTargetError, match=rf"scores\[1\] is {bad}"):
        RocCurveDisplay.from_predictions([0.0, bad], [1, -1])


def test_low_false_alarm_rates_have_room(scored):
    display = RocCurveDisplay.from_predictions(*scored)
    display.figure_.canvas.draw()
    at = [display.ax_.transData.transform((rate, 0))[0] for rate in (0, 0.1, 1)]
    assert (at[1] - at[0]) / (at[2] - at[0]) > 0.3
    labels = [label.get_text() for label in display.ax_.get_xticklabels()]
    assert labels == ["0 %", "5 %", "10 %", "20 %", "50 %", "100 %"]


def test_the_axis_can_be_linear_and_end_early(scored):
    display = RocCurveDisplay.from_predictions(*scored, fpr_scale="linear", max_fpr=0.1)
    assert display.ax_.get_xscale() == "linear"
    assert display.ax_.get_xlim() == pytest.approx((0, 0.1), abs=1e-3)


def test_the_marked_threshold_is_that_of_predict(fitted):
    images = textured_images(10, seed=5)
    images[6:, 20:30, 20:30] = 255
    labels = np.repeat([1, -1], [6, 4])
    display = RocCurveDisplay.from_estimator(fitted, images, labels)
    flagged = fitted.predict(images) == -1
    assert display.operating_point == (flagged[:6].mean(), flagged[6:].mean())
    assert display.name == "PBASDetector"


def test_any_outlier_detector_of_scikit_learn_has_a_curve():
    rng = np.random.default_rng(0)
    X = np.r_[rng.normal(0, 1, (80, 2)), rng.normal(4, 1, (10, 2))]
    labels = np.repeat([1, -1], [80, 10])
    forest = IsolationForest(random_state=0).fit(X[:60])
    display = RocCurveDisplay.from_estimator(forest, X, labels)
    assert display.roc_auc == pytest.approx(image_auroc(labels, -forest.decision_function(X)))
    assert display.operating_point == ((forest.predict(X[:80]) == -1).mean(), (forest.predict(X[80:]) == -1).mean())


def test_two_curves_share_an_axes_and_a_legend(scored):
    scores, labels = scored
    first = RocCurveDisplay.from_predictions(scores, labels, name="a")
    second = RocCurveDisplay.from_predictions(-scores, labels, name="b", ax=first.ax_, color="red")
    assert second.figure_ is first.figure_
    assert [text.split(",")[0] for text in text_of(second)] == ["a", "b"]
    assert second.line_.get_color() == "red"


def test_labels_of_one_class_are_an_error():
    with pytest.raises(InvalidTargetError, match="expected both classes"):
        RocCurveDisplay.from_predictions([0.1, 0.2], [1, 1])


@pytest.mark.parametrize("display", [RocCurveDisplay, ProCurveDisplay])
def test_an_unknown_scale_of_a_curve_is_an_error_that_names_the_choices(display, scored, mapped):
    data = scored if display is RocCurveDisplay else mapped
    with pytest.raises(ValueError, match="fpr_scale='log': choose one of 'linear', 'symlog'"):
        display.from_predictions(*data, fpr_scale="log")
    with pytest.raises(ValueError, match=r"max_fpr is 0; expected a number in \(0, 1\]"):
        display.from_predictions(*data, max_fpr=0)


@pytest.mark.parametrize("max_fpr", [0.01, 0.3, 1.0])
def test_the_pro_curve_and_its_area_are_those_of_the_metrics(mapped, max_fpr):
    display = ProCurveDisplay.from_predictions(*mapped, max_fpr=max_fpr)
    fpr, pro, _ = pro_curve(*mapped)
    np.testing.assert_array_equal(display.fpr, fpr)
    np.testing.assert_array_equal(display.line_.get_ydata(), pro)
    assert display.pixel_pro == pytest.approx(pixel_pro(*mapped, max_fpr=max_fpr), rel=1e-9)
    assert display.ax_.get_xlim() == pytest.approx((0, max_fpr), rel=0.01, abs=0.01 * max_fpr)


@pytest.mark.parametrize("threshold", [-1.0, 0.35, 0.62, 0.8, 2.0])
def test_the_marked_threshold_of_maps_is_what_counting_gives(mapped, threshold):
    masks, maps = mapped
    display = ProCurveDisplay.from_predictions(masks, maps, threshold=threshold)
    regions = [(3, np.s_[2:8, 3:9]), (4, np.s_[10:20, 10:14]), (4, np.s_[2:4, 20:30]), (5, np.s_[5:6, 5:6])]
    covered = np.mean([(maps[i][where] > threshold).mean() for i, where in regions])
    assert display.operating_point == pytest.approx(((maps[~masks] > threshold).mean(), covered))


def test_a_detector_draws_the_curve_of_its_maps(fitted):
    images = textured_images(4, seed=5)
    images[2:, 20:30, 20:30] = 255
    masks = [None, None, *np.zeros((2, 64, 64), bool)]
    masks[2][20:30, 20:30] = masks[3][20:30, 20:30] = True
    display = ProCurveDisplay.from_estimator(fitted, images, masks, fpr_scale="symlog")
    maps = fitted.anomaly_map(images)
    assert display.pixel_pro == pytest.approx(pixel_pro(masks, maps))
    flagged = fitted.anomaly_mask(images)
    normal = np.stack([np.ones((64, 64), bool) if mask is None else ~mask for mask in masks])
    assert display.operating_point[0] == pytest.approx(flagged[normal].mean())
    assert display.operating_point[1] == pytest.approx(flagged[2:, 20:30, 20:30].mean())
