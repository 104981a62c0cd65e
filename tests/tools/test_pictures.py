"""The pictures that the embedded backbone is trained on show every material and part, and depend on seeds alone."""

import doctest

import numpy as np
import pytest
from pictures import variety
from pictures.more_noise import worley_noise
from pictures.more_parts import washer
from pictures.training_pictures import training_picture

from skpbas.datasets.generated.parts import Placement


@pytest.mark.parametrize("draw", variety.SURFACES, ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("shape", [(48, 48), (40, 72), (72, 40)])
def test_every_material_in_training_fills_a_picture_of_any_shape(draw, shape):
    surface = draw(np.random.default_rng(0), shape)
    assert surface.albedo.shape == (*shape, 3)
    assert surface.height.shape == shape
    assert surface.albedo.dtype == surface.height.dtype == np.float32
    assert np.isfinite(surface.albedo).all()
    assert np.isfinite(surface.height).all()
    assert surface.albedo.std(axis=(0, 1)).max() > 1e-3


@pytest.mark.parametrize("draw", variety.PARTS, ids=lambda draw: draw.__name__)
def test_every_part_in_training_lies_inside_the_picture_on_some_background(draw):
    for seed in range(6):
        part = draw(np.random.default_rng(seed), (64, 64), Placement())
        assert 0.02 < part.coverage.mean() < 0.8
        assert part.coverage.min() == 0
        assert part.coverage.max() == 1
        assert np.isfinite(part.surface.height).all()


def test_random_images_are_reproducible_and_differ():
    first, again = (
        [variety.random_image(rng, (48, 64)) for _ in range(8)]
        for rng in (np.random.default_rng(0), np.random.default_rng(0))
    )
    np.testing.assert_array_equal(first, again)
    assert len({image.tobytes() for image in first}) == 8
    assert first[0].shape == (48, 64, 3)


def test_the_example_in_the_docstring_of_random_image_runs():
    results = doctest.testmod(variety)
    assert results.attempted > 0
    assert results.failed == 0


def test_worley_distances_are_those_to_the_nearest_points():
    nearest, second, tone = worley_noise(np.random.default_rng(0), (64, 64), 6)
    assert (nearest <= second).all()
    assert nearest.min() < 0.15
    assert nearest.max() < 1.5
    assert 25 < len(np.unique(tone)) < 90


def test_a_washer_shows_the_background_through_its_hole():
    part = washer(np.random.default_rng(0), (65, 65), Placement(shift=(0, 0)))
    assert part.coverage[32, 32] == 0
    assert part.coverage[32].max() == 1


def test_training_pictures_depend_on_seed_and_index_alone():
    pictures = [training_picture(seed, index, 48) for seed, index in ((0, 0), (0, 1), (1, 0), (0, 0))]
    assert {p.shape for p in pictures} == {(48, 48, 3)}
    assert np.array_equal(pictures[0], pictures[3])
    assert not np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("index", range(60))
def test_every_training_picture_shows_something(index):
    picture = training_picture(3, index, 48)
    assert picture.dtype == np.uint8
    assert picture.shape == (48, 48, 3)
    assert picture.mean(axis=2).std() > 1
    assert len(np.unique(picture)) > 8


def test_training_pictures_are_of_many_kinds():
    pictures = [training_picture(3, index, 48) for index in range(60)]
    spread = np.array([picture.std() for picture in pictures])
    colorfulness = np.array([picture.astype(float).std(axis=2).mean() for picture in pictures])
    assert spread.max() > 4 * spread.min()  # faint ones and strong ones
    assert (colorfulness < 1).any()  # gray ones
    assert (colorfulness > 20).any()  # colored ones
    assert len({picture.tobytes() for picture in pictures}) == 60
    grays = np.stack([picture.mean(axis=2) for picture in pictures])
    coarse = grays.reshape(60, 12, 4, 12, 4).mean(axis=(2, 4)).std(axis=(1, 2))
    # the means of blocks of 16 independent pixels would have a quarter of the pixels' standard deviation
    structured = coarse > 0.5 * grays.std(axis=(1, 2))
    assert structured.mean() > 0.75  # shapes and patterns
    assert not structured.all()  # and grain
