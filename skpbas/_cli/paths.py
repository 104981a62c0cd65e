"""Which images a command line names: files, folders, patterns and a list on standard input."""

from __future__ import annotations

import fnmatch
import glob
import itertools
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from skpbas._cli.console import UsageError, note, one_line, progress, shown
from skpbas._inputs.formats import image_suffixes, looks_like_an_image, natural_path_key

STDIN = "-"

_SHOWN_FILES = 20


@dataclass(frozen=True)
class Named:
    """An image that was named.

    Attributes
    ----------
    path : Path
    below : Path
        Its path below the folder, or below the fixed part of the pattern, that it was found by; otherwise its name.
    """

    path: Path
    below: Path


class NamedImages:
    """The images that arguments name, in order.

    Parameters
    ----------
    what : sequence of str
        Files; folders, with all their subfolders; patterns such as "parts/*.png" or "parts/**/*.png", which need no
        shell; "-": a list of any of these on standard input, one per line.
    maps : Path or None
        The folder of the command's own pictures, which must be apart from the images. Those in it that standard input
        names are left out.
    stdin : text stream or None
        None: standard input.

    Attributes
    ----------
    n_left_out : int
        Images of standard input that are in ``maps``.

    Raises
    ------
    UsageError
        A path that does not exist, a folder or pattern without images, or pictures that a later run would inspect, by
        the call. What standard input names is listed: reading it fails.
    """

    def __init__(self, what: Sequence[str], *, maps: Path | None = None, stdin: TextIO | None = None) -> None:
        self._maps = None if maps is None else os.path.realpath(maps)
        self._stdin = stdin
        self._real_folders: dict[Path, str] = {}
        self.n_left_out = 0
        if list(what).count(STDIN) > 1:
            raise UsageError('"-", the list on standard input, can be given once only')
        self._parts = [None if one == STDIN else self._given(one, maps) for one in what]

    def __len__(self) -> int:
        """Return the number of images; without those on standard input, which are not known yet."""
        return sum(len(part) for part in self._parts if part is not None)

    @property
    def are_known(self) -> bool:
        """Whether none is on standard input."""
        return None not in self._parts

    @property
    def known(self) -> list[Path]:
        """The images that are not on standard input."""
        return [image.path for part in self._parts if part is not None for image in part]

    def __iter__(self) -> Iterator[Named]:
        for part in self._parts:
            if part is not None:
                yield from part
                continue
            for line in self._stdin or sys.stdin:
                if name := line.strip("\r\n"):
                    found = self._found_or_named(name)
                    kept = [one for one in found if not self._is_picture(one.path)]
                    self.n_left_out += len(found) - len(kept)
                    yield from kept

    def _given(self, what: str, maps: Path | None) -> list[Named]:
        """Return what an argument names, or raise."""
        path = Path(os.path.expanduser(what))
        if not os.path.lexists(path) and not glob.has_magic(what):
            raise UsageError(f"{what}: no such file or folder")
        found = _found(what)
        if self._maps is not None:
            reaches = _reaches(path, Path(self._maps)) or any(self._is_picture(one.path) for one in found)
            check_apart(what, maps, apart=not reaches)
        return found

    def _found_or_named(self, what: str) -> list[Named]:
        try:
            return _found(what)
        except (UsageError, OSError, ValueError):  # amid a list that may be endless: reading it fails and is reported
            return [Named(Path(what), Path(Path(what).name))]

    def _is_picture(self, path: Path) -> bool:
        if self._maps is None or "\0" in str(path):
            return False
        if path.parent not in self._real_folders:
            self._real_folders[path.parent] = os.path.realpath(path.parent)
        return Path(self._real_folders[path.parent], path.name).is_relative_to(self._maps)


def check_apart(what: object, maps: object, *, apart: bool) -> None:
    """Refuse a folder of pictures among the images that are inspected."""
    if not apart:
        raise UsageError(
            f"--maps {maps} is not apart from the images of {what}, so a later run would inspect its pictures: give "
            "another folder"
        )


def _reaches(what: Path, maps: Path) -> bool:
    """Return whether a folder or a pattern covers files in this folder."""
    fixed = _fixed_part(what) if not what.exists() else what
    if not fixed.is_dir() or not maps.is_relative_to(os.path.realpath(fixed)):
        return False
    wanted, there = what.parts[len(fixed.parts) :], maps.relative_to(os.path.realpath(fixed)).parts
    return "**" in wanted or all(map(fnmatch.fnmatch, there, wanted))


def _found(what: str) -> list[Named]:
    path = Path(os.path.expanduser(what))
    if path.is_dir():
        return [Named(image, image.relative_to(path)) for image in images_in(path, what)]
    if os.path.lexists(path) or not glob.has_magic(what):
        return [Named(path, Path(path.name))]
    found = list(_matching(os.path.expanduser(what)))
    if not found:
        raise UsageError(f"{what}: no image file has a name like this")
    return found


def walk(folder: Path) -> tuple[list[Path], list[OSError]]:
    """Return the image files of a folder and its subfolders, in natural order, and why subfolders could not be listed.

    Hidden files and folders are left out, and links to folders are not followed.
    """
    found: list[Path] = []
    errors: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in files if looks_like_an_image(path := Path(parent, name))]
    return sorted(found, key=natural_path_key), errors


def images_below(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, in natural order; hidden ones are left out.

    Raises
    ------
    UsageError
        A folder cannot be listed.
    """
    found, errors = walk(folder)
    for error in errors:
        raise _unlisted(error.filename or folder, error)
    return found


def images_in(folder: Path, name: str) -> list[Path]:
    """Return the images below a folder, of which there must be one; errors call it by the name."""
    images = images_below(folder) if folder.is_dir() else []
    if not images:
        raise UsageError(
            f"{name}: no image files in this folder or below it ({', '.join(image_suffixes())}); add other formats to "
            "skpbas.datasets.IMAGE_FORMATS, or name the files"
            if folder.is_dir()
            else f"{name}: no such folder"
        )
    return images


def _unlisted(folder: object, error: OSError) -> UsageError:
    return UsageError(f"{folder}: the folder cannot be listed ({error.strerror or error})")


def _fixed_part(pattern: Path) -> Path:
    """Return the folder above the first part with a wildcard."""
    return Path(*itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))


def _matching(pattern: str) -> Iterator[Named]:
    """Yield the images that a pattern matches, and those of matching folders."""
    parts, fixed = Path(pattern).parts, _fixed_part(Path(pattern))
    _check_listed(parts)
    wanted = Path(pattern).suffix.lower()
    for path in sorted(map(Path, set(glob.glob(pattern, recursive=True))), key=natural_path_key):
        if path.is_dir():
            if "**" not in parts:  # which finds what is in the folder, too
                yield from (Named(image, image.relative_to(fixed)) for image in images_below(path))
        elif looks_like_an_image(path) or (wanted and not glob.has_magic(wanted) and path.suffix.lower() == wanted):
            yield Named(path, path.relative_to(fixed))


def _check_listed(parts: Sequence[str]) -> None:
    """Refuse a pattern for which a folder must be listed that cannot be: glob would skip it in silence."""
    for i, part in enumerate(parts):
        if not glob.has_magic(part):
            continue
        until = parts[: i + 1] if part == "**" else parts[:i]
        for folder in glob.glob(os.path.join(*until), recursive=True) if until else ["."]:
            if os.path.isdir(folder):
                try:
                    os.scandir(folder).close()
                except OSError as error:
                    raise _unlisted(folder, error) from error


def sort_out(paths: Iterable[Path], smallest: int = 1) -> Iterator[tuple[Path, str | None]]:
    """Decode each image, and yield it with None, or with what is wrong with it."""
    from skpbas._inputs.decoding import check_size, decode
    from skpbas.errors import InvalidImageError

    for path in paths:
        try:
            height, width = decode(path, shown(path)).pixels.shape[:2]
            check_size((height, width), smallest, shown(path))
        except InvalidImageError as error:
            yield path, str(error)
        else:
            yield path, None


def readable(paths: Sequence[Path], smallest: int = 1) -> tuple[list[Path], list[Path]]:
    """Return which images can be read, and which cannot; these are named on standard error."""
    good, bad = [], []
    for path, error in progress(sort_out(paths, smallest), "checking", len(paths)):
        if error is None:
            good.append(path)
            continue
        bad.append(path)
        if len(bad) <= _SHOWN_FILES:
            note(f"unreadable: {one_line(error)}")
    if len(bad) > _SHOWN_FILES:
        note(f"unreadable: {len(bad) - _SHOWN_FILES} more")
    return good, bad
