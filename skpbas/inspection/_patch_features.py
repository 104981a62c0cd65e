"""Projected patch features of images, their centers, and synthetic anomalies, as a detector computes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from skpbas._inputs.images import check_images
from skpbas.core.centers import distance_to_center, initial_center, nearest_center
from skpbas.core.devices import callers_modes_left
from skpbas.core.synthesis import along_ray, gaussian

Floats: TypeAlias = NDArray[np.floating[Any]]

_BATCH = 8  # images


def iter_patch_features(detector: Any, X: Any) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Yield patch features t (B, P, d) of images, or of their tiles, and which patches do not count (B, P)."""
    now = detector._snapshot()
    extractor = now.feature_extractor_
    items = check_images(X)
    for batch in now._level_maps(items, extractor, now._reading).batches(range(len(items))):
        n_done = 0
        for maps in batch.chunks:
            features = extractor.aggregator.combine(extractor.pool(maps)[: extractor.n_levels])
            ignored = batch.ignored_patches
            yield features, None if ignored is None else ignored[n_done : n_done + len(features)].to(features.device)
            n_done += len(features)


@dataclass(frozen=True)
class Boundary:
    """Features u = phi(t), arrays (n, d): good ones, centers, synthetic and real anomalies."""

    good: Floats
    center: Floats
    synthetic: Floats | None
    real: Floats | None


def boundary_of(detector: Any, good: Any, bad: Any, masks: list[Any], n_patches: int, seed: int) -> Boundary:
    """Return features of patches on both sides of the boundary.

    ``masks``: which pixels of the anomaly maps of ``bad`` are defective.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    with callers_modes_left(grad=False):
        u = _sampled(_projected(detector, good), n_patches, generator)
        center, synthetic = detector.center_.float(), None
        if detector.synthesis == "ray":
            radius = distance_to_center(u, center).mean()  # r of Eq. 6
            synthetic = along_ray(u, center[nearest_center(u, center)], radius, float(detector.alpha))
        elif detector.synthesis == "gaussian":
            synthetic = gaussian(u, float(detector.noise_std), torch.Generator(u.device).manual_seed(seed))
        real = _sampled(_projected(detector, bad, masks), n_patches, generator) if len(bad) else None
    return Boundary(*(None if x is None else x.numpy(force=True) for x in (u, center, synthetic, real)))  # type: ignore[arg-type]


def _projected(detector: Any, X: Any, masks: list[Any] | None = None) -> Iterator[Tensor]:
    """Yield phi(t) (n, d) of patches batch by batch: of all that count or, with masks, that are defective too."""
    defective, n_done = None if masks is None else _at_patches(detector, masks), 0
    for features, ignored in iter_patch_features(detector, X):
        chosen = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
        if ignored is not None:
            chosen &= ~ignored
        if defective is not None:
            chosen &= defective[n_done : n_done + len(features)].to(features.device)
            n_done += len(features)
        yield detector.projector_(features[chosen])


def _at_patches(detector: Any, masks: list[Any]) -> Tensor:
    """Return which patches (n, P) of images, or of their tiles, are half defective, or hold the most of a defect."""
    extractor, tiling = detector.feature_extractor_, detector._reading.tiling
    pixels = torch.stack([torch.from_numpy(mask) for mask in masks])[:, None].float()
    shares = F.adaptive_avg_pool2d(pixels if tiling is None else tiling.cut(pixels), extractor.grid_shape).flatten(1)
    of_images = shares.unflatten(0, (len(masks), -1)).flatten(1)
    most = of_images.amax(1, keepdim=True).clamp(max=0.5)
    return (of_images >= most).unflatten(1, (-1, shares.shape[1])).flatten(0, 1)


def _sampled(batches: Iterator[Tensor], n: int, generator: torch.Generator) -> Tensor:
    """Return n rows of all batches, drawn at random; no more than that and a batch is held."""
    kept, keys = None, torch.empty(0, dtype=torch.float64, device="cpu")
    for batch in batches:
        keys = torch.cat([keys, torch.rand(len(batch), generator=generator, dtype=torch.float64, device="cpu")])
        kept = batch if kept is None else torch.cat([kept, batch])
        order = keys.argsort()[:n]
        keys, kept = keys[order], kept[order.to(kept.device)]
    assert kept is not None
    return kept


def center_distances(detector: Any, X: Any) -> tuple[Floats, Floats, Floats]:
    """Return distances (n, H_0, W_0) of the patches of images, or of tiles; NaN where patches do not count.

    Of t to its nearest mean center and to its nearest aligned center, and of phi(t) to the center set of training.
    """
    with callers_modes_left(grad=False):
        found = list(iter_patch_features(detector, X))
        t = torch.cat([features for features, _ in found])
        generator, momentum = torch.Generator("cpu").manual_seed(0), float(detector.center_momentum)
        of_methods = [
            _distances(t, initial_center(lambda: t.split(_BATCH), method, momentum, generator))
            for method in ("mean", "alignment")
        ]
        of_methods.append(
            torch.cat([_distances(detector.projector_(few), detector.center_) for few in t.split(_BATCH)])
        )
    ignored = torch.cat([torch.zeros(f.shape[:2], dtype=torch.bool) if i is None else i.cpu() for f, i in found])
    grids = [
        d.cpu().masked_fill(ignored, float("nan")).unflatten(1, detector.feature_extractor_.grid_shape).double().numpy()
        for d in of_methods
    ]
    return grids[0], grids[1], grids[2]


def _distances(features: Tensor, center: Tensor) -> Tensor:
    return torch.stack([distance_to_center(of_image, center) for of_image in features])
