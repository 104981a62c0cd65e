"""The sample of patches for exemplar selection: evenly spread and independent of the seed."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skpbas import PBASDetector
from skpbas._features.sampling import TrainingFeatures
from skpbas._features.store import FeatureStore
from skpbas.core.aggregation import PatchAggregator


def numbered_patches(n_images, height, width):
    """One-dimensional features whose value is the index of the patch among all patches."""
    store = FeatureStore(n_images, [(1, height, width)], torch.float32)
    numbers = torch.arange(n_images * height * width, dtype=torch.float32)
    store.put(0, [numbers.view(n_images, 1, height, width)])
    aggregator = PatchAggregator([1], patch_size=1, feature_dim=1)
    return TrainingFeatures(store, torch.arange(n_images), aggregator, torch.device("cpu"), torch.Generator())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 9), st.integers(1, 2000), st.sampled_from([7, 64, 8192]))
def test_the_sample_has_one_patch_from_each_of_equal_intervals(n_images, height, width, n_patches, batch_size):
    features = numbered_patches(n_images, height, width)
    batches = list(features.sample(n_patches, batch_size))
    total = n_images * height * width
    drawn = torch.cat([patches for patches, _ in batches])[:, 0].long().sort().values
    assert len(drawn) == min(n_patches, total)
    assert len(drawn.unique()) == len(drawn)
    edges = [i * total // len(drawn) for i in range(len(drawn) + 1)]
    assert all(low <= place < high for place, (low, high) in zip(drawn.tolist(), pairwise(edges), strict=True))
    for patches, images in batches:
        assert len(patches) <= batch_size
        torch.testing.assert_close(images, patches[:, 0].long() // (height * width))


@pytest.mark.parametrize("n_images", [32, 64, 256])
def test_the_sample_and_its_first_batch_cover_rows_and_columns_evenly(n_images):
    features = numbered_patches(n_images, height=32, width=32)
    batches = [patches[:, 0].long() for patches, _ in features.sample(2**15, batch_size=2048)]
    for drawn in (torch.cat(batches), batches[0]):
        columns, rows = torch.bincount(drawn % 32, minlength=32), torch.bincount(drawn // 32 % 32, minlength=32)
        assert 0.7 < columns.min() * 32 / len(drawn) <= columns.max() * 32 / len(drawn) < 1.3
        assert 0.7 < rows.min() * 32 / len(drawn) <= rows.max() * 32 / len(drawn) < 1.3


def test_the_first_batch_covers_all_images():
    features = numbered_patches(n_images=50, height=10, width=10)
    _, images = next(features.sample(4000, batch_size=500))
    per_image = torch.bincount(images, minlength=50)
    assert per_image.min() >= 5
    assert per_image.max() <= 15


def test_the_seed_changes_the_networks_but_not_the_exemplars(good_images):
    first, second = (
        PBASDetector("embedded", image_size=64, max_epochs=1, device="cpu", random_state=seed).fit(good_images)
        for seed in (0, 1)
    )
    coresets = [detector.model_.patch_scorer.coreset for detector in (first, second)]
    assert torch.equal(coresets[0].exemplars, coresets[1].exemplars)
    assert not torch.equal(first.projector_.linear.weight, second.projector_.linear.weight)
