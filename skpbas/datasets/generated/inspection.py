"""Generated inspection images: normal and defective ones of a consistent product, with exact masks."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.utils import Bunch

from skpbas.datasets.generated.defects import DEFECTS, Damage, apply_damage, draw_damage, footprint
from skpbas.datasets.generated.light import draw_exposure, draw_lamp, light_scene, photograph
from skpbas.datasets.generated.noise import Shape
from skpbas.datasets.generated.products import INSPECTION_KINDS, KINDS, Line

DEFECT_TYPES: tuple[str, ...] = tuple(DEFECTS)
"""The defects that `make_inspection_images` can make."""

_SMALLEST_SIDE = 32
_VISIBLE = 4  # gray levels, of 255, by which a pixel has changed visibly
_SMALLEST_AREA, _LARGEST_AREA = 3e-4, 0.25  # of a mask, as shares of the image
_ATTEMPTS = 40

# Streams of random numbers: a product, its normal and its defective images, and the defects on these.
_PRODUCT, _NORMAL, _ANOMALOUS, _DEFECT = range(4)

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def make_inspection_images(
    n_normal: int = 32,
    n_anomalous: int = 8,
    *,
    kind: str = "hex_nut",
    defects: Sequence[str] = DEFECT_TYPES,
    size: int | tuple[int, int] = 256,
    random_state: int | np.random.RandomState | np.random.Generator | None = None,
) -> Bunch:
    """Generate images of one product as an inspection camera would see it.

    All images show the same product under the same lamp and camera; position, grain, brightness and
    sensor noise differ a little from image to image. Another `random_state` gives another product.

    Parameters
    ----------
    n_normal : int, default=32
        Number of images without a defect, 0 or more. They come first.
    n_anomalous : int, default=8
        Number of images with one defect each, 0 or more.
    kind : str, default="hex_nut"
        The product, one of `INSPECTION_KINDS`: "fabric", "brushed_metal", "wood", "hex_nut", "screw"
        or "printed_board".
    defects : sequence of str, default=DEFECT_TYPES
        The defects, in turn: any of "scratch", "stain", "dent", "missing" and "contamination".
    size : int or (int, int), default=256
        Side of the images, or height and width, pixels; 32 or more.
    random_state : int, RandomState, Generator or None, default=None
        An int gives the same images every time, and image i does not depend on how many there are.
        None gives new ones on every call. numpy's global stream is neither read nor moved.

    Returns
    -------
    Bunch
        With the attributes

        images : ndarray of shape (n, H, W, 3), uint8
            Normal images, then anomalous ones.
        labels : ndarray of shape (n,), int64
            +1 normal, -1 anomalous.
        masks : ndarray of shape (n, H, W), bool
            The pixels which the defect changed visibly, holes filled. Every other pixel is what it would
            be without the defect.
        defect_types : list of str
            "good" for normal images.
        kind : str
            As given.

    Raises
    ------
    TypeError
        If a number is not a whole number, or `random_state` is of another type.
    ValueError
        If a number is too small, or a kind or defect is unknown.

    Notes
    -----
    Generated images show how the package works. They are no benchmark: accuracy on them says nothing
    about accuracy on real parts.

    Examples
    --------
    >>> from skpbas.datasets import make_inspection_images
    >>> data = make_inspection_images(3, 2, kind="wood", size=64, random_state=0)
    >>> data.images.shape, data.labels.tolist()
    ((5, 64, 64, 3), [1, 1, 1, -1, -1])
    >>> data.defect_types
    ['good', 'good', 'good', 'scratch', 'stain']
    >>> bool(data.masks[3].any())
    True
    """
    n_normal, n_anomalous = _count("n_normal", n_normal), _count("n_anomalous", n_anomalous)
    _check_kind(kind)
    _check_defects(defects)
    shape = _check_size(size)
    entropy = [*_entropy(random_state), INSPECTION_KINDS.index(kind)]
    n = n_normal + n_anomalous
    images, masks = np.empty((n, *shape, 3), np.uint8), np.zeros((n, *shape), bool)
    types = ["good"] * n_normal + [defects[i % len(defects)] for i in range(n_anomalous)]
    line = KINDS[kind](_stream(entropy, _PRODUCT))
    for i in range(n_normal):
        images[i] = _Shot(line, shape, _stream(entropy, _NORMAL, i)).picture()
    for i, defect in enumerate(types[n_normal:]):
        shot = _Shot(line, shape, _stream(entropy, _ANOMALOUS, i))
        images[n_normal + i], masks[n_normal + i] = add_defect(shot, _stream(entropy, _DEFECT, i), defect)
    labels = np.repeat(np.array([1, -1], dtype=np.int64), [n_normal, n_anomalous])
    return Bunch(images=images, labels=labels, masks=masks, defect_types=types, kind=kind)


class _Shot:
    """One product under the camera: the same photograph can be taken with and without a defect."""

    def __init__(self, line: Line, shape: Shape, rng: np.random.Generator) -> None:
        self.scene = line.scene(rng, shape)
        self._lamp = draw_lamp(rng, line.lighting)
        self._exposure = draw_exposure(rng, shape, line.camera)

    def picture(self, damage: Damage | None = None) -> Picture:
        scene = self.scene if damage is None else apply_damage(self.scene, damage)
        return photograph(light_scene(scene, self._lamp), self._exposure)


def add_defect(shot: _Shot, rng: np.random.Generator, defect: str) -> tuple[Picture, Mask]:
    """Return the picture of a product with a defect, and the pixels which the defect changed."""
    clean, strength = shot.picture(), 1.0
    for _ in range(_ATTEMPTS):
        damage = draw_damage(rng, shot.scene, defect, strength)
        picture = shot.picture(damage)
        mask = _changed(clean, picture, damage)
        if _SMALLEST_AREA < mask.mean() < _LARGEST_AREA and mask.sum() >= 4:
            return np.where(mask[..., None], picture, clean), mask
        strength *= 1.1  # it was hidden by the pattern, or fell into the dark: another place, a little worse
    raise RuntimeError(f"no visible {defect!r} in {_ATTEMPTS} attempts")


def _changed(clean: Picture, picture: Picture, damage: Damage) -> Mask:
    """Return the pixels that differ visibly within the defect's reach, gaps closed and specks dropped."""
    difference = np.abs(clean.astype(np.int16) - picture).max(axis=2)
    changed = (difference >= _VISIBLE) & footprint(damage)
    mask = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(changed, 2), np.ones((3, 3))))
    mask = np.asarray(mask)[2:-2, 2:-2]
    regions, count = ndimage.label(mask, np.ones((3, 3)))
    if count < 2:
        return mask
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    kept: Mask = (areas >= 0.05 * areas.max())[regions]
    return kept


def _stream(entropy: list[int], *key: int) -> np.random.Generator:
    """Return the generator of one image, whatever else is drawn."""
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=key))


def _entropy(random_state: Any) -> list[int]:
    if random_state is None:
        return [secrets.randbits(128)]
    if not isinstance(random_state, bool) and isinstance(random_state, Integral):
        if random_state < 0:
            raise ValueError(f"random_state must be 0 or more, got {random_state}")
        return [int(random_state)]
    if isinstance(random_state, np.random.Generator):
        return [int(v) for v in random_state.integers(2**32, size=4)]
    if isinstance(random_state, np.random.RandomState):
        return [int(v) for v in random_state.randint(0, 2**32, size=4, dtype=np.uint64)]
    raise TypeError(
        "random_state must be an int, a numpy RandomState, a numpy Generator or None, "
        f"got {type(random_state).__name__}"
    )


def _count(name: str, value: Any, smallest: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
    if value < smallest:
        raise ValueError(f"{name} must be {smallest} or more, got {value}")
    return int(value)


def _check_kind(kind: Any) -> None:
    if kind not in INSPECTION_KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, INSPECTION_KINDS))}, got {kind!r}")


def _check_defects(defects: Any) -> None:
    allowed = ", ".join(map(repr, DEFECT_TYPES))
    if isinstance(defects, str):
        raise TypeError(f"defects must be a sequence of names such as ({defects!r},), got {defects!r}")
    if len(defects) == 0:
        raise ValueError(f"defects must name at least one of {allowed}, got an empty sequence")
    for defect in defects:
        if defect not in DEFECT_TYPES:
            raise ValueError(f"defects must be among {allowed}, got {defect!r}")


def _check_size(size: Any) -> Shape:
    sides = size if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size must be one number, or (height, width), got {size!r}")
    height, width = (_count("size", side, _SMALLEST_SIDE) for side in sides)
    return height, width
