"""Image file formats that are read, by name, the order of files, and whether one was written again; needs no Pillow."""

from __future__ import annotations

import os
import re
from os import PathLike
from pathlib import Path

IMAGE_FORMATS: dict[str, tuple[str, ...]] = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
}
"""Image file formats that are read, by Pillow's names, with their file name suffixes."""


def image_suffixes() -> tuple[str, ...]:
    """Return the file name suffixes of images, in lower case, sorted."""
    return tuple(sorted(suffix.lower() for suffixes in IMAGE_FORMATS.values() for suffix in suffixes))


def looks_like_an_image(path: Path) -> bool:
    """Return whether a path has the suffix of an image and is not hidden, as macOS's "._photo.png" is."""
    return not path.name.startswith(".") and path.suffix.lower() in image_suffixes()


_Key = tuple[tuple[tuple[int, int, str], ...], str]


def natural_key(name: str) -> _Key:
    """Return a sort key that compares digits by their value, and the whole names in case of a tie."""
    pieces = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p.casefold()) for p in pieces), name


def natural_path_key(path: Path) -> tuple[_Key, ...]:
    """Return a sort key of a path, part by part."""
    return tuple(natural_key(part) for part in path.parts)


def state_of(path: str | PathLike[str]) -> tuple[int, int] | None:
    """Return size and time of change of a file, by which one that was written again is known; None: it is not there."""
    try:
        of_file = os.stat(path)
    except (OSError, ValueError):
        return None
    return of_file.st_size, of_file.st_mtime_ns
