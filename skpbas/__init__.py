"""Visual anomaly detection from good images only: PBAS as a scikit-learn estimator.

The names below are loaded on first use, so that importing the package costs little more than torch's own import.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skpbas import calibration, datasets, masks, metrics, model_selection, presets, scorers
    from skpbas import distributed as distributed
    from skpbas._features.entries import trim_memory
    from skpbas.estimator import PBASDetector

__version__ = "0.1.0"
__all__ = [
    "PBASDetector",
    "__version__",
    "calibration",
    "datasets",
    "masks",
    "metrics",
    "model_selection",
    "presets",
    "scorers",
    "trim_memory",
]


def __getattr__(name: str) -> Any:
    if name == "PBASDetector":
        return import_module("skpbas.estimator").PBASDetector
    if name == "trim_memory":
        return import_module("skpbas._features.entries").trim_memory
    if name in __all__ or name == "distributed":  # which needs an extra, so that `import *` leaves it out
        return import_module(f"skpbas.{name}")
    raise AttributeError(f"module 'skpbas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
