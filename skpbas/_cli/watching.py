"""A hot folder: images that appear in it, each once it is complete."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from skpbas._cli.console import UsageError
from skpbas._cli.paths import Named, images_below, sort_out

_PATIENCE = 10  # polls that an image may stay undecodable while its size does not change: a writer may pause

_State = tuple[int, int]


@dataclass
class WatchedFolder:
    """Images of a folder and its subfolders: those that are there first, then new and rewritten ones.

    An image is complete when neither its size nor its time of change differ from those of the poll before, and it can
    be decoded; one that stays undecodable is yielded nevertheless, so that it is reported.

    Attributes
    ----------
    folder : Path
    interval : float
        Seconds between polls.
    idle_seconds : float or None
        End after this time without a new image; None: never.
    without : Path or None
        A folder below whose images are left out: that of the command's own output.
    sleep, clock : callable
        As those of ``time``.
    """

    folder: Path
    interval: float = 0.5
    idle_seconds: float | None = None
    without: Path | None = None
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    _waiting: dict[Path, tuple[_State, int]] = field(default_factory=dict, repr=False)
    _done: dict[Path, _State] = field(default_factory=dict, repr=False)

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
        present = {path: state for path in self._images() if (state := _state(path)) is not None}
        self._done = {path: state for path, state in self._done.items() if path in present}
        self._waiting = {path: seen for path, seen in self._waiting.items() if path in present}
        for path, state in present.items():
            if self._done.get(path) == state:
                self._waiting.pop(path, None)
                continue
            before, polls = self._waiting.get(path, (None, 0))
            polls = polls + 1 if before == state else 0
            self._waiting[path] = state, polls
            if polls == 0 or (polls < _PATIENCE and not _is_decodable(path)):
                continue
            del self._waiting[path]
            self._done[path] = state
            yield path

    def _images(self) -> list[Path]:
        own = None if self.without is None else self.without.resolve()
        return [path for path in images_below(self.folder) if own is None or not path.resolve().is_relative_to(own)]


def _state(path: Path) -> _State | None:
    try:
        of_file = path.stat()
    except OSError:  # removed in the meantime
        return None
    return of_file.st_size, of_file.st_mtime_ns


def _is_decodable(path: Path) -> bool:
    return next(sort_out([path]))[1] is None
