"""Detectors of both kinds of files, and what they say of images; one of ONNX needs no torch."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas._cli.console import UsageError, one_line
from skpbas._decisions.regions import Region, regions_of
from skpbas._features.results import Result
from skpbas._inputs.decoding import image_shape
from skpbas._inputs.geometry import Geometry
from skpbas.errors import InvalidImageError


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
        self, images: Iterable[Path], *, min_area: int = 1, unsure_rate: float | None = None
    ) -> Iterator[Inspection]:
        """Yield what the detector says of each image, in memory that does not grow; unreadable ones have an error."""
        paths: list[Path] = []

        def remembered() -> Iterator[Path]:
            for path in images:
                paths.append(path)
                yield path

        if not self.is_onnx:
            rate = {} if unsure_rate is None else {"unsure_rate": unsure_rate}
            results = self.detector.score_stream(remembered(), on_error="skip", **rate)
        elif unsure_rate is not None:
            raise UsageError(f"--unsure-rate: {self.path} has that of its export; open the .skpbas file instead")
        else:
            results = self.detector.iter_results(remembered(), on_error="skip")
        for result in results:
            yield self._inspection(result, paths.pop(0), min_area)

    def _inspection(self, result: Result, path: Path, min_area: int) -> Inspection:
        if result.error is None:
            try:
                regions = self._regions(result, path, min_area)
            except InvalidImageError as error:  # gone or replaced in the meantime
                return Inspection(path, error=one_line(error))
            score, offset = result.score, self.detector.offset_
            assert score is not None
            return Inspection(
                path, result.label, result.verdict, float(score - offset), result.p_value, regions, result.map
            )
        return Inspection(
            path, error=one_line(result.error.replace(f"images[{result.index}] ({result.name})", str(path)))
        )

    def _regions(self, result: Result, path: Path, min_area: int) -> tuple[Region, ...]:
        """Return what ``find_regions`` returns, from the map that is there already."""
        anomaly_map = result.map
        assert anomaly_map is not None
        if result.label == 1 and not (anomaly_map > self.threshold).any():
            return ()  # enlarging makes no value larger
        at_input = self.at_input(anomaly_map, image_shape(path, str(path)))
        return tuple(regions_of(at_input, self.threshold, min_area=min_area, at_least_one=result.label == -1))

    def at_input(self, anomaly_map: NDArray[np.float32], shape: tuple[int, int]) -> NDArray[np.float32]:
        """Return an anomaly map at the size of its image; NaN where a crop did not see it."""
        return _geometry(shape, self.map_shape, self.resize).array_to_input(anomaly_map)


@functools.lru_cache(maxsize=16)
def _geometry(shape: tuple[int, int], map_shape: tuple[int, int], resize: str) -> Geometry:
    return Geometry.of(shape, map_shape, resize)
