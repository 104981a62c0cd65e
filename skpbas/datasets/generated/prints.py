"""Printed circuit boards, and the sheet that layouts are drawn on.

A layout is drawn once at twice the size of the image. Each image samples it with a small shift and rotation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from skpbas.datasets.generated.light import Surface
from skpbas.datasets.generated.noise import Field, Shape, fractal_noise
from skpbas.datasets.generated.ranges import Color, Range, choose, gray, pick, pick_color
from skpbas.datasets.generated.textures import mixed, tinted

_OVERSAMPLING = 2  # size of a layout, as a multiple of the size of the image


class Sheet:
    """Four layers to draw on, with coordinates in shorter sides of the image from the upper left corner."""

    def __init__(self, shape: Shape) -> None:
        self.side = _OVERSAMPLING * min(shape)
        self.size = (_OVERSAMPLING * shape[1], _OVERSAMPLING * shape[0])
        self.width, self.height = (n / self.side for n in self.size)
        self.layers = [Image.new("L", self.size) for _ in range(4)]
        self._pens = [ImageDraw.Draw(layer) for layer in self.layers]

    def line(self, layer: int, points: Sequence[tuple[float, float]], width: float) -> None:
        """Draw a line through points (x, y)."""
        at = [(x * self.side, y * self.side) for x, y in points]
        self._pens[layer].line(at, fill=255, width=max(1, round(width * self.side)), joint="curve")

    def box(self, layer: int, x: float, y: float, width: float, height: float, ink: int = 255) -> None:
        """Draw a filled rectangle; (x, y) is its upper left corner."""
        left, top, right, bottom = (t * self.side for t in (x, y, x + width, y + height))
        self._pens[layer].rectangle((left, top, max(left, right), max(top, bottom)), fill=ink)

    def dot(self, layer: int, x: float, y: float, radius: float, ink: int = 255) -> None:
        """Draw a filled circle around (x, y)."""
        box = [t * self.side for t in (x - radius, y - radius, x + radius, y + radius)]
        self._pens[layer].ellipse(box, fill=ink)

    def merged(self) -> Image.Image:
        """Return the layers as the bands of one image."""
        return Image.merge("CMYK", self.layers)  # four bands without alpha, so that each is resampled on its own


def _draw_glyph(rng: np.random.Generator, sheet: Sheet, layer: int, x: float, y: float, size: float) -> None:
    """Draw a shape like a letter: two or three strokes between points of a 3 x 3 grid."""
    for _ in range(rng.integers(2, 4)):
        steps = rng.integers(0, 3, (rng.integers(2, 4), 2))
        points = [(x + 0.3 * size * i, y + 0.5 * size * j) for i, j in steps.tolist()]
        sheet.line(layer, points, 0.13 * size)


def draw_text(rng: np.random.Generator, sheet: Sheet, layer: int, x: float, y: float, size: float, n: int) -> None:
    """Draw a line of `n` letters and spaces of height `size`."""
    for k in range(n):
        if rng.random() > 0.15:  # otherwise a space between words
            _draw_glyph(rng, sheet, layer, x + 0.95 * size * k, y, size)


@dataclass(frozen=True)
class Board:
    """Printed circuit boards: tracks, pads, chips, small components and markings."""

    layout: int | None = None
    """Seed of the layout; None draws a new one."""
    shift: Range = (-0.01, 0.01)
    angle: Range = (-0.015, 0.015)
    mask: Color = Color((0.3, 0.62), (0.5, 0.9), (0.18, 0.45))
    solder: Color = Color((0.1, 0.16), (0.02, 0.45), (0.65, 0.85))
    chip: Color = gray(0.08, 0.2)
    track: Range = (0.25, 0.5)
    """How much lighter tracks are than the rest of the board."""


_COPPER, _SOLDER, _BODY, _INK = range(4)


def _place_chips(rng: np.random.Generator, sheet: Sheet) -> list[tuple[float, float, float, float]]:
    """Return the boxes (x, y, width, height) of chips that do not overlap."""
    boxes: list[tuple[float, float, float, float]] = []
    for _ in range(60):
        width, height = rng.uniform(0.1, 0.28, 2)
        x, y = rng.uniform(0.05, sheet.width - width - 0.05), rng.uniform(0.05, sheet.height - height - 0.05)
        gap = 0.09
        if all(
            x > a + w + gap or a > x + width + gap or y > b + h + gap or b > y + height + gap for a, b, w, h in boxes
        ):
            boxes.append((x, y, width, height))
    return boxes[:5]


def _draw_track(rng: np.random.Generator, sheet: Sheet, x: float, y: float, way: tuple[int, int]) -> None:
    """Draw a track that starts at a pad, bends by 45 degrees and ends in a via."""
    points = [(x, y)]
    angle = math.atan2(way[1], way[0])
    for _ in range(choose(rng, (1, 2, 3))):
        reach = rng.uniform(0.04, 0.16)
        points.append((points[-1][0] + reach * math.cos(angle), points[-1][1] + reach * math.sin(angle)))
        angle += choose(rng, (-1, 1)) * math.pi / 4
    sheet.line(_COPPER, points, 0.007)
    sheet.dot(_SOLDER, *points[-1], 0.011)
    sheet.dot(_SOLDER, *points[-1], 0.005, ink=0)


def _draw_chip(rng: np.random.Generator, sheet: Sheet, x: float, y: float, width: float, height: float) -> None:
    """Draw a chip with pins on two or four sides, tracks from some of them, and a label."""
    pitch, pin = rng.uniform(0.022, 0.034), 0.012
    sides = [(0, -1), (0, 1)] if rng.random() < 0.5 else [(0, -1), (0, 1), (-1, 0), (1, 0)]
    for way in sides:
        along = width if way[0] == 0 else height
        for k in range(int((along - 0.02) / pitch)):
            at = 0.015 + k * pitch
            cx = x + at if way[0] == 0 else (x - 0.01 if way[0] < 0 else x + width + 0.01)
            cy = y + at if way[1] == 0 else (y - 0.01 if way[1] < 0 else y + height + 0.01)
            if rng.random() < 0.5:
                _draw_track(rng, sheet, cx, cy, way)
            half = (pin / 2, 0.014) if way[0] == 0 else (0.014, pin / 2)
            sheet.box(_SOLDER, cx - half[0], cy - half[1], 2 * half[0], 2 * half[1])
    sheet.box(_BODY, x, y, width, height)
    sheet.dot(_INK, x + 0.02, y + 0.02, 0.008)
    size = min(0.03, height / 4)
    draw_text(rng, sheet, _INK, x + 0.03, y + height / 2 - size / 2, size, int((width - 0.05) / size))


def _draw_component(rng: np.random.Generator, sheet: Sheet, x: float, y: float, upright: bool) -> None:
    """Draw a resistor or capacitor between two pads, with a frame and a number."""
    width, height = (0.022, 0.045) if upright else (0.045, 0.022)
    sheet.box(_SOLDER, x, y, width, height)
    if upright:
        sheet.box(_BODY, x, y + 0.011, width, height - 0.022)
    else:
        sheet.box(_BODY, x + 0.011, y, width - 0.022, height)
    left, top, right, bottom = x - 0.008, y - 0.008, x + width + 0.008, y + height + 0.008
    sheet.line(_INK, [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], 0.003)
    draw_text(rng, sheet, _INK, right + 0.008, top + 0.006, 0.018, 2)


@lru_cache(maxsize=8)
def _board_layout(layout: int, shape: Shape) -> Image.Image:
    rng = np.random.default_rng(layout)
    sheet = Sheet(shape)
    boxes = _place_chips(rng, sheet)
    for box in boxes:
        _draw_chip(rng, sheet, *box)
    for _ in range(90):
        x, y = rng.uniform(0.02, sheet.width - 0.07), rng.uniform(0.02, sheet.height - 0.07)
        clear = all(x > a + w + 0.03 or x < a - 0.08 or y > b + h + 0.03 or y < b - 0.08 for a, b, w, h in boxes)
        if clear:
            _draw_component(rng, sheet, x, y, bool(rng.random() < 0.5))
            boxes.append((x, y, 0.09, 0.045))
    for _ in range(25):
        sheet.dot(_SOLDER, rng.uniform(0, sheet.width), rng.uniform(0, sheet.height), 0.008)
    return sheet.merged()


def board(rng: np.random.Generator, shape: Shape, look: Board = Board()) -> Surface:
    """Draw a printed circuit board."""
    layout = int(rng.integers(2**32)) if look.layout is None else look.layout
    copper, solder, body, ink = sample_layout(rng, _board_layout(layout, shape), shape, look.shift, look.angle)
    solder = solder * (1 - body)
    cloud = fractal_noise(rng, shape, 0.8)
    albedo = tinted(pick_color(rng, look.mask), 0.03 * cloud + np.float32(pick(rng, look.track)) * copper)
    grain = 0.06 * fractal_noise(rng, shape, 0.3, coarsest=0.05)
    for color, layer in (
        (look.solder, solder),
        (look.chip, body),
        (gray(0.8, 0.9), 0.9 * ink * (1 - solder)),
    ):
        albedo = mixed(albedo, tinted(pick_color(rng, color), grain), layer)
    raised = ndimage.uniform_filter(body, max(2, min(shape) // 90))
    height = 0.001 * copper + 0.003 * solder + 0.02 * raised + 0.0001 * grain
    return Surface(albedo, height.astype(np.float32), gloss=0.06 + 0.35 * solder, metal=0.1)


def sample_layout(
    rng: np.random.Generator, layout: Image.Image, shape: Shape, shift: Range, angle: Range
) -> list[Field]:
    """Return the four layers of a layout, each (H, W) in [0, 1], with a random shift and rotation."""
    turn, side = pick(rng, angle), _OVERSAMPLING * min(shape)
    cos, sin = math.cos(turn), math.sin(turn)
    middle = (layout.size[0] / 2, layout.size[1] / 2)
    dx, dy = middle[0] + pick(rng, shift) * side, middle[1] + pick(rng, shift) * side
    matrix = (cos, -sin, middle[0] - cos * dx + sin * dy, sin, cos, middle[1] - sin * dx - cos * dy)
    seen = layout.transform(layout.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    values = np.asarray(seen.reduce(_OVERSAMPLING), dtype=np.float32) / 255
    return [np.ascontiguousarray(values[..., k]) for k in range(4)]
