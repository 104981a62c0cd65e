"""What is known about the images beforehand: which are defective, and where."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._inputs.decoding import image_shape
from skpbas._inputs.geometry import Geometry
from skpbas._inputs.mask_reader import is_missing, mask_pixels
from skpbas._inputs.targets import anomalous_rows, entries_of
from skpbas.errors import InvalidImageError, InvalidTargetError
from skpbas.inspection._report.outlines import as_path, outlines

_FINEST = 256  # pixels of the longer side of a mask whose outline is drawn


@dataclass(frozen=True)
class Truth:
    """What is known about n images.

    Attributes
    ----------
    defective : ndarray of shape (n,), bool, or None
        None: unknown.
    outlines : sequence of str, or None
        The outline of each mask as an SVG path in pixels of its image; empty for none.
    """

    defective: NDArray[np.bool_] | None = None
    outlines: Sequence[str] | None = None

    @classmethod
    def of(cls, labels: Any, masks: Any, items: Any, map_shape: tuple[int, int], resize: str) -> Truth:
        """Read labels and masks, one mask at a time.

        Parameters
        ----------
        labels, masks : labels, masks or None
        items : array, sequence or iterable of images
        map_shape : (int, int)
        resize : str

        Raises
        ------
        InvalidTargetError
            They cannot be read, or do not match the images.
        """
        if labels is None and masks is None:
            return cls()
        if not (hasattr(items, "__len__") and hasattr(items, "__getitem__")):
            raise InvalidTargetError(
                "labels and masks need images that can be counted, and images is an iterator: pass list(images)"
            )
        given, name = (masks, "masks") if labels is None else (labels, "labels")
        defective = anomalous_rows(given, len(items), name=name)
        if masks is None:
            return cls(defective)
        entries = entries_of(masks, len(items), "masks")
        paths = [
            "" if is_missing(mask) else _outline(mask, items[i], f"masks[{i}]", map_shape, resize)
            for i, mask in enumerate(entries)
        ]
        return cls(defective, paths)


def _outline(mask: Any, item: Any, name: str, map_shape: tuple[int, int], resize: str) -> str:
    """Return the outline of a mask that has the size of its image, or of an anomaly map that shows all of it."""
    pixels = mask_pixels(mask, name).defective
    try:
        shape = image_shape(item, "")
    except InvalidImageError:  # it is listed as unreadable later
        return ""
    whole = Geometry.of(shape, map_shape, resize).unseen == 0
    if pixels.shape != shape and not (whole and pixels.shape == map_shape):
        raise InvalidTargetError(
            f"{name} is {_size(pixels.shape)} and its image {_size(shape)} (height x width): a mask must have the size "
            "of its image"
        )
    if not pixels.any():
        return ""
    small = Image.fromarray(255 * pixels.astype(np.uint8))
    small.thumbnail((_FINEST, _FINEST), Image.Resampling.BOX)
    scale = np.array(shape) / (small.height, small.width)
    return as_path(outlines(np.asarray(small), 127.5), lambda curve: curve * scale)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
