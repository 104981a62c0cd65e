"""Tiles cover an image, and maps of tiles add up to a map of the image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from skpbas.core.tiling import OVERLAP, Tiling, tile_starts

LENGTHS, SIDES = st.integers(1, 700), st.integers(2, 128)


@given(length=LENGTHS, side=SIDES)
def test_tiles_cover_an_axis_from_edge_to_edge_and_overlap(length, side):
    starts = tile_starts(length, side)
    tile = min(side, length)
    assert starts[0] == 0
    assert starts[-1] + tile == length
    covered = np.zeros(length, bool)
    for start in starts:
        covered[start : start + tile] = True
    assert covered.all()
    steps = np.diff(starts)
    assert (steps <= side - max(round(OVERLAP * side), 1)).all()
    if len(steps):
        assert steps.max() - steps.min() <= 1  # evenly spread


@given(height=LENGTHS, width=LENGTHS, side=st.integers(16, 128))
def test_tiles_of_an_image_blend_to_the_image(height, width, side):
    image = torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(0))
    tiling = Tiling((height, width), side)
    tiles = tiling.cut(image)
    assert tiles.shape == (2 * tiling.n_tiles, 1, *tiling.tile_shape)
    eps = torch.finfo(torch.float32).eps  # at most four tiles, each weight and sum rounded
    torch.testing.assert_close(tiling.blend(tiles[:, 0]), image[:, 0], rtol=0, atol=16 * eps)
    for index in range(tiling.n_tiles):
        assert torch.equal(tiling.tile(image[1], index), tiles[tiling.n_tiles + index])


def test_the_weight_of_a_tile_falls_toward_the_edge_it_shares():
    tiling = Tiling((128, 232), side=128)
    assert (tiling.tops, tiling.lefts) == ([0], [0, 104])
    left, _ = tiling.column_weights
    assert (left[:104] == 1).all()
    assert (left[104:].diff() < 0).all()
    assert (left[104], left[127]) == (pytest.approx(23.5 / 24), pytest.approx(0.5 / 24))


def test_tiles_that_disagree_leave_no_step():
    tiling = Tiling((128, 232), side=128)
    maps = torch.stack([torch.zeros(128, 128), torch.ones(128, 128)])
    row = tiling.blend(maps)[0, 64]
    assert (row.diff() >= 0).all()
    assert row.diff().max() <= 1.01 / 24  # an even ramp over the overlap
