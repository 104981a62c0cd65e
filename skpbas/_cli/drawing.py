"""Pictures of anomaly maps: over an image, with the contour at the threshold, in colors that a detector pins."""

from __future__ import annotations

import os
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
    """Names of the pictures of images below a folder, no two of which are the same.

    Only the last ``n_remembered`` names are remembered, since a hot folder has no end. Once one was forgotten, no file
    that is there is written over either.
    """

    def __init__(self, folder: Path, n_remembered: int = 100_000) -> None:
        self.folder, self.n_remembered = folder, n_remembered
        self._taken: dict[str, int] = {}  # by name, the next number of the pictures that would have this name
        self._has_forgotten = False

    def __call__(self, below: Path) -> Path:
        """Return the name of the picture of an image with this relative path, in the same subfolder."""
        inner = Path(*(part for part in below.parent.parts if part not in ("..", below.anchor)))
        wanted = inner / f"{below.stem}_map.png"
        name, number = wanted, self._taken.pop(_folded(wanted), 1)
        if number > 1 or self._is_there(name):
            number = max(number, 2)
            while _folded(name := inner / f"{below.stem}-{number}_map.png") in self._taken or self._is_there(name):
                number += 1
        self._taken[_folded(name)] = 2
        self._taken[_folded(wanted)] = number + 1
        while len(self._taken) > self.n_remembered:
            del self._taken[next(iter(self._taken))]
            self._has_forgotten = True
        return self.folder / name

    def _is_there(self, name: Path) -> bool:
        return self._has_forgotten and os.path.lexists(self.folder / name)


def _folded(name: Path) -> str:
    """Return a name as it is compared: a file system may not tell cases apart."""
    return str(name).casefold()


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
