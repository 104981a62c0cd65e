"""Defective images among the training ones are found, named and left out; good ones stay."""

import warnings

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skpbas._training.threshold import largest_usual, oddness, offset_of_ratios
from skpbas.core.coreset import N_GROUPS, Coreset
from skpbas.datasets import make_inspection_images

LEFT_OUT = "look defective beside the others and were left out"


def damaged(images, at=((20, 36),), side=14):
    """Copies of images with a dark square each at the same places."""
    images = images.copy()
    for top, left in at:
        images[:, top : top + side, left : left + side] = 10
    return images


def detector_with(**params):
    return small_detector(max_epochs=2, n_exemplars=512, **params).set_params(backbone="embedded")


@pytest.fixture(scope="module")
def good():
    return textured_images(40)


def test_a_defective_training_image_is_left_out_and_named(good, tmp_path):
    images = np.concatenate([good[:7], damaged(good[7:8]), good[8:30]])
    paths = [tmp_path / f"part_{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    with pytest.warns(UserWarning, match=r"1 of 30 training images .* X\[7\] \(.*part_7\.png\) \(\d\.\d\)") as caught:
        detector = detector_with().fit(paths)
    assert len([1 for warning in caught if LEFT_OUT in str(warning.message)]) == 1
    assert detector.training_outliers_.tolist() == [7]
    assert detector.n_samples_fit_ == len(detector.training_scores_) == 29
    assert detector.predict(paths)[7] == -1


def test_what_is_left_out_leaves_no_trace(good):
    images = np.concatenate([good[:30], damaged(good[30:31])])
    with pytest.warns(UserWarning, match=LEFT_OUT):
        detector = detector_with().fit(images)
    without = detector_with(exclude_outliers=False).fit(good[:30])
    assert detector.offset_ == without.offset_
    assert detector.map_threshold_ == without.map_threshold_
    np.testing.assert_array_equal(detector.score_samples(good[31:]), without.score_samples(good[31:]))


def test_two_that_are_alike_do_not_hide_each_other(good):
    twice = damaged(np.concatenate([good[30:31], np.roll(good[30:31], 1, axis=3)]))
    assert not np.array_equal(*twice)
    images = np.concatenate([good[:30], twice])
    with pytest.warns(UserWarning, match=LEFT_OUT):
        detector = detector_with().fit(images)
    assert detector.training_outliers_.tolist() == [30, 31]


def test_indices_count_images_that_y_leaves_out(good):
    images = np.concatenate([good[:3], damaged(good[:2]), good[3:30], damaged(good[30:31], at=((2, 2),))])
    y = np.ones(len(images), int)
    y[3] = -1
    with pytest.warns(UserWarning, match=LEFT_OUT):
        detector = detector_with().fit(images, y)
    assert detector.training_outliers_.tolist() == [4, len(images) - 1]


@pytest.mark.parametrize("params", [{"scales": (1, 0.5)}, {"tile": 48, "image_size": 48}, {"memory": True}])
def test_tiles_scales_and_memory_leave_out_the_same_image(good, params, tmp_path):
    if "memory" in params:
        params = {"memory": tmp_path}
    images = np.concatenate([good[:20], damaged(good[20:21])])
    for _ in range(2):  # from the folder, the second time
        with pytest.warns(UserWarning, match=LEFT_OUT):
            detector = detector_with(**params).fit(images)
        assert detector.training_outliers_.tolist() == [20]


def test_without_the_option_all_images_are_trusted(good):
    images = np.concatenate([good[:20], damaged(good[20:21])])
    detector = detector_with(exclude_outliers=False).fit(images)
    assert detector.training_outliers_.tolist() == []
    assert detector.n_samples_fit_ == 21


@pytest.mark.parametrize("kind", ["wood", "hex_nut", "printed_board", "fabric"])
def test_clean_images_stay(kind):
    images = make_inspection_images(40, 0, kind=kind, size=64, random_state=1).images
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector = detector_with().fit(images)
    assert len(detector.training_outliers_) == 0


def test_at_most_a_fifth_is_left_out(good):
    images = np.concatenate([good[:20], damaged(good[20:40], at=((5, 5), (40, 40)))])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", LEFT_OUT)
        detector = detector_with().fit(images)
    assert len(detector.training_outliers_) <= 8


def test_seven_images_are_too_few_to_tell(good):
    detector = detector_with().fit(np.concatenate([good[:6], damaged(good[6:7])]))
    assert len(detector.training_outliers_) == 0


def test_at_most_ten_are_listed(good):
    rng = np.random.default_rng(0)
    spots = [[tuple(rng.integers(0, 48, 2))] for _ in range(12)]
    odd = np.concatenate([damaged(good[i : i + 1], at=spot) for i, spot in enumerate(spots)])
    many = np.concatenate([good, textured_images(40, seed=1), odd])
    with pytest.warns(UserWarning, match=LEFT_OUT) as caught:
        detector = detector_with().fit(many)
    assert len(detector.training_outliers_) == 12
    (text,) = [str(warning.message) for warning in caught if LEFT_OUT in str(warning.message)]
    assert text.count("X[") == 10
    assert "and 2 more" in text


def test_a_group_s_distance_is_that_of_its_nearest_exemplar_of_another_image():
    generator = torch.Generator().manual_seed(0)
    features, index = torch.randn(600, 12, generator=generator), torch.arange(600) % 13
    coreset = Coreset.of([(features, index)], n_exemplars=90, n_directions=12)
    points, of_points = coreset.reduce(features[:50]), index[:50]
    found = coreset.distance_to_groups(points, of_points)
    for i in range(50):
        for group in range(N_GROUPS):
            counts = (coreset.image_index % N_GROUPS == group) & (coreset.image_index != of_points[i])
            distances = (coreset.exemplars[counts] - points[i]).norm(dim=1)
            expected = float(distances.min()) if len(distances) else float("inf")
            assert float(found[i, group]) == pytest.approx(expected, rel=1e-4, abs=2e-3)
    nearest = coreset.distance(points, of_points)
    torch.testing.assert_close(found.amin(1), nearest, rtol=1e-4, atol=2e-3)


@given(st.integers(10, 200), st.floats(0.01, 0.4), st.integers(0, 2**32 - 1))
def test_a_tenth_of_odd_ratios_changes_neither_the_scale_of_oddness_nor_the_threshold_much(n, spread, seed):
    rng = np.random.default_rng(seed)
    ratios = np.exp(rng.normal(0, spread, n))
    n_odd = n // 10
    dirty = np.concatenate([ratios, np.full(n_odd, 1e3)])
    assert (oddness(dirty)[n:] > 5).all()
    assert abs(offset_of_ratios(dirty)) <= abs(offset_of_ratios(np.sort(ratios)[: len(ratios)])) * 1.0 + 1e-9


@pytest.mark.parametrize(("n", "expected"), [(8, 6.9), (70, 5.4), (10_000, 5.0)])
def test_few_images_must_be_odder_to_be_odd(n, expected):
    assert largest_usual(n) == pytest.approx(expected, abs=0.1)


def test_oddness_is_the_distance_from_the_median_in_upper_deviations():
    logarithms = np.linspace(-1, 1, 201)
    deviation = np.quantile(logarithms, 0.85) / 1.0364333894937898  # of the normal distribution
    variance = (20 * 0.12**2 + 201 * deviation**2) / 221
    np.testing.assert_allclose(oddness(np.exp(logarithms)), logarithms / np.sqrt(variance), atol=1e-12)
