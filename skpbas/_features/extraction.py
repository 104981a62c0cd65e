"""From images to feature maps, with images decoded in background threads and feature maps cached if requested."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from skpbas._features.cache import MapCache
from skpbas._features.progress import progress_bar
from skpbas._features.store import FeatureStore
from skpbas._inputs.images import Geometry, ImageSequence
from skpbas.core.backbones import FeatureExtractor
from skpbas.core.devices import inference_batch

T = TypeVar("T")


@dataclass
class _Image:
    """An image before its pass through the network."""

    geometry: Geometry
    view: Tensor | None = None  # (3, H, W)
    maps: list[Tensor] | None = None  # (1, C_l, H_l, W_l) each, if cached
    key: str | None = None


class LevelMaps:
    """Batches of the feature maps of a sequence of images.

    Parameters
    ----------
    images : ImageSequence
    extractor : FeatureExtractor
    n_workers : int
        Number of decoding threads.
    cache : MapCache or None
        Cache of feature maps.
    """

    def __init__(
        self, images: ImageSequence, extractor: FeatureExtractor, n_workers: int, cache: MapCache | None
    ) -> None:
        self.images, self.extractor, self.n_workers, self.cache = images, extractor, n_workers, cache
        self.batch_size = inference_batch(extractor.device)

    def batches(self, rows: Sequence[int]) -> Iterator[tuple[list[Tensor], list[Geometry]]]:
        """Yield feature maps (B, C_l, H_l, W_l), on the network's device, and geometries of the images at ``rows``."""
        for batch in in_batches(prefetch(self._load, rows, self.n_workers), self.batch_size):
            yield self._maps(batch), [image.geometry for image in batch]
        self.images.warn_of_crops()

    def store(self, rows: Sequence[int], dtype: torch.dtype, *, show_progress: bool) -> FeatureStore:
        """Run the backbone once over the images at ``rows`` and store each level's part of their patch features."""
        aggregator = self.extractor.aggregator
        shapes = [
            (outputs.stop - outputs.start, height, width)
            for outputs, (_, height, width) in zip(aggregator.outputs, self.extractor.level_shapes, strict=True)
        ]
        store = FeatureStore(len(rows), shapes, dtype, self.extractor.device)
        done = 0
        with progress_bar(len(rows), "features", "image", show_progress) as bar:
            for maps, geometries in self.batches(rows):
                store.put(done, aggregator.pool(maps))
                done += len(geometries)
                bar.update(len(geometries))
        return store

    def _load(self, index: int) -> _Image:
        if self.cache is None:
            view, geometry = self.images.load(index)
            return _Image(geometry, view)
        try:
            key = self.cache.key(self.images.items[index])
        except OSError:
            self.images.load(index)  # raises an error that names the image
            raise
        found = self.cache.find(key)
        if found is not None:
            maps, geometry = found
            self.images.note(index, geometry)
            return _Image(geometry, maps=maps)
        view, geometry = self.images.load(index)
        return _Image(geometry, view, key=key)

    def _maps(self, batch: list[_Image]) -> list[Tensor]:
        views = [image.view for image in batch if image.view is not None]
        computed = self.extractor.feature_maps(stack_views(views)) if views else []
        if self.cache is None:
            return computed
        new = iter(range(len(views)))
        for image in batch:
            if image.maps is None:
                assert image.key is not None
                i = next(new)
                image.maps = self.cache.store(image.key, [level[i : i + 1] for level in computed], image.geometry)
        levels = zip(*(image.maps for image in batch if image.maps is not None), strict=True)
        return [torch.cat(level).to(self.extractor.device).float() for level in levels]


def stack_views(views: Sequence[Tensor]) -> Tensor:
    """Stack views into (B, 3, H, W); if 8-bit and 16-bit images are mixed, all become floats in [0, 1]."""
    if len({view.dtype for view in views}) > 1:
        views = [view / 255 if view.dtype == torch.uint8 else view for view in views]
    return torch.stack(list(views))


def in_batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield lists of ``size`` items; the last may be shorter."""
    batch: list[T] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def prefetch(load: Callable[[int], T], order: Iterable[int], n_workers: int) -> Iterator[T]:
    """Yield ``load(i)`` in the given order, computed in advance by threads; few results are held at a time."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(n_workers, thread_name_prefix="skpbas-decode") as pool:
        try:
            for index in order:
                pending.append(pool.submit(load, index))
                if len(pending) > 2 * n_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
