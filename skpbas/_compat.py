"""The only module that imports names which scikit-learn or torch mark as private, or lack in some supported version.

Names of scikit-learn are resolved when they are first used, so that :mod:`skpbas.core` can import this module without
importing scikit-learn. Each group of names is listed with the reason for which no public name will do.
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
    # The checks behind `_parameter_constraints`: errors name the parameter and what it may be, as everywhere in
    # scikit-learn. There is no public form of them.
    "HasMethods": "sklearn.utils._param_validation",
    "Interval": "sklearn.utils._param_validation",
    "Options": "sklearn.utils._param_validation",
    "RealNotInt": "sklearn.utils._param_validation",
    "StrOptions": "sklearn.utils._param_validation",
    "validate_parameter_constraints": "sklearn.utils._param_validation",
    # Lengths and rows of everything that scikit-learn's meta-estimators accept: lists, arrays, frames, sparse matrices.
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
    """Takes the place of ``CallbackSupportMixin`` before scikit-learn 1.9: there is no ``set_callbacks``."""


def _unchanged(method: _F) -> _F:
    return method


def draws_progress(context: Any) -> bool:
    """Return whether a ProgressBar of scikit-learn belongs to a callback context or to one above it.

    A context tells nobody in public which callbacks it has.
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
    """oneDNN's convolution with weights in its own order, which torch offers through private operators only."""

    reorder: Callable[..., Tensor]
    convolve: Callable[..., Tensor]
    supports_bfloat16: bool

    def pack(self, weight: Tensor, geometry: Sequence[Any], input_shape: Sequence[int]) -> Tensor:
        """Return the weights (O, I, h, w) in the order of the kernels for images of a shape."""
        return self.reorder(weight, *geometry, list(input_shape))

    def conv2d(self, images: Tensor, packed: Tensor, bias: Tensor | None, geometry: Sequence[Any]) -> Tensor:
        """Convolve images (B, C, H, W); ``geometry``: padding, stride, dilation and groups."""
        return self.convolve(images, packed, bias, *geometry, "none", [], "")


def packed_operators() -> PackedOperators | None:
    """Return the operators; None where this build of torch has none, or on a processor where they were not tried."""
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch.backends.mkldnn.is_available():
        return None
    operators = torch.ops.mkldnn
    try:
        return PackedOperators(
            operators._reorder_convolution_weight,
            operators._convolution_pointwise,
            bool(operators._is_mkldnn_bf16_supported()),
        )
    except Exception:  # noqa: BLE001 - whatever a later torch makes of private names, it is no error of the user's
        return None


def version_of(tensor: Tensor) -> int:
    """Return a number that grows with every in-place operation on a tensor; there is no public name for it."""
    return int(tensor._version)
