"""``partial_fit``: further good images for a fitted detector."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images

import skpbas
from skpbas import PBASDetector
from skpbas.core.coreset import Coreset, farthest_points
from skpbas.core.whole_images import WholeImages
from skpbas.datasets import make_inspection_images
from skpbas.errors import InvalidImageError, InvalidTargetError
from skpbas.masks import ignoring
from skpbas.metrics import image_auroc

pytestmark = pytest.mark.filterwarnings("ignore:.*different images of")

MORE = textured_images(6, seed=1)


@pytest.fixture
def detector(fitted):
    return copy.deepcopy(fitted)


def state(detector):
    return {name: value for name, value in vars(detector).items() if name.endswith("_") or name == "_reading"}


def test_before_fit_it_is_fit(good_images, fitted):
    first = small_detector().partial_fit(good_images)
    np.testing.assert_array_equal(first.score_samples(MORE), fitted.score_samples(MORE))
    assert first.offset_ == fitted.offset_


def test_networks_and_reading_stay_and_counts_grow(detector, fitted):
    assert detector.partial_fit(MORE[:4]).partial_fit(MORE[4:]) is detector
    for name in ("projector_", "discriminator_", "feature_extractor_"):
        ours, theirs = getattr(detector, name).state_dict(), getattr(fitted, name).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    assert torch.equal(detector.center_, fitted.center_)
    assert detector._reading.view_shape == fitted._reading.view_shape
    assert (detector.n_iter_, detector.loss_curve_) == (fitted.n_iter_, fitted.loss_curve_)
    assert detector.n_samples_fit_ == len(detector.training_scores_) == detector.good_statistics_.n_images == 18
    assert detector.p_values(np.zeros_like(MORE[:1])) == [1 / 19]


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"scales": (1.0, 0.5)},
        {"tile": 32, "image_size": 32},
        {"resize": "crop", "contamination": 0.2},
        {"n_exemplars": 50, "precision": "float32"},
    ],
    ids=str,
)
def test_new_images_count_as_new_from_then_on(params):
    detector = small_detector(max_epochs=2, **params).fit(textured_images(8))
    detector.partial_fit(MORE)
    model, index = detector.model_, torch.arange(8, 14)
    assert detector._reading.training.fingerprints()[8:] == [
        skpbas._features.recognition.fingerprint(torch.from_numpy(image).permute(2, 0, 1)) for image in MORE
    ]
    model.whole_images = None  # its part is not in the scores of training
    np.testing.assert_allclose(detector.score_samples(MORE), detector.training_scores_[8:], rtol=2e-3)
    new = detector.score_samples(np.ascontiguousarray(MORE[:, ::-1]))
    assert (new < 0).all()
    assert index.max() == 13


@pytest.mark.parametrize("params", [{"patch_score": "discriminator"}, {"synthesis": None}], ids=str)
def test_without_exemplars_the_threshold_follows_the_scores_of_all_images(params):
    detector = small_detector(max_epochs=2, **params).fit(textured_images(12))
    before, scores = detector.offset_, detector.training_scores_
    others = textured_images(12, seed=3) // 2 + 100  # of little contrast
    detector.partial_fit(textured_images(12))
    assert detector.offset_ == pytest.approx(before, abs=0.5 * scores.std())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        detector.partial_fit(others)
    flagged = (detector.training_scores_ < detector.offset_).mean()
    assert detector.n_samples_fit_ == 36
    assert flagged <= 1 / 36


def test_the_same_images_give_the_same_detector_whatever_the_random_state(fitted):
    first, second = copy.deepcopy(fitted), copy.deepcopy(fitted).set_params(random_state=5)
    for one in (first, second):
        one.partial_fit(MORE)
    np.testing.assert_array_equal(first.score_samples(MORE), second.score_samples(MORE))
    assert first.map_threshold_ == second.map_threshold_


def test_images_that_are_known_change_little(good_images):
    detector = small_detector(max_epochs=2, n_exemplars=128).fit(good_images)
    offset, threshold, scores = detector.offset_, detector.map_threshold_, detector.score_samples(MORE)
    for _ in range(3):
        detector.partial_fit(good_images)
    assert detector.offset_ == pytest.approx(offset, rel=0.08)  # more images say more surely how they vary
    assert detector.map_threshold_ == pytest.approx(threshold, rel=0.08)
    np.testing.assert_allclose(detector.score_samples(MORE), scores, rtol=0.1)
    assert int(detector.model_.patch_scorer.coreset.image_index.max()) < len(good_images)  # under their numbers


def test_the_unit_of_distances_is_the_mean_over_all_images(detector, fitted):
    detector.partial_fit(MORE)
    now = detector.model_.patch_scorer
    of_new = copy.deepcopy(now)
    of_new.mean_distance = torch.tensor(1.0)
    maps = detector._level_maps(MORE, detector.feature_extractor_)
    store = maps.store(range(6), torch.float16, show_progress=False)
    parts = [part.float() for part in store.get(torch.arange(6))]
    distances = of_new.distances(parts, torch.arange(12, 18))
    expected = (12 * fitted.model_.patch_scorer.mean_distance + 6 * distances.mean()) / 18
    torch.testing.assert_close(now.mean_distance, expected, rtol=1e-3, atol=0)


def test_exemplars_are_the_farthest_among_those_known_and_new_patches():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.rand(300, 8, generator=generator), torch.rand(200, 8, generator=generator) + 0.5
    known = Coreset.of([(first, torch.arange(300) % 3)], n_exemplars=40, n_directions=4)
    both = Coreset.of([(second, 3 + torch.arange(200) % 2)], n_exemplars=50, known=known)
    pool = torch.cat([known.exemplars, known.reduce(second)])
    numbers = torch.cat([known.image_index, 3 + torch.arange(200) % 2])
    chosen = farthest_points(pool, 50)
    torch.testing.assert_close(both.exemplars, pool[chosen], rtol=0, atol=1e-6)
    assert torch.equal(both.image_index, numbers[chosen])
    assert torch.equal(both.directions, known.directions)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_the_detector_as_it_was(detector, monkeypatch, error):
    before, scores = state(detector), detector.score_samples(MORE)

    def interrupted(*args, **kwargs):
        raise error

    monkeypatch.setattr(WholeImages, "of", interrupted)  # one of the last steps
    with pytest.raises(error):
        detector.partial_fit(MORE)
    assert all(vars(detector)[name] is value for name, value in before.items())
    np.testing.assert_array_equal(detector.score_samples(MORE), scores)


def test_defective_images_are_left_out_as_in_fit(detector, fitted):
    marked = detector.partial_fit(MORE, [1, 1, 1, 1, -1, -1])
    alone = copy.deepcopy(fitted).partial_fit(MORE[:4])
    np.testing.assert_array_equal(marked.training_scores_, alone.training_scores_)
    with pytest.raises(InvalidImageError, match="partial_fit needs at least 1 normal image; y marks 0 of 6 as normal"):
        detector.partial_fit(MORE, -np.ones(6, int))
    with pytest.raises(InvalidTargetError, match="2 entries for 6 images"):
        detector.partial_fit(MORE, [1, 1])
    with pytest.raises(InvalidImageError, match=r"X\[1\]"):
        detector.partial_fit([MORE[0], np.zeros((2, 2), np.uint8)])
    assert detector.n_samples_fit_ == 16


def test_a_new_image_that_looks_defective_is_left_out_and_named(detector, fitted):
    batch = textured_images(10, seed=4)
    batch[7, 10:50, 10:50] = [255, 0, 255]
    with pytest.warns(UserWarning, match=r"1 of 10 training images look defective.*X\[7\]"):
        detector.partial_fit(batch)
    assert (detector.training_outliers_.tolist(), detector.n_samples_fit_) == ([7], 21)
    trusting = copy.deepcopy(fitted).set_params(exclude_outliers=False).partial_fit(batch)
    assert (trusting.training_outliers_.tolist(), trusting.n_samples_fit_) == ([], 22)
    few = copy.deepcopy(fitted).partial_fit(batch[5:8])
    assert few.n_samples_fit_ == 15


def test_images_of_another_light_are_named_once_and_become_usual(detector):
    bright = np.uint8(np.clip(MORE * 1.5, 0, 255))
    with pytest.warns(UserWarning, match="6 of 6 images are brighter"):
        detector.partial_fit(bright)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.predict(np.ascontiguousarray(bright[:, ::-1]))


def test_an_opened_detector_learns_the_same(detector, tmp_path):
    detector.save(tmp_path / "part.skpbas")
    opened, unpickled = skpbas.load(tmp_path / "part.skpbas"), pickle.loads(pickle.dumps(detector))
    for one in (detector, opened, unpickled):
        one.partial_fit(MORE)
        np.testing.assert_array_equal(one.training_scores_, detector.training_scores_)
        assert (one.offset_, one.map_threshold_) == (detector.offset_, detector.map_threshold_)
    opened.save(tmp_path / "more.skpbas")
    again = skpbas.load(tmp_path / "more.skpbas")
    np.testing.assert_array_equal(again.score_samples(MORE), detector.score_samples(MORE))


def test_ignored_regions_and_other_sizes_are_accepted(detector):
    region = np.zeros((64, 64), bool)
    region[:16, :16] = True
    stamped = MORE.copy()
    stamped[:, :16, :16] = 255
    detector.partial_fit(ignoring(list(stamped), region))
    assert detector.n_samples_fit_ == 18
    detector.partial_fit(list(textured_images(2, side=80, seed=7)))
    assert detector.good_statistics_.heights == (64, pytest.approx(65.6), 80)


def test_a_new_shade_becomes_normal_and_defects_stay_behind_it():
    made = make_inspection_images(90, 20, kind="hex_nut", size=64, random_state=0)
    good, defective = made.images[:90], made.images[90:]
    tint = np.array([0.6, 0.9, 1.2])

    def shaded(images):
        return np.uint8(np.clip(images * tint, 0, 255))

    detector = PBASDetector("embedded", image_size=64, max_epochs=4, random_state=0).fit(good[:30])
    known, other = good[60:75], shaded(good[75:])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of other colors
        before = detector.decision_function(other)
        scores = detector.decision_function(np.concatenate([known, defective]))
        ranked_before = image_auroc(np.repeat([1, -1], [len(known), len(defective)]), -scores)
        detector.partial_fit(shaded(good[30:60]))
        now = detector.decision_function(np.concatenate([other, known, defective]))
    of_other, of_known, _ = np.split(now, [len(other), len(other) + len(known)])
    assert (before < 0).mean() > 0.8
    assert (of_other < 0).mean() < 0.15
    assert (of_known < 0).mean() < 0.15
    labels = np.repeat([1, -1], [len(other) + len(known), len(defective)])
    ranked = image_auroc(labels[len(other) :], -now[len(other) :])
    assert ranked == pytest.approx(ranked_before, abs=0.02)
    assert image_auroc(labels, -now) > 0.9
