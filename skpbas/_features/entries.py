"""On-disk entries of the parameter ``memory``: tensors by key, in files without code that are checked when read."""

from __future__ import annotations

import json
import os
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from skpbas._features.digests import digest_of, tensor_digest
from skpbas._inputs.parameters import WholeNumber
from skpbas.errors import StorageError

FORMAT = 2
"""Incremented if entries of the same key get another content, for example because images are decoded differently."""

_SUFFIX = ".safetensors"
_ABANDONED_AFTER = 3600  # seconds after which a partial file is considered abandoned


class EntryFolder:
    """A folder of entries, each a file of tensors under its key.

    Entries are written atomically, so any number of processes may share the folder. A damaged or replaced entry is
    treated as missing: it is computed again and overwritten.

    Parameters
    ----------
    folder : Path
        As given by the user; entries are in a subfolder.
    writes : bool, default=True
        False: entries are only read.
    """

    def __init__(self, folder: Path, *, writes: bool = True) -> None:
        self.folder, self.writes = folder, writes

    def path(self, key: str) -> Path:
        """Return the file of an entry."""
        return _home(self.folder) / key[:2] / f"{key}{_SUFFIX}"

    def read(self, key: str) -> tuple[list[Tensor], Any] | None:
        """Return the tensors of an entry, on the CPU, and their note, or None if there is no valid entry."""
        try:
            content = self.path(key).read_bytes()  # not mapped: a file that shrinks would end the process
            length = int.from_bytes(content[:8], "little")
            about = json.loads(content[8 : 8 + length])["__metadata__"]
            named = load(content)
            tensors = [named[str(i)] for i in range(len(named))]
            sound = about["key"] == key and about["digest"] == _digest(key, about["note"], tensors)
            return (tensors, json.loads(about["note"])) if sound else None
        except Exception:  # noqa: BLE001 - missing, or damaged in any way
            return None

    def write(self, key: str, tensors: Sequence[Tensor], note: Any = None) -> None:
        """Write an entry; if that fails, warn and stop writing."""
        if not self.writes:
            return
        tensors, text = [tensor.detach().cpu().contiguous() for tensor in tensors], json.dumps(note)
        about = {"key": key, "note": text, "digest": _digest(key, text, tensors)}
        target = self.path(key)
        unfinished = target.with_name(f".{key}.{uuid.uuid4().hex}.part")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                unfinished.write_bytes(save({str(i): t for i, t in enumerate(tensors)}, metadata=about))
                os.replace(unfinished, target)
            finally:
                with suppress(OSError):
                    unfinished.unlink(missing_ok=True)
        except OSError as error:
            self.writes = False
            warnings.warn(
                f"memory={str(self.folder)!r} cannot be written ({error}): the computation continues without "
                "caching; free some space (skpbas.trim_memory) or use another folder",
                UserWarning,
                stacklevel=2,
            )

    def cached(
        self, key: str, make: Callable[[], list[Tensor]], fits: Callable[[Sequence[Tensor]], bool]
    ) -> list[Tensor]:
        """Return the tensors of a valid entry, or ``make()``, which is then written."""
        found = self.read(key)
        if found is not None and are_finite(found[0]) and fits(found[0]):
            return found[0]
        made = make()
        self.write(key, made)
        return made


def folder_of(memory: Any) -> Path | None:
    """Return the folder of the parameter ``memory``: the path itself, or the location of a ``joblib.Memory``.

    Raises
    ------
    ValueError
        The object has no folder.
    """
    location = getattr(memory, "location", memory)
    if location is None:
        return None
    if isinstance(location, (str, PathLike)) and getattr(memory, "backend", "local") == "local":
        text = str(location)
        if not text or "://" in text or "\0" in text:
            raise ValueError(f"memory={text!r} is not the path of a folder on a file system")
        return Path(text).expanduser()
    raise ValueError(
        f"memory={memory!r} has no folder on a file system: give a path, or a joblib.Memory with a location"
    )


def check_folder(memory: Any) -> None:
    """Check, before any work, that the parameter ``memory`` does not name a file.

    Raises
    ------
    StorageError
        The folder, or a parent of it, is a file.
    """
    folder = folder_of(memory)
    if folder is None:
        return
    home = _home(folder)
    for path in (home, *home.parents):
        try:
            if path.is_dir():
                return
            is_file = path.exists()
        except OSError:  # not accessible, or below a file
            continue
        if is_file:
            raise StorageError(
                f"memory={str(folder)!r} cannot be a folder: {path} is a file; use another path or memory=None"
            )


def trim_memory(folder: str | PathLike[str], max_bytes: int) -> int:
    """Delete the oldest entries of a ``memory`` folder until the others take at most ``max_bytes``.

    Processes that use the folder are not disturbed: they compute missing entries again. Only entries of this package
    are counted and deleted.

    Parameters
    ----------
    folder : str or Path
        The value of ``memory``, or the location of the ``joblib.Memory``.
    max_bytes : int
        Maximum total size of the entries, >= 0; 0 deletes all of them.

    Returns
    -------
    int
        Total size of the remaining entries in bytes.

    Raises
    ------
    ValueError
        ``max_bytes`` is negative.
    NotADirectoryError
        ``folder`` is not a folder.

    Examples
    --------
    >>> import tempfile
    >>> from skpbas import PBASDetector, trim_memory
    >>> from skpbas.datasets import make_inspection_images
    >>> images = make_inspection_images(n_normal=4, n_anomalous=0, size=64, random_state=0).images
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     detector = PBASDetector("embedded", image_size=64, max_epochs=1, memory=folder).fit(images)
    ...     left = trim_memory(folder, 100_000)
    >>> 0 < left <= 100_000
    True
    """
    if not WholeNumber(0).is_satisfied_by(max_bytes):
        raise ValueError(f"max_bytes={max_bytes!r}: must be an integer, 0 or more")
    if not Path(folder).is_dir():
        raise NotADirectoryError(f"folder={str(folder)!r} is not a folder; use the value of memory")
    entries: list[tuple[float, str, int]] = []
    for home in Path(folder).glob("skpbas-[0-9]*"):  # of other formats too
        for path in home.glob("[0-9a-f][0-9a-f]/*"):
            with suppress(OSError):  # deleted by another process
                status = path.stat()
                if path.suffix == _SUFFIX:
                    entries.append((status.st_mtime, str(path), status.st_size))
                elif path.suffix == ".part" and time.time() - status.st_mtime > _ABANDONED_AFTER:
                    path.unlink()  # left by a process that was killed
    total = sum(size for _, _, size in entries)
    for _, name, size in sorted(entries):
        if total <= max_bytes:
            break
        with suppress(PermissionError):  # open in another process, on Windows
            Path(name).unlink(missing_ok=True)
            total -= size
    return total


def are_finite(tensors: Sequence[Tensor]) -> bool:
    """Return whether no value is NaN or infinite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def _home(folder: Path) -> Path:
    return folder / f"skpbas-{FORMAT}"


def _digest(key: str, note: str, tensors: Sequence[Tensor]) -> str:
    return digest_of(key, note, *map(tensor_digest, tensors)).hex()
