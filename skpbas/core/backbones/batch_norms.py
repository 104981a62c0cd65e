"""Batch norms of a frozen network, folded into the convolutions before them: the same numbers from fewer operations."""

from __future__ import annotations

from itertools import pairwise

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Fold the batch norms of a network in evaluation mode, in place, wherever one follows a convolution.

    What follows is determined by the order of children in their parent, as in torchvision's ResNets; nothing else may
    read the output of the convolution.

    Parameters
    ----------
    network : nn.Module
        Frozen.

    Returns
    -------
    nn.Module
        The same network, with an ``Identity`` in place of each batch norm.
    """
    for parent in list(network.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                parent.add_module(name, fuse_conv_bn_eval(conv.eval(), norm.eval()))
                parent.add_module(norm_name, nn.Identity())
    return network
