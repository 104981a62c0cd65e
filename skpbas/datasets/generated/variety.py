"""Pictures of anything: every material and part, in any color, light and focus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from skpbas.datasets.generated import parts, prints, textures
from skpbas.datasets.generated.light import (
    Camera,
    Lighting,
    Scene,
    Surface,
    draw_exposure,
    draw_lamp,
    light_scene,
    photograph,
    plain_surface,
)
from skpbas.datasets.generated.noise import Shape
from skpbas.datasets.generated.ranges import Color, pick_color

SURFACES: tuple[Callable[[np.random.Generator, Shape], Surface], ...] = (
    textures.weave,
    textures.brushed_metal,
    textures.wood,
    textures.granite,
    textures.marble,
    textures.leather,
    textures.foam,
    textures.plaster,
    textures.carpet,
    textures.tiles,
    textures.mesh,
    textures.ribs,
    prints.label,
    prints.board,
)
"""Every material, each a function of (rng, shape)."""

PartMaker = Callable[[np.random.Generator, Shape, parts.Placement], parts.Part]

PARTS: tuple[PartMaker, ...] = (
    parts.washer,
    parts.hex_nut,
    parts.screw,
    parts.capsule,
    parts.bottle_mouth,
    parts.button,
)
"""Every part, each a function of (rng, shape, place)."""

_ANYWHERE = parts.Placement(shift=(-0.15, 0.15), scale=(0.5, 1.5))


def scene_of_surface(front: Surface, shape: Shape) -> Scene:
    """Fill the picture with a surface."""
    return Scene(front, front, np.ones(shape, np.float32))


def draw_ground(rng: np.random.Generator, shape: Shape) -> Surface:
    """Draw what a part may lie on: a plain color or any material."""
    if rng.random() < 0.6:
        return plain_surface(rng, shape, pick_color(rng, Color(saturation=(0.0, 0.4), value=(0.05, 0.95))))
    return SURFACES[rng.integers(len(SURFACES))](rng, shape)


def scene_of_part(rng: np.random.Generator, make_part: PartMaker, back: Surface, shape: Shape) -> Scene:
    """Draw a part anywhere on a ground."""
    part = make_part(rng, shape, _ANYWHERE)
    return Scene(part.surface, back, part.coverage, thickness=float(rng.uniform(0.01, 0.08)))


def random_scene(rng: np.random.Generator, shape: Shape, part_share: float = 0.4) -> Scene:
    """Draw any material, or (with probability `part_share`) any part on any ground."""
    if rng.random() >= part_share:
        return scene_of_surface(SURFACES[rng.integers(len(SURFACES))](rng, shape), shape)
    back = draw_ground(rng, shape)
    return scene_of_part(rng, PARTS[rng.integers(len(PARTS))], back, shape)


def take_picture(rng: np.random.Generator, scene: Scene) -> NDArray[np.uint8]:
    """Photograph a scene, (H, W, 3), in any light with any camera."""
    lamp = draw_lamp(rng, Lighting())
    camera = Camera(color=bool(rng.random() > 0.2))
    return photograph(light_scene(scene, lamp), draw_exposure(rng, scene.coverage.shape, camera))


def random_image(rng: np.random.Generator, shape: Shape = (256, 256)) -> NDArray[np.uint8]:
    """Draw a picture of any material or part.

    Made for training networks on as many different pictures as they can take; generated images are no
    benchmark of accuracy on real parts.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of all draws.
    shape : (int, int), default=(256, 256)
        Height and width, pixels; 32 or more.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        The picture.

    Examples
    --------
    >>> import numpy as np
    >>> from skpbas.datasets.generated.variety import random_image
    >>> random_image(np.random.default_rng(0), (64, 96)).shape
    (64, 96, 3)
    """
    return take_picture(rng, random_scene(rng, shape))
