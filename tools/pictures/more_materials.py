"""Materials that no inspection image shows: stone, leather, foam, plaster, carpet, tiles, wire mesh and ribs.

As in `skpbas.datasets.generated.textures`, each material is a frozen dataclass of ranges and a function of
(rng, shape, look) that draws a `Surface` from them. Lengths are in shorter sides of the image, angles in radians.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pictures.more_noise import perlin_noise, worley_noise
from skpbas.datasets.generated.light import Surface
from skpbas.datasets.generated.noise import Shape, fractal_noise, plane, rotated, smoothstep, white_noise
from skpbas.datasets.generated.ranges import Choices, Color, Range, choose, gray, pick, pick_color
from skpbas.datasets.generated.textures import mixed, tinted


@dataclass(frozen=True)
class Granite:
    """Speckled stone of three minerals."""

    grain: Range = (0.02, 0.12)
    """Size of the larger grains."""
    dark_share: Range = (0.2, 1.3)
    """Threshold of the dark mineral, in standard deviations; a higher one leaves less of it."""
    light_share: Range = (0.3, 1.5)
    """Threshold of the light mineral, in standard deviations; a higher one leaves less of it."""
    edge: Range = (0.15, 0.6)
    """Softness of the grains' borders."""
    base: Color = Color(saturation=(0.02, 0.35), value=(0.35, 0.7))
    dark: Color = gray(0.08, 0.3)
    light: Color = gray(0.7, 0.95)


def granite(rng: np.random.Generator, shape: Shape, look: Granite = Granite()) -> Surface:
    """Draw a slab of granite."""
    grain, edge = pick(rng, look.grain), pick(rng, look.edge)
    first, second = (fractal_noise(rng, shape, 0.9, coarsest=size) for size in (grain, grain * 0.6))
    low, high = pick(rng, look.dark_share), pick(rng, look.light_share)
    albedo = np.broadcast_to(pick_color(rng, look.base), (*shape, 3))
    albedo = mixed(albedo, pick_color(rng, look.light), smoothstep(high, high + edge, second))
    albedo = mixed(albedo, pick_color(rng, look.dark), smoothstep(low, low + edge, first))
    return Surface(tinted(albedo, 0.05 * white_noise(rng, shape)), first * np.float32(5e-5), gloss=0.1)


@dataclass(frozen=True)
class Marble:
    """Stone with veins."""

    veins: Range = (0.15, 0.6)
    sharpness: Range = (4.0, 14.0)
    ground: Color = Color(saturation=(0.0, 0.3), value=(0.5, 0.95))
    vein: Color = Color(saturation=(0.0, 0.5), value=(0.1, 0.5))


def marble(rng: np.random.Generator, shape: Shape, look: Marble = Marble()) -> Surface:
    """Draw a slab of marble."""
    cloud = fractal_noise(rng, shape, 1.6, coarsest=pick(rng, look.veins), stretch=2, angle=rng.uniform(0, 3))
    share = np.exp(-np.float32(pick(rng, look.sharpness)) * np.abs(cloud))
    share = share * smoothstep(-1.0, 1.5, fractal_noise(rng, shape, 1.2))
    albedo = mixed(pick_color(rng, look.ground), pick_color(rng, look.vein), share)
    return Surface(tinted(albedo, 0.03 * cloud), cloud * np.float32(1e-4), gloss=0.15)


@dataclass(frozen=True)
class Leather:
    """Leather, imitation leather and wrinkled skin."""

    cells: Range = (14.0, 55.0)
    warp: Range = (0.1, 0.5)
    relief: Range = (0.1, 0.4)
    """Depth of the creases, in cells."""
    color: Color = Color((0.0, 0.12), (0.2, 0.7), (0.15, 0.6))


def leather(rng: np.random.Generator, shape: Shape, look: Leather = Leather()) -> Surface:
    """Draw a piece of leather."""
    cells = pick(rng, look.cells)
    nearest, second, tone = worley_noise(rng, shape, cells, pick(rng, look.warp))
    crease = smoothstep(0.0, 0.35, second - nearest)
    fine = fractal_noise(rng, shape, 0.6, coarsest=0.1)
    albedo = tinted(pick_color(rng, look.color), 0.35 * crease - 0.3 + 0.08 * tone + 0.03 * fine)
    relief = np.float32(pick(rng, look.relief) / cells)
    return Surface(albedo, relief * (crease - 0.5 * nearest + 0.04 * fine), gloss=0.12)


@dataclass(frozen=True)
class Foam:
    """Round cells: foam, bubbles, pebbles and expanded plastic."""

    cells: Range = (8.0, 40.0)
    relief: Range = (-0.5, 0.5)
    """Height of the center of a cell, in cells; negative for pores."""
    variety: Range = (0.0, 0.3)
    color: Color = Color()


def foam(rng: np.random.Generator, shape: Shape, look: Foam = Foam()) -> Surface:
    """Draw a cellular surface."""
    cells = pick(rng, look.cells)
    nearest, _, tone = worley_noise(rng, shape, cells)
    dome = np.maximum(1 - np.square(nearest * 1.4), 0)
    spread = np.float32(pick(rng, look.variety))
    albedo = tinted(pick_color(rng, look.color), spread * (tone - 0.5) + 0.2 * dome - 0.1)
    return Surface(albedo, dome * np.float32(pick(rng, look.relief) / cells), gloss=0.08)


@dataclass(frozen=True)
class Plaster:
    """Paint, plaster, cast metal and paper: uneven without a pattern."""

    bumps: Range = (5.0, 60.0)
    """Number of bumps along the shorter side."""
    roughness: Range = (0.4, 1.6)
    relief: Range = (0.005, 0.12)
    """Height of the bumps, as a fraction of their width."""
    mottle: Range = (0.0, 0.12)
    gloss: Range = (0.0, 0.25)
    color: Color = Color()


def plaster(rng: np.random.Generator, shape: Shape, look: Plaster = Plaster()) -> Surface:
    """Draw a coated or cast surface."""
    bumps = pick(rng, look.bumps)
    fine = fractal_noise(rng, shape, pick(rng, look.roughness))
    height = perlin_noise(rng, shape, bumps) + 0.3 * fine
    albedo = tinted(pick_color(rng, look.color), np.float32(pick(rng, look.mottle)) * fine)
    return Surface(albedo, height * np.float32(pick(rng, look.relief) / bumps), gloss=pick(rng, look.gloss))


@dataclass(frozen=True)
class Carpet:
    """Short-pile carpet with flecks of a second color."""

    tufts: Range = (30.0, 90.0)
    flecks: Range = (0.5, 2.5)
    """Threshold of the flecks, in standard deviations."""
    color: Color = Color(value=(0.2, 0.7))
    fleck: Color = Color(value=(0.2, 0.9))


def carpet(rng: np.random.Generator, shape: Shape, look: Carpet = Carpet()) -> Surface:
    """Draw a carpet."""
    size = 1 / pick(rng, look.tufts)
    pile = fractal_noise(rng, shape, 1.2, coarsest=2 * size, finest=size / 3)
    threshold = pick(rng, look.flecks)
    flecks = smoothstep(threshold, threshold + 0.5, fractal_noise(rng, shape, 1.0, coarsest=3 * size))
    albedo = mixed(pick_color(rng, look.color), pick_color(rng, look.fleck), flecks)
    return Surface(tinted(albedo, 0.12 * pile), pile * np.float32(0.25 * size))


@dataclass(frozen=True)
class Tiles:
    """Tiles, bricks and perforated or cushioned sheets, in a regular grid."""

    columns: Range = (3.0, 14.0)
    aspect: Range = (0.5, 2.2)
    """Width of a tile, as a multiple of its height."""
    stagger: Choices = (0, 0, 1)
    """1 shifts every second row by half a tile."""
    gap: Range = (0.02, 0.1)
    """Width of the joints, in tiles."""
    angle: Range = (-0.8, 0.8)
    variety: Range = (0.0, 0.12)
    roundness: Range = (2.0, 12.0)
    """Shape of the corners: 2 is round, 12 almost square."""
    tile: Color = Color(value=(0.3, 0.85))
    joint: Color = gray(0.15, 0.8)


def tiles(rng: np.random.Generator, shape: Shape, look: Tiles = Tiles()) -> Surface:
    """Draw a tiled surface."""
    columns, aspect = pick(rng, look.columns), pick(rng, look.aspect)
    u, v = rotated(*plane(shape), pick(rng, look.angle))
    shift = rng.uniform(0, 40, 2).astype(np.float32)
    v = v * np.float32(columns * aspect) + shift[1]
    row = np.floor(v)
    u = u * np.float32(columns) + shift[0] + np.float32(0.5 * choose(rng, look.stagger)) * (row % 2)
    column = np.floor(u)
    power = np.float32(pick(rng, look.roundness))
    across, down = np.abs(2 * (u - column) - 1), np.abs(2 * (v - row) - 1)
    reach = (across**power + down**power) ** (1 / power)  # 1 at the border of the tile's cell
    gap = pick(rng, look.gap)
    inside = smoothstep(1 - gap, 1 - gap - 3 * columns / min(shape), reach)
    tones = white_noise(rng, (64, 64)) * np.float32(pick(rng, look.variety))
    tone = tones[row.astype(np.int32) % 64, column.astype(np.int32) % 64]
    cloud = fractal_noise(rng, shape, 1.0)
    tile = tinted(pick_color(rng, look.tile), tone + 0.03 * cloud)
    albedo = mixed(tinted(pick_color(rng, look.joint), 0.08 * cloud), tile, inside)
    return Surface(albedo, inside * np.float32(0.03 / columns) + cloud * np.float32(1e-4), gloss=0.15)


@dataclass(frozen=True)
class Mesh:
    """Wire mesh over a dark ground."""

    wires: Range = (6.0, 24.0)
    thickness: Range = (0.2, 0.5)
    """Thickness of a wire, as a fraction of the wire spacing."""
    angle: Range = (-0.8, 0.8)
    skew: Range = (1.2, 1.9)
    """Angle between the two sets of wires, radians."""
    wire: Color = gray(0.4, 0.8)
    ground: Color = Color(value=(0.03, 0.25))


def mesh(rng: np.random.Generator, shape: Shape, look: Mesh = Mesh()) -> Surface:
    """Draw a wire mesh."""
    wires, thickness = pick(rng, look.wires), pick(rng, look.thickness)
    angle = pick(rng, look.angle)
    height = np.full(shape, -0.5, dtype=np.float32)
    numbers = []
    for turn in (angle, angle + pick(rng, look.skew)):
        across, _ = rotated(*plane(shape), turn)
        numbers.append(across * np.float32(wires) + np.float32(rng.uniform(0, 40)))
    for k, number in enumerate(numbers):
        offset = (number - np.rint(number)) / np.float32(thickness / 2)
        lift = np.cos(np.float32(math.pi) * (numbers[1 - k] + np.rint(number) + k))  # over, under, over
        round_ = np.where(np.abs(offset) < 1, np.sqrt(np.maximum(1 - offset * offset, 0)), -9)
        height = np.maximum(height, round_ + np.float32(0.5) * lift)
    wire = smoothstep(-0.5, 0.2, height)
    color = tinted(pick_color(rng, look.wire), 0.05 * fractal_noise(rng, shape, 0.5))
    albedo = mixed(np.broadcast_to(pick_color(rng, look.ground), color.shape), color, wire)
    return Surface(albedo, height * np.float32(thickness / 2 / wires), gloss=0.3 * wire, metal=0.3)


@dataclass(frozen=True)
class Ribs:
    """Corrugated, ribbed or machined surfaces."""

    count: Range = (6.0, 50.0)
    """Number of ribs along the shorter side."""
    angle: Range = (-1.6, 1.6)
    rings: Choices = (0, 0, 1)
    """1 draws concentric rings around a point near the center instead of straight ribs."""
    relief: Range = (0.05, 0.35)
    metal: Range = (0.0, 0.8)
    color: Color = Color(saturation=(0.0, 0.5), value=(0.3, 0.8))


def ribs(rng: np.random.Generator, shape: Shape, look: Ribs = Ribs()) -> Surface:
    """Draw a ribbed surface."""
    count = pick(rng, look.count)
    u, v = rotated(*plane(shape), pick(rng, look.angle))
    if choose(rng, look.rings):
        u = np.hypot(u - np.float32(rng.uniform(-0.3, 0.3)), v - np.float32(rng.uniform(-0.3, 0.3)))
    cloud = fractal_noise(rng, shape, 1.2)
    wave = np.sin(u * np.float32(2 * math.pi * count) + np.float32(rng.uniform(0, 6)) + 0.15 * cloud)
    albedo = tinted(pick_color(rng, look.color), 0.04 * cloud + 0.05 * wave)
    relief = np.float32(pick(rng, look.relief) / (2 * math.pi * count))
    return Surface(albedo, relief * wave * 2, gloss=0.15, metal=pick(rng, look.metal))
