"""Centre sets against the reference's numbers and the sequential definition."""

import numpy as np
import pytest
import torch
from helpers import GOLDEN
from hypothesis import given, settings
from hypothesis import strategies as st

from skpbas.core.centers import CENTER_INITS, initial_center, nearest_center, update_aligned


@pytest.fixture
def golden():
    return {k: torch.from_numpy(v) for k, v in np.load(GOLDEN / "golden_center.npz").items()}


def one_after_the_other(center, queries, momentum):
    """Algorithm 1 with its loop over positions."""
    center = center.clone()
    similarity = torch.nn.functional.cosine_similarity(queries[:, None], center[None], dim=2)
    for j, k in enumerate(similarity.argmax(1).tolist()):
        center[k] = (1 - momentum) * center[k] + momentum * queries[j]
    return center


def test_alignment_equals_the_reference_after_every_batch(golden):
    center = golden["batch0"].mean(0)
    for i in range(1, 5):
        center = update_aligned(center, golden[f"batch{i}"].mean(0), 0.1)
        torch.testing.assert_close(center, golden[f"center{i}"], atol=1e-5, rtol=0)


def test_alignment_of_the_whole_set_equals_the_reference(golden):
    batches = [golden[f"batch{i}"] for i in range(5)]
    center = initial_center(lambda: batches, "alignment", 0.1, torch.Generator())
    torch.testing.assert_close(center, golden["center4"], atol=1e-5, rtol=0)


@given(
    n_centers=st.integers(1, 12),
    n_queries=st.integers(1, 40),
    momentum=st.floats(0.01, 1.0),
    seed=st.integers(0, 999),
)
@settings(deadline=None, max_examples=80)
def test_updates_at_once_equal_updates_one_after_the_other(n_centers, n_queries, momentum, seed):
    generator = torch.Generator().manual_seed(seed)
    center = torch.randn(n_centers, 5, generator=generator, dtype=torch.float64)
    queries = torch.randn(n_queries, 5, generator=generator, dtype=torch.float64)
    updated = update_aligned(center, queries, momentum)
    torch.testing.assert_close(updated, one_after_the_other(center, queries, momentum), atol=1e-12, rtol=1e-12)


def test_centers_that_no_query_names_stay_as_they_are():
    center = torch.eye(4)
    updated = update_aligned(center, torch.tensor([[2.0, 0, 0, 0]]), 0.1)
    assert torch.equal(updated[1:], center[1:])
    assert updated[0, 0] == pytest.approx(1.1)


def test_nearest_is_by_angle_and_not_by_length():
    center = torch.tensor([[10.0, 0.0], [0.6, 0.5]])
    assert nearest_center(torch.tensor([[0.5, 0.1], [20.0, 20.0]]), center).tolist() == [0, 1]


def test_mean_is_the_plain_average_of_unequal_batches():
    u = torch.randn(7, 5, 3)
    center = initial_center(lambda: [u[:4], u[4:]], "mean", 0.1, torch.Generator())
    torch.testing.assert_close(center, u.mean(0))


def test_mean_leaves_the_features_unwritten():
    u = torch.randn(6, 5, 3)
    before = u.clone()
    initial_center(lambda: [u[:3], u[3:]], "mean", 0.1, torch.Generator())
    assert torch.equal(u, before)


def test_ema_is_position_wise():
    a, b = torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    center = initial_center(lambda: [a, b], "ema", 0.25, torch.Generator())
    torch.testing.assert_close(center, 0.75 * a.mean(0) + 0.25 * b.mean(0))


def test_kmeans_finds_well_separated_clusters():
    generator = torch.Generator().manual_seed(0)
    corners = torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 50.0]])
    u = corners + 0.1 * torch.randn(30, 4, 2, generator=generator)
    center = initial_center(lambda: [u[:16], u[16:]], "kmeans", 0.1, generator)
    assert torch.cdist(corners, center).min(dim=1).values.max() < 0.2


@pytest.mark.parametrize("method", CENTER_INITS)
def test_every_method_gives_one_center_a_position(method):
    u = torch.randn(9, 6, 4)
    center = initial_center(lambda: u.split(4), method, 0.1, torch.Generator().manual_seed(0))
    assert center.shape == (6, 4)
    assert center.isfinite().all()
