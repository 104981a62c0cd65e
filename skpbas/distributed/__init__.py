"""Scoring on a Dask cluster (extra ``dask``).

What runs on the client is imported on first use: workers that score with an ONNX file import no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

try:
    import distributed  # noqa: F401
except ImportError as error:
    raise ImportError(f"skpbas.distributed needs Dask ({error}): pip install skpbas[dask]") from error

if TYPE_CHECKING:
    from skpbas.distributed._cluster import ImageResult, ScoringSummary, score_images

__all__ = ["ImageResult", "ScoringSummary", "score_images"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("skpbas.distributed._cluster"), name)
    raise AttributeError(f"module 'skpbas.distributed' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
