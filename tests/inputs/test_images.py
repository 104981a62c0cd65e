"""Accepted images, their conversion to the model input, and errors for all others."""

import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from skpbas._features.extraction import prefetch, stack_views
from skpbas._inputs.images import ImageSequence, check_images
from skpbas.errors import ImageNotFoundError, InvalidImageError


def sequence(X, image_size=(32, 32), resize="stretch", smallest=16):
    return ImageSequence(check_images(X), image_size=image_size, resize=resize, smallest=smallest)


def view(X, index=0, **kwargs):
    return sequence(X, **kwargs).load(index)[0]


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def written(image, path, **kwargs):
    Image.fromarray(image).save(path, **kwargs) if isinstance(image, np.ndarray) else image.save(path, **kwargs)
    return path


def test_an_array_a_pil_image_and_a_path_of_one_image_give_the_same_view(pixels, tmp_path):
    expected = torch.from_numpy(pixels).movedim(-1, 0)
    path = written(pixels, tmp_path / "a.png")
    for X in (pixels[None], [pixels], [Image.fromarray(pixels)], [path], [str(path)], np.array([str(path)])):
        assert torch.equal(view(X), expected)


def test_gray_images_fill_all_three_channels(pixels):
    gray = pixels[..., 0]
    for X in (gray[None], gray[None, ..., None], [gray], [Image.fromarray(gray)]):
        channels = view(X)
        assert channels.shape == (3, 32, 32)
        assert torch.equal(channels[2], torch.from_numpy(gray))


def test_alpha_is_dropped_not_blended(pixels, tmp_path):
    rgba = np.dstack([pixels, np.full((32, 32), 7, np.uint8)])
    expected = torch.from_numpy(pixels).movedim(-1, 0)
    for X in (rgba[None], [Image.fromarray(rgba)], [written(rgba, tmp_path / "a.png")]):
        assert torch.equal(view(X), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"])
def test_every_common_mode_of_pillow_is_accepted(mode, pixels):
    source = Image.fromarray(pixels)
    image = (
        Image.merge("LAB", source.split())
        if mode == "LAB"
        else source.convert("L").convert("LA")
        if mode == "LA"
        else source.convert(mode)
    )
    assert view([image]).shape == (3, 32, 32)


def test_a_palette_with_transparency_gives_its_colors_without_a_warning(pixels, tmp_path):
    image = Image.fromarray(pixels).quantize(16)
    path = written(image, tmp_path / "a.png", transparency=bytes(range(16)))
    expected = torch.from_numpy(np.asarray(image.convert("RGB")).copy()).movedim(-1, 0)
    assert torch.equal(view([path]), expected)


def test_16_bit_arrays_and_files_are_scaled_by_their_range(tmp_path):
    deep = np.arange(32 * 32, dtype=np.uint16).reshape(32, 32) * 64
    path = tmp_path / "a.png"
    Image.fromarray(deep).save(path)
    expected = torch.from_numpy(deep.astype(np.float64) / 65535).float().expand(3, 32, 32)
    for X in (deep[None], [path]):
        torch.testing.assert_close(view(X), expected)


def test_floats_are_not_rescaled(pixels):
    torch.testing.assert_close(view((pixels / 255)[None]), torch.from_numpy(pixels).movedim(-1, 0) / 255)


def test_exif_rotation_is_applied(pixels, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees clockwise to display
    path = written(pixels, tmp_path / "a.png", exif=exif)
    assert torch.equal(view([path]), torch.from_numpy(np.rot90(pixels, -1).copy()).movedim(-1, 0))


def test_resizing_bytes_and_floats_agrees_with_pillow(pixels):
    big = np.kron(pixels, np.ones((3, 2, 1), np.uint8))  # 96 x 64
    by_bytes = view([big], image_size=(40, 24)).float()
    by_floats = view([big / 255], image_size=(40, 24)) * 255
    by_pillow = torch.from_numpy(np.asarray(Image.fromarray(big).resize((24, 40), Image.Resampling.BILINEAR)).copy())
    assert (by_bytes - by_floats).abs().max() <= 1.01
    assert (by_bytes - by_pillow.movedim(-1, 0)).abs().max() <= 1.01


def test_crop_keeps_the_aspect_ratio_and_the_center():
    image = np.zeros((32, 96, 3), np.uint8)
    image[:, 32:64] = 200
    assert (view([image], resize="crop") == 200).all()


def test_a_crop_that_discards_more_than_five_percent_raises_a_warning(pixels):
    wide = np.concatenate([pixels, pixels], axis=1)
    images = sequence([wide, pixels], resize="crop")
    images.load(0), images.load(1)
    with pytest.warns(UserWarning, match=r"up to 50% of the area of 1 of 2 images"):
        images.warn_of_crops()
    almost_square = sequence([np.zeros((64, 66, 3), np.uint8)], resize="crop")
    almost_square.load(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        almost_square.warn_of_crops()


def test_threads_keep_the_order_and_propagate_errors(pixels, tmp_path):
    X = [np.full((32, 32), i, np.uint8) for i in range(30)]
    order = list(range(29, -1, -1))
    values = [int(v[0, 0, 0]) for v, _ in prefetch(sequence(X).load, order, 3)]
    assert values == order
    X[17] = np.full((8, 8), 0, np.uint8)
    with pytest.raises(InvalidImageError, match=r"X\[17\]"):
        list(prefetch(sequence(X).load, order, 3))


def test_input_arrays_are_not_modified_and_may_be_read_only_or_memory_mapped(pixels, tmp_path):
    X = np.stack([pixels, pixels])
    X.setflags(write=False)
    np.save(tmp_path / "x.npy", X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for images in (X, mapped, list(X)):
        loaded = view(images)
        loaded.clone().zero_()
        assert torch.equal(loaded, torch.from_numpy(pixels).movedim(-1, 0))


def png_header(width, height):
    """A PNG header with the given size and no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_errors_name_unusable_files(pixels, tmp_path):
    whole = written(pixels, tmp_path / "whole.png").read_bytes()
    files = {
        "truncated.png": (whole[: len(whole) // 2], "damaged or truncated"),
        "text.png": (b"not an image", "not an image"),
        "bomb.png": (png_header(60_000, 60_000) + whole[33:], "too large"),
        "empty.jpg": (b"", "not an image"),
    }
    for name, (content, reason) in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InvalidImageError, match=rf"X\[1\] \(.*{name}\).*{reason}"):
            view([tmp_path / "whole.png", tmp_path / name], index=1)


def test_a_missing_file_is_detected_before_decoding():
    with pytest.raises(ImageNotFoundError, match=r"X\[1\]: no such file: 'nowhere.png'"):
        check_images([__file__, "nowhere.png"])


def nan_image():
    image = np.zeros((2, 32, 32))
    image[1, 3, 4] = np.nan
    return image


@pytest.mark.parametrize(
    ("X", "reason"),
    [
        ([], "0 images"),
        (np.zeros((0, 32, 32, 3), np.uint8), "got 0 images"),
        (np.zeros((32, 32), np.uint8), "2 dimensions"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"channels must come last: X.transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 32, 32, 5), np.uint8), "the last axis must be 1, 3 or 4"),
        (nan_image(), r"X\[1\] contains NaN or infinity"),
        (np.full((2, 32, 32), np.inf), r"X\[0\] contains NaN or infinity"),
        (np.full((2, 32, 32), 1.5), r"X\[0\]: float pixels must be in \[0, 1\], got \[1.5, 1.5\]"),
        (np.full((2, 32, 32), -0.1), r"must be in \[0, 1\]"),
        (np.zeros((2, 32, 32), np.int64), "got dtype int64"),
        ("photo.png", "single path 'photo.png'"),
        (Image.new("L", (32, 32)), "single PIL image"),
        (7, "got int"),
    ],
)
def test_anything_but_a_sequence_of_images_is_rejected_with_the_reason(X, reason):
    with pytest.raises(InvalidImageError, match=reason):
        check_images(X)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((8, 40), np.uint8), r"X\[0\] is 8 x 40 pixels .* smaller than 16, the network stride"),
        (np.zeros((32, 32, 2), np.uint8), r"X\[0\]: an image must be an array .* shape \(32, 32, 2\)"),
        (np.zeros(32, np.uint8), r"shape \(32,\)"),
        (np.full((32, 32), np.nan), r"X\[0\] contains NaN"),
        (np.full((32, 32), 255.0), r"X\[0\]: float pixels must be in \[0, 1\]"),
        (Image.fromarray(np.full((32, 32), 70000, np.int32)), r"X\[0\]: 32-bit integer image"),
        (Image.fromarray(np.full((32, 32), 3.0, np.float32)), r"X\[0\]: float pixels must be"),
        (object(), r"X\[0\]: an image must be"),
    ],
)
def test_errors_name_an_unusable_image_by_its_index(image, reason):
    with pytest.raises(InvalidImageError, match=reason):
        view([image])


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (1, 2, 0)])
def test_bytes_and_floats_in_one_batch_are_scaled_alike(pixels, order):
    X = [pixels, pixels / 255, pixels.astype(np.uint16) * 257]
    images = sequence([X[i] for i in order])
    batch = stack_views([images.load(i)[0] for i in range(3)])
    torch.testing.assert_close(batch, (torch.from_numpy(pixels).movedim(-1, 0) / 255).float().expand(3, 3, 32, 32))
