"""Exemplars of the training features and the distances of the training images to them, cached by ``memory``.

They depend only on the features, not on a seed or on anything trained, so candidates of a search that differ in
``alpha``, a learning rate or ``random_state`` share them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from skpbas._features.digests import digest_of, tensor_digest
from skpbas._features.sampling import TrainingFeatures
from skpbas._training.threshold import discriminator_bias
from skpbas.core.coreset import Coreset
from skpbas.core.devices import inference_batch
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.patch_scores import FusedScorer, fill_ignored, reduction

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
    discriminator_bias : float, default=1
        Ratio of scores of images that the discriminator was not trained on to those of ``as_new``.
    """

    as_new: Tensor
    held_out: Tensor
    of_held_out: Tensor
    discriminator_bias: float = 1.0

    def bias(self, of_images: Callable[[Tensor], Tensor], n_tiles: int) -> float:
        """Return the ratio of what new images and training images scored as new have, as a geometric mean.

        ``of_images`` returns a positive value (n,) for each image with these patch scores (n * n_tiles, H_0, W_0).
        """
        if not len(self.held_out):
            return self.discriminator_bias
        new, as_new = of_images(self.of_held_out), of_images(self.as_new[self.held_out.to(self.as_new.device)])
        smallest = torch.finfo(torch.float32).eps
        new, as_new = (values.cpu().double().clamp_min(smallest) for values in (new, as_new))  # no float64 on mps
        return self.discriminator_bias * float((new.log() - as_new.log()).mean().exp())


@dataclass(frozen=True)
class Exemplars:
    """Exemplars of training features, and how far the training patches are from them.

    Attributes
    ----------
    coreset : Coreset
        On the features' device.
    nearest : Tensor of shape (n, H_0, W_0)
        Distances of the training patches to the nearest exemplar of another image.
    third : Tensor of shape (n, H_0, W_0)
        The third smallest of the distances to eight groups of other images: what is left if the two images that are
        most like an image are missing. Infinite if there are fewer than three groups.
    """

    coreset: Coreset
    nearest: Tensor
    third: Tensor


def exemplars_of(
    features: TrainingFeatures,
    precision: torch.dtype,
    n_exemplars: int,
    pool_size: int = POOL_SIZE,
    known: Coreset | None = None,
) -> Exemplars:
    """Select exemplars among the patches of training images.

    Parameters
    ----------
    features : TrainingFeatures
    precision : torch.dtype
        Of the distances.
    n_exemplars : int
        Limited to a quarter of the training patches, and those that are known.
    pool_size : int, default=262144
        Number of patches that exemplars are selected from.
    known : Coreset or None, default=None
        Exemplars of earlier images, among which is selected too; without ``memory``, which does not know them.
    """
    n_exemplars, key = _limited(features, n_exemplars, pool_size, known)

    def select() -> list[Tensor]:
        coreset = Coreset.of(features.sample(pool_size), n_exemplars, known=known)
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

    coreset = Coreset(*_cached(features, ("exemplars", *key), select, are_exemplars)).to(features.device)
    coreset.precision = precision

    def measure() -> list[Tensor]:
        reduced = reduction(features.aggregator, coreset).to(features.device)
        found = []
        for parts, numbers in features.parts_in_order(inference_batch(features.device)):
            points, index = reduced(parts).flatten(0, 1), numbers.repeat_interleave(features.n_positions)
            sorted_groups = coreset.distance_to_groups(points, index).sort(dim=1).values
            nearest = sorted_groups[:, 0]
            if nearest.isinf().any():  # one image may own all exemplars
                nearest = torch.where(nearest.isinf(), coreset.distance(points), nearest)
            found.append(torch.stack([nearest, sorted_groups[:, 2]]).unflatten(1, (len(parts[0]), *grid_shape)))
        filled = [fill_ignored(of_all, features.ignored, features.n_tiles) for of_all in torch.cat(found, dim=1)]
        return [torch.stack(filled).cpu()]

    def are_distances(parts: Sequence[Tensor]) -> bool:
        shape = (2, len(features), *grid_shape)
        return len(parts) == 1 and parts[0].shape == shape and parts[0].dtype == torch.float32

    grid_shape = features.store.grids[0]
    (distances,) = _cached(features, ("distances", *key, str(precision)), measure, are_distances)
    return Exemplars(coreset, *distances.to(features.device))


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
    n_exemplars, pool_size : int
        As for :func:`exemplars_of`.
    """
    found = exemplars_of(features, precision, n_exemplars, pool_size)
    scorer = FusedScorer(features.aggregator, projector, discriminator, found.coreset).to(features.device)
    scorer.precision = precision
    parts = features.parts_in_order(inference_batch(features.device))
    as_new = scorer.standardize(parts, found.nearest, n_tiles=features.n_tiles, ignored=features.ignored)
    scores = with_held_out(features, scorer, as_new, n_exemplars, pool_size)
    n_different = len(features.image_numbers.unique()) * features.n_tiles
    return scorer, replace(scores, discriminator_bias=discriminator_bias(n_different))


def with_held_out(
    features: TrainingFeatures,
    scorer: FusedScorer,
    as_new: Tensor,
    n_exemplars: int,
    pool_size: int = POOL_SIZE,
    known: Coreset | None = None,
) -> TrainingPatchScores:
    """Return patch scores of training images as if they were new (n, H_0, W_0), and those of a fifth, held out.

    Parameters are those of :func:`exemplars_of`; the scorer has its scales.
    """
    held_out = _rows_held_out(features.image_numbers, features.n_earlier)
    if not len(held_out):
        return TrainingPatchScores(as_new, held_out, as_new[:0])
    those = features.some(held_out)
    distances = _distances_held_out(features, held_out, scorer.coreset, n_exemplars, pool_size, known)
    logits = torch.cat([scorer.logits(parts) for parts, _ in those.parts_in_order(inference_batch(features.device))])
    of_held_out = fill_ignored(scorer.fuse(logits, distances), those.ignored, features.n_tiles)
    return TrainingPatchScores(as_new, held_out, of_held_out)


def _distances_held_out(
    features: TrainingFeatures,
    held_out: Tensor,
    coreset: Coreset,
    n_exemplars: int,
    pool_size: int,
    known: Coreset | None,
) -> Tensor:
    """Return the distances (m, H_0, W_0) of the patches of ``held_out`` (m,) to exemplars of the other images alone.

    These are selected anew: to keep those of the first selection would leave holes where the images' own ones were.
    """
    n_exemplars, key = _limited(features, n_exemplars, pool_size, known)
    grid_shape = features.store.grids[0]

    def measure() -> list[Tensor]:
        others = features.some(~torch.isin(torch.arange(len(features), device="cpu"), held_out))
        basis = coreset.mean, coreset.directions
        sample = others.sample(pool_size // 4)  # a quarter says as much
        of_others = Coreset.of(sample, n_exemplars, basis=basis, known=known)
        of_others.precision = coreset.precision
        reduced = reduction(features.aggregator, coreset).to(features.device)
        batches = features.some(held_out).parts_in_order(inference_batch(features.device))
        found = [
            of_others.distance(reduced(parts).flatten(0, 1)).unflatten(0, (-1, *grid_shape)) for parts, _ in batches
        ]
        return [torch.cat(found).cpu()]

    def are_distances(parts: Sequence[Tensor]) -> bool:
        return len(parts) == 1 and parts[0].shape == (len(held_out), *grid_shape) and parts[0].dtype == torch.float32

    (distances,) = _cached(features, ("held out", *key, str(coreset.precision)), measure, are_distances)
    return distances.to(features.device)


def _limited(
    features: TrainingFeatures, n_exemplars: int, pool_size: int, known: Coreset | None
) -> tuple[int, tuple[Any, ...]]:
    """Return the number of exemplars, and what they depend on besides the stored features and those that are known."""
    n_known = 0 if known is None else len(known.exemplars)
    n_exemplars = max(min(n_exemplars, n_known + features.n_patches // 4), 1)
    rows = tensor_digest(torch.stack([features.rows, features.image_numbers])).hex()
    ignored = None if features.ignored is None else tensor_digest(features.ignored).hex()
    return n_exemplars, (features.aggregator.feature_dim, rows, features.n_tiles, ignored, n_exemplars, pool_size)


def _rows_held_out(image_numbers: Tensor, n_earlier: int = 0) -> Tensor:
    """Return the rows of every fifth image, with all that equal it, if there are three different ones or more.

    Of images that were given before, with numbers below ``n_earlier``, none: their exemplars are not left out.
    """
    different = image_numbers[image_numbers >= n_earlier].unique()
    chosen = different[::_N_FOLDS] if len(different) >= 3 else different[:0]
    return torch.isin(image_numbers, chosen).nonzero().flatten()


def _cached(
    features: TrainingFeatures,
    key: tuple[Any, ...],
    make: Callable[[], list[Tensor]],
    fits: Callable[[Sequence[Tensor]], bool],
) -> list[Tensor]:
    """Return ``make()``, or its result from earlier in this fit or from another fit on the same features."""
    if key not in features.results:
        features.results[key] = (
            make()
            if features.memory is None
            else features.memory.cached(digest_of(features.store.digest, repr(key)).hex(), make, fits)
        )
    return features.results[key]
