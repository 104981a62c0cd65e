"""What a trained detector runs: the levels' parts of patch features to patch scores, and those to maps (METHOD 6).

Each scorer takes what :meth:`PatchAggregator.pool` gives, (B, n_l, H_l, W_l), shallow first, and returns patch scores
(B, P), higher for more anomalous. An image's score is the largest of its patches' (Eq. 11), or the mean of a few. The
attribute ``autocast`` is the arithmetic of the discriminator's first layer, None for float32.
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
from skpbas.core.maps import MapRenderer
from skpbas.core.networks import Discriminator, Projector

_TEMPERATURE = 3.0  # of the discriminator's word in the fused score
_LARGEST = 10  # patches whose scores make an image's fused score
_EPS = torch.finfo(torch.float32).eps


class DiscriminatorScorer(nn.Module):
    """s = logit of D(phi(t)): the article's score on a scale that does not end at 1.

    Parameters
    ----------
    aggregator : PatchAggregator
    projector : Projector
    discriminator : Discriminator
        Trained; they stay as they are.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.aggregation import PatchAggregator
    >>> from skpbas.core.networks import Discriminator, Projector
    >>> from skpbas.core.scorers import DiscriminatorScorer
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
        self.register_buffer("output", rows.flatten() / len(rows))  # (n_heads * hidden_dim,): the heads' mean
        self.autocast: torch.dtype | None = None

    @torch.no_grad()
    def forward(self, pooled: Sequence[Tensor], images: Tensor | None = None) -> Tensor:
        """Return patch scores (B, P), which depend on no training image by number."""
        with torch.autocast(self.output.device.type, self.autocast, enabled=self.autocast is not None):
            hidden = self.hidden(pooled)
        return F.leaky_relu_(hidden.float(), self.slope) @ self.output

    def of_images(self, scores: Tensor) -> Tensor:
        """Return image scores (B,): the largest of the patches' (Eq. 11)."""
        return scores.amax(1)

    def maps(self, scores: Tensor, renderer: MapRenderer) -> Tensor:
        """Render patch scores: D(phi(t)), upsampled and smoothed (Eq. 12), in [0, 1]."""
        return renderer(torch.sigmoid(scores)).clamp_(0, 1)


class DistanceScorer(nn.Module):
    """s = ||phi(t) - c*||: the distance to the nearest centre (ABL alone; Table V and VI).

    Parameters
    ----------
    aggregator : PatchAggregator
    projector : Projector
        Trained; it stays as it is.
    center : Tensor of shape (P, d)
    scale : float
        Distance that maps show as 0.5.
    """

    center: Tensor

    def __init__(self, aggregator: PatchAggregator, projector: Projector, center: Tensor, scale: float) -> None:
        super().__init__()
        self.projected = LevelAffine(aggregator, projector.linear.weight.detach(), projector.linear.bias.detach())
        self.register_buffer("center", center)
        self.scale = scale
        self.autocast: torch.dtype | None = None

    @torch.no_grad()
    def forward(self, pooled: Sequence[Tensor], images: Tensor | None = None) -> Tensor:
        """Return patch scores (B, P), which depend on no training image by number."""
        u = self.projected(pooled)
        return distance_to_center(u.flatten(0, 1), self.center).view(u.shape[:2])

    def of_images(self, scores: Tensor) -> Tensor:
        """Return image scores (B,): the largest of the patches' (Eq. 11)."""
        return scores.amax(1)

    def maps(self, scores: Tensor, renderer: MapRenderer) -> Tensor:
        """Render patch scores s, upsampled and smoothed, as s / (s + scale), in [0, 1]."""
        distances = renderer(scores)
        return distances / (distances + self.scale)


class FusedScorer(nn.Module):
    """s = (1 + D') * distance: the nearest exemplar of the training features, and the discriminator's word.

    The distance says how far away something is that is like nothing seen, the discriminator where normality ends next
    to what it has seen. Its word is softened, D' = sigmoid(z / 3), with z its logit averaged over a patch and its eight
    neighbours, standardised by mean and deviation of these averages over the training images. The distance is in units
    of its mean over the training images' patches, which leave out the exemplars of their own image: a training image is
    as far away as a new one. An image's score is the mean of its ten largest patch scores, or of its largest hundredth
    where that is fewer.

    Parameters
    ----------
    aggregator : PatchAggregator
    projector : Projector
    discriminator : Discriminator
        Trained; they stay as they are.
    coreset : Coreset
        Of the training features.

    Attributes
    ----------
    good_scores : Tensor of shape (n,)
        Image scores of the training images, scored as if they were new.
    """

    mean_distance: Tensor
    mean_logit: Tensor
    logit_deviation: Tensor
    good_scores: Tensor

    def __init__(
        self, aggregator: PatchAggregator, projector: Projector, discriminator: Discriminator, coreset: Coreset
    ) -> None:
        super().__init__()
        self.discriminator = DiscriminatorScorer(aggregator, projector, discriminator)
        directions, mean = coreset.directions.cpu().double(), coreset.mean.cpu().double()
        self.reduced = LevelAffine(aggregator, directions, -directions @ mean)
        self.coreset = coreset
        self.register_buffer("mean_distance", torch.ones(()))
        self.register_buffer("mean_logit", torch.zeros(()))
        self.register_buffer("logit_deviation", torch.ones(()))
        self.register_buffer("good_scores", torch.ones(1))

    @torch.no_grad()
    def standardise(self, batches: Iterable[tuple[Sequence[Tensor], Tensor]], distances: Tensor | None = None) -> None:
        """Take the scales of distances, logits and whole scores from the training images.

        Parameters
        ----------
        batches : iterable of (sequence of Tensor, Tensor of shape (B,))
            Pooled parts and the images' numbers, as the coreset knows them.
        distances : Tensor of shape (n, H_0, W_0) or None
            What :meth:`distances` gives for these images, where it is known.
        """
        of_batches = [
            (self.logits(pooled), self.distances(pooled, images) if distances is None else None)
            for pooled, images in batches
        ]
        logits = torch.cat([of_batch for of_batch, _ in of_batches])
        if distances is None:
            distances = torch.cat([of_batch for _, of_batch in of_batches if of_batch is not None])
        self.mean_distance = distances.mean().clamp_min(_EPS)
        of_patches = _around(logits)
        self.mean_logit, self.logit_deviation = of_patches.mean(), of_patches.std().clamp_min(_EPS)
        self.good_scores = self.of_images(self.fuse(logits, distances))

    @torch.no_grad()
    def forward(self, pooled: Sequence[Tensor], images: Tensor | None = None) -> Tensor:
        """Return patch scores (B, P); ``images``: numbers (B,) of training images, scored as if they were new."""
        pooled = [part.contiguous(memory_format=torch.channels_last) for part in pooled]  # once for both
        return self.fuse(self.logits(pooled), self.distances(pooled, images)).flatten(1)

    def logits(self, pooled: Sequence[Tensor]) -> Tensor:
        """Return the discriminator's logits (B, H_0, W_0)."""
        logits: Tensor = self.discriminator(pooled)
        return logits.unflatten(1, pooled[0].shape[-2:])

    def distances(self, pooled: Sequence[Tensor], images: Tensor | None = None) -> Tensor:
        """Return the distances to the nearest exemplar (B, H_0, W_0); ``images`` as in :meth:`forward`."""
        points = self.reduced(pooled)  # (B, P, q)
        owners = None if images is None else images.repeat_interleave(points.shape[1])
        of_points = self.coreset.distance(points.flatten(0, 1), owners)
        return of_points.unflatten(0, (len(points), *pooled[0].shape[-2:]))

    def fuse(self, logits: Tensor, distance: Tensor) -> Tensor:
        """Return scores (B, H_0, W_0) of logits and distances."""
        z = (_around(logits) - self.mean_logit) / self.logit_deviation
        return (1 + torch.sigmoid(z / _TEMPERATURE)) * (distance / self.mean_distance)

    def of_images(self, scores: Tensor) -> Tensor:
        """Return image scores (B,): the mean of the few largest patch scores."""
        patches = scores.flatten(1)
        k = min(max(patches.shape[1] // 100, 1), _LARGEST)
        return patches.topk(k, dim=1).values.mean(1)

    def maps(self, scores: Tensor, renderer: MapRenderer) -> Tensor:
        """Render patch scores s, upsampled and smoothed, in [0, 1]: 0.5 is what the worst of a good image have."""
        s = renderer(scores).clamp_(min=0)
        return s / (s + self.good_scores.mean().clamp_min(_EPS))

    @property
    def autocast(self) -> torch.dtype | None:
        """Arithmetic of the discriminator's first layer and of the search; None: float32."""
        return self.discriminator.autocast

    @autocast.setter
    def autocast(self, dtype: torch.dtype | None) -> None:
        self.discriminator.autocast = dtype
        self.coreset.in_bfloat16 = dtype == torch.bfloat16


def _around(logits: Tensor) -> Tensor:
    """Average (B, H_0, W_0) over each patch and those of its eight neighbours that are in the image."""
    return F.avg_pool2d(logits[:, None], 3, 1, 1, count_include_pad=False)[:, 0]
