"""Prediction with an exported detector: needs numpy, Pillow and ONNX Runtime or OpenVINO, and no torch.

:func:`skpbas.export.to_onnx` writes the file. It works where only these are installed:
``pip install --no-deps skpbas`` and ``pip install onnxruntime numpy pillow``.
"""

from __future__ import annotations

from skpbas.runtime._detector import OnnxDetector

__all__ = ["OnnxDetector"]
