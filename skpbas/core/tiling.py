"""Overlapping tiles of large images: cut before the network, and their anomaly maps blended after it."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

OVERLAP = 1 / 8
"""Smallest overlap of neighboring tiles, as a share of their side."""


def tile_starts(length: int, side: int) -> list[int]:
    """Return where tiles start along one axis: evenly spread, the first and the last at the edges.

    Examples
    --------
    >>> from skpbas.core.tiling import tile_starts
    >>> tile_starts(256, 256), tile_starts(600, 256)
    ([0], [0, 172, 344])
    """
    if length <= side:
        return [0]
    step = side - max(round(side * OVERLAP), 1)
    n_tiles = 1 + -(-(length - side) // step)
    return [round(i * (length - side) / (n_tiles - 1)) for i in range(n_tiles)]


class Tiling(nn.Module):
    """Overlapping tiles that cover images of one shape.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the images, in pixels.
    side : int
        Side of a tile, which is shorter along an axis on which the images are.

    Attributes
    ----------
    tile_shape : (int, int)
        Height and width of a tile.
    n_tiles : int
        Tiles of an image.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.tiling import Tiling
    >>> tiling = Tiling((300, 200), side=128)
    >>> tiles = tiling.cut(torch.rand(2, 3, 300, 200))
    >>> tiles.shape, tiling.n_tiles
    (torch.Size([12, 3, 128, 128]), 6)
    >>> tiling.blend(tiles[:, 0]).shape
    torch.Size([2, 300, 200])
    """

    row_weights: Tensor
    column_weights: Tensor

    def __init__(self, shape: tuple[int, int], side: int) -> None:
        super().__init__()
        self.shape = shape
        self.tile_shape = min(side, shape[0]), min(side, shape[1])
        self.tops, self.lefts = tile_starts(shape[0], side), tile_starts(shape[1], side)
        self.n_tiles = len(self.tops) * len(self.lefts)
        for name, starts, tile, length in zip(
            ("row_weights", "column_weights"), (self.tops, self.lefts), self.tile_shape, shape, strict=True
        ):
            self.register_buffer(name, _blending_weights(starts, tile, length), persistent=False)

    def cut(self, images: Tensor) -> Tensor:
        """Return the tiles (B * n_tiles, C, h, w) of images (B, C, H, W), row by row of each image."""
        height, width = self.tile_shape
        tiles = [images[..., top : top + height, left : left + width] for top in self.tops for left in self.lefts]
        return torch.stack(tiles, dim=1).flatten(0, 1)

    def tile(self, image: Tensor, index: int) -> Tensor:
        """Return one tile (C, h, w) of an image (C, H, W), without a copy."""
        row, column = divmod(index, len(self.lefts))
        (top, left), (height, width) = (self.tops[row], self.lefts[column]), self.tile_shape
        return image[..., top : top + height, left : left + width]

    def blend(self, maps: Tensor) -> Tensor:
        """Return the maps (B, H, W) of images from those of their tiles (B * n_tiles, h, w).

        Where tiles overlap, the weight of each falls linearly toward its edge, so that there are no seams.
        """
        height, width = self.tile_shape
        grid = maps.unflatten(0, (-1, len(self.tops), len(self.lefts)))
        blended = maps.new_zeros(grid.shape[0], *self.shape)  # len() would fix it in an export
        for i, top in enumerate(self.tops):
            band = maps.new_zeros(grid.shape[0], height, self.shape[1])
            for j, left in enumerate(self.lefts):
                band[..., left : left + width] += grid[:, i, j] * self.column_weights[j]
            blended[:, top : top + height] += band * self.row_weights[i][:, None]
        return blended


def _blending_weights(starts: list[int], tile: int, length: int) -> Tensor:
    """Return the weights of tiles along one axis (n, tile), which add up to 1 at each of ``length`` pixels."""
    position = torch.arange(tile, dtype=torch.float64, device="cpu")
    overlaps = [a + tile - b for a, b in pairwise(starts)]
    ramp = torch.minimum(position, position.flip(0)) + 0.5
    if overlaps:
        ramp = ramp.clamp(max=float(min(overlaps)))
    weights = ramp.repeat(len(starts), 1)
    total = torch.zeros(length, dtype=torch.float64, device="cpu")
    for start, of_tile in zip(starts, weights, strict=True):
        total[start : start + tile] += of_tile
    return torch.stack([w / total[s : s + tile] for s, w in zip(starts, weights, strict=True)]).float()
