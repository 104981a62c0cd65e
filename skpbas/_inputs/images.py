"""The images of X one by one, decoded and resized to the network's input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from skpbas._inputs.checks import check_images, check_stream, image_items, of_several
from skpbas._inputs.decoding import check_size, decode, image_shape, item_name, pixels_in_range
from skpbas._inputs.geometry import Geometry
from skpbas._inputs.image_statistics import GoodStatistics, ImageStatistics
from skpbas._inputs.notices import Notices, ViewDetails

__all__ = [
    "Geometry",
    "ImageSequence",
    "ViewDetails",
    "check_images",
    "check_stream",
    "image_items",
    "image_shape",
    "of_several",
]


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
        self._notices = Notices(aspect, good)

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
        statistics = ImageStatistics.of(decoded.pixels.dtype, pixels, view.numpy())
        details = ViewDetails(geometry, decoded.transparent, decoded.more_frames, statistics)
        self.note(index, name, details)
        if view.untyped_storage().data_ptr() == channels.untyped_storage().data_ptr():
            view = view.clone()  # a caller may use the memory of an array again
        return view.expand(3, -1, -1), details

    def note(self, index: int, name: str, details: ViewDetails) -> None:
        """Record what the view of an image leaves out, and how the image differs from those of ``fit``."""
        self._notices.note(index, name, details)

    def warn(self, stacklevel: int = 4) -> None:
        """Warn once of each thing that was left out of, or is different in, the images loaded so far."""
        self._notices.warn(len(self.items) if hasattr(self.items, "__len__") else None, stacklevel + 1)
