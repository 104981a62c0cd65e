"""Patch features against the reference's numbers and against an unfolding written out."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from skpbas.core.aggregation import PatchAggregator, PatchGatherer

CASES = [k for k in np.load(GOLDEN / "golden_aggregate.npz").files if "patch" in k]


def unfolded_features(maps, patch_size, feature_dim):
    """Eq. 2-4 step by step: unfold, pool to d, interpolate, stack, pool to d."""
    height, width = maps[0].shape[-2:]
    levels = []
    for level in maps:
        patches = F.unfold(level, patch_size, padding=patch_size // 2).transpose(1, 2)  # (B, P, C*p*p)
        pooled = F.adaptive_avg_pool1d(patches, feature_dim)
        grid = pooled.transpose(1, 2).unflatten(2, level.shape[-2:])
        grid = F.interpolate(grid, (height, width), mode="bilinear", align_corners=False)
        levels.append(grid.flatten(2).transpose(1, 2))
    return F.adaptive_avg_pool1d(torch.cat(levels, dim=2), feature_dim)


@pytest.mark.parametrize("case", CASES)
def test_patch_features_equal_the_reference(case):
    golden = np.load(GOLDEN / "golden_aggregate.npz")
    prefix, patch_size, feature_dim, levels = re.fullmatch(r"(odd_)?patch(\d)_dim(\d+)_layers(\d+)", case).groups()
    maps = [torch.from_numpy(golden[f"{prefix or ''}layer{level}"]) for level in levels]
    aggregate = PatchAggregator([m.shape[1] for m in maps], int(patch_size), int(feature_dim))
    features = aggregate(maps).numpy().reshape(golden[case].shape)
    np.testing.assert_allclose(features, golden[case], atol=1e-5, rtol=0)


@given(
    channels=st.lists(st.integers(1, 24), min_size=1, max_size=3),
    patch_size=st.sampled_from([1, 3, 5]),
    feature_dim=st.integers(1, 60),
    side=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_patch_features_equal_unfolding_for_any_channels_and_dimension(channels, patch_size, feature_dim, side, seed):
    generator = torch.Generator().manual_seed(seed)
    sides = [max(1, side >> i) for i in range(len(channels))]
    maps = [torch.randn(2, c, s, s + 1, generator=generator) for c, s in zip(channels, sides, strict=True)]
    features = PatchAggregator(channels, patch_size, feature_dim)(maps)
    expected = unfolded_features(maps, patch_size, feature_dim)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)


def test_channels_last_maps_give_the_same_features():
    maps = [torch.randn(2, 16, 8, 8), torch.randn(2, 32, 4, 4)]
    aggregate = PatchAggregator([16, 32], 3, 48)
    last = [m.to(memory_format=torch.channels_last) for m in maps]
    torch.testing.assert_close(aggregate(last), aggregate(maps), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("channels", "feature_dim"), [((512, 1024), 1536), ((128, 256), 384), ((512, 1024), 1500)])
def test_published_sizes_need_no_kernel_near_the_unfolded_size(channels, feature_dim):
    aggregate = PatchAggregator(channels, 3, feature_dim)
    for level, n_channels in zip(aggregate.levels, channels, strict=True):
        read = n_channels if level.channels is None else len(level.channels)
        assert read <= 2 * n_channels  # unfolding would read 9 times the channels


@given(
    channels=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    feature_dim=st.integers(1, 24),
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=80)
def test_gathered_patches_are_those_of_the_whole_maps(channels, feature_dim, grid, seed):
    generator = torch.Generator().manual_seed(seed)
    grids = [(-(-grid[0] // 2**i), -(-grid[1] // 2**i)) for i in range(len(channels))]
    maps = [torch.randn(3, c, *g, generator=generator) for c, g in zip(channels, grids, strict=True)]
    aggregate = PatchAggregator(channels, 3, feature_dim)
    pooled = aggregate.pool(maps)
    image = torch.randint(3, (20,), generator=generator)
    position = torch.randint(grid[0] * grid[1], (20,), generator=generator)
    tables = [part.permute(0, 2, 3, 1).flatten(0, 2) for part in pooled]
    gathered = PatchGatherer(aggregate, grids)(tables, image, position)
    torch.testing.assert_close(gathered, aggregate(maps)[image, position], atol=1e-5, rtol=1e-5)
