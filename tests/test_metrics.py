"""Metrics against reference values, slow implementations and scikit-learn, and errors for invalid input."""

import re
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from skpbas.errors import InvalidTargetError
from skpbas.metrics import (
    image_ap,
    image_auroc,
    image_partial_auroc,
    miss_rate,
    pixel_ap,
    pixel_auroc,
    pixel_metrics,
    pixel_pro,
    pro_curve,
)

GOLDEN = ROOT / "tests" / "data" / "golden_metrics.npz"
CASES = range(4)
CASES_WITHOUT_MANY_TIES = (0, 1, 3)  # case 2 has 8 distinct scores; the others a handful of tied pairs
LIMITS = ("0.3", "0.05", "1.0")


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


def smooth_case(n_images=6, side=40, seed=0):
    """Smooth anomaly maps, and masks with several regions; the first image is normal."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(size=(2, n_images, side, side))
    masks = ndimage.gaussian_filter(noise[0], (0, 3, 3)) > 0.12
    masks[0] = False
    maps = ndimage.gaussian_filter(noise[1], (0, 2, 2)) + 0.1 * masks
    return masks, maps.astype(np.float32)


# Slow implementations ---------------------------------------------------------------------------------------


def regions_by_flood_fill(mask):
    """The 8-connected regions of a mask, each a list of (row, column)."""
    height, width = mask.shape
    waiting = {(int(row), int(column)) for row, column in zip(*np.nonzero(mask), strict=True)}
    regions = []
    while waiting:
        stack, region = [waiting.pop()], []
        while stack:
            row, column = stack.pop()
            region.append((row, column))
            for neighbor in [(row + dy, column + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if neighbor in waiting:
                    waiting.remove(neighbor)
                    stack.append(neighbor)
        regions.append(region)
    assert all(row < height and column < width for region in regions for row, column in region)
    return regions


def slow_pro_curve(masks, maps):
    """One point per distinct score, highest first, after (0, 0)."""
    regions = [[scores[p] for p in r] for m, scores in zip(masks, maps, strict=True) for r in regions_by_flood_fill(m)]
    normal = [score for m, scores in zip(masks, maps, strict=True) for score in scores[m == 0]]
    points = [(0.0, 0.0)]
    for threshold in sorted({float(score) for scores in maps for score in scores.ravel()}, reverse=True):
        overlaps = [sum(score >= threshold for score in region) / len(region) for region in regions]
        points.append((sum(score >= threshold for score in normal) / len(normal), sum(overlaps) / len(overlaps)))
    return points


def slow_pixel_pro(masks, maps, max_fpr):
    area, points = 0.0, slow_pro_curve(masks, maps)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 < max_fpr and x1 > x0:
            end = min(x1, max_fpr)
            y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
            area += (end - x0) * (y0 + y_end) / 2
    return area / max_fpr


@st.composite
def tied_cases(draw):
    """Up to three small images with few distinct scores, and so many ties within and between classes."""
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(2, 6)))
    masks = draw(hnp.arrays(np.bool_, shape))
    masks[0, 0, :2] = True, False  # both classes occur
    levels = draw(st.sampled_from([2, 4, 100]))
    dtype = draw(st.sampled_from([np.float16, np.float32, np.float64, np.int16, np.uint8]))
    return masks, draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, levels - 1))).astype(dtype)


many_cases = settings(deadline=None, max_examples=60)


# Reference values -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_pixel_auroc_and_ap_equal_the_reference_values(golden, case):
    masks, maps = golden[f"case{case}.masks"], golden[f"case{case}.maps"]
    assert pixel_auroc(masks, maps) == pytest.approx(float(golden[f"case{case}.pixel_auroc"]), abs=1e-9)
    assert pixel_ap(masks, maps) == pytest.approx(float(golden[f"case{case}.pixel_ap"]), abs=1e-9)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("case", CASES)
def test_pro_equals_the_exact_reference_values(golden, case, limit):
    pro = pixel_pro(golden[f"case{case}.masks"], golden[f"case{case}.maps"], max_fpr=float(limit))
    assert pro == pytest.approx(float(golden[f"case{case}.pro_exact_limit{limit}"]), abs=1e-9)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("case", CASES_WITHOUT_MANY_TIES)
def test_pro_agrees_with_mvtecs_evaluation_if_few_scores_tie(golden, case, limit):
    pro = pixel_pro(golden[f"case{case}.masks"], golden[f"case{case}.maps"], max_fpr=float(limit))
    assert pro == pytest.approx(float(golden[f"case{case}.pro_mvtec_limit{limit}"]), abs=1e-3)


# Independent implementations --------------------------------------------------------------------------------


@many_cases
@given(case=tied_cases(), max_fpr=st.sampled_from([1e-3, 0.05, 0.3, 0.5, 1.0]))
def test_pro_equals_a_sweep_over_every_distinct_score(case, max_fpr):
    masks, maps = case
    slow = slow_pixel_pro(masks, maps, max_fpr)
    assert pixel_pro(masks, maps, max_fpr=max_fpr) == pytest.approx(slow, abs=1e-12)
    assert pixel_metrics(masks, maps, max_fpr=max_fpr)["pixel_pro"] == pytest.approx(slow, abs=1e-12)


@many_cases
@given(case=tied_cases())
def test_every_vertex_of_the_pro_curve_matches_its_threshold(case):
    masks, maps = case
    fpr, pro, thresholds = pro_curve(masks, maps)
    assert (fpr[0], pro[0], thresholds[0]) == (0, 0, np.inf)
    assert (fpr[-1], pro[-1]) == (1, 1)
    assert (np.diff(thresholds) < 0).all()
    distinct = np.unique(maps)[::-1].astype(float)
    slow = dict(zip(distinct, slow_pro_curve(masks, maps)[1:], strict=True))
    for vertex in zip(fpr[1:], pro[1:], thresholds[1:], strict=True):
        assert vertex[:2] == pytest.approx(slow[vertex[2]], abs=1e-12)


@many_cases
@given(case=tied_cases())
def test_pixel_auroc_and_ap_equal_sklearns_on_flattened_pixels(case):
    masks, maps = case
    assert pixel_auroc(masks, maps) == pytest.approx(roc_auc_score(masks.ravel(), maps.ravel()), abs=1e-12)
    assert pixel_ap(masks, maps) == pytest.approx(average_precision_score(masks.ravel(), maps.ravel()), abs=1e-12)


@pytest.mark.parametrize("max_fpr", [1e-5, 0.05, 0.3, 0.999999, 1.0])
def test_pixel_pro_is_the_area_under_the_pro_curve(max_fpr):
    masks, maps = smooth_case()
    fpr, pro, _ = pro_curve(masks, maps)
    within = fpr <= max_fpr
    area = np.trapezoid(np.append(pro[within], np.interp(max_fpr, fpr, pro)), np.append(fpr[within], max_fpr))
    assert pixel_pro(masks, maps, max_fpr=max_fpr) == pytest.approx(area / max_fpr, abs=1e-12)


# Definition of the metrics -----------------------------------------------------------------------------------


def test_pro_counts_tied_scores_as_one_threshold():
    masks = [[[1, 0, 0, 0]]]
    maps = [[[0.5, 0.5, 0.5, 0.1]]]
    # One ramp from (0, 0) to (2/3, 1): half of it up to 1/3 is a triangle of height 1/2.
    assert pixel_pro(masks, maps, max_fpr=1 / 3) == pytest.approx(0.25)
    assert pixel_pro(masks, maps, max_fpr=1.0) == pytest.approx(2 / 3)


def test_pro_interpolates_between_thresholds_at_the_limit():
    masks = [[[1, 1, 0, 0]]]
    maps = [[[0.9, 0.5, 0.5, 0.5]]]
    # From (0, 0.5) the curve climbs to (1, 1), so it is at 0.6 where fpr is 0.2.
    assert pixel_pro(masks, maps, max_fpr=0.2) == pytest.approx(0.55)


def test_pro_weights_small_and_large_regions_equally():
    masks = np.zeros((1, 6, 6), dtype=np.uint8)
    masks[0, 0, 0] = 1
    masks[0, 2:, 2:] = 255
    maps = np.zeros(masks.shape)
    maps[0, 0, 0] = 1.0
    _, pro, thresholds = pro_curve(masks, maps)
    assert pro[thresholds == 1.0] == pytest.approx([0.5])


def test_pixels_that_touch_diagonally_are_one_region():
    maps = [[[3.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]]
    diagonal = [[[1, 0, 0], [0, 1, 0], [0, 0, 0]]]
    apart = [[[1, 0, 0], [0, 0, 0], [1, 0, 0]]]
    both = [diagonal[0], apart[0]]
    _, pro, thresholds = pro_curve(both, [maps[0], maps[0]])
    # Regions: the diagonal one (both pixels flagged at 2), and two single pixels, one of which is flagged.
    assert pro[thresholds == 2.0] == pytest.approx([2 / 3])
    assert pro[thresholds == 3.0] == pytest.approx([(0.5 + 1) / 3])


def test_regions_do_not_extend_across_images():
    masks = np.ones((2, 1, 2), dtype=bool)
    masks[:, 0, 1] = False
    _, pro, _ = pro_curve(masks, np.array([[[2.0, 0.0]], [[1.0, 0.0]]]))
    assert pro.tolist() == [0.0, 0.5, 1.0, 1.0]


def test_perfect_maps_score_one_and_inverted_maps_score_zero():
    masks, _ = smooth_case()
    assert pixel_metrics(masks, masks.astype(float)) == {
        "pixel_auroc": 1.0,
        "pixel_ap": 1.0,
        "pixel_pro": 1.0,
    }
    worst = pixel_metrics(masks, -masks.astype(float))
    assert worst["pixel_auroc"] == 0.0
    assert worst["pixel_pro"] == 0.0
    assert worst["pixel_ap"] == pytest.approx(masks.mean())


def test_constant_maps_score_at_chance_level():
    masks, maps = smooth_case()
    values = pixel_metrics(masks, np.zeros_like(maps))
    assert values["pixel_auroc"] == pytest.approx(0.5)
    assert values["pixel_pro"] == pytest.approx(0.15)


@pytest.mark.parametrize("transform", [np.exp, lambda x: 3 * x - 7, lambda x: x**3])
def test_increasing_transformations_of_the_maps_do_not_change_the_metrics(transform):
    masks, maps = smooth_case()
    maps = maps.astype(np.float64)
    assert pixel_metrics(masks, transform(maps)) == pytest.approx(pixel_metrics(masks, maps), abs=1e-12)


def test_scores_that_differ_only_in_double_precision_are_distinguished():
    masks = [[[1, 0]]]
    maps = np.array([[[1.0 + 1e-12, 1.0]]])
    assert pixel_auroc(masks, maps) == 1.0
    assert pixel_auroc(masks, maps.astype(np.float32)) == 0.5


# Accepted input ---------------------------------------------------------------------------------------------


def test_pixel_metrics_equals_the_single_metrics():
    masks, maps = smooth_case()
    values = pixel_metrics(masks, maps, max_fpr=0.1)
    assert values == {
        "pixel_auroc": pixel_auroc(masks, maps),
        "pixel_ap": pixel_ap(masks, maps),
        "pixel_pro": pixel_pro(masks, maps, max_fpr=0.1),
    }
    assert all(type(value) is float for value in values.values())


@pytest.mark.parametrize("max_fpr", [0.02, 0.3, 0.7])
def test_pro_alone_equals_pro_with_other_metrics_if_many_pixels_tie(max_fpr):
    masks, maps = smooth_case(side=100)
    levels = np.round(maps * 20).astype(np.float32)
    together = pixel_metrics(masks, levels, max_fpr=max_fpr)["pixel_pro"]
    assert pixel_pro(masks, levels, max_fpr=max_fpr) == pytest.approx(together, abs=1e-12)


def test_binary_maps_are_accepted():
    masks, maps = smooth_case()
    flagged = maps > 0.1
    expected = pixel_metrics(masks, flagged.astype(float))
    assert pixel_metrics(masks, flagged) == pytest.approx(expected, abs=1e-12)
    assert pixel_pro(masks, flagged) == pytest.approx(expected["pixel_pro"], abs=1e-12)


def test_pixel_metrics_returns_the_requested_metrics_in_order():
    masks, maps = smooth_case()
    assert list(pixel_metrics(masks, maps, metrics=["pixel_pro", "pixel_ap"])) == ["pixel_pro", "pixel_ap"]
    assert list(pixel_metrics(masks, maps, metrics="pixel_ap")) == ["pixel_ap"]


def test_lists_with_none_for_normal_images_equal_arrays():
    masks, maps = smooth_case()
    as_list = [mask if mask.any() else None for mask in masks]
    assert as_list[0] is None
    assert pixel_metrics(as_list, list(maps)) == pixel_metrics(masks, maps)
    assert pixel_metrics(as_list, maps) == pixel_metrics(masks, maps)


def test_images_of_different_sizes_are_pooled():
    sizes = [(7, 9), (12, 5), (8, 8)]
    rng = np.random.default_rng(1)
    masks = [None if i == 2 else rng.random(size) > 0.8 for i, size in enumerate(sizes)]
    maps = [rng.integers(0, 9, size).astype(np.float32) for size in sizes]
    full = [np.zeros(size, bool) if mask is None else mask for mask, size in zip(masks, sizes, strict=True)]
    labels, scores = np.concatenate([m.ravel() for m in full]), np.concatenate([m.ravel() for m in maps])
    values = pixel_metrics(masks, maps)
    assert values["pixel_auroc"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert values["pixel_ap"] == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert values["pixel_pro"] == pytest.approx(slow_pixel_pro(full, maps, 0.3), abs=1e-12)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64, ">i2"])
def test_any_nonzero_mask_value_is_defective(dtype):
    masks, maps = smooth_case()
    assert pixel_metrics(masks.astype(dtype) * 77, maps) == pixel_metrics(masks, maps)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ">f4", np.int8, np.int64])
def test_maps_are_ranked_in_their_own_dtype(dtype):
    masks, maps = smooth_case()
    levels = np.round(maps * 50)
    assert pixel_metrics(masks, levels.astype(dtype)) == pytest.approx(pixel_metrics(masks, levels), abs=1e-12)


def test_input_arrays_are_not_modified_and_may_be_read_only():
    masks, maps = smooth_case()
    masks_before, maps_before = masks.copy(), maps.copy()
    writable = pixel_metrics(masks, maps), pro_curve(masks, maps)
    np.testing.assert_array_equal(masks, masks_before)
    np.testing.assert_array_equal(maps, maps_before)
    masks.flags.writeable = maps.flags.writeable = False
    assert pixel_metrics(masks, maps) == writable[0]
    np.testing.assert_array_equal(pro_curve(masks, maps), writable[1])


def test_memory_mapped_arrays_give_the_same_values(tmp_path):
    masks, maps = smooth_case()
    np.save(tmp_path / "masks.npy", masks)
    np.save(tmp_path / "maps.npy", maps)
    mapped = [np.load(tmp_path / name, mmap_mode="r") for name in ("masks.npy", "maps.npy")]
    assert pixel_metrics(*mapped) == pixel_metrics(masks, maps)


def test_extra_memory_is_less_than_twice_the_maps():
    masks, maps = smooth_case(n_images=60, side=256)
    masks[::3] = False
    assert 0.05 < masks.mean() < 0.1  # more defective pixels than most test sets have
    tracemalloc.start()
    try:
        pixel_metrics(masks, maps)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * maps.nbytes


# Image metrics ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "encode",
    [
        lambda y: y,
        lambda y: y.astype(int),
        lambda y: np.where(y, -1, 1),
        lambda y: np.where(y, -1.0, 1.0),
        lambda y: np.where(y, -1, 1).tolist(),
        lambda y: y.tolist(),
    ],
)
def test_every_encoding_of_the_labels_gives_the_values_of_sklearn(encode):
    rng = np.random.default_rng(2)
    anomalous = rng.random(50) < 0.4
    scores = np.round(rng.normal(size=50) + anomalous, 1).astype(np.float32)
    assert image_auroc(encode(anomalous), scores) == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12)
    assert image_ap(encode(anomalous), scores) == pytest.approx(average_precision_score(anomalous, scores), abs=1e-12)
    for limit in (0.05, 0.3, 1.0):
        expected = roc_auc_score(anomalous, scores, max_fpr=limit)
        assert image_partial_auroc(encode(anomalous), scores, limit) == pytest.approx(expected, abs=1e-12)
        assert miss_rate(encode(anomalous), scores, limit) == miss_rate(anomalous, scores, limit)


@given(
    normal=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    defective=st.lists(st.integers(0, 12), min_size=1, max_size=30),
    max_fpr=st.sampled_from([0.05, 0.1, 0.2, 0.25, 1 / 3, 1.0]),
)
def test_the_miss_rate_is_that_of_the_best_threshold_that_flags_few_normal_images(normal, defective, max_fpr):
    labels, scores = [1] * len(normal) + [-1] * len(defective), [*normal, *defective]
    missed = [
        sum(score < threshold for score in defective)
        for threshold in [*set(scores), np.inf]
        if sum(score >= threshold for score in normal) <= max_fpr * len(normal) + 1e-9
    ]
    assert miss_rate(labels, scores, max_fpr) == pytest.approx(min(missed) / len(defective), abs=1e-12)


def test_scores_at_low_false_alarm_rates_end_at_perfect_and_at_chance():
    labels = [1] * 20 + [-1] * 20
    apart, equal = np.repeat([0.0, 1.0], 20), np.zeros(40)
    assert (miss_rate(labels, apart), miss_rate(labels, equal), miss_rate(labels, -apart)) == (0, 1, 1)
    assert image_partial_auroc(labels, apart) == 1
    assert image_partial_auroc(labels, equal) == pytest.approx(0.5)


@pytest.mark.parametrize("metric", [image_auroc, image_ap, image_partial_auroc, miss_rate])
@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([1, 1], [0.1, 0.2], r"labels contains 1; expected both classes"),
        ([0, 0], [0.1, 0.2], r"labels contains 0; expected both classes"),
        ([], [], "labels contains nothing"),
        ([1, 0, -1], [0.1, 0.2, 0.3], r"labels contains -1, 0, 1; expected both classes, as \+1 \(normal\)"),
        ([1, 2], [0.1, 0.2], "labels contains 1, 2"),
        (["good", "bad"], [0.1, 0.2], "labels contains 'bad', 'good'"),
        (np.arange(9) / 10, np.arange(9), r"labels contains 0\.0, 0\.1, 0\.2, 0\.3, 0\.4, \.\.\.;"),
        ([1, -1, 1], [0.1, 0.2], r"labels has shape \(3,\) and scores has shape \(2,\)"),
        ([[1, -1]], [[0.1, 0.2]], r"labels has shape \(1, 2\).*expected \(n_images,\)"),
        ([1, -1], [0.1, np.nan], r"scores\[1\] is nan; expected finite"),
        ([1, -1], [np.inf, 0.1], r"scores\[0\] is inf; expected finite"),
        ([1, -1], ["a", "b"], "scores has dtype <U1; expected numbers"),
    ],
)
def test_invalid_labels_and_image_scores_are_rejected(metric, labels, scores, message):
    with pytest.raises(InvalidTargetError, match=message):
        metric(labels, scores)


# Errors of the pixel metrics --------------------------------------------------------------------------------

MASK, MAP = np.eye(3, dtype=np.uint8), np.arange(9.0).reshape(3, 3)


@pytest.mark.parametrize("metric", [pixel_auroc, pixel_ap, pixel_pro, pixel_metrics, pro_curve])
@pytest.mark.parametrize(
    ("masks", "maps", "message"),
    [
        ([MASK, MASK], [MAP], "masks has 2 entries and maps has 1"),
        ([], [], "masks and maps are empty"),
        (np.zeros((0, 3, 3), bool), np.zeros((0, 3, 3)), "masks and maps are empty"),
        (
            [MASK, MASK[:2]],
            [MAP, MAP],
            r"masks\[1\] has shape \(2, 3\); expected \(3, 3\), the shape of maps\[1\]",
        ),
        ([None, MASK], [MAP, MAP[0]], r"maps\[1\] is an array of shape \(3,\).*expected a 2-D array"),
        (MASK, MAP, r"maps\[0\] is an array of shape \(3,\)"),
        ([MASK], MAP[None, None], r"maps\[0\] is an array of shape \(1, 3, 3\)"),
        ([MASK], [None], r"maps\[0\] is None; expected a 2-D array"),
        ([MASK], [MAP.astype(complex)], r"maps\[0\] .* dtype complex128"),
        ([None, MASK / 2], [MAP, MAP], r"masks\[1\] .* dtype float64; expected booleans or integers"),
        ([None, MASK], [MAP, np.where(MASK, np.nan, MAP)], r"maps\[1\] contains 3 NaN or infinite"),
        ([MASK, None], [MAP, np.where(MAP == 4, np.inf, MAP)], r"maps\[1\] contains 1 NaN or infinite"),
        ([None, MASK * 0], [MAP, MAP], "mark 0 of 18 pixels as defective: all are normal"),
        ([MASK * 0 + 1], [MAP], "mark 9 of 9 pixels as defective: all are defective"),
        (None, [MAP], r"masks \(NoneType\) cannot be read"),
        ([MASK], 3.0, r"maps \(float\) cannot be read"),
        ([[[1, 0], [1]]], [MAP], r"masks \(list\) cannot be read: .*inhomogeneous"),
    ],
)
def test_masks_and_maps_that_do_not_match_are_rejected(metric, masks, maps, message):
    with pytest.raises(InvalidTargetError, match=message):
        metric(masks, maps)


@pytest.mark.parametrize("max_fpr", [0, -0.1, 1.01, np.nan, np.inf, "0.3", None])
def test_a_max_fpr_outside_its_range_is_rejected(max_fpr):
    message = re.escape(f"max_fpr is {max_fpr!r}; expected a number in (0, 1]")
    with pytest.raises(ValueError, match=message):
        pixel_pro([MASK], [MAP], max_fpr=max_fpr)
    with pytest.raises(ValueError, match=message):
        pixel_metrics([MASK], [MAP], max_fpr=max_fpr)
    for metric in (miss_rate, image_partial_auroc):
        with pytest.raises(ValueError, match=message):
            metric([1, -1], [0.0, 1.0], max_fpr=max_fpr)


@pytest.mark.parametrize("metrics", ["pixel_f1", ("pixel_auroc", "pixel_f1")])
def test_the_error_for_an_unknown_metric_lists_the_known_ones(metrics):
    with pytest.raises(ValueError, match=r"metrics contains \['pixel_f1'\].*'pixel_pro'"):
        pixel_metrics([MASK], [MAP], metrics=metrics)
