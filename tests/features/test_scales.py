"""Detectors with ``scales=`` inspect images at several sizes, and are used as others are."""

import copy
import pickle

import numpy as np
import pytest
import torch
from helpers import assert_equal_but_for_rounding, small_detector, textured_images
from PIL import Image
from sklearn.model_selection import GridSearchCV

from skpbas import presets
from skpbas.calibration import ConformalThreshold
from skpbas.core.backbones import FeatureExtractor, build_backbone
from skpbas.core.patch_scores import SummedScorer
from skpbas.model_selection import NormalKFold
from skpbas.scorers import image_auroc_scorer


def at_scales(**params):
    quick = {"image_size": 96, "scales": (1.0, 2 / 3), "max_epochs": 3, "precision": "float32", "n_exemplars": 128}
    return small_detector(**{**quick, **params}).set_params(backbone="embedded")


def damaged_images(n, seed=5):
    """Textured images with a black square each."""
    images = textured_images(n, side=96, seed=seed).copy()
    images[:, 40:56, 40:56] = 0
    return images


@pytest.fixture(scope="module")
def good():
    return textured_images(10, side=96)


@pytest.fixture(scope="module")
def detector(good):
    return at_scales().fit(good)


def extractor_of(image_size, scales=(1.0,)):
    backbone = build_backbone("embedded", None, ["layer2", "layer3"], torch.Generator())
    return FeatureExtractor(backbone, image_size=image_size, scales=scales)


def test_a_smaller_scale_sees_what_pillow_makes_of_the_image():
    rng = np.random.default_rng(0)
    image = rng.random((96, 144, 3), np.float32)
    of_both = extractor_of((96, 144), (1.0, 2 / 3))
    assert of_both.scale_shapes == [(96, 144), (64, 96)]
    channels = [Image.fromarray(image[..., c]).resize((96, 64), Image.Resampling.BILINEAR) for c in range(3)]
    reduced = torch.from_numpy(np.stack([np.asarray(channel) for channel in channels])[None])
    expected = extractor_of((64, 96)).feature_maps(reduced)
    maps = of_both.feature_maps(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert [tuple(m.shape[1:]) for m in maps] == of_both.level_shapes
    for actual, level in zip(maps[2:], expected, strict=True):
        assert_equal_but_for_rounding(actual, level, n_terms=1152, n_layers=20)


def doubled(grid):
    """A grid (B, h, w) at twice its size: linear interpolation between the patches' centers along both axes."""
    for axis in (1, 2):
        n = grid.shape[axis]
        centers = (np.arange(2 * n) + 0.5) / 2 - 0.5
        grid = np.apply_along_axis(lambda line, x=centers: np.interp(x, np.arange(len(line)), line), axis, grid)
    return grid


def test_scores_are_the_mean_over_scales_in_units_of_the_training_images(good):
    detector = at_scales(scales=(1, 0.5), image_size=128).fit(good)
    model, images = detector.model_, torch.from_numpy(damaged_images(3)).movedim(-1, 1)
    images = torch.nn.functional.interpolate(images.float() / 255, (128, 128), mode="bilinear")
    scorer = model.patch_scorer
    assert isinstance(scorer, SummedScorer)
    parts = model.extractor.pool(model.extractor.feature_maps(images))
    grids = []
    for member, first, side in zip(scorer.members, (0, 2), (16, 8), strict=True):
        scores = member(parts[first : first + 2]).unflatten(1, (side, side))
        grids.append((scores / member.training_scores.mean()).numpy())
    expected = (grids[0] + doubled(grids[1])) / 2
    np.testing.assert_allclose(scorer(parts).unflatten(1, (16, 16)).numpy(), expected, rtol=1e-5)


def test_defective_images_are_told_apart_at_every_scale_and_together(detector, good):
    unseen, damaged = textured_images(6, side=96, seed=9), damaged_images(6)
    assert detector.score_samples(damaged).max() < detector.score_samples(unseen).min()
    assert (detector.predict(damaged) == -1).all()
    maps = detector.anomaly_map(damaged)
    assert maps.shape == (6, 96, 96) == (6, *detector.map_shape_)
    inside = np.zeros((96, 96), bool)
    inside[40:56, 40:56] = True
    assert (maps[:, inside].mean(1) > maps[:, ~inside].mean(1)).all()


def test_training_images_are_scored_as_if_they_were_new(detector, good):
    scorer = detector.model_.patch_scorer
    np.testing.assert_allclose(-detector.score_samples(good), scorer.training_scores.numpy(), rtol=5e-3)  # float16
    edited = good.copy()
    edited[:, 0, 0] ^= 1  # not recognized: own exemplars count
    assert (detector.score_samples(edited) > detector.score_samples(good)).all()


def test_center_projector_and_discriminator_are_those_of_the_full_size(detector):
    extractor = detector.feature_extractor_
    assert extractor.scale_shapes == [(96, 96), (64, 64)]
    assert detector.center_.shape == (144, 384)
    assert extractor(torch.zeros(1, 3, 96, 96)).shape == (1, 144, 384)


def test_results_are_the_same_in_every_way_to_get_them(detector, tmp_path):
    images = damaged_images(3)
    scores, maps = detector.score_samples(images), detector.anomaly_map(images)
    for result, score, anomaly_map in zip(detector.score_stream(iter(images)), scores, maps, strict=True):
        assert result.score == score
        np.testing.assert_array_equal(result.map, anomaly_map)
    for exact in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector).set_params(n_jobs=2)):
        np.testing.assert_array_equal(exact.score_samples(images), scores)
    for _ in range(2):  # writes, then reads
        cached = copy.deepcopy(detector).set_params(memory=tmp_path)
        np.testing.assert_allclose(cached.score_samples(images), scores, rtol=5e-3)  # float16 in the cache


def test_a_fit_from_the_cache_gives_the_detector_of_the_fit_that_filled_it(good, tmp_path, backbone_calls):
    first = at_scales(memory=tmp_path).fit(good)
    assert sum(backbone_calls) == len(good)
    backbone_calls.clear()
    again = at_scales(memory=tmp_path).fit(good)
    assert sum(backbone_calls) == 0
    np.testing.assert_array_equal(again.score_samples(good), first.score_samples(good))
    other = at_scales(memory=tmp_path, scales=(1, 0.5)).fit(good)  # no entry of other scales is taken
    assert sum(backbone_calls) == len(good)
    assert other.model_.extractor.scale_shapes[1] == (48, 48)


def test_tiles_are_inspected_at_several_scales(good):
    images = textured_images(6, side=160)
    detector = at_scales(tile=96).fit(images)
    damaged = images.copy()
    damaged[:, 100:116, 100:116] = 0
    assert detector.map_shape_ == (160, 160)
    assert (detector.predict(damaged) == -1).all()
    rows, columns = np.unravel_index(detector.anomaly_map(damaged).reshape(6, -1).argmax(1), (160, 160))
    assert ((rows >= 92) & (rows < 124) & (columns >= 92) & (columns < 124)).all()


def test_scales_can_be_searched_and_calibrated(good):
    X, y = np.concatenate([good, damaged_images(4)]), np.array([1] * 10 + [-1] * 4)
    search = GridSearchCV(
        at_scales(max_epochs=1), {"scales": [(1.0,), (1, 0.5)]}, scoring=image_auroc_scorer, cv=NormalKFold(2)
    )
    assert np.isfinite(search.fit(X, y).cv_results_["mean_test_score"]).all()
    assert ConformalThreshold(at_scales(max_epochs=1), max_false_alarm_rate=0.2).fit(good).predict(good[:2]).shape == (
        2,
    )


def test_the_model_exports(detector):
    model = copy.deepcopy(detector.model_)
    images = model.extractor.normalize(torch.from_numpy(damaged_images(2)).movedim(-1, 1))
    exported = torch.export.export(model, (images,)).module()
    for actual, expected in zip(exported(images), model(images), strict=True):
        assert_equal_but_for_rounding(actual, expected, n_terms=384, n_layers=20)


def test_one_scale_is_the_default_and_changes_nothing(good):
    images = damaged_images(2)
    default = small_detector().fit(good)
    explicit = small_detector(scales=[1]).fit(good)
    np.testing.assert_array_equal(default.score_samples(images), explicit.score_samples(images))


@pytest.mark.parametrize("scales", [(), (0.5,), (1, 0), (1, 1), (1, -0.5), (1, 2), (1, np.nan), ("1", "x"), (1, None)])
def test_scales_other_than_distinct_numbers_up_to_one_are_refused(scales, good):
    with pytest.raises(ValueError, match=r"scales=.*distinct numbers in \(0, 1\].*with 1 among them"):
        at_scales(scales=scales).fit(good)


@pytest.mark.parametrize("scales", [(1, 0.9), (1, 0.8, 0.75, 0.7)])
def test_scales_that_are_the_same_sizes_in_multiples_of_16_pixels_are_refused(scales, good):
    with pytest.raises(ValueError, match=r"scales=.* of an input of 64 x 64 pixels are 64 x 64, .*further apart"):
        at_scales(scales=scales, image_size=64).fit(good)


@pytest.mark.parametrize("params", [{"patch_score": "discriminator"}, {"patch_score": "distance"}, {"synthesis": None}])
def test_several_scales_need_the_fused_score(params, good):
    with pytest.raises(ValueError, match=r'only patch_score="fused".*use scales=\(1\.0,\)'):
        at_scales(**params).fit(good)


def test_the_thorough_preset_inspects_larger_images_at_two_scales_for_less_than_four_times_the_patches():
    side = presets.THOROUGH["image_size"]
    shapes = extractor_of((side, side), presets.THOROUGH["scales"]).scale_shapes
    assert shapes == [(384, 384), (256, 256)]
    assert sum(height * width for height, width in shapes) <= 4 * 256**2
