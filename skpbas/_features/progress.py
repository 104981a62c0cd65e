"""Progress bars on standard error."""

from __future__ import annotations

import multiprocessing
import threading
from typing import Any

from tqdm.auto import tqdm  # a dependency of skorch

_only_bar = threading.Lock()


class _OnlyBar(tqdm):  # type: ignore[misc]
    """A bar that allows the next one to be shown once it is closed."""

    def close(self) -> None:
        shown = not self.disable  # set by close()
        super().close()
        if shown:
            _only_bar.release()


def progress_bar(total: int, description: str, unit: str, show: bool) -> Any:
    """Return a tqdm bar, which is silent unless ``show``.

    Only one bar is shown at a time: bars of fits in other threads are silent meanwhile. Bars in worker processes are
    always silent, since they would garble the output of the others.
    """
    shown = show and multiprocessing.parent_process() is None and _only_bar.acquire(blocking=False)
    return _OnlyBar(total=total, desc=description, unit=unit, disable=not shown, leave=False, dynamic_ncols=True)
