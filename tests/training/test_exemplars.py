"""The sample of patches for exemplar selection: evenly spread and independent of the seed."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import small_detector
from hypothesis import given, settings
from hypothesis import strategies as st

from skpbas import PBASDetector
from skpbas._features.sampling import TrainingFeatures
from skpbas._features.store import FeatureStore
from skpbas._training import exemplars
from skpbas._training.threshold import discriminator_bias, offset_of_ratios
from skpbas.core.aggregation import PatchAggregator
from skpbas.core.coreset import Coreset
from skpbas.datasets import make_inspection_images


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


def test_every_fifth_image_is_held_out_with_all_that_equal_it():
    numbers = torch.tensor([0, 1, 2, 0, 4, 5, 6, 7, 5, 9])  # 0 and 3, 5 and 8 are equal
    assert exemplars._rows_held_out(numbers).tolist() == [0, 3, 6]  # different: 0 1 2 4 5 6 7 9
    tiles = numbers.repeat_interleave(2)
    assert exemplars._rows_held_out(tiles).tolist() == [0, 1, 6, 7, 12, 13]
    assert exemplars._rows_held_out(torch.tensor([3, 3, 8])).tolist() == []


def unseen_to_training(detector, unseen):
    """The ratio of unseen images' scores to those of training images scored as new: geometric means."""
    return float(np.exp(np.log(-detector.score_samples(unseen)).mean() - np.log(-detector.training_scores_).mean()))


@pytest.mark.parametrize("params", [{}, {"scales": (1, 0.5)}, {"tile": 48}])
def test_the_bias_predicts_how_new_images_score_beside_training_images_scored_as_new(params):
    images = make_inspection_images(120, 0, kind="printed_board", size=64, random_state=0).images
    detector = small_detector(precision="float32", max_epochs=4, **{"image_size": 64, **params})
    detector.set_params(backbone="embedded").fit(images[:40])
    bias = float(detector.model_.patch_scorer.bias)
    assert bias < 0.97
    ratio = unseen_to_training(detector, images[40:])
    assert abs(np.log(bias / ratio)) < abs(np.log(ratio)) / 2


def test_the_bias_lowers_the_threshold_and_the_p_values():
    images = make_inspection_images(40, 0, kind="printed_board", size=64, random_state=0).images
    detector = small_detector(precision="float32", max_epochs=4).set_params(backbone="embedded").fit(images)
    scorer = detector.model_.patch_scorer
    assert detector.offset_ == pytest.approx(float(scorer.bias) * offset_of_ratios(-detector.training_scores_))
    before = detector.p_values(images[:10])
    scorer.bias = torch.tensor(1.0)
    assert (before <= detector.p_values(images[:10])).all()
    assert (before < detector.p_values(images[:10])).any()


@pytest.mark.parametrize("n_images", [2, 3])
def test_two_images_do_not_tell_the_bias_of_exemplars_and_three_do(n_images, good_images):
    detector = small_detector(max_epochs=1).fit(good_images[:n_images])
    told = float(detector.model_.patch_scorer.bias) / discriminator_bias(n_images)
    assert (told == pytest.approx(1.0, rel=1e-6)) == (n_images == 2)


def test_the_discriminator_scores_images_higher_that_it_was_not_trained_on():
    images = make_inspection_images(90, 0, kind="wood", size=64, random_state=0).images
    detector = PBASDetector("embedded", image_size=64, random_state=0, device="cpu").fit(images[:20])
    scorer = detector.model_.patch_scorer
    of_exemplars = float(scorer.bias) / discriminator_bias(20)
    ratio = unseen_to_training(detector, images[20:])
    assert abs(np.log(float(scorer.bias) / ratio)) < abs(np.log(of_exemplars / ratio))


def test_a_search_selects_the_exemplars_without_a_fifth_of_the_images_once(good_images, tmp_path, monkeypatch):
    calls = []
    of = Coreset.of.__func__

    def counted(cls, *args, **kwargs):
        calls.append(1)
        return of(cls, *args, **kwargs)

    monkeypatch.setattr(Coreset, "of", classmethod(counted))
    first, second = (
        small_detector(max_epochs=2, alpha=alpha, memory=tmp_path).fit(good_images) for alpha in (0.5, 1.0)
    )
    assert len(calls) == 2  # with all images, and without a fifth
    assert first.offset_ != second.offset_
