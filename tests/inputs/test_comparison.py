"""Images that another camera, light or conversion made: what ``fit`` keeps of its images, and what prediction names."""

import copy
import itertools
import pickle
import tracemalloc
import warnings

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.base import clone

import skpbas
from skpbas._inputs.comparison import Comparison
from skpbas._inputs.image_statistics import (
    GoodStatistics,
    ImageStatistics,
    bits_in_use,
    small_range,
    value_in_range,
)
from skpbas._inputs.images import ImageSequence
from skpbas.datasets import INSPECTION_KINDS, make_inspection_images

COLORED = ("wood", "printed_board")


def details(images, image_size=(64, 64), resize="stretch"):
    images = list(images)
    sequence = ImageSequence(images, image_size=image_size, resize=resize, smallest=16)
    return [sequence.view(index, image)[1] for index, image in enumerate(images)]


def statistics_of(image, **kwargs):
    return details([image], **kwargs)[0].statistics


def warned_of(good, images, **kwargs):
    """The texts of a comparison of images with those of fit, by their kinds."""
    images = list(images)
    comparison = Comparison(GoodStatistics.of(details(good, **kwargs)))
    for index, one in enumerate(details(images, **kwargs)):
        comparison.note(index, f"X[{index}]", one)
    return comparison.texts(len(images))


@pytest.fixture(scope="module")
def boards():
    data = make_inspection_images(30, 10, kind="printed_board", size=64, random_state=0)
    data.images.setflags(write=False)
    return data.images


@pytest.fixture(scope="module")
def detector(boards):
    return small_detector(max_epochs=1).fit(boards[:20])


def messages(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


# What is measured ------------------------------------------------------------------------------------------


def test_the_statistics_of_a_small_image_are_those_of_all_its_pixels():
    image = np.random.default_rng(0).integers(0, 200, (40, 51, 3), dtype=np.uint8)  # 2,040 pixels: each counts
    found, pixels = statistics_of(image, image_size=(40, 51)), image.astype(np.float64) / 255
    assert (found.kind, found.color, found.largest) == ("uint8", True, image.max() / 255)
    np.testing.assert_allclose(found.means, pixels.mean((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(found.stds, pixels.std((0, 1)), rtol=1e-5)
    np.testing.assert_allclose(found.contrast, pixels.mean(2).std(), rtol=1e-5)
    np.testing.assert_allclose(found.brightness, pixels.mean(), rtol=1e-5)


@given(
    height=st.integers(16, 300),
    width=st.integers(16, 300),
    kind=st.sampled_from(["uint8", "uint16", "float32"]),
    gray=st.booleans(),
    period=st.integers(2, 40),
)
@settings(max_examples=40, deadline=None)
def test_a_sample_of_the_pixels_has_the_brightness_of_stripes_of_any_width(height, width, kind, gray, period):
    rows, columns = np.indices((height, width))
    stripes = np.where((rows + columns) // period % 2, 0.8, 0.3)
    shape = (1,) if gray else (1, 0.9, 0.7)
    largest = {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
    image = (stripes[..., None] * shape * largest).astype(kind)
    found = statistics_of(image, image_size=(height, width))
    expected = image.astype(np.float64).mean((0, 1)) / largest
    np.testing.assert_allclose(found.means, np.broadcast_to(expected, 3), atol=0.03)  # 5 * 0.25 / sqrt(2048)
    assert found.color == (not gray)  # also where the values are small
    assert found.kind == kind.removesuffix("32")
    np.testing.assert_allclose(found.largest, image.max() / largest, rtol=1e-6)


def test_an_image_with_three_equal_channels_is_gray():
    gray = textured_images(1)[0][..., 0]
    as_color = statistics_of(np.repeat(gray[..., None], 3, axis=2))
    assert not as_color.color
    np.testing.assert_allclose(as_color.means, statistics_of(gray).means, rtol=1e-6)


@given(value=st.integers(1, 65535))
def test_the_bits_in_use_hold_the_largest_value_and_one_bit_less_does_not(value):
    bits = bits_in_use("uint16", float(np.float32(value / 65535)))
    assert 2 ** (bits - 1) <= value < 2**bits


@given(
    values=st.lists(
        st.builds(
            ImageStatistics,
            st.sampled_from(["uint8", "uint16", "float"]),
            st.booleans(),
            st.floats(0, 1),
            st.tuples(*[st.floats(0, 1)] * 3),
            st.tuples(*[st.floats(0, 1)] * 3),
            st.floats(0, 1),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_note_gives_back_what_was_measured_and_nothing_from_anything_else(values):
    for value in values:
        assert ImageStatistics.from_note(value.as_note()) == value
        assert ImageStatistics.from_note({**value.as_note(), "kind": "int64"}) is None
        assert ImageStatistics.from_note({**value.as_note(), "means": [0.5, 0.5]}) is None
        assert ImageStatistics.from_note({**value.as_note(), "contrast": float("nan")}) is None
    assert ImageStatistics.from_note(None) is None
    assert ImageStatistics.from_note({}) is None


def test_good_statistics_summarize_the_images_of_fit(detector, boards):
    good, pixels = detector.good_statistics_, boards[:20].astype(np.float64) / 255
    assert isinstance(good, skpbas.GoodStatistics)
    assert (good.n_images, good.mode, good.kinds, good.bit_depth) == (20, "color", ("uint8",), 8)
    assert (good.heights, good.widths, good.aspects) == ((64,) * 3, (64,) * 3, (1,) * 3)
    assert good.detail == (1, 1)
    assert good.largest == boards[:20].max() / 255
    quantiles = [0, 0.05, 0.5, 0.95, 1]
    sampled = 4 * 0.12 / np.sqrt(2048)  # of 4,096 pixels whose standard deviation is 0.12
    np.testing.assert_allclose(good.brightness, np.quantile(pixels.mean((1, 2, 3)), quantiles), atol=sampled)
    np.testing.assert_allclose(good.contrast, np.quantile(pixels.mean(3).std((1, 2)), quantiles), atol=sampled)
    np.testing.assert_allclose(good.means, np.median(pixels.mean((1, 2)), axis=0), atol=sampled)
    low, high = good.brightness_limits
    assert low < good.brightness[0] / 1.08
    assert high > good.brightness[-1] * 1.03


def test_good_statistics_are_of_the_images_that_y_marks_as_normal(boards):
    y = np.where(np.arange(10) < 6, 1, -1)
    mixed = np.concatenate([boards[:6], 255 - boards[:4]])
    fitted = small_detector(max_epochs=1).fit(mixed, y)
    assert fitted.good_statistics_ == small_detector(max_epochs=1).fit(boards[:6]).good_statistics_


def test_good_statistics_go_through_pickles_and_not_through_clones(detector):
    assert pickle.loads(pickle.dumps(detector)).good_statistics_ == detector.good_statistics_
    assert not hasattr(clone(detector), "good_statistics_")


# What fit names ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scaled", "message"),
    [
        (
            lambda x: x.astype(np.uint16) * 16,
            r"4,0\d\d of 65,535\. 12-bit data in 16 bits\? multiply by 16, here and in",
        ),
        (
            lambda x: x.astype(np.uint16) * 4,
            r"1,0\d\d of 65,535\. 10-bit data in 16 bits\? multiply by 64, here and in",
        ),
        (lambda x: x.astype(np.uint16), r"25\d of 65,535\. 8-bit data in 16 bits\? multiply by 256, here and in"),
        (lambda x: x / 255.0 / 255.0, r"0\.0039 of 1\. Divided by 255 twice\? divide once, here and in"),
        (lambda x: x * 16.0 / 65535, r"0\.062 of 1\. 12-bit data divided by 65,535\? divide by 4,095, here and in"),
        (lambda x: x // 13, r"19 of 255\. Light the scene better or expose longer, or multiply the images by up to 13"),
        (lambda x: x * 0, r"0 of 255\. All pixels are 0: check how the images are read"),
    ],
)
def test_fit_names_the_factor_of_images_that_use_less_than_a_tenth_of_the_range(scaled, message):
    images = np.clip(textured_images(6).astype(np.int64) * 2 - 128, 0, 255).astype(np.uint8)
    images[:, :4, :4] = 255
    with pytest.warns(UserWarning, match=rf"the 6 training images use less than a tenth .* {message}"):
        small_detector(max_epochs=1).fit(scaled(images))


@pytest.mark.parametrize("bits", [14, 16])
def test_fit_is_silent_about_deep_images_of_14_and_of_16_bits(bits):
    assert messages(lambda: small_detector(max_epochs=1).fit(textured_images(6).astype(np.uint16) << (bits - 8))) == []


def test_a_cause_is_named_only_where_the_type_and_the_largest_value_agree():
    assert small_range("uint8", 20 / 255) is None
    assert small_range("uint16", 20000 / 65535) is None
    assert small_range("float", 0.5) is None
    assert small_range("float", 0.0) is None
    assert value_in_range("float", 0.5) == "0.5 of 1"


# What prediction names --------------------------------------------------------------------------------------

CHANGES = {
    "12 of 16 bits": (lambda x: x.astype(np.uint16) * 16, "about 16 times smaller .*12-bit data in 16 bits.*by 16"),
    "10 of 16 bits": (lambda x: x.astype(np.uint16) * 4, "about 64 times smaller .*10-bit data in 16 bits.*by 64"),
    "8 of 16 bits": (lambda x: x.astype(np.uint16), "about 256 times smaller .*8-bit data in 16 bits.*by 256"),
    "divided twice": (lambda x: x / 255.0 / 255.0, "about 255 times smaller .*divided by 255 twice.*divide once"),
    "12 bits / 65,535": (lambda x: x * 16.0 / 65535, "about 16 times smaller .*divide by 4,095"),
    "16 times darker": (lambda x: x // 16, "about 16 times smaller .*multiply by 16"),
    "BGR": (lambda x: x[..., ::-1], r"red and blue exchanged, first in X\[0\] \(red .*pass image\[\.\.\., ::-1\]"),
    "gray": (lambda x: x[..., 1], "are gray, but the good images of fit were in color, first X.0.*pass color images"),
    "x 1.3": (lambda x: np.clip(x * 1.3, 0, 255).astype(np.uint8), "are brighter than any .*another exposure or light"),
    "x 0.7": (lambda x: (x * 0.7).astype(np.uint8), "are darker than any .*bring it back, or add good images taken"),
    "haze": (lambda x: np.uint8(70 + (x - 70.0) * 0.3), "have less contrast than any .*haze, glare"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_prediction_names_the_difference_its_cause_and_the_way_out(change, detector, boards):
    changed, message = CHANGES[change]
    with pytest.warns(UserWarning, match=f"10 of 10 images.*{message}") as caught:
        detector.predict(changed(boards[20:30]))
    assert len(caught) == 1
    assert "X[0]" in str(caught[0].message)


@pytest.mark.parametrize("kind", INSPECTION_KINDS)
@pytest.mark.parametrize("n", [5, 30])
def test_unseen_images_of_the_product_are_not_named_good_or_defective(kind, n):
    data = make_inspection_images(n + 30, 30, kind=kind, size=128, random_state=1)
    assert warned_of(data.images[:n], data.images[n:], image_size=(128, 128)) == {}


@pytest.mark.parametrize("kind", INSPECTION_KINDS)
def test_a_change_of_exposure_is_named_on_every_product(kind):
    images = make_inspection_images(40, 0, kind=kind, size=64, random_state=1).images
    for factor, named in ((1.3, "brighter"), (0.7, "darker")):
        changed = np.clip(images[30:] * factor, 0, 255).astype(np.uint8)
        assert list(warned_of(images[:30], changed)) == [named]


@pytest.mark.parametrize("kind", COLORED)
def test_exchanged_channels_are_named_on_colored_products_with_few_images_too(kind):
    images = make_inspection_images(20, 0, kind=kind, size=64, random_state=1).images
    (text,) = warned_of(images[:10], images[10:, ..., ::-1]).values()
    assert "10 of 10 images" in text


def test_exchanged_channels_of_gray_images_are_not_guessed():
    gray = np.repeat(textured_images(10)[..., :1], 3, axis=-1)
    assert warned_of(gray[:5], gray[5:, ..., ::-1]) == {}


def test_color_images_are_named_by_a_detector_of_gray_ones(boards):
    (text,) = warned_of(boards[:20, ..., 1], boards[20:30]).values()
    assert text.startswith("10 of 10 images are in color, but the good images of fit were gray, first X[0] (")


def test_gray_and_color_images_are_not_named_where_fit_had_both(boards):
    good = [*boards[:10], *(np.repeat(image.mean(2, keepdims=True), 3, 2).astype(np.uint8) for image in boards[:10])]
    assert warned_of(good, [boards[20], good[10]]) == {}


@pytest.mark.parametrize("bits", [8, 14, 16])
def test_the_same_images_with_another_type_are_not_named(bits, boards):
    if bits == 14:  # as a camera's driver aligns them: to the high bits
        changed = (boards.astype(np.uint16) << 6) * 4
    else:
        changed = boards.astype(np.uint16) * 257 if bits == 16 else boards / 255
    assert warned_of(boards[:20], changed[20:]) == {}


def test_images_of_the_full_range_are_named_where_fit_had_a_sixteenth_of_it(boards):
    (text,) = warned_of(boards[:20].astype(np.uint16) * 16, boards[20:]).values()
    assert "about 16 times larger than in the good images of fit" in text
    assert "of 65,535. Fit on images of the full range, or divide these by 16" in text


def test_images_of_half_the_size_are_named_where_the_network_sees_them_enlarged(boards):
    small = boards[20:, ::2, ::2]
    (text,) = warned_of(boards[:20], small).values()
    assert "details are coarser, first those of X[0] (32 x 32 pixels; there 64 x 64)" in text
    (text,) = warned_of(small, boards[:5]).values()
    assert "details are finer" in text


def test_larger_images_are_not_named_since_both_are_reduced_to_one_size(boards):
    large = [np.asarray(Image.fromarray(image).resize((256, 256), Image.Resampling.BICUBIC)) for image in boards[20:25]]
    assert warned_of(boards[:20], large) == {}


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_no_image_of_fit_is_ever_named(data):
    """Whatever they are: constant, black, white, of any type and any mixture."""
    drawn = data.draw(
        st.lists(
            st.tuples(st.sampled_from(["uint8", "uint16", "float32"]), st.integers(0, 999)), min_size=2, max_size=6
        )
    )
    images = []
    for kind, seed in drawn:
        rng = np.random.default_rng(seed)
        largest = {"uint8": 255, "uint16": 65535, "float32": 1}[kind]
        low, high = np.sort(rng.choice([0, 0.001, 0.1, 0.5, 1], 2))
        shape = (32, 32) if rng.random() < 0.5 else (32, 32, 3)
        images.append((rng.uniform(low, high, shape) * largest).astype(kind))
    named = warned_of(images, images, image_size=(32, 32))
    assert {kind for kind in named if kind != "swapped"} == set()


def test_a_difference_of_a_single_image_is_named_with_its_place(detector, boards, tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(4)]
    for path, image in zip(paths, boards[20:24], strict=True):
        Image.fromarray(image if path.stem != "2" else image // 2).save(path)
    with pytest.warns(
        UserWarning, match=r"1 of 4 images is darker .*first X\[2\] \(.*2\.png\) \(brightness 0\.1"
    ) as caught:
        detector.predict(paths)
    assert len(caught) == 1


def test_images_like_those_of_fit_raise_no_warning_in_any_method(detector, boards):
    unseen = boards[20:30]
    for call in (
        lambda: detector.predict(unseen),
        lambda: detector.anomaly_map(unseen),
        lambda: list(detector.score_stream(iter(unseen))),
        lambda: detector.predict(boards[:20]),
    ):
        assert messages(call) == []


def test_each_call_warns_once(detector, boards):
    dark = boards[20:] // 2
    for _ in range(2):
        assert len(messages(lambda: detector.score_samples(np.concatenate([dark] * 4)))) == 1  # several batches
        assert len(messages(lambda: list(detector.score_stream(iter(dark))))) == 1


def test_images_from_the_cache_are_named_alike(boards, tmp_path, backbone_calls):
    cached = small_detector(max_epochs=1, memory=tmp_path).fit(boards[:20])
    dark = boards[20:] // 2
    first = messages(lambda: cached.predict(dark))
    backbone_calls.clear()
    assert messages(lambda: cached.predict(dark)) == first
    assert len(first) == 1
    assert backbone_calls == []
    again = small_detector(max_epochs=1, memory=tmp_path).fit(boards[:20])
    assert backbone_calls == []
    assert again.good_statistics_ == cached.good_statistics_


def test_an_entry_without_sound_statistics_is_computed_again(boards, tmp_path, backbone_calls, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ImageStatistics, "as_note", lambda self: {"kind": "uint8"})
        small_detector(max_epochs=1, memory=tmp_path).fit(boards[:4])
    backbone_calls.clear()
    fitted = small_detector(max_epochs=1, memory=tmp_path).fit(boards[:4])
    assert sum(backbone_calls) == 4
    assert fitted.good_statistics_.n_images == 4


def test_a_detector_from_a_pickle_and_threads_warn_alike(detector, boards):
    dark = boards[20:] // 2
    expected = messages(lambda: detector.predict(dark))
    assert messages(lambda: pickle.loads(pickle.dumps(detector)).predict(dark)) == expected
    assert messages(lambda: copy.deepcopy(detector).set_params(n_jobs=2).predict(dark)) == expected


def test_a_stream_warns_at_its_first_different_image_and_holds_nothing_of_later_ones(detector, boards):
    frames = itertools.chain(boards[20:22], itertools.repeat(boards[22] // 2))
    results = detector.score_stream(frames, maps=False)
    assert messages(lambda: [next(results) for _ in range(2)]) == []
    (text,) = messages(lambda: [next(results) for _ in range(5)])
    assert text.startswith("some images are darker than any of the good images of fit, first images[2] (")
    comparison = Comparison(detector.good_statistics_)
    dark = details([boards[22] // 2])[0]
    tracemalloc.start()
    for index in range(2000):
        comparison.note(index, f"images[{index}]", dark)
    grown = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert grown < 10_000
    assert "2000 of 2000 images" in comparison.texts(2000)["darker"]
    assert comparison.texts(None) == {}


def test_the_caller_may_pass_a_tensor_of_any_layout():
    image = torch.from_numpy(textured_images(1)[0]).movedim(-1, 0).contiguous().movedim(0, -1)
    np.testing.assert_allclose(statistics_of(image).means, statistics_of(image.numpy().copy()).means, rtol=1e-6)


# Statistics of two sets of images ------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(1, 30))
def test_merged_statistics_are_about_those_of_all_images(seed, n_first, n_second):
    rng = np.random.default_rng(seed)
    sides = rng.integers(16, 24, n_first + n_second)
    images = [rng.integers(0, rng.integers(20, 256), (side, 16, 3), dtype=np.uint8) for side in sides]
    measured = details(images, image_size=(16, 16))
    first, second, both = map(GoodStatistics.of, (measured[:n_first], measured[n_first:], measured))
    merged = first.merged(second)
    exact = ("n_images", "mode", "kinds", "bit_depth", "largest", "detail")
    assert [getattr(merged, name) for name in exact] == [getattr(both, name) for name in exact]
    for name in ("heights", "widths", "aspects", "brightness", "contrast"):
        ours, theirs = getattr(merged, name), getattr(both, name)
        assert (ours[0], ours[-1]) == pytest.approx((theirs[0], theirs[-1]))
    for name in ("brightness_limits", "contrast_limits"):
        for part in (first, second):
            assert getattr(merged, name)[0] <= getattr(part, name)[0]
            assert getattr(merged, name)[1] >= getattr(part, name)[1]
    assert GoodStatistics.from_note(merged.as_note()) == merged


def test_images_of_either_set_are_usual_to_merged_statistics(boards):
    dark = np.uint8(boards[15:] * 0.6)
    merged = GoodStatistics.of(details(boards[:15])).merged(GoodStatistics.of(details(dark)))
    comparison = Comparison(merged)
    for index, one in enumerate(details([*boards[:15], *dark])):
        comparison.note(index, f"X[{index}]", one)
    assert comparison.texts(30) == {}
    assert merged.brightness[2] == pytest.approx(
        np.median([one.statistics.brightness for one in details([*boards[:15], *dark])]), rel=0.05
    )
