"""Pickles of a fitted detector: made on a GPU, they open on a machine without one."""

from __future__ import annotations

import copy
from typing import Any

import torch

from skpbas._devices import is_available
from skpbas._training import scorer_arithmetic

_ON_DEVICE = ("feature_extractor_", "center_", "projector_", "discriminator_", "_scorer", "_renderer")


class OpensAnywhere:
    """Saves a fitted detector's tensors from the CPU, and opens it on its device where there is one."""

    device_: torch.device
    precision: str
    _scorer: Any

    def __getstate__(self) -> dict[str, Any]:
        # tensors leave for the CPU, so that a detector fitted on a GPU opens anywhere
        state = dict(super().__getstate__())  # type: ignore[call-overload]
        if "device_" in state and state["device_"].type != "cpu":
            for name in _ON_DEVICE:
                if state[name] is not None:
                    state[name] = copy.deepcopy(state[name]).to("cpu")
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        if "device_" in state:
            self.device_ = state["device_"] if is_available(state["device_"]) else torch.device("cpu")
            for name in _ON_DEVICE:
                if state[name] is not None:
                    setattr(self, name, state[name].to(self.device_))
            self._scorer.autocast = scorer_arithmetic(self._scorer, self.precision, self.device_)
