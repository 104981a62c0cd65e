"""Whether something is torch's, without importing torch: who has a tensor has imported it."""

from __future__ import annotations

import sys
from typing import Any


def is_tensor(item: Any) -> bool:
    """Return whether an object is a tensor of torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(item, torch.Tensor)


def is_loader(item: Any) -> bool:
    """Return whether an object is a DataLoader of torch."""
    data = sys.modules.get("torch.utils.data")
    return data is not None and isinstance(item, data.DataLoader)
