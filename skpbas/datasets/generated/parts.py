"""Parts seen from above: nuts and screws.

A part consists of an outline, given by the signed distance from it (negative inside, in shorter sides of the
image), and a height map. Each part is a frozen dataclass of ranges and a function of (rng, shape, place, look).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np

from skpbas.datasets.generated.light import Surface, bevel, fade
from skpbas.datasets.generated.noise import Field, Shape, fractal_noise, plane, rotated, smoothstep
from skpbas.datasets.generated.ranges import Choices, Color, Range, choose, pick, pick_color
from skpbas.datasets.generated.textures import tinted


@dataclass(frozen=True)
class Part:
    """A part in the picture."""

    surface: Surface
    coverage: Field
    """(H, W): fraction of each pixel that the part covers, in [0, 1]."""


@dataclass(frozen=True)
class Placement:
    """Ranges that the position of a part in the picture is drawn from."""

    shift: Range = (-0.02, 0.02)
    """Offset from the center of the image along either axis, in shorter sides."""
    angle: Range = (0.0, 2 * math.pi)
    scale: Range = (0.98, 1.02)


def part_coordinates(rng: np.random.Generator, shape: Shape, place: Placement) -> tuple[Field, Field, float]:
    """Return every pixel's coordinates in the frame of a part, (H, W) each, and the angle of the part."""
    x, y = plane(shape)
    angle, scale = pick(rng, place.angle), np.float32(1 / pick(rng, place.scale))
    x, y = x - np.float32(pick(rng, place.shift)), y - np.float32(pick(rng, place.shift))
    u, v = rotated(x * scale, y * scale, angle)
    return u, v, angle


def polygon(u: Field, v: Field, sides: int, apothem: float, rounding: float = 0.0) -> Field:
    """Return the signed distance to a regular polygon; `apothem` is the distance from its center to a side."""
    turns = [2 * math.pi * k / sides for k in range(sides)]
    faces = [np.float32(math.cos(t)) * u + np.float32(math.sin(t)) * v for t in turns]
    farthest = reduce(np.maximum, faces)
    if rounding > 0:  # a smooth maximum
        soft = np.float32(rounding)
        farthest = farthest + soft * np.log(reduce(np.add, (np.exp((f - farthest) / soft) for f in faces)))
    return farthest - np.float32(apothem)


@dataclass(frozen=True)
class Finish:
    """Ranges of the appearance of a part's material."""

    color: Color = Color((0.0, 1.0), (0.0, 0.4), (0.3, 0.75))
    grain: Range = (0.01, 0.05)
    """Strength of the machining marks."""
    stretch: Range = (1.0, 15.0)
    roughness: Range = (2e-5, 1.5e-4)
    gloss: Range = (0.1, 0.4)
    metal: Range = (0.0, 0.7)


STEEL = Finish(Color((0.08, 0.62), (0.0, 0.08), (0.4, 0.65)), gloss=(0.15, 0.35), metal=(0.4, 0.7))
BRASS = Finish(Color((0.1, 0.13), (0.4, 0.6), (0.55, 0.75)), gloss=(0.15, 0.35), metal=(0.4, 0.7))


def finished(rng: np.random.Generator, height: Field, finish: Finish, angle: float) -> Surface:
    """Return a surface of the given height (H, W) and finish, with grain along `angle`."""
    shape = (height.shape[0], height.shape[1])
    grain = fractal_noise(rng, shape, 0.6, coarsest=0.3, stretch=pick(rng, finish.stretch), angle=angle)
    albedo = tinted(pick_color(rng, finish.color), np.float32(pick(rng, finish.grain)) * grain)
    height = height + grain * np.float32(pick(rng, finish.roughness))
    return Surface(albedo, height, gloss=pick(rng, finish.gloss), metal=pick(rng, finish.metal))


@dataclass(frozen=True)
class HexNut:
    """Nuts, hexagonal or with another number of sides, with a threaded bore."""

    apothem: Range = (0.28, 0.38)
    sides: Choices = (6, 6, 6, 4, 8)
    bore: Range = (0.5, 0.64)
    """Radius of the bore, as a fraction of the apothem."""
    chamfer: Range = (0.02, 0.05)
    collar: Range = (0.0, 0.012)
    """Height of a ring around the bore."""
    threads: Range = (3.0, 6.0)
    finish: Finish = STEEL


def hex_nut(rng: np.random.Generator, shape: Shape, place: Placement, look: HexNut = HexNut()) -> Part:
    """Draw a nut."""
    u, v, angle = part_coordinates(rng, shape, place)
    apothem = pick(rng, look.apothem)
    bore = apothem * pick(rng, look.bore)
    distance = np.hypot(u, v)
    outside = polygon(u, v, choose(rng, look.sides), apothem, rounding=0.006)
    outline = np.maximum(outside, np.float32(0.82 * bore) - distance)
    # chamfered corners, as on a machined nut
    corner = smoothstep(apothem * 0.97, apothem * 1.18, distance) * np.float32(pick(rng, look.chamfer))
    collar = smoothstep(bore * 1.5, bore * 1.42, distance) * np.float32(pick(rng, look.collar))
    height = bevel(-outside, 0.012) - corner + collar
    inside = smoothstep(bore * 1.04, bore * 0.97, distance)  # the wall of the bore seen from above
    wall = (distance / np.float32(bore) - 0.82) / np.float32(0.18)
    thread = np.sin(wall * np.float32(2 * math.pi * pick(rng, look.threads)) + np.arctan2(v, u))
    height = height - inside * (np.float32(0.03) * (1 - wall) + np.float32(0.004) * (1 + thread))
    part = finished(rng, height, look.finish, angle)
    shaded = tinted(part.albedo, -inside * (np.float32(0.75) - np.float32(0.4) * wall + 0.15 * thread))
    return Part(Surface(shaded, part.height, part.gloss * (1 - 0.8 * inside), part.metal), fade(outline, shape))


@dataclass(frozen=True)
class Screw:
    """Screws and bolts that lie on their side."""

    length: Range = (0.62, 0.82)
    head: Range = (0.09, 0.13)
    """Radius of the head."""
    cone: Range = (0.06, 0.16)
    """Length of a countersunk head."""
    shank: Range = (0.042, 0.06)
    """Radius of the shank."""
    smooth: Range = (0.15, 0.5)
    """Fraction of the length behind the head that has no thread."""
    pitch: Range = (0.03, 0.05)
    depth: Range = (0.3, 0.45)
    """Depth of the thread, in shank radii."""
    tip: Range = (0.06, 0.2)
    finish: Finish = STEEL


def screw(rng: np.random.Generator, shape: Shape, place: Placement, look: Screw = Screw()) -> Part:
    """Draw a screw."""
    u, v, angle = part_coordinates(rng, shape, place)
    length, shank, head = (pick(rng, r) for r in (look.length, look.shank, look.head))
    u = u + np.float32(length / 2)  # 0 at the top of the head, `length` at the tip
    cone, tip = pick(rng, look.cone), pick(rng, look.tip)
    flank = smoothstep(cone, 0.0, u - np.float32(0.015))
    body = np.float32(shank) + np.float32(head - shank) * flank * (0.5 + 0.5 * flank)
    threaded = smoothstep(-0.01, 0.03, u - np.float32(cone + pick(rng, look.smooth) * (length - cone)))
    helix = u / np.float32(pick(rng, look.pitch)) + np.float32(0.22) * v / np.float32(shank) + rng.random()
    saw = np.abs(2 * (helix - np.floor(helix)) - 1).astype(np.float32)
    ridge = saw**3  # thin ridges and wide valleys
    core = 1 - np.float32(pick(rng, look.depth)) * threaded * (1 - 1.6 * ridge)
    taper = smoothstep(0.0, tip, np.float32(length) - u)
    radius = body * core * np.sqrt(taper)
    outline = np.maximum(np.abs(v) - radius, np.maximum(-u, u - np.float32(length)))
    height = np.sqrt(np.maximum(radius * radius - v * v, 0))
    part = finished(rng, height, look.finish, angle)
    # valleys and flanks receive less light
    tone = np.float32(0.3) * threaded * (ridge - 0.6) - np.float32(0.25) * smoothstep(
        0.5, 1.0, np.abs(v) / (radius + 1e-6)
    )
    recess = smoothstep(0.012, 0.004, np.abs(u - np.float32(0.008)))
    surface = Surface(tinted(part.albedo, tone - np.float32(0.2) * recess), part.height, part.gloss, part.metal)
    return Part(surface, fade(outline, shape))
