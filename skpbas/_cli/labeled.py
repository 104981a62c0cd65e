"""Images of which folders say whether they are good, and the masks that belong to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skpbas._cli.console import UsageError, note
from skpbas._cli.paths import images_below, images_in
from skpbas._inputs.formats import looks_like_an_image, natural_path_key

GOOD, MASKS = "good", "ground_truth"

NOT_GOOD = {"bad", "ng", "nok", "defect", "defects", "defective", "anomaly", "anomalies", "anomalous", "scrap"}
"""Names of folders whose images are surely not good."""

_MASK_ENDS = ("_mask", "")


@dataclass(frozen=True)
class Labeled:
    """An image and what is known of it.

    Attributes
    ----------
    path : Path
    kind : str
        "good", or its kind of defect.
    mask : Path or None
    """

    path: Path
    kind: str
    mask: Path | None = None


def good_images(folder: Path, option: str = "") -> list[Path]:
    """Return the images of a folder and its subfolders, none of which may be named as one of defective parts is.

    Raises
    ------
    UsageError
        No such folder, no images in it, or a subfolder such as "bad".
    """
    images = images_in(folder, f"{option}{folder}")
    for image in images:
        inner = image.relative_to(folder).parts[:-1]
        if named := [i for i, part in enumerate(inner) if part.casefold() in NOT_GOOD]:
            raise UsageError(
                f"{option}{folder} has a folder {str(Path(*inner[: named[0] + 1]))!r}, whose images do not seem to be "
                "good: give the folder of its good images, or rename that one if its images are good"
            )
    return images


def tested_folder(folder: Path) -> Path:
    """Return the folder of test images of a data set, or else the folder itself."""
    test = folder / "test"
    return test if (test / GOOD).is_dir() or (test.is_dir() and _is_data_set(folder)) else folder


def in_layout(folder: Path) -> list[Labeled] | None:
    """Return the images of a folder with subfolders of which one is called good, good ones first; or None.

    Parameters
    ----------
    folder : Path
        A category in the layout of MVTec AD, or its folder of test images.

    Raises
    ------
    UsageError
        Images beside the folder of good ones, or masks that could belong to several images.
    """
    test = tested_folder(folder)
    if not (test / GOOD).is_dir():
        return None
    images = [Labeled(path, GOOD) for path in images_below(test / GOOD)]
    for entry in sorted(test.iterdir(), key=natural_path_key):
        if entry.name.startswith(".") or entry.name in (GOOD, MASKS):
            continue
        if entry.is_dir():
            masks = next((one for at in (test.parent, test) if (one := at / MASKS / entry.name).is_dir()), None)
            images += defective_images(entry, entry.name, masks)
        elif looks_like_an_image(entry):
            raise UsageError(
                f"{entry} is beside the folder {GOOD!r}, so whether it is good is not known: move it into a folder"
            )
    return images


def defective_images(folder: Path, kind: str, masks: Path | None) -> list[Labeled]:
    """Return the images below a folder of defective ones, with their masks."""
    images = images_below(folder)
    found = {} if masks is None else _paired(images, folder, masks)
    return [Labeled(path, kind, found.get(path)) for path in images]


def _is_data_set(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / MASKS).is_dir()


def _paired(images: Sequence[Path], folder: Path, folder_of_masks: Path) -> dict[Path, Path]:
    """Return the mask of each image that has one: by the path below its folder, or by a name that occurs once."""
    masks = images_below(folder_of_masks)
    of_path = {path: _key(path, folder) for path in images}
    found = _matched(of_path, {path: _key(path, folder_of_masks) for path in masks})
    left, used = [path for path in images if path not in found], set(found.values())
    of_name = {path: path.stem for path in left}
    found |= _matched(of_name, {path: path.stem for path in masks if path not in used})
    if n := len(masks) - len(set(found.values())):
        note(f"{n} mask{'s' * (n > 1)} of {folder_of_masks} match{'es' * (n == 1)} no image")
    return found


def _key(path: Path, folder: Path) -> str:
    return path.relative_to(folder).with_suffix("").as_posix()


def _matched(images: dict[Path, str], masks: dict[Path, str]) -> dict[Path, Path]:
    """Return the mask of each image by their keys, or raise where one could be of another."""
    by_key: dict[str, list[Path]] = {}
    for mask, key in masks.items():
        by_key.setdefault(key, []).append(mask)
    found: dict[Path, Path] = {}
    image_of: dict[Path, Path] = {}
    for image, key in images.items():
        candidates = next((by_key[key + end] for end in _MASK_ENDS if key + end in by_key), [])
        if len(candidates) > 1:
            raise UsageError(f"{candidates[0]} and {candidates[1]} could both be the mask of {image}: keep one")
        for mask in candidates:
            if mask in image_of:
                raise UsageError(
                    f"{mask} could be the mask of {image_of[mask]} or of {image}: give images different names, or "
                    "masks the subfolders of their images"
                )
            found[image], image_of[mask] = mask, image
    return found
