"""Scorers against the same computations written out step by step."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from skpbas.core.aggregation import PatchAggregator
from skpbas.core.coreset import Coreset, farthest_points, principal_directions
from skpbas.core.maps import MapRenderer
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.patch_scores import DiscriminatorScorer, DistanceScorer, FusedScorer


def used_discriminator(feature_dim, hidden_dim, generator, n_heads):
    """Return a discriminator whose batch norm has seen data and been trained."""
    discriminator = Discriminator(feature_dim, hidden_dim, generator, n_heads)
    norm = discriminator.norm
    norm.running_mean.normal_(generator=generator)
    norm.running_var.uniform_(0.2, 3.0, generator=generator)
    torch.nn.init.normal_(norm.weight, 1.0, 0.3, generator=generator)
    torch.nn.init.normal_(norm.bias, generator=generator)
    return discriminator.eval()


def case(channels, grid, patch_size, feature_dim, hidden_dim, seed, n_images=2, n_heads=1):
    """Return networks, the levels' parts of some images, and their patch features."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(c, -(-grid[0] // 2**i), -(-grid[1] // 2**i)) for i, c in enumerate(channels)]
    maps = [torch.randn(n_images, *shape, generator=generator) for shape in shapes]
    aggregator = PatchAggregator(channels, patch_size, feature_dim)
    projector = Projector(feature_dim, generator, "xavier")
    discriminator = used_discriminator(feature_dim, hidden_dim, generator, n_heads)
    return aggregator, projector, discriminator, aggregator.pool(maps), aggregator(maps)


CASES = {
    "channels": st.lists(st.integers(1, 12), min_size=1, max_size=3),
    "grid": st.tuples(st.integers(1, 9), st.integers(1, 9)),
    "patch_size": st.sampled_from([1, 3, 5]),
    "feature_dim": st.integers(1, 24),
    "hidden_dim": st.integers(1, 16),
    "n_heads": st.integers(1, 3),
    "seed": st.integers(0, 99),
}


@given(**CASES)
@settings(deadline=None, max_examples=80)
def test_logits_equal_those_of_aggregation_projector_and_discriminator(**parameters):
    aggregator, projector, discriminator, pooled, features = case(**parameters)
    expected = discriminator(projector(features).flatten(0, 1)).view(features.shape[:2])
    scores = DiscriminatorScorer(aggregator, projector, discriminator)(pooled)
    torch.testing.assert_close(scores, expected, atol=2e-4, rtol=1e-4)


@given(**CASES)
@settings(deadline=None, max_examples=40)
def test_distances_are_to_the_most_similar_center(**parameters):
    aggregator, projector, _, pooled, features = case(**parameters)
    center = torch.randn(7, features.shape[2], generator=torch.Generator().manual_seed(1))
    scores = DistanceScorer(aggregator, projector, center, 1.0)(pooled)
    u = projector(features)
    similarity = torch.nn.functional.cosine_similarity(u[:, :, None], center, dim=3)
    distance = torch.linalg.vector_norm(u[:, :, None] - center, dim=3)
    best = similarity.amax(2, keepdim=True)
    near_best = similarity > best - 1e-5  # rounding may decide between these
    assert ((distance - scores[:, :, None]).abs().lt(1e-4) & near_best).any(2).all()


def coreset_of(features, **sizes):
    """Return a coreset of the features (B, P, d) of some images."""
    numbers = torch.arange(len(features)).repeat_interleave(features.shape[1])
    return Coreset.of([(features.flatten(0, 1), numbers)], **sizes)


def averaged_over_neighbors(grid):
    """Return each position's mean with those of its eight neighbors that there are, of one (H, W) grid."""
    height, width = grid.shape
    means = torch.empty_like(grid)
    for i in range(height):
        for j in range(width):
            means[i, j] = grid[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean()
    return means


def test_fused_scores_are_distances_that_the_discriminators_temperature_scaled_probability_up_to_doubles():
    aggregator, projector, discriminator, pooled, features = case((12, 16), (8, 6), 3, 24, 16, 0, n_images=6)
    coreset = coreset_of(features, n_exemplars=40, n_directions=10)
    scorer = FusedScorer(aggregator, projector, discriminator, coreset)
    numbers = torch.arange(6)
    scorer.standardize([([part[rows] for part in pooled], rows) for rows in numbers.split(4)])

    logits = discriminator(projector(features).flatten(0, 1)).view(6, 8, 6)
    averaged = torch.stack([averaged_over_neighbors(grid) for grid in logits]).flatten(1)
    word = torch.sigmoid((averaged - averaged.mean()) / averaged.std() / 3)
    distance = torch.cdist(coreset.reduce(features), coreset.exemplars)  # (6, 48, 40)
    to_others = distance.masked_fill(coreset.image_index == numbers[:, None, None], torch.inf).amin(2)

    def fused(distances):
        return (1 + word) * distances / to_others.mean()

    torch.testing.assert_close(scorer(pooled), fused(distance.amin(2)), atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(scorer(pooled, numbers), fused(to_others), atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_a_fused_score_does_not_depend_on_how_large_the_discriminators_logits_are(factor):
    aggregator, projector, discriminator, pooled, features = case((12, 16), (8, 6), 3, 24, 16, 0, n_images=6)
    scores = []
    for scale in (1.0, factor):
        discriminator.output.weight.data.mul_(scale)
        scorer = FusedScorer(aggregator, projector, discriminator, coreset_of(features, n_exemplars=40))
        scorer.standardize([(pooled, torch.arange(6))])
        scores.append(scorer(pooled))
    torch.testing.assert_close(scores[0], scores[1])


@pytest.mark.parametrize(
    ("grid_shape", "k"), [((1, 1), 1), ((4, 4), 1), ((9, 12), 1), ((13, 12), 2), ((32, 32), 10), ((96, 96), 92)]
)
def test_an_images_fused_score_is_the_mean_of_its_largest_hundredth_smoothed(grid_shape, k):
    aggregator, projector, discriminator, _, features = case((4,), (4, 4), 1, 4, 8, 0)
    scorer = FusedScorer(aggregator, projector, discriminator, coreset_of(features, n_exemplars=4))
    scores = torch.randn(3, *grid_shape, generator=torch.Generator().manual_seed(0))
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    smoothed = [ndimage.correlate(grid, kernel, mode="nearest") for grid in scores.numpy()]
    expected = [np.sort(grid, axis=None)[-k:].mean() for grid in smoothed]
    np.testing.assert_allclose(scorer.image_scores(scores.flatten(1), grid_shape).numpy(), expected, rtol=1e-5)


def test_a_fused_map_shows_half_where_good_images_end_and_keeps_the_order():
    aggregator, projector, discriminator, pooled, features = case((12, 16), (8, 8), 3, 24, 16, 0, n_images=6)
    scorer = FusedScorer(aggregator, projector, discriminator, coreset_of(features, n_exemplars=40))
    scorer.standardize([(pooled, torch.arange(6))])
    scores = torch.linspace(0, 1e3, 64).view(1, 64)
    maps = scorer.maps(scores, MapRenderer((8, 8), (8, 8), 0.0)).flatten()
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert (maps.diff() > 0).all()
    limit = scorer.image_scores(scorer(pooled, torch.arange(6)), (8, 8)).mean().expand(1, 64)
    torch.testing.assert_close(scorer.maps(limit, MapRenderer((8, 8), (8, 8), 0.0)), torch.full((1, 8, 8), 0.5))


def test_images_of_one_color_have_finite_fused_scores():
    aggregator, projector, discriminator, _, _ = case((4,), (4, 4), 1, 4, 8, 0)
    pooled = [torch.ones(3, 4, 4, 4)]
    scorer = FusedScorer(aggregator, projector, discriminator, coreset_of(torch.ones(3, 16, 4), n_exemplars=12))
    scorer.standardize([(pooled, torch.arange(3))])
    assert scorer(pooled).isfinite().all()
    assert scorer.maps(scorer(pooled), MapRenderer((4, 4), (8, 8), 1.0)).isfinite().all()


def greedy_radius(points, k):
    """Return the distance of the farthest point from those that a plain farthest-point selection chooses."""
    chosen = [int((points - points.mean(0)).square().sum(1).argmax())]
    for _ in range(k - 1):
        chosen.append(int(torch.cdist(points, points[chosen]).amin(1).argmax()))
    return float(torch.cdist(points, points[chosen]).amin(1).max())


@given(n=st.integers(1, 300), q=st.integers(1, 6), share=st.floats(0.01, 1), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_chosen_points_are_different_and_lie_as_near_to_all_as_a_plain_selection_has_them(n, q, share, seed):
    points = torch.randn(n, q, generator=torch.Generator().manual_seed(seed))
    k = max(1, int(share * n))
    chosen = farthest_points(points, k)
    assert len(set(chosen.tolist())) == k
    radius = float(torch.cdist(points, points[chosen]).amin(1).max())
    assert radius <= 1.001 * greedy_radius(points, k) + 1e-3


def test_a_rare_cluster_gets_an_exemplar():
    points = torch.randn(5000, 8, generator=torch.Generator().manual_seed(0))
    points[4321] += 30
    assert 4321 in farthest_points(points, 64).tolist()


def test_directions_are_those_of_largest_variance():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(400, 6, generator=generator) * torch.tensor([5.0, 4.0, 3.0, 0.2, 0.1, 0.05]) + 7
    mean, directions = principal_directions(features, 3)
    torch.testing.assert_close(mean, features.mean(0))
    torch.testing.assert_close(directions @ directions.T, torch.eye(3), atol=1e-5, rtol=0)
    assert (directions[:, 3:].abs() < 0.05).all()
    assert principal_directions(features, 128)[1].shape == (6, 6)


@pytest.mark.parametrize("n_directions", [4, 12])
def test_the_distance_is_that_of_the_nearest_exemplar(n_directions):
    features = torch.randn(300, 12, generator=torch.Generator().manual_seed(0))
    coreset = coreset_of(features[None], n_exemplars=50, n_directions=n_directions)
    points = coreset.reduce(torch.randn(40, 12, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(coreset.distance(points), torch.cdist(points, coreset.exemplars).amin(1))


@given(length=st.floats(0.01, 1e4), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=40)
def test_the_search_in_bfloat16_is_exact_but_for_rounding_however_far_the_points_are_from_the_mean(length, seed):
    generator = torch.Generator().manual_seed(seed)
    shift = length * torch.nn.functional.normalize(torch.randn(16, generator=generator), dim=0)
    exemplars = (torch.randn(50, 16, generator=generator) + shift).bfloat16().float()
    points = (torch.randn(40, 16, generator=generator) + shift).bfloat16().float()
    coreset = Coreset(torch.zeros(16), torch.eye(16), exemplars, torch.arange(50) % 5)
    images = torch.arange(40) % 5
    coreset.precision = torch.bfloat16
    squares = torch.cdist(points.double(), exemplars.double()).square()
    to_others = squares.masked_fill(coreset.image_index == images[:, None], torch.inf).amin(1)
    # eight bits of the result, and float32's rounding of sums as large as the squared lengths
    tolerance = {"rtol": 2**-7, "atol": 2e-6 * (length + 5) ** 2}
    torch.testing.assert_close(coreset.distance(points).double().square(), squares.amin(1), **tolerance)
    torch.testing.assert_close(coreset.distance(points, images).double().square(), to_others, **tolerance)
