"""Anomaly maps against the reference's numbers and against scipy."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter

from skpbas._inputs.images import Geometry
from skpbas.core.maps import MapRenderer


def test_anomaly_maps_equal_the_reference():
    golden = np.load(GOLDEN / "golden_segmentation.npz")
    maps = MapRenderer((8, 8), (64, 64), 4.0)(torch.from_numpy(golden["patch_scores"]).flatten(1))
    np.testing.assert_allclose(maps.numpy(), golden["anomaly_maps"], atol=1e-5, rtol=0)


@given(
    grid=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    sigma=st.floats(0, 9),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=60)
def test_maps_equal_interpolation_and_scipys_gaussian_for_any_shape(grid, shape, sigma, seed):
    scores = torch.rand(2, grid[0] * grid[1], generator=torch.Generator().manual_seed(seed))
    upsampled = F.interpolate(scores.view(2, 1, *grid), shape, mode="bilinear", align_corners=False)[:, 0]
    expected = [gaussian_filter(m.double().numpy(), sigma, mode="reflect", truncate=4) for m in upsampled]
    np.testing.assert_allclose(MapRenderer(grid, shape, sigma)(scores).numpy(), expected, atol=2e-6)


def test_a_stretched_map_comes_back_at_the_images_own_size():
    anomaly_map = torch.rand(64, 64)
    geometry = Geometry.of((100, 50), (64, 64), "stretch")
    expected = F.interpolate(anomaly_map[None, None], (100, 50), mode="bilinear", align_corners=False)[0, 0]
    torch.testing.assert_close(geometry.to_input(anomaly_map), expected, atol=1e-5, rtol=0)


def test_a_cropped_map_comes_back_in_its_place_and_is_nan_elsewhere():
    geometry = Geometry.of((64, 192), (64, 64), "crop")
    anomaly_map = torch.rand(64, 64)
    placed = geometry.to_input(anomaly_map)
    assert placed.shape == (64, 192)
    torch.testing.assert_close(placed[:, 64:128], anomaly_map)
    assert placed[:, :64].isnan().all()
    assert placed[:, 128:].isnan().all()


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (37, 64), (257, 256)])
def test_a_map_cut_like_its_image_shows_the_same_place(shape):
    # a blob in the image, seen through the crop and brought back, must lie where it was
    image = torch.zeros(1, *shape)
    center = (shape[0] // 2 + 3, shape[1] // 2 - 4)
    image[:, center[0] - 3 : center[0] + 4, center[1] - 3 : center[1] + 4] = 1
    geometry = Geometry.of(shape, (64, 64), "crop")
    back = geometry.to_input(geometry.view(image)[0]).nan_to_num()
    rows, columns = torch.meshgrid(*map(torch.arange, shape), indexing="ij")
    found = ((back * rows).sum() / back.sum(), (back * columns).sum() / back.sum())
    assert found[0].item() == pytest.approx(center[0], abs=0.5)
    assert found[1].item() == pytest.approx(center[1], abs=0.5)


def test_the_share_unseen_by_a_crop_is_known():
    assert Geometry.of((100, 100), (64, 64), "crop").unseen == 0
    assert Geometry.of((100, 200), (64, 64), "crop").unseen == pytest.approx(0.5)
    assert Geometry.of((100, 200), (64, 64), "stretch").unseen == 0


def test_a_mask_is_cut_like_its_image_and_neither_grows_nor_shrinks():
    mask = np.zeros((128, 384), bool)
    mask[32:64, 160:200] = True
    seen = Geometry.of(mask.shape, (64, 64), "crop").view_of_mask(mask)
    expected = np.zeros((64, 64), bool)
    expected[16:32, 16:36] = True
    np.testing.assert_array_equal(seen, expected)
    stretched = Geometry.of(mask.shape, (64, 64), "stretch").view_of_mask(mask)
    assert stretched.mean() == pytest.approx(mask.mean(), rel=0.15)
