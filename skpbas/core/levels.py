"""What networks that run level after level have in common."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class LevelNetwork(nn.Module):
    """Children that run one after the other, some of which are levels.

    Parameters
    ----------
    layers : sequence of str
        Names of the children whose maps are asked for; a subclass adds the children, none behind the last of these.
    """

    def __init__(self, layers: Sequence[str]) -> None:
        super().__init__()
        self.layers = tuple(layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return the map of every level in use, (B, C_l, H_l, W_l) each.

        Parameters
        ----------
        images : Tensor of shape (B, 3, H, W)
            Normalised by ImageNet's mean and deviation.
        """
        maps = {}
        x = images
        for name, module in self.named_children():
            x = module(x)
            maps[name] = x
        return [maps[name] for name in self.layers]
