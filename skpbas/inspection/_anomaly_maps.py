"""Images, their anomaly maps, and where these are above the threshold."""

from __future__ import annotations

import math
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from skpbas._decisions.deciding import check_min_area
from skpbas._decisions.regions import Region, regions_of
from skpbas._inputs.decoding import decode, item_name, pixels_in_range, unmasked
from skpbas._inputs.geometry import Geometry
from skpbas._inputs.images import check_images
from skpbas._inputs.mask_reader import is_missing, mask_pixels
from skpbas.errors import InvalidTargetError
from skpbas.inspection._plotting import (
    MARKED,
    NEUTRAL,
    as_list,
    check_choice,
    halo,
    ink,
    map_colors,
    map_value,
    place_of,
    pyplot,
)
from skpbas.scorers import detector_and_images

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure

_KINDS = {"both": ("image", "map"), "map": ("map",), "overlay": ("overlay",)}
_BOX, _CONTOUR = "#ffd23f", "white"
_PANEL, _BAR = 2.6, 0.15  # inches: width of a panel and of the color bar
_DASHES = (0, (2.5, 1.2))
_LABELED = 5  # boxes of an image that have their size beside them
_ROOM = 0.15  # share of an image's height that a label needs beyond a box
_LONGEST = 26  # characters of a name


class AnomalyMapDisplay:
    """Images beside their anomaly maps, with the threshold's contour, regions and, if known, the true defects.

    All pictures of a detector have one color scale, which depends on its ``map_threshold_`` alone: the threshold is the
    color in the middle, so good parts stay dark, and the same color is the same value in every picture. Create it with
    :meth:`from_estimator` or :meth:`from_predictions`.

    Parameters
    ----------
    images : sequence of images
        As for :class:`~skpbas.PBASDetector`.
    anomaly_maps : sequence of ndarray of shape (h, w)
        In [0, 1], higher is more anomalous. A map shows the whole image; one of another size is stretched to it. NaN
        where the image was not inspected.
    map_threshold : float
        Above it a pixel is anomalous; in [0, 1].
    masks : sequence of masks or None, default=None
        True defects, each at the size of its image: see :func:`skpbas.masks.read_mask`. None for an image without.
    regions : sequence of list of Region or None, default=None
        In pixels of the images.
    titles : sequence of str or None, default=None

    Attributes
    ----------
    figure_ : Figure
    ax_ : ndarray of Axes, of shape (n_images, n_panels)
    colorbar_ : Colorbar

    Examples
    --------
    >>> import numpy as np
    >>> from skpbas.inspection import AnomalyMapDisplay
    >>> anomaly_map = np.linspace(0, 1, 64 * 96).reshape(64, 96)
    >>> image = np.uint8(255 * anomaly_map)
    >>> display = AnomalyMapDisplay.from_predictions([image], [anomaly_map], map_threshold=0.75)
    >>> display.ax_.shape
    (1, 2)
    >>> float(display.colorbar_.norm(0.75))
    0.5
    """

    figure_: Figure
    ax_: NDArray[Any]
    colorbar_: Colorbar

    def __init__(
        self,
        images: Any,
        anomaly_maps: Any,
        map_threshold: float,
        *,
        masks: Any = None,
        regions: Any = None,
        titles: Any = None,
    ) -> None:
        self.images, self.anomaly_maps, self.map_threshold = images, anomaly_maps, map_threshold
        self.masks, self.regions, self.titles = masks, regions, titles

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        masks: Any = None,
        *,
        names: Any = None,
        min_area: int = 1,
        kind: str = "both",
        n_columns: int = 1,
        ax: Any = None,
    ) -> Self:
        """Inspect images, and draw them and what a detector finds.

        Parameters
        ----------
        estimator : fitted detector
            Or a pipeline that ends in one, or an :class:`~skpbas.runtime.OnnxDetector`. Titles hold verdicts and
            p-values.
        X : array or sequence of images
            Those to draw: choose a few.
        masks : sequence of masks or None, default=None
            True defects, each at the size of its image; None for an image without.
        names : sequence of str, default=None
            Titles; None: names of files, or indices.
        min_area : int, default=1
            Smallest area of a region, in pixels of the image.
        kind : {"both", "map", "overlay"}, default="both"
            "both": image and map side by side; "overlay": the map's colors over the image, more transparent where it is
            low.
        n_columns : int, default=1
            Images in a row.
        ax : Axes, or array of n_images x n_panels Axes, default=None
            None: a new figure. With several panels a single Axes is divided.

        Returns
        -------
        AnomalyMapDisplay
        """
        pyplot(cls.__name__)
        check_min_area(min_area)
        detector, X = detector_and_images(estimator, X)
        items = check_images(X)
        names = (
            [_name(item, i) for i, item in enumerate(items)] if names is None else as_list(names, len(items), "names")
        )
        maps = list(detector.anomaly_map(items, size="input"))
        stream = detector.score_stream if hasattr(detector, "score_stream") else detector.iter_results
        results = list(stream(items, maps=False))
        titles = [
            f"{name}\n{result.verdict}, p = {result.p_value:.2g}" for name, result in zip(names, results, strict=True)
        ]
        threshold = float(detector.map_threshold_)
        regions = [
            regions_of(anomaly_map, threshold, min_area=int(min_area), at_least_one=result.label == -1)
            for anomaly_map, result in zip(maps, results, strict=True)
        ]
        display = cls(items, maps, threshold, masks=masks, regions=regions, titles=titles)
        return display.plot(kind=kind, n_columns=n_columns, ax=ax)

    @classmethod
    def from_predictions(
        cls,
        images: Any,
        anomaly_maps: Any,
        *,
        map_threshold: float,
        masks: Any = None,
        names: Any = None,
        min_area: int = 1,
        kind: str = "both",
        n_columns: int = 1,
        ax: Any = None,
    ) -> Self:
        """Draw images and their anomaly maps.

        Parameters
        ----------
        images : array or sequence of images
        anomaly_maps : array of shape (n, h, w), or sequence of arrays
            Each shows the whole image, and is stretched to it if its size differs.
        map_threshold : float
            In [0, 1].
        masks : sequence of masks or None, default=None
        names : sequence of str, default=None
        min_area : int, default=1
        kind : {"both", "map", "overlay"}, default="both"
        n_columns : int, default=1
        ax : Axes or array of Axes, default=None
            As for :meth:`from_estimator`.

        Returns
        -------
        AnomalyMapDisplay
        """
        pyplot(cls.__name__)
        check_min_area(min_area)
        items = check_images(images)
        names = (
            [_name(item, i) for i, item in enumerate(items)] if names is None else as_list(names, len(items), "names")
        )
        maps = as_list(anomaly_maps, len(items), "anomaly_maps")
        maps = [
            _at_size(anomaly_map, _pixels(item, i).shape[:2], f"anomaly_maps[{i}]")
            for i, (item, anomaly_map) in enumerate(zip(items, maps, strict=True))
        ]
        threshold = _checked_threshold(map_threshold)
        regions = [regions_of(anomaly_map, threshold, min_area=int(min_area)) for anomaly_map in maps]
        display = cls(items, maps, threshold, masks=masks, regions=regions, titles=names)
        return display.plot(kind=kind, n_columns=n_columns, ax=ax)

    def plot(self, *, kind: str = "both", n_columns: int = 1, ax: Any = None) -> Self:
        """Draw.

        Parameters
        ----------
        kind : {"both", "map", "overlay"}, default="both"
        n_columns : int, default=1
        ax : Axes or array of Axes, default=None
            As for :meth:`from_estimator`.

        Returns
        -------
        AnomalyMapDisplay
            The display itself.

        Raises
        ------
        InvalidTargetError
            A mask that does not have the size of its image.
        ValueError
            Another number of maps, masks or axes than of images or panels; a threshold outside [0, 1].
        """
        check_choice(kind, "kind", tuple(_KINDS))
        panels, n = _KINDS[kind], len(self.images)
        _checked_threshold(self.map_threshold)
        pixels = [_pixels(item, i) for i, item in enumerate(self.images)]
        maps, masks, regions, titles = (
            as_list(getattr(self, name), n, name) for name in ("anomaly_maps", "masks", "regions", "titles")
        )
        maps = [
            _at_size(m, p.shape[:2], f"anomaly_maps[{i}]") for i, (m, p) in enumerate(zip(maps, pixels, strict=True))
        ]
        masks = [_checked_mask(m, p.shape[:2], i) for i, (m, p) in enumerate(zip(masks, pixels, strict=True))]
        self.ax_ = _axes(ax, [p.shape[:2] for p in pixels], len(panels), n_columns)
        self.figure_ = self.ax_[0, 0].figure
        drawn: ScalarMappable
        for row, image, anomaly_map, mask, found, title in zip(
            self.ax_, pixels, maps, masks, regions, titles, strict=True
        ):
            for axes, panel in zip(row, panels, strict=True):
                axes.set_anchor({"image": "E", "map": "W"}[panel] if len(panels) == 2 else "C")  # side by side
                drawn = self._draw_panel(axes, panel, image, anomaly_map)
                self._draw_outlines(axes, anomaly_map, mask)
            for region in reversed(found or ()):
                _draw_box(row[0], region, image.shape[:2], labeled=region in found[:_LABELED])
            row[0].set_title(title or "", loc="left", fontsize="medium")
        self._draw_legend(drawn, maps, masks, regions, own=ax is None)
        return self

    def _draw_panel(self, ax: Axes, panel: str, image: NDArray[Any], anomaly_map: NDArray[Any]) -> ScalarMappable:
        from matplotlib.cm import ScalarMappable

        colormap, norm = map_colors(self.map_threshold)
        ax.set(xticks=[], yticks=[])
        if panel != "map":
            shown = image[..., 0] if image.shape[2] == 1 else image
            ax.imshow(shown, cmap="gray", vmin=0, vmax=255 if image.dtype == np.uint8 else 1)
        if panel != "image":
            scaled = np.clip(np.ma.filled(norm(np.nan_to_num(anomaly_map)), 0), 0, 1)
            opacity = np.where(np.isnan(anomaly_map), 0.9, 0.75 * scaled) if panel == "overlay" else None
            ax.imshow(np.ma.masked_invalid(anomaly_map), cmap=colormap, norm=norm, alpha=opacity)
        return ScalarMappable(norm, colormap)

    def _draw_outlines(self, ax: Axes, anomaly_map: NDArray[Any], mask: NDArray[np.bool_] | None) -> None:
        if mask is not None and mask.any():
            _draw_contour(ax, np.pad(mask.astype(float), 1), 0.5, MARKED, "dashed", offset=-1)
        _draw_contour(ax, anomaly_map, self.map_threshold, _CONTOUR, "solid")

    def _draw_legend(self, drawn: ScalarMappable, maps: Any, masks: Any, regions: Any, *, own: bool) -> None:
        from matplotlib.lines import Line2D
        from matplotlib.patches import Patch

        low, high = drawn.norm.vmin, drawn.norm.vmax
        first = self.ax_[0, 0]
        length = max(0.8 * self.figure_.get_figheight(), 1.0)
        self.colorbar_ = self.figure_.colorbar(
            drawn,
            ax=list(self.ax_.flat),
            extend="both",
            label="anomaly map",
            aspect=length / _BAR,
            extendfrac=_BAR / length,
            pad=0.02,
        )
        middle = drawn.norm.vcenter
        self.colorbar_.set_ticks([low, middle, high], labels=[map_value(v) for v in (low, self.map_threshold, high)])
        self.colorbar_.ax.axhline(middle, color=_CONTOUR, linewidth=1.5, path_effects=halo(3))
        line = {"path_effects": halo(2.5), "linewidth": 1.3}
        handles: list[Any] = [
            Line2D([], [], color=_CONTOUR, label=f"threshold {map_value(self.map_threshold)}", **line)
        ]
        if any(found for found in regions):
            handles.append(Patch(edgecolor=_BOX, facecolor="none", label="region", path_effects=halo(2.5)))
        if any(mask is not None and mask.any() for mask in masks):
            handles.append(Line2D([], [], color=MARKED, linestyle=_DASHES, label="true defect", **line))
        if any(np.isnan(anomaly_map).any() for anomaly_map in maps):
            handles.append(Patch(facecolor=NEUTRAL, label="not inspected"))
        options = {"fontsize": "small", "frameon": False, "handlelength": 1.6, "labelcolor": ink(first)}
        if own:
            self.figure_.legend(
                handles=handles, loc="outside lower left", ncols=2 if self.figure_.get_figwidth() < 5 else 4, **options
            )
        else:
            self.ax_[-1, 0].legend(
                handles=handles, loc="upper left", bbox_to_anchor=(0, 0), borderaxespad=0.2, **options
            )


def _draw_contour(ax: Axes, values: NDArray[Any], level: float, color: str, style: str, *, offset: int = 0) -> None:
    """Draw where values cross a level, if they do; ``offset``: coordinate of the first row and column."""
    rows, columns = (np.flatnonzero((values > level).any(axis)) for axis in (1, 0))
    if not len(rows):
        return
    inside = tuple(slice(max(found[0] - 1, 0), found[-1] + 2) for found in (rows, columns))  # a part is traced faster
    part = np.ma.masked_invalid(values[inside])
    if part.min() > level or min(part.shape) < 2:
        return
    y, x = (np.arange(*s.indices(side)) + offset for s, side in zip(inside, values.shape, strict=True))
    limits = ax.get_xlim(), ax.get_ylim()
    lines = ax.contour(x, y, part, [level], colors=color, linewidths=1.3)
    lines.set(path_effects=halo(2.5))
    if style == "dashed":
        lines.set_linestyle(_DASHES)
    ax.set(xlim=limits[0], ylim=limits[1])


def _draw_box(ax: Axes, region: Region, shape: tuple[int, int], *, labeled: bool) -> None:
    from matplotlib.patches import Rectangle

    top, left, height, width = region.bbox
    corner = left - 0.5, top - 0.5
    ax.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=_BOX, linewidth=1.2, path_effects=halo(2.5)))
    if not labeled:
        return
    right = left + width / 2 > shape[1] / 2
    bottom, side = top + height - 0.5, left + width - 0.5 if right else left - 0.5
    if top > _ROOM * shape[0]:
        edge, below = top - 0.5, False
    else:
        edge, below = bottom if bottom < (1 - _ROOM) * shape[0] else top - 0.5, True
    ax.annotate(
        f"{width} × {height} px",
        (side, edge),
        xytext=(-2 if right else 2, -2 if below else 2),
        textcoords="offset points",
        ha="right" if right else "left",
        va="top" if below else "bottom",
        color=_BOX,
        fontsize="x-small",
        path_effects=halo(2),
        clip_on=True,
    )


def _axes(ax: Any, shapes: list[tuple[int, int]], n_panels: int, n_columns: int) -> NDArray[Any]:
    """Return the axes (n_images, n_panels) of the caller, or of a new figure."""
    plt, n = pyplot("AnomalyMapDisplay"), len(shapes)
    if not (isinstance(n_columns, int) and n_columns >= 1):
        raise ValueError(f"n_columns={n_columns!r}: expected a whole number of images in a row, 1 or more")
    n_columns = min(n_columns, n)
    given = None if ax is None else np.array(ax, dtype=object).ravel()
    if given is not None and len(given) != 1:
        if len(given) != n * n_panels:
            raise ValueError(f"ax holds {len(given)} axes: expected one, or {n} images x {n_panels} panels")
        return given.reshape(n, n_panels)
    if given is not None and n * n_panels == 1:
        return given.reshape(1, 1)
    n_rows = math.ceil(n / n_columns)
    tallest = [
        max(height / width for height, width in shapes[row * n_columns : (row + 1) * n_columns])
        for row in range(n_rows)
    ]
    if given is None:
        width = _PANEL * n_panels * n_columns + 0.9
        figure = plt.figure(figsize=(width, sum(_PANEL * ratio + 0.5 for ratio in tallest) + 0.4), layout="constrained")
        grid = figure.add_gridspec(n_rows, n_columns * n_panels, height_ratios=tallest)
    else:
        figure, place = given[0].figure, place_of(given[0])
        grid = place.subgridspec(n_rows, n_columns * n_panels, height_ratios=tallest)
    axes = [
        figure.add_subplot(grid[index // n_columns, index % n_columns * n_panels + panel])
        for index in range(n)
        for panel in range(n_panels)
    ]
    return np.array(axes, dtype=object).reshape(n, n_panels)


def _name(item: Any, index: int) -> str:
    item = unmasked(item)
    if not isinstance(item, (str, PathLike)):
        return f"image {index}"
    name = "/".join(Path(item).parts[-2:])
    return name if len(name) <= _LONGEST else f"…{name[1 - _LONGEST :]}"


def _pixels(item: Any, index: int) -> NDArray[Any]:
    """Return the pixels (H, W, 1 or 3) of an image, uint8 or floats in [0, 1]."""
    return pixels_in_range(decode(item, item_name(item, index, "images")).pixels)


def _at_size(anomaly_map: Any, shape: tuple[int, ...], name: str) -> NDArray[np.float32]:
    values = np.asarray(anomaly_map, dtype=np.float32)
    if values.ndim != 2 or 0 in values.shape:
        raise InvalidTargetError(f"{name} has shape {values.shape}; expected (height, width)")
    height, width = shape
    return (
        values
        if values.shape == shape
        else Geometry.of((height, width), values.shape, "stretch").array_to_input(values)
    )


def _checked_mask(mask: Any, shape: tuple[int, ...], index: int) -> NDArray[np.bool_] | None:
    if is_missing(mask):
        return None
    defective = mask_pixels(mask, f"masks[{index}]").defective
    if defective.shape != shape:
        raise InvalidTargetError(
            f"masks[{index}] is {defective.shape[0]} x {defective.shape[1]} pixels and its image {shape[0]} x "
            f"{shape[1]} (height x width): pass masks at the size of their images"
        )
    return defective


def _checked_threshold(threshold: Any) -> float:
    if not 0 <= threshold <= 1:
        raise ValueError(f"map_threshold={threshold!r}: expected a number in [0, 1], as anomaly maps have")
    return float(threshold)
