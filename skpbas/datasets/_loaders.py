"""Loaders for the folder layouts of public data sets: MVTec AD, MPDD and VisA."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Literal

import numpy as np
from sklearn.utils import Bunch

from skpbas._inputs.formats import image_suffixes, looks_like_an_image, natural_key, natural_path_key
from skpbas.errors import DatasetError

Split = Literal["train", "test"]
_SPLITS = ("train", "test")
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")


def list_images(folder: str | PathLike[str]) -> list[Path]:
    """List the image files of a folder, without those of its subfolders.

    Parameters
    ----------
    folder : path

    Returns
    -------
    list of Path
        Files with a suffix of :data:`IMAGE_FORMATS`, in natural order ("2.png" before "10.png"). Hidden files, such as
        macOS's "._photo.png", and other files, such as "Thumbs.db", are skipped. No file is opened.

    Raises
    ------
    DatasetError
        There is no such folder, or no image file in it; or one is a link to a file that is not there.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skpbas.datasets import list_images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for name in ("10.png", "2.webp", "._2.webp", "notes.txt"):
    ...         Path(folder, name).touch()
    ...     [path.name for path in list_images(folder)]
    ['2.webp', '10.png']
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DatasetError(f"no folder at {folder}")
    images = _images(folder)
    if not images:
        raise DatasetError(_not_found(_image_files(), folder))
    return images


def load_mvtec(root: str | PathLike[str], category: str, split: Split = "train") -> Bunch:
    """List the images and masks of a category of MVTec AD, or of any data set in the same layout.

    The layout is ``<root>/<category>/train/good/*.png``, ``test/<good or defect>/*.png`` and
    ``ground_truth/<defect>/<name>_mask.png``. Images are files of the formats in
    :data:`IMAGE_FORMATS`; other files and hidden ones are ignored. No image is decoded.

    Parameters
    ----------
    root : path
        Folder that holds the categories.
    category : str
        Name of the category, such as "bottle".
    split : {"train", "test"}, default="train"
        Normal images for training, or normal and anomalous ones for testing.

    Returns
    -------
    Bunch
        With the attributes

        images : list of Path
            Sorted by folder, then by name in natural order ("2.png" before "10.png").
        labels : ndarray of shape (n,), int64
            +1 normal, -1 anomalous.
        masks : list of Path or None
            None for normal images.
        defect_types : list of str
            The name of each image's folder, which is "good" for normal images.
        category, split : str
            As given.

    Raises
    ------
    DatasetError
        If a folder, the images or a mask are not where the layout expects them.
    ValueError
        If `split` is neither "train" nor "test".

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skpbas.datasets import load_mvtec
    >>> with tempfile.TemporaryDirectory() as root:
    ...     folder = Path(root, "bottle", "train", "good")
    ...     folder.mkdir(parents=True)
    ...     for name in ("10.png", "2.png"):
    ...         (folder / name).touch()
    ...     data = load_mvtec(root, "bottle", "train")
    >>> [path.name for path in data.images], data.labels.tolist()
    (['2.png', '10.png'], [1, 1])
    """
    _check_split(split)
    folder = _category_folder(Path(root), category)
    types = _subfolders(_require_folder(folder / split))
    if not types:
        raise DatasetError(_not_found("folders of images, such as 'good'", folder / split))
    listing = _Listing()
    for directory in types:
        images = _images(directory)
        if directory.name == "good":
            listing.extend((image, None, "good") for image in images)
        else:
            masks = _mask_finder(folder / "ground_truth" / directory.name)
            listing.extend((image, masks(image), directory.name) for image in images)
    if not listing.images:
        raise DatasetError(_not_found(_image_files(), types[0]))
    return listing.bunch(category, split)


def load_mpdd(root: str | PathLike[str], category: str, split: Split = "train") -> Bunch:
    """List the images and masks of a category of MPDD, the data set of metal part defects.

    Parameters
    ----------
    root : path
        Folder that holds the categories, in the layout of MVTec AD.
    category : str
        Name of the category, such as "bracket_black".
    split : {"train", "test"}, default="train"
        Normal images for training, or normal and anomalous ones for testing.

    Returns
    -------
    Bunch
        Attributes as returned by `load_mvtec`.

    Raises
    ------
    DatasetError
        If a folder, the images or a mask are not where the layout expects them.
    ValueError
        If `split` is neither "train" nor "test".

    See Also
    --------
    load_mvtec : Describes the layout in full.

    Examples
    --------
    >>> from skpbas.datasets import load_mpdd
    >>> load_mpdd("no/such/folder", "tubes", "test")
    Traceback (most recent call last):
        ...
    skpbas.errors.DatasetError: no folder at no/such/folder; ...
    """
    return load_mvtec(root, category, split)


def load_visa(root: str | PathLike[str], category: str, split: Split = "train") -> Bunch:
    r"""List the images and masks of a category of VisA, according to its one-class split file.

    The layout is ``<root>/split_csv/1cls.csv`` with the columns object, split, label (normal or
    anomaly), image and mask; the last two are paths relative to `root`. No image is decoded.

    Parameters
    ----------
    root : path
        Folder that holds ``split_csv``.
    category : str
        Name of the object, such as "candle".
    split : {"train", "test"}, default="train"
        Normal images for training, or normal and anomalous ones for testing.

    Returns
    -------
    Bunch
        Attributes as returned by `load_mvtec`; `defect_types` are "good" and "anomaly".

    Raises
    ------
    DatasetError
        If the split file, a column, an image or a mask is missing, or a label is unknown.
    ValueError
        If `split` is neither "train" nor "test".

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from skpbas.datasets import load_visa
    >>> with tempfile.TemporaryDirectory() as root:
    ...     Path(root, "split_csv").mkdir()
    ...     Path(root, "0.JPG").touch()
    ...     table = "object,split,label,image,mask\ncandle,train,normal,0.JPG,\n"
    ...     _ = Path(root, "split_csv", "1cls.csv").write_text(table)
    ...     data = load_visa(root, "candle", "train")
    >>> [path.name for path in data.images], data.masks, data.defect_types
    (['0.JPG'], [None], ['good'])
    """
    _check_split(split)
    root = Path(root)
    table = _visa_table(root)
    rows = _visa_rows(table)
    chosen = [row for row in rows if row["object"] == category and row["split"] == split]
    if not chosen:
        present = sorted({row["object"] for row in rows if row["split"] == split}, key=natural_key)
        raise DatasetError(f"no {split} images of category {category!r} in {table}; it lists {_quoted(present)}")
    listing = _Listing()
    listing.extend(_visa_entry(root, table, row) for row in chosen)
    return listing.bunch(category, split)


def visa_objects(root: Path) -> set[str]:
    """Return the objects that VisA's one-class split file lists."""
    return {row["object"] for row in _visa_rows(_visa_table(root))}


def _visa_table(root: Path) -> Path:
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise DatasetError(
            f"{_not_found('split_csv/1cls.csv', root)}; "
            "give the folder that holds split_csv as root, or add the file (it comes with the VisA code)"
        )
    return table


def _visa_rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(newline="", encoding="utf-8-sig") as lines:
            reader = csv.DictReader(lines)
            missing = [name for name in _VISA_COLUMNS if name not in (reader.fieldnames or ())]
            if missing:
                raise DatasetError(
                    f"no column {_quoted(missing)} in {table}; it has {_quoted(reader.fieldnames or ())}"
                )
            rows = [{name: (row[name] or "").strip() for name in _VISA_COLUMNS} for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"{table} is no table in UTF-8 ({error}): use the one that comes with the VisA code"
        ) from error
    listed = set()
    for row in rows:
        if row["split"] not in _SPLITS:
            raise DatasetError(f"split must be 'train' or 'test', got {row['split']!r} for {row['image']} in {table}")
        if row["image"] in listed:
            raise DatasetError(f"{table} lists {row['image']} twice: an image is trained or tested on, and once")
        listed.add(row["image"])
    return rows


def _visa_entry(root: Path, table: Path, row: dict[str, str]) -> tuple[Path, Path | None, str]:
    image = root / row["image"]
    if row["label"] not in ("normal", "anomaly"):
        raise DatasetError(f"label must be 'normal' or 'anomaly', got {row['label']!r} for {row['image']} in {table}")
    if not image.is_file():
        raise DatasetError(f"no image at {image}, which {table} lists")
    if row["label"] == "normal":
        return image, None, "good"
    mask = root / row["mask"]
    if not row["mask"] or not mask.is_file():
        raise DatasetError(f"no mask for anomalous image {image}: looked for {row['mask'] or 'a path'!r} ({table})")
    return image, mask, "anomaly"


@dataclass
class _Listing:
    """Images with their masks and defect types, in the order in which they are found."""

    images: list[Path] = field(default_factory=list)
    masks: list[Path | None] = field(default_factory=list)
    types: list[str] = field(default_factory=list)

    def extend(self, entries: Iterable[tuple[Path, Path | None, str]]) -> None:
        for image, mask, defect_type in entries:
            self.images.append(image)
            self.masks.append(mask)
            self.types.append(defect_type)

    def bunch(self, category: str, split: str) -> Bunch:
        order = sorted(range(len(self.images)), key=lambda i: natural_path_key(self.images[i]))
        types = [self.types[i] for i in order]
        return Bunch(
            images=[self.images[i] for i in order],
            labels=np.array([1 if name == "good" else -1 for name in types], dtype=np.int64),
            masks=[self.masks[i] for i in order],
            defect_types=types,
            category=category,
            split=split,
        )


def _check_split(split: str) -> None:
    if split not in _SPLITS:
        raise ValueError(f"split must be 'train' or 'test', got {split!r}")


def _category_folder(root: Path, category: str) -> Path:
    folder = root / category
    if folder.is_dir() and category:
        return folder
    if not root.is_dir():
        raise DatasetError(f"no folder at {root}; give the folder of the categories as root")
    if (root / "train").is_dir() or (root / "test").is_dir():
        raise DatasetError(
            f"no category {category!r} in {root}: this is a category's own folder; "
            f"give the folder above it as root ({str(root.absolute().parent)!r}) "
            f"and {root.absolute().name!r} as category"
        )
    present = [f.name for f in _subfolders(root) if (f / "train").is_dir() or (f / "test").is_dir()]
    if present:
        raise DatasetError(f"no category {category!r} in {root}; present are {_quoted(present)}")
    raise DatasetError(
        f"{_not_found(f'category {category!r}', root)}; "
        "root must be the folder that holds <category>/train/good and <category>/test"
    )


def _require_folder(folder: Path) -> Path:
    if not folder.is_dir():
        raise DatasetError(_not_found(f"folder {folder.name!r}", folder.parent))
    return folder


def _mask_finder(folder: Path) -> _MaskFinder:
    return _MaskFinder(folder, {path.stem: path for path in _images(folder)} if folder.is_dir() else {})


@dataclass(frozen=True)
class _MaskFinder:
    """Finds the mask of an image by the stem of its file name."""

    folder: Path
    by_stem: dict[str, Path]

    def __call__(self, image: Path) -> Path:
        for stem in (f"{image.stem}_mask", image.stem):
            if stem in self.by_stem:
                return self.by_stem[stem]
        wanted = self.folder / f"{image.stem}_mask.png"
        found = "the folder has " + _quoted([p.name for p in self.by_stem.values()])
        raise DatasetError(
            f"no mask for anomalous image {image}: looked for {wanted} "
            f"(or {image.stem}.png; any image suffix); "
            f"{found if self.folder.is_dir() else 'there is no such folder'}"
        )


def _visible(folder: Path) -> Iterator[Path]:
    return (path for path in folder.iterdir() if not path.name.startswith("."))


def _subfolders(folder: Path) -> list[Path]:
    return sorted((path for path in _visible(folder) if path.is_dir()), key=natural_path_key)


def _images(folder: Path) -> list[Path]:
    named = [path for path in folder.iterdir() if looks_like_an_image(path)]
    if lost := [path for path in named if path.is_symlink() and not path.exists()]:
        raise DatasetError(f"{min(lost)} is a link to a file that is not there: fetch the file, or remove the link")
    return sorted((path for path in named if path.is_file()), key=natural_path_key)


def _image_files() -> str:
    return f"image files ({', '.join(image_suffixes())})"


def _not_found(wanted: str, folder: Path) -> str:
    if not folder.is_dir():
        return f"no {wanted} in {folder}: there is no such folder"
    names = sorted((path.name for path in _visible(folder)), key=natural_key)
    return f"no {wanted} in {folder}; it holds {_quoted(names)}"


def _quoted(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    shown = ", ".join(map(repr, names[:most])) or "nothing"
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
