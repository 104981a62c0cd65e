"""Progress bars on standard error, where the user asked for them."""

from __future__ import annotations

from typing import Any

from tqdm.auto import tqdm  # skorch's own dependency


def progress_bar(total: int, description: str, unit: str, show: bool) -> Any:
    """Return a tqdm bar, a silent one unless ``show``."""
    return tqdm(total=total, desc=description, unit=unit, disable=not show, leave=False, dynamic_ncols=True)
