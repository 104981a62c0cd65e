"""Progress bars on standard error, where the user asked for them."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

from tqdm.auto import tqdm  # skorch's own dependency

_only_bar = threading.Lock()


class _OnlyBar(tqdm):  # type: ignore[misc]
    """A bar that lets the next one be shown when it closes."""

    def close(self) -> None:
        shown = not self.disable  # closing sets it
        super().close()
        if shown:
            _only_bar.release()


def progress_bar(total: int, description: str, unit: str, show: bool) -> Any:
    """Return a tqdm bar, a silent one unless ``show``.

    A terminal has one place for it: while a bar is shown, those of fits in other threads are silent. So are those of
    worker processes, which cannot know what others write.
    """
    shown = show and multiprocessing.parent_process() is None and _only_bar.acquire(blocking=False)
    return _OnlyBar(total=total, desc=description, unit=unit, disable=not shown, leave=False, dynamic_ncols=True)
