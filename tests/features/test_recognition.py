"""Training images are recognized in prediction, and scored as if they were new."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images
from PIL import Image

from skpbas._features.recognition import UNKNOWN, TrainingImages, fingerprint
from skpbas.core.coreset import Coreset


@pytest.fixture(scope="module")
def detector(good_images):
    return small_detector(precision="float32", contamination=0.25).fit(good_images)


def without_exemplars_of(detector, index):
    """Score as a detector that never saw the exemplars of a training image, nor the image itself."""
    other = copy.deepcopy(detector)
    scorer, unknown = other.model_.patch_scorer, TrainingImages([])
    kept = scorer.coreset.image_index != index
    parts = [scorer.coreset.mean, scorer.coreset.directions, scorer.coreset.exemplars[kept]]
    scorer.coreset = Coreset(*parts, scorer.coreset.image_index[kept])
    object.__setattr__(other._reading, "training", unknown)
    return other


def test_a_training_image_scores_as_if_its_own_exemplars_did_not_exist(detector, good_images):
    scores = detector.score_samples(good_images)
    maps = detector.anomaly_map(good_images)
    for index in range(len(good_images)):
        other, image = without_exemplars_of(detector, index), good_images[index : index + 1]
        np.testing.assert_allclose(scores[index], other.score_samples(image)[0], rtol=1e-4)
        np.testing.assert_allclose(maps[index], other.anomaly_map(image)[0], rtol=1e-4)
    np.testing.assert_allclose(-scores, detector.model_.patch_scorer.training_scores, rtol=1e-3)  # stored in float16


def as_files(images, folder):
    paths = [folder / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    return paths


FORMS = {
    "paths": as_files,
    "PIL images": lambda images, _: [Image.fromarray(image) for image in images],
    "a generator": lambda images, _: (image for image in images),
    "a tensor": lambda images, _: torch.from_numpy(images.copy()),
    "with opaque alpha": lambda images, _: np.concatenate([images, np.full_like(images[..., :1], 255)], axis=-1),
    "in reverse": lambda images, _: images[::-1],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_training_image_is_recognized_in_any_form(form, detector, good_images, tmp_path):
    expected = detector.score_samples(good_images)[:: -1 if form == "in reverse" else 1]
    X = FORMS[form](good_images, tmp_path)
    np.testing.assert_array_equal([score for score, _ in detector.iter_scores_and_maps(X)], expected)


def test_a_training_image_is_recognized_by_pickles_threads_and_cached_features(detector, good_images, tmp_path):
    expected = detector.score_samples(good_images)
    for other in (
        pickle.loads(pickle.dumps(detector)),
        copy.deepcopy(detector).set_params(n_jobs=2),
        copy.deepcopy(detector).set_params(memory=tmp_path),  # writes
        copy.deepcopy(detector).set_params(memory=tmp_path),  # reads
    ):
        np.testing.assert_allclose(other.score_samples(good_images), expected, rtol=1e-3)  # float16 in the cache
    cached = small_detector(precision="float32", contamination=0.25, memory=tmp_path).fit(good_images)
    np.testing.assert_allclose(cached.score_samples(good_images), expected, rtol=1e-3)
    assert (cached.predict(good_images) == -1).sum() == 3


def test_an_image_that_differs_by_one_gray_value_is_a_new_one(detector, good_images):
    image = good_images[:1].copy()
    image[0, 5, 7, 1] ^= 1
    assert detector.score_samples(image)[0] > detector.score_samples(good_images[:1])[0] + 0.1


def test_gray_and_deep_images_are_recognized(tmp_path):
    gray = textured_images(6)[..., 0]
    for images in (gray, gray.astype(np.uint16) * 257, gray / 255):
        detector = small_detector(max_epochs=1, contamination=0.34, precision="float32").fit(images)
        expected = detector.model_.patch_scorer.training_scores
        np.testing.assert_allclose(-detector.score_samples(images), expected, rtol=1e-3)
        assert (detector.predict(images) == -1).sum() == 2


def test_known_defects_in_the_training_set_do_not_shift_the_indices(good_images):
    X, y = np.concatenate([255 - good_images[:2], good_images]), np.r_[-1, -1, np.ones(len(good_images))]
    detector = small_detector(precision="float32").fit(X, y)
    expected = detector.model_.patch_scorer.training_scores
    np.testing.assert_allclose(-detector.score_samples(good_images), expected, rtol=1e-3)


def test_equal_training_images_count_as_one_when_they_are_scored_as_new(good_images):
    twice = np.concatenate([good_images, good_images])
    detector = small_detector(precision="float32", contamination=0.25).fit(twice)
    scorer = detector.model_.patch_scorer
    np.testing.assert_allclose(-detector.score_samples(twice), scorer.training_scores, rtol=1e-3)
    np.testing.assert_array_equal(scorer.training_scores[:12], scorer.training_scores[12:])
    assert scorer.coreset.image_index.max() < 12
    unseen = -detector.score_samples(textured_images(12, seed=1))
    assert scorer.training_scores.min() > unseen.mean() / 3  # as far away as new ones, not next to their equals
    assert (detector.predict(twice) == -1).sum() == 6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_equal_views_have_equal_fingerprints_and_others_do_not(dtype):
    view = (torch.rand(3, 8, 9, generator=torch.Generator().manual_seed(0)) * 255).to(dtype)
    gray = view[:1].expand(3, -1, -1)
    images = TrainingImages([fingerprint(view), fingerprint(gray), fingerprint(view)])
    assert [images.index_of_view(v) for v in (view.clone(), gray.contiguous())] == [0, 1]
    last = view.clone()
    last[2, 7, 8] += 1  # outside the channel that the checksum covers
    for other in (last, view.flip(0), view.transpose(1, 2), view.double(), view[:, :, :8]):
        assert images.index_of_view(other) == UNKNOWN
    buffer = io.BytesIO(pickle.dumps(images))
    assert pickle.load(buffer).index_of(fingerprint(gray)) == 1
