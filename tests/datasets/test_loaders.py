"""The loaders list the images and masks of a data set, and explain what is wrong with an invalid folder."""

from pathlib import Path

import numpy as np
import pytest

from skpbas.datasets import load_mpdd, load_mvtec, load_visa
from skpbas.errors import DatasetError

REAL = Path(__file__).parents[3] / "shared" / "data" / "mvtec"


def touch(root, *paths):
    for path in paths:
        file = Path(root, path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.fixture
def mvtec(tmp_path):
    """A tiny category, with the other files that real folders contain."""
    touch(
        tmp_path,
        *(f"cup/train/good/{name}" for name in ("10.png", "9.JPG", "2.Tiff", "Thumbs.db", ".2.png", "notes.txt")),
        *(f"cup/test/{name}" for name in ("good/0.png", "good/1.bmp", "crack/0.png", "crack/1.PNG", ".DS_Store")),
        "cup/test/bent/7.jpeg",
        *(f"cup/ground_truth/{name}" for name in ("crack/0_mask.png", "crack/1_mask.PNG", "bent/7.png")),
    )
    return tmp_path


@pytest.fixture
def visa(tmp_path):
    touch(tmp_path, *(f"candle/Normal/{i}.JPG" for i in (0, 1, 2, 10)), "candle/Anomaly/0.JPG", "candle/0.png")
    write_table(
        tmp_path,
        "candle,train,normal,candle/Normal/10.JPG,",
        "candle,train,normal,candle/Normal/2.JPG,",
        "candle,test,anomaly,candle/Anomaly/0.JPG,candle/0.png",
        "candle,test,normal,candle/Normal/1.JPG,",
        "fryum,train,normal,fryum/Normal/0.JPG,",
    )
    return tmp_path


def write_table(root, *rows, header="object,split,label,image,mask"):
    folder = Path(root, "split_csv")
    folder.mkdir(exist_ok=True)
    (folder / "1cls.csv").write_text("\n".join([header, *rows]) + "\n")


def names(data):
    return [path.name for path in data.images]


@pytest.mark.parametrize("load", [load_mvtec, load_mpdd])
def test_training_images_are_the_image_files_alone_in_natural_order(mvtec, load):
    data = load(mvtec, "cup", "train")
    assert names(data) == ["2.Tiff", "9.JPG", "10.png"]
    assert data.labels.tolist() == [1, 1, 1]
    assert data.labels.dtype == np.int64
    assert data.masks == [None, None, None]
    assert data.defect_types == ["good"] * 3
    assert (data.category, data.split) == ("cup", "train")


def test_test_images_come_with_labels_types_and_masks_found_by_stem(mvtec):
    data = load_mvtec(str(mvtec), "cup", "test")
    found = [
        (path.parent.name, path.name, int(label), mask and mask.name)
        for path, label, mask in zip(data.images, data.labels, data.masks, strict=True)
    ]
    assert found == [
        ("bent", "7.jpeg", -1, "7.png"),
        ("crack", "0.png", -1, "0_mask.png"),
        ("crack", "1.PNG", -1, "1_mask.PNG"),
        ("good", "0.png", 1, None),
        ("good", "1.bmp", 1, None),
    ]
    assert data.defect_types == ["bent", "crack", "crack", "good", "good"]
    assert all(path.is_file() for path in [*data.images, *filter(None, data.masks)])


def test_names_that_differ_only_in_leading_zeros_have_a_fixed_order(tmp_path):
    touch(tmp_path, *(f"cup/train/good/{name}.png" for name in ("1", "01", "001", "a1", "A1", "1b")))
    first, again = (names(load_mvtec(tmp_path, "cup", "train")) for _ in range(2))
    assert first == again == ["001.png", "01.png", "1.png", "1b.png", "A1.png", "a1.png"]


def test_a_missing_mask_is_an_error_that_names_image_and_mask(mvtec):
    (mvtec / "cup/ground_truth/crack/0_mask.png").unlink()
    with pytest.raises(DatasetError, match=r"crack.0\.png: looked for .*crack.0_mask\.png.*has '1_mask\.PNG'"):
        load_mvtec(mvtec, "cup", "test")


def test_a_missing_mask_folder_is_reported(tmp_path):
    touch(tmp_path, "cup/test/crack/0.png")
    with pytest.raises(DatasetError, match="there is no such folder"):
        load_mvtec(tmp_path, "cup", "test")


def test_an_unknown_category_lists_those_present(mvtec):
    touch(mvtec, "plate/train/good/0.png", "split_csv/readme.txt")
    with pytest.raises(DatasetError, match=r"no category 'pot'.*present are 'cup', 'plate'$"):
        load_mvtec(mvtec, "pot", "train")


@pytest.mark.parametrize("category", ["cup", ""])
def test_the_category_folder_as_root_is_recognized(mvtec, category):
    with pytest.raises(DatasetError, match=r"category's own folder.*and 'cup' as category"):
        load_mvtec(mvtec / "cup", category, "train")


def test_a_folder_without_categories_says_what_it_holds(tmp_path):
    touch(tmp_path, "holiday.jpg")
    with pytest.raises(DatasetError, match=r"it holds 'holiday\.jpg'; root must be the folder that holds"):
        load_mvtec(tmp_path, "cup", "train")


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(DatasetError, match=r"no folder at .*nowhere"):
        load_mvtec(tmp_path / "nowhere", "cup", "train")


def test_a_missing_split_folder_says_what_is_there_instead(tmp_path):
    touch(tmp_path, "cup/train/good/0.png")
    with pytest.raises(DatasetError, match=r"no folder 'test' in .*cup; it holds 'train'"):
        load_mvtec(tmp_path, "cup", "test")


def test_a_split_without_images_is_an_error(tmp_path):
    touch(tmp_path, "cup/train/good/readme.txt", "cup/test/0.png")
    with pytest.raises(DatasetError, match=r"no image files .*it holds 'readme\.txt'"):
        load_mvtec(tmp_path, "cup", "train")
    with pytest.raises(DatasetError, match=r"no folders of images, such as 'good'.*it holds '0\.png'"):
        load_mvtec(tmp_path, "cup", "test")


@pytest.mark.parametrize("load", [load_mvtec, load_visa, load_mpdd])
def test_an_unknown_split_names_the_allowed_ones(tmp_path, load):
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        load(tmp_path, "cup", "val")


def test_dataset_errors_are_file_not_found_errors(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_mvtec(tmp_path, "cup", "train")


def test_visa_lists_the_images_of_the_split_file(visa):
    train, test = (load_visa(visa, "candle", split) for split in ("train", "test"))
    assert names(train) == ["2.JPG", "10.JPG"]
    assert train.masks == [None, None]
    assert [p.parent.name for p in test.images] == ["Anomaly", "Normal"]
    assert test.labels.tolist() == [-1, 1]
    assert test.masks == [visa / "candle/0.png", None]
    assert test.defect_types == ["anomaly", "good"]


def test_visa_without_its_split_file_says_so(tmp_path):
    touch(tmp_path, "candle/Data/0.JPG")
    with pytest.raises(DatasetError, match=r"no split_csv/1cls\.csv in .*it holds 'candle'; give the folder"):
        load_visa(tmp_path, "candle", "train")


def test_visa_lists_the_objects_if_one_is_unknown(visa):
    with pytest.raises(DatasetError, match=r"no train images of category 'soap'.*lists 'candle', 'fryum'"):
        load_visa(visa, "soap", "train")


def test_visa_names_missing_columns(tmp_path):
    write_table(tmp_path, "candle,train,a.png", header="object,split,image")
    with pytest.raises(DatasetError, match=r"no column 'label', 'mask' in .*has 'object', 'split', 'image'"):
        load_visa(tmp_path, "candle", "train")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("candle,train,normal,candle/gone.JPG,", r"no image at .*gone\.JPG"),
        ("candle,train,odd,candle/Normal/0.JPG,", r"label must be 'normal' or 'anomaly', got 'odd'"),
        ("candle,train,anomaly,candle/Anomaly/0.JPG,", r"no mask for anomalous image .*looked for 'a path'"),
        ("candle,train,anomaly,candle/Anomaly/0.JPG,m.png", r"no mask .*Anomaly.0\.JPG: looked for 'm\.png'"),
    ],
)
def test_visa_errors_name_the_invalid_row(visa, row, message):
    write_table(visa, row)
    with pytest.raises(DatasetError, match=message):
        load_visa(visa, "candle", "train")


@pytest.mark.skipif(not REAL.is_dir(), reason="there are no real inspection images next to the project")
@pytest.mark.parametrize(("category", "train", "good", "bad"), [("bottle", 209, 20, 63), ("screw", 320, 41, 119)])
def test_real_categories_have_their_published_counts(category, train, good, bad):
    assert len(load_mvtec(REAL, category, "train").images) == train
    test = load_mvtec(REAL, category, "test")
    assert (np.sum(test.labels == 1), np.sum(test.labels == -1)) == (good, bad)
    assert [mask is None for mask in test.masks] == (test.labels == 1).tolist()
