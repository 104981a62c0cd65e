"""Visual anomaly detection from good images only: PBAS as a scikit-learn estimator.

The names below are loaded on first use, so that importing the package costs little more than torch's own import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skpbas import datasets, metrics, presets
    from skpbas.estimator import PBASDetector

__version__ = "0.1.0"
__all__ = ["PBASDetector", "__version__", "datasets", "metrics", "presets"]


def __getattr__(name: str) -> Any:
    if name == "PBASDetector":
        return import_module("skpbas.estimator").PBASDetector
    if name in __all__:
        return import_module(f"skpbas.{name}")
    raise AttributeError(f"module 'skpbas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
