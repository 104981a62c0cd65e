"""Printed labels, drawn on the same sheets as the circuit boards of `skpbas.datasets.generated.prints`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from skpbas.datasets.generated.light import Surface
from skpbas.datasets.generated.noise import Shape, fractal_noise
from skpbas.datasets.generated.prints import Sheet, draw_text, sample_layout
from skpbas.datasets.generated.ranges import Color, Range, pick, pick_color
from skpbas.datasets.generated.textures import mixed, tinted


@dataclass(frozen=True)
class Label:
    """Printed labels: headlines, lines of text, bar codes and colored fields."""

    layout: int | None = None
    """Seed of the layout; None draws a new one."""
    shift: Range = (-0.012, 0.012)
    angle: Range = (-0.02, 0.02)
    paper: Color = Color(saturation=(0.0, 0.3), value=(0.75, 0.97))
    ink: Color = Color(saturation=(0.0, 0.5), value=(0.05, 0.3))
    accent: Color = Color(saturation=(0.4, 0.9), value=(0.3, 0.85))
    coverage: Range = (0.85, 1.0)
    """Opacity of the ink."""


@lru_cache(maxsize=8)
def _label_layout(layout: int, shape: Shape) -> Image.Image:
    rng = np.random.default_rng(layout)
    sheet = Sheet(shape)
    left, right = 0.08, sheet.width - 0.08
    y = 0.08
    sheet.box(1, 0, 0, sheet.width, rng.uniform(0.03, 0.06))
    while y < sheet.height - 0.12:
        block = rng.random()
        if block < 0.25:  # a headline in ink or in the accent color
            size = rng.uniform(0.06, 0.1)
            draw_text(rng, sheet, int(rng.random() < 0.5), left, y, size, int((right - left) / size))
        elif block < 0.45:  # a bar code
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
            draw_text(rng, sheet, 0, left, y, size, int(rng.uniform(0.5, 1) * (right - left) / size))
        y += size + rng.uniform(0.02, 0.05)
    return sheet.merged()


def label(rng: np.random.Generator, shape: Shape, look: Label = Label()) -> Surface:
    """Draw a printed label."""
    layout = int(rng.integers(2**32)) if look.layout is None else look.layout
    ink, accent, _, _ = sample_layout(rng, _label_layout(layout, shape), shape, look.shift, look.angle)
    fibers = fractal_noise(rng, shape, 0.5, coarsest=0.2)
    strength = np.float32(pick(rng, look.coverage)) * (1 - 0.03 * np.abs(fibers))
    albedo = tinted(pick_color(rng, look.paper), 0.012 * fibers)
    for color, layer in ((look.accent, accent), (look.ink, ink)):
        albedo = mixed(albedo, np.broadcast_to(pick_color(rng, color), albedo.shape), layer * strength)
    return Surface(albedo, fibers * np.float32(1e-4), gloss=0.04)
