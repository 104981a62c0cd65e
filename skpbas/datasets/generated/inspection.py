"""Generated inspection images: normal and anomalous images of one product, with exact masks."""

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
from skpbas.datasets.generated.products import INSPECTION_KINDS, PRODUCTS, InspectionLine

DEFECT_TYPES: tuple[str, ...] = tuple(DEFECTS)
"""The types of defect that `make_inspection_images` can generate."""

_SMALLEST_SIDE = 32
_VISIBLE = 4  # smallest visible change of a pixel, in gray levels of 255
_SMALLEST_AREA, _LARGEST_AREA = 3e-4, 0.25  # of a mask, as fractions of the image
_ATTEMPTS = 40

# Random streams: of the product, of its normal and anomalous images, and of the defects.
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
    """Generate images of one product, as an inspection camera would see it.

    All images show the same product under the same lamp and camera. Position, grain, brightness and
    sensor noise vary slightly from image to image. A different `random_state` gives a different product.

    Parameters
    ----------
    n_normal : int, default=32
        Number of images without a defect, 0 or more.
    n_anomalous : int, default=8
        Number of images with one defect each, 0 or more.
    kind : str, default="hex_nut"
        The product, one of `INSPECTION_KINDS`: "fabric", "brushed_metal", "wood", "hex_nut", "screw"
        or "printed_board".
    defects : sequence of str, default=DEFECT_TYPES
        Types of defect, used in turn: any of "scratch", "stain", "dent", "missing" and "contamination".
    size : int or (int, int), default=256
        Height and width of the images, in pixels, 32 or more each. An int is used for both.
    random_state : int, RandomState, Generator or None, default=None
        An int gives the same images on every call, and each image is independent of the number of images.
        None gives new images on every call. NumPy's global random state is neither used nor changed.

    Returns
    -------
    Bunch
        With the attributes

        images : ndarray of shape (n, H, W, 3), uint8
            Normal images, then anomalous ones.
        labels : ndarray of shape (n,), int64
            +1 normal, -1 anomalous.
        masks : ndarray of shape (n, H, W), bool
            The pixels that the defect changed visibly, with holes filled. All other pixels are the same as
            without the defect.
        defect_types : list of str
            The type of defect of each image, "good" for normal images.
        kind : str
            As given.

    Raises
    ------
    TypeError
        If a number is not an integer, `defects` is a string, or `random_state` has an unsupported type.
    ValueError
        If a number is too small, `size` has a wrong length, or a kind or defect is unknown.

    Notes
    -----
    Generated images are meant for tests and examples. They are not a benchmark: accuracy on them says
    nothing about accuracy on real parts.

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
    line = PRODUCTS[kind](_stream(entropy, _PRODUCT))
    for i in range(n_normal):
        images[i] = Shot(line, shape, _stream(entropy, _NORMAL, i)).picture()
    for i, defect in enumerate(types[n_normal:]):
        shot = Shot(line, shape, _stream(entropy, _ANOMALOUS, i))
        images[n_normal + i], masks[n_normal + i] = add_defect(shot, _stream(entropy, _DEFECT, i), defect)
    labels = np.repeat(np.array([1, -1], dtype=np.int64), [n_normal, n_anomalous])
    return Bunch(images=images, labels=labels, masks=masks, defect_types=types, kind=kind)


class Shot:
    """One product under the camera: the same photograph can be taken with and without a defect."""

    def __init__(self, line: InspectionLine, shape: Shape, rng: np.random.Generator) -> None:
        self.scene = line.draw_scene(rng, shape)
        self._lamp = draw_lamp(rng, line.lighting)
        self._exposure = draw_exposure(rng, shape, line.camera)

    def picture(self, damage: Damage | None = None) -> Picture:
        """Return the photograph (H, W, 3), with the given damage if any."""
        scene = self.scene if damage is None else apply_damage(self.scene, damage)
        return photograph(light_scene(scene, self._lamp), self._exposure)


def add_defect(shot: Shot, rng: np.random.Generator, defect: str) -> tuple[Picture, Mask]:
    """Return the picture (H, W, 3) of a product with a defect, and the mask (H, W) of the pixels that it changed."""
    clean, strength = shot.picture(), 1.0
    for _ in range(_ATTEMPTS):
        damage = draw_damage(rng, shot.scene, defect, strength)
        picture = shot.picture(damage)
        mask = _changed(clean, picture, damage)
        if _SMALLEST_AREA < mask.mean() < _LARGEST_AREA and mask.sum() >= 4:
            return np.where(mask[..., None], picture, clean), mask
        strength *= 1.1  # hidden by the pattern or in the dark: try another place, with a stronger defect
    raise RuntimeError(f"no visible {defect!r} in {_ATTEMPTS} attempts")


def _changed(clean: Picture, picture: Picture, damage: Damage) -> Mask:
    """Return the visibly different pixels within the footprint of the damage, with gaps closed and specks removed."""
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
    """Return a random generator that depends on its key alone, not on what else is drawn."""
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
