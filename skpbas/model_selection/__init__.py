"""Model selection: splitters that train on normal images only, and synthetic validation sets."""

from skpbas.model_selection._splitters import GroupNormalKFold, NormalKFold, NormalShuffleSplit
from skpbas.model_selection._synthetic import synthetic_validation

__all__ = ["GroupNormalKFold", "NormalKFold", "NormalShuffleSplit", "synthetic_validation"]
