"""What the displays share: matplotlib on first use, colors, axes, and unwrapping of estimators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from skpbas._cli.colormap import color_table, map_limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap, Normalize

# Okabe and Ito's colors, which color-blind readers can tell apart, in the shades that show on white and on black
GOOD, DEFECTIVE, THIRD, FOURTH, NEUTRAL = "#2f8fd0", "#d55e00", "#009e73", "#e69f00", "#808080"
MARKED = "#41c7ff"  # outlines of masks, beside the warm colors of anomaly maps

_NEAREST = 1e-4  # of the middle of a scale to the ends of [0, 1]
EDGE = 2e-3  # share of an axis beyond 0 and 1, so that curves along the edges are seen whole


def pyplot(user: str) -> Any:
    """Return matplotlib's pyplot; ``user`` is what needs it.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(f'{user} needs matplotlib ({error}): pip install "skpbas[plot]"') from error
    return plt


def axes_or_new(ax: Any, user: str) -> Axes:
    """Return the axes of the caller, or those of a new figure."""
    plt = pyplot(user)
    new: Axes = plt.subplots(layout="constrained")[1] if ax is None else ax
    return new


def ink(ax: Axes) -> Any:
    """Return the color of the labels of an axes: black in a light style, white in a dark one."""
    return ax.xaxis.label.get_color()


def map_colors(map_threshold: float) -> tuple[ListedColormap, Normalize]:
    """Return the colors of anomaly maps in [0, 1], those of the command line's pictures, and their pinned scale.

    The threshold has the color in the middle.
    """
    pyplot("a picture of an anomaly map")
    from matplotlib.colors import ListedColormap, TwoSlopeNorm

    colormap = ListedColormap([tuple(color) for color in color_table() / 255], name="skpbas").with_extremes(bad=NEUTRAL)
    middle = min(max(map_threshold, _NEAREST), 1 - _NEAREST)  # both halves of a scale have a length
    low, high = map_limits(middle)
    return colormap, TwoSlopeNorm(middle, low, high)


def map_value(value: float) -> str:
    """Return a value of an anomaly map with two decimals, or more near 0 and 1.

    Examples
    --------
    >>> from skpbas.inspection._plotting import map_value
    >>> map_value(0.5), map_value(0.9987), map_value(1)
    ('0.50', '0.9987', '1.0000')
    """
    return f"{value:.2f}" if 0.01 <= value <= 0.99 else f"{value:.4f}"


def percent(share: float) -> str:
    """Return a share in percent with three digits at most.

    Examples
    --------
    >>> from skpbas.inspection._plotting import percent
    >>> percent(0.0416666), percent(0.01), percent(1), percent(1e-5)
    ('4.17 %', '1 %', '100 %', '0.001 %')
    """
    return np.format_float_positional(float(f"{100 * share:.3g}"), trim="-") + " %"


def halo(width: float) -> list[Any]:
    """Return path effects that set a line or a text off from any background."""
    from matplotlib.patheffects import withStroke

    return [withStroke(linewidth=width, foreground="black", alpha=0.8)]


def as_list(values: Any, n: int, name: str) -> list[Any]:
    """Return one entry for each of n images; None stands for as many None.

    Raises
    ------
    ValueError
        Another number of entries.
    """
    entries = [None] * n if values is None else list(values)
    if len(entries) != n:
        raise ValueError(f"{name} has {len(entries)} entries for {n} images: pass one for each image")
    return entries


def check_choice(value: Any, name: str, choices: Sequence[str]) -> None:
    """Raise if a parameter has none of the values it may have."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(map(repr, choices))}")


def place_of(ax: Axes) -> Any:
    """Return the place of an axes in its figure's grid, to be divided; the axes itself is hidden.

    Raises
    ------
    ValueError
        The axes is not part of a grid.
    """
    place = ax.get_subplotspec()
    if place is None:
        raise ValueError("ax has no place in a grid that could be divided: pass an axes of plt.subplots")
    ax.set_axis_off()
    return place


def as_percent(axis: Any) -> None:
    """Write the ticks of an axis, which are shares, in percent."""
    from matplotlib.ticker import FuncFormatter

    axis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))


def set_rate_scale(ax: Axes, scale: str, finest: float, largest: float) -> None:
    """Scale the x-axis for false-alarm rates up to ``largest``.

    "symlog" is logarithmic down to ``finest``, and has 0 at its left end.
    """
    from matplotlib.ticker import NullLocator

    if scale == "symlog":
        finest = min(finest, largest / 10)
        ax.set_xscale("symlog", linthresh=finest, linscale=0.3)
        steps = (1, 2, 5) if largest / finest < 300 else (1,)
        ticks = [float(f"{step}e{e}") for e in range(-9, 1) for step in steps]
        ax.set_xticks([0.0, *(tick for tick in ticks if 2 * finest <= tick <= largest)])
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xlim(-finest / 10, largest * 1.05)
    else:
        ax.set_xlim(-EDGE * largest, largest * (1 + EDGE))
    as_percent(ax.xaxis)
    ax.grid(alpha=0.25)


def legend_above(ax: Axes, title: str | None = None, n_columns: int = 1) -> None:
    """Put the legend above the axes, where it hides nothing."""
    if not (title or ax.get_legend_handles_labels()[1]):
        return
    ax.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        borderaxespad=0.2,
        frameon=False,
        fontsize="small",
        title=title,
        title_fontsize="medium",
        alignment="left",
        ncols=n_columns,
    )


def histogram_edges(*samples: Any, n_bins: int = 60) -> Any:
    """Return the edges of bins that several samples share; NaN does not count."""
    values = np.concatenate([np.ravel(sample) for sample in samples])
    values = values[np.isfinite(values)]
    return np.linspace(values.min(), values.max() + 1e-9, n_bins + 1)
