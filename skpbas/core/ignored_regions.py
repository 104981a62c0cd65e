"""Regions that count for nothing: which pixels and patches they concern, and what the network sees in their place.

Masks are bool, True where pixels do not count. Everything here can be exported, whatever the masks hold.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def with_neighbors(masks: Tensor) -> Tensor:
    """Return masks (B, H, W) with the pixels next to theirs, diagonally too.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.ignored_regions import with_neighbors
    >>> with_neighbors(torch.tensor([[[True, False, False, False]]])).tolist()
    [[[True, True, False, False]]]
    """
    return F.max_pool2d(masks.float()[:, None], 3, 1, 1)[:, 0] > 0


def touching(masks: Tensor, grid_shape: tuple[int, int]) -> Tensor:
    """Return the patches (B, h, w), bool, of a grid with a pixel of masks (B, H, W) in them.

    Patches are the bins of adaptive pooling, which overlap where their number does not divide that of the pixels.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.ignored_regions import touching
    >>> touching(torch.tensor([[[True, False, False, False]]]), (1, 2)).tolist()
    [[[True, False]]]
    """
    rows, columns = (_bins(n_in, n_out, masks) for n_in, n_out in zip(masks.shape[-2:], grid_shape, strict=True))
    return (rows @ masks.float() @ columns.T) > 0  # a product, because exporters know no adaptive maximum


def _bins(n_in: int, n_out: int, like: Tensor) -> Tensor:
    """Return which of ``n_in`` entries each of ``n_out`` bins has: (n_out, n_in), 0 or 1."""
    entry = torch.arange(n_in, device=like.device)
    bin_ = torch.arange(n_out, device=like.device)[:, None]
    return ((entry >= bin_ * n_in // n_out) & (entry * n_out < (bin_ + 1) * n_in)).float()


def ignored_patches(masks: Tensor, grid_shape: tuple[int, int]) -> Tensor:
    """Return the patches (B, h * w), bool, with a pixel of masks (B, H, W) in them or in a neighbor."""
    return with_neighbors(touching(masks, grid_shape)).flatten(1)


def continued(images: Tensor, masks: Tensor) -> Tensor:
    """Return images (B, C, H, W), float32, with a smooth continuation of their surroundings where masks (B, H, W) are.

    Means over 2 x 2 known pixels, and over 2 x 2 of these, and so on down to one; what is unknown is interpolated from
    the first of these that is known. An image of which nothing is known becomes 0.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.ignored_regions import continued
    >>> continued(torch.tensor([[[[5.0, 7.0, 0.0]]]]), torch.tensor([[[False, False, True]]])).tolist()
    [[[[5.0, 7.0, 6.0]]]]
    """
    return _pulled(images, ~masks[:, None])


def _pulled(x: Tensor, known: Tensor) -> Tensor:
    """Return x (B, C, H, W) with the means of the nearest pixels where it is not ``known`` (B, 1, H, W), bool."""
    height, width = x.shape[-2:]
    weight = known.float()
    x = x * weight
    if height == width == 1:
        return x
    share = _mean_of_four(weight)
    means = _mean_of_four(x) / share.clamp_min(torch.finfo(torch.float32).tiny)
    coarse = _pulled(means, share > 0)
    return torch.where(known, x, F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False))


def _mean_of_four(x: Tensor) -> Tensor:
    """Return means over 2 x 2 values, 0 beyond the edges."""
    odd = x.shape[-1] % 2, x.shape[-2] % 2
    return F.avg_pool2d(F.pad(x, (0, odd[0], 0, odd[1])) if any(odd) else x, 2)
