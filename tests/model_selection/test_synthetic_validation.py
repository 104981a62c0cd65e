"""Synthetic defects for validation: exact masks, visible changes, unchanged formats, and no partial files."""

import errno

import numpy as np
import pytest
from helpers import textured_images
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from skpbas.errors import ImageNotFoundError, InvalidImageError, StorageError
from skpbas.model_selection import GroupNormalKFold, synthetic_validation


def gray(n=4, shape=(48, 64), dtype=np.uint8, seed=0):
    values = np.random.default_rng(seed).random((n, *shape)) * 0.2 + 0.4
    return values.astype(dtype) if np.dtype(dtype).kind == "f" else (values * np.iinfo(dtype).max).astype(dtype)


def check_defect(clean, defective, mask):
    """Outside the mask nothing differs; inside, most pixels do by a visible fraction of the contrast of the image."""
    assert defective.shape == clean.shape
    assert defective.dtype == clean.dtype
    assert mask.shape == clean.shape[:2]
    assert mask.dtype == bool
    np.testing.assert_array_equal(defective[~mask], clean[~mask])
    difference = np.abs(defective.astype(float) - clean.astype(float)).reshape(*mask.shape, -1).max(axis=2)
    contrast = np.ptp(np.percentile(clean, (1, 99)))
    assert (difference[mask] > 0.03 * contrast).mean() > 0.5
    assert difference[mask].mean() > 0.08 * contrast
    assert mask.sum() >= 4


IMAGES = {
    "color": textured_images(4),
    "gray": gray(),
    "gray with an axis": gray()[..., None],
    "16-bit": gray(dtype=np.uint16),
    "12 bits of 16": gray(dtype=np.uint16) // 16,
    "float32": gray(dtype=np.float32),
    "float64": gray(dtype=np.float64),
    "opaque": np.concatenate([textured_images(4), np.full((4, 64, 64, 1), 255, np.uint8)], axis=3),
    "plain": np.full((4, 48, 64), 200, np.uint8),
    "black": np.zeros((4, 48, 64), np.uint16),
    "white": np.ones((4, 48, 64, 3), np.float32),
    "checkered": np.uint8(np.indices((48, 64)).sum(axis=0) // 3 % 2 * 255)[None].repeat(4, axis=0),
}


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("kind", ["cut_paste", "scratch"])
def test_pixels_outside_the_mask_are_unchanged_and_most_inside_differ(name, kind):
    images = IMAGES[name]
    X, y = synthetic_validation(images, n_anomalous=12, kinds=(kind,), random_state=0)
    assert len(X) == len(y) == 16
    assert y[:4] == [None] * 4
    for i in range(12):
        check_defect(images[i % 4], X[4 + i], y[4 + i])
    if name == "opaque":
        assert all((image[..., 3] == 255).all() for image in X)


@settings(max_examples=25, deadline=None)
@given(st.integers(8, 90), st.integers(8, 90), st.integers(0, 2**31 - 1), st.sampled_from(["cut_paste", "scratch"]))
def test_images_of_any_size_get_a_defect(height, width, seed, kind):
    image = gray(1, (height, width), seed=seed)
    X, y = synthetic_validation(image, kinds=(kind,), random_state=seed)
    check_defect(image[0], X[1], y[1])


def test_the_original_images_come_first_and_are_not_changed():
    images = textured_images(3)
    before = images.copy()
    X, _ = synthetic_validation(images, random_state=0)
    np.testing.assert_array_equal(images, before)
    assert all(np.shares_memory(x, image) for x, image in zip(X[:3], images, strict=True))
    paths_or_images = [Image.fromarray(image) for image in images]
    assert synthetic_validation(paths_or_images, random_state=0)[0][:3] == paths_or_images


def test_a_seed_gives_the_same_defects_for_any_number_of_copies():
    images = textured_images(5)
    first, again = (synthetic_validation(images, random_state=3) for _ in range(2))
    for i in range(10):
        np.testing.assert_array_equal(first[0][i], again[0][i])
        np.testing.assert_array_equal(first[1][i], again[1][i])
    other = synthetic_validation(images, random_state=4)
    assert any((a != b).any() for a, b in zip(first[1][5:], other[1][5:], strict=True))
    more = synthetic_validation(images, n_anomalous=12, random_state=3)
    np.testing.assert_array_equal(np.stack(more[0][:10]), np.stack(first[0]))
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    unseeded = [synthetic_validation(images)[0] for _ in range(2)]
    assert any((a != b).any() for a, b in zip(*unseeded, strict=True))
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


@pytest.mark.parametrize("n_anomalous", [1, 3, 6, 7, 15])
def test_groups_are_the_source_images_which_are_used_in_turn(n_anomalous):
    images = textured_images(6)
    X, y, groups = synthetic_validation(images, n_anomalous=n_anomalous, random_state=0, return_groups=True)
    assert groups.tolist()[:6] == list(range(6))
    copies = np.bincount(groups[6:], minlength=6)
    assert copies.sum() == n_anomalous
    assert np.ptp(copies) <= 1
    for x, mask, group in zip(X[6:], y[6:], groups[6:], strict=True):
        check_defect(images[group], x, mask)


def test_no_training_image_is_the_source_of_a_defect_in_the_test_fold():
    X, y, groups = synthetic_validation(textured_images(9), n_anomalous=7, random_state=0, return_groups=True)
    for train, test in GroupNormalKFold(3).split(X, y, groups):
        assert set(groups[train]).isdisjoint(groups[test])
        assert all(y[i] is None for i in train)
        assert any(y[i] is not None for i in test)


def test_an_image_gets_defects_of_different_kinds():
    plain = np.full((2, 96, 96), 120, np.uint8)
    _, y = synthetic_validation(plain, n_anomalous=4, size=(0.3, 0.3), random_state=0)
    areas = np.array([mask.sum() for mask in y[2:]]).reshape(2, 2)
    scratch_like = areas < 0.25 * 29**2  # the thinnest rectangle covers 0.3 of its square
    assert scratch_like.sum() == 2
    assert (scratch_like.sum(axis=0) == 1).all()


@pytest.mark.parametrize("kind", ["cut_paste", "scratch"])
def test_defects_have_the_requested_size(kind):
    plain = np.full((20, 100, 140), 120, np.uint8)
    _, y = synthetic_validation(plain, kinds=(kind,), size=(0.2, 0.4), random_state=0)
    extents = []
    for mask in y[20:]:
        rows, columns = np.nonzero(mask)
        if min(rows.min(), columns.min()) > 0 and rows.max() < 99 and columns.max() < 139:
            extents.append(np.hypot(np.ptp(rows), np.ptp(columns)))
    assert len(extents) > 5
    assert min(extents) > 0.1 * 100
    assert max(extents) < 1.5 * 0.4 * 100


def test_files_of_mixed_sizes_and_modes_get_defects_in_memory_and_in_a_folder(tmp_path):
    sources = {
        "a.png": Image.fromarray(textured_images(1)[0]),
        "b.jpg": Image.fromarray(gray(1, (50, 40))[0]),
        "c.png": Image.fromarray(gray(1, (33, 70), np.uint16)[0]),
        "d.png": Image.fromarray(textured_images(1)[0]).quantize(8),
    }
    paths = [tmp_path / name for name in sources]
    for path, image in zip(paths, sources.values(), strict=True):
        image.save(path)
    shown = [
        np.asarray(Image.open(path).convert("RGB") if path.name == "d.png" else Image.open(path)) for path in paths
    ]
    in_memory = synthetic_validation(paths, random_state=0)
    in_folder = synthetic_validation(paths, folder=tmp_path / "new" / "copies", random_state=0)
    assert in_memory[0][:4] == in_folder[0][:4] == paths
    for i in range(4):
        written = in_folder[0][4 + i]
        assert written.parent == tmp_path / "new" / "copies"
        assert written.name.startswith(paths[i].stem)
        np.testing.assert_array_equal(np.asarray(Image.open(written)), in_memory[0][4 + i])
        np.testing.assert_array_equal(in_folder[1][4 + i], in_memory[1][4 + i])
        check_defect(shown[i].astype(in_memory[0][4 + i].dtype), in_memory[0][4 + i], in_memory[1][4 + i])
    before = {path: path.stat().st_size for path in (tmp_path / "new" / "copies").iterdir()}
    assert synthetic_validation(paths, folder=str(tmp_path / "new" / "copies"), random_state=0)[0] == in_folder[0]
    assert {path: path.stat().st_size for path in (tmp_path / "new" / "copies").iterdir()} == before


def test_a_full_disk_leaves_no_copies_and_keeps_existing_files(tmp_path, monkeypatch):
    images = textured_images(4)
    kept = synthetic_validation(images[:1], folder=tmp_path, random_state=0)[0][1]
    save, saved = Image.Image.save, []

    def save_until_full(self, file, **options):
        if len(saved) == 3:
            file.write(b"half a")
            raise OSError(errno.ENOSPC, "No space left on device")
        saved.append(file)
        save(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", save_until_full)
    with pytest.raises(StorageError, match=r"image3-.*\.png cannot be written: .*No space left"):
        synthetic_validation(images, folder=tmp_path, random_state=0)
    assert list(tmp_path.iterdir()) == [kept]


def test_the_error_names_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"folder=.*file.* cannot be created"):
        synthetic_validation(textured_images(2), folder=tmp_path / "file")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (gray(2, dtype=np.float32), r"X\[0\]: PNG does not support floats; with folder=None"),
        (gray(2, (40, 40, 3), np.uint16), r"X\[0\]: PNG does not support 16-bit color"),
    ],
)
def test_formats_that_png_does_not_support_are_rejected_with_advice(images, message, tmp_path):
    with pytest.raises(InvalidImageError, match=message):
        synthetic_validation(images, folder=tmp_path / "copies")
    assert list((tmp_path / "copies").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_anomalous": 0}, "n_anomalous=0: expected a positive integer"),
        ({"n_anomalous": 2.5}, r"n_anomalous=2\.5"),
        ({"kinds": "scratch"}, "kinds='scratch': expected a sequence"),
        ({"kinds": ("stain",)}, r"kinds=\('stain',\): .*'cut_paste', 'scratch'"),
        ({"kinds": ()}, "kinds="),
        ({"size": (0, 0.1)}, r"size=\(0, 0\.1\): expected the smallest and the largest extent"),
        ({"size": (0.2, 0.1)}, "size="),
        ({"size": (0.2, 1.1)}, "size="),
    ],
)
def test_invalid_parameters_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        synthetic_validation(textured_images(2), **arguments)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (["no/such.png"], ImageNotFoundError, r"X\[0\] \(no/such\.png\): no such file"),
        (np.zeros((2, 7, 30), np.uint8), InvalidImageError, r"X\[0\] is 7 x 30 pixels, too small for a defect"),
        (np.zeros((2, 30, 30), np.int64), InvalidImageError, r"X\[0\]: got dtype int64"),
        ([np.zeros((30, 30, 2), np.uint8)], InvalidImageError, r"X\[0\]: an image must be an array .*\(30, 30, 2\)"),
    ],
)
def test_errors_name_unusable_images(images, error, message):
    with pytest.raises(error, match=message):
        synthetic_validation(images)


def test_no_defect_is_drawn_in_colors_that_opacity_hides():
    images = np.concatenate([textured_images(4), np.full((4, 64, 64, 1), 255, np.uint8)], axis=3)
    images[:, :40, :, 3] = 0
    X, masks = synthetic_validation(list(images), n_anomalous=8, random_state=0)
    for image, mask in zip(X[4:], masks[4:], strict=True):
        assert image.shape == (64, 64, 3)  # blended with white, as a detector sees it
        clean = [np.where(i[..., 3:] == 0, 255, i[..., :3]) for i in images]
        assert any((image != c).any(axis=-1).sum() <= mask.sum() for c in clean)
        assert min((image != c).any(axis=-1)[mask].mean() for c in clean) > 0.2
