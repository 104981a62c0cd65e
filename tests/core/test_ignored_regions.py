"""Regions that count for nothing: their patches are those of adaptive pooling, and what is known stays."""

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from skpbas.core.ignored_regions import continued, ignored_patches, touching

SIDE = st.integers(1, 40)


def masks_of(height, width, seed, share=0.1):
    return torch.from_numpy(np.random.default_rng(seed).random((2, height, width)) < share)


@given(SIDE, SIDE, SIDE, SIDE, st.integers(0, 2**32 - 1))
def test_patches_that_touch_a_mask_are_those_of_an_adaptive_maximum(height, width, rows, columns, seed):
    masks, grid_shape = masks_of(height, width, seed), (min(rows, height), min(columns, width))
    expected = F.adaptive_max_pool2d(masks.float(), grid_shape) > 0
    assert torch.equal(touching(masks, grid_shape), expected)
    around = F.max_pool2d(expected.float(), 3, 1, 1) > 0
    assert torch.equal(ignored_patches(masks, grid_shape), around.flatten(1))


@given(SIDE, SIDE, st.sampled_from([0.1, 0.9, 1.0]), st.integers(0, 2**32 - 1))
def test_a_continuation_keeps_what_is_known_and_does_not_depend_on_the_rest(height, width, share, seed):
    masks = masks_of(height, width, seed, share)
    images = torch.from_numpy(np.random.default_rng(seed).random((2, 3, height, width), np.float32))
    filled = continued(images, masks)
    here = masks[:, None].expand_as(images)
    assert torch.equal(filled[~here], images[~here])
    assert torch.equal(filled, continued(torch.where(here, 1 - images, images), masks))
    for image, mask, result in zip(images, masks, filled, strict=True):
        known = image[:, ~mask] if not mask.all() else torch.zeros(3, 1)
        assert (result.amin((1, 2)) >= known.amin(1) - 1e-6).all()
        assert (result.amax((1, 2)) <= known.amax(1) + 1e-6).all()


def test_the_nearest_known_pixels_count_most():
    image = torch.zeros(1, 1, 8, 8)
    image[..., 4:] = 1
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[:, :, 2:6] = True
    (row,) = continued(image, mask)[0, 0, :1]
    assert (row.diff() >= 0).all()
    assert row[2] < 0.5 < row[5]
