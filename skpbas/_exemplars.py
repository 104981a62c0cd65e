"""The exemplars of training features, and how far the training images lie from them, kept across fits by ``memory``.

They depend on the features alone, neither on a seed nor on anything that training changes: candidates of a search that
differ in ``alpha``, a learning rate or ``random_state`` share them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import joblib
import torch
from joblib import Memory
from torch import Tensor

from skpbas._devices import inference_batch
from skpbas.core.coreset import N_EXEMPLARS, Coreset
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.scorers import FusedScorer

CORESET_POOL = 2**18  # patches among which exemplars are selected


def fused_scorer(
    features: Any, projector: Projector, discriminator: Discriminator, autocast: torch.dtype | None
) -> FusedScorer:
    """Return the fused scorer of a trained head, with its scale taken from the training images.

    Parameters
    ----------
    features : TrainingFeatures
        What the head was trained on; exemplars are selected among them.
    projector, discriminator : nn.Module
        In evaluation mode.
    autocast : torch.dtype or None
        What the scorer computes in.
    """
    n_exemplars = min(N_EXEMPLARS, len(features) * features.n_positions // 4)
    of_features = (features.aggregator.feature_dim, features.rows.numpy(), n_exemplars, CORESET_POOL)

    def select() -> list[Tensor]:
        coreset = Coreset.of(features.sample(CORESET_POOL), n_exemplars)
        return [part.cpu() for part in (coreset.mean, coreset.directions, coreset.exemplars, coreset.owners)]

    coreset = Coreset(*_kept(features, ("exemplars", *of_features), select))
    scorer = FusedScorer(features.aggregator, projector, discriminator, coreset.to(features.device))
    scorer = scorer.to(features.device)
    scorer.autocast = autocast
    batch_size = inference_batch(features.device)

    def measure() -> list[Tensor]:
        return [torch.cat([scorer.distances(*batch) for batch in features.parts_in_order(batch_size)]).cpu()]

    (distances,) = _kept(features, ("distances", *of_features, str(autocast)), measure)
    scorer.standardise(features.parts_in_order(batch_size), distances.to(features.device))
    return scorer


def _kept(features: Any, key: tuple[Any, ...], make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Return what ``make`` makes, or made for the same features in an earlier fit."""
    memory: Memory | None = features.memory
    if memory is None:
        return make()
    tensors: list[Tensor] = memory.cache(_entry, ignore=["make"])(joblib.hash((features.store.digest, key)), make)
    return tensors


def _entry(key: str, make: Callable[[], list[Tensor]]) -> list[Tensor]:
    """Make an entry; joblib calls it only where there is none of that key."""
    return make()
