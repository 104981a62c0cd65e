"""Visual anomaly detection trained on normal images only: PBAS as a scikit-learn estimator.

Submodules are imported on first use, which keeps ``import skpbas`` fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from skpbas import (
        calibration,
        datasets,
        export,
        inspection,
        masks,
        metrics,
        model_selection,
        presets,
        runtime,
        scorers,
    )
    from skpbas import distributed as distributed
    from skpbas._decisions.regions import Region
    from skpbas._features.entries import trim_memory
    from skpbas._features.results import Result
    from skpbas._inputs.image_statistics import GoodStatistics
    from skpbas.estimator import PBASDetector
    from skpbas.persistence import load

__version__ = "0.1.0"
__all__ = [
    "GoodStatistics",
    "PBASDetector",
    "Region",
    "Result",
    "__version__",
    "calibration",
    "datasets",
    "export",
    "inspection",
    "load",
    "masks",
    "metrics",
    "model_selection",
    "presets",
    "runtime",
    "scorers",
    "trim_memory",
]

_LAZY = {
    "GoodStatistics": "skpbas._inputs.image_statistics",
    "PBASDetector": "skpbas.estimator",
    "Region": "skpbas._decisions.regions",
    "load": "skpbas.persistence",
    "Result": "skpbas._features.results",
    "trim_memory": "skpbas._features.entries",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(_LAZY[name]), name)
    if name in __all__ or name == "distributed":  # needs an extra, so not in __all__
        return import_module(f"skpbas.{name}")
    raise AttributeError(f"module 'skpbas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
