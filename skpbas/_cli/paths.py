"""Which images a command line names: files, folders, patterns and a list on standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from skpbas._cli.console import UsageError, note, one_line, progress
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
    without : Path or None
        A folder whose images are left out: that of the command's own output.
    stdin : text stream or None
        None: standard input.

    Raises
    ------
    UsageError
        A folder or pattern without images, by the call. A file that does not exist is listed: reading it fails.
    """

    def __init__(self, what: Sequence[str], *, without: Path | None = None, stdin: TextIO | None = None) -> None:
        self._without = None if without is None else without.resolve()
        self._stdin = stdin
        if list(what).count(STDIN) > 1:
            raise UsageError('"-", the list on standard input, can be given once only')
        self._parts = [None if one == STDIN else self._found(one) for one in what]

    def __len__(self) -> int:
        """Return the number of images; without those on standard input, which are not known yet."""
        return sum(len(part) for part in self._parts if part is not None)

    @property
    def are_known(self) -> bool:
        """Whether none is on standard input."""
        return None not in self._parts

    def __iter__(self) -> Iterator[Named]:
        for part in self._parts:
            if part is not None:
                yield from part
                continue
            for line in self._stdin or sys.stdin:
                if name := line.strip("\r\n"):
                    yield from self._found_or_named(name)

    def _found(self, what: str) -> list[Named]:
        path = Path(os.path.expanduser(what))
        if path.is_dir():
            found = [Named(image, image.relative_to(path)) for image in images_below(path)]
            if not found:
                raise UsageError(
                    f"{what}: no image files in this folder or below it ({', '.join(image_suffixes())}); add other "
                    "formats to skpbas.datasets.IMAGE_FORMATS, or name the files"
                )
        elif path.exists() or not glob.has_magic(what):
            return [Named(path, Path(path.name))]
        else:
            found = list(_matching(os.path.expanduser(what)))
            if not found:
                raise UsageError(f"{what}: no image file has a name like this")
        return [one for one in found if not self._is_output(one.path)]

    def _found_or_named(self, what: str) -> list[Named]:
        try:
            return self._found(what)
        except UsageError:  # amid a list that may be endless: reading it fails, which is reported
            return [Named(Path(what), Path(Path(what).name))]

    def _is_output(self, path: Path) -> bool:
        return self._without is not None and path.resolve().is_relative_to(self._without)


def images_below(folder: Path) -> list[Path]:
    """Return the image files of a folder and its subfolders, in natural order; hidden ones are left out."""
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in files if looks_like_an_image(path := Path(parent, name))]
    return sorted(found, key=natural_path_key)


def _matching(pattern: str) -> Iterator[Named]:
    """Yield the images that a pattern matches, and those of matching folders."""
    parts = Path(pattern).parts
    fixed = Path(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])
    wanted = Path(pattern).suffix.lower()
    for path in sorted(map(Path, set(glob.glob(pattern, recursive=True))), key=natural_path_key):
        if path.is_dir():
            if "**" not in parts:  # which finds what is in the folder, too
                yield from (Named(image, image.relative_to(fixed)) for image in images_below(path))
        elif looks_like_an_image(path) or (wanted and not glob.has_magic(wanted) and path.suffix.lower() == wanted):
            yield Named(path, path.relative_to(fixed))


def sort_out(paths: Iterable[Path], smallest: int = 1) -> Iterator[tuple[Path, str | None]]:
    """Decode each image, and yield it with None, or with what is wrong with it."""
    from skpbas._inputs.decoding import check_size, decode
    from skpbas.errors import InvalidImageError

    for path in paths:
        try:
            height, width = decode(path, str(path)).pixels.shape[:2]
            check_size((height, width), smallest, str(path))
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
