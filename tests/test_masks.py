"""Masks: in every form that files and arrays take, against the pixels they were made from."""

import os
import warnings
from fractions import Fraction

import numpy as np
import pytest
from helpers import small_detector, textured_images
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from skpbas._inputs.targets import anomalous_rows, normal_rows
from skpbas.errors import InvalidTargetError
from skpbas.masks import read_mask, to_map_size
from skpbas.scorers import pixel_auroc_scorer

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
DEFECTS = hnp.arrays(bool, SHAPES).filter(lambda pixels: not pixels.all())
DTYPES = [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.uint64, np.float32, np.float64]
MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I", "F", "CMYK"]


def image_of(pixels, mode, level):
    """A PIL image of a mode with a value of ``level`` where the pixels are defective, and opaque everywhere."""
    if mode == "1":
        return Image.fromarray(pixels)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        return Image.fromarray((pixels * level).astype(dtype))
    gray = Image.fromarray(np.uint8(pixels * level))
    if mode in ("P", "PA"):
        image = Image.fromarray(np.uint8(pixels))
        image.putpalette([0, 0, 0, level, 0, 0] + [0, 0, 200] * 254)
        return image.convert("PA") if mode == "PA" else image
    if mode == "CMYK":
        return gray.convert("RGB").convert("CMYK")
    return gray.convert(mode)


@given(DEFECTS, st.sampled_from(DTYPES), st.integers(1, 127))
def test_a_mask_of_two_values_one_of_them_zero_is_defective_where_it_is_not_zero(pixels, dtype, level):
    np.testing.assert_array_equal(read_mask((pixels * level).astype(dtype)), pixels)
    np.testing.assert_array_equal(read_mask(pixels), pixels)
    np.testing.assert_array_equal(read_mask(pixels.tolist()), pixels)


@given(DEFECTS, st.sampled_from(MODES), st.integers(1, 255))
def test_a_mask_of_every_mode_is_defective_where_it_is_not_black_whatever_its_opacity(pixels, mode, level):
    np.testing.assert_array_equal(read_mask(image_of(pixels, mode, level)), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"])
def test_a_file_is_read_as_the_image_in_it(mode, tmp_path):
    pixels = np.random.default_rng(3).random((20, 30)) < 0.2
    path = tmp_path / "mask.png"
    image_of(pixels, mode, 80).save(path)
    np.testing.assert_array_equal(read_mask(path), pixels)
    np.testing.assert_array_equal(read_mask(str(path)), pixels)


@given(
    st.sampled_from([(np.uint8, 255), (np.int8, 127), (np.uint16, 65535), (np.float32, 1.0), (np.int64, 255)]),
    hnp.arrays(np.float64, SHAPES, elements=st.floats(0, 1)),
)
def test_of_more_than_two_values_those_above_half_of_the_range_are_defective(kind, shares):
    dtype, highest = kind
    values = (shares * highest).astype(dtype)
    values = np.concatenate([np.zeros((3, values.shape[1]), dtype), values])
    values[1], values[2] = highest, highest // 4 or 0.25  # three values or more
    expected = np.array([[float(value) > highest / 2 for value in row] for row in values])
    np.testing.assert_array_equal(read_mask(values), expected)


def test_the_noise_of_a_jpeg_file_is_not_defective(tmp_path):
    pixels = np.zeros((64, 64), bool)
    pixels[13:29, 21:45] = True
    path = tmp_path / "mask.jpg"
    Image.fromarray(np.uint8(pixels * 255)).save(path, quality=60)
    with Image.open(path) as image:
        assert len(np.unique(np.asarray(image))) > 2
    np.testing.assert_array_equal(read_mask(path), pixels)


def test_high_levels_as_in_public_data_sets_are_defective():
    mask = np.zeros((4, 8), np.uint8)
    mask[1, 2:6] = [236, 240, 250, 255]
    np.testing.assert_array_equal(read_mask(mask), mask > 0)


def test_everybody_who_reads_masks_finds_the_same_pixels(tmp_path):
    images = textured_images(4, side=64)
    values = np.zeros((64, 64), np.uint8)
    values[10:20, 30:40] = 80
    mask = Image.merge("LA", [Image.fromarray(values), Image.new("L", (64, 64), 255)])
    mask.save(tmp_path / "mask.png")
    masks = [None, None, None, tmp_path / "mask.png"]
    assert read_mask(mask).sum() == 100
    *normal, seen = to_map_size(masks, images, (64, 64))
    assert normal == [None] * 3
    np.testing.assert_array_equal(seen, values > 0)
    assert anomalous_rows(masks, 4).tolist() == [False, False, False, True]
    assert normal_rows(masks, 4).tolist() == [0, 1, 2]


def test_masks_are_read_with_the_detectors_view_of_their_images():
    images = textured_images(4, side=96)[:, :64]
    detector = small_detector(max_epochs=1, resize="crop")
    with pytest.warns(UserWarning, match="discards up to"):
        detector.fit(images)
    mask = np.zeros((64, 96), bool)
    mask[:, :16] = True  # what the crop cuts off
    mask[5, 50] = True
    with pytest.warns(UserWarning, match=r'1 mask has .* outside the part of an image that resize="crop" keeps'):
        (seen,) = to_map_size([mask], images[:1], detector)
    expected = np.zeros((64, 64), bool)
    expected[5, 34] = True
    np.testing.assert_array_equal(seen, expected)


class Cropping:
    """What :func:`to_map_size` needs to know of a detector that crops."""

    map_shape_, resize = (8, 8), "crop"


@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=8, max_side=30)),
    st.sampled_from([(8, 8), (9, 13), (20, 8)]),
)
def test_a_crop_warns_of_just_the_masks_with_pixels_whose_centers_it_does_not_show(mask, map_shape):
    class Detector(Cropping):
        map_shape_ = map_shape

    height, width = mask.shape
    scale = max(Fraction(map_shape[0], height), Fraction(map_shape[1], width))
    resized = [max(view, int(side * scale)) for view, side in zip(map_shape, mask.shape, strict=True)]
    outside = False
    for row, column in zip(*np.nonzero(mask), strict=True):
        for place, side, whole, view in zip((row, column), mask.shape, resized, map_shape, strict=True):
            position = (place + Fraction(1, 2)) * whole / side - round((whole - view) / 2)
            outside |= not 0 <= position < view
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        to_map_size([mask], [np.zeros(mask.shape, np.uint8)], Detector())
    assert [str(w.message).startswith("1 mask has defective pixels outside") for w in caught] == [True] * outside


def test_one_warning_counts_the_masks_with_defects_outside_a_crop_and_names_the_first(tmp_path):
    masks = np.zeros((4, 16, 32), bool)
    masks[1:, 2:4, 2:4] = True
    masks[2:, 8:10, 16:18] = True
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, mask in zip(paths, masks, strict=True):
        Image.fromarray(mask).save(path)
    with pytest.warns(UserWarning, match="masks") as caught:
        seen = to_map_size(paths, np.zeros((4, 16, 32), np.uint8), Cropping())
    (message,) = [str(w.message) for w in caught]
    assert message.startswith('3 masks have defective pixels outside the part of an image that resize="crop" keeps')
    assert f"1 of them only there; the first is masks[1] ({paths[1]})" in message
    assert [mask is None for mask in seen] == [True, True, False, False]


def test_a_crop_takes_masks_of_the_maps_size_only_if_it_shows_the_whole_image():
    mask = np.zeros((8, 8), np.uint8)
    mask[2, 3] = 1
    (seen,) = to_map_size([mask], np.zeros((1, 64, 64), np.uint8), Cropping())
    np.testing.assert_array_equal(seen, mask)
    with pytest.raises(InvalidTargetError, match=r"masks\[0\] has the size of the anomaly map.*cuts off.*64 x 80$"):
        to_map_size([mask], np.zeros((1, 64, 80), np.uint8), Cropping())
    (seen,) = to_map_size([mask], np.zeros((1, 64, 80), np.uint8), (8, 8))
    np.testing.assert_array_equal(seen, mask)


@pytest.mark.parametrize("missing", [None, float("nan"), np.float64("nan"), ""])
def test_a_missing_entry_is_no_mask_and_another_number_of_masks_is_refused(missing):
    mask = np.eye(64, dtype=bool)
    images = textured_images(3)
    none, seen, also_none = to_map_size([missing, mask, missing], images, (64, 64))
    assert none is also_none is None
    np.testing.assert_array_equal(seen, mask)
    for masks in ([missing, mask], [mask] * 4):
        with pytest.raises(InvalidTargetError, match=f"masks has {len(masks)} entries for 3 images"):
            to_map_size(masks, images, (64, 64))


@pytest.mark.parametrize(
    ("kind", "what"), [("folder", "a folder"), ("pipe", "not a regular file"), ("nothing", "no such file")]
)
def test_what_is_no_regular_file_is_refused_unopened(kind, what, tmp_path):
    path = tmp_path / "mask.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        if not hasattr(os, "mkfifo"):
            pytest.skip("needs named pipes")
        os.mkfifo(path)  # opening it would wait for a writer
    with pytest.raises(InvalidTargetError, match=rf"cannot read a mask: mask=.* {what}"):
        read_mask(str(path))
    with pytest.raises(InvalidTargetError, match=rf"cannot read a mask: y\[1\] \(.*mask\.png\).* {what}"):
        normal_rows([None, path], 2)


@pytest.mark.parametrize("error", [ValueError("tile cannot extend"), RuntimeError("of AVIF"), MemoryError()])
def test_whatever_a_decoder_raises_names_the_file(error, tmp_path, monkeypatch):
    Image.fromarray(np.eye(4, dtype=bool)).save(tmp_path / "mask.png")

    def broken(*_args, **_kwargs):
        raise error

    monkeypatch.setattr(Image, "open", broken)
    with pytest.raises(InvalidTargetError, match=rf"y\[0\] \(.*mask\.png\) .*{type(error).__name__}: {error}"):
        normal_rows([tmp_path / "mask.png"], 1)


# Codings that are wrong only for those who take every value but 0 for defective -------------------------------


DISC = np.hypot(*np.mgrid[-32:32, -32:32]) < 15


def soft_edge():
    """A disc drawn at four times the size and averaged, as by a program that smooths edges."""
    fine = np.hypot(*np.mgrid[-128:128, -128:128]) < 60
    return np.uint8(np.round(fine.reshape(64, 4, 64, 4).mean(axis=(1, 3)) * 255))


CODINGS = {
    "JPEG": ("jpg", lambda: Image.fromarray(np.uint8(DISC * 255))),
    "antialiased": ("png", lambda: Image.fromarray(soft_edge())),
    "levels of 236 to 255": ("png", lambda: Image.fromarray(np.uint8(DISC * (236 + np.arange(64) % 20)))),
    "floats": ("tif", lambda: Image.fromarray(soft_edge().astype(np.float32) / 255)),
    "a palette whose first color is white": ("png", lambda: palette_image(~DISC)),
}


def palette_image(pixels):
    image = Image.fromarray(np.uint8(pixels))
    image.putpalette([255, 255, 255] + [0, 0, 0] * 255)
    return image


@pytest.mark.parametrize("coding", CODINGS)
def test_a_mask_in_every_usual_coding_is_the_disc_that_it_was_made_from(coding, tmp_path):
    suffix, make = CODINGS[coding]
    path = tmp_path / f"mask.{suffix}"
    make().save(path)
    read = read_mask(path)
    edge = np.abs(np.hypot(*np.mgrid[-32:32, -32:32]) - 15) < 1.5  # where smoothing and JPEG blur the border
    assert ((read == DISC) | edge).all()
    assert abs(int(read.sum()) - int(DISC.sum())) <= 0.03 * DISC.sum()


@pytest.mark.parametrize("levels", [(1, 2), (1, 255)])
def test_masks_without_a_zero_are_refused_by_whoever_reads_them(levels, tmp_path):
    path = tmp_path / "mask.png"
    Image.fromarray(np.where(DISC, levels[1], levels[0]).astype(np.uint8)).save(path)
    message = rf"\(.*mask\.png\) has no pixel of value 0: its values are 1, {levels[1]}.*mask != value"
    with pytest.raises(InvalidTargetError, match="y" + r"\[1\] " + message):
        normal_rows([None, path], 2)
    with pytest.raises(InvalidTargetError, match="masks" + r"\[1\] " + message):
        to_map_size([None, path], textured_images(2), (64, 64))


def test_one_warning_names_how_many_masks_have_more_than_two_values_and_the_first(tmp_path):
    images = textured_images(3, side=64)
    graded = np.zeros((64, 64), np.uint8)
    graded[20:30, 20:30] = np.arange(100).reshape(10, 10) * 2
    path = tmp_path / "graded.png"
    Image.fromarray(graded).save(path)
    message = (
        r"2 masks have more than two values; the first, masks\[1\] .*graded.png\) contains 100 values, 0, 2, .*198"
    )
    with pytest.warns(UserWarning, match=message):
        seen = to_map_size([None, path, graded], images, (64, 64))
    np.testing.assert_array_equal(seen[1], graded > 127)
    np.testing.assert_array_equal(seen[2], graded > 127)


def test_the_warning_about_values_appears_in_a_scorer_too():
    class Detector:
        map_shape_ = (64, 64)

        def iter_scores_and_maps(self, X):
            rng = np.random.default_rng(0)
            return ((float(i), rng.random((64, 64), dtype=np.float32)) for i in range(len(X)))

    graded = np.zeros((64, 64), np.uint8)
    graded[:8, :8] = np.arange(64).reshape(8, 8) * 4
    with pytest.warns(UserWarning, match=r"1 mask has .* y\[1\] contains 64 values"):
        pixel_auroc_scorer(Detector(), textured_images(2), [None, graded])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((4, 4), 7, np.uint8), r"mask has no pixel of value 0: its values are 7"),
        (np.array([[1, 2], [1, 1]]), "no pixel of value 0: its values are 1, 2.*mask != value"),
        (np.array([[1, 255], [1, 1]], np.uint8), "no pixel of value 0: its values are 1, 255"),
        (np.array([[0.0, np.nan]]), "finite and non-negative"),
        (np.array([[0, -1]]), r"finite and non-negative, got \[-1, 0\]"),
        (np.zeros((4, 4, 3)), r"a mask must be .* \(H, W\), got shape \(4, 4, 3\)"),
        (np.array([["a", "b"]]), "dtype <U1"),
        ("nowhere.png", "cannot read a mask: mask='nowhere.png': no such file"),
    ],
)
def test_what_is_no_mask_is_refused_with_the_way_out(mask, message):
    with pytest.raises(InvalidTargetError, match=message):
        read_mask(mask)


def test_what_a_mask_says_in_its_opacity_or_on_later_pages_is_not_lost_in_silence(tmp_path):
    black, marked = Image.new("RGB", (8, 8)), Image.new("L", (8, 8))
    marked.putpixel((3, 3), 255)
    black.putalpha(marked)
    black.save(tmp_path / "alpha.png")
    with pytest.raises(InvalidTargetError, match=r"alpha\.png\) is black everywhere and its opacity varies"):
        normal_rows([None, tmp_path / "alpha.png"], 2)
    Image.new("L", (8, 8)).save(tmp_path / "pages.tif", save_all=True, append_images=[marked])
    with pytest.raises(InvalidTargetError, match=r"pages\.tif\) has 2 pages or frames"):
        normal_rows([None, tmp_path / "pages.tif"], 2)
    white = Image.new("RGBA", (8, 8), (255, 255, 255, 0))
    white.putpixel((0, 0), (0, 0, 0, 255))
    assert read_mask(white).sum() == 63  # opacity is ignored where colors tell


@pytest.mark.parametrize(
    "mask", [np.array([[0, 1, 2, 3]], np.uint8), np.array([[0, 1, 2]], np.uint16), np.array([[0, 0.2, 0.4]])]
)
def test_values_of_which_none_is_above_half_are_refused(mask):
    with pytest.raises(InvalidTargetError, match=r"y\[1\] has . values, of which none is above half .* pass mask > 0"):
        normal_rows([None, mask], 2)


def test_masks_of_other_sizes_and_geometries_are_refused():
    images = textured_images(1, side=64)
    with pytest.raises(
        InvalidTargetError, match=r"masks\[0\] is 3 x 5; its image X\[0\] is 64 x 64 and the anomaly map"
    ):
        to_map_size([np.zeros((3, 5), bool)], images, (32, 32))
    with pytest.raises(TypeError, match="expected a fitted detector, which has map_shape_"):
        to_map_size([None], images, small_detector())
