"""A fitted detector as one file: ONNX, which :mod:`skpbas.runtime` runs, or a program of ``torch.export``."""

from __future__ import annotations

from skpbas.export._onnx import to_onnx
from skpbas.export._torch import to_torch

__all__ = ["to_onnx", "to_torch"]
