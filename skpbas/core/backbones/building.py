"""Networks without weights, and random weights: built apart from torch's global state, whatever that is.

Modules draw their first weights from torch's global random stream when they are made. Drawing them elsewhere and
restoring the stream would not do: threads share it. So networks are made on the meta device, where nothing is drawn;
those that compute tensors while they are made, with every draw redirected to a generator.
"""

from __future__ import annotations

import inspect
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


_FLOATS = (torch.empty, torch.ones, torch.zeros, torch.full, torch.rand, torch.randn)
_PLACED = (
    *_FLOATS,
    torch.tensor,
    torch.arange,
    torch.linspace,
    torch.logspace,
    torch.eye,
    torch.randint,
    torch.randperm,
)
_DRAWS = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli, torch.multinomial),
    *(torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.bernoulli_, torch.Tensor.random_),
    *(torch.Tensor.exponential_, torch.Tensor.log_normal_, torch.Tensor.geometric_, torch.Tensor.cauchy_),
    *(f for f in vars(nn.init).values() if inspect.isfunction(f) and "generator" in inspect.signature(f).parameters),
}


class _Drawn(TorchFunctionMode):
    """Tensors that modules make are float32 and on the CPU, and random values are from a generator, in this thread."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.generator = generator

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in _PLACED and kwargs.get("device") is None:
            kwargs["device"] = "cpu"
        if func in _FLOATS and kwargs.get("dtype") is None:
            kwargs["dtype"] = torch.float32
        if func in _DRAWS and kwargs.get("generator") is None:
            kwargs["generator"] = self.generator
        return func(*args, **kwargs)


def with_drawn_weights(make: Callable[[], N], generator: torch.Generator) -> N:
    """Return the network that ``make`` returns, on the CPU and with its own initialization drawn from a generator.

    Parameters
    ----------
    make : callable
        Returns a network.
    generator : torch.Generator
        On the CPU.
    """
    with _Drawn(generator):
        return make().float()


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
