"""Copying and pickling of fitted detectors, across machines with and without a GPU."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch

from skpbas._training.completion import scorer_precision
from skpbas._training.deferred import Deferred
from skpbas.core.devices import is_available
from skpbas.core.model import PBASModel

_ON_DEVICE = ("feature_extractor_", "center_", "projector_", "discriminator_", "model_")
_ONLY_DURING_FIT = ("_callback_fit_ctx", "_skl_callbacks_to_teardown", "_parent_callback_ctx")


class PicklingMixin:
    """Pickles the tensors of a fitted detector from the CPU, and restores them to its device if available."""

    device_: torch.device
    precision: str
    model_: Any

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update({k: v for k, v in vars(self).items() if k not in _ONLY_DURING_FIT})
        return copied

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in super().__getstate__().items() if k not in _ONLY_DURING_FIT}  # type: ignore[attr-defined]
        for name, value in state.items():
            if isinstance(value, Deferred):
                state[name] = getattr(self, name)  # else it pickles the features
        if "device_" in state and state["device_"].type != "cpu":
            on_device = {name: state[name] for name in _ON_DEVICE}
            state |= {k: v if v is None else v.to("cpu") for k, v in copy.deepcopy(on_device).items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if torch.is_inference_mode_enabled():  # tensors made there would have no version, and pack no weights
            with torch.inference_mode(False):
                state = copy.deepcopy(state)
        super().__setstate__(state)  # type: ignore[misc]
        if "device_" not in state:
            return
        self.device_ = state["device_"] if is_available(state["device_"]) else torch.device("cpu")
        for name in _ON_DEVICE:
            if state[name] is not None:
                setattr(self, name, state[name].to(self.device_))
        model: PBASModel = self.model_
        model.patch_scorer.precision = scorer_precision(model.patch_scorer, self.precision, self.device_)
