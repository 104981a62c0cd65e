"""Convolutions that keep their weights in the order in which the CPU's kernels read them.

oneDNN computes torch's convolutions on a CPU and wants weights in an order of its own. torch brings them there at every
call, which for one image takes up to an eighth of a whole pass. A frozen network can do it once.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

_ORDERS_WEIGHTS = (
    platform.machine().lower() in ("x86_64", "amd64")  # elsewhere not tried
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_reorder_convolution_weight")
    and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    and hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
)


class PackedConv2d(nn.Conv2d):
    """A frozen convolution whose weights are brought into the kernels' order once, at its first call.

    Its results are those of ``nn.Conv2d``, and so are its parameters, state dict and pickle: the second copy of the
    weights is made anew where they have changed. Where there is no such order (on a GPU, where a gradient is asked for,
    in ``torch.compile`` and ``torch.export``) it is an ``nn.Conv2d``.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.packing import PackedConv2d
    >>> conv = torch.nn.Conv2d(16, 32, 3, padding=1).requires_grad_(False)
    >>> images = torch.rand(1, 16, 8, 8)
    >>> torch.allclose(PackedConv2d.of(conv)(images), conv(images), atol=1e-6)
    True
    """

    # what was packed, held so that no other weights come to lie at its address; its version, the type, the result
    _packed: tuple[Tensor, int, torch.dtype, Tensor] | None = None

    @classmethod
    def of(cls, conv: nn.Conv2d) -> Self:
        """Return a convolution that shares the parameters of ``conv``."""
        packed = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        packed.weight, packed.bias = conv.weight, conv.bias
        return packed.train(conv.training)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else input.dtype
        if not self._can_pack(input, weight, dtype):
            return super()._conv_forward(input, weight, bias)
        geometry: tuple[Any, ...] = (self.padding, self.stride, self.dilation, self.groups)
        packed, of = self._packed, (weight._version, dtype)
        if packed is None or packed[0].data_ptr() != weight.data_ptr() or packed[1:3] != of:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            ordered: Tensor = reorder(weight.detach().to(dtype).contiguous(), *geometry, list(input.shape))
            packed = self._packed = (weight.detach(), *of, ordered)
        if bias is not None:
            bias = bias.to(dtype)
        convolve = torch.ops.mkldnn._convolution_pointwise
        output: Tensor = convolve(input.to(dtype), packed[3], bias, *geometry, "none", [], "")
        return output

    def _can_pack(self, images: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
        return bool(
            _ORDERS_WEIGHTS
            and torch.backends.mkldnn.enabled
            and type(images) is Tensor  # no tracer's stand-in
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            and images.device.type == weight.device.type == "cpu"
            and images.dtype in (torch.float32, dtype)
            and weight.dtype == torch.float32
            and (dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()))
            and not (torch.is_grad_enabled() and (images.requires_grad or weight.requires_grad))
            and not weight.is_inference()  # has no version
            and self.padding_mode == "zeros"
            and not isinstance(self.padding, str)
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self._packed = None  # on its way to another device or type
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def pack_convolutions(network: nn.Module) -> nn.Module:
    """Put a :class:`PackedConv2d` in the place of every convolution of a frozen network, and return the network."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d:
                parent.add_module(name, PackedConv2d.of(child))
    return network
