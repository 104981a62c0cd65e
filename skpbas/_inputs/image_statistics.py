"""What images are like apart from their content: gray or color, bits in use, size, brightness, contrast and colors.

Needs no torch, and scipy only in ``fit``.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from skpbas._inputs.notices import ViewDetails

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
"""Which quantiles :class:`GoodStatistics` has of brightness and contrast."""

LARGEST = {"uint8": 255, "uint16": 65535, "float": 1}
"""The largest possible value of each type of pixels."""

_N_PIXELS = 2048  # of a view are measured
_COLOR = 1 / 255  # root mean square difference between channels, in largest values, above which an image is in color
_GRAY_LEVEL = 0.004  # added before logarithms: what an 8-bit image cannot resolve does not count
_RARE = 3e-7  # share of new images outside the limits, if logarithms were normally distributed
_PRIOR_WEIGHT = 12  # images that the usual spread between images counts as
_SMALL_RANGE = 0.1

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ImageStatistics:
    """What is measured on an image; values are fractions of the range of its type.

    Attributes
    ----------
    kind : {"uint8", "uint16", "float"}
    color : bool
        Whether its channels differ.
    largest : float
        Largest value of the whole image.
    means, stds : (float, float, float)
        Mean and standard deviation of the view's red, green and blue.
    contrast : float
        Standard deviation of the mean of the channels.
    """

    kind: str
    color: bool
    largest: float
    means: tuple[float, ...]
    stds: tuple[float, ...]
    contrast: float

    @classmethod
    def of(cls, dtype: np.dtype[Any], pixels: NDArray[Any], view: NDArray[Any]) -> Self:
        """Measure an image.

        Parameters
        ----------
        dtype : dtype
            Of the image as it was given.
        pixels : ndarray
            The whole image, uint8 or float32 in [0, 1].
        view : ndarray of shape (C, H, W)
            What the network sees of it, of the same type. Up to 2,048 pixels are measured, spread evenly.
        """
        kind = dtype.name if dtype.name in LARGEST else "float"
        scale = 1 / 255 if pixels.dtype == np.uint8 else 1.0
        largest = float(pixels.max()) * scale  # first: it brings all pixels into the processor's cache
        flat = view.reshape(len(view), -1)
        places = _places(flat.shape[1])
        sample = np.ones((len(flat) + 1, len(places)))
        for row, channel in zip(sample[1:], flat, strict=True):
            row[:] = channel[places]
        # sums and squares in one call: BLAS would take longer, starting anew after each pass of the network
        products = np.einsum("ip,jp->ij", sample, sample) * (scale / len(places))
        (_, *means), *moments = products.tolist()
        covariances = [
            [scale * moments[i][j + 1] - means[i] * means[j] for j in range(len(means))] for i in range(len(means))
        ]
        stds = [math.sqrt(max(0.0, covariances[i][i])) for i in range(len(means))]
        if len(means) == 1:
            return cls(kind, False, largest, (means[0],) * 3, (stds[0],) * 3, stds[0])
        contrast = math.sqrt(max(0.0, sum(map(sum, covariances)))) / 3
        difference = 0.0
        for i in (0, 2):  # red and blue against green
            variance = max(0.0, covariances[i][i] + covariances[1][1] - 2 * covariances[i][1])
            difference += math.sqrt(variance + (means[i] - means[1]) ** 2)
        return cls(kind, difference > _COLOR * largest, largest, tuple(means), tuple(stds), contrast)

    @classmethod
    def from_note(cls, note: Any) -> Self | None:
        """Return what :meth:`as_note` wrote, or None if it is something else."""
        try:
            found = cls(**{**note, "means": tuple(note["means"]), "stds": tuple(note["stds"])})
            numbers = [found.largest, found.contrast, *found.means, *found.stds]
            sound = len(found.means) == len(found.stds) == 3 and all(0 <= number <= 1.01 for number in numbers)
            return found if sound and found.kind in LARGEST and isinstance(found.color, bool) else None
        except Exception:  # noqa: BLE001 - damaged in any way
            return None

    def as_note(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        return asdict(self)

    @property
    def brightness(self) -> float:
        """Mean of the channels' means."""
        return sum(self.means) / 3

    @property
    def largest_value(self) -> str:
        """The largest value as the image has it, such as "4,095 of 65,535"."""
        return value_in_range(self.kind, self.largest)

    @property
    def balance(self) -> tuple[float, float, float]:
        """Red against blue, by means and by standard deviations, and green against both, as logarithms.

        The first two change their sign where red and blue are exchanged.
        """
        red, green, blue = (math.log(mean + _GRAY_LEVEL) for mean in self.means)
        spread_red, _, spread_blue = (math.log(std + _GRAY_LEVEL) for std in self.stds)
        return red - blue, spread_red - spread_blue, green - (red + blue) / 2


@dataclass(frozen=True)
class GoodStatistics:
    """What the images of ``fit`` were like apart from their content: ``PBASDetector.good_statistics_``.

    Prediction compares every image with them and warns of those that another camera, light or conversion may have
    made. Values are fractions of the range of a type: 1 is 255 of uint8, 65,535 of uint16 and 1.0 of floats.

    Attributes
    ----------
    n_images : int
    mode : {"color", "gray", "mixed"}
        Images with three equal channels are gray.
    kinds : tuple of str
        Types of the pixels: "uint8", "uint16" and "float".
    bit_depth : int or None
        Bits in use: 8 for uint8; for uint16 as many as the largest value needs, such as 12. None: floats.
    largest : float
        Largest value of all images.
    heights, widths, aspects : (float, float, float)
        Smallest, median and largest; in pixels, and height / width.
    detail : (float, float)
        Smallest and largest share of the network's resolution that the images have: 1, or less for images that are
        enlarged.
    brightness, contrast : (float, float, float, float, float)
        Quantiles over the images, smallest, 5 %, median, 95 % and largest, of the mean of an image and of its standard
        deviation.
    brightness_limits, contrast_limits : (float, float)
        Beyond these prediction warns.
    means : (float, float, float)
        Medians over the images of the means of red, green and blue.
    balance, balance_limits : (float, float, float)
        Medians, and largest usual differences from them, of red against blue, by means and by standard deviations, and
        of green against both, as logarithms: how exchanged channels are found.
    """

    n_images: int
    mode: str
    kinds: tuple[str, ...]
    bit_depth: int | None
    largest: float
    heights: tuple[float, float, float]
    widths: tuple[float, float, float]
    aspects: tuple[float, float, float]
    detail: tuple[float, float]
    brightness: tuple[float, ...]
    contrast: tuple[float, ...]
    brightness_limits: tuple[float, float]
    contrast_limits: tuple[float, float]
    means: tuple[float, ...]
    balance: tuple[float, ...]
    balance_limits: tuple[float, ...]

    @classmethod
    def of(cls, details: Sequence[ViewDetails]) -> Self:
        """Summarize the training images, one or more.

        Parameters
        ----------
        details : sequence of ViewDetails
            With statistics.
        """
        images = [one.statistics for one in details if one.statistics is not None]
        shapes = np.array([one.geometry.input_shape for one in details], dtype=np.float64)
        kinds = tuple(sorted({image.kind for image in images}))
        largest = max(image.largest for image in images)
        colors = {image.color for image in images}
        brightness = np.array([image.brightness for image in images])
        contrast = np.array([image.contrast for image in images])
        balance = np.array([image.balance for image in images])
        detail = [one.geometry.detail for one in details]
        bits = [bits_in_use(image.kind, image.largest) for image in images]
        return cls(
            n_images=len(images),
            mode="mixed" if len(colors) > 1 else "color" if colors == {True} else "gray",
            kinds=kinds,
            bit_depth=None if "float" in kinds else max(bits),
            largest=largest,
            heights=_extent(shapes[:, 0]),
            widths=_extent(shapes[:, 1]),
            aspects=_extent(shapes[:, 0] / shapes[:, 1]),
            detail=(min(detail), max(detail)),
            brightness=_floats(np.quantile(brightness, QUANTILES)),
            contrast=_floats(np.quantile(contrast, QUANTILES)),
            brightness_limits=_limits(brightness, **_BRIGHTNESS),
            contrast_limits=_limits(contrast, **_CONTRAST),
            means=_floats(np.median([image.means for image in images], axis=0)),
            balance=_floats(np.median(balance, axis=0)),
            balance_limits=_floats(np.array([max(0.04, _reach(one, 0.015)) for one in balance.T])),
        )

    def merged(self, other: GoodStatistics) -> GoodStatistics:
        """Return the statistics of the images of both, as well as these tell them.

        Smallest and largest values are exact, quantiles nearly. No limit becomes narrower.
        """
        pair, counts = (self, other), (self.n_images, other.n_images)
        share = other.n_images / sum(counts)
        brightness, contrast = (
            np.concatenate([_values(getattr(one, name), one.n_images) for one in pair])
            for name in ("brightness", "contrast")
        )
        balance = (1 - share) * np.array(self.balance) + share * np.array(other.balance)
        reaches = [np.abs(np.array(one.balance) - balance) + np.array(one.balance_limits) for one in pair]
        bright, contrasts = _limits(brightness, **_BRIGHTNESS), _limits(contrast, **_CONTRAST)
        return GoodStatistics(
            n_images=sum(counts),
            mode=self.mode if self.mode == other.mode else "mixed",
            kinds=tuple(sorted({*self.kinds, *other.kinds})),
            bit_depth=max(self.bit_depth, other.bit_depth) if self.bit_depth and other.bit_depth else None,
            largest=max(self.largest, other.largest),
            **{
                name: _joined(getattr(self, name), getattr(other, name), share)
                for name in ("heights", "widths", "aspects")
            },
            detail=_widest(self.detail, other.detail),
            brightness=_floats(np.quantile(brightness, QUANTILES)),
            contrast=_floats(np.quantile(contrast, QUANTILES)),
            brightness_limits=_widest(bright, self.brightness_limits, other.brightness_limits),
            contrast_limits=_widest(contrasts, self.contrast_limits, other.contrast_limits),
            means=_floats((1 - share) * np.array(self.means) + share * np.array(other.means)),
            balance=_floats(balance),
            balance_limits=_floats(np.maximum(*reaches)),
        )

    @classmethod
    def from_note(cls, note: Any) -> Self | None:
        """Return what :meth:`as_note` wrote, or None if it is something else."""
        if not isinstance(note, dict) or note.keys() != cls.__annotations__.keys():
            return None
        groups = {name: tuple(note[name]) for name in _LENGTHS if _is_group(note[name], _LENGTHS[name])}
        kinds, bits, n_images = note["kinds"], note["bit_depth"], note["n_images"]
        sound = (
            len(groups) == len(_LENGTHS)
            and isinstance(kinds, list)
            and bool(kinds)
            and all(isinstance(kind, str) and kind in LARGEST for kind in kinds)
            and (bits is None or (type(bits) is int and 1 <= bits <= 16))
            and (type(n_images) is int and n_images > 0)
            and type(note["largest"]) is float
            and note["mode"] in ("color", "gray", "mixed")
        )
        return cls(**{**note, **groups, "kinds": tuple(kinds)}) if sound else None

    def as_note(self) -> dict[str, Any]:
        """Return the values as JSON can hold them."""
        groups = {name: [float(value) for value in getattr(self, name)] for name in _LENGTHS}
        return {**asdict(self), **groups, "kinds": list(self.kinds)}


_BRIGHTNESS = {"usual_spread": 0.03, "floor": 0.08, "beyond": 0.04}
_CONTRAST = {"usual_spread": 0.1, "floor": 0.6, "beyond": 0.1}  # defects change it more
_LENGTHS = {"heights": 3, "widths": 3, "aspects": 3, "detail": 2, "brightness": 5, "contrast": 5}
_LENGTHS |= {"brightness_limits": 2, "contrast_limits": 2, "means": 3, "balance": 3, "balance_limits": 3}


def _is_group(values: Any, length: int) -> bool:
    return isinstance(values, list) and len(values) == length and all(type(value) is float for value in values)


def bits_in_use(kind: str, largest: float) -> int:
    """Return the number of bits that the largest value needs; 8 for uint8."""
    return 8 if kind != "uint16" else max(1, round(largest * 65535).bit_length())


def value_in_range(kind: str, largest: float) -> str:
    """Return a value with the largest possible one, such as "4,095 of 65,535"."""
    return f"{largest:.2g} of 1" if kind == "float" else f"{round(largest * LARGEST[kind]):,} of {LARGEST[kind]:,}"


def small_range(kind: str, largest: float) -> tuple[int, str] | None:
    """Return the factor between the range in use and a type's, and what to do, where its cause is likely known.

    Parameters
    ----------
    kind : {"uint8", "uint16", "float"}
    largest : float
        Largest value in use, as a fraction of the range.
    """
    if largest <= 0:
        return None
    if kind == "uint16":
        for bits in (8, 10, 12, 14):
            if round(largest * 65535) < 2**bits:
                return 2 ** (16 - bits), f"{bits}-bit data in 16 bits? multiply by {2 ** (16 - bits)}"
    elif kind == "float":
        if largest <= 1.001 / 255:
            return 255, "divided by 255 twice? divide once"
        for bits in (10, 12, 14):
            if largest * 65535 < 2**bits:
                return 2 ** (16 - bits), f"{bits}-bit data divided by 65,535? divide by {2**bits - 1:,}"
    elif largest <= 1.001 / 255:
        return 255, "values of 0 and 1? multiply by 255"
    return None


def warn_of_small_range(good: GoodStatistics, stacklevel: int = 2) -> None:
    """Warn if the training images use less than a tenth of the range of their type."""
    if good.largest >= _SMALL_RANGE:
        return
    kind = good.kinds[0]  # of several, the one with most values
    known = small_range(kind, good.largest)
    if good.largest <= 0:
        advice = "all pixels are 0: check how the images are read"
    elif known is not None:
        advice = f"{known[1]}, here and in prediction"
    else:
        advice = (
            "light the scene better or expose longer, or multiply the images by up to "
            f"{math.floor(1 / good.largest)}, here and in prediction"
        )
    warnings.warn(
        f"the {good.n_images} training images use less than a tenth of the range of their values, so the network sees "
        f"little: the largest value is {value_in_range(kind, good.largest)}. {advice[0].upper()}{advice[1:]}",
        UserWarning,
        stacklevel=stacklevel,
    )


@lru_cache(maxsize=64)
def _places(n_pixels: int) -> NDArray[np.intp]:
    """Return which pixels of an image are measured: one of each equal part of it, or all."""
    n = min(n_pixels, _N_PIXELS)
    edges = np.arange(n + 1) * n_pixels // n
    within = np.random.default_rng(0).random(n)  # a grid could follow a pattern of the surface
    places = edges[:-1] + (within * np.diff(edges)).astype(np.intp)
    places.setflags(write=False)
    return places


def _limits(values: Floats, *, usual_spread: float, floor: float, beyond: float) -> tuple[float, float]:
    """Return what new images of the same product and camera rarely exceed.

    Compared as logarithms, since light and exposure multiply. The limits are beyond all training images, and as far
    from their median as their spread makes rare, but never within ``floor``.
    """
    logarithms = np.log(values + _GRAY_LEVEL)
    middle, reach = np.median(logarithms), max(floor, _reach(logarithms, usual_spread))
    low = min(middle - reach, logarithms.min() - beyond)
    high = max(middle + reach, logarithms.max() + beyond)
    return max(0.0, float(np.exp(low)) - _GRAY_LEVEL), float(np.exp(high)) - _GRAY_LEVEL


def _reach(logarithms: Floats, usual_spread: float) -> float:
    """Return the distance from the median that a new image rarely exceeds.

    Few images say little of the spread: the usual one counts as some images, and Student's t widens the result.
    """
    from scipy.stats import t as student  # prediction does without

    n = len(logarithms)
    degrees = n - 1 + _PRIOR_WEIGHT
    deviations = float(np.square(logarithms - logarithms.mean()).sum())
    variance = (_PRIOR_WEIGHT * usual_spread**2 + deviations) / degrees
    return math.sqrt(variance * (1 + 1 / n)) * float(student.ppf(1 - _RARE, degrees))


def _values(quantiles: Sequence[float], n: int) -> Floats:
    """Return n values with these :data:`QUANTILES`: exactly for up to three, otherwise between them on lines."""
    return np.interp(np.linspace(0, 1, n) if n > 1 else np.array([0.5]), QUANTILES, quantiles)


def _joined(first: Sequence[float], second: Sequence[float], share: float) -> tuple[float, float, float]:
    """Return smallest, median and largest of two sets of values; ``share``: of the second."""
    return min(first[0], second[0]), (1 - share) * first[1] + share * second[1], max(first[2], second[2])


def _widest(*ranges: Sequence[float]) -> tuple[float, float]:
    return min(low for low, _ in ranges), max(high for _, high in ranges)


def _extent(values: Floats) -> tuple[float, float, float]:
    return float(values.min()), float(np.median(values)), float(values.max())


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
