"""From images to patch scores, image scores and anomaly maps, with memory use independent of the number of images."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skpbas._features.extraction import LevelMaps
from skpbas._inputs.images import Geometry
from skpbas.core.model import PBASModel

ScoredBatch = tuple[Tensor, list[Geometry]]
"""Patch scores (B, P) and the geometry of each image."""


def iter_patch_scores(model: PBASModel, level_maps: LevelMaps) -> Iterator[ScoredBatch]:
    """Yield the patch scores of all images in batches."""
    for feature_maps, geometries in level_maps.batches(range(len(level_maps.images))):
        yield model.patch_scores(feature_maps), geometries


def image_scores(model: PBASModel, scored: Iterator[ScoredBatch]) -> NDArray[np.float64]:
    """Return the ``score_samples`` of scored batches: (n,), higher for more normal images."""
    return -np.concatenate([model.image_scores(scores).cpu().double().numpy() for scores, _ in scored])


def iter_results(
    model: PBASModel, scored: Iterator[ScoredBatch], *, to_input: bool
) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """Yield ``score_samples`` and the anomaly map of each image, at the image's own size if ``to_input``."""
    for scores, geometries in scored:
        anomaly_maps = model.anomaly_maps(scores).cpu()
        sample_scores = (-model.image_scores(scores).cpu().double()).tolist()
        for score, anomaly_map, geometry in zip(sample_scores, anomaly_maps, geometries, strict=True):
            yield score, (geometry.to_input(anomaly_map) if to_input else anomaly_map).numpy()
