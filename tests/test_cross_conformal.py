"""Cross-conformal thresholds: p-values, margins and labels, what is guaranteed, streams, regions and errors."""

from __future__ import annotations

import itertools
import pickle
import subprocess
import sys
import weakref

import numpy as np
import pytest
from helpers import ROOT, small_detector, textured_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.utils.estimator_checks import parametrize_with_checks

from skpbas import PBASDetector
from skpbas._decisions import conformal
from skpbas._features.cache import MapCache
from skpbas.calibration import ConformalThreshold
from skpbas.errors import CalibrationError, InvalidImageError


class Shifted(OutlierMixin, BaseEstimator):
    """Scores samples by their value above the rounded mean of the training samples, which differs between folds."""

    def fit(self, X, y=None):
        self.seen_ = np.ravel(X).copy()
        return self

    def score_samples(self, X):
        return np.ravel(X) - np.round(self.seen_.mean())


class Distance(Shifted):
    """Minus the distance from the mean of the training samples."""

    def score_samples(self, X):
        return -np.abs(np.ravel(X) - self.seen_.mean())


class Nearest(Shifted):
    """Minus the distance to the nearest training sample: training matters as much as it can."""

    def score_samples(self, X):
        return -np.abs(np.ravel(X)[:, None] - self.seen_).min(axis=1)


class Untrainable(Shifted):
    def fit(self, X, y=None):
        raise AssertionError("training began")


def column(values):
    return np.asarray(values, float)[:, None]


# Labels, p-values and margins ------------------------------------------------------------------------------


def by_loop(model, x):
    """The count of calibration scores that are at most as high, and all differences, one by one."""
    differences = []
    for detector, known in zip(model.fold_detectors_, model.fold_scores_, strict=True):
        score = detector.score_samples(column([x]))[0]
        differences += [score - s for s in known]
    return sum(difference >= 0 for difference in differences), sorted(differences, reverse=True)


@given(
    normal=st.lists(st.integers(-5, 5), min_size=3, max_size=40),
    new=st.lists(st.one_of(st.integers(-8, 8), st.just(-np.inf)), min_size=1, max_size=10),
    cv=st.integers(2, 6),
    percent=st.one_of(st.integers(1, 99).map(lambda i: i / 100), st.floats(0.01, 0.999)),
    seed=st.integers(0, 9),
)
@settings(max_examples=300, deadline=None)
def test_labels_p_values_and_margins_are_those_of_a_loop_also_with_ties(normal, new, cv, percent, seed):
    model = ConformalThreshold(Shifted(), max_false_alarm_rate=percent, cv=cv, random_state=seed)
    n = len(normal)
    if cv > n or 1 / (n + 1) > percent:
        with pytest.raises(CalibrationError):
            model.fit(column(normal))
        return
    model.fit(column(normal))
    rank = round(model.false_alarm_rate_ * (n + 1))
    counts, differences = zip(*(by_loop(model, x) for x in new), strict=True)
    margins, p_values = model.decision_function(column(new)), model.p_values(column(new))
    np.testing.assert_array_equal(p_values, (1 + np.array(counts)) / (n + 1))
    np.testing.assert_array_equal(margins, [of_image[rank - 1] for of_image in differences])
    flagged = model.predict(column(new)) == -1
    np.testing.assert_array_equal(flagged, p_values <= percent)
    np.testing.assert_array_equal(flagged, margins < 0)
    np.testing.assert_array_equal(flagged, model.score_samples(column(new)) < model.offset_)


def test_margins_of_many_images_are_computed_in_parts_and_are_those_of_each_alone(monkeypatch):
    rng = np.random.default_rng(0)
    model = ConformalThreshold(Distance(), max_false_alarm_rate=0.2, cv=4, random_state=0)
    model.fit(rng.normal(size=(37, 1)))
    X = rng.normal(size=(50, 1))
    alone = [model.decision_function(x[None])[0] for x in X]
    np.testing.assert_array_equal(model.decision_function(X), alone)
    monkeypatch.setattr(conformal, "_CHUNK", 1)
    np.testing.assert_array_equal(model.decision_function(X), alone)


def test_a_margin_too_small_for_the_scores_still_flags():
    scores = conformal.scores_of_margins(np.array([-1e-30, 0.0, 1e-30, -np.inf]), 5.0)
    np.testing.assert_array_equal(scores < 5.0, [True, False, False, True])
    np.testing.assert_allclose(scores[:3], 5.0, rtol=np.finfo(float).eps)


def test_every_normal_sample_is_scored_by_the_detector_that_did_not_see_it():
    X = np.random.default_rng(0).normal(size=(43, 1))
    y = np.where(np.arange(43) % 10 == 0, -1, 1)
    model = ConformalThreshold(Nearest(), max_false_alarm_rate=0.1, cv=5, random_state=0).fit(X, y)
    normal = X[y == 1, 0]
    assert [len(scores) for scores in model.fold_scores_] == [8, 8, 8, 7, 7]
    left_out = [np.setdiff1d(normal, detector.seen_) for detector in model.fold_detectors_]
    assert sorted(np.concatenate(left_out)) == sorted(normal)
    for detector, fold, scores in zip(model.fold_detectors_, left_out, model.fold_scores_, strict=True):
        np.testing.assert_array_equal(scores, np.sort(detector.score_samples(column(fold))))
    np.testing.assert_array_equal(model.calibration_scores_, np.sort(np.concatenate(model.fold_scores_)))
    assert sorted(model.detector_.seen_) == sorted(normal)
    assert model.offset_ == model.calibration_scores_[round(model.false_alarm_rate_ * 39) - 1]


def test_the_folds_depend_on_random_state_only():
    X = np.random.default_rng(0).normal(size=(40, 1))
    first, again, other = (
        ConformalThreshold(Distance(), max_false_alarm_rate=0.1, cv=3, random_state=seed).fit(X).fold_scores_
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(np.concatenate(first), np.concatenate(again))
    assert not np.array_equal(np.concatenate(first), np.concatenate(other))


# What is guaranteed ----------------------------------------------------------------------------------------


@given(n=st.integers(2, 300), cv=st.integers(2, 300), share=st.floats(0, 1))
@settings(max_examples=300, deadline=None)
def test_the_bound_is_between_the_rate_that_is_aimed_for_and_twice_a_mean_of_p_values(n, cv, share):
    cv = min(cv, n)
    rank = 1 + round(share * (n - 1))
    bound = conformal.cross_bound([len(fold) for fold in np.array_split(np.arange(n), cv)], rank)
    assert rank / (n + 1) <= bound * (1 + 1e-12)
    assert bound <= min(1.0, 2 * (rank + cv - 1) / (n + cv)) * (1 + 1e-12)


def test_the_bound_is_the_lowest_over_all_whole_numbers():
    sizes, rank = [3, 2, 2], 3

    def quotient(u):
        means = sum(sum(i / (size + 1) for i in range(1, count + 1)) for size, count in zip(sizes, u, strict=True))
        return means / (sum(u) - rank + 1)

    choices = itertools.product(*(range(size + 2) for size in sizes))
    lowest = min(quotient(u) for u in choices if sum(u) >= rank)
    assert conformal.cross_bound(sizes, rank) == pytest.approx(min(1, lowest), rel=1e-12)


def test_the_bound_of_a_held_out_part_is_its_rate():
    model = ConformalThreshold(Distance(), max_false_alarm_rate=0.1).fit(np.arange(60.0)[:, None])
    assert model.false_alarm_bound_ == model.false_alarm_rate_


@pytest.mark.parametrize(("cv", "n", "rate"), [(5, 31, 0.1), (2, 20, 0.2), (20, 20, 0.1), (5, 80, 0.05)])
@pytest.mark.parametrize("detector", [Distance(), Nearest()])
def test_the_false_alarm_rate_is_below_the_bound(detector, cv, n, rate):
    rng, n_repeats = np.random.default_rng(0), 300
    model = ConformalThreshold(detector, max_false_alarm_rate=rate, cv=cv, random_state=0)
    n_flagged = sum(
        int(model.fit(rng.standard_cauchy((n, 1))).predict(rng.standard_cauchy((1, 1)))[0] == -1)
        for _ in range(n_repeats)  # one new sample for each fit: independent events
    )
    assert n_flagged <= binom.ppf(1 - 1e-6, n_repeats, model.false_alarm_bound_)


@pytest.mark.parametrize("cv", [5, 10])
def test_the_false_alarm_rate_is_near_the_one_that_is_aimed_for_if_the_detectors_are_alike(cv):
    rng, n_repeats = np.random.default_rng(0), 600
    model = ConformalThreshold(Distance(), max_false_alarm_rate=0.1, cv=cv, random_state=0)
    n_flagged = sum(
        int(model.fit(rng.normal(size=(60, 1))).predict(rng.normal(size=(1, 1)))[0] == -1) for _ in range(n_repeats)
    )
    low, high = binom.ppf([1e-6, 1 - 1e-6], n_repeats, model.false_alarm_rate_)
    assert low <= n_flagged <= high
    assert high / n_repeats < model.false_alarm_bound_


# Errors ----------------------------------------------------------------------------------------------------


def test_a_frozen_detector_and_folds_exclude_each_other():
    model = ConformalThreshold(FrozenEstimator(Shifted().fit([0.0])), max_false_alarm_rate=0.1, cv=5)
    with pytest.raises(CalibrationError, match=r"cv=5 .*FrozenEstimator .*set cv=None.* or pass the detector without"):
        model.fit(np.arange(40.0)[:, None])


def test_more_folds_than_samples_are_an_error():
    with pytest.raises(CalibrationError, match=r"cv=8 needs at least 8 normal samples.* got n_samples=7"):
        ConformalThreshold(Untrainable(), max_false_alarm_rate=0.5, cv=8).fit(np.zeros((9, 1)), [1] * 7 + [-1] * 2)


@pytest.mark.parametrize(("n", "rate"), [(98, 0.01), (18, 0.05)])
def test_one_sample_too_few_is_an_error_and_one_more_is_enough(n, rate):
    model = ConformalThreshold(Distance(), max_false_alarm_rate=rate, cv=3)
    with pytest.raises(CalibrationError, match=rf"={rate:g} needs at least {n + 1} normal .*cv=3, but there are {n}"):
        clone(model).set_params(detector=Untrainable()).fit(column(range(n)))
    assert model.fit(column(range(n + 1))).false_alarm_rate_ == 1 / (n + 2)


def test_too_few_samples_to_hold_out_half_suggest_folds():
    with pytest.raises(CalibrationError, match="holds out 20 of 39: provide more, set cv=5, or set"):
        ConformalThreshold(Untrainable(), max_false_alarm_rate=0.026).fit(np.zeros((39, 1)))


@pytest.mark.parametrize("cv", [1, True, 2.0, "five"])
def test_the_error_names_cv(cv):
    with pytest.raises(ValueError, match="The 'cv' parameter of ConformalThreshold"):
        ConformalThreshold(Distance(), max_false_alarm_rate=0.1, cv=cv).fit(np.zeros((40, 1)))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_scores_that_are_not_finite_are_errors(bad):
    X = column(range(40))
    model = ConformalThreshold(Shifted(), max_false_alarm_rate=0.1, cv=4, random_state=0).fit(X)
    with pytest.raises(InvalidImageError, match=rf"X\[1\]: the score of Shifted is {bad}"):
        model.predict(column([0.0, bad]))
    assert model.p_values(column([-np.inf])) == 1 / 41
    assert model.decision_function(column([-np.inf])) == -np.inf

    class Bad(Shifted):
        def score_samples(self, X):
            return np.full(len(X), bad)

    with pytest.raises(CalibrationError, match="NaN or infinity for 10 of 10"):
        clone(model).set_params(detector=Bad()).fit(X)


# Behavior as an estimator ----------------------------------------------------------------------------------


class WithoutLabels(ConformalThreshold):
    """Ignores y: the checks pass unrelated class labels."""

    def fit(self, X, y=None):
        return super().fit(X)


@parametrize_with_checks(
    [WithoutLabels(IsolationForest(n_estimators=5, random_state=0), max_false_alarm_rate=0.2, cv=2, random_state=0)]
)
def test_the_estimator_passes_the_checks_of_sklearn(estimator, check):
    check(estimator)


def test_a_fit_without_folds_leaves_nothing_of_one_with_folds():
    X = np.random.default_rng(0).normal(size=(40, 1))
    model = ConformalThreshold(Distance(), max_false_alarm_rate=0.1, cv=2, random_state=0)
    expected = clone(model).set_params(cv=None).fit(X)
    model.fit(X).set_params(cv=None)
    assert len(model.fold_detectors_) == 2  # parameters count from the next fit on
    np.testing.assert_array_equal(model.predict(X), clone(model).set_params(cv=2).fit(X).predict(X))
    assert vars(model.fit(X)).keys() == vars(expected).keys()
    np.testing.assert_array_equal(model.score_samples(X), expected.score_samples(X))


@pytest.fixture(scope="module")
def images():
    return textured_images(12)


@pytest.fixture(scope="module")
def on_images(images):
    detector = small_detector(max_epochs=1).set_params(backbone="embedded")
    return ConformalThreshold(detector, max_false_alarm_rate=0.3, cv=3, random_state=0).fit(images)


@pytest.fixture(scope="module")
def mixed(images):
    """Normal images and ones that are flagged."""
    new = textured_images(4, seed=1)
    return [*new[:2], np.zeros((64, 64), np.uint8), 255 - new[2], new[3]]


def test_a_pickled_copy_gives_the_same_p_values_and_regions(on_images, mixed):
    copy = pickle.loads(pickle.dumps(on_images))
    np.testing.assert_array_equal(copy.p_values(mixed), on_images.p_values(mixed))
    np.testing.assert_array_equal(copy.decision_function(mixed), on_images.decision_function(mixed))
    assert copy.false_alarm_bound_ == on_images.false_alarm_bound_
    regions = [[region.bbox for region in of_image] for of_image in on_images.find_regions(mixed)]
    assert [[region.bbox for region in of_image] for of_image in copy.find_regions(mixed)] == regions


def test_memory_computes_the_features_of_an_image_once(images, tmp_path, monkeypatch):
    stored, store = [], MapCache.store
    monkeypatch.setattr(MapCache, "store", lambda cache, key, image: stored.append(key) or store(cache, key, image))
    detector = PBASDetector("embedded", image_size=32, max_epochs=1, device="cpu", memory=tmp_path, random_state=0)
    ConformalThreshold(detector, max_false_alarm_rate=0.3, cv=3, random_state=0).fit(images)
    assert len(stored) == len(set(stored)) == len(images)


# Streams, maps and regions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("as_iterator", [False, True])
def test_results_of_a_stream_are_those_of_predict_and_p_values(on_images, mixed, maps, as_iterator):
    items = [*mixed[:2], np.zeros((2, 2)), *mixed[2:]]
    stream = on_images.score_stream(iter(items) if as_iterator else items, on_error="skip", maps=maps)
    results = list(stream)
    assert [result.index for result in results] == list(range(6))
    assert "images[2] is 2 x 2 pixels" in results.pop(2).error
    assert [result.label for result in results] == on_images.predict(mixed).tolist()
    assert {1, -1} == {result.label for result in results}
    assert [result.p_value for result in results] == on_images.p_values(mixed).tolist()
    assert [result.verdict for result in results] == on_images.verdicts(mixed).tolist()
    assert [result.score for result in results] == on_images.score_samples(mixed).tolist()
    if maps:
        np.testing.assert_array_equal([result.map for result in results], on_images.anomaly_map(mixed))
    else:
        assert all(result.map is None for result in results)


@pytest.mark.parametrize("as_iterator", [False, True])
def test_scores_and_maps_one_by_one_are_those_of_score_samples_and_anomaly_map(on_images, mixed, as_iterator):
    scored = on_images.iter_scores_and_maps(iter(mixed) if as_iterator else mixed, size="input")
    scores, maps = zip(*scored, strict=True)
    np.testing.assert_array_equal(scores, on_images.score_samples(mixed))
    np.testing.assert_array_equal(maps, on_images.anomaly_map(mixed, size="input"))


class Frame(np.ndarray):
    """An array that weak references may point to."""


@pytest.mark.parametrize("method", ["score_stream", "iter_scores_and_maps"])
def test_an_endless_stream_is_requested_image_by_image_and_no_image_is_kept(on_images, images, method):
    requested, seen = [], []

    def camera():
        for i in itertools.count():
            requested.append(i)
            frame = images[i % len(images)].copy().view(Frame)
            seen.append(weakref.ref(frame))
            yield frame

    stream = getattr(on_images, method)(camera())
    assert requested == []
    for i in range(6):
        next(stream)
        assert requested == list(range(i + 1))
        assert sum(frame() is not None for frame in seen) <= 1


def test_an_error_of_the_iterable_and_an_unusable_image_are_raised(on_images, images):
    def failing():
        yield images[0]
        raise RuntimeError("the camera is gone")

    stream = on_images.score_stream(failing(), on_error="skip")
    assert next(stream).error is None
    with pytest.raises(RuntimeError, match="the camera is gone"):
        next(stream)
    with pytest.raises(InvalidImageError, match=r"images\[1\] is 2 x 2 pixels"):
        list(on_images.score_stream(iter([images[0], np.zeros((2, 2))])))
    with pytest.raises(InvalidImageError, match="has no order"):
        on_images.iter_scores_and_maps({"a.png"})
    with pytest.raises(ValueError, match="on_error='ignore'"):
        on_images.score_stream(images, on_error="ignore")


@pytest.mark.parametrize("cv", [None, 3])
def test_a_flagged_image_has_at_least_one_region(on_images, images, mixed, cv):
    model = on_images if cv else clone(on_images).set_params(cv=None).fit(images)
    model = pickle.loads(pickle.dumps(model))
    model.detector_.map_threshold_ = 2.0  # above all maps: no region comes from the threshold
    flagged = model.predict(mixed) == -1
    assert flagged.any()
    assert not flagged.all()
    for min_area in (1, 10**6):
        assert [len(regions) for regions in model.find_regions(mixed, min_area=min_area)] == flagged.astype(
            int
        ).tolist()
    with pytest.raises(ValueError, match="min_area=0"):
        model.find_regions(mixed, min_area=0)


def test_masks_and_regions_are_those_of_the_detector(on_images, mixed):
    inner = on_images.detector_
    assert on_images.map_threshold_ == inner.map_threshold_
    np.testing.assert_array_equal(on_images.anomaly_mask(mixed), inner.anomaly_map(mixed) > inner.map_threshold_)
    for regions, mask in zip(on_images.find_regions(mixed, "model"), on_images.anomaly_mask(mixed), strict=True):
        if mask.any():
            assert sum(region.area for region in regions) == mask.sum()


def test_what_the_detector_lacks_is_missing():
    model = ConformalThreshold(IsolationForest(n_estimators=5), max_false_alarm_rate=0.2, cv=2).fit(np.eye(20))
    for name in ("anomaly_map", "anomaly_mask", "find_regions", "map_threshold_", "score_stream"):
        assert not hasattr(model, name)
    assert not hasattr(ConformalThreshold(PBASDetector()), "map_threshold_")


# The benchmark ---------------------------------------------------------------------------------------------


def test_the_benchmark_resumes_and_prints_a_table(tmp_path):
    for folder, images in (
        ("train/good", textured_images(10, side=32)),
        ("test/good", textured_images(2, side=32, seed=1)),
        ("test/dark", textured_images(2, side=32, seed=2) // 4),
        ("ground_truth/dark", np.full((2, 32, 32), 255, np.uint8)),
    ):
        (tmp_path / "cloth" / folder).mkdir(parents=True)
        for i, image in enumerate(images):
            suffix = "_mask" if folder.startswith("ground") else ""
            Image.fromarray(image).save(tmp_path / "cloth" / folder / f"{i}{suffix}.png")
    output = tmp_path / "conformal.csv"
    command = [sys.executable, ROOT / "benchmarks" / "conformal.py", "--data", tmp_path, "--category", "cloth"]
    command += ["--sizes", "8", "--rates", "0.15", "0.4", "--cv", "2", "--image-size", "32", "--max-epochs", "1"]
    first = subprocess.run([*command, "--seeds", "0", "--output", output], check=True, capture_output=True, text=True)
    rows = output.read_text().splitlines()
    assert len(rows) == 5
    assert "| cloth | 8 | 0.15 | None | 1 |  |  | 0 of 4 (0.0%) | 2 of 2 (100.0%) |" in first.stdout
    assert "| cloth | 8 | 0.4 | 2 | 1 | 0.3333 |" in first.stdout
    again = subprocess.run([*command, "--seeds", "0", "--output", output], check=True, capture_output=True, text=True)
    assert output.read_text().splitlines() == rows
    assert again.stdout in first.stdout
