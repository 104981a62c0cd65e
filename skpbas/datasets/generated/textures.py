"""Flat materials that fill the picture: woven fabric, brushed metal and wood.

Each material is a frozen dataclass of ranges and a function of (rng, shape, look) that draws a `Surface`
from them. Lengths are in shorter sides of the image, angles in radians.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skpbas.datasets.generated.light import Surface
from skpbas.datasets.generated.noise import (
    Field,
    Shape,
    fractal_noise,
    plane,
    rotated,
    smoothstep,
    white_noise,
)
from skpbas.datasets.generated.ranges import Choices, Color, Range, choose, pick, pick_color


def tinted(color: Field, tone: Field) -> Field:
    """Return a color (3,) or (H, W, 3), made lighter where tone (H, W) is positive and darker where it is negative."""
    shaded: Field = color * np.maximum(1 + tone, 0)[..., None]
    return shaded


def mixed(first: Field, second: Field, share: Field) -> Field:
    """Return a blend of two colors: `first` where share (H, W) is 0, `second` where it is 1."""
    blend: Field = first + share[..., None] * (second - first)
    return blend


@dataclass(frozen=True)
class Weave:
    """Woven fabric."""

    threads: Range = (22.0, 70.0)
    """Number of threads along the shorter side."""
    period: Choices = (2, 2, 3, 4, 5)
    """2 is a plain weave, larger numbers are twills."""
    angle: Range = (-0.8, 0.8)
    warp: Color = Color()
    weft: Color = Color()
    relief: Range = (0.15, 0.5)
    """Height of the threads, in thread widths."""
    fuzz: Range = (0.03, 0.12)
    slub: Range = (0.02, 0.1)
    """Standard deviation of the tone between threads."""
    wobble: Range = (0.05, 0.4)
    """Standard deviation of the threads' position, in thread widths."""


def weave(rng: np.random.Generator, shape: Shape, look: Weave = Weave()) -> Surface:
    """Draw a woven fabric."""
    count, period = pick(rng, look.threads), choose(rng, look.period)
    u, v = rotated(*plane(shape), pick(rng, look.angle))
    bend = fractal_noise(rng, shape, 1.5, coarsest=0.3) * np.float32(pick(rng, look.wobble))
    shift = rng.uniform(0, 60, 2).astype(np.float32)
    u, v = u * np.float32(count) + bend + shift[0], v * np.float32(count) - bend + shift[1]
    i, j = np.floor(u), np.floor(v)
    fu, fv = 2 * (u - i) - 1, 2 * (v - j) - 1  # from -1 to 1 across each thread
    thread = i.astype(np.int32), j.astype(np.int32)
    over = (thread[0] + thread[1]) % period < (period + 1) // 2
    round_, bulge = np.where(over, fu, fv), np.where(over, fv, fu)
    height = np.sqrt(np.maximum(1 - round_ * round_, 0)) * (1 - np.float32(0.4) * bulge * bulge)
    slub = white_noise(rng, (2, 256)) * np.float32(pick(rng, look.slub))
    tone = np.where(over, slub[0][thread[0] % 256], slub[1][thread[1] % 256])
    tone = tone + white_noise(rng, shape) * np.float32(pick(rng, look.fuzz)) + 0.6 * height - 0.45
    color = mixed(pick_color(rng, look.weft), pick_color(rng, look.warp), over.astype(np.float32))
    relief = np.float32(pick(rng, look.relief) / count)
    return Surface(tinted(color, tone.astype(np.float32)), height * relief)


@dataclass(frozen=True)
class BrushedMetal:
    """Sheet metal with brush marks in one direction."""

    angle: Range = (-0.6, 0.6)
    length: Range = (25.0, 80.0)
    """Length of the marks, as a multiple of their width."""
    fineness: Range = (0.3, 0.8)
    """How fast the strength of the marks falls with frequency."""
    contrast: Range = (0.03, 0.09)
    relief: Range = (1e-4, 4e-4)
    color: Color = Color((0.05, 0.65), (0.0, 0.12), (0.45, 0.75))
    sheen: Range = (0.05, 0.3)
    """Strength of the broad reflection of the lamp."""
    sheen_at: Range = (-0.6, 0.6)


def brushed_metal(rng: np.random.Generator, shape: Shape, look: BrushedMetal = BrushedMetal()) -> Surface:
    """Draw a sheet of brushed metal."""
    angle = pick(rng, look.angle)
    marks = fractal_noise(
        rng, shape, pick(rng, look.fineness), coarsest=0.2, stretch=pick(rng, look.length), angle=angle
    )
    cloud = fractal_noise(rng, shape, 1.2)
    along, _ = rotated(*plane(shape), angle)
    band = np.exp(-np.square((along - np.float32(pick(rng, look.sheen_at))) / np.float32(0.45)))
    tone = np.float32(pick(rng, look.contrast)) * (marks + 0.25 * cloud)
    tone = tone + np.float32(pick(rng, look.sheen)) * (band - 0.5)
    albedo = tinted(pick_color(rng, look.color), tone)
    return Surface(albedo, marks * np.float32(pick(rng, look.relief)), gloss=0.15, metal=0.35)


@dataclass(frozen=True)
class Wood:
    """Sawn wood: annual rings cut at an angle, fibers and pores."""

    angle: Range = (-1.6, 1.6)
    rings: Range = (8.0, 30.0)
    """Number of rings along the shorter side."""
    depth: Range = (0.05, 1.0)
    """Depth of the center of the trunk below the surface."""
    offset: Range = (-0.9, 0.9)
    """Position of the center of the trunk across the grain."""
    slant: Range = (-0.5, 0.5)
    waviness: Range = (0.1, 0.7)
    """Standard deviation of the rings' position, in rings."""
    contrast: Range = (0.3, 0.9)
    pores: Range = (0.0, 0.5)
    light: Color = Color((0.06, 0.11), (0.3, 0.6), (0.6, 0.88))
    dark: Color = Color((0.03, 0.08), (0.45, 0.75), (0.3, 0.55))


def wood(rng: np.random.Generator, shape: Shape, look: Wood = Wood()) -> Surface:
    """Draw a wooden board."""
    angle, rings = pick(rng, look.angle), pick(rng, look.rings)
    u, v = rotated(*plane(shape), angle)
    below = np.float32(pick(rng, look.depth)) + np.float32(pick(rng, look.slant)) * u
    radius = np.hypot(v - np.float32(pick(rng, look.offset)), below)
    wander = fractal_noise(rng, shape, 2.2, coarsest=0.6, stretch=8, angle=angle)
    ring = radius * np.float32(rings) + np.float32(pick(rng, look.waviness)) * wander
    ring = ring + np.float32(rng.random())
    year = ring - np.floor(ring)
    late = year * year * smoothstep(1.0, 0.85, year)  # darkens slowly and ends abruptly
    fibers = fractal_noise(rng, shape, 0.3, coarsest=0.1, stretch=25, angle=angle)
    pores = smoothstep(1.6, 2.6, fibers) * np.float32(pick(rng, look.pores))
    share = np.clip(np.float32(pick(rng, look.contrast)) * (1.4 * late + 0.06 * wander) + 0.1, 0, 1)
    albedo = mixed(pick_color(rng, look.light), pick_color(rng, look.dark), share)
    tone = np.float32(0.035) * fibers - pores
    return Surface(tinted(albedo, tone), fibers * np.float32(2e-4) - pores * np.float32(1e-3), gloss=0.03)
