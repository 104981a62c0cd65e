"""Labels, p-values, masks and regions of a fitted detector agree with each other and with normal images."""

import numpy as np
import pytest
from helpers import small_detector, textured_images
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from skpbas import Region
from skpbas._decisions.regions import regions_of

GRID = st.tuples(st.integers(1, 7), st.integers(1, 7))


def damaged_images(n, seed=3, side=64):
    """Textured images with a dark square each, of 12 x 12 pixels."""
    images = textured_images(n, side=side, seed=seed).copy()
    images[:, 20:32, 36:48] = 0
    return images


@pytest.fixture(scope="module")
def detector():
    return small_detector(n_exemplars=256).set_params(backbone="embedded").fit(textured_images(20))


def flooded(mask):
    """The sets of connected pixels of a mask, diagonal neighbors included, one pixel after the other."""
    left, regions = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        region, to_do = set(), [left.pop()]
        while to_do:
            row, column = to_do.pop()
            region.add((row, column))
            around = {(row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1)}
            to_do += around & left
            left -= around
        regions.append(region)
    return regions


@given(GRID.flatmap(lambda shape: arrays(np.float32, shape, elements=st.floats(0, 1, width=16))), st.floats(0, 1))
def test_regions_are_the_connected_pixels_above_the_threshold(anomaly_map, threshold):
    regions = regions_of(anomaly_map, threshold)
    expected = flooded(anomaly_map > threshold)
    found = []
    for region in regions:
        top, left, height, width = region.bbox
        assert region.mask.shape == (height, width)
        rows, columns = np.nonzero(region.mask)
        pixels = set(zip(rows + top, columns + left, strict=True))
        assert region.area == len(pixels)
        assert region.score == max(anomaly_map[pixel] for pixel in pixels)
        np.testing.assert_allclose(region.centroid, np.mean(list(pixels), axis=0))
        found.append(frozenset(pixels))
    assert set(found) == set(map(frozenset, expected))
    assert [region.score for region in regions] == sorted((region.score for region in regions), reverse=True)


def test_small_regions_are_left_out_but_never_all_of_an_anomalous_image():
    anomaly_map = np.zeros((10, 10), np.float32)
    anomaly_map[1, 1], anomaly_map[5:8, 5:8] = 0.9, 0.8
    assert [region.area for region in regions_of(anomaly_map, 0.5, min_area=2)] == [9]
    assert regions_of(anomaly_map, 0.5, min_area=10) == []
    (kept,) = regions_of(anomaly_map, 0.5, min_area=10, at_least_one=True)
    assert kept.bbox == (1, 1, 1, 1)
    (below,) = regions_of(anomaly_map, 0.95, at_least_one=True)
    assert below.bbox == (1, 1, 1, 1)  # above half of 0.9 around the maximum
    (flat,) = regions_of(np.full((3, 4), 0.2, np.float32), 0.5, at_least_one=True)
    assert flat.bbox == (0, 0, 3, 4)


def test_pixels_that_were_not_seen_belong_to_no_region():
    anomaly_map = np.full((6, 6), np.nan, np.float32)
    assert regions_of(anomaly_map, 0.5, at_least_one=True) == []
    anomaly_map[2:4, 2:4] = 0.7
    assert [region.bbox for region in regions_of(anomaly_map, 0.5)] == [(2, 2, 2, 2)]


def test_a_defect_is_found_where_it_is_and_good_images_have_no_region(detector):
    damaged, good = damaged_images(5), textured_images(10, seed=8)
    assert (detector.predict(damaged) == -1).all()
    for regions in detector.find_regions(damaged):
        row, column = regions[0].centroid
        assert isinstance(regions[0], Region)
        assert abs(row - 25.5) < 8
        assert abs(column - 41.5) < 8
        assert regions[0].score > detector.map_threshold_
    assert [len(regions) for regions in detector.find_regions(good)] == [0] * 10
    assert not detector.anomaly_mask(good).any()


@pytest.mark.filterwarnings('ignore:resize="crop" discards')
@pytest.mark.parametrize("patch_score", ["fused", "discriminator", "distance"])
@pytest.mark.parametrize("params", [{}, {"tile": 64}, {"resize": "crop"}])
def test_an_image_called_anomalous_has_a_region_in_the_pixels_of_the_image(patch_score, params):
    good = textured_images(8, side=128)[:, :, :96]
    detector = small_detector(patch_score=patch_score, contamination=0.5, n_exemplars=128, max_epochs=2, **params)
    detector.set_params(backbone="embedded").fit(good)
    images = damaged_images(6, side=128)[:, :, :96]
    images[:3, 20:32, 36:48] = 96  # faint
    labels = detector.predict(images)
    assert (labels == -1).any()
    for label, regions, mask in zip(
        labels, detector.find_regions(images), detector.anomaly_mask(images, size="input"), strict=True
    ):
        assert label == 1 or regions
        assert mask.shape == (128, 96)
        for top, left, height, width in (region.bbox for region in regions):
            assert 0 <= top < top + height <= 128
            assert 0 <= left < left + width <= 96


def test_masks_are_the_maps_above_the_threshold(detector, tmp_path):
    paths = [tmp_path / "wide.png", tmp_path / "square.png"]
    Image.fromarray(damaged_images(1)[0][:, :60]).save(paths[0])
    Image.fromarray(damaged_images(1)[0]).save(paths[1])
    np.testing.assert_array_equal(detector.anomaly_mask(paths), detector.anomaly_map(paths) > detector.map_threshold_)
    sizes = [mask.shape for mask in detector.anomaly_mask(paths, size="input")]
    assert sizes == [(64, 60), (64, 64)]


def test_p_values_count_the_training_images_that_are_as_anomalous(detector):
    images = np.concatenate([damaged_images(2), textured_images(4, seed=8)])
    scores, n = detector.score_samples(images), len(detector.training_scores_)
    as_unseen = float(detector.model_.patch_scorer.bias) * detector.training_scores_
    expected = [(1 + sum(known <= score for known in as_unseen)) / (n + 1) for score in scores]
    np.testing.assert_array_equal(detector.p_values(images), expected)
    assert detector.p_values(images)[:2].tolist() == [1 / 21, 1 / 21]


@pytest.mark.parametrize("patch_score", ["fused", "discriminator", "distance"])
def test_unsure_is_what_a_larger_false_alarm_rate_would_flag(patch_score):
    images, params = textured_images(20), {"patch_score": patch_score, "n_exemplars": 256}
    detector = small_detector(**params).set_params(backbone="embedded").fit(images)
    looser = small_detector(**params, false_alarm_rate=0.2).set_params(backbone="embedded").fit(images)
    halfway = np.linspace(0, 1, 41)[:, None, None, None] * damaged_images(1) + textured_images(1, seed=3) * (
        1 - np.linspace(0, 1, 41)[:, None, None, None]
    )
    X = np.concatenate([np.uint8(halfway), textured_images(20, seed=5)])
    verdicts = detector.verdicts(X, unsure_rate=0.2)
    assert set(verdicts) == {"normal", "unsure", "anomalous"}
    np.testing.assert_array_equal(verdicts == "anomalous", detector.predict(X) == -1)
    not_normal = looser.predict(X) == -1
    if patch_score == "fused":
        np.testing.assert_array_equal(verdicts != "normal", not_normal)
    else:  # the other threshold follows from one of them
        assert np.mean((verdicts != "normal") == not_normal) >= 0.9


def test_no_image_is_unsure_at_the_false_alarm_rate_itself(detector):
    X = np.concatenate([textured_images(20, seed=5), damaged_images(5)])
    for rate in (0.01, 0.001):
        assert "unsure" not in detector.verdicts(X, unsure_rate=rate)


@pytest.mark.parametrize("patch_score", ["fused", "discriminator"])
def test_no_image_is_unsure_at_a_rate_below_the_contamination(patch_score):
    images = textured_images(20)
    detector = small_detector(contamination=0.2, patch_score=patch_score, n_exemplars=256)
    detector.set_params(backbone="embedded").fit(images)
    assert "unsure" not in detector.verdicts(images, unsure_rate=0.05)


@pytest.mark.parametrize("rate", [0, -0.1, 0.6, True, "0.1", None, float("nan")])
def test_an_impossible_unsure_rate_is_refused_with_its_value(detector, rate):
    message = rf"unsure_rate={rate!r}: expected a number in \(0, 0.5\]"
    with pytest.raises(ValueError, match=message):
        detector.verdicts(textured_images(1), unsure_rate=rate)
    with pytest.raises(ValueError, match=message):
        detector.score_stream(textured_images(1), unsure_rate=rate)


def test_training_scores_are_those_of_images_scored_as_new(detector):
    assert detector.training_scores_.shape == (20,)
    np.testing.assert_allclose(detector.score_samples(textured_images(20)), detector.training_scores_, rtol=5e-3)


@pytest.mark.parametrize("min_area", [0, -1, 1.5, True, "3"])
def test_a_smallest_area_is_a_number_of_pixels(min_area, detector):
    with pytest.raises(ValueError, match=r"min_area=.*whole number of pixels"):
        detector.find_regions(textured_images(1), min_area=min_area)


def test_map_thresholds_from_good_images_leave_most_unseen_good_images_without_a_region(detector):
    unseen = textured_images(100, seed=77)
    with_region = sum(bool(regions) for regions in detector.find_regions(unseen))
    assert with_region <= 5  # 1 expected; more than 5 of 100 at 1 % has a probability of 0.0005
