"""Images with regions that count for nothing, such as a stamped date or the background."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from skpbas._inputs.decoding import MaskedImage
from skpbas._inputs.images import Geometry, check_stream
from skpbas._inputs.mask_reader import is_missing, mask_pixels
from skpbas.core.tiling import Tiling
from skpbas.errors import InvalidImageError, InvalidTargetError

__all__ = ["ignoring"]


def ignoring(X: Any, ignored: Any) -> Any:
    """Return the images of X with regions that count for nothing, to be passed instead of X to any method.

    Scores, labels, anomaly maps, regions and, in ``fit``, training leave out these regions, and the patches next to
    them; maps are 0 there. The network sees a smooth continuation of their surroundings in their place, so that it does
    not matter what they show; except in prediction where much more is ignored than in any training image.

    Parameters
    ----------
    X : array, sequence or iterable of images
        As the detector takes them.
    ignored : mask, or sequence of masks and None
        True, or what :func:`read_mask` reads as True, where pixels do not count; at the size of the image. One mask is
        for all images; a sequence has one for each, None for an image that counts as a whole. Images that have masks
        already keep them too.

    Returns
    -------
    sequence, or iterator if X is one
        Of :class:`MaskedImage`.

    Raises
    ------
    InvalidTargetError
        A mask that cannot be read, or another number of masks than images.

    Examples
    --------
    >>> import numpy as np
    >>> from skpbas import PBASDetector
    >>> from skpbas.datasets import make_inspection_images
    >>> from skpbas.masks import ignoring
    >>> images = make_inspection_images(n_normal=8, n_anomalous=0, size=64, random_state=0).images
    >>> stamp = np.zeros((64, 64), bool)
    >>> stamp[:10, :20] = True
    >>> detector = PBASDetector("embedded", image_size=64, max_epochs=2, random_state=0).fit(ignoring(images, stamp))
    >>> bool((detector.anomaly_map(ignoring(images, stamp))[:, stamp] == 0).all())
    True
    """
    items = check_stream(X, each=False)
    sized = hasattr(items, "__len__")
    if _is_one_mask(ignored):
        masks: Any = itertools.repeat(None if is_missing(ignored) else mask_pixels(ignored, "ignored").defective)
    elif not sized:
        return _each_masked(items, ignored)
    else:
        masks = list(ignored)
        if len(masks) != len(items):
            last = (
                "; of a mask in color pass ignored[..., 0]" if getattr(ignored, "shape", ())[2:] in ((1,), (3,)) else ""
            )
            raise InvalidTargetError(
                f"ignored has {len(masks)} masks for {len(items)} images: pass one for each image, or one for all{last}"
            )
    if not sized:
        return map(MaskedImage, items, masks)
    if isinstance(items, (np.ndarray, list, tuple)):
        return list(map(MaskedImage, items, masks))
    return _Masked(items, list(itertools.islice(masks, len(items))))


def _each_masked(items: Iterable[Any], masks: Iterable[Any]) -> Iterator[MaskedImage]:
    """Yield images of an iterator with masks of another, one by one; both must end together."""
    nothing = object()
    for item, mask in itertools.zip_longest(items, masks, fillvalue=nothing):
        if item is nothing or mask is nothing:
            raise InvalidTargetError("ignored has not as many masks as there are images: pass one for each image")
        yield MaskedImage(item, mask)


class _Masked(Sequence[Any]):
    """Images of a sequence that loads them on access, with their masks."""

    def __init__(self, items: Any, ignored: list[Any]) -> None:
        self._items, self._ignored = items, ignored

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return MaskedImage(self._items[index], self._ignored[index])


def _is_one_mask(ignored: Any) -> bool:
    """Return whether it is a mask, and not a sequence or an iterator of masks."""
    if isinstance(ignored, (np.ndarray, Tensor)):
        return ignored.ndim == 2
    return not isinstance(ignored, (list, tuple, Iterator))


@dataclass(frozen=True)
class Ignored:
    """The pixels of one image that do not count, at least one.

    Attributes
    ----------
    mask : ndarray of shape (H, W), bool
        At the size of the image.
    geometry : Geometry
        Of the image.
    """

    MORE = 0.1
    """How much larger a share of an image than of training images may be filled."""

    mask: NDArray[np.bool_]
    geometry: Geometry

    @classmethod
    def of(cls, mask: NDArray[np.bool_], geometry: Geometry, name: str) -> Ignored:
        """Return what a mask means for an image of this geometry.

        Raises
        ------
        InvalidImageError
            The mask has another size than the image; the message has the image's name.
        """
        if mask.shape != geometry.input_shape:
            (height, width), (rows, columns) = geometry.input_shape, mask.shape
            raise InvalidImageError(
                f"the ignored region of {name} is a mask of {rows} x {columns} pixels, and the image has {height} x "
                f"{width} (height x width): pass the mask at the size of the image"
            )
        return cls(mask, geometry)

    @cached_property
    def at_view(self) -> Tensor:
        """The ignored pixels of the view (H, W), bool, with those next to them, into which resizing blurs."""
        exact = torch.from_numpy(self.geometry.view_of_mask(self.mask))
        return F.max_pool2d(exact.float()[None, None], 3, 1, 1)[0, 0] > 0

    def at_patches(self, grid_shape: tuple[int, int], tiling: Tiling | None, name: str) -> Tensor:
        """Return the patches (n_tiles, P), bool, with an ignored pixel in them or in a neighbor.

        Raises
        ------
        InvalidImageError
            They are all patches; the message has the image's name.
        """
        view = self.at_view.float()[None]
        tiles = view if tiling is None else torch.stack([tiling.tile(view, i)[0] for i in range(tiling.n_tiles)])
        of_patches = F.max_pool2d(F.adaptive_max_pool2d(tiles[:, None], grid_shape), 3, 1, 1)
        ignored = of_patches.flatten(1) > 0
        if ignored.all():
            raise InvalidImageError(
                f"the ignored region of {name} leaves nothing of it that is far enough from the region"
            )
        return ignored

    @property
    def share(self) -> float:
        """Share of the image's pixels that do not count."""
        return float(self.mask.mean())

    def fill(self, view: Tensor) -> Tensor:
        """Return the view (C, H, W) with a smooth continuation of their surroundings in place of ignored pixels."""
        filled = _pulled(view[None].float(), (~self.at_view)[None, None].float())[0]
        return torch.where(self.at_view, filled.round() if view.dtype == torch.uint8 else filled, view).to(view.dtype)

    def erase(self, anomaly_map: Tensor) -> Tensor:
        """Return an anomaly map at the size of the view, or of the image, that is 0 where pixels are ignored."""
        mask = torch.from_numpy(self.mask) if anomaly_map.shape == self.mask.shape else self.at_view
        return torch.where(mask, torch.zeros_like(anomaly_map), anomaly_map)


def ignored_pixels(item: Any, name: str) -> NDArray[np.bool_] | None:
    """Return the pixels (H, W) of an item that do not count, None if all count.

    Raises
    ------
    InvalidImageError
        Its mask cannot be read; the message has the image's name.
    """
    total: NDArray[np.bool_] | None = None
    while isinstance(item, MaskedImage):  # masked several times
        if not is_missing(item.ignored):
            try:
                pixels = mask_pixels(item.ignored, f"the ignored region of {name}").defective
            except InvalidTargetError as error:
                raise InvalidImageError(str(error)) from error
            if total is not None and pixels.shape != total.shape:
                raise InvalidImageError(f"the ignored regions of {name} are masks of different sizes")
            total = pixels if total is None else total | pixels
        item = item.image
    return total if total is not None and total.any() else None


def _pulled(x: Tensor, weight: Tensor) -> Tensor:
    """Return x (1, C, H, W) with means of the nearest known pixels where ``weight`` (1, 1, H, W) is 0 instead of 1.

    Means over 2 x 2 known pixels, and over 2 x 2 of these, and so on until all are known; then back to full size.
    """
    x = x * weight
    if weight.min() > 0 or x.shape[-2:] == (1, 1):
        return x
    share = F.avg_pool2d(weight, 2, ceil_mode=True)
    means = F.avg_pool2d(x, 2, ceil_mode=True) / share.clamp_min(torch.finfo(torch.float32).tiny)
    coarse = _pulled(means, (share > 0).float())
    around = F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)
    return torch.lerp(around, x, weight)
