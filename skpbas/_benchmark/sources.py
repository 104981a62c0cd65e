"""Data sets in folders: which categories there are, and the images, labels and masks of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skpbas._inputs.decoding import decode
from skpbas._inputs.formats import looks_like_an_image
from skpbas.datasets import list_images, load_mpdd, load_mvtec, load_visa
from skpbas.datasets._loaders import visa_objects
from skpbas.errors import DatasetError
from skpbas.masks import read_mask


@dataclass(frozen=True)
class CategoryImages:
    """The images of a category.

    Attributes
    ----------
    train : list of Path
        Normal images to fit on.
    test : list of Path
    labels : ndarray of shape (n,)
        Of ``test``: +1 normal, -1 anomalous.
    masks : list of Path or None, or None
        Of ``test``; None if there are none, and then no pixel metrics.
    digest : str
        Of the names, labels and contents of all files, so that a result is not taken for one of other images.
    """

    train: list[Path]
    test: list[Path]
    labels: NDArray[np.int64]
    masks: list[Path | None] | None
    digest: str

    def check(self) -> list[str]:
        """Read every test image and mask, which takes less time than the training that would be in vain.

        Returns
        -------
        list of str
            Which masks of defective images have no defect, as those of thin defects that were made smaller.

        Raises
        ------
        InvalidImageError, InvalidTargetError
            An image or a mask cannot be read.
        DatasetError
            A mask has a size of its own.
        """
        notes = []
        others: list[tuple[Path, Path, tuple[int, ...], tuple[int, ...]]] = []
        mask_shapes = set()
        for image, mask in zip(self.test, self.masks or [None] * len(self.test), strict=True):
            shape = decode(image, str(image)).pixels.shape[:2]
            if mask is None:
                continue
            defective = read_mask(str(mask))
            if not defective.any():
                notes.append(
                    f"{mask.name} has no defective pixel, although {image.name} is a defective image: its pixels count "
                    "as normal"
                )
            mask_shapes.add(defective.shape)
            if defective.shape != shape:
                others.append((mask, image, defective.shape, shape))
        if others and len(mask_shapes) > 1:  # masks that all have one size may have that of the anomaly maps
            mask, image, of_mask, of_image = others[0]
            raise DatasetError(
                f"{mask} has {of_mask[0]} x {of_mask[1]} pixels, and {image} has {of_image[0]} x {of_image[1]}: a mask "
                "has the size of its image"
            )
        return notes


@dataclass(frozen=True)
class DataSet:
    """A data set on disk.

    Attributes
    ----------
    name, title : str
        On the command line, and in the paper.
    loader : callable
        Of :mod:`skpbas.datasets`: root, category and split to images, labels and masks.
    known : tuple of str
        The categories that published averages are over, in the order of the paper; empty if nothing is published.
    """

    name: str
    title: str
    loader: Callable[[Path, str, Any], Bunch]
    known: tuple[str, ...] = ()

    def categories(self, root: Path) -> list[str]:
        """Return the categories that are there: of the known ones, if there are known ones.

        Raises
        ------
        DatasetError
            There is none.
        """
        if self.name == "folder":
            return _folder_categories(root)
        there = visa_objects(root) if self.name == "visa" else {path.name for path in root.iterdir()}
        found = [name for name in self.known if name in there]
        if not found:
            raise DatasetError(
                f"--root {root} holds no category of {self.title} ({', '.join(self.known)}); give the folder that "
                "holds them, name others with --categories, or use --dataset folder"
            )
        return found

    def load(self, root: Path, category: str) -> CategoryImages:
        """Return the images of a category.

        Raises
        ------
        DatasetError
            Images, masks or folders are missing, or all test images are of one kind.
        """
        train, test = (self.loader(root, category, split) for split in ("train", "test"))
        good = [path for path, label in zip(train.images, train.labels, strict=True) if label == 1]
        if not good:
            raise DatasetError(f"{category}: no good training images (train/good)")
        if len(set(test.labels.tolist())) < 2:
            raise DatasetError(
                f"{category}: every test image is {'good' if 1 in test.labels else 'defective'}; metrics compare good "
                "and defective ones (test/good and test/<defect>)"
            )
        masks = test.masks if any(mask is not None for mask in test.masks) else None
        files = [("train", path) for path in good]
        files += [(f"test {label:+d}", path) for path, label in zip(test.images, test.labels, strict=True)]
        files += [("mask", mask) for mask in masks or () if mask is not None]
        return CategoryImages(good, test.images, test.labels, masks, _digest(root, files))


def _folder_categories(root: Path) -> list[str]:
    if (root / "train").is_dir():
        return [root.resolve().name]
    found = sorted(path.name for path in root.iterdir() if (path / "train").is_dir() and path.name[0] != ".")
    if not found:
        raise DatasetError(
            f"--root {root}: no folder 'train' there or in its subfolders; expected train/good, test/good and "
            "test/<defect>, with masks in ground_truth/<defect> if there are any"
        )
    return found


def _load_folder(root: Path, category: str, split: Any) -> Bunch:
    """Load a category in MVTec AD's layout whose masks may be missing altogether."""
    itself = (root / "train").is_dir() and category == root.resolve().name
    whole = Path(os.path.abspath(root if itself else root / category))
    if (whole / "ground_truth").is_dir() or not (whole / split).is_dir():
        return load_mvtec(whole.parent, whole.name, split)  # which also says what is missing
    entries = sorted(path for path in (whole / split).iterdir() if not path.name.startswith("."))
    parts = [path for path in entries if path.is_dir()]
    elsewhere = [path for path in entries if path.is_file() and looks_like_an_image(path)]
    elsewhere += [path for part in parts for path in part.iterdir() if path.is_dir() and not path.name.startswith(".")]
    if elsewhere:
        raise DatasetError(f"{min(elsewhere)} is at a level that is not read: images are in {whole / split}/<kind>/")
    images = [path for part in parts for path in list_images(part)]
    if not images:
        raise DatasetError(f"{whole / split}: no folder of images there, such as 'good'")
    labels = np.array([1 if path.parent.name == "good" else -1 for path in images], dtype=np.int64)
    return Bunch(images=images, labels=labels, masks=[None] * len(images))


def _digest(root: Path, files: Iterable[tuple[str, Path]]) -> str:
    """Return a digest of files and what they are, by their names in the root: a link does not lead elsewhere here."""
    digest = hashlib.sha256()
    for what, path in files:
        name = Path(os.path.relpath(path, root)).as_posix()
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{what}\0{name}\0{content}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


DATA_SETS = {
    one.name: one
    for one in (
        DataSet(
            "mvtec",
            "MVTec AD",
            load_mvtec,
            (
                *("carpet", "grid", "leather", "tile", "wood", "bottle", "cable", "capsule", "hazelnut", "metal_nut"),
                *("pill", "screw", "toothbrush", "transistor", "zipper"),
            ),
        ),
        DataSet(
            "visa",
            "VisA",
            load_visa,
            (
                *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
                *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
            ),
        ),
        DataSet(
            "mpdd",
            "MPDD",
            load_mpdd,
            ("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"),
        ),
        DataSet("folder", "folder", _load_folder),
    )
}
