"""Exemplars of the training features and the distances of the training images to them, cached by ``memory``.

They depend only on the features, not on a seed or on anything trained, so candidates of a search that differ in
``alpha``, a learning rate or ``random_state`` share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
_N_FOLDS = 5


@dataclass(frozen=True)
class TrainingPatchScores:
    """Patch scores of training images by an exemplar scorer.

    Attributes
    ----------
    as_new : Tensor of shape (n, H_0, W_0)
        Without the exemplars of the image itself.
    held_out : Tensor of shape (m,), int64
        Rows of a fifth of the images; none, if there are fewer than three different ones.
    of_held_out : Tensor of shape (m, H_0, W_0)
        Their scores against exemplars that were selected among the other images, as if these were all.
    """

    as_new: Tensor
    held_out: Tensor
    of_held_out: Tensor

    def bias(self, of_images: Callable[[Tensor], Tensor], n_tiles: int) -> float:
        """Return the ratio of what new images and training images scored as new have, as a geometric mean.

        ``of_images`` returns a positive value (n,) for each image with these patch scores (n * n_tiles, H_0, W_0).
        """
        if not len(self.held_out):
            return 1.0
        new, as_new = of_images(self.of_held_out), of_images(self.as_new[self.held_out.to(self.as_new.device)])
        smallest = torch.finfo(torch.float32).eps
        new, as_new = (values.cpu().double().clamp_min(smallest) for values in (new, as_new))  # no float64 on mps
        return float((new.log() - as_new.log()).mean().exp())


def fused_scorer(
    features: TrainingFeatures,
    projector: Projector,
    discriminator: Discriminator,
    precision: torch.dtype,
    *,
    n_exemplars: int,
    pool_size: int = POOL_SIZE,
) -> tuple[FusedScorer, TrainingPatchScores]:
    """Return the fused scorer of a trained head, with its scales set from the training images, and their patch scores.

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
    as_new = scorer.standardize(parts, distances.to(features.device), n_tiles=features.n_tiles)

    held_out = _rows_held_out(features.image_numbers)
    if not len(held_out):
        return scorer, TrainingPatchScores(as_new, held_out, as_new[:0])
    others, those = (
        features.some(rows) for rows in (~torch.isin(torch.arange(len(features), device="cpu"), held_out), held_out)
    )

    def measure_held_out() -> list[Tensor]:
        of_others = Coreset.of(others.sample(pool_size), n_exemplars, basis=(coreset.mean, coreset.directions))
        of_others.precision = precision
        found = [
            of_others.distance(scorer.reduced(parts).flatten(0, 1)).view(-1, *features.store.grids[0])
            for parts, _ in those.parts_in_order(batch_size)
        ]
        return [torch.cat(found).cpu()]

    def are_held_out(parts: Sequence[Tensor]) -> bool:
        shape = (len(held_out), *features.store.grids[0])
        return len(parts) == 1 and parts[0].shape == shape and parts[0].dtype == torch.float32

    (distances,) = _cached(features, ("held out", *feature_key, str(precision)), measure_held_out, are_held_out)
    logits = torch.cat([scorer.logits(parts) for parts, _ in those.parts_in_order(batch_size)])
    return scorer, TrainingPatchScores(as_new, held_out, scorer.fuse(logits, distances.to(features.device)))


def _rows_held_out(image_numbers: Tensor) -> Tensor:
    """Return the rows of every fifth image, with all that equal it, if there are three different ones or more."""
    different = image_numbers.unique()
    chosen = different[::_N_FOLDS] if len(different) >= 3 else different[:0]
    return torch.isin(image_numbers, chosen).nonzero().flatten()


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
