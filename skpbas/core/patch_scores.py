"""Patch scores: what trained networks say about each patch, and what follows from it for images and pixels.

A scorer takes what :meth:`PatchAggregator.pool <skpbas.core.aggregation.PatchAggregator.pool>` returns, one tensor
(B, n_l, H_l, W_l) per level, shallow first. It returns patch scores (B, P), higher for more anomalous patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skpbas.core.aggregation import PatchAggregator
from skpbas.core.centers import distance_to_center
from skpbas.core.coreset import Coreset
from skpbas.core.folding import LevelAffine, hidden_map
from skpbas.core.ignored_regions import touching
from skpbas.core.maps import MapRenderer
from skpbas.core.networks import Discriminator, Projector

LARGEST = 0.01
"""Share of an image's patches that its score is the mean of, where training images can be scored as if new."""

SMALLEST_DISTANCE = 0.01
"""Of the features' spread: 20 times the rounding of stored features, by which equal images differ."""

_EPS = torch.finfo(torch.float32).eps


class PatchScorer(nn.Module):
    """Base class of the patch scores.

    Subclasses implement :meth:`forward` and :meth:`maps`; an image's score is the largest of its patch scores (Eq. 11)
    unless they override :meth:`image_scores`.

    Attributes
    ----------
    precision : torch.dtype
        Arithmetic of the matrix products that tolerate rounding: float32 or bfloat16.
    """

    def __init__(self) -> None:
        super().__init__()
        self._precision = torch.float32

    @property
    def precision(self) -> torch.dtype:
        """Arithmetic of the matrix products that tolerate rounding."""
        return self._precision

    @precision.setter
    def precision(self, dtype: torch.dtype) -> None:
        self._precision = dtype

    def forward(
        self, pooled: Sequence[Tensor], image_index: Tensor | None = None, ignored: Tensor | None = None
    ) -> Tensor:
        """Return patch scores (B, P).

        Parameters
        ----------
        pooled : sequence of Tensor of shape (B, n_l, H_l, W_l)
            The levels' parts of the patch features, shallow first.
        image_index : Tensor of shape (B,), int64, or None
            Indices of training images, which are then scored as if they were new: nothing that was kept of an image
            itself counts. None: the images are new.
        ignored : Tensor of shape (B, P), bool, or None
            Patches that do not count: their scores mean nothing, and no others depend on them.
        """
        raise NotImplementedError

    def image_scores(self, scores: Tensor, grid_shape: tuple[int, int]) -> Tensor:
        """Return the image scores (B,) of patch scores (B, P) on a grid: the largest of each image (Eq. 11)."""
        return scores.amax(1)

    def maps(self, scores: Tensor, renderer: MapRenderer) -> Tensor:
        """Return the anomaly maps (B, H, W), in [0, 1], of patch scores (B, P)."""
        raise NotImplementedError


class DiscriminatorScorer(PatchScorer):
    """s = logit of D(phi(t)): the paper's score on a scale that does not end at 1.

    Parameters
    ----------
    aggregator : PatchAggregator
    projector : Projector
    discriminator : Discriminator
        Trained; they are not changed.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.aggregation import PatchAggregator
    >>> from skpbas.core.networks import Discriminator, Projector
    >>> from skpbas.core.patch_scores import DiscriminatorScorer
    >>> generator = torch.Generator().manual_seed(0)
    >>> aggregator = PatchAggregator([16, 32], patch_size=3, feature_dim=48)
    >>> scorer = DiscriminatorScorer(aggregator, Projector(48, generator), Discriminator(48, 64, generator))
    >>> scorer(aggregator.pool([torch.rand(2, 16, 8, 8), torch.rand(2, 32, 4, 4)])).shape
    torch.Size([2, 64])
    """

    output: Tensor

    def __init__(self, aggregator: PatchAggregator, projector: Projector, discriminator: Discriminator) -> None:
        super().__init__()
        self.hidden = LevelAffine(aggregator, *hidden_map(projector, discriminator))
        self.slope = discriminator.activation.negative_slope
        rows = discriminator.output.weight.detach()
        self.register_buffer("output", rows.flatten() / len(rows))  # (n_heads * hidden_dim,): the mean of the heads

    def forward(
        self, pooled: Sequence[Tensor], image_index: Tensor | None = None, ignored: Tensor | None = None
    ) -> Tensor:
        """Return patch scores (B, P); nothing is kept of single training images, so ``image_index`` is ignored."""
        rounded = self.precision != torch.float32
        with torch.autocast(self.output.device.type, self.precision if rounded else None, enabled=rounded):
            hidden = self.hidden(pooled)
        return F.leaky_relu_(hidden.float(), self.slope) @ self.output

    def maps(self, scores: Tensor, renderer: MapRenderer) -> Tensor:
        """Return anomaly maps (B, H, W): D(phi(t)), upsampled and smoothed (Eq. 12)."""
        return renderer(torch.sigmoid(scores)).clamp_(0, 1)


class DistanceScorer(PatchScorer):
    """s = ||phi(t) - c*||: the distance to the nearest center (ABL alone; Tables V and VI of the paper).

    Parameters
    ----------
    aggregator : PatchAggregator
    projector : Projector
        Trained; it is not changed.
    center : Tensor of shape (P, d)
    scale : float
        Distance that anomaly maps show as 0.5.
    """

    center: Tensor

    def __init__(self, aggregator: PatchAggregator, projector: Projector, center: Tensor, scale: float) -> None:
        super().__init__()
        self.projected = LevelAffine(aggregator, projector.linear.weight.detach(), projector.linear.bias.detach())
        self.register_buffer("center", center)
        self.scale = scale

    def forward(
        self, pooled: Sequence[Tensor], image_index: Tensor | None = None, ignored: Tensor | None = None
    ) -> Tensor:
        """Return patch scores (B, P); nothing is kept of single training images, so ``image_index`` is ignored."""
        u = self.projected(pooled)
        return distance_to_center(u.flatten(0, 1), self.center).view(u.shape[:2])

    def maps(self, scores: Tensor, renderer: MapRenderer) -> Tensor:
        """Return anomaly maps (B, H, W): patch scores s, upsampled and smoothed, as s / (s + scale)."""
        distances = renderer(scores)
        return distances / (distances + self.scale)


class ExemplarScorer(PatchScorer):
    """Base class of the scores that compare patches with exemplars, by which training images can be scored as if new.

    An image's score is the mean of the largest of its patch scores, each averaged with its neighbors' beforehand: what
    one odd patch says alone counts less than what several agree on.

    Attributes
    ----------
    largest : float
        Share of an image's patches whose mean score is the image score; at least one patch.
    training_scores : Tensor of shape (n,)
        Image scores of the training images, scored as if they were new.
    bias : Tensor of shape ()
        Ratio of new images' scores to these: where an image's own exemplars are left out, those of similar images that
        were not selected because of them are missing too, and the discriminator has seen the training images.
    """

    largest = LARGEST
    training_scores: Tensor
    bias: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("training_scores", _float32(1)[None])
        self.register_buffer("bias", _float32(1))

    def image_scores(self, scores: Tensor, grid_shape: tuple[int, int]) -> Tensor:
        """Return the image scores (B,) of patch scores (B, P) on a grid: the mean of the largest, smoothed."""
        return mean_of_largest(scores.unflatten(1, grid_shape), self.largest)

    def maps(self, scores: Tensor, renderer: MapRenderer) -> Tensor:
        """Return anomaly maps (B, H, W): 0.5 is the mean image score of the training images."""
        s = renderer(scores).clamp_(min=0)
        return s / (s + self.training_scores.mean().clamp_min(_EPS))

    def of_images(self, scores: Tensor, n_tiles: int) -> Tensor:
        """Return the image scores (n,) of patch scores (n * n_tiles, H_0, W_0)."""
        of_tiles = self.image_scores(scores.flatten(1), (scores.shape[1], scores.shape[2]))
        return of_tiles.unflatten(0, (-1, n_tiles)).amax(1)


class FusedScorer(ExemplarScorer):
    """s = (1 + D') * distance: the distance to the nearest exemplar, weighted by the discriminator.

    The distance tells how far a patch is from everything seen in training, the discriminator where normality ends close
    to what was seen. D' = sigmoid(z / temperature) is the temperature-scaled discriminator probability, where z is the
    discriminator's logit averaged over a patch and its eight neighbors, standardized by the mean and standard deviation
    of these averages over the training images. The distance is in units of its mean over the patches of the training
    images. There the exemplars of a patch's own image do not count, so that a training image is as far away as a new
    one.

    Parameters
    ----------
    aggregator : PatchAggregator
    projector : Projector
    discriminator : Discriminator
        Trained; they are not changed.
    coreset : Coreset
        Of the training features.
    temperature : float, default=3.0
        Of the discriminator's probability, > 0.
    """

    mean_distance: Tensor
    mean_logit: Tensor
    logit_std: Tensor

    def __init__(
        self,
        aggregator: PatchAggregator,
        projector: Projector,
        discriminator: Discriminator,
        coreset: Coreset,
        *,
        temperature: float = 3.0,
    ) -> None:
        super().__init__()
        self.discriminator = DiscriminatorScorer(aggregator, projector, discriminator)
        self.reduced = reduction(aggregator, coreset)
        self.coreset = coreset
        self.temperature = temperature
        self.register_buffer("mean_distance", _float32(1))
        self.register_buffer("mean_logit", _float32(0))
        self.register_buffer("logit_std", _float32(1))

    @torch.no_grad()
    def standardize(
        self,
        batches: Iterable[tuple[Sequence[Tensor], Tensor]],
        distances: Tensor | None = None,
        *,
        n_tiles: int = 1,
        ignored: Tensor | None = None,
    ) -> Tensor:
        """Take the scales of distances, logits and image scores from the training images.

        Parameters
        ----------
        batches : iterable of (sequence of Tensor, Tensor of shape (B,))
            Pooled parts, and the indices of their images as the coreset knows them.
        distances : Tensor of shape (n, H_0, W_0) or None
            What :meth:`distances` returns for these images, if it is known.
        n_tiles : int, default=1
            Tiles of an image: that many consecutive rows of the batches are one image.
        ignored : Tensor of shape (n, P), bool, or None
            Patches whose scores do not count.

        Returns
        -------
        Tensor of shape (n, H_0, W_0)
            Patch scores of the training images, scored as if they were new.
        """
        of_batches = [
            (self.logits(pooled), self.distances(pooled, index) if distances is None else None)
            for pooled, index in batches
        ]
        logits = torch.cat([of_batch for of_batch, _ in of_batches])
        if distances is None:
            distances = torch.cat([of_batch for _, of_batch in of_batches if of_batch is not None])
        smallest = SMALLEST_DISTANCE * self.coreset.spread
        self.mean_distance = distances.mean().clamp_min(smallest).clamp_min(_EPS)
        of_patches = mean_3x3(logits)
        self.mean_logit, self.logit_std = of_patches.mean(), of_patches.std().clamp_min(_EPS)
        scores = fill_ignored(self.fuse(logits, distances), ignored, n_tiles)
        self.training_scores = self.of_images(scores, n_tiles)
        return scores

    def forward(
        self, pooled: Sequence[Tensor], image_index: Tensor | None = None, ignored: Tensor | None = None
    ) -> Tensor:
        """Return patch scores (B, P): see :meth:`PatchScorer.forward`."""
        pooled = [part.contiguous(memory_format=torch.channels_last) for part in pooled]  # once for both
        return self.fuse(self.logits(pooled), self.distances(pooled, image_index)).flatten(1)

    def logits(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return the discriminator's logits (B, H_0, W_0)."""
        logits: Tensor = self.discriminator(pooled)
        return logits.unflatten(1, pooled[0].shape[-2:])

    def distances(self, pooled: Sequence[Tensor], image_index: Tensor | None = None) -> Tensor:
        """Return the distances to the nearest exemplar (B, H_0, W_0); parameters as in :meth:`forward`."""
        points = self.reduced(pooled)  # (B, P, q)
        index = None if image_index is None else image_index.repeat_interleave(points.shape[1])
        of_points = self.coreset.distance(points.flatten(0, 1), index)
        return of_points.unflatten(0, (points.shape[0], *pooled[0].shape[-2:]))

    def fuse(self, logits: Tensor, distance: Tensor) -> Tensor:
        """Return the scores (B, H_0, W_0) of logits and distances."""
        z = (mean_3x3(logits) - self.mean_logit) / self.logit_std
        return (1 + torch.sigmoid(z / self.temperature)) * (distance / self.mean_distance)

    @property
    def precision(self) -> torch.dtype:
        """Arithmetic of the discriminator's first layer and of the search among the exemplars."""
        return self._precision

    @precision.setter
    def precision(self, dtype: torch.dtype) -> None:
        self._precision = self.discriminator.precision = self.coreset.precision = dtype


class SummedScorer(ExemplarScorer):
    """The mean of the fused scores of one image at several scales, each in units of its training images' mean score.

    A patch that is unusual at every scale stands out against what noise makes unusual at one. Scores of smaller scales
    are interpolated to the patches of the first.

    Parameters
    ----------
    members : sequence of FusedScorer
        Largest scale first.
    """

    def __init__(self, members: Sequence[FusedScorer]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.n_levels = len(members[0].discriminator.hidden.parts)

    def forward(
        self, pooled: Sequence[Tensor], image_index: Tensor | None = None, ignored: Tensor | None = None
    ) -> Tensor:
        """Return patch scores (B, P): see :meth:`PatchScorer.forward`; ``pooled`` has the parts of all scales."""
        of_scales = []
        for scale, member in enumerate(self.members):
            parts = pooled[scale * self.n_levels : (scale + 1) * self.n_levels]
            grid_shape = parts[0].shape[-2], parts[0].shape[-1]
            scores = member(parts, image_index).unflatten(1, grid_shape)
            if ignored is not None:
                at_first = pooled[0].shape[-2], pooled[0].shape[-1]
                scores = fill_ignored(scores, ignored_at(ignored, at_first, grid_shape))
            of_scales.append(scores)
        return self.mean(of_scales).flatten(1)

    @torch.no_grad()
    def standardize(self, of_scales: Sequence[Tensor], *, n_tiles: int = 1, ignored: Tensor | None = None) -> Tensor:
        """Set the training images' scores from their patch scores (n, H_s, W_s) by the members.

        ``ignored``: patches (n, P), bool, that do not count.

        Returns
        -------
        Tensor of shape (n, H_0, W_0)
            Patch scores of the training images, scored as if they were new.
        """
        scores = fill_ignored(self.mean(of_scales), ignored, n_tiles)
        self.training_scores = self.of_images(scores, n_tiles)
        return scores

    def mean(self, of_scales: Sequence[Tensor]) -> Tensor:
        """Return the mean (B, H_0, W_0) of patch scores (B, H_s, W_s)."""
        total = torch.zeros_like(of_scales[0])
        for member, scores in zip(self.members, of_scales, strict=True):
            assert isinstance(member, FusedScorer)
            in_units = scores / member.training_scores.mean().clamp_min(_EPS)
            if scores.shape != total.shape:
                in_units = F.interpolate(in_units[:, None], total.shape[-2:], mode="bilinear", align_corners=False)[
                    :, 0
                ]
            total = total + in_units
        return total / len(of_scales)

    @property
    def precision(self) -> torch.dtype:
        """Arithmetic of the members."""
        return self._precision

    @precision.setter
    def precision(self, dtype: torch.dtype) -> None:
        self._precision = dtype
        for member in self.members:
            assert isinstance(member, FusedScorer)
            member.precision = dtype


def reduction(aggregator: PatchAggregator, coreset: Coreset) -> LevelAffine:
    """Return the map from pooled parts to patch features in the directions of a coreset, (B, P, q)."""
    directions, mean = coreset.directions.cpu().double(), coreset.mean.cpu().double()
    return LevelAffine(aggregator, directions, -directions @ mean)


def _float32(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def fill_ignored(scores: Tensor, ignored: Tensor | None, n_tiles: int = 1) -> Tensor:
    """Return scores (n * n_tiles, ...) with the mean of the others of their image in place of ``ignored`` ones.

    ``ignored``: bool, (n * n_tiles, P), or None for none.
    """
    if ignored is None:
        return scores
    ignored = ignored.to(scores.device).view(-1, n_tiles * ignored.shape[1])
    of_images = scores.reshape(ignored.shape)
    n_others = (~ignored).sum(1, keepdim=True).clamp_min(1)
    mean = of_images.masked_fill(ignored, 0).sum(1, keepdim=True) / n_others
    return torch.where(ignored, mean, of_images).view(scores.shape)


def ignored_at(ignored: Tensor, grid_shape: tuple[int, int], other: tuple[int, int]) -> Tensor:
    """Return the patches (n, H * W), bool, on another grid that touch ``ignored`` ones (n, H_0 * W_0) on a grid."""
    return touching(ignored.unflatten(1, grid_shape), other).flatten(1)


def mean_of_largest(scores: Tensor, share: float = LARGEST) -> Tensor:
    """Return the mean (B,) of the largest of an image's scores (B, H_0, W_0), smoothed; at least of one."""
    smoothed = binomial_3x3(scores).flatten(1)
    return smoothed.topk(max(round(share * smoothed.shape[1]), 1), dim=1).values.mean(1)


def binomial_3x3(scores: Tensor) -> Tensor:
    """Average (B, H_0, W_0) over each patch and its neighbors with weights 1, 2, 1 along both axes, edges repeated.

    As smooth as an anomaly map that is drawn from patches of 8 pixels with a standard deviation of 4 pixels.
    """
    padded = F.pad(scores[:, None], (1, 1, 1, 1), mode="replicate")
    return F.avg_pool2d(F.avg_pool2d(padded, 2, 1), 2, 1)[:, 0]


def mean_3x3(logits: Tensor) -> Tensor:
    """Average (B, H_0, W_0) over each patch and those of its eight neighbors that are inside the image."""
    return F.avg_pool2d(logits[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
