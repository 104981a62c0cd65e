"""The threshold that ``contamination="auto"`` sets, from normal images alone (METHOD, "Threshold")."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def auto_offset(scores: NDArray[np.float64]) -> float:
    """Return the offset."""
    return float(np.quantile(scores, 0.01))
