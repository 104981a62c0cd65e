"""Views of stored features, and the patch features that training and the choice of exemplars draw from them."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset

from skpbas._features.entries import EntryFolder
from skpbas._features.store import FeatureStore
from skpbas.core.aggregation import PatchAggregator, PatchGatherer


class TrainingFeatures(Dataset[Tensor]):
    """A view of some stored images, and the shuffled batches of patch features that training draws from it.

    Parameters
    ----------
    store : FeatureStore
        The levels' parts of the patch features.
    rows : Tensor of shape (n,)
        Stored images to use.
    aggregator : PatchAggregator
        Makes patch features of the parts.
    device : torch.device
        Where batches go.
    generator : torch.Generator
        On the CPU; every pass draws a new order from it.
    memory : EntryFolder or None
        Keeps exemplars across fits.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: Tensor,
        aggregator: PatchAggregator,
        device: torch.device,
        generator: torch.Generator,
        memory: EntryFolder | None = None,
    ) -> None:
        self.store, self.rows, self.aggregator = store, rows, aggregator
        self.device, self.generator, self.memory = device, generator, memory
        self.n_positions = math.prod(store.grids[0])
        self._gatherer = PatchGatherer(aggregator, store.grids).to(store.device)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the patch features t, (B, P, d), of shuffled batches of images."""
        return (self._of(rows) for rows in self._shuffled(batch_size))

    def parts_in_order(self, batch_size: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield the levels' parts (B, n_l, H_l, W_l) and numbers (B,) of images, in the order of ``rows``."""
        return ((self._parts(rows), rows.to(self.device)) for rows in self.rows.split(batch_size))

    def patch_batches(self, batch_size: int, n_patches: int | None) -> Iterator[Tensor]:
        """Yield patch features t, (N, d): all or ``n_patches``, drawn at random, of shuffled batches of images."""
        for rows in self._shuffled(batch_size):
            if n_patches is None or n_patches >= len(rows) * self.n_positions:
                yield self._of(rows).flatten(0, 1)
            else:
                drawn = torch.randperm(len(rows) * self.n_positions, generator=self.generator)[:n_patches]
                yield self._gather(rows, drawn)

    def sample(self, n_patches: int, batch_size: int = 8192) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield patch features t, (N, d), and their images' numbers (N,), in batches: all, or ``n_patches`` of them.

        They are spread evenly over the images, and so is every batch, and no seed moves them: the places, numbered
        through the images, are cut into ``n_patches`` equal stretches. Where in its stretch a patch lies, and in which
        batch it comes, goes by multiples of irrational numbers, so that no column of the grid is preferred.
        """
        n_places = len(self) * self.n_positions
        number = torch.arange(min(n_patches, n_places) + 1)
        edges = number * n_places // number[-1]
        shares, turns = (number[:-1].double() * math.sqrt(irrational) % 1 for irrational in (5, 2))
        places = edges[:-1] + (shares * edges.diff()).long()
        for part in places[turns.argsort()].split(batch_size):
            yield self._gather(self.rows, part), self.rows[part // self.n_positions]

    def halves(self) -> list[TrainingFeatures]:
        """Split the images into two halves at random."""
        order = self.rows[torch.randperm(len(self), generator=self.generator)]
        return [self._view(rows, self.generator) for rows in order.chunk(2)]

    def as_of_now(self) -> TrainingFeatures:
        """Return the same features with a generator of their own, which goes on from where this one is."""
        return self._view(self.rows, self.generator.clone_state())

    def _view(self, rows: Tensor, generator: torch.Generator) -> TrainingFeatures:
        return TrainingFeatures(self.store, rows, self.aggregator, self.device, generator, self.memory)

    def _shuffled(self, batch_size: int) -> Iterator[Tensor]:
        yield from self.rows[torch.randperm(len(self), generator=self.generator)].split(batch_size)

    def _gather(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """Return the patch features (N, d) at places numbered through the images at ``rows``."""
        home = self.store.device
        image, position = rows[drawn // self.n_positions].to(home), (drawn % self.n_positions).to(home)
        patches: Tensor = self._gatherer(self.store.tables, image, position)
        return patches.to(self.device, non_blocking=True)

    def _of(self, rows: Tensor) -> Tensor:
        return self.aggregator.combine(self._parts(rows))

    def _parts(self, rows: Tensor) -> list[Tensor]:
        return [part.to(self.device, non_blocking=True).float() for part in self.store.get(rows)]
