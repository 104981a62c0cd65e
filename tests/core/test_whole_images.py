"""Images that are unlike all training images as a whole are anomalous, and ordinary ones keep their scores."""

import numpy as np
import pytest
import torch

from skpbas import PBASDetector
from skpbas.core.whole_images import MAX_KNOWN, WholeImages, describe
from skpbas.datasets import make_inspection_images


def pooled_features(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 6, 8, 8, generator=generator), torch.randn(n, 10, 4, 4, generator=generator)]


def test_a_description_is_the_mean_and_the_deviation_of_each_channel():
    parts = pooled_features(3)
    expected = np.concatenate([f(part.numpy(), axis=(2, 3)) for part in parts for f in (np.mean, np.std)], axis=1)
    np.testing.assert_allclose(describe(parts).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_training_images_set_the_radius_and_have_nothing_added():
    descriptions = describe(pooled_features(20))
    whole_images = WholeImages.of(descriptions, torch.arange(20), unit=2.0)
    between = np.linalg.norm(descriptions.numpy()[:, None] - descriptions.numpy(), axis=2)
    np.fill_diagonal(between, np.inf)
    assert float(whole_images.radius) == pytest.approx(21 / 20 * between.min(1).max(), rel=1e-4)
    assert whole_images(descriptions, torch.arange(20)).max() == 0


def test_beyond_a_radius_and_a_quarter_each_quarter_adds_a_unit():
    known = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    whole_images = WholeImages.of(known, torch.arange(2), unit=3.0)
    assert float(whole_images.radius) == pytest.approx(1.5)  # a distance of 1, times 1 + 1/2
    new = torch.tensor([[2.5, 0.0], [2.875, 0.0], [3.25, 0.0], [0.0, 3.0]])
    np.testing.assert_allclose(whole_images(new).numpy(), [0, 0, 3, 9], atol=1e-5)


def test_equal_training_images_have_a_radius_and_nothing_added():
    descriptions = describe(pooled_features(1)).repeat(5, 1)
    whole_images = WholeImages.of(descriptions, torch.zeros(5, dtype=torch.int64), unit=1.0)
    assert whole_images.radius > 0
    assert whole_images(descriptions).max() == 0
    assert whole_images(descriptions + 1).min() > 1


def test_of_many_training_images_some_are_kept_and_all_are_within_the_radius():
    descriptions = torch.randn(MAX_KNOWN + 100, 12, generator=torch.Generator().manual_seed(0))
    index = torch.arange(len(descriptions))
    whole_images = WholeImages.of(descriptions, index, unit=1.0)
    assert len(whole_images.known) == MAX_KNOWN
    assert whole_images.distance(descriptions, index).max() <= whole_images.radius * (1 + 1e-5)


@pytest.fixture(scope="module", params=["fused", "discriminator", "distance"])
def fitted(request):
    images = make_inspection_images(48, 8, kind="hex_nut", size=64, random_state=0).images
    detector = PBASDetector("embedded", image_size=64, max_epochs=4, patch_score=request.param, random_state=0)
    return detector.fit(images[:32]), images


def frames(images):
    """Images without a part: uniform ones, noise, and half a part."""
    shape, rng = images.shape[1:], np.random.default_rng(0)
    uniform = [np.full(shape, value, np.uint8) for value in (0, 128, 255)]
    half = images[0].copy()
    half[:, shape[1] // 2 :] = 0
    return np.stack([*uniform, rng.integers(0, 256, shape).astype(np.uint8), half])


def test_frames_without_a_part_are_anomalous(fitted):
    detector, images = fitted
    assert (detector.predict(frames(images)) == -1).all()
    assert all(len(regions) >= 1 for regions in detector.find_regions(frames(images)))


def test_good_images_and_maps_keep_what_patches_say(fitted):
    detector, images = fitted
    before = detector.score_samples(images[32:48]), detector.anomaly_map(frames(images))
    whole_images, detector.model_.whole_images = detector.model_.whole_images, None
    try:
        np.testing.assert_array_equal(detector.score_samples(images[32:48]), before[0])
        np.testing.assert_array_equal(detector.anomaly_map(frames(images)), before[1])
    finally:
        detector.model_.whole_images = whole_images


def test_with_tiles_the_whole_image_counts():
    images = make_inspection_images(16, 0, kind="hex_nut", size=96, random_state=0).images
    detector = PBASDetector("embedded", image_size=64, tile=64, max_epochs=2, random_state=0).fit(images)
    assert detector.model_.n_tiles == 4
    assert detector.model_.whole_images(torch.zeros(1, detector.model_.whole_images.known.shape[1])).item() > 0
    assert (detector.predict(frames(images)[:4]) == -1).all()


def test_copies_of_one_image_are_normal_and_other_images_are_not():
    images = make_inspection_images(6, 0, kind="hex_nut", size=64, random_state=0).images
    detector = PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0)
    with pytest.warns(UserWarning, match="1 different images of 10"):
        detector.fit(np.repeat(images[:1], 10, axis=0))
    assert detector.predict(images[:1]).tolist() == [1]
    assert detector.predict(images[1:]).tolist() == [-1] * 5
