"""Images of prediction compared with those of ``fit``: what another camera, light or conversion changed; no torch."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skpbas._inputs.image_statistics import (
    GoodStatistics,
    ImageStatistics,
    small_range,
    value_in_range,
)

if TYPE_CHECKING:
    from skpbas._inputs.notices import ViewDetails

_NEAR_FACTOR = math.log(1.5)  # how well a factor must explain the brightness
_FACTORS = (4, 16, 64, 255)
_OTHER_DETAIL = 2.0
_FITS_BETTER = 3.0  # times, before channels count as exchanged
_COLORED = 3.0  # limits between good images and the same with red and blue exchanged, to tell them apart

_IN_FIT = "the good images of fit"


@dataclass
class _Found:
    """Images of one difference: how many, and the first of them."""

    count: int
    index: int
    first: str


class Comparison:
    """Compares images with the statistics of ``fit``, from any thread, in memory that does not grow.

    Parameters
    ----------
    good : GoodStatistics
    """

    def __init__(self, good: GoodStatistics) -> None:
        self.good = good
        exchanged = (-good.balance[0], -good.balance[1], good.balance[2])
        self._colored = self._misfit(exchanged) > _COLORED  # else a defect could exchange red and blue
        self._found: dict[str, _Found] = {}
        self._lock = threading.Lock()

    def note(self, index: int, name: str, details: ViewDetails) -> None:
        """Record how an image differs."""
        for kind, how in self._differences(details):
            with self._lock:
                found = self._found.setdefault(kind, _Found(0, index, ""))
                found.count += 1
                if index <= found.index:
                    found.index, found.first = index, f"{name} ({how})"

    def texts(self, n_images: int | None) -> dict[str, str]:
        """Return a warning for each kind of difference recorded since the last call.

        Parameters
        ----------
        n_images : int or None
            All images that were noted; None: more may follow.
        """
        with self._lock:
            found, self._found = self._found, {}
        return {
            kind: self._text(
                kind, how_many(one.count, n_images), one.first, single=n_images is not None and one.count == 1
            )
            for kind, one in found.items()
        }

    def _differences(self, details: ViewDetails) -> list[tuple[str, str]]:
        image = details.statistics
        if image is None:
            return []
        pixels = self._difference_of_pixels(image)
        detail, (fewest, most) = details.geometry.detail, self.good.detail
        if fewest / _OTHER_DETAIL < detail < most * _OTHER_DETAIL:
            return pixels
        height, width = details.geometry.input_shape
        size = f"{height} x {width} pixels; there {self.good.heights[1]:.0f} x {self.good.widths[1]:.0f}"
        return [*pixels, ("less detail" if detail < fewest else "more detail", size)]

    def _difference_of_pixels(self, image: ImageStatistics) -> list[tuple[str, str]]:
        """Return the first of the causes that applies: those further down often follow from it."""
        good, (darkest, brightest) = self.good, self.good.brightness_limits
        bright = f"brightness {image.brightness:.3g}; there {good.brightness[0]:.3g} to {good.brightness[-1]:.3g}"
        if not darkest <= image.brightness <= brightest:
            if (factor := self._too_small(image)) is not None:
                known = small_range(image.kind, image.largest)
                way_out = known[1] if known is not None and known[0] == factor else f"multiply by {factor}"
                return [(f"small {factor} {way_out}", f"the largest value is {image.largest_value}; {bright}")]
            if (factor := self._too_large(image)) is not None:
                return [(f"large {factor}", f"the largest value is {image.largest_value}; {bright}")]
        mode = "color" if image.color else "gray"
        if good.mode not in (mode, "mixed"):
            return [(mode, "three different channels" if image.color else "equal channels")]
        if self._colored and image.color and self._is_swapped(image):
            shown = [f"{100 * value:.0f}" for value in (*image.means, *good.means)]
            return [("swapped", f"red {shown[0]} %, blue {shown[2]} %; there {shown[3]} % and {shown[5]} %")]
        if image.brightness < darkest:
            return [("darker", bright)]
        if image.brightness > brightest:
            return [("brighter", bright)]
        contrasts = f"standard deviation {image.contrast:.3g}; there {good.contrast[0]:.3g} to {good.contrast[-1]:.3g}"
        if image.contrast < good.contrast_limits[0]:
            return [("less contrast", contrasts)]
        if image.contrast > good.contrast_limits[1]:
            return [("more contrast", contrasts)]
        return []

    def _too_small(self, image: ImageStatistics) -> int | None:
        """Return the factor that brings an image to the training images' values within the range of its type."""
        factors = {"uint8": (16, 64, 255), "uint16": (4, 16, 64, 256), "float": (16, 64, 255)}[image.kind]
        factor = _factor(self.good.brightness[2], image.brightness, factors)
        return factor if factor is not None and image.largest * factor <= 1.01 else None

    def _too_large(self, image: ImageStatistics) -> int | None:
        """Return the factor by which the training images have smaller values, if they use a part of the range."""
        factor = _factor(image.brightness, self.good.brightness[2], _FACTORS)
        return factor if factor is not None and self.good.largest * factor <= 1.01 else None

    def _is_swapped(self, image: ImageStatistics) -> bool:
        """Return whether an image's colors fit only with red and blue exchanged."""
        red_blue, spread, green = image.balance
        as_given = self._misfit((red_blue, spread, green))
        exchanged = self._misfit((-red_blue, -spread, green))
        return exchanged <= 1 and as_given > max(1.0, _FITS_BETTER * exchanged)

    def _misfit(self, balance: tuple[float, float, float]) -> float:
        return max(
            abs(value - middle) / limit
            for value, middle, limit in zip(balance, self.good.balance, self.good.balance_limits, strict=True)
        )

    def _text(self, kind: str, some: str, first: str, *, single: bool) -> str:
        are, have, their = ("is", "has", "its") if single else ("are", "have", "their")
        if kind.startswith("small "):
            _, factor, way_out = kind.split(" ", 2)
            return (
                f"the values of {some} are about {factor} times smaller than in {_IN_FIT}, first in {first}: {way_out}"
            )
        if kind.startswith("large "):
            factor = kind.split(" ")[1]
            whole = value_in_range(self.good.kinds[0], self.good.largest)
            return (
                f"the values of {some} are about {factor} times larger than in {_IN_FIT}, first in {first}: the "
                f"largest value in fit was {whole}. Fit on images of the full range, or divide these by {factor}"
            )
        if kind == "swapped":
            return (
                f"the colors of {some} are those of {_IN_FIT} with red and blue exchanged, first in {first}: BGR, "
                "as OpenCV reads files? pass image[..., ::-1]"
            )
        if kind in ("gray", "color"):
            other = "color" if kind == "gray" else "gray"
            return (
                f"{some} {are} {'gray' if kind == 'gray' else 'in color'}, but {_IN_FIT} were "
                f"{'in color' if kind == 'gray' else 'gray'}, first {first}: another camera or conversion? pass "
                f"{other} images, or fit on {kind} ones"
            )
        if kind in ("less detail", "more detail"):
            than = "coarser" if kind == "less detail" else "finer"
            return (
                f"{some} {are} resized to the input of the network as {_IN_FIT} are, but {their} details are "
                f"{than}, first those of {first}: take images of the size in fit, or fit on images of this size"
            )
        causes = {
            "darker": (f"{are} darker", "another exposure or lighting?"),
            "brighter": (f"{are} brighter", "another exposure or lighting?"),
            "less contrast": (f"{have} less contrast", "haze, glare or another exposure?"),
            "more contrast": (f"{have} more contrast", "another lighting or image processing?"),
        }
        what, cause = causes[kind]
        return (
            f"{some} {what} than any of {_IN_FIT}, first {first}: {cause} bring it back, or add good images "
            "taken this way to fit"
        )


def how_many(count: int, n_images: int | None) -> str:
    """Return how many of how many images, or "some images" if more may follow."""
    return "some images" if n_images is None else f"{count} of {n_images} images"


def _factor(larger: float, smaller: float, factors: tuple[int, ...]) -> int | None:
    """Return which of the factors is between two brightnesses, or None."""
    if smaller <= 0 or larger <= 0:
        return None
    found = min(factors, key=lambda factor: abs(math.log(larger / smaller / factor)))
    return found if abs(math.log(larger / smaller / found)) <= _NEAR_FACTOR else None
