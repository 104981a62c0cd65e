"""A hot folder: images that appear in it, each once it is complete."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from skpbas._cli.console import UsageError, note, shown
from skpbas._cli.paths import Named, sort_out, walk
from skpbas._inputs.formats import state_of

_PATIENCE = 10  # polls that an image may stay undecodable while its size does not change: a writer may pause
_MOST_GONE = 100_000  # images that are remembered although they are not there

_State = tuple[int, int]


@dataclass
class WatchedFolder:
    """Images of a folder and its subfolders: those that are there first, then new and rewritten ones.

    An image is complete when neither its size nor its time of change differ from those of the poll before, and it can
    be decoded; one that stays undecodable is yielded nevertheless, so that it is reported. A folder that cannot be
    listed, such as that of a lost connection, is waited for; what comes back unchanged is not yielded again.

    Attributes
    ----------
    folder : Path
    interval : float
        Seconds between polls.
    idle_seconds : float or None
        End after this time without a new image; None: never.
    sleep, clock : callable
        As those of ``time``.
    """

    folder: Path
    interval: float = 0.5
    idle_seconds: float | None = None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _waiting: dict[Path, tuple[_State, int]] = field(default_factory=dict, repr=False)
    _done: dict[Path, _State] = field(default_factory=dict, repr=False)
    _unlisted: set[str] = field(default_factory=set, repr=False)

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UsageError(f"--watch {self.folder}: no such folder")

    def __iter__(self) -> Iterator[Named]:
        last = self.clock()
        while True:
            for path in self._complete():
                yield Named(path, path.relative_to(self.folder))
                last = self.clock()
            if self.idle_seconds is not None and self.clock() - last >= self.idle_seconds and not self._waiting:
                return
            self.sleep(self.interval)

    def _complete(self) -> Iterator[Path]:
        """Yield the images that have become complete since the last poll."""
        present = {path: state for path in self._images() if (state := state_of(path)) is not None}
        self._waiting = {path: seen for path, seen in self._waiting.items() if path in present}
        self._forget(present)
        for path, state in present.items():
            if self._done.get(path) == state:
                self._waiting.pop(path, None)
                continue
            before, polls = self._waiting.get(path, (None, 0))
            polls = polls + 1 if before == state else 0
            self._waiting[path] = state, polls
            if polls == 0 or (polls < _PATIENCE and not _is_decodable(path)):
                continue
            if state_of(path) != state:  # while others were inspected
                continue
            del self._waiting[path]
            self._done[path] = state
            yield path

    def _images(self) -> list[Path]:
        """Return the images that can be listed, and say once of each folder that it cannot be, and that it is back."""
        found, errors = walk(self.folder)
        unlisted = {str(error.filename or self.folder): error for error in errors}
        for folder, error in unlisted.items():
            if folder not in self._unlisted:
                note(
                    f"warning: {shown(folder)}: the folder cannot be listed ({error.strerror or error}); waiting for it"
                )
        for folder in self._unlisted - set(unlisted):
            if os.path.isdir(folder):
                note(f"{shown(folder)} is back")
        self._unlisted = set(unlisted)
        return found

    def _forget(self, present: Mapping[Path, _State]) -> None:
        """Forget the images that have been gone longest: all others may come back, with a connection or a disk."""
        if len(self._done) > len(present) + _MOST_GONE:
            gone = [path for path in self._done if path not in present]
            for path in gone[: len(gone) - _MOST_GONE]:
                del self._done[path]


def _is_decodable(path: Path) -> bool:
    return next(sort_out([path]))[1] is None
