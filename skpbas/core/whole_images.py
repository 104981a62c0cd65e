"""How unlike all training images an image is as a whole, which its patches do not tell.

Every patch of an empty frame is known: it looks like the background of good parts. What is missing shows in the image
as a whole, so images are also compared by the mean and the standard deviation of each channel over all their patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skpbas.core.coreset import farthest_points

MAX_KNOWN = 256
"""Training images that are kept for the comparison."""

MORE_IGNORED = 0.05
"""How much larger a share than of training images may be ignored of images that are compared."""

HARMLESS, FULL = 1.25, 1.5  # distances in radii: unseen good images reached 1.3, frames without a part 2 to 40
_SMALLEST_RADIUS = 0.01  # in norms of the standard deviations; 0.03 to 0.3 on products, 0 for equal images


def describe(pooled: Sequence[Tensor], ignored: Tensor | None = None) -> Tensor:
    """Return the mean and the standard deviation of each channel over an image: (B, 2 * (n_1 + ... + n_L)).

    Parameters
    ----------
    pooled : sequence of Tensor of shape (B, n_l, H_l, W_l)
        The levels' parts of the patch features.
    ignored : Tensor of shape (B, P), bool, or None
        Patches that do not count.
    """
    if ignored is None:
        return torch.cat([m for part in pooled for m in _moments(part.float())], dim=1)
    counted = 1 - ignored.to(pooled[0].device).float().view(-1, 1, *pooled[0].shape[-2:])
    moments = [
        _weighted(part.float(), F.adaptive_avg_pool2d(counted, (part.shape[2], part.shape[3]))) for part in pooled
    ]
    return torch.cat([m for of_part in moments for m in of_part], dim=1)


def _moments(part: Tensor) -> tuple[Tensor, Tensor]:
    of_patches = part.permute(0, 2, 3, 1).flatten(1, 2)  # (B, P, C), as it is in memory; std() takes ten times as long
    mean = of_patches.mean(1)
    return mean, (of_patches.square().mean(1) - mean.square()).clamp_min(0).sqrt()


def _weighted(part: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    weights = weights / weights.sum(dim=(2, 3), keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    mean = (weights * part).sum(dim=(2, 3))
    return mean, (weights * (part - mean[..., None, None]).square()).sum(dim=(2, 3)).sqrt()


class WholeImages(nn.Module):
    """What an image's difference from all training images adds to its score.

    With r the distance of an image's description to the nearest one of a training image, and r_0 the largest such
    distance of one of n training images to the others, times 1 + 1/n, ``unit * max(4 (r / r_0 - 1.25), 0)`` is added:
    nothing to images that differ as the training images do, and enough for the threshold to those that differ much
    more.

    Parameters
    ----------
    center : Tensor of shape (D,)
        Subtracted from descriptions, so that rounding is small beside their distances.
    known : Tensor of shape (m, D)
        Centered descriptions of training images.
    image_index : Tensor of shape (m,), int64
        Indices of these images.
    radius : float
        r_0 > 0.
    unit : float
        In image scores, >= 0: from a usual score to the threshold.
    ignored : float, default=0.0
        Largest share of the pixels of a training image that was ignored. Images of which much more is ignored look
        different for that reason alone.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.whole_images import WholeImages, describe
    >>> pooled = [torch.rand(6, 16, 8, 8, generator=torch.Generator().manual_seed(0))]
    >>> whole_images = WholeImages.of(describe(pooled), torch.arange(6), unit=1.0)
    >>> whole_images(describe(pooled)).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    >>> bool(whole_images(describe([torch.zeros(1, 16, 8, 8)])) > 1)
    True
    """

    center: Tensor
    known: Tensor
    image_index: Tensor
    radius: Tensor
    unit: Tensor
    ignored: Tensor
    _squares: Tensor

    def __init__(
        self,
        center: Tensor,
        known: Tensor,
        image_index: Tensor,
        radius: float,
        unit: float,
        ignored: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("center", center)
        self.register_buffer("known", known)
        self.register_buffer("image_index", image_index)
        self.register_buffer("_squares", known.square().sum(1), persistent=False)
        for name, value in (("radius", radius), ("unit", unit), ("ignored", ignored)):
            self.register_buffer(name, torch.tensor(value, dtype=torch.float32, device=center.device))

    @classmethod
    def of(cls, descriptions: Tensor, image_index: Tensor, unit: float, ignored: float = 0.0) -> Self:
        """Compare with training images.

        Parameters
        ----------
        descriptions : Tensor of shape (n, D)
            Of the training images: from :func:`describe`.
        image_index : Tensor of shape (n,), int64
            Their indices; equal images have the same.
        unit, ignored : float
            As for the class.
        """
        center = descriptions.mean(0)
        centered = descriptions - center
        chosen = farthest_points(centered, min(MAX_KNOWN, len(centered)))
        smallest = _SMALLEST_RADIUS * float(descriptions.square().mean(0).sum().sqrt())
        result = cls(center, centered[chosen], image_index[chosen], 1.0, unit, ignored)
        largest = float(result.distance(descriptions, image_index).max())
        few = 1 + 1 / len(image_index.unique())  # images show less than all of how far apart they can be
        result.radius.fill_(max(few * largest, smallest, torch.finfo(torch.float32).tiny))
        return result

    def applies(self, shares: Tensor) -> Tensor:
        """Return which images (B,), bool, of whose pixels these shares are ignored, can be compared."""
        return shares <= self.ignored + MORE_IGNORED

    def distance(self, descriptions: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Return the distances (B,) of descriptions (B, D) to the nearest training image.

        ``image_index`` (B,): indices of training images, which are compared with the others; None: new images.
        """
        x = descriptions - self.center
        squares = torch.addmm(self._squares, x, self.known.T, alpha=-2)  # less |x|^2
        if image_index is not None:
            others = squares.masked_fill(self.image_index == image_index[:, None], torch.inf)
            squares = torch.where(others.isinf().all(1, keepdim=True), squares, others)  # all may be equal
        return (squares.amin(1) + x.square().sum(1)).clamp_min(0).sqrt()

    def forward(self, descriptions: Tensor, image_index: Tensor | None = None) -> Tensor:
        """Return what is added to the image scores (B,); parameters as in :meth:`distance`."""
        beyond = self.distance(descriptions, image_index) / self.radius - HARMLESS
        return self.unit * F.relu(beyond / (FULL - HARMLESS))
