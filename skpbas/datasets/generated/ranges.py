"""Ranges of parameters: wide ones describe all products of a kind, narrow ones a single product.

A "look" is a frozen dataclass of such ranges. The functions that draw something take one.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Range = tuple[float, float]  # any number between the two
Choices = tuple[int, ...]  # one of these integers
Look = TypeVar("Look", bound="DataclassInstance")


@dataclass(frozen=True)
class Color:
    """Range of colors: hue, saturation and value, each in [0, 1]."""

    hue: Range = (0.0, 1.0)
    saturation: Range = (0.1, 0.7)
    value: Range = (0.2, 0.85)


def gray(low: float, high: float) -> Color:
    """Return a range of almost neutral colors with values from `low` to `high`."""
    return Color((0.0, 1.0), (0.0, 0.06), (low, high))


def pick(rng: np.random.Generator, interval: Range) -> float:
    """Draw a number from an interval, uniformly."""
    return float(rng.uniform(*interval))


def choose(rng: np.random.Generator, options: Choices) -> int:
    """Draw one of the given integers; repeated ones are more likely."""
    return int(options[rng.integers(len(options))])


def pick_color(rng: np.random.Generator, color: Color) -> NDArray[np.float32]:
    """Draw a color, (3,): red, green and blue in [0, 1]."""
    hsv = (pick(rng, color.hue) % 1.0, pick(rng, color.saturation), pick(rng, color.value))
    return np.asarray(colorsys.hsv_to_rgb(*hsv), dtype=np.float32)


def narrow(rng: np.random.Generator, look: Look, spread: float = 0.03) -> Look:
    """Choose one product out of a range of products.

    Parameters
    ----------
    rng : numpy.random.Generator
        Generator to draw from.
    look : dataclass instance
        Its fields are intervals (two floats), choices (integers) or other looks. Fields of other types
        are kept.
    spread : float, default=0.03
        Variation that remains on either side of the chosen value, as a fraction of the interval's width.

    Returns
    -------
    dataclass instance
        Instance of the same class. Each interval is narrowed to the neighborhood of a drawn value, and
        only one integer is left of each choice.

    Examples
    --------
    >>> import numpy as np
    >>> from skpbas.datasets.generated.ranges import Color, narrow
    >>> wide = Color(value=(0.2, 0.8))
    >>> low, high = narrow(np.random.default_rng(0), wide, spread=0.1).value
    >>> bool(0.2 <= low < high <= 0.8 and high - low < 0.121)
    True
    """
    return replace(look, **{f.name: _narrowed(rng, getattr(look, f.name), spread) for f in fields(look)})


def _narrowed(rng: np.random.Generator, value: Any, spread: float) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return narrow(rng, value, spread)
    if isinstance(value, tuple) and isinstance(value[0], int):
        return (choose(rng, value),)
    if isinstance(value, tuple):
        low, high = value
        middle, slack = rng.uniform(low, high), spread * (high - low)
        return (max(low, middle - slack), min(high, middle + slack))
    return value
