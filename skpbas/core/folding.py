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
        phi = copy.deepcopy(projector.linear).double()
        first = copy.deepcopy(discriminator.hidden).double()
        norm = copy.deepcopy(discriminator.norm).double()
        assert norm.running_var is not None
        assert norm.running_mean is not None
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        weight = scale[:, None] * (first.weight @ phi.weight)  # (hidden, d)
        bias = scale * (first(phi.bias) - norm.running_mean) + norm.bias
        self.pooling = aggregator.levels
        self.parts = nn.ModuleList()
        for level, pooling in enumerate(aggregator.levels):
            columns = weight[:, pooling.first_output : pooling.end_output]
            part = nn.utils.skip_init(nn.Conv2d, columns.shape[1], len(weight), 1, bias=level == 0)
            part.weight = _frozen(columns[:, :, None, None])
            if level == 0:
                part.bias = _frozen(bias)
            self.parts.append(part.to(memory_format=torch.channels_last))
        self.slope = discriminator.activation.negative_slope
        self.output = _frozen(discriminator.output.weight[0])  # (hidden,)

    @torch.no_grad()
    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the logits (B, P) for level maps (B, C_l, H_l, W_l), shallow first."""
        hidden: Tensor | None = None
        for pooling, part, level in zip(self.pooling, self.parts, maps, strict=True):
            of_level = part(pooling(level).contiguous(memory_format=torch.channels_last))  # (B, hidden, H_l, W_l)
            if hidden is None:
                hidden = of_level
            elif of_level.shape[-2:] == hidden.shape[-2:]:
                hidden.add_(of_level)
            else:
                hidden.add_(F.interpolate(of_level, hidden.shape[-2:], mode="bilinear", align_corners=False))
        assert hidden is not None
        activated = F.leaky_relu_(hidden, self.slope).permute(0, 2, 3, 1)
        return (activated @ self.output).flatten(1)


def _frozen(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values.detach().float().contiguous(), requires_grad=False)
