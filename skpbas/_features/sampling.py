"""Batches and samples of patch features from the feature store, for training and exemplar selection."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from skpbas._features.entries import EntryFolder
from skpbas._features.recognition import TrainingImages
from skpbas._features.store import FeatureStore
from skpbas.core.aggregation import PatchAggregator, PatchGatherer
from skpbas.core.backbones import FeatureExtractor


class TrainingFeatures(Dataset[Tensor]):
    """A subset of the stored images, with shuffled batches of their patch features.

    Parameters
    ----------
    store : FeatureStore
        Each level's part of the patch features.
    rows : Tensor of shape (n,)
        Indices of the stored images to use.
    aggregator : PatchAggregator
        Combines the parts into patch features.
    device : torch.device
        Device of the batches.
    generator : torch.Generator
        On the CPU; each pass draws a new order from it.
    memory : EntryFolder or None
        Caches exemplars across fits.
    n_tiles : int
        Tiles of an image. Each is a row of its own in the store, behind those of the images before; ``rows`` has all or
        none of an image's. An epoch draws as many rows as there are images.
    results : dict or None
        What has been computed from these rows, whatever the generator; None: nothing.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: Tensor,
        aggregator: PatchAggregator,
        device: torch.device,
        generator: torch.Generator,
        memory: EntryFolder | None = None,
        n_tiles: int = 1,
        results: dict[tuple[Any, ...], list[Tensor]] | None = None,
    ) -> None:
        self.store, self.rows, self.aggregator = store, rows, aggregator
        self.device, self.generator, self.memory = device, generator, memory
        self.n_tiles = n_tiles
        self.results = {} if results is None else results
        self.n_positions = math.prod(store.grids[0])
        known = store.fingerprints or [str(image) for image in range(len(store) // n_tiles)]
        self._numbers = torch.tensor(TrainingImages([*store.earlier, *known]).first_equal(known), device="cpu")
        self._gatherer = PatchGatherer(aggregator, store.grids).to(store.device)

    @classmethod
    def of_scales(cls, store: FeatureStore, extractor: FeatureExtractor, *args: Any) -> list[Self]:
        """Return the features of all stored images at each scale of an extractor; ``args`` from ``device`` on."""
        n, every = extractor.n_levels, torch.arange(len(store), device="cpu")
        return [
            cls(store.levels(slice(scale * n, (scale + 1) * n)), every, aggregator, *args)
            for scale, aggregator in enumerate(extractor.aggregators)
        ]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def n_images(self) -> int:
        """Number of images."""
        return len(self.rows) // self.n_tiles

    @property
    def n_earlier(self) -> int:
        """Number of images of earlier fits, whose numbers come first."""
        return len(self.store.earlier)

    @property
    def image_numbers(self) -> Tensor:
        """Numbers (n,) by which the rows' images are known to the exemplars; equal images have one number."""
        return self._numbers[self.rows // self.n_tiles]

    @property
    def ignored(self) -> Tensor | None:
        """Patches (n, P), bool, that do not count, on the CPU; None if all do."""
        return None if self.store.ignored is None else self.store.ignored[self.rows]

    @property
    def n_patches(self) -> int:
        """Number of patches that count."""
        n_ignored = 0 if self.ignored is None else int(self.ignored.sum())
        return len(self) * self.n_positions - n_ignored

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield patch features t (B, P, d) of shuffled batches of images or tiles."""
        return (self._patches(rows) for rows in self._shuffled(batch_size))

    def parts_in_order(self, batch_size: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield the parts (B, n_l, H_l, W_l) and image numbers (B,) of batches, in the order of ``rows``."""
        return (
            (self._parts(rows), self._numbers[rows // self.n_tiles].to(self.device))
            for rows in self.rows.split(batch_size)
        )

    def patch_batches(self, batch_size: int, n_patches: int | None) -> Iterator[Tensor]:
        """Yield patch features t (N, d) of shuffled batches: all, or ``n_patches`` drawn at random per batch."""
        for rows in self._shuffled(batch_size, self.n_images):
            counted = None if self.store.ignored is None else _counted(self.store.ignored[rows])
            n_counted = len(rows) * self.n_positions if counted is None else len(counted)
            if n_counted < 2:  # one patch has no variance, which the discriminator's batch norm needs
                continue
            if n_patches is None or n_patches >= n_counted:
                patches = self._patches(rows).flatten(0, 1)
                yield patches if counted is None else patches[counted.to(patches.device)]
            else:
                drawn = torch.randperm(n_counted, generator=self.generator, device="cpu")[:n_patches]
                yield self._gather(rows, drawn if counted is None else counted[drawn])

    def sample(self, n_patches: int, batch_size: int = 8192) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield batches of patch features t (N, d) and image numbers (N,): all patches, or ``n_patches`` of them.

        The sample is deterministic and spread evenly over the images, and so is every batch: the patches, numbered
        across images, are divided into ``n_patches`` equal intervals. The position within an interval and the batch
        follow multiples of irrational numbers, so that no column of the grid is favored.
        """
        counted = None if self.ignored is None else _counted(self.ignored)
        n_total = self.n_patches
        number = torch.arange(min(n_patches, n_total) + 1, device="cpu")
        edges = number * n_total // number[-1]
        offsets, ranks = (number[:-1].double() * math.sqrt(irrational) % 1 for irrational in (5, 2))
        indices = edges[:-1] + (offsets * edges.diff()).long()
        if counted is not None:
            indices = counted[indices]
        for part in indices[ranks.argsort()].split(batch_size):
            yield self._gather(self.rows, part), self.image_numbers[part // self.n_positions]

    def halves(self) -> list[TrainingFeatures]:
        """Return two random halves of the images."""
        of_images = self.rows.unflatten(0, (-1, self.n_tiles))
        order = of_images[torch.randperm(len(of_images), generator=self.generator, device="cpu")]
        return [self._view(rows.flatten(), self.generator) for rows in order.chunk(2)]

    def some(self, which: Tensor) -> TrainingFeatures:
        """Return the features of some of the rows, by a mask or by indices."""
        return self._view(self.rows[which], self.generator)

    def view(self, generator: torch.Generator) -> TrainingFeatures:
        """Return the same features with another generator."""
        return self._view(self.rows, generator, self.results)

    def _view(
        self,
        rows: Tensor,
        generator: torch.Generator,
        results: dict[tuple[Any, ...], list[Tensor]] | None = None,
    ) -> TrainingFeatures:
        options = self.memory, self.n_tiles, results
        return TrainingFeatures(self.store, rows, self.aggregator, self.device, generator, *options)

    def _shuffled(self, batch_size: int, n_rows: int | None = None) -> Iterator[Tensor]:
        order = torch.randperm(len(self), generator=self.generator, device="cpu")[:n_rows]
        yield from self.rows[order].split(batch_size)

    def _gather(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """Return the patch features (N, d) at indices ``drawn`` into all patches of the images at ``rows``."""
        device = self.store.device
        image, position = rows[drawn // self.n_positions].to(device), (drawn % self.n_positions).to(device)
        patches: Tensor = self._gatherer(self.store.tables, image, position)
        return patches.to(self.device, non_blocking=True)

    def _patches(self, rows: Tensor) -> Tensor:
        return self.aggregator.combine(self._parts(rows))

    def _parts(self, rows: Tensor) -> list[Tensor]:
        return [part.to(self.device, non_blocking=True).float() for part in self.store.get(rows)]


def _counted(ignored: Tensor) -> Tensor:
    """Return the indices of the patches that count among all, numbered across images."""
    return (~ignored).flatten().nonzero().flatten()


def as_of_now(of_scales: Sequence[TrainingFeatures]) -> list[TrainingFeatures]:
    """Return the same features with one copy of their generator in its current state."""
    generator = of_scales[0].generator.clone_state()
    return [features.view(generator) for features in of_scales]
