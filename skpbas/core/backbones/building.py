"""Networks without weights, and random weights: built apart from torch's global state, whatever that is.

Modules draw their first weights from torch's global random stream when they are made. Drawing them elsewhere and
restoring the stream would not do: threads share it. So networks are made on the meta device, where nothing is drawn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

N = TypeVar("N", bound=nn.Module)

_FACTORIES = (torch.empty, torch.ones, torch.zeros, torch.full, torch.tensor)


class _Unallocated(TorchFunctionMode):
    """Tensors that modules make are float32 and on the meta device, in this thread.

    ``with torch.device("meta")`` would also write a global variable of torch.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _FACTORIES:
            kwargs["device"] = "meta"
            if func is not torch.tensor and kwargs.get("dtype") is None:
                kwargs["dtype"] = torch.float32  # not the caller's default
        return func(*args, **kwargs)


def without_weights(make: Callable[[], N]) -> N:
    """Return the network that ``make`` returns, its tensors on the meta device, with all its floats in float32."""
    with _Unallocated():
        return make()


def allocate(network: nn.Module) -> None:
    """Move a network made by :func:`without_weights` to the CPU, in place; only its batch norms get values."""
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # ones and zeros


def draw_resnet_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Draw the random weights that torchvision gives the convolutions of its ResNets, in place.

    Parameters
    ----------
    network : nn.Module
        Its convolutions have no bias.
    generator : torch.Generator
        On the CPU; what the weights are drawn from.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
