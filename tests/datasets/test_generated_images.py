"""Generated inspection images are reproducible and consistent, and their masks are exact."""

import random
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skpbas.datasets import DEFECT_TYPES, INSPECTION_KINDS, make_inspection_images
from skpbas.datasets.generated import inspection
from skpbas.datasets.generated.defects import draw_damage
from skpbas.datasets.generated.light import Lighting, Surface, draw_lamp, shade
from skpbas.datasets.generated.noise import FINEST, fractal_noise, plane
from skpbas.datasets.generated.parts import HexNut, Placement, hex_nut, screw
from skpbas.datasets.generated.prints import board
from skpbas.datasets.generated.products import PRODUCTS
from skpbas.datasets.generated.ranges import Color, narrow
from skpbas.datasets.generated.textures import brushed_metal, weave, wood

SMALL = 64


def shot_of(kind, size=96, seed=0):
    line = PRODUCTS[kind](np.random.default_rng(seed))
    return inspection.Shot(line, (size, size), np.random.default_rng([seed, 1]))


def test_a_data_set_has_the_documented_shapes_and_order():
    data = make_inspection_images(2, 7, kind="fabric", size=(48, 80), random_state=0)
    assert data.images.shape == (9, 48, 80, 3)
    assert data.images.dtype == np.uint8
    assert data.masks.shape == (9, 48, 80)
    assert data.masks.dtype == bool
    assert data.labels.tolist() == [1, 1, -1, -1, -1, -1, -1, -1, -1]
    assert data.defect_types == ["good", "good", *DEFECT_TYPES, *DEFECT_TYPES[:2]]
    assert data.masks.any(axis=(1, 2)).tolist() == (data.labels == -1).tolist()
    assert data.kind == "fabric"


@pytest.mark.parametrize("kind", INSPECTION_KINDS)
def test_the_same_seed_gives_the_same_pictures_and_another_gives_others(kind):
    first, again, other = (make_inspection_images(2, 2, kind=kind, size=SMALL, random_state=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(first.images, again.images)
    np.testing.assert_array_equal(first.masks, again.masks)
    assert np.abs(first.images[0].astype(int) - other.images[0]).mean() > 3


@pytest.mark.parametrize("kind", INSPECTION_KINDS)
def test_an_image_does_not_depend_on_how_many_there_are(kind):
    few = make_inspection_images(1, 2, kind=kind, size=SMALL, random_state=5)
    many = make_inspection_images(3, 4, kind=kind, size=SMALL, random_state=5)
    np.testing.assert_array_equal(few.images, many.images[[0, 3, 4]])
    np.testing.assert_array_equal(few.masks, many.masks[[0, 3, 4]])


@pytest.mark.parametrize("kind", INSPECTION_KINDS)
def test_normal_images_are_alike_but_not_the_same(kind):
    images = make_inspection_images(6, 0, kind=kind, size=SMALL, random_state=1).images.astype(float)
    means = images.mean(axis=(1, 2, 3))
    assert means.std() < 8
    assert all(np.abs(images[i] - images[i + 1]).mean() > 1 for i in range(5))


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState])
def test_generators_and_random_states_are_drawn_from(make):
    stream, twin = make(8), make(8)
    first = make_inspection_images(1, 0, size=SMALL, random_state=stream).images
    second = make_inspection_images(1, 0, size=SMALL, random_state=stream).images
    assert (first != second).any()
    np.testing.assert_array_equal(first, make_inspection_images(1, 0, size=SMALL, random_state=twin).images)


def test_no_seed_gives_new_pictures_and_leaves_the_global_random_states_alone():
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    first, second = (make_inspection_images(1, 1, size=SMALL).images for _ in range(2))
    assert (first != second).any()
    assert before == (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002


def test_the_data_sets_are_imported_without_torch():
    code = "import sys, skpbas.datasets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("kind", INSPECTION_KINDS)
@pytest.mark.parametrize("defect", DEFECT_TYPES)
def test_every_defect_on_every_product_is_marked_exactly(kind, defect):
    for seed in range(2):
        shot = shot_of(kind, seed=seed)
        clean = shot.picture()
        picture, mask = inspection.add_defect(shot, np.random.default_rng(seed), defect)
        changed = np.abs(picture.astype(int) - clean).max(axis=2)
        assert 2e-4 < mask.mean() < 0.3
        np.testing.assert_array_equal(picture[~mask], clean[~mask])
        assert changed[mask].mean() > 4
        np.testing.assert_array_equal(shot.picture(), clean)


@pytest.mark.parametrize("kind", ["hex_nut", "screw"])
@pytest.mark.parametrize("defect", DEFECT_TYPES)
def test_defects_lie_on_the_part(kind, defect):
    shot = shot_of(kind)
    _, mask = inspection.add_defect(shot, np.random.default_rng(2), defect)
    assert (shot.scene.coverage[mask] > 0.02).mean() > 0.95


def test_a_data_set_and_its_undamaged_twin_differ_only_within_the_mask():
    data = make_inspection_images(0, 1, kind="wood", size=SMALL, random_state=0)
    entropy = [0, INSPECTION_KINDS.index("wood")]
    line = PRODUCTS["wood"](inspection._stream(entropy, inspection._PRODUCT))
    rng = inspection._stream(entropy, inspection._ANOMALOUS, 0)
    twin = inspection.Shot(line, (SMALL, SMALL), rng).picture()
    differs = (data.images[0] != twin).any(axis=2)
    assert differs.any()
    assert not (differs & ~data.masks[0]).any()


def test_the_defects_asked_for_come_in_turn():
    data = make_inspection_images(0, 3, defects=("dent", "stain"), size=SMALL, random_state=0)
    assert data.defect_types == ["dent", "stain", "dent"]


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(32, 90),
    width=st.integers(32, 90),
    seed=st.integers(0, 2**63),
    kind=st.sampled_from(INSPECTION_KINDS),
)
def test_any_size_and_seed_gives_pictures_with_visible_marked_defects(height, width, seed, kind):
    data = make_inspection_images(1, 5, kind=kind, size=(height, width), random_state=seed)
    areas = data.masks.mean(axis=(1, 2))
    assert areas[0] == 0
    assert (areas[1:] > 2e-4).all()
    assert (areas[1:] < 0.3).all()
    assert data.images.std(axis=(1, 2)).min() > 1


def test_zero_images_are_an_empty_data_set():
    data = make_inspection_images(0, 0, size=32)
    assert data.images.shape == (0, 32, 32, 3)
    assert len(data.labels) == len(data.masks) == len(data.defect_types) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"n_normal": -1}, ValueError, "n_normal must be 0 or more, got -1"),
        ({"n_anomalous": 2.5}, TypeError, "n_anomalous must be a whole number, got 2.5"),
        ({"n_normal": True}, TypeError, "n_normal must be a whole number, got True"),
        ({"kind": "cheese"}, ValueError, "kind must be one of 'fabric', .*'printed_board', got 'cheese'"),
        ({"size": 31}, ValueError, "size must be 32 or more, got 31"),
        (
            {"size": (64, 64, 3)},
            ValueError,
            r"size must be one number, or \(height, width\), got \(64, 64, 3\)",
        ),
        ({"size": "big"}, TypeError, "size must be a whole number, got 'big'"),
        ({"defects": "dent"}, TypeError, r"sequence of names such as \('dent',\)"),
        ({"defects": ("dent", "hole")}, ValueError, "defects must be among 'scratch', .*got 'hole'"),
        ({"defects": ()}, ValueError, "defects must name at least one of 'scratch'"),
        ({"random_state": -3}, ValueError, "random_state must be 0 or more, got -3"),
        ({"random_state": "seed"}, TypeError, "random_state must be an int, .*got str"),
    ],
)
def test_errors_name_the_invalid_argument_its_value_and_what_is_allowed(arguments, error, message):
    with pytest.raises(error, match=message):
        make_inspection_images(**arguments)


@pytest.mark.parametrize("draw", [weave, brushed_metal, wood, board], ids=lambda draw: draw.__name__)
@pytest.mark.parametrize("shape", [(48, 48), (40, 72), (72, 40)])
def test_every_material_fills_a_picture_of_any_shape(draw, shape):
    surface = draw(np.random.default_rng(0), shape)
    assert surface.albedo.shape == (*shape, 3)
    assert surface.height.shape == shape
    assert surface.albedo.dtype == surface.height.dtype == np.float32
    assert np.isfinite(surface.albedo).all()
    assert np.isfinite(surface.height).all()
    assert surface.albedo.std(axis=(0, 1)).max() > 1e-3


@pytest.mark.parametrize("draw", [hex_nut, screw], ids=lambda draw: draw.__name__)
def test_every_part_lies_inside_the_picture_on_some_background(draw):
    for seed in range(6):
        part = draw(np.random.default_rng(seed), (64, 64), Placement())
        assert 0.02 < part.coverage.mean() < 0.8
        assert part.coverage.min() == 0
        assert part.coverage.max() == 1
        assert np.isfinite(part.surface.height).all()


def test_a_narrowed_look_stays_within_the_wide_one_and_makes_its_choices():
    wide = HexNut(sides=(4, 6, 8))
    product = narrow(np.random.default_rng(0), wide, 0.05)
    assert len(product.sides) == 1
    low, high = product.apothem
    assert wide.apothem[0] <= low < high <= wide.apothem[1]
    assert high - low <= 0.1001 * (wide.apothem[1] - wide.apothem[0])
    assert isinstance(product.finish.color, Color)
    assert product.finish.color.value != wide.finish.color.value


def test_stretched_noise_varies_less_along_its_direction():
    field = fractal_noise(np.random.default_rng(0), (128, 128), 1.5, stretch=20)
    along, across = (np.abs(np.diff(field, axis=axis)).mean() for axis in (1, 0))
    assert along < 0.5 * across


@pytest.mark.parametrize("shape", [(256, 256), (200, 256), (256, 640)])
def test_noise_has_every_structure_that_256_pixels_show(shape):
    noise, unlimited = (fractal_noise(np.random.default_rng(0), shape, 0.3, finest=f) for f in (FINEST, 0.0))
    np.testing.assert_array_equal(noise, unlimited)


@pytest.mark.parametrize("shape", [(1024, 1024), (768, 1280)])
def test_noise_of_a_large_image_has_no_finer_structures_than_that_of_a_small_one(shape):
    noise = fractal_noise(np.random.default_rng(0), shape, 0.3, stretch=25, angle=0.4)
    fy, fx = (np.fft.fftfreq(n, 1 / min(shape)) for n in shape)
    power = np.square(np.abs(np.fft.fft2(noise)))
    beyond = power[np.hypot(fy[:, None], fx[None, :]) > 2 / FINEST].sum() / power.sum()
    assert beyond < 1e-3  # a fifth or more without a limit


def test_a_slope_that_faces_the_lamp_is_brighter():
    lamp = draw_lamp(np.random.default_rng(0), Lighting(azimuth=(0.0, 0.0), tint=Color(value=(1.0, 1.0))))
    x, _ = plane((32, 32))
    toward, away = (
        shade(Surface(np.full((32, 32, 3), 0.5, np.float32), np.tile(sign * 0.2 * x, (32, 1))), lamp)
        for sign in (-1, 1)
    )
    assert toward.mean() > 1.1 * away.mean()


def test_damage_is_zero_off_the_part():
    scene = shot_of("screw").scene
    for defect in DEFECT_TYPES:
        damage = draw_damage(np.random.default_rng(0), scene, defect)
        off = scene.coverage == 0
        assert not damage.opacity[off].any()
        assert not damage.relief[off].any()
        assert not damage.cut[off].any()
