"""Copying and pickling of fitted detectors, across machines with and without a GPU; damaged files are refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Self

import torch
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skpbas._features.entries import check_folder
from skpbas._training.completion import scorer_precision
from skpbas._training.deferred import Deferred
from skpbas._training.sealing import opened, sealed, stores_itself
from skpbas.core.backbones.levels import HookedModule
from skpbas.core.devices import callers_modes_left, is_available, resolve_device

_ON_DEVICE = ("feature_extractor_", "center_", "projector_", "discriminator_", "model_")
_ONLY_DURING_FIT = ("_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx")
_NOT_STORED = (*_ONLY_DURING_FIT, "_opened")
_SHARED = "_shared_tensors"


class SealingMixin:
    """Adds format number, versions and digest to the state of a pickled estimator, and checks them on opening."""

    def __getstate__(self) -> dict[str, Any]:
        state: Any = super().__getstate__()
        return sealed(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(opened(state, self))  # type: ignore[misc]


class PicklingMixin:
    """Moves a fitted detector's tensors; pickles them from the CPU, and restores them to its device if available."""

    _snapshot: Callable[[], Any]
    _draft: Callable[[], Any]
    _adopt: Callable[[Any], Any]
    device_: torch.device
    model_: Any
    backbone: Any
    memory: Any

    _opened = False  # from a pickle: prediction does not write to the ``memory`` folder

    def _begin_fit(self) -> None:
        check_folder(self.memory)

    def to(self, device: str | torch.device) -> Self:
        """Move the fitted detector to another device.

        Threads that predict meanwhile finish where they began. The parameter ``device`` stays, for the next ``fit``.

        Parameters
        ----------
        device : str or torch.device
            Where to predict from now on; "auto": cuda, mps or cpu, the first available.

        Returns
        -------
        PBASDetector
            The detector itself, with another ``device_``.

        Raises
        ------
        NotFittedError
            The detector is not fitted.
        ValueError
            There is no such device.
        """
        check_is_fitted(self)
        device, moved = resolve_device(device), self._draft()
        if device == self.device_:
            return self
        with callers_modes_left(grad=False):
            parts = copy.deepcopy({name: getattr(moved, name) for name in _ON_DEVICE})  # at once: they share modules
            moved._place(parts, device, moved._reading.precision)
        self._adopt(moved)
        return self

    def _place(self, parts: dict[str, Any], device: torch.device, precision: str) -> None:
        for name, part in parts.items():
            setattr(self, name, None if part is None else part.to(device))
        self.device_, model = device, self.model_
        model.patch_scorer.precision = scorer_precision(model.patch_scorer, precision, device)

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update({k: v for k, v in vars(self).items() if k not in _ONLY_DURING_FIT})
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in super().__getstate__().items() if k not in _NOT_STORED}  # type: ignore[attr-defined]
        for name, value in state.items():
            if isinstance(value, Deferred):
                state[name] = getattr(self, name)  # else it pickles the features
        if "device_" in state and state["device_"].type != "cpu":
            on_device = {name: state[name] for name in _ON_DEVICE}
            state |= {k: v if v is None else v.to("cpu") for k, v in copy.deepcopy(on_device).items()}
        if "feature_extractor_" in state and isinstance(state["backbone"], nn.Module):
            state |= _with_shared_tensors(state["backbone"], state["feature_extractor_"].backbone)
        return sealed(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = opened(state, self)
        if torch.is_inference_mode_enabled():  # tensors made there would have no version, and pack no weights
            with torch.inference_mode(False):
                state = copy.deepcopy(state)
        shared = state.pop(_SHARED, {})
        super().__setstate__(state)  # type: ignore[misc]
        self._opened = True
        if "device_" not in state:
            return
        if shared:
            _separate(self.backbone, shared)
        device = state["device_"]
        if not is_available(device):
            warnings.warn(
                f"this detector computed on {device}, which this machine does not have: it computes on the CPU now, "
                "and to(device) moves it",
                stacklevel=2,
            )
            device = torch.device("cpu")
        self._place({name: state[name] for name in _ON_DEVICE}, device, state["_reading"].precision)


def _with_shared_tensors(given: nn.Module, frozen: nn.Module) -> dict[str, Any]:
    """Return the state of a module given as ``backbone``; tensors equal to those of the extractor's copy are shared.

    Parameters
    ----------
    given : nn.Module
        Not changed.
    frozen : nn.Module
        The extractor's backbone, which holds a copy of the module.
    """
    if not isinstance(frozen, HookedModule) or any(stores_itself(type(module)) for module in given.modules()):
        return {}
    partners = dict(_tensors(frozen.module))
    memo: dict[int, Any] = {}
    shared: dict[str, bool] = {}
    for name, tensor in _tensors(given):
        partner = memo.get(id(tensor), partners.get(name))
        if partner is not None and _are_equal(tensor, partner):
            shared[name] = tensor.requires_grad
            memo[id(tensor)] = partner
        else:
            memo.setdefault(id(tensor), tensor)  # the copy below uses it as it is
    return {"backbone": copy.deepcopy(given, memo), _SHARED: shared} if shared else {}


def _separate(module: nn.Module, shared: dict[str, bool]) -> None:
    """Replace the tensors that a module shares with the extractor by copies."""
    own: dict[int, Tensor] = {}
    for name, requires_grad in shared.items():
        path, _, leaf = name.rpartition(".")
        parent = module.get_submodule(path)
        tensor = getattr(parent, leaf)
        if id(tensor) not in own:
            cloned = tensor.detach().clone(memory_format=torch.contiguous_format)
            own[id(tensor)] = nn.Parameter(cloned, requires_grad) if isinstance(tensor, nn.Parameter) else cloned
        setattr(parent, leaf, own[id(tensor)])


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and buffers by name; tied ones under each of their names."""
    yield from module.named_parameters(remove_duplicate=False)
    yield from module.named_buffers(remove_duplicate=False)


def _are_equal(tensor: Tensor, other: Tensor) -> bool:
    if type(tensor) is not type(other) or type(tensor) not in (Tensor, nn.Parameter):
        return False
    alike = tensor.dtype == other.dtype and tensor.device == other.device and tensor.layout == torch.strided
    return alike and torch.equal(tensor, other)
