"""Which images of folders are good, and which masks are theirs: the same for evaluate and report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_helpers import save

from skpbas._cli import report
from skpbas._cli.console import UsageError
from skpbas._cli.labeled import defective_images, good_images, in_layout


def empty(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def kinds(root: Path) -> dict[str, str]:
    return {image.path.relative_to(root).as_posix(): image.kind for image in in_layout(root)}


def test_the_kind_of_an_image_is_the_folder_below_the_test_images_at_any_depth(tmp_path):
    empty(tmp_path, "test/good/a/1.png", "test/crack/a/b/1.png", "test/crack/2.png")
    assert kinds(tmp_path) == {
        "test/good/a/1.png": "good",
        "test/crack/2.png": "crack",
        "test/crack/a/b/1.png": "crack",
    }
    images, labels, masks = report.images_in(tmp_path)
    assert dict(zip((path.relative_to(tmp_path).as_posix() for path in images), labels, strict=True)) == {
        "test/good/a/1.png": 1,
        "test/crack/2.png": -1,
        "test/crack/a/b/1.png": -1,
    }
    assert masks is None


def test_hidden_folders_are_no_kind_of_defect(tmp_path):
    empty(tmp_path, "test/good/1.png", "test/.ipynb_checkpoints/1.png", "test/crack/1.png")
    assert set(kinds(tmp_path).values()) == {"good", "crack"}


def test_an_image_beside_the_folder_of_good_ones_is_an_error_that_names_it(tmp_path):
    empty(tmp_path, "test/good/1.png", "test/crack/1.png", "test/2.png")
    with pytest.raises(UsageError, match=r"test.2\.png is beside the folder 'good'"):
        in_layout(tmp_path)


def test_a_report_without_labels_has_all_images_below_its_folder(tmp_path):
    empty(tmp_path, "1.png", "a/b/2.png", "test/3.png")
    images, *unknown = report.images_in(tmp_path)
    assert [path.name for path in images] == ["1.png", "2.png", "3.png"]
    assert unknown == [None, None]


@pytest.mark.parametrize("ending", ["", "_mask"])
def test_masks_belong_to_the_image_in_the_same_subfolder(ending, tmp_path):
    empty(tmp_path, *(f"ev/{part}/000.png" for part in "ab"), *(f"masks/{part}/000{ending}.png" for part in "ab"))
    found = defective_images(tmp_path / "ev", "defective", tmp_path / "masks")
    assert [(image.path.parent.name, image.mask.parent.name) for image in found] == [("a", "a"), ("b", "b")]


def test_masks_of_a_kind_belong_to_the_image_in_the_same_subfolder(tmp_path):
    names = [f"{folder}/crack/{part}/0.png" for folder in ("test", "ground_truth") for part in "ab"]
    empty(tmp_path, "test/good/1.png", *names)
    masks = [image.mask.parent.name for image in in_layout(tmp_path) if image.kind == "crack"]
    assert masks == ["a", "b"]


def test_a_mask_elsewhere_belongs_to_the_only_image_of_its_name(tmp_path):
    empty(tmp_path, "ev/a/0.png", "ev/b/1.png", "masks/0_mask.png", "masks/deep/1.png")
    found = defective_images(tmp_path / "ev", "defective", tmp_path / "masks")
    assert [image.mask.name for image in found] == ["0_mask.png", "1.png"]


@pytest.mark.parametrize(
    "names",
    [
        ("ev/a/0.png", "ev/b/0.png", "masks/0.png"),
        ("ev/0.png", "masks/a/0.png", "masks/b/0.png"),
        ("ev/0.png", "masks/0.png", "masks/0.bmp"),
        ("ev/0.png", "ev/0.bmp", "masks/0_mask.png"),
    ],
)
def test_a_mask_that_could_belong_to_another_image_is_an_error_that_names_both(names, tmp_path):
    empty(tmp_path, *names)
    with pytest.raises(UsageError) as error:
        defective_images(tmp_path / "ev", "defective", tmp_path / "masks")
    assert all(str(tmp_path / name) in str(error.value) for name in names)


def test_masks_that_match_no_image_are_counted(tmp_path, capsys):
    empty(tmp_path, "ev/0.png", "masks/0.png", "masks/1.png", "masks/2.png")
    defective_images(tmp_path / "ev", "defective", tmp_path / "masks")
    assert capsys.readouterr().err == f"2 masks of {tmp_path / 'masks'} match no image\n"


@pytest.mark.parametrize("name", ["bad", "NG", "defect", "defective", "anomaly"])
def test_images_to_learn_are_not_those_of_a_folder_of_defective_ones(name, tmp_path):
    empty(tmp_path, "parts/1.png", f"parts/monday/{name}/2.png")
    with pytest.raises(UsageError, match=f"has a folder .monday.*{name}.*: give the folder of its good images"):
        good_images(tmp_path / "parts")
    empty(tmp_path, f"{name}/1.png")
    assert len(good_images(tmp_path / name)) == 1  # whoever names it means it


def test_the_masks_of_a_report_are_found_as_those_of_an_evaluation(tmp_path):
    empty(tmp_path, "test/good/1.png", "test/crack/a/1.png", "test/stain/1.png")
    mask = save(np.zeros((4, 4), np.uint8), tmp_path / "ground_truth" / "crack" / "a" / "1_mask.png")
    images, _, masks = report.images_in(tmp_path)
    assert masks == [mask if path.parts[-3:-1] == ("crack", "a") else None for path in images]
