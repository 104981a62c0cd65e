"""Detectors of both kinds of files, and what they say of images; one of ONNX needs no torch."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas._cli.console import UsageError, one_line, shown
from skpbas._decisions.regions import Region, regions_of
from skpbas._features.results import Result
from skpbas._inputs.decoding import decode, image_shape
from skpbas._inputs.formats import image_suffixes, state_of
from skpbas._inputs.geometry import Geometry
from skpbas.errors import InvalidImageError

_TRIES = 3  # for an image that is written again while it is inspected


@dataclass(frozen=True)
class Inspection:
    """What a detector says of an image.

    Attributes
    ----------
    path : Path
    label : int or None
        +1 normal, -1 anomalous; this and the following are None if the image cannot be read.
    verdict : str or None
        "normal", "unsure" or "anomalous".
    margin : float or None
        ``decision_function``: below 0 is anomalous.
    p_value : float or None
    regions : list of Region
        In pixels of the image itself.
    anomaly_map : ndarray of shape (H, W) or None
        At model size.
    pixels : ndarray of shape (h, w) or (h, w, 3), or None
        Of the image itself, if they were asked for.
    error : str or None
        Why the image cannot be read.
    """

    path: Path
    label: int | None = None
    verdict: str | None = None
    margin: float | None = None
    p_value: float | None = None
    regions: tuple[Region, ...] = ()
    anomaly_map: NDArray[np.float32] | None = None
    pixels: NDArray[Any] | None = None
    error: str | None = None


@dataclass(frozen=True)
class Inspector:
    """A detector from a file.

    Attributes
    ----------
    path : Path
    detector : PBASDetector or OnnxDetector
    """

    path: Path
    detector: Any

    @classmethod
    def opened(cls, path: Path, device: str = "auto") -> Inspector:
        """Open a file of ``save`` or, if its name ends in ".onnx", of ``to_onnx``.

        Raises
        ------
        UsageError
            There is no such file, or a device was asked for that ONNX does not use.
        FileFormatError
            It is something else, or damaged.
        """
        if not path.is_file():
            raise UsageError(f"{path} is no file: give a detector that skpbas fit or skpbas export wrote")
        if path.suffix.lower() == ".pt2" or path.suffix.lower() in image_suffixes():
            kind = "an image" if path.suffix.lower() != ".pt2" else "a program of torch.export"
            raise UsageError(f"{path}: not a detector, but {kind} by its name: give a .skpbas or .onnx file first")
        if path.suffix.lower() == ".onnx":
            if device not in ("auto", "cpu"):
                raise UsageError(f"--device {device}: {path} computes on the CPU")
            from skpbas.runtime import OnnxDetector

            return cls(path, OnnxDetector(path))
        import skpbas

        return cls(path, skpbas.load(path, device=device))

    @property
    def is_onnx(self) -> bool:
        """Whether it is an exported detector."""
        return not hasattr(self.detector, "score_stream")

    @property
    def threshold(self) -> float:
        """The threshold of anomaly maps."""
        return float(self.detector.map_threshold_)

    @property
    def map_shape(self) -> tuple[int, int]:
        """Height and width of anomaly maps at model size."""
        height, width = self.detector.map_shape_
        return int(height), int(width)

    @property
    def resize(self) -> str:
        """How images are brought to this size."""
        return str(self.detector.metadata_["resize"] if self.is_onnx else self.detector._reading.resize)

    def inspect(
        self,
        images: Iterable[Path],
        *,
        min_area: int = 1,
        unsure_rate: float | None = None,
        with_regions: bool = True,
        with_pixels: bool = False,
    ) -> Iterator[Inspection]:
        """Yield what the detector says of each image, in memory that does not grow; unreadable ones have an error.

        An image that is written again meanwhile is inspected again: all that is said of it is of the same pixels.
        """
        if self.is_onnx and unsure_rate is not None:
            raise UsageError(f"--unsure-rate: {self.path} has that of its export; open the .skpbas file instead")
        rate = {} if unsure_rate is None else {"unsure_rate": unsure_rate}
        stream = partial(self.detector.iter_results if self.is_onnx else self.detector.score_stream, on_error="skip")
        inspected = partial(self._inspection, min_area=min_area if with_regions else None, with_pixels=with_pixels)
        asked: deque[tuple[Path, Any]] = deque()

        def remembered() -> Iterator[Path]:
            for path in images:
                asked.append((path, state_of(path)))
                yield path

        for result in stream(remembered(), **rate):
            path, state = asked.popleft()
            inspection = inspected(result, path)
            for _ in range(_TRIES):
                if state_of(path) == state:
                    break
                state = state_of(path)
                inspection = inspected(next(iter(stream([path], **rate))), path)
            else:
                if state_of(path) != state:
                    inspection = Inspection(path, error=f"{shown(path)} is written again and again while it is read")
            yield inspection

    def _inspection(self, result: Result, path: Path, min_area: int | None, with_pixels: bool) -> Inspection:
        if result.error is not None:
            error = result.error.replace(f"images[{result.index}] ({result.name})", shown(path))
            return Inspection(path, error=one_line(error.replace(str(path), shown(path))))
        try:
            pixels = decode(path, shown(path)).pixels if with_pixels else None
            regions = () if min_area is None else self._regions(result, path, pixels, min_area)
        except InvalidImageError as changed:  # gone or replaced in the meantime
            return Inspection(path, error=one_line(changed))
        score, offset = result.score, self.detector.offset_
        assert score is not None
        margin = float(score - offset)
        return Inspection(path, result.label, result.verdict, margin, result.p_value, regions, result.map, pixels)

    def _regions(self, result: Result, path: Path, pixels: NDArray[Any] | None, min_area: int) -> tuple[Region, ...]:
        """Return what ``find_regions`` returns, from the map that is there already."""
        anomaly_map = result.map
        assert anomaly_map is not None
        if result.label == 1 and not (anomaly_map > self.threshold).any():
            return ()  # enlarging makes no value larger
        shape = image_shape(path, shown(path)) if pixels is None else (pixels.shape[0], pixels.shape[1])
        at_input = self.at_input(anomaly_map, shape)
        return tuple(regions_of(at_input, self.threshold, min_area=min_area, at_least_one=result.label == -1))

    def at_input(self, anomaly_map: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
        """Return an anomaly map at the size of its image; NaN where a crop did not see it."""
        return _geometry(shape, self.map_shape, self.resize).array_to_input(anomaly_map)


@functools.lru_cache(maxsize=16)
def _geometry(shape: tuple[int, int], map_shape: tuple[int, int], resize: str) -> Geometry:
    return Geometry.of(shape, map_shape, resize)
