"""The small pretrained network that is shipped with the package: ``backbone="embedded"``.

Depthwise-separable residual blocks with the levels, strides and channels of a ResNet18, trained to reproduce the
feature maps of one with about a sixth of the operations. In training every convolution has a batch norm; in the shipped
form they are folded into the convolutions.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from importlib import resources

from safetensors.torch import load
from torch import Tensor, nn

from skpbas.core.backbones.batch_norms import fold_batch_norms
from skpbas.core.backbones.building import without_weights
from skpbas.core.backbones.levels import LevelNetwork

LEVELS = ("layer1", "layer2", "layer3")
WEIGHTS_FILE = "embedded.safetensors"

WIDTHS = (48, 128, 256)
"""Channels of the levels; those of layer2 and layer3 are the same as in ResNet18."""

DEPTHS = (2, 3, 4)
"""Residual blocks of the levels."""

_BATCH_NORM_MOMENTUM = 0.02  # statistics over about the last 50 batches
_FIRST_GAIN = 0.2  # of what a block adds, so that values do not grow from block to block before training


def _conv(
    inputs: int,
    outputs: int,
    side: int,
    *,
    stride: int = 1,
    depthwise: bool = False,
    gain: float = 1.0,
    batch_norm: bool,
) -> nn.Sequential:
    """Return a convolution that keeps the size (except for its stride), with a batch norm or a bias."""
    groups = inputs if depthwise else 1
    conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, groups=groups, bias=not batch_norm)
    if not batch_norm:
        return nn.Sequential(conv)
    norm = nn.BatchNorm2d(outputs, momentum=_BATCH_NORM_MOMENTUM)
    nn.init.constant_(norm.weight, gain)
    return nn.Sequential(conv, norm)


class Block(nn.Module):
    """5x5 in each channel, then 1x1 across channels, added to the input.

    Parameters
    ----------
    channels : int
    batch_norm : bool
        The form for training.
    """

    def __init__(self, channels: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.spatial = _conv(channels, channels, 5, depthwise=True, batch_norm=batch_norm)
        self.across = _conv(channels, channels, 1, gain=_FIRST_GAIN, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return a feature map of the same shape, (B, C, H, W), not negative."""
        y: Tensor = self.across(self.spatial(x).relu_())
        return y.add_(x).relu_()


class Halving(nn.Module):
    """Half the height and width and more channels: 5x5 in each channel, then 1x1 across them.

    Parameters
    ----------
    inputs, outputs : int
        Channels.
    batch_norm : bool
        The form for training.
    """

    def __init__(self, inputs: int, outputs: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.spatial = _conv(inputs, inputs, 5, stride=2, depthwise=True, batch_norm=batch_norm)
        self.across = _conv(inputs, outputs, 1, batch_norm=batch_norm)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, outputs, H/2, W/2) for (B, inputs, H, W), rounded up."""
        y: Tensor = self.across(self.spatial(x))
        return y.relu_()


class EmbeddedBackbone(LevelNetwork):
    """The network from its stem to the deepest level in use, with random weights.

    Parameters
    ----------
    layers : sequence of str, default=("layer2", "layer3")
        Levels to return, out of ``layer1``, ``layer2`` and ``layer3``: strides 4, 8 and 16; 48, 128 and 256 channels.
    batch_norm : bool, default=False
        The form for training, with a batch norm after every convolution.

    Raises
    ------
    ValueError
        A level that this network does not have.
    """

    def __init__(self, layers: Sequence[str] = ("layer2", "layer3"), *, batch_norm: bool = False) -> None:
        unknown = [name for name in layers if name not in LEVELS]
        if unknown:
            raise ValueError(
                f"layers={tuple(layers)!r}: the embedded backbone has no {unknown[0]!r}; choose from {LEVELS}"
            )
        super().__init__(layers)
        deepest = max(LEVELS.index(name) for name in layers)
        first, *_ = WIDTHS
        self.stem = nn.Sequential(
            _conv(3, 16, 3, stride=2, batch_norm=batch_norm),
            nn.ReLU(inplace=True),
            _conv(16, first, 3, stride=2, batch_norm=batch_norm),
            nn.ReLU(inplace=True),
        )
        inputs = first
        for name, channels, depth in list(zip(LEVELS, WIDTHS, DEPTHS, strict=True))[: deepest + 1]:
            halving = [Halving(inputs, channels, batch_norm=batch_norm)] if name != "layer1" else []
            blocks = [Block(channels, batch_norm=batch_norm) for _ in range(depth)]
            self.add_module(name, nn.Sequential(*halving, *blocks))
            inputs = channels


def shipped_form(network: EmbeddedBackbone) -> EmbeddedBackbone:
    """Return the shipped form: the running statistics of every batch norm are folded into its convolution.

    Parameters
    ----------
    network : EmbeddedBackbone
        With ``batch_norm=True``; it is not changed.
    """
    folded = without_weights(lambda: EmbeddedBackbone(network.layers))
    folded.load_state_dict(fold_batch_norms(copy.deepcopy(network).eval()).state_dict(), assign=True)
    return folded.requires_grad_(False).eval()


def load_embedded(layers: Sequence[str] = ("layer2", "layer3")) -> EmbeddedBackbone:
    """Return the network with its shipped weights, frozen; nothing is downloaded.

    Parameters
    ----------
    layers : sequence of str, default=("layer2", "layer3")
        Levels to return, out of ``layer1``, ``layer2`` and ``layer3``.

    Returns
    -------
    EmbeddedBackbone
        float32, in evaluation mode.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.backbones.embedded import load_embedded
    >>> [tuple(level.shape) for level in load_embedded()(torch.zeros(1, 3, 64, 96))]
    [(1, 128, 8, 12), (1, 256, 4, 6)]
    """
    network = without_weights(lambda: EmbeddedBackbone(layers))
    state = load(resources.files("skpbas.core.backbones").joinpath(WEIGHTS_FILE).read_bytes())
    network.load_state_dict({name: state[name].float() for name in network.state_dict()}, assign=True)
    return network.requires_grad_(False).eval()
