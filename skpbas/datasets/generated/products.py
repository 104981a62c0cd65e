"""The kinds of product: a consistent product under a fixed lamp and camera, with natural variation."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol, TypeVar

import numpy as np

from skpbas.datasets.generated import parts, prints, textures
from skpbas.datasets.generated.light import Camera, Lighting, Scene, Surface, plain_surface
from skpbas.datasets.generated.noise import Shape
from skpbas.datasets.generated.ranges import Color, gray, narrow, pick, pick_color

DrawScene = Callable[[np.random.Generator, Shape], Scene]
Look_contra = TypeVar("Look_contra", contravariant=True)


class _SurfaceDrawer(Protocol[Look_contra]):
    def __call__(self, rng: np.random.Generator, shape: Shape, look: Look_contra) -> Surface: ...


class _PartDrawer(Protocol[Look_contra]):
    def __call__(
        self, rng: np.random.Generator, shape: Shape, place: parts.Placement, look: Look_contra
    ) -> parts.Part: ...


@dataclass(frozen=True)
class InspectionLine:
    """A product, and the lamp and camera that it passes under."""

    draw_scene: DrawScene
    """Places the next item under the camera."""
    lighting: Lighting
    camera: Camera


def _material_scenes(draw: _SurfaceDrawer[Look_contra], look: Look_contra, under: Color) -> DrawScene:
    """Return a function that fills the picture with a material; `under` shows where the material is missing."""

    def draw_scene(rng: np.random.Generator, shape: Shape) -> Scene:
        back = plain_surface(rng, shape, pick_color(rng, under))
        return Scene(draw(rng, shape, look), back, np.ones(shape, np.float32), thickness=0.02)

    return draw_scene


def _part_scenes(
    draw: _PartDrawer[Look_contra], look: Look_contra, place: parts.Placement, table: Color, thickness: float
) -> DrawScene:
    """Return a function that places a part on a table of uniform color."""

    def draw_scene(rng: np.random.Generator, shape: Shape) -> Scene:
        back = plain_surface(rng, shape, pick_color(rng, table), mottle=0.012)
        part = draw(rng, shape, place, look)
        return Scene(part.surface, back, part.coverage, thickness)

    return draw_scene


def _fabric(rng: np.random.Generator) -> InspectionLine:
    first = Color(saturation=(0.05, 0.55), value=(0.35, 0.8))
    second = Color((pick(rng, first.hue),) * 2, (0.05, 0.4), (0.4, 0.85))  # yarns of similar hue
    wide = textures.Weave(threads=(26.0, 55.0), angle=(-0.3, 0.3), warp=first, weft=second)
    look = narrow(rng, wide, 0.02)
    return _inspection_line(rng, _material_scenes(textures.weave, look, narrow(rng, gray(0.05, 0.2))))


def _brushed_metal(rng: np.random.Generator) -> InspectionLine:
    look = narrow(rng, textures.BrushedMetal(), 0.03)
    return _inspection_line(rng, _material_scenes(textures.brushed_metal, look, narrow(rng, gray(0.05, 0.15))))


def _wood(rng: np.random.Generator) -> InspectionLine:
    look = narrow(rng, textures.Wood(angle=(-0.15, 0.15), rings=(10.0, 24.0), depth=(0.2, 1.0)), 0.06)
    splintered = narrow(rng, Color((0.08, 0.11), (0.4, 0.55), (0.8, 0.95)))
    return _inspection_line(rng, _material_scenes(textures.wood, look, splintered))


def _hex_nut(rng: np.random.Generator) -> InspectionLine:
    finish = (parts.STEEL, parts.BRASS)[int(rng.integers(2))]
    look = narrow(rng, parts.HexNut(apothem=(0.3, 0.36), sides=(6,), finish=finish), 0.015)
    place = parts.Placement(shift=(-0.015, 0.015), angle=(-0.12, 0.12), scale=(0.995, 1.005))
    table = narrow(rng, (gray(0.08, 0.2), gray(0.6, 0.85))[int(rng.integers(2))])
    return _inspection_line(rng, _part_scenes(parts.hex_nut, look, place, table, thickness=0.05))


def _screw(rng: np.random.Generator) -> InspectionLine:
    look = narrow(rng, parts.Screw(finish=replace(parts.STEEL, color=gray(0.3, 0.55))), 0.015)
    place = parts.Placement(shift=(-0.03, 0.03), scale=(0.99, 1.01))
    return _inspection_line(rng, _part_scenes(parts.screw, look, place, narrow(rng, gray(0.65, 0.85)), thickness=0.04))


def _printed_board(rng: np.random.Generator) -> InspectionLine:
    look = replace(narrow(rng, prints.Board(), 0.02), layout=int(rng.integers(2**32)))
    # a layout is fixed, its position under the camera is not
    look = replace(look, shift=prints.Board.shift, angle=prints.Board.angle)
    bare = narrow(rng, Color((0.1, 0.13), (0.3, 0.45), (0.5, 0.65)))
    return _inspection_line(rng, _material_scenes(prints.board, look, bare))


def _inspection_line(rng: np.random.Generator, draw_scene: DrawScene) -> InspectionLine:
    """Return an inspection line with a lamp and a camera that hardly vary from image to image."""
    lighting = Lighting(ambient=(0.35, 0.6), elevation=(0.7, 1.15), falloff=(0.0, 0.1))
    lighting = replace(narrow(rng, lighting, 0.02), brightness=(0.975, 1.025))
    return InspectionLine(draw_scene, lighting, narrow(rng, Camera(noise=(0.004, 0.01)), 0.05))


PRODUCTS: Mapping[str, Callable[[np.random.Generator], InspectionLine]] = MappingProxyType(
    {
        "fabric": _fabric,
        "brushed_metal": _brushed_metal,
        "wood": _wood,
        "hex_nut": _hex_nut,
        "screw": _screw,
        "printed_board": _printed_board,
    }
)
"""A function for each kind that draws one product of it, with its lamp and camera."""

INSPECTION_KINDS: tuple[str, ...] = tuple(PRODUCTS)
"""The kinds of product that `make_inspection_images` can generate."""
