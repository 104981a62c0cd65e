"""Validation from good images alone: defects drawn on copies of them, with exact masks."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skpbas._inputs.decoding import checked_array, decode, item_name
from skpbas._inputs.images import check_images
from skpbas._inputs.parameters import draw_seed
from skpbas.datasets.generated.defects import Spot, contrasting_paint, curved_line
from skpbas.datasets.generated.noise import rotated
from skpbas.errors import InvalidImageError, StorageError

_ATTEMPTS = 40
_SMALLEST_SIDE = 8  # pixels of an image
_SMALLEST_EXTENT = 4.0  # pixels of a defect
_SMALLEST_AREA = 4
_VISIBLE = 0.05  # of the image's contrast, for a pixel
_VISIBLE_SHARE = 0.6  # of a defect's pixels
_VISIBLE_ON_AVERAGE = 0.1  # of the image's contrast, for the mean of a defect's pixels

Pixels = NDArray[Any]
Mask = NDArray[np.bool_]


def synthetic_validation(
    images: Any,
    *,
    n_anomalous: int | None = None,
    kinds: Sequence[str] = ("cut_paste", "scratch"),
    size: tuple[float, float] = (0.05, 0.3),
    folder: str | PathLike[str] | None = None,
    random_state: Any = None,
    return_groups: bool = False,
) -> tuple[list[Any], list[Mask | None]] | tuple[list[Any], list[Mask | None], NDArray[np.intp]]:
    """Make a validation set from good images: they themselves, and copies on which a defect is drawn.

    For the usual case that there are no images of real defects to choose settings by. What it ranks is how well
    generated defects are found, which need not be how well real ones are; the user guide shows how far the two agreed
    on real categories.

    Parameters
    ----------
    images : array or sequence of images
        Good ones, as for :class:`~skpbas.PBASDetector`; 8 x 8 pixels or more.
    n_anomalous : int or None, default=None
        Number of defective copies, 1 or more; None: as many as images. Up to as many as images, each is copied once
        at most.
    kinds : sequence of {"cut_paste", "scratch"}, default=("cut_paste", "scratch")
        Defects, in turn. "cut_paste": a turned rectangle of the image is pasted elsewhere in it, a little brighter or
        darker [1]_. "scratch": a thin curved line, brighter or darker than what it crosses.
    size : (float, float), default=(0.05, 0.3)
        Smallest and largest extent of a defect, in shorter sides of its image, drawn log-uniformly: the longer side
        of a patch, the length of a scratch; 4 pixels or more.
    folder : path or None, default=None
        Where copies are written, as PNG; it is made where it is missing. None: they are held in memory as arrays.
    random_state : int, RandomState or None, default=None
        An int gives the same copies every time; None new ones. numpy's global stream is neither read nor moved.
    return_groups : bool, default=False
        Return groups too.

    Returns
    -------
    X : list of n + n_anomalous images
        The images as given, then the copies: arrays of the images' own sizes and dtypes, or paths.
    y : list of ndarray or None
        None for each image as given; for a copy its mask (H, W), bool, at the image's own size. A pixel outside is what
        it is in the image, and most pixels inside differ visibly.
    groups : ndarray of shape (n + n_anomalous,), int
        Number of the image that a row is, or is a copy of; only if ``return_groups``. With
        :class:`GroupNormalKFold` no image of training is then the ground of a defect in the test fold. Where several
        images show one part, give ``parts[groups]``.

    Raises
    ------
    InvalidImageError
        An image that cannot be used, named by index and file; with ``folder`` also floats, and 16-bit colours,
        which PNG does not hold.
    ValueError
        A parameter out of range.
    StorageError
        A copy could not be written; those that this call wrote before are removed.

    References
    ----------
    .. [1] Li, Sohn, Yoon, Pfister: "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization",
       CVPR 2021.

    Examples
    --------
    >>> from skpbas.datasets import make_inspection_images
    >>> from skpbas.model_selection import GroupNormalKFold, synthetic_validation
    >>> good = make_inspection_images(6, 0, size=64, random_state=0).images
    >>> X, y, groups = synthetic_validation(good, random_state=0, return_groups=True)
    >>> len(X), y[0], y[6].shape
    (12, None, (64, 64))
    >>> train, test = next(GroupNormalKFold(3).split(X, y, groups))
    >>> set(groups[train]) & set(groups[test])
    set()
    """
    items = check_images(images)
    n_copies = len(items) if n_anomalous is None else _checked_count(n_anomalous)
    kinds, (smallest, largest) = _checked_kinds(kinds), _checked_size(size)
    seed = draw_seed(random_state)
    rounds, rest = divmod(n_copies, len(items))
    chosen = np.random.default_rng(seed).permutation(len(items))[:rest]
    sources = np.concatenate([np.tile(np.arange(len(items)), rounds), np.sort(chosen)]).astype(np.intp)
    X, y = list(items), list[Mask | None]([None] * len(items))
    with _Folder(folder) as keep:
        for copy, source in enumerate(sources.tolist()):
            name, kind = item_name(items[source], source), kinds[(copy + copy // len(items)) % len(kinds)]
            clean = _decode(items[source], name)
            rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(source, copy // len(items))))
            defective, mask = _with_defect(rng, clean, kind, (smallest, largest), name)
            X.append(keep(defective, items[source], source, kind))
            y.append(mask)
    if return_groups:
        return X, y, np.concatenate([np.arange(len(items), dtype=np.intp), sources])
    return X, y


# Drawing --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tones:
    """The tones of an image, in its own units."""

    low: float
    high: float
    white: float

    @classmethod
    def of(cls, pixels: Pixels) -> _Tones:
        white = 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
        stride = max(1, int((pixels.shape[0] * pixels.shape[1] / 2**18) ** 0.5))
        low, high = np.percentile(pixels[::stride, ::stride, ..., :3].astype(np.float32), (0.5, 99.5))
        missing = max(0.04 * white - (high - low), 0) / 2  # a plain surface: its noise is no measure of contrast
        return cls(max(low - missing, 0.0), min(high + missing, white), white)

    @property
    def contrast(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class _Patch:
    """A defect: where it is, which pixels it has, and what they become."""

    window: tuple[slice, slice]
    mask: Mask
    """(h, w), of the window."""
    values: Pixels
    """(h, w) or (h, w, C), in the image's units."""


_Draw = Callable[[np.random.Generator, Pixels, _Tones, float, float], _Patch]


def _with_defect(
    rng: np.random.Generator, clean: Pixels, kind: str, size: tuple[float, float], name: str
) -> tuple[Pixels, Mask]:
    """Return a copy with a defect that can be seen, and the defect's mask."""
    height, width = clean.shape[:2]
    if min(height, width) < _SMALLEST_SIDE:
        raise InvalidImageError(
            f"{name} is {height} x {width} pixels, too small for a defect: {_SMALLEST_SIDE} or more"
        )
    n_colours = 3 if clean.ndim == 3 and clean.shape[2] == 4 else None
    colours = clean if n_colours is None else clean[..., :n_colours]  # opacity stays
    tones = _Tones.of(colours if colours.ndim == 3 else colours[..., None])
    for attempt in range(_ATTEMPTS):
        extent = float(np.exp(rng.uniform(*np.log(size)))) * min(height, width)
        patch = _DRAWN[kind](rng, colours, tones, max(extent, _SMALLEST_EXTENT), 1 + 0.1 * attempt)
        before = colours[patch.window][patch.mask]
        after = _to_dtype(patch.values[patch.mask], tones, clean.dtype)
        if len(before) < _SMALLEST_AREA or not _visible(before, after, tones):
            continue  # off the image, or hidden by the pattern: another place, a little stronger
        defective, mask = clean.copy(), np.zeros((height, width), bool)
        region = defective[patch.window] if n_colours is None else defective[patch.window][..., :n_colours]
        region[patch.mask] = after
        mask[patch.window] = patch.mask
        return defective, mask
    raise InvalidImageError(f"{name}: no visible {kind} in {_ATTEMPTS} attempts; leave the image out")


def _visible(before: Pixels, after: Pixels, tones: _Tones) -> bool:
    """Say whether most pixels have changed, and not as noise does."""
    change = (after.astype(np.float32) - before.astype(np.float32)).reshape(len(before), -1)
    share = (np.abs(change).max(axis=1) >= _VISIBLE * tones.contrast).mean()
    grain = min(1.5 * float(before.astype(np.float32).std()), 0.35 * tones.contrast)  # put elsewhere it is no defect
    needed = max(_VISIBLE_ON_AVERAGE * tones.contrast, grain)
    return bool(share >= _VISIBLE_SHARE and abs(change.mean()) >= needed)


def _cut_paste(rng: np.random.Generator, image: Pixels, tones: _Tones, extent: float, strength: float) -> _Patch:
    """Paste a turned rectangle of the image elsewhere, a little brighter or darker."""
    shape = image.shape[:2]
    center = rng.uniform(0, 1, 2) * shape
    window, along, across = _turned_window(rng, shape, center, extent / 2)
    mask = (np.abs(along) <= extent / 2) & (np.abs(across) <= extent / 2 * rng.uniform(0.3, 1.0))
    (top, bottom), (left, right) = ((side.start, side.stop) for side in window)
    down = int(rng.integers(-top, shape[0] - bottom + 1))
    aside = int(rng.integers(-left, shape[1] - right + 1))
    cut = image[top + down : bottom + down, left + aside : right + aside].astype(np.float32)
    shift = np.float32(rng.uniform(-0.15, 0.15) * tones.contrast)
    if strength > 1:  # the places looked alike: away from black and white
        shift += np.float32((0.5 if cut.mean() < tones.white / 2 else -0.5) * (strength - 1) * tones.contrast)
    return _Patch(window, mask, cut + shift)


def _scratch(rng: np.random.Generator, image: Pixels, tones: _Tones, extent: float, strength: float) -> _Patch:
    """Draw a thin curved line, brighter or darker than what it crosses, that tapers to its ends."""
    shape = image.shape[:2]
    center = rng.uniform(0.05, 0.95, 2) * shape
    width = max(extent * rng.uniform(0.015, 0.04), 0.9)
    window, along, across = _turned_window(rng, shape, center, 0.65 * extent + 4 * width)
    ground = image[window].astype(np.float32)
    dark, bright = max(tones.low - tones.contrast / 4, 0), min(tones.high + tones.contrast / 4, tones.white)
    tone = (float(ground.mean()) - dark) / (bright - dark)
    distance, lengthwise = curved_line(rng, shape, Spot(along, across, tone, 1.0), (extent, extent), (0.0, 0.5))
    taper = np.maximum(1 - lengthwise**4, 0)
    opacity = np.exp(-np.square(distance / np.float32(width))) * taper
    mask = opacity > 0.2
    opacity = np.clip(opacity * np.float32(rng.uniform(0.4, 0.9) * strength), 0, 1)
    paint = np.float32(dark + float(contrasting_paint(rng, tone)[0]) * (bright - dark))
    opacity = opacity if image.ndim == 2 else opacity[..., None]
    return _Patch(window, mask, ground + opacity * (paint - ground))


_DRAWN: Mapping[str, _Draw] = MappingProxyType({"cut_paste": _cut_paste, "scratch": _scratch})


def _turned_window(
    rng: np.random.Generator, shape: tuple[int, ...], center: NDArray[np.float64], reach: float
) -> tuple[tuple[slice, slice], NDArray[Any], NDArray[Any]]:
    """Return the part of the image around a place, and its pixels' coordinates (px) along and across a direction."""
    reach *= 2**0.5
    (top, bottom), (left, right) = (
        (max(int(middle - reach), 0), min(int(middle + reach) + 2, side))
        for middle, side in zip(center, shape, strict=True)
    )
    x = (np.arange(left, right) - center[1]).astype(np.float32)[None, :]
    y = (np.arange(top, bottom) - center[0]).astype(np.float32)[:, None]
    along, across = rotated(x, y, rng.uniform(0, 2 * np.pi))
    return (slice(top, bottom), slice(left, right)), along, across


def _to_dtype(values: Pixels, tones: _Tones, dtype: np.dtype[Any]) -> Pixels:
    values = np.clip(values, 0, tones.white)
    return (np.rint(values) if dtype.kind == "u" else values).astype(dtype)


# Reading and writing --------------------------------------------------------------------------------------


def _decode(item: Any, name: str) -> Pixels:
    """Return an image's pixels (H, W) or (H, W, C) in its own dtype."""
    return decode(item, name).pixels if isinstance(item, (str, PathLike, Image.Image)) else checked_array(item, name)


class _Folder:
    """Takes copies and returns what stands for them in X; leaves no file behind where the block ends in an error."""

    def __init__(self, folder: str | PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def __enter__(self) -> _Folder:
        self._written = contextlib.ExitStack()
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"folder={str(self.folder)!r} cannot be made: {error}") from error
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self._written.pop_all()
        self._written.close()

    def __call__(self, pixels: Pixels, item: Any, index: int, kind: str) -> Pixels | Path:
        if self.folder is None:
            return pixels
        name = item_name(item, index)
        if pixels.dtype != np.uint8 and not (pixels.dtype == np.uint16 and pixels.ndim == 2):
            raise InvalidImageError(
                f"{name}: PNG holds no {'floats' if pixels.dtype.kind == 'f' else '16-bit colours'}; with folder=None "
                "copies are kept in memory as they are"
            )
        stem = Path(item).stem if isinstance(item, (str, PathLike)) else f"image{index}"
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=5).hexdigest()
        path = self.folder / f"{stem}-{kind}-{digest}.png"  # by content: another call's files stay as they are
        image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)
        new, unfinished = not path.exists(), path.with_suffix(f".{uuid4().hex}.part")
        try:
            with unfinished.open("xb") as file:
                image.save(file, format="PNG")
            unfinished.replace(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error
        finally:
            unfinished.unlink(missing_ok=True)
        if new:
            self._written.callback(path.unlink, missing_ok=True)
        return path


# Checks ---------------------------------------------------------------------------------------------------


def _checked_count(n_anomalous: Any) -> int:
    if isinstance(n_anomalous, bool) or not isinstance(n_anomalous, Integral) or n_anomalous < 1:
        raise ValueError(f"n_anomalous={n_anomalous!r}: give a whole number, 1 or more, or None")
    return int(n_anomalous)


def _checked_kinds(kinds: Any) -> list[str]:
    if isinstance(kinds, str) or len(kinds) == 0 or any(kind not in _DRAWN for kind in kinds):
        raise ValueError(f"kinds={kinds!r}: give a sequence of one or more of {list(_DRAWN)}")
    return list(kinds)


def _checked_size(size: Any) -> tuple[float, float]:
    if len(size) != 2 or not all(isinstance(s, Real) for s in size) or not 0 < size[0] <= size[1] <= 1:
        raise ValueError(f"size={size!r}: give the smallest and the largest extent, in shorter sides: 0 < a <= b <= 1")
    return float(size[0]), float(size[1])
