"""Ignored regions count for nothing: not in training, not in scores, maps and regions."""

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from sklearn.model_selection import cross_val_predict

from skpbas._inputs.ignoring import Ignored
from skpbas._inputs.images import Geometry
from skpbas.calibration import ConformalThreshold
from skpbas.core.patch_scores import fill_ignored
from skpbas.datasets import make_inspection_images
from skpbas.errors import InvalidImageError, InvalidTargetError
from skpbas.masks import MaskedImage, ignoring
from skpbas.model_selection import synthetic_validation

CORNER = np.zeros((64, 64), bool)
CORNER[:16, :24] = True


def stamped(images, seed=0):
    """Images with noise of another kind in the corner of each, another one every time."""
    images, rng = images.copy(), np.random.default_rng(seed)
    images[:, CORNER] = rng.choice(np.uint8([0, 255]), (len(images), CORNER.sum(), 1))
    return images


def detector_with(**params):
    return small_detector(**{"max_epochs": 3, "n_exemplars": 256, **params}).set_params(backbone="embedded")


@pytest.fixture(scope="module")
def good():
    return textured_images(40)


@pytest.fixture(scope="module")
def detector(good):
    return detector_with().fit(good[:24])


@pytest.mark.parametrize("params", [{}, {"scales": (1, 0.5)}, {"tile": 48, "image_size": 48}, {"resize": "crop"}])
@pytest.mark.parametrize("patch_score", ["fused", "discriminator"])
def test_what_an_ignored_region_shows_does_not_matter(good, params, patch_score):
    if patch_score == "discriminator" and "scales" in params:
        patch_score = "fused"
    fitted = [
        detector_with(patch_score=patch_score, **params).fit(ignoring(stamped(good[:24], seed), CORNER))
        for seed in (0, 1)
    ]
    assert fitted[0].offset_ == fitted[1].offset_
    X = [ignoring(stamped(good[24:32], seed), CORNER) for seed in (2, 3)]
    np.testing.assert_array_equal(fitted[0].score_samples(X[0]), fitted[1].score_samples(X[1]))
    np.testing.assert_array_equal(fitted[0].anomaly_map(X[0]), fitted[1].anomaly_map(X[1]))


def test_a_stamp_that_training_never_saw_is_an_anomaly_unless_it_is_ignored(detector, good):
    assert (detector.predict(stamped(good[24:])) == -1).all()
    as_ignored = detector.decision_function(ignoring(stamped(good[24:]), CORNER))
    assert (as_ignored >= 0).mean() >= 0.9
    defective = stamped(good[24:])
    defective[:, 40:54, 40:54] = 0
    assert (detector.predict(ignoring(defective, CORNER)) == -1).all()


def test_maps_are_zero_and_no_region_lies_where_pixels_are_ignored(detector):
    images = textured_images(3, side=96, seed=5)
    images[:, 40:54, 40:54] = 0
    mask = np.zeros((96, 96), bool)
    mask[:30, 50:] = True
    X = ignoring(images, mask)
    for size, at in (("input", mask), ("model", np.asarray(Image.fromarray(mask).resize((64, 64))))):
        assert (detector.anomaly_map(X, size=size)[:, at] == 0).all()
        assert not detector.anomaly_mask(X, size=size)[:, at].any()
    for regions in detector.find_regions(X):
        for region in regions:
            top, left, height, width = region.bbox
            assert not (region.mask & mask[top : top + height, left : left + width]).any()


def test_masks_may_be_one_for_all_one_for_each_files_or_none(detector, good, tmp_path):
    images = stamped(good[24:28])
    Image.fromarray(CORNER).save(tmp_path / "mask.png")
    expected = detector.score_samples(ignoring(images, CORNER))
    for masks in ([CORNER] * 4, np.stack([CORNER] * 4), str(tmp_path / "mask.png"), [tmp_path / "mask.png"] * 4):
        np.testing.assert_array_equal(detector.score_samples(ignoring(images, masks)), expected)
    some = detector.score_samples(ignoring(images, [CORNER, None, "", CORNER]))
    np.testing.assert_array_equal(some[[0, 3]], expected[[0, 3]])
    np.testing.assert_array_equal(some[1:3], detector.score_samples(images[1:3]))
    nothing = ignoring(images, np.zeros((64, 64), bool))
    np.testing.assert_array_equal(detector.score_samples(nothing), detector.score_samples(images))


def test_paths_iterators_streams_and_lazy_sequences_take_them(detector, good, tmp_path):
    images = stamped(good[24:27])
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    expected = detector.score_samples(ignoring(images, CORNER))

    class Lazy:
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return images[index]

    for X in (paths, Lazy(), [Image.fromarray(image) for image in images]):
        np.testing.assert_array_equal(detector.score_samples(ignoring(X, CORNER)), expected)
    results = list(detector.score_stream(ignoring(iter(paths), CORNER)))
    assert [result.score for result in results] == expected.tolist()
    assert [result.name for result in results] == list(map(str, paths))
    assert all((result.map[CORNER] == 0).all() for result in results)
    assert [
        score for score, _ in detector.iter_scores_and_maps(ignoring(iter(images), iter([CORNER] * 3)))
    ] == expected.tolist()


def test_memory_keeps_masked_and_whole_images_apart(good, tmp_path):
    images = stamped(good[:24])
    plain, cached = (detector_with(memory=memory, precision="float32") for memory in (None, tmp_path))
    for _ in range(2):  # from the folder, the second time
        for X in (images, ignoring(images, CORNER)):
            scores = cached.fit(X).score_samples(X)
            np.testing.assert_allclose(scores, plain.fit(X).score_samples(X), rtol=0.05)


def test_training_images_with_ignored_regions_are_recognized(good):
    X = ignoring(stamped(good[:24]), CORNER)
    detector = detector_with().fit(X)
    np.testing.assert_allclose(detector.score_samples(X), detector.training_scores_, rtol=5e-3)


@pytest.mark.parametrize(
    "params", [{"scales": (1, 0.5)}, {"tile": 48, "image_size": 48}, {"scales": (1, 0.5), "tile": 48}]
)
def test_training_and_prediction_leave_out_the_same_patches_at_every_scale_and_tile(good, params):
    X, size = ignoring(stamped(good[:24]), CORNER), {"image_size": params.get("tile", 64), **params}
    detector = detector_with(precision="float32", **size).fit(X)
    np.testing.assert_allclose(detector.score_samples(X), detector.training_scores_, rtol=1e-3)
    assert (detector.predict(ignoring(stamped(good[24:], seed=1), CORNER)) == 1).mean() >= 0.8


def test_a_small_ignored_region_does_not_hide_that_the_part_is_missing():
    images = make_inspection_images(24, 0, kind="hex_nut", size=64, random_state=0).images
    detector = detector_with().fit(images)
    one_pixel = np.zeros((64, 64), bool)
    one_pixel[0, 0] = True
    empty = np.full((3, 64, 64, 3), images[:, :4].mean(), np.uint8)
    assert (detector.predict(empty) == -1).all()
    assert (detector.predict(ignoring(empty, one_pixel)) == -1).all()


def test_regions_of_several_masks_count_for_nothing_together(detector, good):
    other = np.flip(CORNER)
    twice, at_once = ignoring(ignoring(good[24:28], CORNER), other), ignoring(good[24:28], CORNER | other)
    np.testing.assert_array_equal(detector.anomaly_map(twice), detector.anomaly_map(at_once))
    with pytest.raises(InvalidImageError, match=r"the ignored regions of X\[0\] are masks of different sizes"):
        detector.predict(ignoring(ignoring(good[24:25], CORNER), CORNER[:32]))


def test_another_number_of_masks_than_images_is_refused_in_streams_too(detector, good):
    for images, masks in ((iter(good[:3]), [CORNER] * 2), (iter(good[:2]), iter([CORNER] * 3))):
        stream = detector.score_stream(ignoring(images, masks))
        assert len([next(stream), next(stream)]) == 2
        with pytest.raises(InvalidTargetError, match="ignored has not as many masks as there are images"):
            next(stream)
    with pytest.raises(InvalidTargetError, match=r"ignored has 64 masks for 2 images.*color pass ignored\[..., 0\]"):
        ignoring(good[:2], np.zeros((64, 64, 3), bool))
    generated = ignoring(good[24:26], (mask for mask in [CORNER] * 2))
    np.testing.assert_array_equal(
        detector.score_samples(generated), detector.score_samples(ignoring(good[24:26], CORNER))
    )
    np.testing.assert_array_equal(
        detector.score_samples(ignoring(good[24:26], None)), detector.score_samples(good[24:26])
    )


def test_a_region_that_leaves_nothing_at_a_smaller_scale_is_refused_by_name(good):
    middle = np.zeros((64, 64), bool)
    middle[24:40, 24:40] = True
    with pytest.raises(
        InvalidImageError, match=r"ignored region of X\[0\] leaves nothing of it at a smaller one of scales"
    ):
        detector_with(scales=(1, 0.5)).fit(ignoring(good[:4], middle))


def test_splits_and_meta_estimators_take_masked_images(good):
    X = ignoring(stamped(good), CORNER)
    labels = cross_val_predict(detector_with(max_epochs=1), X, cv=2)
    assert labels.shape == (40,)
    threshold = ConformalThreshold(detector_with(max_epochs=1), max_false_alarm_rate=0.2, random_state=0).fit(X)
    assert threshold.predict(X).shape == (40,)


def test_ignoring_the_background_in_prediction_alone_does_not_make_a_part_look_missing(detector, good):
    most = np.ones((64, 64), bool)
    most[20:50, 20:50] = False
    assert (detector.predict(ignoring(good[24:], most)) == 1).mean() >= 0.9


def test_an_image_that_is_ignored_as_a_whole_and_a_mask_of_another_size_are_refused_by_name(detector, good, tmp_path):
    nearly = np.ones((64, 64), bool)
    nearly[30:34, 30:34] = False
    for mask in (np.ones((64, 64), bool), nearly):
        with pytest.raises(InvalidImageError, match=r"the ignored region of X\[1\] leaves nothing"):
            detector.predict(ignoring(good[:2], [None, mask]))
    with pytest.raises(
        InvalidImageError, match=r"region of X\[0\] is a mask of 32 x 64 pixels, and the image has 64 x 64"
    ):
        detector.predict(ignoring(good[:2], CORNER[:32]))
    with pytest.raises(InvalidTargetError, match="ignored has 3 masks for 2 images"):
        ignoring(good[:2], [CORNER] * 3)
    with pytest.raises(InvalidImageError, match=r"cannot read a mask: the ignored region of X\[1\].*no such file"):
        detector.predict(ignoring(good[:2], [None, tmp_path / "none.png"]))
    with pytest.raises(InvalidTargetError, match=r"cannot read a mask: ignored.*no such file"):
        ignoring(good[:2], str(tmp_path / "none.png"))
    with pytest.raises(InvalidImageError, match="2 of 2 images are unusable"):
        detector.predict(ignoring([tmp_path / "a.png", tmp_path / "b.png"], CORNER))


@given(arrays(bool, (12, 15)), st.integers(0, 2**32 - 1))
def test_filling_keeps_what_counts_and_stays_within_its_range(mask, seed):
    mask[5, 5:8] = False
    view = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (3, 12, 15)).astype(np.uint8))
    ignored = Ignored(mask, Geometry.of((12, 15), (12, 15), "stretch"))
    filled, counted = ignored.fill(view), torch.from_numpy(~ignored.at_view)
    assert filled.dtype == torch.uint8
    assert torch.equal(filled[:, counted], view[:, counted])
    without_torch = ignored.fill_array(view.permute(1, 2, 0).numpy()).transpose(2, 0, 1).astype(int)
    assert abs(without_torch - filled.numpy()).max() <= 1  # 0.5 but for rounding
    if counted.any():
        for channel, before in zip(filled, view, strict=True):
            assert before[counted].min() <= channel.min()
            assert channel.max() <= before[counted].max()


def test_a_flat_surrounding_is_continued_exactly():
    mask = np.zeros((40, 40), bool)
    mask[3:30, 5:33] = True
    view = torch.full((3, 40, 40), 97, dtype=torch.uint8)
    view[:, torch.from_numpy(mask)] = 255
    assert (Ignored(mask, Geometry.of((40, 40), (40, 40), "stretch")).fill(view) == 97).all()


def test_ignored_scores_become_the_mean_of_the_others_of_their_image():
    scores = torch.arange(12.0).view(4, 3)  # two images of two tiles
    ignored = torch.tensor([[1, 0, 0], [1, 1, 1], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)
    expected = scores.clone()
    expected[0, 0] = expected[1] = (1 + 2) / 2
    expected[3, 2] = (6 + 7 + 8 + 9 + 10) / 5
    torch.testing.assert_close(fill_ignored(scores, ignored, n_tiles=2), expected)
    assert fill_ignored(scores, None) is scores


def test_a_masked_image_is_an_item_of_its_own(detector, good):
    (item,) = ignoring(stamped(good[24:25]), CORNER)
    assert isinstance(item, MaskedImage)
    np.testing.assert_array_equal(
        detector.score_samples([item]), detector.score_samples(ignoring(stamped(good[24:25]), CORNER))
    )


def test_synthetic_defects_lie_outside_ignored_regions(good):
    X, y = synthetic_validation(ignoring(good[:6], CORNER), random_state=0)
    for image, mask in zip(X[6:], y[6:], strict=True):
        assert isinstance(image, MaskedImage)
        np.testing.assert_array_equal(image.ignored, CORNER)
        assert mask.any()
        assert not (mask & CORNER).any()
