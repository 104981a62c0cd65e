"""From images to patch scores, image scores and anomaly maps, with memory use independent of the number of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skpbas._features.extraction import LevelBatch, LevelMaps, check_finite
from skpbas._inputs.ignoring import Ignored
from skpbas._inputs.images import Geometry
from skpbas.core.devices import callers_modes_left
from skpbas.core.model import PBASModel
from skpbas.core.patch_scores import fill_ignored
from skpbas.errors import InvalidImageError

T = TypeVar("T")


@dataclass(frozen=True)
class ScoredBatch:
    """Scores of a batch of images.

    Attributes
    ----------
    patch_scores : Tensor of shape (B, P), or (B * n_tiles, P)
    sample_scores : list of float
        ``score_samples``: minus the image scores.
    geometries : list of Geometry
    ignored : list of Ignored or None
        What does not count of each image.
    """

    patch_scores: Tensor
    sample_scores: list[float]
    geometries: list[Geometry]
    ignored: list[Ignored | None]

    def anomaly_maps(self, model: PBASModel, *, to_input: bool = False) -> Iterator[NDArray[np.float32]]:
        """Yield the anomaly map of each image, at the image's own size if ``to_input``; 0 where pixels do not count."""
        anomaly_maps = model.anomaly_maps(self.patch_scores).cpu()
        for anomaly_map, geometry, ignored in zip(anomaly_maps, self.geometries, self.ignored, strict=True):
            sized = geometry.to_input(anomaly_map) if to_input else anomaly_map
            yield sized.numpy() if ignored is None else ignored.erase(sized.numpy())


def score(model: PBASModel, batch: LevelBatch) -> ScoredBatch:
    """Return the scores of a batch; a training image is scored as if it were new.

    Raises
    ------
    InvalidImageError
        A score is not finite; the message names the image.
    """
    names, index = [name for name in batch.names for _ in range(model.n_tiles)], batch.training_index
    ignored = batch.ignored_patches
    of_rows = None if index is None else index.repeat_interleave(model.n_tiles)
    of_chunks: list[tuple[Tensor, Tensor]] = []
    done = 0
    for maps in batch.chunks:
        here = slice(done, done + len(maps[0]))
        unseen = None if ignored is None else ignored[here]
        evidence = model.evidence(maps, None if of_rows is None else of_rows[here], unseen)
        if not all(part.isfinite().all() for part in evidence):
            check_finite(maps, names[here], "the image or the weights of the backbone are at fault")
        of_chunks.append(evidence)
        done = here.stop
    patch_scores, descriptions = of_chunks[0] if len(of_chunks) == 1 else map(torch.cat, zip(*of_chunks, strict=True))
    patch_scores = fill_ignored(patch_scores, ignored, model.n_tiles)
    image_scores = model.image_scores(patch_scores, descriptions, index)
    if ignored is not None and model.whole_images is not None:
        shares = [0.0 if of_image is None else of_image.share for of_image in batch.ignored]
        whole = model.whole_images.applies(torch.tensor(shares, dtype=torch.float32, device=image_scores.device))
        image_scores = torch.where(whole, image_scores, model.image_scores(patch_scores))
    image_scores = image_scores.cpu().double()
    for name, finite, value in zip(batch.names, image_scores.isfinite(), image_scores, strict=True):
        if not finite:
            raise InvalidImageError(
                f"{name}: its score is {-float(value)}, although its feature maps are finite: the weights of the "
                "projector, the discriminator or the exemplars are at fault; fit again"
            )
    return ScoredBatch(patch_scores, (-image_scores).tolist(), batch.geometries, batch.ignored)


def iter_scored(model: PBASModel, level_maps: LevelMaps, *, name_all: bool = True) -> Iterator[ScoredBatch]:
    """Yield the scores of a sequence of images in batches; errors name the first or all unusable images."""
    for batch in level_maps.batches(range(len(level_maps.images)), name_all=name_all):
        yield score(model, batch)


def iter_stream(model: PBASModel, level_maps: LevelMaps) -> Iterator[tuple[str, ScoredBatch | InvalidImageError]]:
    """Yield the name of each image of an iterable, and its scores or its error."""
    for name, loaded in level_maps.one_by_one():
        if isinstance(loaded, InvalidImageError):
            yield name, loaded
            continue
        try:
            scored: ScoredBatch | InvalidImageError = score(model, loaded)
        except InvalidImageError as error:
            scored = error
        yield name, scored


def raised(stream: Iterator[tuple[str, ScoredBatch | InvalidImageError]]) -> Iterator[ScoredBatch]:
    """Yield the scores of a stream, and raise its first error."""
    for _, scored in stream:
        if isinstance(scored, InvalidImageError):
            raise scored
        yield scored


def sample_scores(scored: Iterator[ScoredBatch]) -> NDArray[np.float64]:
    """Return the ``score_samples`` of scored batches: (n,), higher for more normal images."""
    with callers_modes_left(grad=False):
        return np.concatenate([batch.sample_scores for batch in scored])


def iter_results(
    model: PBASModel, scored: Iterator[ScoredBatch], *, to_input: bool
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield ``score_samples`` and the anomaly map of each image, at the image's own size if ``to_input``."""
    return apart_from_caller(_iter_results(model, scored, to_input))


def apart_from_caller(results: Iterator[T]) -> Iterator[T]:
    """Advance an iterator in none of the caller's modes of torch, which apply again while the caller has a result."""
    while True:
        with callers_modes_left(grad=False):
            try:
                result = next(results)
            except StopIteration:
                return
        yield result


def _iter_results(
    model: PBASModel, scored: Iterator[ScoredBatch], to_input: bool
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    for batch in scored:
        yield from zip(batch.sample_scores, batch.anomaly_maps(model, to_input=to_input), strict=True)
