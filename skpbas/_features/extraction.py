"""From images to feature maps, with images decoded in background threads and feature maps cached if requested."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor

from skpbas._features.cache import MapCache
from skpbas._features.progress import progress_bar
from skpbas._features.store import FeatureStore
from skpbas._inputs.decoding import item_name
from skpbas._inputs.images import Geometry, ImageSequence, of_several
from skpbas.core.backbones import FeatureExtractor
from skpbas.core.devices import inference_batch
from skpbas.errors import InvalidImageError

S = TypeVar("S")
T = TypeVar("T")
LevelBatch = tuple[list[Tensor], list[Geometry]]
"""Feature maps (B, C_l, H_l, W_l) per level, and the geometry of each image."""


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

    def batches(self, rows: Sequence[int], *, name_all: bool = True) -> Iterator[LevelBatch]:
        """Yield feature maps (B, C_l, H_l, W_l), on the network's device, and geometries of the images at ``rows``.

        If an image is unusable and ``name_all``, the rest is decoded too, so that one error names all such images.
        """
        loaded = usable(prefetch(self._tried, rows, self.n_workers), len(rows) if name_all else None)
        for batch in in_batches(loaded, self.batch_size):
            yield self._maps(batch), [image.geometry for image in batch]
        self.images.warn()

    def one_by_one(self) -> Iterator[tuple[str, LevelBatch | InvalidImageError]]:
        """Yield the name of each image, and its feature maps (1, C_l, H_l, W_l) and geometry, or its error.

        The images may be any iterable, which is advanced image by image; more than one worker reads a few ahead.
        """
        numbered = enumerate(self.images.items)
        for name, image in prefetch(self._named, numbered, self.n_workers, eager=self.n_workers > 1):
            self.images.warn()
            yield name, image if isinstance(image, InvalidImageError) else (self._maps([image]), [image.geometry])

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
                self._check_finite(maps, rows[done : done + len(geometries)])
                store.put(done, aggregator.pool(maps))
                done += len(geometries)
                bar.update(len(geometries))
        return store

    def _check_finite(self, maps: Sequence[Tensor], rows: Sequence[int]) -> None:
        """Check the feature maps (B, C_l, H_l, W_l) of the images at ``rows``, whose weights are known to be finite."""
        for level in maps:
            if level.sum().isfinite():  # one number to look at, unless something is wrong
                continue
            bad = (~level.isfinite()).flatten(1).any(1).tolist()
            for row in (row for row, is_bad in zip(rows, bad, strict=True) if is_bad):
                raise InvalidImageError(
                    f"{self._name(row)}: the backbone's feature maps contain NaN or infinity. Its weights are finite, "
                    "so the image or the backbone is at fault, not a learning rate: leave this image out, or use "
                    "another backbone"
                )

    def _name(self, index: int) -> str:
        return item_name(self.images.items[index], index, self.images.name)

    def _tried(self, index: int) -> _Image | InvalidImageError:
        return self._named((index, self.images.items[index]))[1]

    def _named(self, numbered: tuple[int, Any]) -> tuple[str, _Image | InvalidImageError]:
        index, item = numbered
        name = str(item) if isinstance(item, (str, PathLike)) else item_name(item, index, self.images.name)
        try:
            return name, self._load(index, item)
        except InvalidImageError as error:
            return name, error

    def _load(self, index: int, item: Any) -> _Image:
        if self.cache is None:
            view, geometry = self.images.view(index, item)
            return _Image(geometry, view)
        try:
            key = self.cache.key(item)
        except Exception:
            self.images.view(index, item)  # raises an error that names the image
            raise
        found = self.cache.find(key)
        if found is not None:
            maps, geometry = found
            self.images.note(index, geometry)
            return _Image(geometry, maps=maps)
        view, geometry = self.images.view(index, item)
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
        views = [view.float() / 255 if view.dtype == torch.uint8 else view for view in views]
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


def usable(images: Iterable[T | InvalidImageError], n_images: int | None) -> Iterator[T]:
    """Yield images up to the first error; then consume the rest and raise one error for all that are unusable.

    If ``n_images``, the total in the error's message, is None, the first error is raised immediately.
    """
    errors: list[InvalidImageError] = []
    for image in images:
        if isinstance(image, InvalidImageError):
            if n_images is None:
                raise image
            errors.append(image)
        elif not errors:
            yield image
    if errors:
        raise of_several(errors, n_images or len(errors))


def prefetch(load: Callable[[S], T], order: Iterable[S], n_workers: int, *, eager: bool = True) -> Iterator[T]:
    """Yield ``load(i)`` in the given order, computed in advance by threads if ``eager``; few results are held."""
    if not eager:
        yield from map(load, order)
        return
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
