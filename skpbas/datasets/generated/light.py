"""From a surface to a photograph: normals, shading, highlights, shadow, lens and sensor."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from skpbas.datasets.generated.noise import Field, Shape, fractal_noise, plane, rotated, smoothstep, white_noise
from skpbas.datasets.generated.ranges import Color, Range, pick, pick_color


@dataclass(frozen=True)
class Surface:
    """A surface that light falls on."""

    albedo: Field
    """(H, W, 3): color under uniform light, in [0, 1]."""
    height: Field
    """(H, W): height toward the camera, in shorter sides."""
    gloss: Field | float = 0.0
    """Strength of the highlight, in [0, 1]."""
    metal: float = 0.0
    """How strongly the surface reflects its surroundings, in [0, 1]."""


@dataclass(frozen=True)
class Scene:
    """A surface, or a part of limited outline, in front of a background."""

    front: Surface
    back: Surface
    coverage: Field
    """(H, W): fraction of each pixel that shows the front, in [0, 1]."""
    thickness: float = 0.02
    """Height of the front above the back, in shorter sides; determines the length of the shadow."""


@dataclass(frozen=True)
class Lighting:
    """Ranges that a lamp is drawn from."""

    azimuth: Range = (0.0, 2 * math.pi)
    """Direction that the light comes from, radians."""
    elevation: Range = (0.6, 1.2)
    """Angle above the surface, radians."""
    ambient: Range = (0.25, 0.6)
    """Fraction of the light that comes from all directions."""
    sharpness: Range = (10.0, 60.0)
    """Exponent of the highlight."""
    softness: Range = (0.01, 0.05)
    """Standard deviation of the shadow's blur, in shorter sides."""
    falloff: Range = (0.0, 0.15)
    """Relative loss of light from the border nearest to the lamp to the opposite one."""
    brightness: Range = (0.9, 1.1)
    tint: Color = Color((0.05, 0.15), (0.0, 0.06), (1.0, 1.0))


@dataclass(frozen=True)
class Lamp:
    """One lamp; see `Lighting` for the units."""

    direction: tuple[float, float, float]
    ambient: float
    sharpness: float
    softness: float
    falloff: float
    color: Field


def draw_lamp(rng: np.random.Generator, look: Lighting) -> Lamp:
    """Draw a lamp."""
    azimuth, elevation = pick(rng, look.azimuth), pick(rng, look.elevation)
    flat = math.cos(elevation)
    return Lamp(
        direction=(flat * math.cos(azimuth), flat * math.sin(azimuth), math.sin(elevation)),
        ambient=pick(rng, look.ambient),
        sharpness=pick(rng, look.sharpness),
        softness=pick(rng, look.softness),
        falloff=pick(rng, look.falloff),
        color=pick_color(rng, look.tint) * np.float32(pick(rng, look.brightness)),
    )


def normals(height: Field) -> tuple[Field, Field, Field]:
    """Return the components x, y and z of the unit normals of a height map, each (H, W)."""
    scale = np.float32(min(height.shape) / 2)
    padded = np.pad(height, 1, mode="edge")
    # anything steeper is an edge, where finite differences are meaningless
    dx = np.clip((padded[1:-1, 2:] - padded[1:-1, :-2]) * scale, -4, 4)
    dy = np.clip((padded[2:, 1:-1] - padded[:-2, 1:-1]) * scale, -4, 4)
    z = 1 / np.sqrt(dx * dx + dy * dy + 1)
    return -dx * z, -dy * z, z


def shade(surface: Surface, lamp: Lamp) -> Field:
    """Return the light (H, W, 3) that a surface sends to a camera directly above it."""
    x, y, z = normals(surface.height)
    lx, ly, lz = (np.float32(t) for t in lamp.direction)
    lit = np.maximum(x * lx + y * ly + z * lz, 0)
    diffuse = lamp.ambient * z + (1 - lamp.ambient) / lz * lit  # about 1 on a flat surface
    if surface.metal > 0:
        mirror = 2 * z * (x * lx + y * ly)  # component of the reflected ray in the lamp's direction
        room = 0.8 + 0.45 * np.sin(np.float32(3.2) * mirror + np.float32(0.4)) + 0.3 * mirror * mirror
        diffuse = diffuse + surface.metal * (room - diffuse)
    shine = math.sqrt(2 + 2 * float(lz))  # length of the sum of light and view vectors
    facing = (x * lx + y * ly + z * (lz + 1)) / np.float32(shine)
    highlight = surface.gloss * np.exp(np.float32(lamp.sharpness) * (facing - 1))
    light: Field = (surface.albedo * diffuse[..., None] + highlight[..., None]) * lamp.color
    return light


def soft_shadow(coverage: Field, lamp: Lamp, thickness: float, strength: float = 0.55) -> Field:
    """Return the fraction of the light (H, W) that reaches the background behind a part."""
    height, width = coverage.shape
    small = (max(width // 4, 8), max(height // 4, 8))  # a shadow has no fine details
    coarse = np.asarray(Image.fromarray(coverage).resize(small, Image.Resampling.BOX))
    reach = thickness / max(lamp.direction[2], 0.3)
    offset = [-lamp.direction[axis] * reach * min(small) for axis in (1, 0)]
    coarse = ndimage.shift(coarse, offset, order=1, mode="nearest")
    coarse = ndimage.gaussian_filter(coarse, lamp.softness * min(small), mode="nearest")
    wide = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    shadow: Field = 1 - np.float32(strength) * np.clip(wide, 0, 1)
    return shadow


def light_scene(scene: Scene, lamp: Lamp) -> Field:
    """Return the light (H, W, 3) of a whole scene: front, back and shadow, with the lamp's falloff."""
    light = shade(scene.front, lamp)
    if scene.coverage.min() < 1:
        behind = shade(scene.back, lamp)
        behind *= soft_shadow(scene.coverage, lamp, scene.thickness)[..., None]
        light = behind + scene.coverage[..., None] * (light - behind)
    toward, _ = rotated(*plane(scene.coverage.shape), math.atan2(lamp.direction[1], lamp.direction[0]))
    return light * (1 + np.float32(lamp.falloff) * toward)[..., None]


@dataclass(frozen=True)
class Camera:
    """Ranges that a camera is drawn from."""

    blur: Range = (0.0, 0.24)
    """Fraction of its light that a pixel passes to each neighbor along a row or column."""
    noise: Range = (0.004, 0.015)
    """Standard deviation of the sensor's noise, as a fraction of full scale."""
    vignette: Range = (0.0, 0.12)
    """Relative loss of light in the corners of a square image."""
    color: bool = True
    """False for a grayscale camera."""


@dataclass(frozen=True)
class Exposure:
    """Everything random about one photograph, so that the same photograph can be taken twice."""

    blur: float
    gain: Field
    noise: Field
    color: bool


def draw_exposure(rng: np.random.Generator, shape: Shape, look: Camera) -> Exposure:
    """Draw the blur, vignette and noise of one photograph."""
    x, y = plane(shape)
    return Exposure(
        blur=pick(rng, look.blur),
        gain=1 - np.float32(2 * pick(rng, look.vignette)) * (x * x + y * y),
        noise=white_noise(rng, (*shape, 3 if look.color else 1)) * np.float32(pick(rng, look.noise)),
        color=look.color,
    )


def photograph(light: Field, exposure: Exposure) -> NDArray[np.uint8]:
    """Return the picture (H, W, 3), uint8, that a camera takes of light (H, W, 3)."""
    if not exposure.color:
        light = np.repeat(light @ np.array([[0.3], [0.59], [0.11]], np.float32), 3, axis=2)
    seen = _soften(light, exposure.blur) * exposure.gain[..., None]
    seen = seen + exposure.noise * np.sqrt(np.clip(seen, 0.05, 1))  # shot noise
    # compress highlights instead of clipping them
    seen = np.where(seen > 0.8, 0.8 + 0.2 * np.tanh((seen - 0.8) * 2.5), seen)
    picture: NDArray[np.uint8] = np.rint(np.clip(seen, 0, 1) * 255).astype(np.uint8)
    return picture


def _soften(light: Field, share: float) -> Field:
    for axis in (0, 1):
        ends = np.pad(light, [(int(a == axis),) * 2 for a in range(3)], mode="edge")
        before, after = (ends[:-2], ends[2:]) if axis == 0 else (ends[:, :-2], ends[:, 2:])
        light = light + np.float32(share) * (before + after - 2 * light)
    return light


def plain_surface(rng: np.random.Generator, shape: Shape, color: Field, mottle: float = 0.02) -> Surface:
    """Return a matte surface of almost uniform color, such as a table or a conveyor belt."""
    cloud = fractal_noise(rng, shape, 0.7)
    albedo = color * (1 + np.float32(mottle) * cloud)[..., None]
    return Surface(albedo.astype(np.float32), cloud * np.float32(0.0002))


def bevel(depth: Field, edge: float) -> Field:
    """Return the height of a rounded edge: 0 at the border (depth 0), `edge` where the depth is `edge` or more."""
    t = np.clip(depth / np.float32(edge), 0, 1)
    rise: Field = np.float32(edge) * np.sqrt(np.maximum(1 - np.square(1 - t), 0))
    return rise


def fade(distance: Field, shape: Shape, width: float = 1.0) -> Field:
    """Return the coverage in [0, 1] for a signed distance (negative inside), with borders `2 * width` pixels wide."""
    pixel = width / min(shape)
    return smoothstep(pixel, -pixel, distance)
