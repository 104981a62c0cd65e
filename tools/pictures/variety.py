"""Pictures of any material or part, in any color, light and focus."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pictures import labels, more_materials, more_parts
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
    more_materials.granite,
    more_materials.marble,
    more_materials.leather,
    more_materials.foam,
    more_materials.plaster,
    more_materials.carpet,
    more_materials.tiles,
    more_materials.mesh,
    more_materials.ribs,
    labels.label,
    prints.board,
)
"""All materials, each a function of (rng, shape). The order is part of the pictures: they are drawn by index."""

DrawPart = Callable[[np.random.Generator, Shape, parts.Placement], parts.Part]

PARTS: tuple[DrawPart, ...] = (
    more_parts.washer,
    parts.hex_nut,
    parts.screw,
    more_parts.capsule,
    more_parts.bottle_mouth,
    more_parts.button,
)
"""All parts, each a function of (rng, shape, place). The order is part of the pictures, too."""

_ANYWHERE = parts.Placement(shift=(-0.15, 0.15), scale=(0.5, 1.5))


def scene_of_surface(front: Surface, shape: Shape) -> Scene:
    """Fill the picture with a surface."""
    return Scene(front, front, np.ones(shape, np.float32))


def draw_ground(rng: np.random.Generator, shape: Shape) -> Surface:
    """Draw a background for a part: a uniform color or any material."""
    if rng.random() < 0.6:
        return plain_surface(rng, shape, pick_color(rng, Color(saturation=(0.0, 0.4), value=(0.05, 0.95))))
    return SURFACES[rng.integers(len(SURFACES))](rng, shape)


def scene_of_part(rng: np.random.Generator, draw_part: DrawPart, back: Surface, shape: Shape) -> Scene:
    """Draw a part anywhere on a background."""
    part = draw_part(rng, shape, _ANYWHERE)
    return Scene(part.surface, back, part.coverage, thickness=float(rng.uniform(0.01, 0.08)))


def random_scene(rng: np.random.Generator, shape: Shape, part_share: float = 0.4) -> Scene:
    """Draw any material, or with probability `part_share` any part on any background."""
    if rng.random() >= part_share:
        return scene_of_surface(SURFACES[rng.integers(len(SURFACES))](rng, shape), shape)
    back = draw_ground(rng, shape)
    return scene_of_part(rng, PARTS[rng.integers(len(PARTS))], back, shape)


def take_picture(rng: np.random.Generator, scene: Scene) -> NDArray[np.uint8]:
    """Photograph a scene with any lamp and camera; return the picture, (H, W, 3)."""
    lamp = draw_lamp(rng, Lighting())
    camera = Camera(color=bool(rng.random() > 0.2))
    return photograph(light_scene(scene, lamp), draw_exposure(rng, scene.coverage.shape, camera))


def random_image(rng: np.random.Generator, shape: Shape = (256, 256)) -> NDArray[np.uint8]:
    """Draw a picture of any material or part.

    Parameters
    ----------
    rng : numpy.random.Generator
        Generator to draw from.
    shape : (int, int), default=(256, 256)
        Height and width, pixels; 32 or more.

    Returns
    -------
    ndarray of shape (H, W, 3), uint8
        The picture.

    Examples
    --------
    >>> import numpy as np
    >>> from pictures.variety import random_image
    >>> random_image(np.random.default_rng(0), (64, 96)).shape
    (64, 96, 3)
    """
    return take_picture(rng, random_scene(rng, shape))
