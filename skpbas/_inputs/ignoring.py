"""Images with regions that count for nothing, such as a stamped date or the background."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skpbas._inputs.checks import check_stream
from skpbas._inputs.decoding import MaskedImage
from skpbas._inputs.geometry import Geometry
from skpbas._inputs.mask_reader import is_missing, mask_pixels
from skpbas._inputs.tensors import is_tensor
from skpbas.errors import InvalidImageError, InvalidTargetError

if TYPE_CHECKING:
    from torch import Tensor

    from skpbas.core.tiling import Tiling

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
    if isinstance(ignored, np.ndarray) or is_tensor(ignored):
        return bool(ignored.ndim == 2)
    return not isinstance(ignored, (list, tuple, Iterator))


@dataclass(frozen=True)
class Ignored:
    """The pixels of one image that do not count, at least one; needs no torch until it gets tensors.

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
    def at_view(self) -> NDArray[np.bool_]:
        """The ignored pixels of the view (H, W), with those next to them, into which resizing blurs."""
        padded = np.pad(self.geometry.view_of_mask(self.mask), 1)
        rows = padded[:-2] | padded[1:-1] | padded[2:]
        return rows[:, :-2] | rows[:, 1:-1] | rows[:, 2:]

    def at_patches(self, grid_shape: tuple[int, int], tiling: Tiling | None, name: str) -> Tensor:
        """Return the patches (n_tiles, P), bool, with an ignored pixel in them or in a neighbor.

        Raises
        ------
        InvalidImageError
            They are all patches; the message has the image's name.
        """
        import torch

        from skpbas.core.ignored_regions import ignored_patches

        view = torch.from_numpy(self.at_view)[None]
        ignored = ignored_patches(view if tiling is None else tiling.cut(view[None])[:, 0], grid_shape)
        if ignored.all():
            raise nothing_left(name)
        return ignored

    @property
    def share(self) -> float:
        """Share of the image's pixels that do not count."""
        return float(self.mask.mean())

    def fill(self, view: Tensor) -> Tensor:
        """Return the view (C, H, W) with a smooth continuation of their surroundings in place of ignored pixels."""
        import torch

        from skpbas.core.ignored_regions import continued

        at_view = torch.from_numpy(self.at_view)
        filled = continued(view[None].float(), at_view[None])[0]
        return torch.where(at_view, filled.round() if view.dtype == torch.uint8 else filled, view).to(view.dtype)

    def fill_array(self, view: NDArray[Any]) -> NDArray[Any]:
        """Do what :meth:`fill` does without torch, for a view (H, W, C); equal but for rounding."""
        known = ~self.at_view
        channels = view.transpose(2, 0, 1).astype(np.float32)
        filled = np.stack([_continued(channel, known) for channel in channels], axis=2)
        filled = np.rint(filled) if view.dtype == np.uint8 else filled
        return np.where(known[..., None], view, filled).astype(view.dtype)

    def erase(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return an anomaly map at the size of the view, or of the image, that is 0 where pixels are ignored."""
        mask = self.mask if anomaly_map.shape == self.mask.shape else self.at_view
        return np.where(mask, np.float32(0), anomaly_map)


def nothing_left(name: str) -> InvalidImageError:
    """Return the error for an image none of whose patches counts."""
    return InvalidImageError(f"the ignored region of {name} leaves nothing of it that is far enough from the region")


def nothing_left_of_scale(name: str, height: int, width: int) -> InvalidImageError:
    """Return the error for an image none of whose patches counts at a smaller one of scales."""
    return InvalidImageError(
        f"the ignored region of {name} leaves nothing of it at a smaller one of scales, where it has "
        f"{height} x {width} patches: ignore less, or leave this scale out"
    )


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


def _continued(channel: NDArray[np.float32], known: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Do what :func:`skpbas.core.ignored_regions.continued` does for one channel (H, W)."""
    channel = channel * known
    if known.all() or channel.shape == (1, 1):
        return channel
    sums, counts = _of_four(channel), _of_four(known.astype(np.float32))
    means = (sums / np.maximum(counts, 1)).astype(np.float32)
    coarse = _continued(means, counts > 0)
    around = Geometry.of(channel.shape, coarse.shape, "stretch").array_to_input(coarse)
    return np.where(known, channel, around)


def _of_four(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the sums over 2 x 2 values; 0 counts beyond the edges."""
    height, width = values.shape
    even = np.pad(values, ((0, height % 2), (0, width % 2)))
    rows = even[::2] + even[1::2]
    return rows[:, ::2] + rows[:, 1::2]
