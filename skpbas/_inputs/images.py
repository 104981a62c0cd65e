"""The images of X one by one, decoded and resized to the network's input."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from skpbas._inputs.checks import check_images, check_stream, image_items, of_several
from skpbas._inputs.comparison import Comparison
from skpbas._inputs.decoding import check_size, decode, image_shape, item_name, pixels_in_range
from skpbas._inputs.geometry import Geometry
from skpbas._inputs.image_statistics import GoodStatistics, ImageStatistics

__all__ = [
    "Geometry",
    "ImageSequence",
    "check_images",
    "check_stream",
    "image_items",
    "image_shape",
    "of_several",
]

_CROP_WARNING_SHARE = 0.05
_ASPECT_WARNING = math.log(1.5) + 1e-9


@dataclass(frozen=True)
class ViewDetails:
    """What is known of the model's view of an image besides its pixels.

    Attributes
    ----------
    geometry : Geometry
    transparent, more_frames : bool
        What decoding left out: see :class:`~skpbas._inputs.decoding.Decoded`.
    statistics : ImageStatistics or None
        What the image is like apart from its content.
    """

    geometry: Geometry
    transparent: bool = False
    more_frames: bool = False
    statistics: ImageStatistics | None = None


class ImageSequence:
    """Checked images, decoded one at a time on request.

    Parameters
    ----------
    items : array, sequence or iterator
        Return value of :func:`check_images` or :func:`check_stream`.
    image_size : (int, int)
        Height and width of the model's input, in pixels.
    resize : {"aspect", "stretch", "crop"}
    smallest : int
        Smallest allowed side of an image, in pixels: the network's stride.
    name : str
        Name of the sequence in errors.
    aspect : float or None
        Height / width of the training images: a warning names images that differ from it much.
    good : GoodStatistics or None
        What the training images were like: warnings name images that differ.

    Raises
    ------
    InvalidImageError
        By :meth:`load`, for an unusable image.
    """

    def __init__(
        self,
        items: Any,
        *,
        image_size: tuple[int, int],
        resize: str,
        smallest: int,
        name: str = "X",
        aspect: float | None = None,
        good: GoodStatistics | None = None,
    ) -> None:
        self.items = items
        self.image_size = image_size
        self.resize = resize
        self.smallest = smallest
        self.name = name
        self.aspect = aspect
        self._comparison = None if good is None else Comparison(good)
        self._distorted: dict[int, str] = {}
        self._cropped: dict[int, float] = {}
        self._transparent: dict[int, str] = {}
        self._more_frames: dict[int, str] = {}
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int) -> tuple[Tensor, Geometry]:
        """Return the model's view of an image, (3, H, W) uint8 or float32 in [0, 1], and its geometry."""
        view, details = self.view(index, self.items[index])
        return view, details.geometry

    def view(self, index: int, item: Any) -> tuple[Tensor, ViewDetails]:
        """Return the model's view of an item of the sequence, and its details."""
        name = item_name(item, index, self.name)
        decoded = decode(item, name)
        height, width = decoded.pixels.shape[:2]
        check_size((height, width), self.smallest, name)
        geometry = Geometry.of((height, width), self.image_size, self.resize)
        pixels = pixels_in_range(decoded.pixels)
        channels = torch.from_numpy(pixels).movedim(-1, 0)
        view = geometry.view(channels)
        statistics = ImageStatistics.of(decoded.pixels.dtype, pixels, view)
        details = ViewDetails(geometry, decoded.transparent, decoded.more_frames, statistics)
        self.note(index, name, details)
        if view.untyped_storage().data_ptr() == channels.untyped_storage().data_ptr():
            view = view.clone()  # a caller may use the memory of an array again
        return view.expand(3, -1, -1), details

    def note(self, index: int, name: str, details: ViewDetails) -> None:
        """Record what the view of an image leaves out, and how the image differs from those of ``fit``."""
        if details.geometry.unseen > _CROP_WARNING_SHARE:
            self._cropped[index] = details.geometry.unseen
        height, width = details.geometry.input_shape
        if self.aspect is not None and abs(math.log(height / width / self.aspect)) > _ASPECT_WARNING:
            self._distorted[index] = f"{name}, {height} x {width}"
        if details.transparent:
            self._transparent[index] = name
        if details.more_frames:
            self._more_frames[index] = name
        if self._comparison is not None:
            self._comparison.note(index, name, details)

    def warn(self, stacklevel: int = 4) -> None:
        """Warn once of each thing that was left out of, or is different in, the images loaded so far."""
        cropped, self._cropped = self._cropped, {}  # a stream may be endless, so nothing is kept
        transparent, self._transparent = self._transparent, {}
        more_frames, self._more_frames = self._more_frames, {}
        distorted, self._distorted = self._distorted, {}
        total = f"{len(self.items)} images" if hasattr(self.items, "__len__") else "the images"
        texts = {}
        if cropped:
            texts["crop"] = (
                f'resize="crop" discards up to {max(cropped.values()):.0%} of the area of {len(cropped)} of {total}; '
                'resize="stretch" uses whole images'
            )
        if distorted:
            texts["aspect"] = (
                f"{len(distorted)} of {total} are distorted, because their aspect ratio differs by more than a factor "
                f"1.5 from {self.aspect:.3g} : 1 (height : width), that of what the network sees; the first is "
                f"{distorted[min(distorted)]}. Pass images of one aspect ratio, at most 4 : 1, such as crops"
            )
        if transparent:
            texts["alpha"] = (
                f"transparent pixels are blended with white in {len(transparent)} of {total}, first in "
                f"{transparent[min(transparent)]}; pass images without an alpha channel if hidden colors matter"
            )
        if more_frames:
            texts["frames"] = (
                f"only the first of several pages or frames is used in {len(more_frames)} of {total}, first in "
                f"{more_frames[min(more_frames)]}; pass each as an image of its own if the others matter"
            )
        if self._comparison is not None:
            texts |= self._comparison.texts(total)
        for kind, text in texts.items():
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(text, UserWarning, stacklevel=stacklevel)
