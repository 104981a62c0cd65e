"""Defects: how each changes the front of a scene, before light falls on it.

A defect is drawn independently of the scene, from its own random stream, as a `Damage`: layers that repaint,
raise or remove the front. Lengths are in shorter sides of the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from skpbas.datasets.generated.light import Scene, fade
from skpbas.datasets.generated.noise import Field, Shape, fractal_noise, plane, rotated, smoothstep
from skpbas.datasets.generated.ranges import Range, pick


@dataclass(frozen=True)
class Damage:
    """Change of the front of a scene."""

    opacity: Field
    """(H, W): opacity of the paint, in [0, 1]."""
    paint: Field
    """(3,): color that replaces the color of the front."""
    relief: Field
    """(H, W): height that is added, in shorter sides."""
    cut: Field
    """(H, W): fraction of the front that is missing, in [0, 1]."""
    matte: float = 0.0
    """Relative loss of gloss where the paint is opaque, in [0, 1]."""


def apply_damage(scene: Scene, damage: Damage) -> Scene:
    """Return the scene with its front repainted, raised and cut."""
    opacity = damage.opacity[..., None]
    front = replace(
        scene.front,
        albedo=scene.front.albedo + opacity * (damage.paint - scene.front.albedo),
        height=scene.front.height + damage.relief,
        gloss=scene.front.gloss * (1 - damage.matte * damage.opacity),
    )
    return replace(scene, front=front, coverage=scene.coverage * (1 - damage.cut))


def footprint(damage: Damage) -> NDArray[np.bool_]:
    """Return the pixels (H, W) that a defect may change; all others stay as they are."""
    relief = np.abs(damage.relief)
    raised = relief > 0.02 * max(float(relief.max()), 1e-9)
    reach: NDArray[np.bool_] = raised | (damage.opacity > 0.05) | (damage.cut > 0.05)
    return reach


@dataclass(frozen=True)
class Spot:
    """Location of a defect, and the brightness of the product there."""

    along: Field
    """(H, W): coordinate along the direction of the defect, zero at the spot."""
    across: Field
    """(H, W): coordinate across the direction of the defect, zero at the spot."""
    tone: float
    """Mean brightness of the front around the spot, in [0, 1]."""
    strength: float
    """Factor of depth, contrast and size."""


Draw = Callable[[np.random.Generator, Shape, Spot], Damage]


def contrasting_paint(rng: np.random.Generator, tone: float) -> Field:
    """Return a gray, (3,), that contrasts with a brightness in [0, 1]."""
    bright = rng.random() < np.clip(1.15 - 1.3 * tone, 0.1, 0.9)
    return np.full(3, rng.uniform(0.8, 1.0) if bright else rng.uniform(0.0, 0.15), dtype=np.float32)


def curved_line(rng: np.random.Generator, shape: Shape, spot: Spot, length: Range, bend: Range) -> tuple[Field, Field]:
    """Return each pixel's signed distance from a curved line, and its position along it, -1 to 1 from end to end."""
    half = pick(rng, length) / 2 * min(spot.strength, 1.5)
    curve = np.float32(pick(rng, bend) * (1 if rng.random() < 0.5 else -1) / half)
    phase, waves = rng.uniform(0, 6), np.float32(rng.uniform(2, 5) / half)
    wander = np.float32(0.03 * half) * np.sin(spot.along * waves + np.float32(phase))
    slope = np.sqrt(1 + np.square(2 * curve * spot.along))  # keeps the width constant where the curve is steep
    return (spot.across - curve * np.square(spot.along) - wander) / slope, spot.along / np.float32(half)


def scratch(rng: np.random.Generator, shape: Shape, spot: Spot) -> Damage:
    """Draw a thin curved groove, bright or dark, that tapers toward its ends."""
    distance, along = curved_line(rng, shape, spot, (0.15, 0.5), (0.0, 0.25))
    width = max(pick(rng, (0.003, 0.008)) * spot.strength, 0.8 / min(shape))
    taper = np.maximum(1 - along**4, 0) * (0.75 + 0.25 * np.sin(along * np.float32(rng.uniform(3, 9))))
    profile = np.exp(-np.square(distance / np.float32(width))) * taper
    opacity = np.float32(min(pick(rng, (0.3, 0.8)) * spot.strength, 1)) * profile
    relief = -np.float32(0.4 * width) * profile
    return Damage(opacity, contrasting_paint(rng, spot.tone), relief, np.zeros_like(profile))


def stain(rng: np.random.Generator, shape: Shape, spot: Spot) -> Damage:
    """Draw a discoloration with soft edges, such as oil, rust, ink or water."""
    distance = _blob(rng, shape, spot, (0.05, 0.13), 0.35)
    soft = pick(rng, (0.015, 0.045))
    rim = np.exp(-np.square(distance / np.float32(soft))) * np.float32(pick(rng, (0.0, 0.5)))  # a dried rim
    body = smoothstep(soft, -soft, distance) * (1 + rim)
    cloud = 1 + 0.15 * fractal_noise(rng, shape, 1.2)
    opacity = np.clip(np.float32(pick(rng, (0.25, 0.6)) * spot.strength) * body * cloud, 0, 0.95)
    warm = np.array([1.0, rng.uniform(0.6, 1.0), rng.uniform(0.3, 1.0)], np.float32)
    tone = rng.uniform(0.05, 0.25) if spot.tone > 0.35 else rng.uniform(0.6, 0.9)
    zero = np.zeros_like(opacity)
    return Damage(opacity, warm * np.float32(tone), zero, zero, matte=0.6)


def dent(rng: np.random.Generator, shape: Shape, spot: Spot) -> Damage:
    """Draw a smooth dent or bump, visible only through its shading."""
    radius = max(pick(rng, (0.035, 0.09)) * min(spot.strength, 1.6), 2.5 / min(shape))
    oval = np.float32(pick(rng, (0.6, 1.0)))
    squared = np.square(spot.along / np.float32(radius)) + np.square(spot.across / (oval * np.float32(radius)))
    depth = pick(rng, (0.25, 0.55)) * radius * spot.strength * (-1 if rng.random() < 0.8 else 1)
    relief = np.float32(depth) * np.exp(-1.5 * squared) * smoothstep(4.0, 2.0, squared)
    zero = np.zeros_like(relief)
    return Damage(zero, np.zeros(3, np.float32), relief, zero)


def missing(rng: np.random.Generator, shape: Shape, spot: Spot) -> Damage:
    """Remove a piece, so that the background is visible."""
    distance = _blob(rng, shape, spot, (0.025, 0.075), 0.25)
    size, lean = np.float32(pick(rng, (0.02, 0.05))), np.float32(rng.uniform(-0.4, 0.4))
    flake = np.maximum(np.abs(spot.along + lean * spot.across), np.abs(spot.across - 0.5 * size)) - size
    torn = np.float32(0.004) * fractal_noise(rng, shape, 2.0, coarsest=0.08)
    distance = np.minimum(distance, flake) + torn
    cut = fade(distance, shape)
    ragged = np.exp(-np.square(np.maximum(distance, 0) / np.float32(0.012)))  # a frayed border
    opacity = (np.float32(0.2) * ragged * (1 - cut)).astype(np.float32)
    return Damage(opacity, contrasting_paint(rng, spot.tone), -np.float32(0.008) * ragged, cut)


def contamination(rng: np.random.Generator, shape: Shape, spot: Spot) -> Damage:
    """Draw a foreign fiber or particle on the product."""
    if rng.random() < 0.55:
        distance, along = curved_line(rng, shape, spot, (0.12, 0.35), (0.3, 1.1))
        width = max(pick(rng, (0.004, 0.008)) * spot.strength, 0.9 / min(shape))
        inside = smoothstep(1.0, 0.5, np.abs(distance) / np.float32(width))
        inside = inside * smoothstep(1.0, 0.97, np.abs(along))
        relief: Field = np.float32(0.7 * width) * inside
    else:
        distance = _blob(rng, shape, spot, (0.02, 0.05), 0.45)
        inside = fade(distance, shape)
        relief = inside * (np.float32(0.01) + np.minimum(-distance, 0.02) * np.float32(0.6))
    color = np.asarray(rng.uniform(0.0, 1.0, 3), dtype=np.float32)
    paint = np.clip(0.75 * contrasting_paint(rng, spot.tone) + 0.25 * color, 0, 1)
    return Damage(np.float32(0.92) * inside, paint, relief, np.zeros_like(inside))


def _blob(rng: np.random.Generator, shape: Shape, spot: Spot, radius: Range, rough: float) -> Field:
    """Return the signed distance to the outline of an irregular round shape, negative inside."""
    size = max(pick(rng, radius) * min(spot.strength, 1.6), 2.0 / min(shape))
    along, across = spot.along, spot.across * np.float32(rng.uniform(1.0, 1.6))
    turn = np.arctan2(across, along)
    edge = np.ones(shape, dtype=np.float32)
    for k in range(2, 7):
        edge += np.float32(rough * rng.uniform(-1, 1) / k) * np.cos(k * turn + np.float32(rng.uniform(0, 6.3)))
    distance: Field = np.hypot(along, across) - np.float32(size) * edge
    return distance


DEFECTS: Mapping[str, Draw] = MappingProxyType(
    {
        "scratch": scratch,
        "stain": stain,
        "dent": dent,
        "missing": missing,
        "contamination": contamination,
    }
)


def draw_damage(rng: np.random.Generator, scene: Scene, defect: str, strength: float = 1.0) -> Damage:
    """Draw a defect at a random place on the front of a scene.

    Parameters
    ----------
    rng : numpy.random.Generator
        Generator to draw from.
    scene : Scene
        Scene to place the defect in. It is not modified.
    defect : str
        One of `DEFECTS`.
    strength : float, default=1.0
        Factor of depth, contrast and, within limits, size.

    Returns
    -------
    Damage
        The change of the front. All layers are zero where there is no front.
    """
    shape = (scene.coverage.shape[0], scene.coverage.shape[1])
    x, y = plane(shape)
    inner = (np.abs(x) < 0.9 * x.max()) & (np.abs(y) < 0.9 * y.max())
    on_front = np.flatnonzero((scene.coverage > 0.9) & inner)
    row, column = divmod(int(on_front[rng.integers(on_front.size)]), shape[1])
    along, across = rotated(x - x[0, column], y - y[row, 0], rng.uniform(0, 2 * math.pi))
    near = max(2, min(shape) // 20)
    around = np.s_[max(row - near, 0) : row + near + 1, max(column - near, 0) : column + near + 1]
    weight = scene.coverage[around]
    tone = float((scene.front.albedo[around].mean(axis=2) * weight).sum() / weight.sum())
    damage = DEFECTS[defect](rng, shape, Spot(along, across, tone, strength))
    on = smoothstep(0.3, 0.9, scene.coverage)
    cut = damage.cut * (scene.coverage > 0.02)  # extends to the very edge, so that no rim remains
    return replace(damage, opacity=damage.opacity * on, relief=damage.relief * on, cut=cut)
