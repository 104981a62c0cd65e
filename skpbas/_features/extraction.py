"""From images to feature maps, with images decoded in background threads and feature maps cached if requested."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from typing import Any, TypeVar

import torch
from torch import Tensor

from skpbas._features.cache import CachedImage, MapCache
from skpbas._features.progress import progress_bar
from skpbas._features.recognition import UNKNOWN, TrainingImages, fingerprint
from skpbas._features.store import FeatureStore
from skpbas._inputs.decoding import check_regular_file, item_name, unmasked
from skpbas._inputs.ignoring import Ignored, ignored_pixels, nothing_left_of_scale
from skpbas._inputs.images import Geometry, ImageSequence, ViewDetails, of_several
from skpbas.core.backbones import FeatureExtractor
from skpbas.core.devices import inference_batch
from skpbas.core.patch_scores import ignored_at
from skpbas.core.tiling import Tiling
from skpbas.errors import InvalidImageError

S = TypeVar("S")
T = TypeVar("T")

_IN_FIT = (
    "its weights are finite, so the image or the backbone is at fault, not a learning rate; leave the image out, or "
    "use another backbone"
)


@dataclass(frozen=True)
class LevelBatch:
    """Feature maps of a batch of images.

    Attributes
    ----------
    names : list of str
        Of the images, in errors.
    chunks : iterator of lists of Tensor of shape (b, C_l, H_l, W_l)
        Per level, on the network's device; computed as they are consumed. All b together are the images or, in their
        order, their tiles.
    geometries : list of Geometry
    training_index : Tensor of shape (B,), int64, or None
        Which training images they are; -1: none of these. None: no image is.
    ignored : list of Ignored or None
        What does not count of each image.
    ignored_patches : Tensor of shape (B * n_tiles, P), bool, or None
        Patches that do not count, on the CPU. None: all count.
    """

    names: list[str]
    chunks: Iterator[list[Tensor]]
    geometries: list[Geometry]
    training_index: Tensor | None
    ignored: list[Ignored | None]
    ignored_patches: Tensor | None


@dataclass
class _Image:
    """An image before its pass through the network."""

    name: str
    details: ViewDetails
    view: Tensor | None = None  # (3, H, W)
    cached: CachedImage | None = None
    key: str | None = None
    training_index: int = UNKNOWN
    fingerprint: str | None = None
    ignored: Ignored | None = None
    ignored_patches: Tensor | None = None  # (n_tiles, P)


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
    training : TrainingImages or None
        Images to recognize. None: those that are read are the training images.
    tiling : Tiling or None
        Tiles of each image, which pass through the network instead of the image.
    fillable : float
        Largest share of an image that is filled if it is ignored.
    """

    def __init__(
        self,
        images: ImageSequence,
        extractor: FeatureExtractor,
        n_workers: int,
        cache: MapCache | None,
        training: TrainingImages | None = None,
        tiling: Tiling | None = None,
        fillable: float = 1.0,
    ) -> None:
        self.fillable = fillable
        self.images, self.extractor, self.n_workers, self.cache = images, extractor, n_workers, cache
        self.training, self.tiling = training, tiling
        self.n_tiles = 1 if tiling is None else tiling.n_tiles
        self.chunk_size = inference_batch(extractor.device)
        self.batch_size = max(self.chunk_size // self.n_tiles, 1)

    def batches(self, rows: Sequence[int], *, name_all: bool = True) -> Iterator[LevelBatch]:
        """Yield batches of the images at ``rows``.

        If an image is unusable and ``name_all``, the rest is decoded too, so that one error names all such images.
        """
        for batch in in_batches(self._usable(rows, name_all=name_all), self.batch_size):
            yield self._batch(batch)
        self.images.warn()

    def one_by_one(self) -> Iterator[tuple[str, LevelBatch | InvalidImageError]]:
        """Yield the name of each image, and a batch of it alone or its error.

        The images may be any iterable, which is advanced image by image. Of a sequence a few are read ahead if there
        are several workers; an iterator may wait for its next item, and may use the memory of the last one again.
        """
        numbered = enumerate(self.images.items)
        eager = self.n_workers > 1 and hasattr(self.images.items, "__getitem__")
        for name, image in prefetch(self._named, numbered, self.n_workers, eager=eager):
            self.images.warn()
            yield name, image if isinstance(image, InvalidImageError) else self._batch([image])

    def store(self, rows: Sequence[int], dtype: torch.dtype, *, show_progress: bool) -> FeatureStore:
        """Run the backbone once over the images at ``rows`` and store each level's part of their patch features."""
        shapes = self.extractor.part_shapes
        store = FeatureStore(len(rows) * self.n_tiles, shapes, dtype, self.extractor.device)
        ignored: list[Tensor | None] = []
        done, share = 0, 0.0
        with progress_bar(len(rows), "features", "image", show_progress) as bar:
            for batch in in_batches(self._usable(rows), self.batch_size):
                names = [image.name for image in batch for _ in range(self.n_tiles)]
                for maps in self._chunks(batch):
                    here, names = names[: len(maps[0])], names[len(maps[0]) :]
                    check_finite(maps, here, _IN_FIT)
                    store.put(done, self.extractor.pool(maps))
                    done += len(here)
                store.details += [image.details for image in batch]
                store.fingerprints += [image.fingerprint for image in batch if image.fingerprint is not None]
                ignored += [image.ignored_patches for image in batch]
                share = max([share, *(image.ignored.share for image in batch if image.ignored is not None)])
                bar.update(len(batch))
        store.ignored = self._ignored(ignored)
        store.ignored_share = share
        self.images.warn()
        return store

    def _usable(self, rows: Sequence[int], *, name_all: bool = True) -> Iterator[_Image]:
        return usable(prefetch(self._tried, rows, self.n_workers), len(rows) if name_all else None)

    def _tried(self, index: int) -> _Image | InvalidImageError:
        return self._named((index, self.images.items[index]))[1]

    def _named(self, numbered: tuple[int, Any]) -> tuple[str, _Image | InvalidImageError]:
        index, item = numbered
        image = unmasked(item)
        name = str(image) if isinstance(image, (str, PathLike)) else item_name(item, index, self.images.name)
        try:
            return name, self._load(index, item)
        except InvalidImageError as error:
            return name, error

    def _load(self, index: int, item: Any) -> _Image:
        name, key, found = item_name(item, index, self.images.name), None, None
        mask, item = ignored_pixels(item, name), unmasked(item)
        filled = mask if mask is not None and float(mask.mean()) <= self.fillable else None
        if self.cache is not None:
            if isinstance(item, (str, PathLike)):
                check_regular_file(item, name)  # reading a named pipe would block forever
            try:
                key = self.cache.key(item, filled)
            except Exception:
                self.images.view(index, item)  # raises an error that names the image
                raise
            found = self.cache.find(key)
        if found is not None:
            self.images.note(index, name, found.details)
            image = _Image(name, found.details, cached=found, fingerprint=found.fingerprint)
        else:
            view, details = self.images.view(index, item)
            if filled is not None:
                view = Ignored.of(filled, details.geometry, name).fill(view)
            image = _Image(name, details, view, key=key)
            if key is not None or self.training is None:
                image.fingerprint = fingerprint(view)
        if mask is not None:
            image.ignored = Ignored.of(mask, image.details.geometry, name)
            image.ignored_patches = image.ignored.at_patches(self.extractor.grid_shape, self.tiling, name)
            self._check_scales(image.ignored_patches, name)
        if self.training is not None:
            image.training_index = (
                self.training.index_of_view(image.view)
                if image.fingerprint is None and image.view is not None
                else self.training.index_of(image.fingerprint or "")
            )
        return image

    def _check_scales(self, ignored: Tensor, name: str) -> None:
        """Check that some patches of an image count at every scale."""
        extractor = self.extractor
        for _, height, width in extractor.level_shapes[extractor.n_levels :: extractor.n_levels]:
            if ignored_at(ignored, extractor.grid_shape, (height, width)).all():
                raise nothing_left_of_scale(name, height, width)

    def _batch(self, batch: list[_Image]) -> LevelBatch:
        index = [image.training_index for image in batch]
        recognized = any(i != UNKNOWN for i in index)
        return LevelBatch(
            [image.name for image in batch],
            self._chunks(batch),
            [image.details.geometry for image in batch],
            torch.tensor(index, device=self.extractor.device) if recognized else None,
            [image.ignored for image in batch],
            self._ignored([image.ignored_patches for image in batch]),
        )

    def _ignored(self, of_images: Sequence[Tensor | None]) -> Tensor | None:
        """Return the patches of images that do not count, (n * n_tiles, P), bool; None if all do."""
        if all(of_image is None for of_image in of_images):
            return None
        none = torch.zeros(self.n_tiles, math.prod(self.extractor.grid_shape), dtype=torch.bool, device="cpu")
        return torch.cat([none if of_image is None else of_image for of_image in of_images])

    def _chunks(self, batch: list[_Image]) -> Iterator[list[Tensor]]:
        views = [image.view for image in batch if image.view is not None]
        if self.cache is None:
            yield from self._computed(views)
            return
        computed = [self.cache.narrowed(chunk) for chunk in self._computed(views)]  # of all tiles, so not as float32
        new = [torch.cat(level) for level in zip(*computed, strict=True)]
        done = 0
        maps: list[list[Tensor]] = []
        for image in batch:
            if image.cached is not None:
                maps.append(image.cached.maps)
                continue
            assert image.key is not None
            assert image.fingerprint is not None
            own = [level[done : done + self.n_tiles] for level in new]
            done += self.n_tiles
            maps.append(self.cache.store(image.key, CachedImage(own, image.details, image.fingerprint)))
        parts = [torch.cat(level).split(self.chunk_size) for level in zip(*maps, strict=True)]
        for chunk in zip(*parts, strict=True):
            yield [level.to(self.extractor.device).float() for level in chunk]

    def _computed(self, views: list[Tensor]) -> Iterator[list[Tensor]]:
        """Yield the feature maps of views, or of their tiles, a few at a time."""
        if not views:
            return
        if self.tiling is None:
            yield self.extractor.feature_maps(stack_views(views))
            return
        tiles = (self.tiling.tile(view, index) for view in views for index in range(self.n_tiles))
        for few in in_batches(tiles, self.chunk_size):
            yield self.extractor.feature_maps(stack_views(few))


def check_finite(maps: Sequence[Tensor], names: Sequence[str], cause: str) -> None:
    """Check feature maps (b, C_l, H_l, W_l) of images, or of tiles of images, with these b names.

    Raises
    ------
    InvalidImageError
        NaN or infinity in the maps of an image; the message has its name and the cause.
    """
    for level in maps:
        if level.sum().isfinite():  # one number to look at, unless something is wrong
            continue
        for name, finite in zip(names, level.isfinite().flatten(1).all(1).tolist(), strict=True):
            if not finite:
                raise InvalidImageError(f"{name}: the backbone's feature maps contain NaN or infinity: {cause}")


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
