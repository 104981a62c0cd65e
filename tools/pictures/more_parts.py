"""Parts that no inspection image shows: washers, buttons, capsules and bottle mouths.

As in `skpbas.datasets.generated.parts`, each part is a frozen dataclass of ranges and a function of
(rng, shape, place, look). Lengths are in shorter sides of the image.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from skpbas.datasets.generated.light import Surface, bevel, fade
from skpbas.datasets.generated.noise import Field, Shape, fractal_noise, smoothstep
from skpbas.datasets.generated.parts import STEEL, Finish, Part, Placement, finished, part_coordinates
from skpbas.datasets.generated.ranges import Choices, Color, Range, choose, pick, pick_color
from skpbas.datasets.generated.textures import mixed, tinted

PLASTIC = Finish(Color(saturation=(0.1, 0.8)), grain=(0.005, 0.02), gloss=(0.2, 0.5), metal=(0.0, 0.0))


def segment(u: Field, v: Field, half_length: float, radius: float) -> Field:
    """Return the signed distance to a rod with round ends that lies along u, negative inside."""
    distance: Field = np.hypot(np.maximum(np.abs(u) - half_length, 0), v) - np.float32(radius)
    return distance


@dataclass(frozen=True)
class Washer:
    """Washers and rings, or disks with several small holes or none."""

    radius: Range = (0.28, 0.42)
    hole: Range = (0.3, 0.6)
    """Radius of the hole, as a fraction of the outer radius."""
    small_holes: Choices = (0,)
    """0: one hole in the center; 1: no hole; more: number of small holes around the center."""
    edge: Range = (0.008, 0.03)
    groove: Range = (0.0, 0.01)
    """Depth of machined rings."""
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
    """Draw a button, a disk or a tablet."""
    return washer(rng, shape, place, look)


@dataclass(frozen=True)
class Capsule:
    """Capsules, pills and rods, in one or two colors."""

    length: Range = (0.3, 0.62)
    radius: Range = (0.12, 0.2)
    flatness: Range = (0.3, 1.0)
    split: Range = (-0.2, 0.6)
    """Where the second color begins, in half lengths from the center; from 0.5 on there is none."""
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
    """Bottles, cans, cups and caps seen from above: rings of glass around a dark interior."""

    radius: Range = (0.38, 0.46)
    mouth: Range = (0.5, 0.68)
    """Radius of the opening, as a fraction of the outer radius."""
    rings: Range = (3.0, 7.0)
    ripple: Range = (0.15, 0.4)
    """Relative difference in brightness between rings."""
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
