"""The same numbers from fewer operations at inference (METHOD "FAST").

Two things fold. A batch norm behind a convolution is an affine map of its output, and goes into its weights. And
projector, the discriminator's first layer and its batch norm are one affine map of the patch features, which are
themselves a sum of one part a level: each part goes through the map at its own level's resolution, since bilinear
interpolation commutes with it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skpbas.core.aggregation import PatchAggregator
from skpbas.core.centers import distance_to_center
from skpbas.core.networks import Discriminator, Projector


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold the batch norms of a network in evaluation mode, in place, wherever one follows a convolution.

    "Follows" goes by the order of children in their parent, as torchvision's ResNets have them; nothing else may read
    the convolution's output.

    Parameters
    ----------
    network : nn.Module
        Frozen.

    Returns
    -------
    nn.Module
        The same network; where a batch norm was, there is an ``Identity``.
    """
    for parent in list(network.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent.add_module(name, fuse_conv_bn_eval(conv.eval(), norm.eval()))
                parent.add_module(norm_name, nn.Identity())
    return network


class LevelAffine(nn.Module):
    """An affine map of the patch features t, computed from the level maps without writing t out.

    Parameters
    ----------
    aggregator : PatchAggregator
        Makes t out of the levels.
    weight : Tensor of shape (n, d)
    bias : Tensor of shape (n,)
    """

    def __init__(self, aggregator: PatchAggregator, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.pooling = aggregator.levels
        self.parts = nn.ModuleList()
        for level, outputs in enumerate(aggregator.outputs):
            columns = weight[:, outputs]
            part = nn.utils.skip_init(nn.Conv2d, columns.shape[1], len(weight), 1, bias=level == 0)
            part.weight = _frozen(columns[:, :, None, None])
            if level == 0:
                part.bias = _frozen(bias)
            self.parts.append(part)

    @torch.no_grad()
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return (B, P, n) for level maps (B, C_l, H_l, W_l), shallow first."""
        total: Tensor | None = None
        for pooling, part, level in zip(self.pooling, self.parts, maps, strict=True):
            of_level = part(pooling(level).contiguous(memory_format=torch.channels_last))  # (B, n, H_l, W_l)
            if total is None:
                total = of_level
            elif of_level.shape[-2:] == total.shape[-2:]:
                total.add_(of_level)
            else:
                total.add_(F.interpolate(of_level, total.shape[-2:], mode="bilinear", align_corners=False))
        assert total is not None
        return total.permute(0, 2, 3, 1).flatten(1, 2)


class FoldedDiscriminator(nn.Module):
    """Level maps to the logits of s = D(phi(t)): aggregation, projector and discriminator in one (METHOD 6).

    Parameters
    ----------
    aggregator : PatchAggregator
    projector : Projector
    discriminator : Discriminator
        Trained; they stay as they are.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.aggregation import PatchAggregator
    >>> from skpbas.core.folding import FoldedDiscriminator
    >>> from skpbas.core.networks import Discriminator, Projector
    >>> generator = torch.Generator().manual_seed(0)
    >>> aggregator = PatchAggregator([16, 32], patch_size=3, feature_dim=48)
    >>> folded = FoldedDiscriminator(aggregator, Projector(48, generator), Discriminator(48, 64, generator))
    >>> folded([torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)]).shape
    torch.Size([2, 64])
    """

    def __init__(self, aggregator: PatchAggregator, projector: Projector, discriminator: Discriminator) -> None:
        super().__init__()
        self.hidden = LevelAffine(aggregator, *hidden_map(projector, discriminator))
        self.slope = discriminator.activation.negative_slope
        self.output = _frozen(discriminator.output.weight[0])  # (hidden,)

    @torch.no_grad()
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits (B, P) for level maps (B, C_l, H_l, W_l), shallow first."""
        return F.leaky_relu_(self.hidden(maps), self.slope) @ self.output


class FoldedDistance(nn.Module):
    """Level maps to s = ||phi(t) - c*||: aggregation and projector in one, then the nearest centre (METHOD 6).

    Parameters
    ----------
    aggregator : PatchAggregator
    projector : Projector
        Trained; it stays as it is.
    center : Tensor of shape (P, d)
    """

    center: Tensor

    def __init__(self, aggregator: PatchAggregator, projector: Projector, center: Tensor) -> None:
        super().__init__()
        linear = copy.deepcopy(projector.linear).double()
        self.projected = LevelAffine(aggregator, linear.weight, linear.bias)
        self.register_buffer("center", center)

    @torch.no_grad()
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the distances (B, P) for level maps (B, C_l, H_l, W_l), shallow first."""
        u = self.projected(maps)
        return distance_to_center(u.flatten(0, 1), self.center).view(u.shape[:2])


def hidden_map(projector: Projector, discriminator: Discriminator) -> tuple[Tensor, Tensor]:
    """Return what leads from t to the hidden layer's activation as one weight (hidden, d) and bias (hidden,), float64.

    Projector, first layer and batch norm in evaluation mode are one affine map.
    """
    phi = copy.deepcopy(projector.linear).double()
    first = copy.deepcopy(discriminator.hidden).double()
    norm = copy.deepcopy(discriminator.norm).double()
    assert norm.running_var is not None
    assert norm.running_mean is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return scale[:, None] * (first.weight @ phi.weight), scale * (first(phi.bias) - norm.running_mean) + norm.bias


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().float().clone(memory_format=torch.contiguous_format), requires_grad=False)
