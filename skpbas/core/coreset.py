"""A few thousand training features that are close to all others, and the distance to the nearest of them.

Selected farthest point first, so that rare normal patches are represented as well as common ones (a k-center coreset,
as in PatchCore). Distances are computed in the directions that explain most of the variance of the features.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_CANDIDATES = 1024  # points whose distances are kept up to date between two passes over all points
_COLUMNS = 32  # chosen points whose distances to all others are in memory at a time
_STRIDE = 64  # columns whose smallest values are searched first
_AT_ONCE = 1024  # points whose distances to all exemplars are in memory at a time
N_GROUPS = 8
"""Groups of images in :meth:`Coreset.distance_to_groups`."""


def farthest_points(points: Tensor, k: int) -> Tensor:
    """Choose points so that every point is close to a chosen one: always the one farthest from those chosen so far.

    Distances only decrease as points are chosen. So the farthest point is searched among the thousand that were
    farthest at the last update of all distances, for as long as it is farther than all others were then.

    Parameters
    ----------
    points : Tensor of shape (n, q)
    k : int
        At most n.

    Returns
    -------
    Tensor of shape (k,), int64
        Indices, in the order of choice.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.coreset import farthest_points
    >>> points = torch.tensor([[0.0], [0.1], [0.2], [5.0], [5.1], [9.0]])
    >>> farthest_points(points, 3).tolist()
    [5, 0, 3]
    """
    squares = points.square().sum(1)
    first = (points - points.mean(0)).square().sum(1).argmax(keepdim=True)
    chosen = [first]
    distance = _squared_distances(points, squares, first)[:, 0].index_fill(0, first, -1.0)
    while (missing := k - sum(map(len, chosen))) > 0:
        then, farthest = distance.topk(min(_CANDIDATES, len(points)))
        between = _squared_distances(
            points[farthest], squares[farthest], torch.arange(len(farthest), device=points.device)
        )
        left = then
        picks: list[Tensor] = []
        while len(picks) < min(missing, len(farthest)):
            pick = left.argmax(keepdim=True)
            if picks and left[pick] < then[-1]:
                break
            picks.append(pick)
            left = torch.minimum(left, between[:, pick[0]]).index_fill(0, pick, -1.0)
        new = farthest[torch.cat(picks)]
        chosen.append(new)
        for some in new.split(_COLUMNS):
            distance = torch.minimum(distance, _squared_distances(points, squares, some).amin(1))
        distance.index_fill_(0, new, -1.0)
    return torch.cat(chosen)


def _squared_distances(points: Tensor, squares: Tensor, index: Tensor) -> Tensor:
    """Squared distances (n, m) of all points (n, q) to those at ``index`` (m,)."""
    return torch.addmm(squares[:, None], points, points[index].T, alpha=-2).add_(squares[index]).clamp_(min=0)


def principal_directions(features: Tensor, n_directions: int) -> tuple[Tensor, Tensor]:
    """Return the features' mean (d,) and the directions of largest variance as rows (q, d), orthonormal.

    Parameters
    ----------
    features : Tensor of shape (n, d)
    n_directions : int
        q is the smaller of this and d.
    """
    mean = features.mean(0)
    centered = features - mean
    _, vectors = torch.linalg.eigh((centered.T @ centered).cpu().double())  # ascending; not every device has float64
    return mean, vectors[:, -n_directions:].flip(1).T.to(features)


class Coreset(nn.Module):
    """Exemplars of the training features, and the distance to the nearest.

    Parameters
    ----------
    mean : Tensor of shape (d,)
    directions : Tensor of shape (q, d)
        Orthonormal rows.
    exemplars : Tensor of shape (K, q)
        In these directions.
    image_index : Tensor of shape (K,), int64
        Index of the training image that each exemplar is a patch of.

    Attributes
    ----------
    precision : torch.dtype
        Arithmetic of the search: float32, or bfloat16 for points and exemplars rounded to it.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.coreset import Coreset
    >>> features = torch.rand(500, 24, generator=torch.Generator().manual_seed(0))
    >>> coreset = Coreset.of([(features, torch.arange(500) % 5)], n_exemplars=64, n_directions=16)
    >>> coreset.distance(coreset.reduce(features)).shape
    torch.Size([500])
    """

    mean: Tensor
    directions: Tensor
    exemplars: Tensor
    image_index: Tensor
    _half_squares: Tensor
    _short: Tensor

    def __init__(self, mean: Tensor, directions: Tensor, exemplars: Tensor, image_index: Tensor) -> None:
        super().__init__()
        parts = {"mean": mean, "directions": directions, "exemplars": exemplars, "image_index": image_index}
        for name, value in parts.items():
            self.register_buffer(name, value)
        self._prepare()
        self.precision = torch.float32

    def _prepare(self) -> None:
        """Compute what the search needs of the exemplars."""
        self.register_buffer("_half_squares", self.exemplars.square().sum(1) / 2, persistent=False)
        self.register_buffer("_short", _with_half_squares(-self.exemplars, first=True), persistent=False)  # (K, q + 6)

    def __getstate__(self) -> dict[str, Any]:
        made = {"_half_squares", "_short"}  # which is a third of all
        return {**self.__dict__, "_buffers": {k: v for k, v in self._buffers.items() if k not in made}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._prepare()

    @classmethod
    def of(
        cls,
        batches: Iterable[tuple[Tensor, Tensor]],
        n_exemplars: int = 4096,
        n_directions: int = 128,
        basis: tuple[Tensor, Tensor] | None = None,
        known: Coreset | None = None,
    ) -> Self:
        """Select exemplars among training features.

        Parameters
        ----------
        batches : iterable of (Tensor of shape (n, d), Tensor of shape (n,))
            Features, and the indices of their images. The first batch determines the directions: it should be
            representative.
        n_exemplars, n_directions : int
            At most.
        basis : (Tensor of shape (d,), Tensor of shape (q, d)) or None, default=None
            Mean and directions, if they are known.
        known : Coreset or None, default=None
            Exemplars of earlier images, among which is selected too. Its mean and directions stay.
        """
        mean, directions = (None, None) if basis is None else basis
        points: list[Tensor] = []
        image_index: list[Tensor] = []
        if known is not None:
            mean, directions = known.mean, known.directions
            points, image_index = [known.exemplars], [known.image_index]
        for features, of_images in batches:
            if mean is None or directions is None:
                mean, directions = principal_directions(features, n_directions)
            points.append((features - mean) @ directions.T)
            image_index.append(of_images)
        assert mean is not None
        assert directions is not None
        pool = torch.cat(points)
        chosen = farthest_points(pool, min(n_exemplars, len(pool)))
        return cls(mean, directions, pool[chosen], torch.cat([i.to(pool.device) for i in image_index])[chosen])

    @property
    def spread(self) -> Tensor:
        """Root mean square distance of the exemplars to the features' mean, of shape ()."""
        return self.exemplars.square().sum(1).mean().sqrt()

    def reduce(self, features: Tensor) -> Tensor:
        """Express features (..., d) in the directions: (..., q)."""
        return (features - self.mean) @ self.directions.T

    def distance(self, points: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Return the distance of each point to the nearest exemplar.

        Parameters
        ----------
        points : Tensor of shape (N, q)
            From :meth:`reduce`.
        image_index : Tensor of shape (N,), int64, or None
            Indices of the training images that the points come from: exemplars from a point's own image do not count,
            so that it is as far away as if its image were new. None: new images.

        Returns
        -------
        Tensor of shape (N,)
        """
        return (points - self.exemplars[self(points, image_index)]).square().sum(1).sqrt()

    def forward(self, points: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Return the index of the nearest exemplar of each point (N,), int64; parameters as in :meth:`distance`.

        Another one may be returned that is as near but for rounding: of squared lengths in float32, which is much only
        for points far from the mean, and to eight bits of the squared distance in bfloat16.
        """
        if image_index is None:
            if torch.compiler.is_exporting():  # which cannot follow a number of parts that depends on the batch
                return _smallest(self._beyond(points))
            return torch.cat([_smallest(self._beyond(part)) for part in points.split(_AT_ONCE)])
        found = []
        for part, of_images in zip(points.split(_AT_ONCE), image_index.split(_AT_ONCE), strict=True):
            own = self.image_index == of_images[:, None]
            own &= ~own.all(1, keepdim=True)  # one image may own them all
            found.append(_smallest(self._beyond(part).masked_fill_(own, torch.inf)))
        return torch.cat(found)

    def distance_to_groups(self, points: Tensor, image_index: Tensor) -> Tensor:
        """Return the distance of each point to the nearest exemplar of another image in each of eight groups of images.

        Two images that nobody else is like, but each other, are close in at most two groups.

        Parameters
        ----------
        points : Tensor of shape (N, q)
            From :meth:`reduce`.
        image_index : Tensor of shape (N,), int64
            Indices of the training images that the points come from.

        Returns
        -------
        Tensor of shape (N, 8)
            Infinite where a group has no other image with an exemplar.
        """
        group = self.image_index % N_GROUPS
        by_group = group.argsort(stable=True)
        sorted_by_group = type(self)(
            self.mean, self.directions, self.exemplars[by_group], self.image_index[by_group]
        )  # so that each group is a block of columns
        sorted_by_group.precision = self.precision
        sizes = torch.bincount(group, minlength=N_GROUPS).tolist()
        parts = zip(points.split(_AT_ONCE), image_index.split(_AT_ONCE), strict=True)
        return torch.cat([sorted_by_group._distance_to_blocks(part, index, sizes) for part, index in parts])

    def _distance_to_blocks(self, points: Tensor, image_index: Tensor, sizes: list[int]) -> Tensor:
        beyond = self._beyond(points).masked_fill_(self.image_index == image_index[:, None], torch.inf)
        distances, start = [], 0
        for block, size in zip(beyond.split(sizes, dim=1), sizes, strict=True):
            if not size:
                distances.append(points.new_full((len(points),), torch.inf))
                continue
            found = _smallest(block)
            distance = (points - self.exemplars[start + found]).square().sum(1).sqrt()
            nothing = block.gather(1, found[:, None])[:, 0].isinf()
            distances.append(distance.masked_fill_(nothing, torch.inf))
            start += size
        return torch.stack(distances, dim=1)

    def _beyond(self, points: Tensor) -> Tensor:
        """Return half the squared distances (N, K) to the exemplars, in float32 less |p|^2 / 2; both are rounded."""
        if self.precision == torch.bfloat16:
            return F.linear(_with_half_squares(points, first=False), self._short)
        return torch.addmm(self._half_squares, points, self.exemplars.T, alpha=-1)


def _smallest(values: Tensor) -> Tensor:
    """Return the indices (N,) of the rows' smallest values (N, K), as ``argmin``, which is several times slower."""
    if missing := -values.shape[1] % _STRIDE:
        values = F.pad(values, (0, missing), value=torch.inf)
    by_remainder = values.unflatten(1, (-1, _STRIDE))
    remainder = by_remainder.amin(1).float().argmin(1)
    same = by_remainder.gather(2, remainder[:, None, None].expand(-1, by_remainder.shape[1], 1))[..., 0]
    return same.float().argmin(1) * _STRIDE + remainder


def _with_half_squares(points: Tensor, *, first: bool) -> Tensor:
    """Round points (n, q) to bfloat16 and append six columns: their half squared lengths, and ones to meet another's.

    The product of p, lengths behind ones, and -e, lengths ``first``, is |p|^2/2 + |e|^2/2 - p.e: the half squared
    distance itself, so that its rounding to bfloat16 is small beside it however long the points are. A length takes
    three columns, eight bits each.
    """
    short = points.bfloat16()
    left = short.float().square().sum(1, keepdim=True) / 2
    pieces = []
    for _ in range(3):
        pieces.append(left.bfloat16())
        left = left - pieces[-1].float()
    ones = [torch.ones_like(pieces[0])] * 3
    return torch.cat([short, *pieces, *ones] if first else [short, *ones, *pieces], dim=1)
