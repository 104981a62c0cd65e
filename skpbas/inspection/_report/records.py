"""One record for each image of a report, from one pass over the images in memory that grows with the pictures only."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas._decisions.judging import UNSURE_RATE, Judge
from skpbas._decisions.regions import regions_of
from skpbas._features.progress import progress_bar
from skpbas._features.results import Result
from skpbas._inputs.comparison import Comparison
from skpbas._inputs.decoding import decode, item_name, pixels_in_range, unmasked
from skpbas._inputs.formats import state_of
from skpbas._inputs.geometry import Geometry
from skpbas._inputs.image_statistics import GoodStatistics, ImageStatistics
from skpbas._inputs.images import ViewDetails
from skpbas._inputs.mask_reader import resize_of, with_maps
from skpbas.errors import InvalidImageError
from skpbas.inspection._report.outlines import Curve, as_path, outlines
from skpbas.inspection._report.pictures import heat, photo, photo_bytes
from skpbas.inspection._report.truth import Truth

_MOST_REGIONS = 20  # of an image that are listed, the most anomalous first


@dataclass(frozen=True, slots=True)
class Record:
    """An image that was inspected.

    Attributes
    ----------
    index : int
    name : str
    margin, p_value : float
    verdict : str
    n_regions : int
    regions : list of dict
        "box" (left, top, width, height), "area" and "score" of up to 20 of them, in pixels of the image.
    defective : bool or None
        The truth; None: unknown.
    picture : dict
        What its drawing needs, see :func:`_picture`.
    """

    index: int
    name: str
    margin: float
    p_value: float
    verdict: str
    n_regions: int
    regions: list[dict[str, Any]]
    defective: bool | None
    picture: dict[str, Any]


@dataclass
class Inspected:
    """All that a report says about images and detector.

    Attributes
    ----------
    records : list of Record
        Most anomalous first.
    unreadable : list of (str, str)
        Name of each image that could not be read, and why.
    offset, map_threshold : float
    unsure_margin : float or None
        Margins from 0 to this are unsure; None: no images are.
    training_margins : ndarray of shape (n,) or None
        Margins of the training images as if they were new.
    good : GoodStatistics or None
        What the training images were like.
    seen : GoodStatistics or None
        What these images are like.
    differences : list of str
        How they differ, as sentences.
    """

    offset: float
    map_threshold: float
    unsure_margin: float | None
    training_margins: NDArray[np.float64] | None
    good: GoodStatistics | None
    records: list[Record] = field(default_factory=list)
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    seen: GoodStatistics | None = None
    differences: list[str] = field(default_factory=list)

    @property
    def known(self) -> bool:
        """Whether the truth is known."""
        return any(record.defective is not None for record in self.records)


def inspect(
    detector: Any,
    items: Any,
    truth: Truth,
    *,
    unsure_rate: float | None,
    picture_size: int,
    share: int,
    show_progress: bool,
) -> Inspected:
    """Score images one by one.

    Parameters
    ----------
    detector : fitted detector
    items : array, sequence or iterable of images
        Checked.
    truth : Truth
    unsure_rate : float or None
        None: the detector's default.
    picture_size : int
        Longer side of a photo.
    share : int
        Bytes of the page for the pictures of an image.
    show_progress : bool
    """
    maker, judge = with_maps(detector), _judge_of(detector, unsure_rate)
    good: GoodStatistics | None = getattr(maker, "good_statistics_", None)
    found = Inspected(
        offset=float(detector.offset_),
        map_threshold=float(detector.map_threshold_),
        unsure_margin=None if judge is None else max(0.0, judge.unsure_offset - judge.offset),
        training_margins=None if judge is None else judge.normal_scores - judge.offset,
        good=good,
    )
    resize = how_resized(detector)
    comparison = None if good is None else Comparison(good)
    statistics: list[ViewDetails] = []
    states = _states(items)
    total = len(items) if hasattr(items, "__len__") else None
    with progress_bar(total or 0, "inspecting", "image", show_progress) as bar:
        for item, result in _results(detector, items, unsure_rate):
            bar.update()
            name = _name(item, result)
            if result.error is not None:
                found.unreadable.append((name, _reason(result.error, item, result.index)))
                continue
            try:
                record, details = _recorded(result, item, name, found, truth, resize, picture_size, share)
                _check_unchanged(item, states, result.index)
            except InvalidImageError as error:  # changed or removed since it was scored
                found.unreadable.append((name, _reason(str(error), item, result.index)))
                continue
            found.records.append(record)
            if comparison is not None:
                comparison.note(result.index, name, details)
                statistics.append(details)
    if judge is None:
        unsure = [record.margin for record in found.records if record.verdict == "unsure"]
        found.unsure_margin = max(unsure, default=None)
    if comparison is not None and statistics:
        found.seen = GoodStatistics.of(statistics)
        found.differences = list(comparison.texts(len(statistics)).values())
    found.records.sort(key=lambda record: record.margin)
    return found


def _states(items: Any) -> Any:
    """Return what tells whether files are written again meanwhile: of a sequence, whose files are read ahead."""
    if not (hasattr(items, "__getitem__") and hasattr(items, "__len__")):
        return None
    return [state_of(item) if isinstance(item, (str, PathLike)) else None for item in map(unmasked, items)]


def _check_unchanged(item: Any, states: Any, index: int) -> None:
    """Refuse a picture that may show another part than the one that was scored."""
    item = unmasked(item)
    if states is not None and states[index] is not None and state_of(item) != states[index]:
        raise InvalidImageError(f"{item_name(item, index, 'images')}: written again while the report was made")


def how_resized(detector: Any) -> str:
    """Return how images are brought to the size of the anomaly maps."""
    return str(detector.metadata_["resize"]) if hasattr(detector, "metadata_") else resize_of(detector)


def _judge_of(detector: Any, unsure_rate: float | None) -> Judge | None:
    """Return what decides about scores, if the detector decides by a threshold on its own scores."""
    judge = getattr(detector, "_judge", None)
    if isinstance(judge, Judge):
        return judge
    if hasattr(detector, "detector_") or judge is None:  # a wrapper decides by several detectors or p-values
        return None
    made = judge(UNSURE_RATE if unsure_rate is None else unsure_rate)
    return made if isinstance(made, Judge) else None


def _results(detector: Any, items: Any, unsure_rate: float | None) -> Iterator[tuple[Any, Result]]:
    """Yield each image with its result."""
    stream = detector.score_stream if hasattr(detector, "score_stream") else detector.iter_results
    options = {"on_error": "skip", "maps": True} | ({} if unsure_rate is None else {"unsure_rate": unsure_rate})
    if hasattr(items, "__getitem__") and hasattr(items, "__len__"):
        for result in stream(items, **options):
            yield items[result.index], result
        return
    waiting: deque[Any] = deque()

    def noted() -> Iterator[Any]:
        for item in items:
            waiting.append(item)
            yield item

    for result in stream(noted(), **options):
        yield waiting.popleft(), result


def _name(item: Any, result: Result) -> str:
    item = unmasked(item)
    return str(item) if isinstance(item, (str, PathLike)) else result.name


def _reason(error: str, item: Any, index: int) -> str:
    """Return an error without the name of its image, which stands beside it."""
    return error.removeprefix(item_name(item, index, "images")).lstrip(": ")


def _recorded(
    result: Result,
    item: Any,
    name: str,
    found: Inspected,
    truth: Truth,
    resize: str,
    picture_size: int,
    share: int,
) -> tuple[Record, ViewDetails]:
    assert result.score is not None
    assert result.map is not None
    assert result.p_value is not None
    decoded = decode(item, item_name(item, result.index, "images"))
    shape = decoded.pixels.shape[0], decoded.pixels.shape[1]
    geometry = Geometry.of(shape, (result.map.shape[0], result.map.shape[1]), resize)
    regions = []
    if result.label == -1 or (result.map > found.map_threshold).any():
        at_least_one = result.label == -1
        regions = regions_of(geometry.array_to_input(result.map), found.map_threshold, at_least_one=at_least_one)
    gain = 1 / found.good.largest if found.good is not None and 0 < found.good.largest < 0.5 else 1.0
    listed = [
        {
            "box": [region.bbox[1], region.bbox[0], region.bbox[3], region.bbox[2]],
            "area": region.area,
            "score": round(region.score, 3),
        }
        for region in regions[:_MOST_REGIONS]
    ]
    picture = _picture(result.map, geometry, found.map_threshold)
    if truth.outlines is not None:
        picture["truth"] = truth.outlines[result.index]
    taken = len(json.dumps([picture, listed]))
    picture["photo"] = photo(decoded.pixels, picture_size, photo_bytes(share, taken), gain)
    record = Record(
        index=result.index,
        name=name,
        margin=_margin(result, found.offset),
        p_value=result.p_value,
        verdict=str(result.verdict),
        n_regions=len(regions),
        regions=listed,
        defective=None if truth.defective is None else bool(truth.defective[result.index]),
        picture=picture,
    )
    pixels = pixels_in_range(decoded.pixels)
    statistics = ImageStatistics.of(decoded.pixels.dtype, pixels, geometry.view_of_array(pixels).transpose(2, 0, 1))
    return record, ViewDetails(geometry, decoded.transparent, decoded.more_frames, statistics)


def _margin(result: Result, offset: float) -> float:
    """Return the decision function, whose sign is that of the label where the subtraction was rounded elsewhere."""
    assert result.score is not None
    margin = float(result.score) - offset
    if (margin < 0) != (result.label == -1):
        margin = -5e-324 if result.label == -1 else 0.0
    return margin


def _picture(anomaly_map: NDArray[np.float32], geometry: Geometry, threshold: float) -> dict[str, Any]:
    """Return what is drawn over a photo, in pixels of the image: its size, the map's place and colors, its contour."""
    height, width = geometry.input_shape
    scale = np.array(geometry.input_shape) / geometry.resized_shape
    offset = np.array(geometry.offset)

    def place(curve: Curve) -> Curve:
        return (curve + offset) * scale

    top, left = place(np.zeros((1, 2)))[0]
    bottom, right = place(np.array([geometry.view_shape]))[0]
    return {
        "size": [width, height],
        "view": [round(float(value), 2) for value in (left, top, right - left, bottom - top)],
        "heat": heat(anomaly_map, threshold),
        "contour": as_path(outlines(anomaly_map, threshold), place),
    }
