"""Training pictures: materials and parts, fractals, noise and collages, mixed and recolored."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter
from scipy.ndimage import gaussian_filter

from pictures.variety import random_image

Picture = NDArray[np.float32]
"""(side, side, 3), RGB in [0, 1]."""

FRACTAL_SHARE, NOISE_SHARE, COLLAGE_SHARE = 0.1, 0.05, 0.3  # the rest are materials and parts
MIX_SHARE = 0.5  # of the pictures are mixed with a second one


def training_picture(seed: int, index: int, side: int) -> NDArray[np.uint8]:
    """Return one training picture.

    Parameters
    ----------
    seed, index : int
        Seed of the whole training set and number of the picture; the picture depends on nothing else.
    side : int
        Height and width, pixels.

    Returns
    -------
    ndarray of shape (side, side, 3), uint8
    """
    rng = np.random.default_rng([seed, index])
    picture = _any_picture(rng, side)
    if rng.random() < MIX_SHARE:
        picture = _mix(rng, picture, _any_picture(rng, side))
    return vary(rng, picture)


def vary(rng: np.random.Generator, picture: Picture) -> NDArray[np.uint8]:
    """Rotate, mirror and recolor a picture at random, and blur it or add noise; return (side, side, 3), uint8."""
    picture = _rotate(rng, picture)
    picture = _recolor(rng, picture)
    picture = _degrade(rng, picture)
    return np.uint8(np.clip(picture, 0, 1) * 255 + 0.5)


def _any_picture(rng: np.random.Generator, side: int) -> Picture:
    """Return a picture of a random kind: a fractal, noise, a collage, or a material or part."""
    kind = rng.random()
    if kind < FRACTAL_SHARE:
        return fractal(rng, side, rng)
    if kind < FRACTAL_SHARE + NOISE_SHARE:
        return colored_noise(rng, side)
    if kind < FRACTAL_SHARE + NOISE_SHARE + COLLAGE_SHARE:
        return _collage(rng, side)
    return _material_or_part(rng, side)


def _material_or_part(rng: np.random.Generator, side: int) -> Picture:
    """Return a crop of a picture of a material or part, resized in half of all cases."""
    drawn = max(int(side * rng.uniform(1.0, 1.5)), 32)
    image = Image.fromarray(random_image(rng, (drawn, drawn)))
    cut = side if rng.random() < 0.5 else int(rng.uniform(0.6, 1.0) * drawn)
    cut = min(cut, drawn)
    x, y = (int(v) for v in rng.integers(drawn - cut + 1, size=2))
    image = image.crop((x, y, x + cut, y + cut))
    if cut != side:
        image = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32) / 255


def fractal(
    rng: np.random.Generator, side: int, formula: np.random.Generator, n_points: int = 400, n_rounds: int = 80
) -> Picture:
    """Return the attractor of an iterated function system drawn from ``formula``, on a smooth background."""
    n_maps = int(formula.integers(2, 6))
    matrices = formula.normal(size=(n_maps, 2, 2))
    matrices *= (formula.uniform(0.4, 0.9, n_maps) / np.linalg.norm(matrices, 2, axis=(1, 2)))[:, None, None]
    shifts = formula.uniform(-1, 1, (n_maps, 2))
    hues = rng.uniform(0, 1, (n_maps, 3))
    points, colors = rng.uniform(-1, 1, (n_points, 2)), rng.uniform(0, 1, (n_points, 3))
    visited, inks = [], []
    for round_ in range(n_rounds):
        chosen = rng.integers(n_maps, size=n_points)
        points = np.einsum("nij,nj->ni", matrices[chosen], points) + shifts[chosen]
        colors = (colors + hues[chosen]) / 2
        if round_ >= 10:
            visited.append(points)
            inks.append(colors)
    where, ink = np.concatenate(visited), np.concatenate(inks)
    low, high = np.quantile(where, [0.01, 0.99], axis=0)
    pixels = ((where - low) / np.maximum(high - low, 1e-6) * (side - 1)).astype(int)
    inside = ((pixels >= 0) & (pixels < side)).all(axis=1)
    picture = _smooth_background(rng, side)
    picture[pixels[inside, 1], pixels[inside, 0]] = ink[inside]
    return np.float32(gaussian_filter(picture, (*[rng.uniform(0.0, 1.2)] * 2, 0)))


def _smooth_background(rng: np.random.Generator, side: int) -> Picture:
    """Return a color gradient."""
    small = np.uint8(rng.uniform(0, 255, (int(rng.integers(1, 4)), int(rng.integers(1, 4)), 3)))
    return np.array(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255


def colored_noise(rng: np.random.Generator, side: int, power: float | None = None) -> Picture:
    """Return noise whose amplitude falls with a power of frequency (None: a random one), with correlated channels."""
    rows, columns = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    stretch = np.exp(rng.normal(0, 0.5))
    frequency = np.sqrt((rows * stretch) ** 2 + columns**2)
    frequency[0, 0] = 1.0
    white = np.fft.rfft2(rng.normal(size=(3, side, side)))
    spectrum = white / frequency ** (rng.uniform(0.3, 2.2) if power is None else power)
    spectrum[:, 0, 0] = 0
    channels = np.fft.irfft2(spectrum, s=(side, side))
    channels += rng.uniform(0, 2) * channels[:1]
    channels *= rng.uniform(0.08, 0.3) / np.maximum(channels.std(axis=(1, 2), keepdims=True), 1e-9)
    return np.float32(np.moveaxis(channels, 0, 2) + rng.uniform(0.2, 0.8, 3))


def _collage(rng: np.random.Generator, side: int) -> Picture:
    """Return a collage of pieces of two pictures and of uniform colors, with small pieces on top of large ones."""
    sheets = [Image.fromarray(np.uint8(np.clip(_material_or_part(rng, side), 0, 1) * 255)) for _ in range(2)]
    canvas = sheets[0].copy()
    n_pieces = int(rng.integers(4, 40))
    for radius in sorted(side * rng.uniform(0.02, 0.12, n_pieces) / rng.uniform(0.15, 1.0, n_pieces), reverse=True):
        if rng.random() < 0.5:
            filling = Image.new("RGB", (side, side), tuple(int(v) for v in rng.integers(256, size=3)))
        else:
            sheet = sheets[rng.integers(2)].rotate(90 * int(rng.integers(4)))
            gain = float(rng.uniform(0.4, 1.6))
            filling = sheet.point([min(round(gain * v), 255) for v in range(256)] * 3)
        canvas.paste(filling, mask=_shape_mask(rng, side, float(radius)))
    return np.asarray(canvas, np.float32) / 255


def _shape_mask(rng: np.random.Generator, side: int, radius: float) -> Image.Image:
    """Return the mask of an ellipse, a polygon or a bent line at a random place in the picture."""
    mask = Image.new("L", (side, side))
    draw = ImageDraw.Draw(mask)
    x, y = rng.uniform(0, side, 2)
    kind = rng.integers(3)
    if kind == 0:
        flat = float(rng.uniform(0.4, 1.0))
        draw.ellipse((x - radius, y - radius * flat, x + radius, y + radius * flat), fill=255)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, int(rng.integers(3, 9))))
        reach = radius * rng.uniform(0.5, 1.2, len(angles))
        draw.polygon([*zip(x + reach * np.cos(angles), y + reach * np.sin(angles), strict=True)], fill=255)
    else:
        bends = np.cumsum(rng.normal(0, radius, (int(rng.integers(2, 6)), 2)), axis=0) + np.array([x, y])
        draw.line([tuple(p) for p in bends], fill=255, width=int(rng.integers(1, 2 + int(radius) // 4)), joint="curve")
    return mask.filter(ImageFilter.GaussianBlur(float(rng.choice([0.0, 0.7, 2.0]))))


def _mix(rng: np.random.Generator, first: Picture, second: Picture) -> Picture:
    """Return the first picture blended with the second: within shapes, within blotches or everywhere."""
    side = first.shape[0]
    kind = rng.random()
    if kind < 0.4:
        mask = np.zeros((side, side), np.float32)
        for _ in range(int(rng.integers(1, 6))):
            shape = _shape_mask(rng, side, float(side * np.exp(rng.uniform(np.log(0.01), np.log(0.3)))))
            mask = np.maximum(mask, np.asarray(shape, np.float32) / 255)
        mask *= rng.uniform(0.3, 1.0)
    elif kind < 0.7:
        field = gaussian_filter(rng.normal(size=(side, side)), float(rng.uniform(1.5, 12)), mode="wrap")
        level = np.quantile(field, rng.uniform(0.4, 0.98))
        sharp = rng.uniform(2, 30) / max(float(field.std()), 1e-9)
        mask = np.float32(1 / (1 + np.exp(-np.clip((field - level) * sharp, -30, 30))))
    else:
        mask = np.full((side, side), rng.uniform(0.15, 0.6), np.float32)
    weight = mask[..., None]
    return np.float32(first * (1 - weight) + second * weight)


def _rotate(rng: np.random.Generator, picture: Picture) -> Picture:
    """Mirror a picture or rotate it by multiples of 90 degrees, or neither."""
    if rng.random() < 0.5:
        picture = picture[:, ::-1]
    return np.rot90(picture, int(rng.choice([0, 0, 0, 1, 2, 3])))


def _recolor(rng: np.random.Generator, picture: Picture) -> Picture:
    """Change gamma, gain and offset, or make the picture gray, permute its channels or invert it."""
    if rng.random() < 0.6:
        picture = np.clip(picture, 0, 1) ** np.float32(np.exp(rng.normal(0, 0.35)))
        picture = picture * np.float32(np.exp(rng.normal(0, 0.12, 3))) * np.float32(np.exp(rng.normal(0, 0.2)))
        picture = picture + np.float32(rng.normal(0, 0.06))
    chance = rng.random()
    if chance < 0.2:
        picture = np.repeat(picture.mean(axis=2, keepdims=True), 3, axis=2)
    elif chance < 0.3:
        picture = picture[..., rng.permutation(3)]
    elif chance < 0.35:
        picture = 1 - picture
    return picture


def _degrade(rng: np.random.Generator, picture: Picture) -> Picture:
    """Blur a picture or add noise, or neither."""
    chance = rng.random()
    if chance < 0.25:
        picture = gaussian_filter(picture, (*[float(rng.uniform(0.3, 2.0))] * 2, 0))
    elif chance < 0.5:
        noise = rng.standard_normal(picture.shape, np.float32)
        picture = picture + np.float32(rng.uniform(0.005, 0.08)) * noise
    return picture
