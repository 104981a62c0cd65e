"""Sizes and places of what the tests of the command line draw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 64
DEFECT = slice(20, 36)
"""Rows and columns of the white square on defective images."""


def save(pixels: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path
