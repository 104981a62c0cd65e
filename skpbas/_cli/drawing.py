"""Pictures of anomaly maps: over an image, with the contour at the threshold, in colors that a detector pins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._cli.colormap import contour, overlay, pinned
from skpbas._decisions.regions import Region
from skpbas.errors import StorageError

CONTOUR = (0, 255, 255)
"""A color that the color table does not have."""

_LINES_PER_SIDE = 320  # widths of a contour in the shorter side of an image
_FAINT, _STRONGEST = 0.35, 0.7  # on the scale of colors, what is below hides nothing; the image shines through

RGB = NDArray[np.uint8]


def as_shown(pixels: NDArray[Any]) -> RGB:
    """Return the pixels of an image, (H, W) or (H, W, 3), as 8-bit colors; wider types are brightened."""
    if pixels.dtype != np.uint8:
        values = pixels.astype(np.float32)
        pixels = np.round(values * (255 / max(float(values.max()), 1e-12))).astype(np.uint8)
    return np.repeat(pixels[..., None], 3, axis=2) if pixels.ndim == 2 else np.ascontiguousarray(pixels)


def overlaid(
    image: RGB, anomaly_map: NDArray[np.float32], threshold: float, regions: Sequence[Region] | None = None
) -> RGB:
    """Return an image (H, W, 3) with its anomaly map (H, W) over it, and the contours of regions.

    ``regions`` are those above the threshold if None; an image may be anomalous without any, and then has another one.
    """
    scaled = pinned(anomaly_map, threshold)
    strength = _STRONGEST * np.clip((scaled - _FAINT) / (1 - _FAINT), 0.0, 1.0)
    shown = overlay(image, scaled, 0.0, 1.0, strength)
    thickness = max(1, round(min(image.shape[:2]) / _LINES_PER_SIDE))
    shown[contour(anomaly_map > threshold if regions is None else mask_of(regions, image.shape), thickness)] = CONTOUR
    return shown


def mask_of(regions: Sequence[Region], shape: Sequence[int]) -> NDArray[np.bool_]:
    """Return the pixels of regions as a mask (H, W)."""
    mask = np.zeros((shape[0], shape[1]), bool)
    for region in regions:
        top, left, height, width = region.bbox
        mask[top : top + height, left : left + width] |= region.mask
    return mask


class PictureNames:
    """Names of the pictures of images below a folder, no two of which are the same."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._taken: set[str] = set()

    def __call__(self, below: Path) -> Path:
        """Return the name of the picture of an image with this relative path, in the same subfolder."""
        inner = Path(*(part for part in below.parent.parts if part not in ("..", below.anchor)))
        stem, number = below.stem, 1
        while True:
            name = inner / (f"{stem}_map.png" if number == 1 else f"{stem}-{number}_map.png")
            if str(name).casefold() not in self._taken:  # a file system may not tell cases apart
                self._taken.add(str(name).casefold())
                return self.folder / name
            number += 1


def save_picture(picture: RGB, path: Path) -> None:
    """Write a PNG file, which takes its name when it is complete."""
    unfinished = path.with_name(f".{uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("xb") as file:
            Image.fromarray(picture).save(file, format="PNG")
        unfinished.replace(path)
    except OSError as error:
        raise StorageError(f"{path} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
