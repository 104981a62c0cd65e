"""Where the network's view lies within an image, and what is resized for it; needs no torch until it gets tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._inputs.resizing import resized_part

if TYPE_CHECKING:
    from torch import Tensor

_LARGEST_RESIZED = 16  # in views: of longer images only the part around the view is resized


@dataclass(frozen=True)
class Geometry:
    """Position of the network's view within an image.

    Attributes
    ----------
    input_shape : (int, int)
        Height and width of the image, in pixels.
    resized_shape : (int, int)
        The whole image's height and width after resizing.
    offset : (int, int)
        Top and left edge of the view in the resized image.
    view_shape : (int, int)
        Height and width of the view, which is the model's input.
    """

    input_shape: tuple[int, int]
    resized_shape: tuple[int, int]
    offset: tuple[int, int]
    view_shape: tuple[int, int]

    @classmethod
    def of(cls, input_shape: tuple[int, int], view_shape: tuple[int, int], resize: str) -> Geometry:
        """Return the geometry of an image: "aspect" and "stretch" show all of it, "crop" its center."""
        if resize != "crop":
            return cls(input_shape, view_shape, (0, 0), view_shape)
        scale = max(view_shape[0] / input_shape[0], view_shape[1] / input_shape[1])
        height = max(view_shape[0], int(input_shape[0] * scale + 1e-6))
        width = max(view_shape[1], int(input_shape[1] * scale + 1e-6))
        offset = (round((height - view_shape[0]) / 2), round((width - view_shape[1]) / 2))
        return cls(input_shape, (height, width), offset, view_shape)

    @property
    def unseen(self) -> float:
        """Fraction of the image outside the view, in [0, 1)."""
        return 1.0 - (self.view_shape[0] * self.view_shape[1]) / (self.resized_shape[0] * self.resized_shape[1])

    @property
    def detail(self) -> float:
        """Share of the resized image's resolution that the image has: 1, or less where it is enlarged."""
        (height, width), (resized_height, resized_width) = self.input_shape, self.resized_shape
        return min(1.0, height / resized_height, width / resized_width)

    def view(self, image: Tensor) -> Tensor:
        """Resize and crop a (C, h, w) image to the view, with antialiased bilinear interpolation; the dtype is kept."""
        import torch
        import torch.nn.functional as F

        (top, left), (height, width) = self.offset, self.view_shape
        if self._is_small_part:
            return torch.from_numpy(self._view_by_pillow(image.numpy()))
        if tuple(image.shape[-2:]) != self.resized_shape:
            image = F.interpolate(
                image[None], self.resized_shape, mode="bilinear", align_corners=False, antialias=True
            )[0]
        return image[:, top : top + height, left : left + width]

    def view_of_array(self, image: NDArray[Any]) -> NDArray[Any]:
        """Do what :meth:`view` does without torch, for an image (h, w, C): equal bytes, or equal but for rounding."""
        if self._is_small_part:
            return self._view_by_pillow(image.transpose(2, 0, 1)).transpose(1, 2, 0)
        if image.shape[:2] != self.resized_shape:
            return resized_part(image, self.resized_shape, self.offset, self.view_shape)
        (top, left), (height, width) = self.offset, self.view_shape
        return image[top : top + height, left : left + width]

    @property
    def _is_small_part(self) -> bool:
        return math.prod(self.resized_shape) > _LARGEST_RESIZED * math.prod(self.view_shape)

    def _view_by_pillow(self, image: NDArray[Any]) -> NDArray[Any]:
        """Resize only the part of a (C, h, w) image that the view shows, with the filter's margin around it."""
        region, box = [], []
        for axis in (0, 1):
            scale = self.input_shape[axis] / self.resized_shape[axis]
            start = self.offset[axis] * scale
            stop = start + self.view_shape[axis] * scale
            reach = max(scale, 1.0) + 1
            first = max(0, math.floor(start - reach))
            region.append(slice(first, min(self.input_shape[axis], math.ceil(stop + reach))))
            box.append((max(0.0, start - first), min(float(region[-1].stop - first), stop - first)))
        part = image[:, region[0], region[1]]
        size = (self.view_shape[1], self.view_shape[0])
        (top, bottom), (left, right) = box
        views = [
            np.array(
                Image.fromarray(np.ascontiguousarray(channel)).resize(
                    size, Image.Resampling.BILINEAR, box=(left, top, right, bottom)
                )
            )
            for channel in part
        ]
        return np.stack(views)

    def view_of_mask(self, mask: NDArray[Any]) -> NDArray[np.bool_]:
        """Resample a mask (h, w) of the image to the view by nearest neighbor, aligned at pixel centers."""
        seen = mask.astype(bool)
        for axis in (0, 1):
            center = np.arange(self.view_shape[axis]) + self.offset[axis] + 0.5
            source = (center * mask.shape[axis] / self.resized_shape[axis]).astype(np.intp)
            seen = seen.take(source, axis=axis)
        return seen

    def to_input(self, anomaly_map: Tensor) -> Tensor:
        """Resize an anomaly map of the view to the image's size, bilinear; NaN outside the view."""
        import torch

        for axis in (0, 1):
            below, above, weight = (torch.from_numpy(of_pixels) for of_pixels in self._sources(axis))
            anomaly_map = torch.lerp(
                anomaly_map.index_select(axis, below), anomaly_map.index_select(axis, above), weight
            )
        return anomaly_map

    def array_to_input(self, anomaly_map: NDArray[np.float32]) -> NDArray[np.float32]:
        """Do what :meth:`to_input` does without torch; equal but for rounding."""
        for axis in (0, 1):
            below, above, weight = self._sources(axis)
            lower = anomaly_map.take(below, axis)
            anomaly_map = lower + weight * (anomaly_map.take(above, axis) - lower)
        return anomaly_map

    def _sources(self, axis: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
        """Return which two pixels of the view each pixel of the image lies between, and how near to the second."""
        n_in, n_resized, n_view = self.input_shape[axis], self.resized_shape[axis], self.view_shape[axis]
        # pixel centers of the image in view coordinates
        position = (np.arange(n_in) + 0.5) * (n_resized / n_in) - 0.5 - self.offset[axis]
        outside = (position < -0.5) | (position > n_view - 0.5)
        position = position.clip(0, n_view - 1)
        below = np.minimum(np.floor(position).astype(np.int64), max(n_view - 2, 0))
        above = np.minimum(below + 1, n_view - 1)
        weight = (position - below).astype(np.float32)
        weight[outside] = np.nan
        return below, above, weight.reshape((-1, 1) if axis == 0 else (1, -1))
