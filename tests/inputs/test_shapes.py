"""The shape of the network's input follows the images, at the cost that ``image_size`` says."""

import warnings
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers import small_detector, textured_images
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from skpbas._inputs.shapes import input_shape, median_aspect, peek_shapes, shape_of_area
from skpbas.errors import InvalidImageError
from skpbas.scorers import AnomalyScorer

SIDES = st.integers(16, 1024)


def long_images(n, height=160, width=64, seed=0):
    """Images that are taller than wide."""
    return textured_images(n, side=max(height, width), seed=seed)[:, :height, :width]


def embedded(**params):
    quick = {"image_size": 64, "max_epochs": 2, "precision": "float32", **params}
    return small_detector(**quick).set_params(backbone="embedded")


@given(side=SIDES, aspect=st.floats(0.05, 20))
def test_a_shape_has_the_area_of_the_square_and_the_aspect_up_to_16_pixels(side, aspect):
    height, width = shape_of_area(side, aspect)
    within = min(max(aspect, 0.25), 4.0)
    exact = side * within**0.5, side / within**0.5
    if height == width:
        assert height == side
        assert abs(exact[0] - exact[1]) <= 16  # no two multiples of 16 were nearer
    else:
        assert height % 16 == width % 16 == 0
        for actual, wanted in zip((height, width), exact, strict=True):
            assert abs(actual - max(wanted, 16)) <= 8 + 1e-9
    assert shape_of_area(side, 1 / aspect) == (width, height)


@pytest.mark.parametrize(
    ("side", "shape", "expected"),
    [
        (256, (1000, 1000), (256, 256)),
        (256, (1000, 985), (256, 256)),
        (100, (500, 500), (100, 100)),
        (256, (1250, 500), (400, 160)),
        (256, (480, 640), (224, 288)),
        (128, (480, 640), (112, 144)),
        (256, (100, 4000), (128, 512)),
    ],
)
def test_the_shape_of_common_images(side, shape, expected):
    shapes = np.array([shape])
    assert input_shape(side, "aspect", shapes) == expected
    assert input_shape(np.int64(side), "aspect", shapes) == expected
    for resize in ("stretch", "crop"):
        assert input_shape(side, resize, shapes) == (side, side)
    assert input_shape((96, 64), "aspect", shapes) == (96, 64)


def test_the_median_counts_not_single_images():
    shapes = np.array([[100, 50]] * 5 + [[50, 1000]] * 4)
    assert median_aspect(shapes) == pytest.approx(2)
    assert median_aspect(shapes[:, ::-1]) == pytest.approx(1 / 2)


def test_long_images_are_seen_in_their_own_aspect_ratio(tmp_path):
    images = long_images(8)
    detector = embedded().fit(images)
    assert detector.map_shape_ == (96, 48) == detector.anomaly_map(images[:2]).shape[1:]
    assert detector.anomaly_map(images[:2], size="input").shape[1:] == images.shape[1:3]
    same = embedded(image_size=(96, 48), resize="stretch").fit(images)
    np.testing.assert_array_equal(same.score_samples(images), detector.score_samples(images))

    masks = np.zeros((4, 160, 64), bool)
    masks[2:, 100:140, 20:40] = True
    new = long_images(4, seed=1).copy()
    new[masks] = [255, 0, 0]
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, image in zip(paths, new, strict=True):
        Image.fromarray(image).save(path)
    metrics = AnomalyScorer()(detector, paths, [None, None, *masks[2:]])
    assert metrics["image_auroc"] == 1.0
    assert metrics["pixel_auroc"] > 0.9


def test_square_images_are_read_as_with_stretch(good_images):
    aspect, stretch = (embedded(resize=resize).fit(good_images) for resize in ("aspect", "stretch"))
    np.testing.assert_array_equal(aspect.score_samples(good_images), stretch.score_samples(good_images))


class Lazy(Sequence):
    """Loads its images on access, and counts."""

    def __init__(self, images):
        self.images, self.loaded = images, Counter()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.loaded[index] += 1
        return self.images[index]


def test_a_sequence_that_loads_on_access_loads_each_image_once():
    lazy = Lazy(long_images(12))
    detector = embedded().fit(lazy)
    assert lazy.loaded == dict.fromkeys(range(12), 1)
    assert detector.map_shape_ == (96, 48)


def test_only_normal_images_shape_the_input():
    images = [*long_images(4), *textured_images(6)]
    assert embedded().fit(images, [1] * 4 + [-1] * 6).map_shape_ == (96, 48)


def test_an_unreadable_image_is_named_by_the_error_that_names_all(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path in paths:
        path.write_bytes(b"no image")
    with pytest.raises(InvalidImageError, match=r"3 of 3 images are unusable(.|\n)*0\.png(.|\n)*2\.png"):
        embedded().fit(paths)
    ragged = [long_images(1)[0], long_images(1)[0], [[1, 2], [3]]]
    with pytest.raises(InvalidImageError, match=r"X\[2\]"):
        embedded().fit(ragged)


def test_shapes_are_those_after_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(long_images(1)[0]).save(tmp_path / "turned.jpg", exif=exif)
    shapes, _ = peek_shapes([tmp_path / "turned.jpg"], np.arange(1))
    assert shapes.tolist() == [[64, 160]]


def test_images_of_another_aspect_ratio_are_named_in_one_warning(good_images):
    detector = embedded().fit(good_images)
    with pytest.warns(
        UserWarning, match=r"^2 of 3 images are distorted.*factor 1\.5 from 1 : 1 .*X\[1\], 160 x 64"
    ) as caught:
        detector.score_samples([good_images[0], *long_images(2)])
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.score_samples([good_images[0], long_images(1, height=90)[0]])  # 1.4 : 1
        embedded(resize="stretch").fit(good_images).score_samples(list(long_images(2)))


def test_a_training_set_of_mixed_shapes_is_warned_of(good_images):
    with pytest.warns(UserWarning, match=r"3 of 15 images are distorted"):
        embedded().fit([*good_images, *long_images(3)])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (
            (1030, 1030),
            r"1030 x 1030 pixels .* by a factor 4\.0 to 256 x 256: a detail of 4 pixels .* larger image_size .* tile",
        ),
        (
            (2048, 2048),
            r"factor 8\.0 to 256 x 256: a detail of 8 pixels becomes a single one.*512 takes 4\.0 times as long",
        ),
    ],
)
def test_the_default_size_warns_where_it_keeps_less_than_a_quarter_per_side(shape, message):
    images = [np.full((*shape, 3), 128, np.uint8)] * 2
    with pytest.warns(UserWarning, match=message):
        embedded(image_size=256, max_epochs=1, n_exemplars=16).fit(images)
    for size in (64, (256, 256)):  # chosen by the user
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", ".*show little of how good ones vary")
            embedded(image_size=size, max_epochs=1, n_exemplars=16).fit(images)


class OneBuffer:
    """A sequence that loads every image into the same array, as a camera's driver may."""

    def __init__(self, images):
        self.images, self.buffer = images, np.empty_like(images[0])

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.buffer[...] = self.images[index]
        return self.buffer


def test_a_sequence_may_load_all_images_into_one_buffer(good_images):
    expected, detector = (embedded().fit(X) for X in (list(good_images), OneBuffer(good_images)))
    assert detector.offset_ == expected.offset_
    np.testing.assert_array_equal(detector.score_samples(good_images), expected.score_samples(good_images))


def test_a_set_of_images_beyond_four_to_one_is_warned_of_as_distorted():
    strips = [np.full((20, 200, 3), 128, np.uint8)] * 3
    with pytest.warns(UserWarning, match=r"3 of 3 images are distorted.* from 0\.25 : 1 .*at most 4 : 1"):
        assert embedded(n_exemplars=16, max_epochs=1).fit(strips).map_shape_ == (32, 128)


def test_height_and_width_may_be_an_array(good_images):
    assert embedded(image_size=np.array([64, 64]), max_epochs=1).fit(good_images).map_shape_ == (64, 64)


class Sevens(torch.nn.Module):
    """A network that takes multiples of 14 pixels only, as a vision transformer does."""

    def __init__(self):
        super().__init__()
        self.patches = torch.nn.Conv2d(3, 8, 14, 14)

    def forward(self, images):
        assert images.shape[-1] % 14 == 0, "input is no multiple of 14"
        return self.patches(images)


def test_a_backbone_that_does_not_take_a_computed_shape_is_told_apart_from_other_errors():
    detector = embedded(layers=["patches"], image_size=56, max_epochs=1).set_params(backbone=Sevens())
    with pytest.raises(ValueError, match=r"AssertionError on an input of .* x 32 pixels: input is no multiple of 14"):
        detector.fit(long_images(3))
    assert detector.set_params(image_size=(84, 42)).fit(long_images(3)).map_shape_ == (84, 42)
