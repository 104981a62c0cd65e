"""Convolutions that keep their weights in the order in which the CPU's kernels read them.

oneDNN computes torch's convolutions on a CPU and wants weights in an order of its own. torch converts them at every
call, which for one image takes up to an eighth of a whole pass. A frozen network can convert them once.

torch offers this through private operators. So nothing is taken on trust: the first result for every kind of
convolution is compared with that of ``nn.Conv2d``, and whatever differs or fails is computed by ``nn.Conv2d`` from then
on.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from skpbas._compat import PackedOperators, packed_operators, version_of

_ROUNDING = 32  # units in the last place of the largest value that two orders of summation may differ by


class PackedConv2d(nn.Conv2d):
    """A frozen convolution whose weights are converted to the kernels' order once, at its first call.

    Its results, parameters, state dict and pickle are those of ``nn.Conv2d``. Weights that have changed are converted
    again. Where there is no such order (on a GPU, where a gradient is needed, in ``torch.compile`` and
    ``torch.export``) it is an ``nn.Conv2d``.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.backbones.packing import PackedConv2d
    >>> conv = torch.nn.Conv2d(16, 32, 3, padding=1).requires_grad_(False)
    >>> images = torch.rand(1, 16, 8, 8)
    >>> torch.allclose(PackedConv2d.of(conv)(images), conv(images), atol=1e-6)
    True
    """

    # what was packed, held so that no other weights are allocated at its address; its version, the type, the result
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
        operators = _operators()
        if operators is None or not self._can_pack(input, weight, dtype, operators):
            return super()._conv_forward(input, weight, bias)
        geometry = (self.padding, self.stride, self.dilation, self.groups)
        kind = (weight.shape, bias is None, geometry, input.shape, input.stride(), dtype)
        proven = _PROVEN.get(kind)
        if proven is False:
            return super()._conv_forward(input, weight, bias)
        try:
            output = self._convolve(input, weight, bias, geometry, dtype, operators)
        except Exception:  # noqa: BLE001 - private operators may change in any way; the plain convolution remains
            _PROVEN[kind] = False
            return super()._conv_forward(input, weight, bias)
        if proven:
            return output
        plain = super()._conv_forward(input, weight, bias)
        if not plain.isfinite().all():
            return plain  # such values prove nothing
        _PROVEN[kind] = _equal_but_for_rounding(output, plain)
        return output if _PROVEN[kind] else plain  # the same to the last bit at the first call and at later ones

    def _convolve(
        self,
        images: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: tuple[Any, ...],
        dtype: torch.dtype,
        operators: PackedOperators,
    ) -> Tensor:
        packed, of = self._packed, (version_of(weight), dtype)
        if packed is None or packed[0].data_ptr() != weight.data_ptr() or packed[1:3] != of:
            ordered = operators.pack(weight.detach().to(dtype).contiguous(), geometry, images.shape)
            packed = self._packed = (weight.detach(), *of, ordered)
        return operators.conv2d(images.to(dtype), packed[3], None if bias is None else bias.to(dtype), geometry)

    def _can_pack(self, images: Tensor, weight: Tensor, dtype: torch.dtype, operators: PackedOperators) -> bool:
        return bool(
            torch.backends.mkldnn.enabled
            and type(images) is Tensor  # not what a tracer passes in its place
            and not torch.compiler.is_compiling()
            and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            and images.device.type == weight.device.type == "cpu"
            and images.dtype in (torch.float32, dtype)
            and weight.dtype == torch.float32
            and (dtype == torch.float32 or (dtype == torch.bfloat16 and operators.supports_bfloat16))
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


_PROVEN: dict[Hashable, bool] = {}
"""For every kind of convolution that this process has computed: whether packed weights gave the plain result."""

_operators = cache(packed_operators)


def _equal_but_for_rounding(output: Any, plain: Tensor) -> bool:
    if not isinstance(output, Tensor) or output.shape != plain.shape or output.dtype != plain.dtype:
        return False
    bound = _ROUNDING * torch.finfo(plain.dtype).eps * plain.abs().max()
    return bool((output - plain).abs().max() <= bound)


def pack_convolutions(network: nn.Module) -> nn.Module:
    """Replace every convolution of a frozen network by a :class:`PackedConv2d`, and return the network.

    Those with hooks stay.
    """
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Conv2d and not child._forward_hooks:
                parent.add_module(name, PackedConv2d.of(child))
    return network
