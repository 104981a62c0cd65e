"""From images to patch scores, image scores and anomaly maps, with memory use independent of the number of images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skpbas._features.extraction import LevelMaps
from skpbas._inputs.images import Geometry
from skpbas.core.devices import callers_modes_left
from skpbas.core.model import PBASModel
from skpbas.errors import InvalidImageError

T = TypeVar("T")
ScoredBatch = tuple[Tensor, list[Geometry]]
"""Patch scores (B, P) and the geometry of each image."""


def iter_patch_scores(model: PBASModel, level_maps: LevelMaps, *, name_all: bool = True) -> Iterator[ScoredBatch]:
    """Yield the patch scores of a sequence of images in batches; errors name the first or all unusable images."""
    for feature_maps, geometries in level_maps.batches(range(len(level_maps.images)), name_all=name_all):
        yield model.patch_scores(feature_maps), geometries


def iter_stream(model: PBASModel, level_maps: LevelMaps) -> Iterator[tuple[str, ScoredBatch | InvalidImageError]]:
    """Yield the name of each image of an iterable, and its patch scores or its error."""
    for name, loaded in level_maps.one_by_one():
        if isinstance(loaded, InvalidImageError):
            yield name, loaded
        else:
            yield name, (model.patch_scores(loaded[0]), loaded[1])


def raised(stream: Iterator[tuple[str, ScoredBatch | InvalidImageError]]) -> Iterator[ScoredBatch]:
    """Yield the patch scores of a stream, and raise its first error."""
    for _, scored in stream:
        if isinstance(scored, InvalidImageError):
            raise scored
        yield scored


def image_scores(model: PBASModel, scored: Iterator[ScoredBatch]) -> NDArray[np.float64]:
    """Return the ``score_samples`` of scored batches: (n,), higher for more normal images."""
    with callers_modes_left(grad=False):
        return -np.concatenate([model.image_scores(scores).cpu().double().numpy() for scores, _ in scored])


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
    for scores, geometries in scored:
        anomaly_maps = model.anomaly_maps(scores).cpu()
        sample_scores = (-model.image_scores(scores).cpu().double()).tolist()
        for score, anomaly_map, geometry in zip(sample_scores, anomaly_maps, geometries, strict=True):
            yield score, (geometry.to_input(anomaly_map) if to_input else anomaly_map).numpy()
