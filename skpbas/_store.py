"""Frozen features, computed once a fit and kept for every epoch (the backbone is 30 % of the paper's step)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from skpbas._images import ImageSequence, load_in_order
from skpbas._progress import progress_bar
from skpbas.core.backbones import FeatureExtractor

_HALF_PRECISION_LIMIT = 6e4  # float16 ends at 65,504


class FeatureStore:
    """The levels' maps of a set of images, in memory.

    Keeping the maps at their own resolution takes less than the aggregated features would (1.5 MiB an image for
    WideResNet50-2 at 256 pixels in float16, 0.4 MiB for ResNet18), and rounding them moves scores less.

    Parameters
    ----------
    n_images : int
    level_shapes : sequence of (int, int, int)
        Channels, height and width of each level.
    dtype : torch.dtype
        Storage; float16 becomes float32 where a value would not fit.
    """

    def __init__(self, n_images: int, level_shapes: Sequence[tuple[int, int, int]], dtype: torch.dtype) -> None:
        # channels last in memory: what the aggregation reads fastest
        self._levels = [torch.empty(n_images, h, w, c, dtype=dtype) for c, h, w in level_shapes]

    def __len__(self) -> int:
        return len(self._levels[0])

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the maps take."""
        return sum(level.nbytes for level in self._levels)

    def put(self, start: int, maps: Sequence[Tensor]) -> None:
        """Write the maps (B, C_l, H_l, W_l) of a batch of images from position ``start``."""
        for i, level in enumerate(maps):
            if self._levels[i].dtype == torch.float16 and float(level.abs().max()) > _HALF_PRECISION_LIMIT:
                self._levels[i] = self._levels[i].float()
            self._levels[i][start : start + len(level)] = level.permute(0, 2, 3, 1).to(self._levels[i].dtype)

    def get(self, index: Tensor) -> list[Tensor]:
        """Return the maps (B, C_l, H_l, W_l), as stored, of the images at ``index``."""
        return [level[index].permute(0, 3, 1, 2) for level in self._levels]


def iter_batches(
    images: ImageSequence, rows: Sequence[int], batch_size: int, n_workers: int
) -> Iterator[tuple[Tensor, list[Any]]]:
    """Yield (B, 3, H, W) views and their geometries, decoded ahead by threads."""
    views: list[Tensor] = []
    geometries = []
    for done, (view, geometry) in enumerate(load_in_order(images, rows, n_workers), start=1):
        if views and view.dtype != views[0].dtype:  # 8-bit and 16-bit images in one batch
            views = [v / 255 if v.dtype == torch.uint8 else v for v in views]
            view = view / 255 if view.dtype == torch.uint8 else view
        views.append(view)
        geometries.append(geometry)
        if len(views) == batch_size or done == len(rows):
            yield torch.stack(views), geometries
            views, geometries = [], []


def extract_features(
    images: ImageSequence,
    rows: Sequence[int],
    extractor: FeatureExtractor,
    *,
    dtype: torch.dtype,
    batch_size: int,
    n_workers: int,
    show_progress: bool,
) -> FeatureStore:
    """Run the backbone once over the images at ``rows`` and keep what it says."""
    store = FeatureStore(len(rows), extractor.level_shapes, dtype)
    done = 0
    with progress_bar(len(rows), "features", "image", show_progress) as bar:
        for views, _ in iter_batches(images, rows, batch_size, n_workers):
            store.put(done, extractor.maps(views))
            done += len(views)
            bar.update(len(views))
    images.warn_of_crops()
    return store
