"""Private names of scikit-learn and torch, and names missing from some supported versions; all imported only here.

Names of scikit-learn are resolved on first use, so that :mod:`skpbas.core` can import this module without importing
scikit-learn. Each group of names states why no public name suffices.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TypeVar

import torch
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., Any])

_FROM_SKLEARN = {
    # Validation of `_parameter_constraints`, with the same error messages as scikit-learn; no public equivalent.
    "HasMethods": "sklearn.utils._param_validation",
    "Interval": "sklearn.utils._param_validation",
    "Options": "sklearn.utils._param_validation",
    "RealNotInt": "sklearn.utils._param_validation",
    "StrOptions": "sklearn.utils._param_validation",
    "validate_parameter_constraints": "sklearn.utils._param_validation",
    # Length and indexing of lists, arrays, data frames and sparse matrices; no public equivalent.
    "_num_samples": "sklearn.utils.validation",
    "_safe_indexing": "sklearn.utils",
}


def __getattr__(name: str) -> Any:
    if name in _FROM_SKLEARN:
        return getattr(import_module(_FROM_SKLEARN[name]), name)
    if name in ("CallbackSupportMixin", "with_callbacks"):
        try:
            return getattr(import_module("sklearn.callback"), name)
        except ImportError:  # scikit-learn before 1.9
            return {"CallbackSupportMixin": _NoCallbacks, "with_callbacks": _unchanged}[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


# scikit-learn's callbacks ---------------------------------------------------------------------------------


class _NoCallbacks:
    """Replaces ``CallbackSupportMixin`` before scikit-learn 1.9, without ``set_callbacks``."""


def _unchanged(method: _F) -> _F:
    return method


def draws_progress(context: Any) -> bool:
    """Return whether a callback context or one of its parents has a scikit-learn ProgressBar.

    The callbacks of a context have no public accessor.
    """
    progress_bar = import_module("sklearn.callback").ProgressBar
    while context is not None:
        if any(isinstance(callback, progress_bar) for callback in context._callbacks):
            return True
        context = context.parent
    return False


# torch's convolutions -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackedOperators:
    """oneDNN convolution with reordered weights, which torch exposes only as private operators."""

    reorder: Callable[..., Tensor]
    convolve: Callable[..., Tensor]
    supports_bfloat16: bool

    def pack(self, weight: Tensor, geometry: Sequence[Any], input_shape: Sequence[int]) -> Tensor:
        """Return the weights (O, I, h, w) reordered for images of a shape."""
        return self.reorder(weight, *geometry, list(input_shape))

    def conv2d(self, images: Tensor, packed: Tensor, bias: Tensor | None, geometry: Sequence[Any]) -> Tensor:
        """Convolve images (B, C, H, W); ``geometry``: padding, stride, dilation and groups."""
        return self.convolve(images, packed, bias, *geometry, "none", [], "")


def packed_operators() -> PackedOperators | None:
    """Return the operators, or None if this build of torch lacks them or the processor is untested."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return None
    operators = torch.ops.mkldnn
    try:
        return PackedOperators(
            operators._reorder_convolution_weight,
            operators._convolution_pointwise,
            bool(operators._is_mkldnn_bf16_supported()),
        )
    except Exception:  # noqa: BLE001 - a later torch may change private names in any way
        return None


def version_of(tensor: Tensor) -> int:
    """Return the in-place version counter of a tensor, which has no public accessor."""
    return int(tensor._version)
