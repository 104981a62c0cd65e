"""The guarantee of the conformal threshold, its errors, and its behavior as an estimator."""

from __future__ import annotations

import csv
import math
import pickle
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from helpers import small_detector, textured_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import betabinom
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpbas import PBASDetector
from skpbas.calibration import ConformalThreshold
from skpbas.datasets import load_mvtec
from skpbas.errors import CalibrationError, ImageNotFoundError, InvalidImageError, InvalidTargetError


class Plain(OutlierMixin, BaseEstimator):
    """Each sample is its own score; stores the training samples."""

    def fit(self, X, y=None):
        self.seen_ = np.ravel(X).copy()
        return self

    def score_samples(self, X):
        return np.ravel(X)


class Standardized(Plain):
    """Minus the distance from the mean of the training samples, in standard deviations."""

    def score_samples(self, X):
        return -np.abs(np.ravel(X) - self.seen_.mean()) / self.seen_.std()


class Nearest(Plain):
    """Minus the distance to the nearest training sample, which is 0 for all of them: extreme overfitting."""

    def score_samples(self, X):
        return -np.abs(np.ravel(X)[:, None] - self.seen_).min(axis=1)


class Untrainable(Plain):
    def fit(self, X, y=None):
        raise AssertionError("training began")


class Images(PBASDetector):
    """Keeps the training images, to check that they are not copies."""

    def fit(self, X, y=None):
        self.given_ = X
        return super().fit(X, y)


def in_fractions(rate, n):
    return math.floor(Fraction(repr(rate)) * (n + 1))


def rate_over_repeats(detector, draw, n_normal, rate, n_repeats=1000, n_new=200, seed=0):
    """Mean fraction of new normal samples flagged, its random error (4 standard errors), and the guaranteed rate."""
    rng = np.random.default_rng(seed)
    shares = []
    for repeat in range(n_repeats):
        model = ConformalThreshold(detector, max_false_alarm_rate=rate, random_state=repeat)
        model.fit(draw(rng, (n_normal, 1)))
        shares.append((model.predict(draw(rng, (n_new, 1))) == -1).mean())
    return np.mean(shares), 4 * np.std(shares) / np.sqrt(n_repeats), model.false_alarm_rate_


DISTRIBUTIONS = {
    "normal": lambda rng, shape: rng.normal(size=shape),
    "heavy tails": lambda rng, shape: rng.standard_cauchy(size=shape),
    "skewed": lambda rng, shape: rng.gumbel(size=shape),
}


# The guarantee --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize(("n_normal", "rate"), [(198, 0.01), (60, 0.05), (45, 0.1)])
def test_the_mean_false_alarm_rate_equals_the_guaranteed_rate(distribution, n_normal, rate):
    flagged, error, guaranteed = rate_over_repeats(Plain(), DISTRIBUTIONS[distribution], n_normal, rate)
    assert guaranteed <= rate
    assert abs(flagged - guaranteed) < error < guaranteed / 2


@pytest.mark.parametrize("detector", [Standardized(), Nearest()])
def test_the_guarantee_holds_for_any_effect_of_training_on_the_scores(detector):
    flagged, error, guaranteed = rate_over_repeats(detector, DISTRIBUTIONS["heavy tails"], 40, 0.1)
    assert abs(flagged - guaranteed) < error < guaranteed / 2


def test_ties_lower_the_false_alarm_rate():
    def few_values(rng, shape):
        return rng.integers(4, size=shape).astype(float)

    flagged, error, guaranteed = rate_over_repeats(Plain(), few_values, 80, 0.3)
    assert flagged < guaranteed - error


def test_p_values_of_normal_samples_are_valid():
    rng = np.random.default_rng(0)
    p_values = []
    for repeat in range(1000):
        model = ConformalThreshold(Plain(), max_false_alarm_rate=0.05, random_state=repeat)
        p_values.append(model.fit(rng.normal(size=(78, 1))).p_values(rng.normal(size=(50, 1))))
    shares = [np.mean(np.array(p_values) <= level, axis=1) for level in (0.025, 0.1, 0.5)]
    for level, share in zip((0.025, 0.1, 0.5), shares, strict=True):
        assert abs(share.mean() - level) < 4 * share.std() / np.sqrt(1000)  # the level is a multiple of 1/40


@given(
    calibration=st.lists(st.integers(-5, 5), min_size=1, max_size=60),
    new=st.lists(st.integers(-6, 6), min_size=1, max_size=20),
    percent=st.one_of(st.integers(1, 99).map(lambda i: i / 100), st.floats(1e-3, 0.999)),
)
@settings(max_examples=300, deadline=None)
def test_a_sample_is_flagged_exactly_if_its_p_value_is_at_most_the_rate(calibration, new, percent):
    model = ConformalThreshold(FrozenEstimator(Plain().fit([0.0])), max_false_alarm_rate=percent)
    calibration, new = np.array(calibration, float)[:, None], np.array(new, float)[:, None]
    if 1 / (len(calibration) + 1) > percent:
        with pytest.raises(CalibrationError):
            model.fit(calibration)
        return
    model.fit(calibration)
    slow = [(1 + sum(s <= x for s in calibration[:, 0])) / (len(calibration) + 1) for x in new[:, 0]]
    np.testing.assert_array_equal(model.p_values(new), slow)
    np.testing.assert_array_equal(model.predict(new) == -1, np.array(slow) <= percent)


@given(thousandths=st.integers(1, 999), n=st.integers(1, 3000))
@settings(max_examples=500, deadline=None)
def test_the_threshold_is_the_kth_score_even_if_floating_point_rounds_k_down(thousandths, n):
    rate = thousandths / 1000
    rank = in_fractions(rate, n)
    model = ConformalThreshold(FrozenEstimator(Plain().fit([0.0])), max_false_alarm_rate=rate)
    scores = np.random.default_rng(n).permutation(n).astype(float)[:, None]
    if rank == 0:
        with pytest.raises(CalibrationError):
            model.fit(scores)
    else:
        assert model.fit(scores).offset_ == rank - 1
        assert model.false_alarm_rate_ == rank / (n + 1)


@pytest.mark.parametrize("category", ["mvtec/bottle", "mvtec/screw", "kolektorsdd/commutator"])
def test_the_guarantee_holds_for_held_out_images_of_real_parts(shared, category):
    root, name = (shared / "data" / category).parent, category.split("/")[1]
    images = np.random.default_rng(0).permutation(load_mvtec(root, name, "train").images)[:130].tolist()
    detector = PBASDetector("embedded", image_size=64, max_epochs=4, device="cpu", random_state=0).fit(images[:50])
    scores = detector.score_samples(images[50:])[:, None]
    rng, shares, n = np.random.default_rng(0), [], 39
    for _ in range(1000):
        order = rng.permutation(len(scores))
        model = ConformalThreshold(FrozenEstimator(Plain().fit([0.0])), max_false_alarm_rate=0.05)
        model.fit(scores[order[:n]])
        shares.append((model.predict(scores[order[n:]]) == -1).mean())
    assert abs(np.mean(shares) - model.false_alarm_rate_) < 4 * np.std(shares) / np.sqrt(1000)
    # the same for normal test images, which are not from the same pool
    test = load_mvtec(root, name, "test")
    normal = [image for image, label in zip(test.images, test.labels, strict=True) if label == 1]
    model = ConformalThreshold(FrozenEstimator(detector), max_false_alarm_rate=0.05).fit(images[50:])
    rank = round(model.false_alarm_rate_ * 81)
    flagged = np.count_nonzero(model.predict(normal) == -1)
    assert flagged <= betabinom.ppf(0.999, len(normal), rank, 81 - rank)


# Too few images -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "rate"), [(98, 0.01), (18, 0.05), (8, 0.1), (1, 0.3)])
def test_one_image_too_few_is_an_error_and_the_number_in_the_message_suffices(n, rate):
    model = ConformalThreshold(FrozenEstimator(Plain().fit([0.0])), max_false_alarm_rate=rate)
    with pytest.raises(CalibrationError, match=f"max_false_alarm_rate={rate:g}.*there are {n}") as raised:
        model.fit(np.arange(n)[:, None])
    needed = int(re.search(r"at least (\d+)", str(raised.value)).group(1))
    smallest = float(re.search(r"to (\S+) or more, the smallest", str(raised.value)).group(1))
    with pytest.raises(CalibrationError):
        model.fit(np.arange(needed - 1)[:, None])
    model.fit(np.arange(needed)[:, None])
    assert smallest == pytest.approx(1 / (n + 1), rel=0.01)
    model.set_params(max_false_alarm_rate=smallest).fit(np.arange(n)[:, None])


def test_too_few_images_are_detected_before_training_and_the_error_suggests_a_split():
    with pytest.raises(CalibrationError, match=r"holds out 75 of 150.*calibration_size=99, which leaves 51 for"):
        ConformalThreshold(Untrainable()).fit(np.zeros((150, 1)))
    with pytest.raises(CalibrationError, match=r"holds out 45 of 90: provide more, or set"):
        ConformalThreshold(Untrainable()).fit(np.zeros((90, 1)))
    ConformalThreshold(Plain(), calibration_size=99).fit(np.arange(150.0)[:, None])


@pytest.mark.parametrize("size", [10, 0.99])
def test_holding_out_every_image_is_an_error(size):
    with pytest.raises(CalibrationError, match=f"calibration_size={size} holds out 10 .*n_samples=10, which leaves"):
        ConformalThreshold(Untrainable(), max_false_alarm_rate=0.5, calibration_size=size).fit(np.zeros((10, 1)))


@pytest.mark.parametrize("detector", [Untrainable(), FrozenEstimator(Plain().fit([0.0]))])
def test_images_that_are_all_anomalous_are_an_error(detector):
    with pytest.raises(CalibrationError, match="y marks all as anomalous"):
        ConformalThreshold(detector).fit(np.zeros((10, 1)), -np.ones(10, int))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_scores_are_an_error(bad):
    scores = np.arange(40.0)
    scores[[3, 5]] = bad
    with pytest.raises(CalibrationError, match="NaN or infinity for 2 of 40"):
        ConformalThreshold(FrozenEstimator(Plain().fit([0.0])), max_false_alarm_rate=0.1).fit(scores[:, None])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_score_that_is_not_finite_is_neither_normal_nor_anomalous(bad):
    threshold = ConformalThreshold(FrozenEstimator(Plain().fit([0.0])), max_false_alarm_rate=0.1)
    threshold.fit(np.arange(40.0)[:, None])
    X = np.array([[7.0], [bad], [bad]])
    for method in (threshold.predict, threshold.p_values, threshold.decision_function, threshold.score_samples):
        with pytest.raises(InvalidImageError, match=rf"X\[1\]: the score of .* is {bad} \(2 of 3 scores"):
            method(X)


def test_missing_files_are_all_named_before_training_as_they_are_numbered(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(10)]
    for path in paths[:8]:
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(path)

    class Untrained(PBASDetector):
        def fit(self, X, y=None):
            raise AssertionError("training began")

    threshold = ConformalThreshold(Untrained("embedded"), max_false_alarm_rate=0.2)
    with pytest.raises(ImageNotFoundError, match=r"2 of 10 (.|\n)*X\[8\] (.|\n)*X\[9\]"):
        threshold.fit(paths)
    with pytest.raises(InvalidImageError, match="has no order; pass sorted"):
        threshold.fit(set(paths))


def test_minus_infinity_is_the_most_anomalous_score():
    threshold = ConformalThreshold(FrozenEstimator(Plain().fit([0.0])), max_false_alarm_rate=0.1)
    threshold.fit(np.arange(40.0)[:, None])
    X = np.array([[20.0], [-np.inf]])
    assert threshold.predict(X).tolist() == [1, -1]
    assert threshold.p_values(X)[1] == 1 / 41


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"max_false_alarm_rate": 0.0}, "max_false_alarm_rate"),
        ({"max_false_alarm_rate": 1.0}, "max_false_alarm_rate"),
        ({"calibration_size": 0}, "calibration_size"),
        ({"calibration_size": 1.0}, "calibration_size"),
        ({"detector": StandardScaler()}, "detector"),
        ({"random_state": "zero"}, "random_state"),
    ],
)
def test_the_error_names_an_invalid_parameter(parameters, name):
    with pytest.raises(ValueError, match=f"The '{name}' parameter of ConformalThreshold"):
        ConformalThreshold(**{"detector": Plain(), **parameters}).fit(np.zeros((400, 1)))


def test_a_single_path_and_a_short_y_are_rejected():
    with pytest.raises(InvalidImageError, match="pass a list"):
        ConformalThreshold(Untrainable()).fit("parts/good")
    with pytest.raises(InvalidTargetError, match="y has 3 entries for 400 images"):
        ConformalThreshold(Untrainable()).fit(np.zeros((400, 1)), [1, 1, 1])


# The split ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "n_held_out"), [(0.5, 51), (0.25, 26), (60, 60)])
def test_every_normal_sample_is_used_for_either_training_or_calibration(size, n_held_out):
    X = np.arange(101.0)[:, None]
    model = ConformalThreshold(Plain(), max_false_alarm_rate=0.1, calibration_size=size).fit(X)
    assert len(model.calibration_scores_) == n_held_out
    assert sorted([*model.detector_.seen_, *model.calibration_scores_]) == X[:, 0].tolist()


@pytest.mark.parametrize("as_masks", [False, True])
def test_anomalous_samples_are_used_for_neither_training_nor_calibration(as_masks):
    X = np.arange(60.0)[:, None]
    labels = np.where(np.arange(60) % 3 == 0, -1, 1)
    y = [None if label == 1 else np.eye(2) for label in labels] if as_masks else labels
    model = ConformalThreshold(Plain(), max_false_alarm_rate=0.1).fit(X, y)
    assert sorted([*model.detector_.seen_, *model.calibration_scores_]) == X[labels == 1, 0].tolist()


def test_the_split_depends_on_random_state_only():
    X = np.random.default_rng(0).normal(size=(100, 1))
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the global random state under test
    splits = [
        ConformalThreshold(Plain(), max_false_alarm_rate=0.1, random_state=seed).fit(X).calibration_scores_
        for seed in (0, 0, 1, None, None)
    ]
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.testing.assert_array_equal(splits[0], splits[1])
    assert len({tuple(split) for split in splits}) == 4


def test_a_frozen_detector_is_calibrated_on_all_normal_samples_without_training():
    detector = Plain().fit(np.arange(5.0))
    model = ConformalThreshold(FrozenEstimator(detector), max_false_alarm_rate=0.1).fit(np.arange(30.0)[:, None])
    assert model.detector_.estimator is detector
    assert detector.seen_.tolist() == [0, 1, 2, 3, 4]
    assert model.calibration_scores_.tolist() == list(range(30))


def test_an_unfitted_frozen_detector_is_an_error():
    with pytest.raises(NotFittedError):
        ConformalThreshold(FrozenEstimator(IsolationForest()), max_false_alarm_rate=0.1).fit(np.zeros((30, 2)))


def test_the_original_detector_stays_unfitted():
    detector = Plain()
    ConformalThreshold(detector, max_false_alarm_rate=0.1).fit(np.arange(40.0)[:, None])
    assert not hasattr(detector, "seen_")


# Behavior as an estimator ----------------------------------------------------------------------------------


class WithoutLabels(ConformalThreshold):
    """Ignores y: the checks pass unrelated class labels, {0, 1} and {0, 1, 2}, which raise an error."""

    def fit(self, X, y=None):
        return super().fit(X)


@parametrize_with_checks(
    [WithoutLabels(IsolationForest(n_estimators=5, random_state=0), max_false_alarm_rate=0.2, random_state=0)]
)
def test_the_estimator_passes_the_checks_of_sklearn(estimator, check):
    check(estimator)


def test_the_tags_match_those_of_the_detector():
    tags = ConformalThreshold(PBASDetector()).__sklearn_tags__()
    assert tags.estimator_type == "outlier_detector"
    assert tags.input_tags.three_d_array
    assert not tags.input_tags.two_d_array
    assert ConformalThreshold(IsolationForest()).__sklearn_tags__().input_tags.sparse


def test_anomaly_map_exists_only_if_the_detector_has_it():
    assert hasattr(ConformalThreshold(PBASDetector()), "anomaly_map")
    assert not hasattr(ConformalThreshold(IsolationForest()), "anomaly_map")


def test_cross_validated_predictions_keep_the_rate_and_find_outliers():
    rng = np.random.default_rng(0)
    X = np.concatenate([rng.normal(size=(600, 2)), rng.normal(8, 1, size=(60, 2))])
    y = np.repeat([1, -1], [600, 60])
    model = ConformalThreshold(
        make_pipeline(StandardScaler(), IsolationForest(n_estimators=20, random_state=0)),
        max_false_alarm_rate=0.05,
        random_state=0,
    )
    labels = cross_val_predict(model, X, y, cv=KFold(5, shuffle=True, random_state=0), method="predict")
    assert (labels[y == 1] == -1).mean() < 0.1
    assert (labels[y == -1] == -1).mean() > 0.9
    normal = X[y == 1]
    labels, margins = (cross_val_predict(model, normal, cv=5, method=m) for m in ("predict", "decision_function"))
    np.testing.assert_array_equal(margins < 0, labels == -1)


@pytest.fixture(scope="module")
def images():
    return textured_images(40)


@pytest.fixture(scope="module")
def on_images(images):
    detector = small_detector(max_epochs=2).set_params(backbone="embedded")
    return ConformalThreshold(detector, max_false_alarm_rate=0.1, random_state=0).fit(images)


def test_scores_and_anomaly_maps_are_the_detectors_and_labels_use_the_new_threshold(on_images, images):
    few, inner = images[:4], on_images.detector_
    np.testing.assert_array_equal(on_images.score_samples(few), inner.score_samples(few))
    np.testing.assert_array_equal(on_images.decision_function(few), inner.score_samples(few) - on_images.offset_)
    np.testing.assert_array_equal(on_images.predict(few) == -1, inner.score_samples(few) < on_images.offset_)
    np.testing.assert_array_equal(on_images.anomaly_map(few), inner.anomaly_map(few))
    np.testing.assert_array_equal(list(on_images.iter_anomaly_maps(few)), inner.anomaly_map(few))
    scores, maps = zip(*on_images.iter_scores_and_maps(few, size="input"), strict=True)
    np.testing.assert_array_equal(scores, inner.score_samples(few))
    np.testing.assert_array_equal(maps, inner.anomaly_map(few, size="input"))
    assert on_images.offset_ != inner.offset_


def test_paths_and_arrays_of_the_same_images_give_the_same_threshold(on_images, images, tmp_path):
    paths = [tmp_path / f"{i:02d}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    from_paths = clone(on_images).fit(paths)
    np.testing.assert_array_equal(from_paths.calibration_scores_, on_images.calibration_scores_)


def test_an_array_of_images_is_not_copied():
    images = textured_images(30, side=32)
    detector = Images("embedded", image_size=32, max_epochs=1, hidden_dim=16, device="cpu", random_state=0)
    model = ConformalThreshold(detector, max_false_alarm_rate=0.1).fit(images)
    assert all(np.shares_memory(image, images) for image in model.detector_.given_)


def test_a_pickled_copy_gives_the_same_p_values(on_images, images):
    copy = pickle.loads(pickle.dumps(on_images))
    np.testing.assert_array_equal(copy.p_values(images), on_images.p_values(images))
    assert copy.offset_ == on_images.offset_


def mean_margin(estimator, X, y=None):
    return float(estimator.decision_function(X).mean())


def test_a_search_over_the_detectors_parameters_works(on_images, images):
    search = GridSearchCV(clone(on_images), {"detector__alpha": [0.5, 1.0]}, scoring=mean_margin, cv=2)
    search.set_params(estimator__max_false_alarm_rate=0.2, estimator__detector__max_epochs=1).fit(images)
    assert search.best_params_["detector__alpha"] in (0.5, 1.0)
    assert search.best_estimator_.detector_.alpha == search.best_params_["detector__alpha"]


def test_attributes_of_an_earlier_fit_are_removed():
    model = ConformalThreshold(IsolationForest(n_estimators=5), max_false_alarm_rate=0.2).fit(np.eye(40))
    assert model.n_features_in_ == 40
    assert not hasattr(model.set_params(detector=Plain()).fit(np.arange(40.0)[:, None]), "n_features_in_")


# The benchmark --------------------------------------------------------------------------------------------


def test_the_thresholds_benchmark_resumes(tmp_path):
    table = tmp_path / "thresholds.csv"
    command = [sys.executable, Path(__file__).parents[1] / "benchmarks" / "thresholds.py", "--output", table]
    command += ["--kinds", "hex_nut", "--image-size", "32", "--max-epochs", "1", "--seeds", "0"]
    command += ["--n-normal", "5", "--n-anomalous", "4", "--sizes"]
    subprocess.run([*command, "4"], check=True, capture_output=True)
    first = table.read_text()
    second = subprocess.run([*command, "4", "6"], check=True, capture_output=True, text=True).stdout
    assert table.read_text().startswith(first)
    with table.open(newline="") as file:
        candidates = [(row["n_train"], row["candidate"]) for row in csv.DictReader(file)]
    assert [name for n, name in candidates if n == "4"] == [name for n, name in candidates if n == "6"]
    assert "| auto |" in second


@pytest.mark.parametrize("cv", [None, 4])
def test_unsure_is_what_is_not_flagged_but_has_a_small_p_value(cv):
    rng = np.random.default_rng(0)
    threshold = ConformalThreshold(IsolationForest(random_state=0), max_false_alarm_rate=0.05, cv=cv, random_state=0)
    threshold.fit(rng.normal(size=(120, 2)))
    X = rng.normal(size=(300, 2)) * 1.5
    verdicts, labels, p_values = threshold.verdicts(X, 0.2), threshold.predict(X), threshold.p_values(X)
    expected = [
        "anomalous" if y == -1 else "unsure" if p <= 0.2 else "normal" for y, p in zip(labels, p_values, strict=True)
    ]
    assert verdicts.tolist() == expected
    assert set(expected) == {"normal", "unsure", "anomalous"}
    with pytest.raises(ValueError, match=r"unsure_rate=0.7: expected a number in \(0, 0.5\]"):
        threshold.verdicts(X, 0.7)
