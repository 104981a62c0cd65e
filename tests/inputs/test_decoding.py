"""From files and images of all kinds to pixels: formats, opacity, orientation, frames, memory, damage."""

import io
import os
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin

from skpbas._inputs.decoding import (
    check_regular_file,
    decode,
    decoding,
    image_shape,
    known_formats,
    opened,
)
from skpbas._inputs.formats import image_suffixes, looks_like_an_image
from skpbas._inputs.images import ImageSequence, check_images
from skpbas.datasets import IMAGE_FORMATS, list_images
from skpbas.errors import DatasetError, ImageNotFoundError, InvalidImageError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)


def on_white(colors, alpha):
    """Blend (H, W, C) with white by an opacity (H, W) in [0, 1]."""
    return np.rint(colors * alpha[..., None] + 255.0 * (1 - alpha[..., None]))


# Formats --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [s for s in image_suffixes() if s not in (".mpo", ".pfm", ".jpc", ".jpf", ".jpx")])
def test_every_suffix_is_written_and_read_back(suffix, pixels, tmp_path):
    path = tmp_path / f"a{suffix}"
    smooth = np.uint8(np.indices((32, 40)).sum(axis=0))[..., None].repeat(3, axis=2)  # JPEG keeps it nearly as it is
    if suffix == ".pbm":
        smooth = 255 * (smooth > 30).astype(np.uint8)
    image = Image.fromarray(smooth)
    (image.convert("1") if suffix == ".pbm" else image.convert("L") if suffix == ".pgm" else image).save(path)
    decoded = decode(path, "X[0]")
    assert decoded.pixels.shape[:2] == image_shape(path, "X[0]") == (32, 40)
    actual = decoded.pixels if decoded.pixels.ndim == 3 else decoded.pixels[..., None]
    assert np.abs(actual.astype(int) - smooth).max() <= 12
    assert not decoded.transparent
    assert not decoded.more_frames


def test_a_file_of_another_format_is_refused_whatever_its_name_is(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "a.eps")
    os.rename(tmp_path / "a.eps", tmp_path / "a.png")
    with pytest.raises(
        InvalidImageError, match=r"a.png\) is not an image that Pillow can read as PNG, JPEG, .*IMAGE_FORM"
    ):
        decode(tmp_path / "a.png", f"X[0] ({tmp_path / 'a.png'})")


def test_users_may_add_a_format(pixels, tmp_path, monkeypatch):
    path = tmp_path / "a.tga"
    Image.fromarray(pixels).save(path)
    with pytest.raises(InvalidImageError, match="not an image that Pillow can read"):
        decode(path, "X[0]")
    monkeypatch.setitem(IMAGE_FORMATS, "TGA", (".tga",))
    np.testing.assert_array_equal(decode(path, "X[0]").pixels, pixels)
    assert list_images(tmp_path) == [path]


def test_a_format_that_pillow_does_not_know_is_passed_over(pixels, tmp_path, monkeypatch):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setitem(IMAGE_FORMATS, "NONE SUCH", (".none",))
    np.testing.assert_array_equal(decode(tmp_path / "a.png", "X[0]").pixels, pixels)


def test_a_listing_leaves_hidden_and_other_files_out(tmp_path):
    for name in ("10.png", "2.webp", "b.JPG", "._2.webp", ".hidden.png", "Thumbs.db", ".DS_Store", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    assert [path.name for path in list_images(tmp_path)] == ["2.webp", "10.png", "b.JPG"]
    assert not looks_like_an_image(tmp_path / "._a.png")
    with pytest.raises(DatasetError, match="no image files"):
        list_images(tmp_path / "folder.png")
    with pytest.raises(DatasetError, match="no folder at"):
        list_images(tmp_path / "elsewhere")


# Opacity --------------------------------------------------------------------------------------------------

GRAY, ALPHA = np.uint8([[0, 50, 200, 255]] * 4), np.uint8([[0], [1], [128], [255]] * np.ones(4, np.uint8))
TRANSPARENT_MODES = {
    "RGBA": (Image.fromarray(np.dstack([GRAY, GRAY.T, GRAY, ALPHA])), np.dstack([GRAY, GRAY.T, GRAY])),
    "LA": (Image.merge("LA", (Image.fromarray(GRAY), Image.fromarray(ALPHA))), GRAY[..., None]),
}


@pytest.mark.parametrize("mode", TRANSPARENT_MODES)
def test_transparent_pixels_are_blended_with_white(mode, tmp_path):
    image, colors = TRANSPARENT_MODES[mode]
    expected = on_white(colors, ALPHA / 255)
    image.save(tmp_path / "a.png")
    for item in (image, tmp_path / "a.png", *([np.asarray(image)] if mode == "RGBA" else [])):
        decoded = decode(item, "X[0]")
        assert decoded.transparent
        np.testing.assert_array_equal(np.atleast_3d(decoded.pixels), expected)


@pytest.mark.parametrize(("mode", "premultiplied"), [("RGBA", "RGBa"), ("LA", "La")])
def test_premultiplied_colors_are_blended_with_white(mode, premultiplied):
    image, colors = TRANSPARENT_MODES[mode]
    decoded = decode(image.convert(premultiplied), "X[0]")
    error = np.abs(np.atleast_3d(decoded.pixels) - on_white(colors, ALPHA / 255))
    assert error.max() <= 1  # premultiplying rounds the visible share of a color


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
def test_the_opacity_of_deep_arrays_is_their_fourth_channel(dtype):
    rng = np.random.default_rng(0)
    white = 65535 if dtype == np.uint16 else 1
    image = (rng.random((8, 8, 4)) * white).astype(dtype)
    share = image[..., 3:].astype(np.float64) / white
    expected = image[..., :3] * share + white * (1 - share)
    decoded = decode(image, "X[0]")
    assert decoded.pixels.dtype == dtype
    assert np.abs(decoded.pixels - expected).max() <= (1 if dtype == np.uint16 else 1e-6)


def test_palettes_and_gray_levels_may_be_transparent(tmp_path):
    palette = Image.fromarray(np.uint8([[0, 1], [2, 3]]), mode="P")
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    palette.save(tmp_path / "p.png", transparency=bytes([255, 0, 128, 255]))
    colors = np.array([[[10, 20, 30], [40, 50, 60]], [[70, 80, 90], [100, 110, 120]]])
    expected = on_white(colors, np.array([[255, 0], [128, 255]]) / 255)
    np.testing.assert_array_equal(decode(tmp_path / "p.png", "X[0]").pixels, expected)
    Image.fromarray(np.uint8([[7, 8], [9, 7]])).save(tmp_path / "l.png", transparency=7)
    np.testing.assert_array_equal(decode(tmp_path / "l.png", "X[0]").pixels, [[255, 8], [9, 255]])
    palette.putalpha(Image.fromarray(np.uint8([[255, 0], [128, 255]])))
    with_alpha = palette.convert("PA") if palette.mode != "PA" else palette
    assert decode(with_alpha, "X[0]").transparent


def test_an_opaque_alpha_channel_changes_nothing(pixels, tmp_path):
    opaque = np.dstack([pixels, np.full(pixels.shape[:2], 255, np.uint8)])
    Image.fromarray(opaque).save(tmp_path / "a.png")
    for item in (opaque, opaque / 255, opaque.astype(np.uint16) * 257):
        decoded = decode(item, "X[0]")
        assert not decoded.transparent
        np.testing.assert_array_equal(decoded.pixels, item[..., :3])
    for item in (Image.fromarray(opaque), tmp_path / "a.png"):
        decoded = decode(item, "X[0]")
        assert not decoded.transparent
        np.testing.assert_array_equal(decoded.pixels, pixels)


def test_an_image_that_is_transparent_everywhere_is_refused(pixels, tmp_path):
    clear = np.dstack([pixels, np.zeros(pixels.shape[:2], np.uint8)])
    Image.fromarray(clear).save(tmp_path / "a.png")
    for item in (clear, Image.fromarray(clear), tmp_path / "a.png"):
        with pytest.raises(InvalidImageError, match="is transparent everywhere"):
            decode(item, "X[0]")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "I;16", "LA", "RGBA"])
def test_rows_are_converted_in_strips_as_the_whole_would_be(mode, monkeypatch):
    rng = np.random.default_rng(0)
    source = Image.fromarray(rng.integers(0, 256, (37, 23, 3), dtype=np.uint8))
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (37, 23), dtype=np.uint16))
    else:
        image = source.convert("L").convert("LA") if mode == "LA" else source.convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(rng.integers(0, 256, (37, 23), dtype=np.uint8)))
    whole = decode(image, "X[0]")
    monkeypatch.setattr("skpbas._inputs.decoding._STRIP", 50)
    in_strips = decode(image, "X[0]")
    np.testing.assert_array_equal(in_strips.pixels, whole.pixels)
    assert in_strips.pixels.dtype == whole.pixels.dtype
    assert in_strips.transparent == whole.transparent == ("A" in mode)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_applied_as_pillow_does(orientation, pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(tmp_path / "a.png", "X[0]").pixels, expected)
    assert image_shape(tmp_path / "a.png", "X[0]") == expected.shape[:2]
    sequence = ImageSequence([tmp_path / "a.png"], image_size=expected.shape[:2], resize="stretch", smallest=1)
    assert torch.equal(sequence.load(0)[0], torch.from_numpy(expected.copy()).movedim(-1, 0))


# Frames and warnings --------------------------------------------------------------------------------------


def test_later_pages_and_frames_and_hidden_colors_are_warned_of_once(pixels, tmp_path):
    frames = [Image.fromarray(np.roll(pixels, i, axis=0)) for i in range(3)]
    clear = Image.fromarray(np.dstack([pixels, pixels[..., 0]]))
    paths = [tmp_path / name for name in ("plain.tif", "pages.tif", "frames.gif", "clear.png", "more.png")]
    frames[0].save(paths[0])
    frames[0].save(paths[1], save_all=True, append_images=frames[1:])
    frames[0].save(paths[2], save_all=True, append_images=frames[1:])
    clear.save(paths[3])
    frames[0].save(paths[4], save_all=True, append_images=frames[1:])
    images = ImageSequence(check_images(paths), image_size=(32, 32), resize="stretch", smallest=16)
    for i in range(len(paths)):
        images.load(i)
    with pytest.warns(UserWarning, match="in . of 5 images") as caught:
        images.warn()
    texts = sorted(str(warning.message) for warning in caught)
    assert len(texts) == 2
    assert "first of several pages or frames is used in 3 of 5 images, first in X[1]" in texts[0]
    assert "transparent pixels are blended with white in 1 of 5 images, first in X[3]" in texts[1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        images.load(1)
        images.warn()


def test_the_previews_in_a_cameras_mpo_file_are_no_frames(pixels, tmp_path):
    image = Image.fromarray(pixels)
    image.save(tmp_path / "a.mpo", save_all=True, append_images=[image.copy()])
    assert not decode(tmp_path / "a.mpo", "X[0]").more_frames


# Errors ---------------------------------------------------------------------------------------------------


def png_with_a_long_text(pixels, path):
    info = PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 3_000_000, zip=True)
    Image.fromarray(pixels).save(path, pnginfo=info)


def test_whatever_a_decoder_raises_names_the_image_and_the_cause(pixels, tmp_path):
    png_with_a_long_text(pixels, tmp_path / "long.png")
    closed = Image.fromarray(pixels)
    closed.close()
    for item, cause in ((tmp_path / "long.png", "ValueError: Decompressed data too large"), (closed, "ValueError: Op")):
        images = ImageSequence([item], image_size=(32, 32), resize="stretch", smallest=16)
        with pytest.raises(InvalidImageError, match=rf"^X\[0\].*damaged or truncated \({cause}") as raised:
            images.load(0)
        assert raised.value.__cause__ is not None


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("decoder"), zlib.error("x"), RecursionError(), KeyError(1)]
)
def test_errors_of_every_type_become_the_packages_own(error, pixels, tmp_path, monkeypatch):
    Image.fromarray(pixels).save(tmp_path / "a.png")

    def broken(*_):
        raise error

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", broken)
    with pytest.raises(InvalidImageError, match=rf"^X\[3\].*{type(error).__name__}"):
        decode(tmp_path / "a.png", "X[3]")


def test_a_warning_that_the_caller_made_an_error_names_the_image(pixels, tmp_path, monkeypatch):
    Image.fromarray(pixels).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(InvalidImageError, match=r"X\[0\] is too large.*MAX_IMAGE_PIXELS"):
            decode(tmp_path / "a.png", "X[0]")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_device_is_refused_before_it_is_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", os.devnull):
        for check in (check_regular_file, decode, image_shape):
            with pytest.raises(InvalidImageError, match="but a pipe, a socket or a device"):
                check(path, "X[0]")


def test_paths_that_cannot_be_reached_are_refused(tmp_path):
    with pytest.raises(InvalidImageError, match=r"X\[0\] cannot be opened: .*null"):
        check_regular_file("a\0b.png", "X[0]")
    with pytest.raises(InvalidImageError, match=r"X\[0\] cannot be opened: .*too long"):
        check_regular_file("a" * 5000, "X[0]")
    with pytest.raises(ImageNotFoundError, match="no such file"), opened(tmp_path / "a.png", "X[0]"):
        pass


@settings(max_examples=60, deadline=None)
@given(
    st.binary(max_size=300),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"GIF89a", b"P6 ", b"II*\0"]),
)
def test_bytes_of_any_kind_are_decoded_or_refused(content, magic):
    try:
        with decoding("X[0]"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decode(Image.open(io.BytesIO(magic + content), formats=known_formats()), "X[0]")
    except InvalidImageError as error:
        assert str(error).startswith("X[0] ")  # noqa: PT017 - some of it may be an image


# Memory ---------------------------------------------------------------------------------------------------

MEASURE = """
import sys
from skpbas._inputs.images import ImageSequence, check_images
def status(name):
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
def load(path):
    ImageSequence(check_images([path]), image_size=(256, 256), resize=sys.argv[3], smallest=8).load(0)
load(sys.argv[1])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
load(sys.argv[2])
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak is measured as Linux counts it")
@pytest.mark.parametrize(
    ("shape", "suffix", "resize"),
    [((6000, 8000), ".jpg", "stretch"), ((16, 100_000), ".png", "crop"), ((3000, 4000), ".png", "crop")],
)
def test_decoding_takes_at_most_three_times_an_images_pixels(shape, suffix, resize, tmp_path):
    small, large = tmp_path / f"small{suffix}", tmp_path / f"large{suffix}"
    Image.new("RGB", (64, 64)).save(small)
    Image.new("RGB", shape[::-1], (90, 120, 30)).save(large)
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, small, large, resize],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    pixels = 3 * shape[0] * shape[1]
    assert int(run.stdout) <= 3 * pixels + 2**24  # and what the allocator and libraries keep
