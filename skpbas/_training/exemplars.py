"""Exemplars of the training features and the distances of the training images to them, cached by ``memory``.

They depend only on the features, not on a seed or on anything trained, so candidates of a search that differ in
``alpha``, a learning rate or ``random_state`` share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from skpbas._features.digests import digest_of, tensor_digest
from skpbas._features.sampling import TrainingFeatures
from skpbas.core.coreset import Coreset
from skpbas.core.devices import inference_batch
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.patch_scores import FusedScorer

POOL_SIZE = 2**18


def fused_scorer(
    features: TrainingFeatures,
    projector: Projector,
    discriminator: Discriminator,
    precision: torch.dtype,
    *,
    n_exemplars: int,
    pool_size: int = POOL_SIZE,
) -> tuple[FusedScorer, Tensor]:
    """Return the fused scorer of a trained head, and the patch scores (n, H_0, W_0) of the training images as if new.

    The scorer's scales are set from the training images.

    Parameters
    ----------
    features : TrainingFeatures
        Training features of the head, from which exemplars are selected.
    projector, discriminator : nn.Module
        In evaluation mode.
    precision : torch.dtype
        Precision of the computations.
    n_exemplars : int
        Limited to a quarter of the training patches.
    pool_size : int, default=262144
        Number of patches that exemplars are selected from.
    """
    n_exemplars = min(n_exemplars, len(features) * features.n_positions // 4)
    rows = tensor_digest(torch.stack([features.rows, features.image_numbers])).hex()
    feature_key = (features.aggregator.feature_dim, rows, features.n_tiles, n_exemplars, pool_size)

    def select() -> list[Tensor]:
        coreset = Coreset.of(features.sample(pool_size), n_exemplars)
        return [part.cpu() for part in (coreset.mean, coreset.directions, coreset.exemplars, coreset.image_index)]

    def are_exemplars(parts: Sequence[Tensor]) -> bool:
        kinds = [(1, torch.float32), (2, torch.float32), (2, torch.float32), (1, torch.int64)]
        if [(part.ndim, part.dtype) for part in parts] != kinds:
            return False
        mean, directions, exemplars, image_index = parts
        return (
            len(mean) == directions.shape[1] == features.aggregator.feature_dim
            and exemplars.shape == (n_exemplars, len(directions))
            and image_index.shape == (n_exemplars,)
            and bool(torch.isin(image_index, features.image_numbers).all())
        )

    coreset = Coreset(*_cached(features, ("exemplars", *feature_key), select, are_exemplars))
    scorer = FusedScorer(features.aggregator, projector, discriminator, coreset.to(features.device))
    scorer = scorer.to(features.device)
    scorer.precision = precision
    batch_size = inference_batch(features.device)

    def measure() -> list[Tensor]:
        return [torch.cat([scorer.distances(*batch) for batch in features.parts_in_order(batch_size)]).cpu()]

    def are_distances(parts: Sequence[Tensor]) -> bool:
        shape = (len(features), *features.store.grids[0])
        return len(parts) == 1 and parts[0].shape == shape and parts[0].dtype == torch.float32

    (distances,) = _cached(features, ("distances", *feature_key, str(precision)), measure, are_distances)
    parts = features.parts_in_order(batch_size)
    return scorer, scorer.standardize(parts, distances.to(features.device), n_tiles=features.n_tiles)


def _cached(
    features: TrainingFeatures,
    key: tuple[Any, ...],
    make: Callable[[], list[Tensor]],
    fits: Callable[[Sequence[Tensor]], bool],
) -> list[Tensor]:
    """Return ``make()``, or its cached result from an earlier fit on the same features."""
    if features.memory is None:
        return make()
    return features.memory.cached(digest_of(features.store.digest, repr(key)).hex(), make, fits)
