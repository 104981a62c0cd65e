"""What an exported graph does with ``ignored``, the pixels of its images that count for nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skpbas._inputs.ignoring import Ignored
from skpbas.core.ignored_regions import continued, ignored_patches, with_neighbors
from skpbas.core.model import PBASModel
from skpbas.core.patch_scores import fill_ignored, ignored_at
from skpbas.core.whole_images import MORE_IGNORED


def resized_shape(shape: tuple[Any, Any], view_shape: tuple[int, int], *, crop: bool) -> list[Any]:
    """Return the height and width of resized images, as :meth:`Geometry.of` does; sides may be symbols."""
    (full_height, full_width), (height, width) = shape, view_shape
    if not crop:
        return [height, width]
    return [
        torch.sym_max(height, full_height * width // full_width),
        torch.sym_max(width, full_width * height // full_height),
    ]


def seen_positions(resized: list[Any], view_shape: tuple[int, int]) -> list[Tensor]:
    """Return which rows and columns of resized images the view shows: the center."""
    return [torch.arange(seen) + _half_to_even(full - seen) for full, seen in zip(resized, view_shape, strict=True)]


def _half_to_even(n: Any) -> Any:
    return n // 2 + (n % 2) * ((n // 2) % 2)


class Regions(nn.Module):
    """The pixels of views that count for nothing, and what a model says of the others.

    Parameters
    ----------
    model : PBASModel
    view_shape : (int, int)
        Height and width of a view.
    crop : bool
        Whether a view is the center of an image; otherwise it is all of it.
    largest_share : float
        Largest share of a training image that was ignored.
    """

    def __init__(self, model: PBASModel, view_shape: tuple[int, int], *, crop: bool, largest_share: float) -> None:
        super().__init__()
        self.model, self.view_shape, self.crop = model, view_shape, crop
        self.fillable, self.comparable = limits(largest_share)

    def of_masks(self, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return what masks (n, H, W) of any size mean.

        Returns
        -------
        at_views : Tensor of shape (n, h, w), bool
            The masks of the views, with neighbors.
        erased : Tensor of shape (n, h, w), bool
            Where anomaly maps of this size are 0: without neighbors if nothing was resized.
        shares : Tensor of shape (n,)
            Of all pixels of the images.
        """
        sides = masks.shape[1], masks.shape[2]
        exact, alike = masks, torch.tensor(True)
        resized = resized_shape(sides, self.view_shape, crop=self.crop)
        for axis, seen in enumerate(seen_positions(resized, self.view_shape)):
            # centers of pixels, in whole numbers: (i + 1/2) * side / resized
            exact = exact.index_select(axis + 1, (2 * seen + 1) * sides[axis] // (2 * resized[axis]))
            alike = alike & (torch.scalar_tensor(sides[axis]) == self.view_shape[axis])
        at_views = with_neighbors(exact)
        return at_views, exact | (at_views & ~alike), masks.float().mean(2).mean(1)

    def filled(self, views: Tensor, at_views: Tensor, shares: Tensor, *, of_bytes: bool) -> Tensor:
        """Return views (n, 3, h, w), float32, with a continuation of their surroundings, where not too much is."""
        around = continued(views, at_views)
        here = at_views & (shares <= self.fillable)[:, None, None]
        return torch.where(here[:, None], around.round() if of_bytes else around, views)

    def evidence(self, levels: list[Tensor], masks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return patch scores (n, P), descriptions (n, D), ignored patches (n, P), and how many count at each scale.

        ``masks``: of what the network sees, views or tiles, (n, h, w).
        """
        extractor = self.model.extractor
        ignored = ignored_patches(masks, extractor.grid_shape)
        scores, descriptions = self.model.evidence(levels, None, ignored)
        grids = [(height, width) for _, height, width in extractor.level_shapes[:: extractor.n_levels]]
        of_scales = [ignored, *(ignored_at(ignored, extractor.grid_shape, grid) for grid in grids[1:])]
        return scores, descriptions, ignored, torch.stack([(~each).float().sum(1) for each in of_scales], dim=1)

    def answers(self, levels: list[Tensor], masks: Tensor, shares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scores (n,) of images, their maps (n, h, w), and how many patches count at each scale.

        A score is NaN where no patch counts. ``masks`` (n * n_tiles, h, w); ``shares`` (n,).
        """
        model = self.model
        scores, descriptions, ignored, counted = self.evidence(levels, masks)
        scores = fill_ignored(scores, ignored, model.n_tiles)
        counted = counted.unflatten(0, (-1, model.n_tiles)).sum(1)
        of_patches, of_all = model.image_scores(scores), model.image_scores(scores, descriptions)
        of_images = torch.where(shares <= self.comparable, of_all, of_patches)
        return of_images.masked_fill(counted.amin(1) == 0, torch.nan), model.anomaly_maps(scores), counted


def limits(largest_share: float) -> tuple[float, float]:
    """Return the largest shares of an image that are filled, and with which it is compared as a whole."""
    return largest_share + Ignored.MORE, largest_share + MORE_IGNORED
