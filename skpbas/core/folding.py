"""The same numbers with fewer operations.

Projector, the first layer of the discriminator and its batch norm are one affine map of the patch features, which are
themselves a sum of one part per level. Bilinear interpolation commutes with an affine map, so each part is mapped at
the resolution of its own level.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skpbas.core.aggregation import PatchAggregator
from skpbas.core.backbones.packing import PackedConv2d
from skpbas.core.networks import Discriminator, Projector


class LevelAffine(nn.Module):
    """An affine map of the patch features t, computed from the levels' parts of t without computing t.

    Parameters
    ----------
    aggregator : PatchAggregator
        Makes the parts.
    weight : Tensor of shape (n, d)
    bias : Tensor of shape (n,)
    """

    def __init__(self, aggregator: PatchAggregator, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.parts = nn.ModuleList()
        for level, outputs in enumerate(aggregator.outputs):
            columns = weight[:, outputs]
            part = nn.utils.skip_init(PackedConv2d, columns.shape[1], len(weight), 1, bias=level == 0, device="cpu")
            part.weight = _frozen(columns[:, :, None, None])
            if level == 0:
                part.bias = _frozen(bias)
            self.parts.append(part)

    def forward(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return (B, P, n) for the parts (B, n_l, H_l, W_l) of ``aggregator.pool``, shallow first."""
        total: Tensor | None = None
        for part, level in zip(self.parts, pooled, strict=True):
            of_level = part(level.contiguous(memory_format=torch.channels_last))  # (B, n, H_l, W_l)
            if total is None:
                total = of_level
            elif of_level.shape[-2:] == total.shape[-2:]:
                total.add_(of_level)
            else:
                total.add_(F.interpolate(of_level, total.shape[-2:], mode="bilinear", align_corners=False))
        assert total is not None
        return total.permute(0, 2, 3, 1).flatten(1, 2)


def hidden_map(projector: Projector, discriminator: Discriminator) -> tuple[Tensor, Tensor]:
    """Return the affine map from t to the input of the discriminator's activation.

    Projector, first layer and batch norm in evaluation mode, combined: a weight (hidden, d) and a bias (hidden,),
    float64 and on the CPU.
    """
    phi = copy.deepcopy(projector.linear).cpu().double()  # not every device has float64
    first = copy.deepcopy(discriminator.hidden).cpu().double()
    norm = copy.deepcopy(discriminator.norm).cpu().double()
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale[:, None] * (first.weight @ phi.weight), scale * (first(phi.bias) - norm.running_mean) + norm.bias


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().float().clone(memory_format=torch.contiguous_format), requires_grad=False)
