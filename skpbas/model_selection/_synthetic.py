"""Validation sets from normal images alone, with defects drawn on copies of them and exact masks."""

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

from skpbas._inputs.decoding import MaskedImage, checked_array, decode, item_name, unmasked
from skpbas._inputs.ignoring import ignored_pixels
from skpbas._inputs.images import check_images
from skpbas._inputs.parameters import draw_seed
from skpbas.datasets.generated.defects import Spot, contrasting_paint, curved_line
from skpbas.datasets.generated.noise import rotated
from skpbas.errors import InvalidImageError, StorageError

_ATTEMPTS = 40
_SMALLEST_SIDE = 8  # pixels of an image
_SMALLEST_EXTENT = 4.0  # pixels of a defect
_SMALLEST_AREA = 4
_VISIBLE = 0.05  # minimum change of a pixel, as a fraction of the image's contrast
_VISIBLE_SHARE = 0.6  # minimum fraction of changed pixels in a defect
_VISIBLE_ON_AVERAGE = 0.1  # minimum mean change in a defect, as a fraction of the image's contrast

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
    """Make a validation set from normal images: the images and copies of them with a synthetic defect.

    For choosing settings without images of real defects, the usual case. It measures how well synthetic defects are
    detected, which may differ from real ones; the user guide shows how well the two agree on real categories.

    Parameters
    ----------
    images : array or sequence of images
        Normal images, as for :class:`~skpbas.PBASDetector`; at least 8 x 8 pixels.
    n_anomalous : int or None, default=None
        Number of defective copies, at least 1; None: one per image. No image is copied twice before all are copied
        once.
    kinds : sequence of {"cut_paste", "scratch"}, default=("cut_paste", "scratch")
        Defect types, used in turn. "cut_paste": a rotated rectangle of the image is pasted elsewhere, slightly brighter
        or darker [1]_. "scratch": a thin curved line, brighter or darker than its background.
    size : (float, float), default=(0.05, 0.3)
        Smallest and largest extent of a defect as a fraction of the shorter side of its image, drawn log-uniformly: the
        longer side of a rectangle or the length of a scratch; at least 4 pixels.
    folder : path or None, default=None
        Folder for the copies, as PNG, created if missing. None: keep them in memory as arrays.
    random_state : int, RandomState or None, default=None
        An int gives the same copies in every call, None different ones. numpy's global random state is neither read
        nor changed.
    return_groups : bool, default=False
        Whether to return groups.

    Returns
    -------
    X : list of n + n_anomalous images
        The original images, then the copies: arrays of the same size and dtype as their source, or paths. What an
        image ignores (:func:`skpbas.masks.ignoring`) its copies ignore, and defects lie elsewhere if there is room.
    y : list of ndarray or None
        None for each original image, the mask (H, W), bool, for each copy. Pixels outside the mask are unchanged, and
        most pixels inside differ visibly.
    groups : ndarray of shape (n + n_anomalous,), int
        Index of the source image of each row; only if ``return_groups``. With :class:`GroupNormalKFold`, no training
        image is then the source of a defective copy in the test fold. If several images show one part, pass
        ``parts[groups]``.

    Raises
    ------
    InvalidImageError
        An unusable image, named by index and file; with ``folder`` also float and 16-bit color images, which PNG
        does not support.
    ValueError
        A parameter out of range.
    StorageError
        A copy could not be written; copies already written by the call are removed.

    References
    ----------
    .. [1] Li, Sohn, Yoon, Pfister: "CutPaste: Self-Supervised Learning for Anomaly Detection and Localization",
       CVPR 2021.

    Examples
    --------
    >>> from skpbas.datasets import make_inspection_images
    >>> from skpbas.model_selection import GroupNormalKFold, synthetic_validation
    >>> normal = make_inspection_images(6, 0, size=64, random_state=0).images
    >>> X, y, groups = synthetic_validation(normal, random_state=0, return_groups=True)
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
            ignored = ignored_pixels(items[source], name)
            for _ in range(_ATTEMPTS):
                defective, mask = _with_defect(rng, clean, kind, (smallest, largest), name)
                if ignored is None or not (mask & ignored).any():
                    break
            kept = keep(defective, unmasked(items[source]), source, kind)
            X.append(kept if ignored is None else MaskedImage(kept, ignored))
            y.append(mask if ignored is None else mask & ~ignored)
    if return_groups:
        return X, y, np.concatenate([np.arange(len(items), dtype=np.intp), sources])
    return X, y


# Drawing --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tones:
    """The range of values of an image, in its own units."""

    low: float
    high: float
    white: float

    @classmethod
    def of(cls, pixels: Pixels) -> _Tones:
        white = 1.0 if pixels.dtype.kind == "f" else float(np.iinfo(pixels.dtype).max)
        stride = max(1, int((pixels.shape[0] * pixels.shape[1] / 2**18) ** 0.5))
        low, high = np.percentile(pixels[::stride, ::stride, ..., :3].astype(np.float32), (0.5, 99.5))
        missing = max(0.04 * white - (high - low), 0) / 2  # plain surfaces have noise, not contrast
        return cls(max(low - missing, 0.0), min(high + missing, white), white)

    @property
    def contrast(self) -> float:
        return self.high - self.low


@dataclass(frozen=True)
class _Patch:
    """A defect: its window in the image, its mask and the new pixel values."""

    window: tuple[slice, slice]
    mask: Mask
    """(h, w), within the window."""
    values: Pixels
    """(h, w) or (h, w, C), in the image's units."""


_Draw = Callable[[np.random.Generator, Pixels, _Tones, float, float], _Patch]


def _with_defect(
    rng: np.random.Generator, clean: Pixels, kind: str, size: tuple[float, float], name: str
) -> tuple[Pixels, Mask]:
    """Return a copy with a visible defect, and its mask."""
    height, width = clean.shape[:2]
    if min(height, width) < _SMALLEST_SIDE:
        raise InvalidImageError(
            f"{name} is {height} x {width} pixels, too small for a defect: expected sides of at least {_SMALLEST_SIDE}"
        )
    n_colors = 3 if clean.ndim == 3 and clean.shape[2] == 4 else None
    colors = clean if n_colors is None else clean[..., :n_colors]  # opacity is kept
    tones = _Tones.of(colors if colors.ndim == 3 else colors[..., None])
    for attempt in range(_ATTEMPTS):
        extent = float(np.exp(rng.uniform(*np.log(size)))) * min(height, width)
        patch = _DRAW_DEFECT[kind](rng, colors, tones, max(extent, _SMALLEST_EXTENT), 1 + 0.1 * attempt)
        before = colors[patch.window][patch.mask]
        after = _to_dtype(patch.values[patch.mask], tones, clean.dtype)
        if len(before) < _SMALLEST_AREA or not _visible(before, after, tones):
            continue  # outside the image or hidden by texture: retry elsewhere, slightly stronger
        defective, mask = clean.copy(), np.zeros((height, width), bool)
        region = defective[patch.window] if n_colors is None else defective[patch.window][..., :n_colors]
        region[patch.mask] = after
        mask[patch.window] = patch.mask
        return defective, mask
    raise InvalidImageError(f"{name}: no visible {kind} in {_ATTEMPTS} attempts; exclude the image")


def _visible(before: Pixels, after: Pixels, tones: _Tones) -> bool:
    """Return whether most pixels have changed by more than noise."""
    change = (after.astype(np.float32) - before.astype(np.float32)).reshape(len(before), -1)
    share = (np.abs(change).max(axis=1) >= _VISIBLE * tones.contrast).mean()
    grain = min(1.5 * float(before.astype(np.float32).std()), 0.35 * tones.contrast)  # moved noise is no defect
    needed = max(_VISIBLE_ON_AVERAGE * tones.contrast, grain)
    return bool(share >= _VISIBLE_SHARE and abs(change.mean()) >= needed)


def _cut_paste(rng: np.random.Generator, image: Pixels, tones: _Tones, extent: float, strength: float) -> _Patch:
    """Paste a rotated rectangle of the image elsewhere, slightly brighter or darker."""
    shape = image.shape[:2]
    center = rng.uniform(0, 1, 2) * shape
    window, along, across = _rotated_window(rng, shape, center, extent / 2)
    mask = (np.abs(along) <= extent / 2) & (np.abs(across) <= extent / 2 * rng.uniform(0.3, 1.0))
    (top, bottom), (left, right) = ((side.start, side.stop) for side in window)
    dy = int(rng.integers(-top, shape[0] - bottom + 1))
    dx = int(rng.integers(-left, shape[1] - right + 1))
    cut = image[top + dy : bottom + dy, left + dx : right + dx].astype(np.float32)
    shift = np.float32(rng.uniform(-0.15, 0.15) * tones.contrast)
    if strength > 1:  # source and target looked alike: shift toward mid-range
        shift += np.float32((0.5 if cut.mean() < tones.white / 2 else -0.5) * (strength - 1) * tones.contrast)
    return _Patch(window, mask, cut + shift)


def _scratch(rng: np.random.Generator, image: Pixels, tones: _Tones, extent: float, strength: float) -> _Patch:
    """Draw a thin curved line with tapered ends, brighter or darker than its background."""
    shape = image.shape[:2]
    center = rng.uniform(0.05, 0.95, 2) * shape
    width = max(extent * rng.uniform(0.015, 0.04), 0.9)
    window, along, across = _rotated_window(rng, shape, center, 0.65 * extent + 4 * width)
    background = image[window].astype(np.float32)
    dark, bright = max(tones.low - tones.contrast / 4, 0), min(tones.high + tones.contrast / 4, tones.white)
    tone = (float(background.mean()) - dark) / (bright - dark)
    distance, lengthwise = curved_line(rng, shape, Spot(along, across, tone, 1.0), (extent, extent), (0.0, 0.5))
    taper = np.maximum(1 - lengthwise**4, 0)
    opacity = np.exp(-np.square(distance / np.float32(width))) * taper
    mask = opacity > 0.2
    opacity = np.clip(opacity * np.float32(rng.uniform(0.4, 0.9) * strength), 0, 1)
    paint = np.float32(dark + float(contrasting_paint(rng, tone)[0]) * (bright - dark))
    opacity = opacity if image.ndim == 2 else opacity[..., None]
    return _Patch(window, mask, background + opacity * (paint - background))


_DRAW_DEFECT: Mapping[str, _Draw] = MappingProxyType({"cut_paste": _cut_paste, "scratch": _scratch})


def _rotated_window(
    rng: np.random.Generator, shape: tuple[int, ...], center: NDArray[np.float64], reach: float
) -> tuple[tuple[slice, slice], NDArray[Any], NDArray[Any]]:
    """Return a window around a position, and coordinates (px) of its pixels along and across a random direction."""
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
    """Return the pixels (H, W) or (H, W, C) of an image in its own dtype."""
    item = unmasked(item)
    decoded = decode(item, name)
    if isinstance(item, (str, PathLike, Image.Image)) or decoded.transparent:  # nothing is drawn where it is not seen
        return decoded.pixels
    return checked_array(item, name)


class _Folder:
    """Stores copies and returns their entries in X; removes the files it wrote if the block raises."""

    def __init__(self, folder: str | PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def __enter__(self) -> _Folder:
        self._written = contextlib.ExitStack()
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(f"folder={str(self.folder)!r} cannot be created: {error}") from error
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
                f"{name}: PNG does not support {'floats' if pixels.dtype.kind == 'f' else '16-bit color'}; with "
                "folder=None copies stay in memory"
            )
        stem = Path(item).stem if isinstance(item, (str, PathLike)) else f"image{index}"
        digest = hashlib.blake2b(np.ascontiguousarray(pixels).data, digest_size=5).hexdigest()
        path = self.folder / f"{stem}-{kind}-{digest}.png"  # named by content: never overwrites other copies
        image = Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels)
        new, partial = not path.exists(), path.with_suffix(f".{uuid4().hex}.part")
        try:
            with partial.open("xb") as file:
                image.save(file, format="PNG")
            partial.replace(path)
        except OSError as error:
            raise StorageError(f"{path} cannot be written: {error}") from error
        finally:
            partial.unlink(missing_ok=True)
        if new:
            self._written.callback(path.unlink, missing_ok=True)
        return path


# Checks ---------------------------------------------------------------------------------------------------


def _checked_count(n_anomalous: Any) -> int:
    if isinstance(n_anomalous, bool) or not isinstance(n_anomalous, Integral) or n_anomalous < 1:
        raise ValueError(f"n_anomalous={n_anomalous!r}: expected a positive integer or None")
    return int(n_anomalous)


def _checked_kinds(kinds: Any) -> list[str]:
    if isinstance(kinds, str) or len(kinds) == 0 or any(kind not in _DRAW_DEFECT for kind in kinds):
        raise ValueError(f"kinds={kinds!r}: expected a sequence of names from {list(_DRAW_DEFECT)}")
    return list(kinds)


def _checked_size(size: Any) -> tuple[float, float]:
    if len(size) != 2 or not all(isinstance(s, Real) for s in size) or not 0 < size[0] <= size[1] <= 1:
        raise ValueError(f"size={size!r}: expected the smallest and the largest extent as fractions, 0 < a <= b <= 1")
    return float(size[0]), float(size[1])
