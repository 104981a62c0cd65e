"""Masks: which pixels are defective, where they are in the anomaly maps, and which pixels count for nothing.

Scorers, splitters, the command line and the benchmarks read masks through these functions, so that a mask means the
same everywhere. They need no torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas._inputs.checks import image_items
from skpbas._inputs.decoding import MaskedImage
from skpbas._inputs.ignoring import ignoring
from skpbas._inputs.mask_reader import mask_pixels, masks_at_map_size, resize_of, with_maps
from skpbas._inputs.targets import entries_of

__all__ = ["MaskedImage", "ignoring", "read_mask", "to_map_size"]


def read_mask(mask: Any) -> NDArray[np.bool_]:
    """Return which pixels of a mask are defective.

    A pixel is defective where its value is above half of the range of the mask's type: above 127 for 8 bits, 32,767
    for 16 bits, 0.5 for floats in [0, 1]. If there are only two values, one of which is 0, the other one is defective,
    whatever it is: 0 and 1, 0 and 255, and booleans all work. The noise of a JPEG file is not defective. In color
    images the largest of the three channels counts, palettes count by their colors, and opacity is ignored.

    Parameters
    ----------
    mask : array of shape (H, W), PIL image, or path
        Arrays are booleans, whole numbers or floats. The values of wider types than 16 bits, and of floats above 1,
        are taken as 8-bit values if none is above 255, otherwise as 16-bit ones.

    Returns
    -------
    ndarray of shape (H, W), bool

    Raises
    ------
    InvalidTargetError
        A mask that cannot be read (no regular file, a damaged one, several pages), has another shape, negative or
        non-finite values, no pixel of value 0, or more than two values of which none is above half of the range; black
        pictures whose opacity varies.

    Examples
    --------
    >>> import numpy as np
    >>> from skpbas.masks import read_mask
    >>> read_mask(np.array([[0, 0, 7]], dtype=np.uint8))
    array([[False, False,  True]])
    >>> read_mask(np.array([[0, 7, 250]], dtype=np.uint8))
    array([[False, False,  True]])
    """
    return mask_pixels(mask, f"mask={mask!r}" if isinstance(mask, str) else "mask").defective


def to_map_size(masks: Any, X: Any, detector: Any) -> list[NDArray[np.bool_] | None]:
    """Bring masks to the size and the view of a detector's anomaly maps, by nearest pixels.

    Parameters
    ----------
    masks : array of shape (n, h, w), or sequence of masks or None
        What :func:`read_mask` takes, each at the size of its image; None, NaN or an empty string for a normal image. A
        mask may have the size of the anomaly map instead if that shows the whole image, which it does unless
        ``resize="crop"`` cuts off a part.
    X : array or sequence of images
        Their images, as the detector receives them (behind the transformers of a pipeline). Of files only the headers
        are read.
    detector : fitted detector, or (int, int)
        What makes the anomaly maps: its ``map_shape_`` and ``resize`` count. Or the height and width of anomaly maps
        that show whole images.

    Returns
    -------
    list of ndarray of shape ``map_shape_``, bool, or None
        None where no pixel of the anomaly map is defective. The functions of :mod:`skpbas.metrics` take such a list.

    Raises
    ------
    InvalidTargetError
        A mask that cannot be read, or whose size is not its image's and leaves open which part of the image it shows;
        its sample is named. Another number of masks than images.

    Warns
    -----
    UserWarning
        Masks with more than two values, which are separated at half of their type's range; masks with defective pixels
        outside the part of their images that ``resize="crop"`` keeps. Once for all masks of a call.

    Examples
    --------
    >>> import numpy as np
    >>> from skpbas.masks import to_map_size
    >>> mask = np.zeros((100, 200), bool)
    >>> mask[:50, :100] = True
    >>> to_map_size([mask], np.zeros((1, 100, 200), np.uint8), (2, 2))
    [array([[ True, False],
           [False, False]])]
    """
    detector = with_maps(detector)
    map_shape = getattr(detector, "map_shape_", detector)
    if not (isinstance(map_shape, (tuple, list)) and len(map_shape) == 2):
        raise TypeError(
            f"detector={detector!r}: expected a fitted detector, which has map_shape_, or the height and width of the "
            "anomaly maps"
        )
    height, width = map_shape
    X = image_items(X)
    entries = entries_of(masks, len(X), "masks")
    seen, _ = masks_at_map_size(entries, X, (int(height), int(width)), resize_of(detector), name="masks")
    return seen
