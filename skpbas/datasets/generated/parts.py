"""Parts seen from above: discs, washers, nuts, screws, capsules and bottle mouths.

A part is an outline, given by its signed distance (negative inside, in shorter sides), and a height map
over it. Every part is a frozen dataclass of ranges and a function of (rng, shape, place, ranges).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

import numpy as np

from skpbas.datasets.generated.light import Surface, bevel, fade
from skpbas.datasets.generated.noise import Field, Shape, fractal_noise, plane, rotated, smoothstep
from skpbas.datasets.generated.ranges import Choices, Color, Range, choose, pick, pick_color
from skpbas.datasets.generated.textures import mixed, tinted


@dataclass(frozen=True)
class Part:
    """A part in the picture."""

    surface: Surface
    coverage: Field
    """(H, W): share of each pixel that the part covers, in [0, 1]."""


@dataclass(frozen=True)
class Placement:
    """Where parts lie in the picture."""

    shift: Range = (-0.02, 0.02)
    """Off the middle, in shorter sides, along either axis."""
    angle: Range = (0.0, 2 * math.pi)
    scale: Range = (0.98, 1.02)


def part_coordinates(rng: np.random.Generator, shape: Shape, place: Placement) -> tuple[Field, Field, float]:
    """Return a part's own coordinates at every pixel, and its angle."""
    x, y = plane(shape)
    angle, scale = pick(rng, place.angle), np.float32(1 / pick(rng, place.scale))
    x, y = x - np.float32(pick(rng, place.shift)), y - np.float32(pick(rng, place.shift))
    u, v = rotated(x * scale, y * scale, angle)
    return u, v, angle


def polygon(u: Field, v: Field, sides: int, apothem: float, rounding: float = 0.0) -> Field:
    """Return the distance to a regular polygon; `apothem` is from the middle to the middle of a side."""
    turns = [2 * math.pi * k / sides for k in range(sides)]
    faces = [np.float32(math.cos(t)) * u + np.float32(math.sin(t)) * v for t in turns]
    farthest = reduce(np.maximum, faces)
    if rounding > 0:  # a smooth maximum
        soft = np.float32(rounding)
        farthest = farthest + soft * np.log(reduce(np.add, (np.exp((f - farthest) / soft) for f in faces)))
    return farthest - np.float32(apothem)


def segment(u: Field, v: Field, half_length: float, radius: float) -> Field:
    """Return the distance to a rod with round ends that lies along u."""
    distance: Field = np.hypot(np.maximum(np.abs(u) - half_length, 0), v) - np.float32(radius)
    return distance


@dataclass(frozen=True)
class Finish:
    """How a part's material looks."""

    color: Color = Color((0.0, 1.0), (0.0, 0.4), (0.3, 0.75))
    grain: Range = (0.01, 0.05)
    """Strength of the machining marks."""
    stretch: Range = (1.0, 15.0)
    roughness: Range = (2e-5, 1.5e-4)
    gloss: Range = (0.1, 0.4)
    metal: Range = (0.0, 0.7)


STEEL = Finish(Color((0.08, 0.62), (0.0, 0.08), (0.4, 0.65)), gloss=(0.15, 0.35), metal=(0.4, 0.7))
BRASS = Finish(Color((0.1, 0.13), (0.4, 0.6), (0.55, 0.75)), gloss=(0.15, 0.35), metal=(0.4, 0.7))
PLASTIC = Finish(Color(saturation=(0.1, 0.8)), grain=(0.005, 0.02), gloss=(0.2, 0.5), metal=(0.0, 0.0))


def finished(rng: np.random.Generator, height: Field, finish: Finish, angle: float) -> Surface:
    """Return a surface of the given height and finish, grain along `angle`."""
    shape = (height.shape[0], height.shape[1])
    grain = fractal_noise(rng, shape, 0.6, coarsest=0.3, stretch=pick(rng, finish.stretch), angle=angle)
    albedo = tinted(pick_color(rng, finish.color), np.float32(pick(rng, finish.grain)) * grain)
    height = height + grain * np.float32(pick(rng, finish.roughness))
    return Surface(albedo, height, gloss=pick(rng, finish.gloss), metal=pick(rng, finish.metal))


@dataclass(frozen=True)
class Washer:
    """Washers and rings; with small holes, buttons and discs."""

    radius: Range = (0.28, 0.42)
    hole: Range = (0.3, 0.6)
    """Of the radius."""
    small_holes: Choices = (0,)
    """Holes around the middle, instead of the one in it; 1: none, a disc."""
    edge: Range = (0.008, 0.03)
    groove: Range = (0.0, 0.01)
    """Depth of turned rings."""
    finish: Finish = STEEL


def washer(rng: np.random.Generator, shape: Shape, place: Placement, look: Washer = Washer()) -> Part:
    """Draw a washer."""
    u, v, angle = part_coordinates(rng, shape, place)
    radius, count = pick(rng, look.radius), choose(rng, look.small_holes)
    distance = np.hypot(u, v)
    outline = distance - np.float32(radius)
    if count == 0:
        outline = np.maximum(outline, np.float32(radius * pick(rng, look.hole)) - distance)
    for k in range(count if count > 1 else 0):
        turn = 2 * math.pi * k / count
        x, y = u - np.float32(0.3 * radius * math.cos(turn)), v - np.float32(0.3 * radius * math.sin(turn))
        outline = np.maximum(outline, np.float32(0.13 * radius) - np.hypot(x, y))
    rings = np.sin(distance * np.float32(12 * math.pi / radius))
    height = bevel(-outline, pick(rng, look.edge)) + np.float32(pick(rng, look.groove) / 6) * rings
    return Part(finished(rng, height, look.finish, angle), fade(outline, shape))


BUTTON = Washer(small_holes=(1, 2, 4), edge=(0.02, 0.06), finish=PLASTIC)


def button(rng: np.random.Generator, shape: Shape, place: Placement, look: Washer = BUTTON) -> Part:
    """Draw a button, a disc or a tablet."""
    return washer(rng, shape, place, look)


@dataclass(frozen=True)
class HexNut:
    """Hexagonal (or other) nuts with a threaded bore; without bore, bolt heads."""

    apothem: Range = (0.28, 0.38)
    sides: Choices = (6, 6, 6, 4, 8)
    bore: Range = (0.5, 0.64)
    """Of the apothem."""
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
    # a cone takes the corners off, as on a turned nut
    corner = smoothstep(apothem * 0.97, apothem * 1.18, distance) * np.float32(pick(rng, look.chamfer))
    collar = smoothstep(bore * 1.5, bore * 1.42, distance) * np.float32(pick(rng, look.collar))
    height = bevel(-outside, 0.012) - corner + collar
    inside = smoothstep(bore * 1.04, bore * 0.97, distance)  # the wall of the bore, seen from above
    wall = (distance / np.float32(bore) - 0.82) / np.float32(0.18)
    thread = np.sin(wall * np.float32(2 * math.pi * pick(rng, look.threads)) + np.arctan2(v, u))
    height = height - inside * (np.float32(0.03) * (1 - wall) + np.float32(0.004) * (1 + thread))
    part = finished(rng, height, look.finish, angle)
    shaded = tinted(part.albedo, -inside * (np.float32(0.75) - np.float32(0.4) * wall + 0.15 * thread))
    return Part(Surface(shaded, part.height, part.gloss * (1 - 0.8 * inside), part.metal), fade(outline, shape))


@dataclass(frozen=True)
class Screw:
    """Screws and bolts lying on their side."""

    length: Range = (0.62, 0.82)
    head: Range = (0.09, 0.13)
    """Radius of the head."""
    cone: Range = (0.06, 0.16)
    """Length of a countersunk head."""
    shank: Range = (0.042, 0.06)
    """Radius of the smooth part."""
    smooth: Range = (0.15, 0.5)
    """Share of the length without thread."""
    pitch: Range = (0.03, 0.05)
    depth: Range = (0.3, 0.45)
    """Of the thread, in shank radii."""
    tip: Range = (0.06, 0.2)
    finish: Finish = STEEL


def screw(rng: np.random.Generator, shape: Shape, place: Placement, look: Screw = Screw()) -> Part:
    """Draw a screw."""
    u, v, angle = part_coordinates(rng, shape, place)
    length, shank, head = (pick(rng, r) for r in (look.length, look.shank, look.head))
    u = u + np.float32(length / 2)  # 0 at the head's face, `length` at the tip
    cone, tip = pick(rng, look.cone), pick(rng, look.tip)
    flank = smoothstep(cone, 0.0, u - np.float32(0.015))
    body = np.float32(shank) + np.float32(head - shank) * flank * (0.5 + 0.5 * flank)
    threaded = smoothstep(-0.01, 0.03, u - np.float32(cone + pick(rng, look.smooth) * (length - cone)))
    helix = u / np.float32(pick(rng, look.pitch)) + np.float32(0.22) * v / np.float32(shank) + rng.random()
    saw = np.abs(2 * (helix - np.floor(helix)) - 1).astype(np.float32)
    ridge = saw**3  # thin ridges, wide valleys
    core = 1 - np.float32(pick(rng, look.depth)) * threaded * (1 - 1.6 * ridge)
    taper = smoothstep(0.0, tip, np.float32(length) - u)
    radius = body * core * np.sqrt(taper)
    outline = np.maximum(np.abs(v) - radius, np.maximum(-u, u - np.float32(length)))
    height = np.sqrt(np.maximum(radius * radius - v * v, 0))
    part = finished(rng, height, look.finish, angle)
    # valleys and the underside of the head get less light
    tone = np.float32(0.3) * threaded * (ridge - 0.6) - np.float32(0.25) * smoothstep(
        0.5, 1.0, np.abs(v) / (radius + 1e-6)
    )
    recess = smoothstep(0.012, 0.004, np.abs(u - np.float32(0.008)))
    surface = Surface(tinted(part.albedo, tone - np.float32(0.2) * recess), part.height, part.gloss, part.metal)
    return Part(surface, fade(outline, shape))


@dataclass(frozen=True)
class Capsule:
    """Capsules, pills and rods, in one or two colors."""

    length: Range = (0.3, 0.62)
    radius: Range = (0.12, 0.2)
    flatness: Range = (0.3, 1.0)
    split: Range = (-0.2, 0.6)
    """Where the second color begins, in half lengths; beyond 0.5 there is none."""
    first: Finish = PLASTIC
    second: Color = Color(saturation=(0.0, 0.8), value=(0.3, 0.95))


def capsule(rng: np.random.Generator, shape: Shape, place: Placement, look: Capsule = Capsule()) -> Part:
    """Draw a capsule."""
    u, v, angle = part_coordinates(rng, shape, place)
    half, radius = pick(rng, look.length) / 2, pick(rng, look.radius)
    outline = segment(u, v, half, radius)
    height = bevel(-outline, radius) * np.float32(pick(rng, look.flatness))
    split = pick(rng, look.split)
    other = fade(np.float32(split * half) - u, shape) if split < 0.5 else np.zeros(shape, np.float32)
    part = finished(rng, height + np.float32(0.003) * other, look.first, angle)
    second = np.broadcast_to(pick_color(rng, look.second), part.albedo.shape)
    albedo = mixed(part.albedo, second, other)
    return Part(Surface(albedo, part.height, part.gloss, part.metal), fade(outline, shape))


@dataclass(frozen=True)
class BottleMouth:
    """Bottles, cans, cups and caps looked into from above: rings of glass around a dark inside."""

    radius: Range = (0.38, 0.46)
    mouth: Range = (0.5, 0.68)
    """Of the radius."""
    rings: Range = (3.0, 7.0)
    ripple: Range = (0.15, 0.4)
    """Difference of brightness between rings."""
    glass: Color = Color(saturation=(0.1, 0.6), value=(0.15, 0.55))
    rim: Color = Color((0.02, 0.12), (0.3, 0.8), (0.5, 0.8))
    inside: Color = Color(saturation=(0.0, 0.5), value=(0.03, 0.15))


def bottle_mouth(rng: np.random.Generator, shape: Shape, place: Placement, look: BottleMouth = BottleMouth()) -> Part:
    """Draw the mouth of a bottle."""
    u, v, _ = part_coordinates(rng, shape, place)
    radius = pick(rng, look.radius)
    mouth = radius * pick(rng, look.mouth)
    distance = np.hypot(u, v) + np.float32(0.002) * fractal_noise(rng, shape, 1.5)
    wall = (distance - np.float32(mouth)) / np.float32(radius - mouth)  # 0 inside, 1 outside
    wave = np.sin(wall * np.float32(2 * math.pi * pick(rng, look.rings)) + np.float32(rng.uniform(0, 0.4)))
    streaks = 0.12 * np.sin(3 * np.arctan2(v, u) + np.float32(rng.uniform(0, 0.3)))
    albedo = tinted(pick_color(rng, look.glass), np.float32(pick(rng, look.ripple)) * wave + streaks)
    line = smoothstep(0.07, 0.02, np.abs(wall - 0.42)) * (0.5 + 3 * streaks)
    albedo = mixed(albedo, np.broadcast_to(pick_color(rng, look.rim), albedo.shape), line)
    hollow = smoothstep(0.02, -0.04, wall)
    glow = tinted(pick_color(rng, look.inside), 0.3 * fractal_noise(rng, shape, 2.0))
    height = bevel(np.float32(radius) - distance, 0.04) + np.float32(0.006) * wave * (1 - hollow)
    gloss = 0.35 * (1 - hollow)
    outline = distance - np.float32(radius)
    return Part(Surface(mixed(albedo, glow, hollow), height, gloss), fade(outline, shape, 1.5))
