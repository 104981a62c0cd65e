"""Center sets, which normal features are pulled toward (ABL: Eq. 5, Algorithm 1 and Table VI of the paper)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

CENTER_INITS = ("alignment", "mean", "ema", "kmeans")
_KMEANS_PASSES = 10


def nearest_center(features: Tensor, center: Tensor) -> Tensor:
    """Return the index of the most similar center of each feature (1-NN by cosine similarity).

    Parameters
    ----------
    features : Tensor of shape (N, d)
    center : Tensor of shape (P, d)

    Returns
    -------
    Tensor of shape (N,), int64
    """
    return (features @ F.normalize(center, dim=1).T).argmax(dim=1)  # the length of a feature does not change the order


def distance_to_center(features: Tensor, center: Tensor) -> Tensor:
    """Return ||u - c*|| for each feature (N, d), where c* is the most similar of the centers (P, d): (N,)."""
    return torch.linalg.vector_norm(features - center[nearest_center(features, center)], dim=1)


def update_aligned(center: Tensor, queries: Tensor, momentum: float) -> Tensor:
    """Pull the nearest center of each query toward it, one query after the other (Algorithm 1).

    All nearest centers are found first, in the given ``center``. Then c_k <- (1-m) c_k + m q_j for j = 0, 1, ... in
    order; n queries with the same center unroll to (1-m)^n c_k + sum_i m (1-m)^(n-i) q_i, which needs no loop.

    Parameters
    ----------
    center : Tensor of shape (P, d)
    queries : Tensor of shape (Q, d)
    momentum : float
        m in (0, 1].

    Returns
    -------
    Tensor of shape (P, d)
        New centers; those that are nearest to no query are unchanged.
    """
    nearest = nearest_center(queries, center)
    order = torch.argsort(nearest, stable=True)  # by center, in query order within it
    count = torch.bincount(nearest, minlength=len(center))
    end = torch.cumsum(count, 0)
    still_to_come = end[nearest[order]] - 1 - torch.arange(len(queries), device=queries.device)
    weight = momentum * (1.0 - momentum) ** still_to_come.to(queries.dtype)
    kept = (1.0 - momentum) ** count.to(center.dtype)
    return (center * kept[:, None]).index_add_(0, nearest[order], weight[:, None] * queries[order])


def initial_center(
    batches: Callable[[], Iterable[Tensor]], method: str, momentum: float, generator: torch.Generator
) -> Tensor:
    """Compute the center set from the projected features of the training images.

    Parameters
    ----------
    batches : callable
        Each call returns a pass over the training set: batches u of shape (B, P, d) in shuffled order. "kmeans" makes
        several passes, the others one.
    method : {"alignment", "mean", "ema", "kmeans"}
        "alignment": the paper's method; "mean": average over the set at each position; "ema": moving average at each
        position; "kmeans": P cluster centers of all features.
    momentum : float
        m of "alignment" and "ema".
    generator : torch.Generator
        On the CPU; draws the initial centers of "kmeans".

    Returns
    -------
    Tensor of shape (P, d)
    """
    if method == "kmeans":
        return _kmeans(batches, generator)
    if method == "mean":
        total, n_images = None, 0
        for u in batches():
            total = u.sum(0) if total is None else total.add_(u.sum(0))
            n_images += len(u)
        assert total is not None
        return total / n_images
    center: Tensor | None = None
    for u in batches():
        queries = u.mean(0)  # (P, d)
        if center is None:
            center = queries
        elif method == "alignment":
            center = update_aligned(center, queries, momentum)
        else:
            center = torch.lerp(center, queries, momentum)
    assert center is not None
    return center


def _kmeans(batches: Callable[[], Iterable[Tensor]], generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm with P clusters, in passes over the features; memory for one batch and the sums."""
    center = _spread_sample(batches(), generator)
    inertia = float("inf")
    for _ in range(_KMEANS_PASSES):
        sums, counts, last_inertia, inertia = torch.zeros_like(center), None, inertia, 0.0
        for u in batches():
            x = u.flatten(0, 1)
            distance, nearest = torch.cdist(x, center).min(dim=1)
            sums.index_add_(0, nearest, x)
            batch_counts = torch.bincount(nearest, minlength=len(center))
            counts = batch_counts if counts is None else counts + batch_counts
            inertia += float(distance.square().sum(dtype=torch.float64))
        assert counts is not None
        center = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], center)
        if inertia > last_inertia * (1 - 1e-3):
            break
    return center


def _spread_sample(batches: Iterable[Tensor], generator: torch.Generator) -> Tensor:
    """Draw one feature per position, each from an image drawn for it: P different features of the whole set."""
    sample: Tensor | None = None
    seen = 0
    for u in batches:
        n_images, n_positions, _ = u.shape
        seen += n_images
        # reservoir sampling at every position: a batch replaces the sample with its share of the images seen so far
        pick = torch.randint(n_images, (n_positions,), generator=generator, device="cpu").to(u.device)
        drawn = u[pick, torch.arange(n_positions, device=u.device)]
        chance = torch.rand(n_positions, generator=generator, dtype=torch.float32, device="cpu")
        takes = (chance < n_images / seen).to(u.device)
        sample = drawn.clone() if sample is None else torch.where(takes[:, None], drawn, sample)
    assert sample is not None
    return sample
