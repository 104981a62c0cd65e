"""The picture of the demo: a row per image, drawn with Pillow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from skpbas._cli.colormap import color_map, color_table, contour, pinned
from skpbas._cli.drawing import CONTOUR, RGB, as_shown, mask_of, overlaid
from skpbas._decisions.regions import regions_of

if TYPE_CHECKING:
    from skpbas import PBASDetector
    from skpbas._cli.demo import DemoData, Predictions

MOST_ROWS = 20
_MOST_LABELED = 8

_SIDE, _LONGEST = 192, 384  # of a tile: of a square of its area, and at most
_GAP, _CAPTION_WIDTH, _HEADER, _ROW = 8, 180, 28, 84  # a row is at least as high as its caption
_BAR = 14
_BACKGROUND, _TEXT_COLOR = (255, 255, 255), (30, 30, 30)


def rows_to_show(
    margins: NDArray[np.float64], names: Sequence[str], labels: NDArray[np.int64] | None, max_rows: int | None = None
) -> list[int]:
    """Select test images for the picture, the most anomalous first.

    Parameters
    ----------
    margins : ndarray of shape (n,)
    names : sequence of str
        Of each image; its defect type, if there are labels.
    labels : ndarray of shape (n,) or None
        +1 normal, -1 anomalous. With labels, one image of each defect type in turn, and one normal image, are shown.
    max_rows : int or None
        Largest number of images; None: 20, or 8 with labels.

    Returns
    -------
    list of int
        Indices of the images.
    """
    most = max_rows or (MOST_ROWS if labels is None else _MOST_LABELED)
    order: list[int] = np.argsort(margins, kind="stable").tolist()
    if labels is None:
        return order[:most]
    queues: dict[str, list[int]] = {}
    for index in np.flatnonzero(labels == -1).tolist():
        queues.setdefault(names[index], []).append(index)
    longest = max(map(len, queues.values()), default=0)
    in_turn = [queue[turn] for turn in range(longest) for queue in queues.values() if turn < len(queue)]
    chosen = {*in_turn[: most - 1], *np.flatnonzero(labels == 1)[:1].tolist()}
    return [index for index in order if index in chosen]


def draw_sheet(
    detector: PBASDetector,
    data: DemoData,
    predictions: Predictions,
    masks: Sequence[NDArray[np.bool_] | None] | None,
    shown: Sequence[int],
) -> Image.Image:
    """Draw one row per image: the image, its mask if there are masks, its anomaly map and an overlay with contours.

    Images have their own aspect ratio. Colors have one scale, on which the threshold is in the middle.
    """
    threshold = float(detector.map_threshold_)
    titles = ["image", *([] if masks is None else ["mask"]), "anomaly map", "overlay"]
    rows = [_tiles(detector, data.test[i], predictions, i, () if masks is None else (masks[i],)) for i in shown]
    width = max(tile.shape[1] for row in rows for tile in row)
    heights = [max(row[0].shape[0], _ROW) for row in rows]
    total = _CAPTION_WIDTH + len(titles) * (width + _GAP)
    sheet = Image.new("RGB", (total, _HEADER + sum(heights) + _GAP * len(rows) + _BAR + 2 * _HEADER), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    lefts = [_CAPTION_WIDTH + column * (width + _GAP) for column in range(len(titles))]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, 6), title, _TEXT_COLOR, font=_font(14))
    top = _HEADER
    for index, row, height in zip(shown, rows, heights, strict=True):
        for left, tile in zip(lefts, row, strict=True):
            sheet.paste(Image.fromarray(tile), (left, top))
        _caption(draw, top, data.names[index], predictions, index)
        top += height + _GAP
    _color_bar(sheet, lefts[0], top + 4, total - _GAP - lefts[0], threshold)
    return sheet


def _tiles(
    detector: PBASDetector, item: Any, predictions: Predictions, index: int, masks: tuple[NDArray[np.bool_] | None, ...]
) -> list[RGB]:
    """Return the pictures of a row, all of one size; one of its mask if there are masks at all."""
    from skpbas._inputs.decoding import decode
    from skpbas._inputs.geometry import Geometry

    threshold = float(detector.map_threshold_)
    pixels = as_shown(decode(item, "image").pixels)
    height, width = shape_of_tile((pixels.shape[0], pixels.shape[1]))
    image = np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.LANCZOS))
    geometry = Geometry.of((height, width), detector.map_shape_, detector._reading.resize)
    at_tile = geometry.array_to_input(predictions.anomaly_maps[index])
    regions = regions_of(at_tile, threshold, at_least_one=predictions.margins[index] < 0)
    colors = color_map(pinned(at_tile, threshold), 0.0, 1.0)
    colors[contour(mask_of(regions, (height, width)), 1)] = CONTOUR
    tiles = [image, colors, overlaid(image, at_tile, threshold, regions)]
    for mask in masks:
        seen = (
            np.zeros((height, width), bool) if mask is None else geometry.array_to_input(mask.astype(np.float32)) > 0.5
        )
        tiles.insert(1, np.repeat(np.uint8(255) * seen[..., None], 3, axis=2))
    return tiles


def shape_of_tile(shape: tuple[int, int]) -> tuple[int, int]:
    """Return the height and width of an image in the picture, in its own aspect ratio."""
    height, width = shape
    scale = min(_SIDE / math.sqrt(height * width), _LONGEST / max(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _caption(draw: ImageDraw.ImageDraw, top: int, name: str, predictions: Predictions, index: int) -> None:
    draw.text((6, top + 2), _shortened(name), _TEXT_COLOR, font=_font(14))
    lines = [
        predictions.verdicts[index],
        f"margin {predictions.margins[index]:.2f}",
        f"p-value {predictions.p_values[index]:.3f}",
    ]
    draw.text((6, top + 24), "\n".join(lines), _TEXT_COLOR, font=_font(12), spacing=4)


def _color_bar(sheet: Image.Image, left: int, top: int, width: int, threshold: float) -> None:
    """Draw the scale of colors, with the values at its ends and the threshold in its middle."""
    colors = np.repeat(color_table()[np.linspace(0, 255, width).round().astype(int)][None], _BAR, axis=0)
    sheet.paste(Image.fromarray(colors), (left, top))
    draw = ImageDraw.Draw(sheet)
    middle = left + width // 2
    draw.line([(middle, top - 3), (middle, top + _BAR + 3)], _TEXT_COLOR, 2)
    labels = [
        (left, "la", f"{threshold / 2:.2f}"),
        (middle, "ma", f"threshold {threshold:.2f}"),
        (left + width, "ra", f"{(1 + threshold) / 2:.2f}"),
    ]
    for x, anchor, text in labels:
        draw.text((x, top + _BAR + 5), text, _TEXT_COLOR, font=_font(12), anchor=anchor)
    draw.text((6, top), "anomaly map", _TEXT_COLOR, font=_font(12))


def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _shortened(name: str) -> str:
    """Return a name that fits beside the pictures; its end is kept, which differs most."""
    font, shown = _font(14), name
    while font.getlength(shown) > _CAPTION_WIDTH - 12 and len(name) > 4:
        name = name[1:]
        shown = f"...{name}"
    return shown
