"""Feature maps to patch features without unfolding (Eq. 2-4 of the paper).

A patch feature is defined by four linear steps: take the p x p neighborhood of every position of a level as one vector
of C*p*p entries, channel-major; average adjacent entries so that d remain; interpolate the deeper levels to the
resolution of the first one; stack the levels and average once more to d. The two averages together are one banded
matrix per level, and interpolation commutes with it. So each level needs one grouped convolution with that matrix as
its kernel, at its own resolution, and no neighborhood is ever written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OUTPUTS_PER_BLOCK = 8  # if channels and outputs have no common period; measured, not critical


def _averaging_bins(n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
    """First entry and size of each bin of adaptive average pooling from n_in to n_out entries."""
    i = torch.arange(n_out, device="cpu")
    start = (i * n_in) // n_out
    return start, ((i + 1) * n_in + n_out - 1) // n_out - start


def _expand(start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Write out runs of entries: the index of the run and the entry, one row per entry."""
    run = torch.repeat_interleave(torch.arange(len(size), device="cpu"), size)
    before = torch.cumsum(size, 0) - size
    return run, start[run] + torch.arange(len(run), device="cpu") - before[run]


def _level_weights(level: int, n_levels: int, n_entries: int, feature_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Non-zero weights of a level's entries in the patch feature: output, entry, weight (float64).

    Composes the average of n_entries (C*p*p) to d with that of the stacked levels, L*d to d. A pair of output and
    entry may occur more than once; its weights add up.
    """
    start, size = _averaging_bins(n_levels * feature_dim, feature_dim)
    output, stacked = _expand(start, size)
    of_level = stacked // feature_dim == level
    output, pooled = output[of_level], stacked[of_level] % feature_dim
    weight = 1.0 / size[output].double()

    start, size = _averaging_bins(n_entries, feature_dim)
    run, entry = _expand(start[pooled], size[pooled])
    return output[run], entry, weight[run] / size[pooled][run]


class _LevelPooling(nn.Module):
    """The part of the patch features that comes from one level, at the level's own resolution.

    Outputs are cut into blocks, each of which reads a short run of channels: one grouped convolution.
    """

    kernel: Tensor  # (blocks * outputs a block, channels a block, p, p)
    channels: Tensor | None  # (blocks * channels a block,) or None where each channel is read once, in order

    def __init__(self, output: Tensor, entry: Tensor, weight: Tensor, n_channels: int, patch_size: int) -> None:
        super().__init__()
        self.first_output, self.end_output = int(output.min()), int(output.max()) + 1
        n_outputs = self.end_output - self.first_output
        row = output - self.first_output
        channel, offset = entry // patch_size**2, entry % patch_size**2

        per_block = n_outputs // gcd(n_outputs, n_channels)
        if per_block > 4 * _OUTPUTS_PER_BLOCK:
            per_block = _OUTPUTS_PER_BLOCK
        self.groups = -(-n_outputs // per_block)
        self.n_outputs = n_outputs
        block = row // per_block
        first = torch.full((self.groups,), n_channels, device="cpu").scatter_reduce_(0, block, channel, "amin")
        last = torch.zeros(self.groups, dtype=torch.long, device="cpu").scatter_reduce_(0, block, channel, "amax")
        width = int((last - first).max()) + 1
        first = first.clamp(max=n_channels - width)

        kernel = torch.zeros(self.groups * per_block, width, patch_size**2, dtype=torch.float64, device="cpu")
        kernel.index_put_((row, channel - first[block], offset), weight, accumulate=True)
        self.register_buffer("kernel", kernel.float().unflatten(2, (patch_size, patch_size)), persistent=False)
        channels = (first[:, None] + torch.arange(width, device="cpu")).flatten()
        in_order = len(channels) == n_channels and bool((channels == torch.arange(n_channels, device="cpu")).all())
        self.register_buffer("channels", None if in_order else channels, persistent=False)

    def forward(self, level: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, outputs, H, W)."""
        if self.channels is not None:
            level = level.index_select(1, self.channels)
        pooled = F.conv2d(level, self.kernel, padding=self.kernel.shape[-1] // 2, groups=self.groups)
        return pooled[:, : self.n_outputs]


class PatchAggregator(nn.Module):
    """Feature maps to patch features t (Eq. 2-4).

    Parameters
    ----------
    channels : sequence of int
        Channels of each level, shallow first.
    patch_size : int
        Odd side p of the neighborhood, in positions of the level's own feature map.
    feature_dim : int
        Dimension d of a patch feature.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.aggregation import PatchAggregator
    >>> aggregate = PatchAggregator([16, 32], patch_size=3, feature_dim=48)
    >>> aggregate([torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)]).shape
    torch.Size([2, 64, 48])
    """

    outputs: list[slice]  # for each level, the entries of a patch feature that it contributes to

    def __init__(self, channels: Sequence[int], patch_size: int, feature_dim: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        n_levels = len(channels)
        self.levels, self.outputs = nn.ModuleList(), []
        for level, n_channels in enumerate(channels):
            weights = _level_weights(level, n_levels, n_channels * patch_size**2, feature_dim)
            pooling = _LevelPooling(*weights, n_channels, patch_size)
            self.levels.append(pooling)
            self.outputs.append(slice(pooling.first_output, pooling.end_output))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return patch features.

        Parameters
        ----------
        maps : sequence of Tensor of shape (B, C_l, H_l, W_l)
            The feature maps of the levels, shallow first.

        Returns
        -------
        Tensor of shape (B, H_0 * W_0, d)
            Row-major over the first level's positions.
        """
        return self.combine(self.pool(maps))

    def pool(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return each level's part of the patch features at its own resolution, (B, n_l, H_l, W_l)."""
        return [pooling(level) for pooling, level in zip(self.levels, maps, strict=True)]

    def combine(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return the patch features (B, H_0 * W_0, d) of the parts that :meth:`pool` returned."""
        batch, _, height, width = pooled[0].shape
        features = pooled[0].new_zeros(batch, height, width, self.feature_dim)
        for outputs, part in zip(self.outputs, pooled, strict=True):
            if part.shape[-2:] != (height, width):
                part = F.interpolate(part, (height, width), mode="bilinear", align_corners=False)
            features[..., outputs] += part.permute(0, 2, 3, 1)  # two levels share an entry if L does not divide d
        return features.flatten(1, 2)


class PatchGatherer(nn.Module):
    """Patch features at single positions, read from tables of the levels' parts without computing all positions.

    Parameters
    ----------
    aggregator : PatchAggregator
    grids : sequence of (int, int)
        Height and width of the feature map of every level, shallow first.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.aggregation import PatchAggregator, PatchGatherer
    >>> aggregate = PatchAggregator([16, 32], patch_size=3, feature_dim=48)
    >>> pooled = aggregate.pool([torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)])
    >>> gather = PatchGatherer(aggregate, [(8, 8), (4, 4)])
    >>> tables = [part.permute(0, 2, 3, 1).flatten(0, 2) for part in pooled]
    >>> patches = gather(tables, image=torch.tensor([0, 1]), position=torch.tensor([5, 63]))
    >>> torch.allclose(patches, aggregate.combine(pooled)[[0, 1], [5, 63]])
    True
    """

    def __init__(self, aggregator: PatchAggregator, grids: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.feature_dim, self.outputs = aggregator.feature_dim, aggregator.outputs
        self.sizes = [height * width for height, width in grids]
        for level, grid in enumerate(grids):
            (rows, of_row), (columns, of_column) = (
                _sources(n_in, n_out) for n_in, n_out in zip(grid, grids[0], strict=True)
            )
            corners = rows[:, None, :, None] * grid[1] + columns[None, :, None, :]  # (H_0, W_0, 2, 2)
            weights = of_row[:, None, :, None] * of_column[None, :, None, :]
            self.register_buffer(f"corners_{level}", corners.flatten(2).flatten(0, 1), persistent=False)  # (P, 4)
            self.register_buffer(f"weights_{level}", weights.flatten(2).flatten(0, 1).float(), persistent=False)

    def forward(self, tables: Sequence[Tensor], image: Tensor, position: Tensor) -> Tensor:
        """Return patch features.

        Parameters
        ----------
        tables : sequence of Tensor of shape (n * H_l * W_l, n_l)
            The levels' parts of all images, in any precision.
        image, position : Tensor of shape (N,), int64
            Index of the image in the table, and of the position in the first level's grid, row-major.

        Returns
        -------
        Tensor of shape (N, d), float32
        """
        features = torch.zeros(len(image), self.feature_dim, dtype=torch.float32, device=image.device)
        for level, (table, outputs) in enumerate(zip(tables, self.outputs, strict=True)):
            first = image * self.sizes[level]
            if self.sizes[level] == self.sizes[0]:
                features[:, outputs] += table[first + position]
                continue
            corners, weights = self.get_buffer(f"corners_{level}"), self.get_buffer(f"weights_{level}")
            around = table[first[:, None] + corners[position]].float()  # (N, 4, n_l)
            features[:, outputs] += torch.einsum("nkc,nk->nc", around, weights[position])
        return features


def _sources(n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
    """Return the entries that bilinear interpolation along one axis reads, and their weights: (n_out, 1 or 2) each."""
    weights, entries = upsampling_matrix(n_in, n_out).topk(min(2, n_in), dim=1)
    return entries, weights


def upsampling_matrix(n_in: int, n_out: int) -> Tensor:
    """Bilinear interpolation (align_corners=False) along one axis as an (n_out, n_in) matrix, float64."""
    identity = torch.eye(n_in, dtype=torch.float64, device="cpu")[None]  # one unit vector per channel
    return F.interpolate(identity, n_out, mode="linear", align_corners=False)[0].T
