"""Printed products: labels with text-like strokes, and circuit boards.

A layout is drawn once at twice the size, then sampled under each image's small shift and rotation.
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

_FINE = 2  # layouts are drawn at this many times the image's size


class _Sheet:
    """Four layers to draw on, in shorter sides from the upper left corner."""

    def __init__(self, shape: Shape) -> None:
        self.side = _FINE * min(shape)
        self.size = (_FINE * shape[1], _FINE * shape[0])
        self.width, self.height = (n / self.side for n in self.size)
        self.layers = [Image.new("L", self.size) for _ in range(4)]
        self._pens = [ImageDraw.Draw(layer) for layer in self.layers]

    def line(self, layer: int, points: Sequence[tuple[float, float]], width: float) -> None:
        at = [(x * self.side, y * self.side) for x, y in points]
        self._pens[layer].line(at, fill=255, width=max(1, round(width * self.side)), joint="curve")

    def box(self, layer: int, x: float, y: float, width: float, height: float, ink: int = 255) -> None:
        left, top, right, bottom = (t * self.side for t in (x, y, x + width, y + height))
        self._pens[layer].rectangle((left, top, max(left, right), max(top, bottom)), fill=ink)

    def dot(self, layer: int, x: float, y: float, radius: float, ink: int = 255) -> None:
        box = [t * self.side for t in (x - radius, y - radius, x + radius, y + radius)]
        self._pens[layer].ellipse(box, fill=ink)

    def merged(self) -> Image.Image:
        return Image.merge("CMYK", self.layers)  # four plain bands: no band is taken for opacity


def _glyph(rng: np.random.Generator, sheet: _Sheet, layer: int, x: float, y: float, size: float) -> None:
    """Draw a letter-like sign: two or three strokes between the points of a 3 x 3 grid."""
    for _ in range(rng.integers(2, 4)):
        steps = rng.integers(0, 3, (rng.integers(2, 4), 2))
        points = [(x + 0.3 * size * i, y + 0.5 * size * j) for i, j in steps.tolist()]
        sheet.line(layer, points, 0.13 * size)


def _text(rng: np.random.Generator, sheet: _Sheet, layer: int, x: float, y: float, size: float, n: int) -> None:
    for k in range(n):
        if rng.random() > 0.15:  # else a space between words
            _glyph(rng, sheet, layer, x + 0.95 * size * k, y, size)


@dataclass(frozen=True)
class Label:
    """Printed labels: headline, lines of text, bar code, frame."""

    layout: int | None = None
    """Number of the design; None draws a new one."""
    shift: Range = (-0.012, 0.012)
    angle: Range = (-0.02, 0.02)
    paper: Color = Color(saturation=(0.0, 0.3), value=(0.75, 0.97))
    ink: Color = Color(saturation=(0.0, 0.5), value=(0.05, 0.3))
    accent: Color = Color(saturation=(0.4, 0.9), value=(0.3, 0.85))
    coverage: Range = (0.85, 1.0)


@lru_cache(maxsize=8)
def _label_layout(layout: int, shape: Shape) -> Image.Image:
    rng = np.random.default_rng(layout)
    sheet = _Sheet(shape)
    left, right = 0.08, sheet.width - 0.08
    y = 0.08
    sheet.box(1, 0, 0, sheet.width, rng.uniform(0.03, 0.06))
    while y < sheet.height - 0.12:
        block = rng.random()
        if block < 0.25:  # headline, perhaps on a bar
            size = rng.uniform(0.06, 0.1)
            _text(rng, sheet, int(rng.random() < 0.5), left, y, size, int((right - left) / size))
        elif block < 0.45:  # bar code
            size, x = rng.uniform(0.1, 0.18), left
            while x < right - 0.02:
                width = 0.004 * rng.integers(1, 5)
                sheet.box(0, x, y, width, min(size, sheet.height - 0.06 - y))
                x += width + 0.004 * rng.integers(1, 4)
        elif block < 0.6:  # a colored field
            size = rng.uniform(0.05, 0.12)
            sheet.box(1, left, y, rng.uniform(0.2, right - left), size)
        else:
            size = rng.uniform(0.025, 0.045)
            _text(rng, sheet, 0, left, y, size, int(rng.uniform(0.5, 1) * (right - left) / size))
        y += size + rng.uniform(0.02, 0.05)
    return sheet.merged()


def label(rng: np.random.Generator, shape: Shape, look: Label = Label()) -> Surface:
    """Draw a printed label."""
    layout = int(rng.integers(2**32)) if look.layout is None else look.layout
    ink, accent, _, _ = _sampled(rng, _label_layout(layout, shape), shape, look.shift, look.angle)
    fibers = fractal_noise(rng, shape, 0.5, coarsest=0.2)
    strength = np.float32(pick(rng, look.coverage)) * (1 - 0.03 * np.abs(fibers))
    albedo = tinted(pick_color(rng, look.paper), 0.012 * fibers)
    for color, layer in ((look.accent, accent), (look.ink, ink)):
        albedo = mixed(albedo, np.broadcast_to(pick_color(rng, color), albedo.shape), layer * strength)
    return Surface(albedo, fibers * np.float32(1e-4), gloss=0.04)


@dataclass(frozen=True)
class Board:
    """Circuit boards: tracks, pads, chips, small components and markings."""

    layout: int | None = None
    """Number of the design; None draws a new one."""
    shift: Range = (-0.01, 0.01)
    angle: Range = (-0.015, 0.015)
    mask: Color = Color((0.3, 0.62), (0.5, 0.9), (0.18, 0.45))
    solder: Color = Color((0.1, 0.16), (0.02, 0.45), (0.65, 0.85))
    chip: Color = gray(0.08, 0.2)
    track: Range = (0.25, 0.5)
    """How much lighter tracks are than the board."""


_COPPER, _SOLDER, _BODY, _INK = range(4)


def _packages(rng: np.random.Generator, sheet: _Sheet) -> list[tuple[float, float, float, float]]:
    """Return boxes (x, y, width, height) of chips that keep clear of each other."""
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


def _track(rng: np.random.Generator, sheet: _Sheet, x: float, y: float, way: tuple[int, int]) -> None:
    """Draw a track that leaves a pad, bends by 45 degrees and ends in a via."""
    points = [(x, y)]
    angle = math.atan2(way[1], way[0])
    for _ in range(choose(rng, (1, 2, 3))):
        reach = rng.uniform(0.04, 0.16)
        points.append((points[-1][0] + reach * math.cos(angle), points[-1][1] + reach * math.sin(angle)))
        angle += choose(rng, (-1, 1)) * math.pi / 4
    sheet.line(_COPPER, points, 0.007)
    sheet.dot(_SOLDER, *points[-1], 0.011)
    sheet.dot(_SOLDER, *points[-1], 0.005, ink=0)


def _chip(rng: np.random.Generator, sheet: _Sheet, x: float, y: float, width: float, height: float) -> None:
    pitch, pin = rng.uniform(0.022, 0.034), 0.012
    sides = [(0, -1), (0, 1)] if rng.random() < 0.5 else [(0, -1), (0, 1), (-1, 0), (1, 0)]
    for way in sides:
        along = width if way[0] == 0 else height
        for k in range(int((along - 0.02) / pitch)):
            at = 0.015 + k * pitch
            cx = x + at if way[0] == 0 else (x - 0.01 if way[0] < 0 else x + width + 0.01)
            cy = y + at if way[1] == 0 else (y - 0.01 if way[1] < 0 else y + height + 0.01)
            if rng.random() < 0.5:
                _track(rng, sheet, cx, cy, way)
            half = (pin / 2, 0.014) if way[0] == 0 else (0.014, pin / 2)
            sheet.box(_SOLDER, cx - half[0], cy - half[1], 2 * half[0], 2 * half[1])
    sheet.box(_BODY, x, y, width, height)
    sheet.dot(_INK, x + 0.02, y + 0.02, 0.008)
    size = min(0.03, height / 4)
    _text(rng, sheet, _INK, x + 0.03, y + height / 2 - size / 2, size, int((width - 0.05) / size))


def _component(rng: np.random.Generator, sheet: _Sheet, x: float, y: float, upright: bool) -> None:
    """Draw a resistor or capacitor between two pads, framed and numbered."""
    width, height = (0.022, 0.045) if upright else (0.045, 0.022)
    sheet.box(_SOLDER, x, y, width, height)
    if upright:
        sheet.box(_BODY, x, y + 0.011, width, height - 0.022)
    else:
        sheet.box(_BODY, x + 0.011, y, width - 0.022, height)
    left, top, right, bottom = x - 0.008, y - 0.008, x + width + 0.008, y + height + 0.008
    sheet.line(_INK, [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], 0.003)
    _text(rng, sheet, _INK, right + 0.008, top + 0.006, 0.018, 2)


@lru_cache(maxsize=8)
def _board_layout(layout: int, shape: Shape) -> Image.Image:
    rng = np.random.default_rng(layout)
    sheet = _Sheet(shape)
    boxes = _packages(rng, sheet)
    for box in boxes:
        _chip(rng, sheet, *box)
    for _ in range(90):
        x, y = rng.uniform(0.02, sheet.width - 0.07), rng.uniform(0.02, sheet.height - 0.07)
        clear = all(x > a + w + 0.03 or x < a - 0.08 or y > b + h + 0.03 or y < b - 0.08 for a, b, w, h in boxes)
        if clear:
            _component(rng, sheet, x, y, bool(rng.random() < 0.5))
            boxes.append((x, y, 0.09, 0.045))
    for _ in range(25):
        sheet.dot(_SOLDER, rng.uniform(0, sheet.width), rng.uniform(0, sheet.height), 0.008)
    return sheet.merged()


def board(rng: np.random.Generator, shape: Shape, look: Board = Board()) -> Surface:
    """Draw a circuit board."""
    layout = int(rng.integers(2**32)) if look.layout is None else look.layout
    copper, solder, body, ink = _sampled(rng, _board_layout(layout, shape), shape, look.shift, look.angle)
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


def _sampled(rng: np.random.Generator, layout: Image.Image, shape: Shape, shift: Range, angle: Range) -> list[Field]:
    """Return the layout's four layers, each (H, W) in [0, 1], shifted and turned."""
    turn, side = pick(rng, angle), _FINE * min(shape)
    cos, sin = math.cos(turn), math.sin(turn)
    middle = (layout.size[0] / 2, layout.size[1] / 2)
    dx, dy = middle[0] + pick(rng, shift) * side, middle[1] + pick(rng, shift) * side
    matrix = (cos, -sin, middle[0] - cos * dx + sin * dy, sin, cos, middle[1] - sin * dx - cos * dy)
    seen = layout.transform(layout.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    values = np.asarray(seen.reduce(_FINE), dtype=np.float32) / 255
    return [np.ascontiguousarray(values[..., k]) for k in range(4)]
