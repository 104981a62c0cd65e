"""Prediction with an exported detector, from images to answers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas._decisions.judging import Judge
from skpbas._decisions.regions import Region, regions_of
from skpbas._features.results import Result, judgments
from skpbas._inputs.checks import check_images, check_stream
from skpbas._inputs.decoding import check_size, decode, item_name, pixels_in_range, unmasked
from skpbas._inputs.geometry import Geometry
from skpbas._inputs.ignoring import Ignored, ignored_pixels, nothing_left, nothing_left_of_scale
from skpbas._inputs.image_statistics import GoodStatistics, ImageStatistics
from skpbas._inputs.notices import Notices, ViewDetails
from skpbas.errors import FileFormatError, InvalidImageError
from skpbas.runtime._providers import OPENED, PROVIDERS, imported
from skpbas.runtime._tiles import Tiles


class OnnxDetector:
    """A detector that was exported by :func:`skpbas.export.to_onnx`, on the CPU.

    Its methods are those of :class:`~skpbas.PBASDetector`, take the same images, and warn of the same: cropped,
    distorted and transparent images, and those unlike the images of ``fit``. This differs:

    - Training images are not recognized, so they are scored without leaving out their own exemplars.
    - The ``unsure_rate`` is the one given to :func:`~skpbas.export.to_onnx`.
    - Images of :func:`skpbas.masks.ignoring` need a file of ``to_onnx(..., ignored=True)``, or of a detector that was
      fitted on such images.
    - The ``precision`` is that of this class, whatever the detector's was. With "float32" scores are those of a
      detector with ``precision="float32"``, but for rounding; the default of :class:`~skpbas.PBASDetector`, "auto",
      computes the discriminator and the search among exemplars in bfloat16 on processors that are faster in it.
    - If all images of ``fit`` had 8 bits, the graph takes uint8, and images of 16 bits or floats are rounded to 8 bits.

    Any number of threads may call a detector at the same time.

    Parameters
    ----------
    path : str or Path
    provider : {"auto", "onnxruntime", "openvino"}, default="auto"
        What computes; "auto": the first that is installed and has the ``precision``.
    precision : {"float32", "bfloat16"}, default="float32"
        "bfloat16": of the backbone and the search among exemplars, which needs OpenVINO and is faster on processors
        with a matrix unit (AMX), or on AMD's with AVX-512 BF16; distances, scores and maps are still float32.
    n_threads : int or None, default=None
        Threads of one computation; None: the provider's choice, about one per core.

    Attributes
    ----------
    offset_, map_threshold_ : float
        As of the detector.
    map_shape_ : (int, int)
        Height and width of the anomaly maps at model size.
    good_statistics_ : GoodStatistics
        What the images of ``fit`` were like, as of the detector.
    metadata_ : dict
        All that the file says besides the graph, such as "versions" and "settings".
    provider : str
        What computes.

    Raises
    ------
    ImportError
        The provider is not installed.
    ValueError
        A parameter is none of the above, or the processor has no instructions for bfloat16.
    FileFormatError
        Not a file of :func:`~skpbas.export.to_onnx`, one of another version, or a damaged one.

    Examples
    --------
    >>> from skpbas.runtime import OnnxDetector
    >>> detector = OnnxDetector("detector.onnx")  # doctest: +SKIP
    >>> detector.predict(["part_1.png", "part_2.png"])  # doctest: +SKIP
    array([ 1, -1])
    """

    def __init__(
        self,
        path: str | PathLike[str],
        *,
        provider: str = "auto",
        precision: str = "float32",
        n_threads: int | None = None,
    ) -> None:
        if provider not in ("auto", *PROVIDERS):
            raise ValueError(f"provider={provider!r}: choose 'auto', 'onnxruntime' or 'openvino'")
        if precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision={precision!r}: choose 'float32' or 'bfloat16'")
        if precision == "bfloat16":
            if provider == "onnxruntime":
                raise ValueError("precision='bfloat16' needs provider='openvino': ONNX Runtime has it for no processor")
            provider = "openvino"
        whole = isinstance(n_threads, (int, np.integer)) and not isinstance(n_threads, bool)
        if n_threads is not None and (not whole or n_threads < 1):
            raise ValueError(f"n_threads={n_threads!r}: expected None, or a whole number, 1 or more")
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file")
        self.provider, module = imported(provider)
        opened = OPENED[self.provider](module, file, precision, None if n_threads is None else int(n_threads))
        self.metadata_ = opened.metadata
        self._tiles = Tiles(opened.metadata) if "tiles" in opened.metadata else None
        self.map_shape_: tuple[int, int] = tuple(self.metadata_["map_shape"])
        self.offset_ = float(self.metadata_["offset"])
        self.map_threshold_ = float(self.metadata_["map_threshold"])
        normal_scores = np.array(self.metadata_["normal_scores"], dtype=np.float64)
        self._judge = Judge(self.offset_, float(self.metadata_["unsure_offset"]), normal_scores)
        self.good_statistics_ = _good_statistics(self.metadata_, file)
        self._of_bytes = self.metadata_["dtype"] == "uint8"
        self._regions: Mapping[str, Any] | None = self.metadata_.get("ignored")
        height, width = self.map_shape_ if self._tiles is None else self._tiles.shape
        shapes: dict[str, tuple[int, ...]] = {"images": (1, height, width, 3)}
        if self._regions is not None:
            shapes |= {"ignored": (1, -1, -1)} if self._tiles is None else {"ignored": (1, height, width), "fill": (1,)}
        self._run = opened.prepared(shapes)

    def score_samples(self, X: Any) -> NDArray[np.float64]:
        """Score images; higher is more normal.

        Parameters
        ----------
        X : array or sequence of images

        Returns
        -------
        ndarray of shape (n,), float64
        """
        return np.array([scored.score for scored in self._each(check_images(X))])

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return ``score_samples(X) - offset_``: negative for anomalous images.

        Parameters
        ----------
        X : array or sequence of images

        Returns
        -------
        ndarray of shape (n,), float64
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Predict labels: +1 for normal images, -1 for anomalous ones.

        Parameters
        ----------
        X : array or sequence of images

        Returns
        -------
        ndarray of shape (n,), int64
        """
        return self._judge.labels(self.score_samples(X))

    def p_values(self, X: Any) -> NDArray[np.float64]:
        """Return the share of the training images that are at least as anomalous.

        Parameters
        ----------
        X : array or sequence of images

        Returns
        -------
        ndarray of shape (n,), float64 in (0, 1]
        """
        return self._judge.p_values(self.score_samples(X))

    def verdicts(self, X: Any) -> NDArray[np.str_]:
        """Return "normal", "unsure" or "anomalous" for each image, at the ``unsure_rate`` of the export.

        Parameters
        ----------
        X : array or sequence of images

        Returns
        -------
        ndarray of shape (n,), str
        """
        return self._judge.verdicts(self.score_samples(X))

    def anomaly_map(self, X: Any, size: str = "model") -> NDArray[np.float32] | list[NDArray[np.float32]]:
        """Return anomaly maps: how anomalous each pixel is.

        Parameters
        ----------
        X : array or sequence of images
        size : {"model", "input"}, default="model"
            "model": ``map_shape_``; "input": each map at the size of its image. What a crop did not see is NaN.

        Returns
        -------
        ndarray of shape (n, H, W), float32 in [0, 1]
            A list of (H_i, W_i) arrays if the images' sizes differ.
        """
        return _stacked([anomaly_map for _, anomaly_map in self._iter_sized(check_images(X), size)])

    def anomaly_mask(self, X: Any, size: str = "model") -> NDArray[np.bool_] | list[NDArray[np.bool_]]:
        """Return which pixels are anomalous: those where the anomaly map is above ``map_threshold_``.

        Parameters
        ----------
        X : array or sequence of images
        size : {"model", "input"}, default="model"
            As for :meth:`anomaly_map`. What a crop did not see is False.

        Returns
        -------
        ndarray of shape (n, H, W), bool
            A list of (H_i, W_i) arrays if the images' sizes differ.
        """
        return _stacked([of_image > self.map_threshold_ for _, of_image in self._iter_sized(check_images(X), size)])

    def find_regions(self, X: Any, size: str = "input", min_area: int = 1) -> list[list[Region]]:
        """Return the connected regions of each image where its anomaly map is above ``map_threshold_``.

        An image that :meth:`predict` calls anomalous has at least one.

        Parameters
        ----------
        X : array or sequence of images
        size : {"input", "model"}, default="input"
            Whether boxes, areas and centroids are in pixels of the image itself or of the anomaly map.
        min_area : int, default=1
            Smallest area of a region, in these pixels.

        Returns
        -------
        list of list of Region
            For each image, most anomalous first.
        """
        if not isinstance(min_area, (int, np.integer)) or isinstance(min_area, bool) or min_area < 1:
            raise ValueError(f"min_area={min_area!r}: expected a whole number of pixels, 1 or more")
        return [
            regions_of(anomaly_map, self.map_threshold_, min_area=int(min_area), at_least_one=score < self.offset_)
            for score, anomaly_map in self._iter_sized(check_images(X), size)
        ]

    def iter_results(self, images: Any, *, on_error: str = "raise", maps: bool = True) -> Iterator[Result]:
        """Yield a result for each image, in order: ``score_stream`` of the detector.

        Parameters
        ----------
        images : array, sequence or iterable of images
            A generator may be endless: each result is yielded before the next image is requested.
        on_error : {"raise", "skip"}, default="raise"
            For an image that cannot be read or scored: "raise" raises the error; "skip" yields a result with the
            message in ``error`` and continues.
        maps : bool, default=True
            Whether results include anomaly maps at model size.

        Yields
        ------
        Result
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error={on_error!r}: choose 'raise' or 'skip'")
        return self._results(check_stream(images, "images", each=False), skip=on_error == "skip", maps=maps)

    def _results(self, items: Any, *, skip: bool, maps: bool) -> Iterator[Result]:
        notices = Notices(self.metadata_["aspect"], self.good_statistics_)
        for index, item in enumerate(items):
            name = item_name(item, index, "images")
            shown = str(item) if isinstance(item, (str, PathLike)) else name
            try:
                scored = self._scored(item, name)
            except InvalidImageError as error:
                if not skip:
                    raise
                yield Result(index, shown, None, None, error=str(error))
                continue
            notices.note(index, name, scored.details)
            notices.warn(len(items) if hasattr(items, "__len__") else None, stacklevel=3)
            anomaly_map = scored.sized("model") if maps else None
            yield Result(index, shown, scored.score, map=anomaly_map, **judgments(self._judge, scored.score))

    def _iter_sized(self, items: Any, size: str) -> Iterator[tuple[float, NDArray[np.float32]]]:
        """Return an iterator over the score of each image and its anomaly map, at one size or its own."""
        if size not in ("model", "input"):
            raise ValueError(f"size={size!r}: choose 'model' or 'input'")
        for scored in self._each(items):
            yield scored.score, scored.sized(size)

    def _each(self, items: Any) -> Iterator[_Scored]:
        """Yield what the graph says of each image; then warn of all images."""
        notices = Notices(self.metadata_["aspect"], self.good_statistics_)
        for index, item in enumerate(items):
            name = item_name(item, index)
            scored = self._scored(item, name)
            notices.note(index, name, scored.details)
            yield scored
        notices.warn(len(items), stacklevel=4)

    def _scored(self, item: Any, name: str) -> _Scored:
        """Return what the graph says of an image."""
        mask, item = ignored_pixels(item, name), unmasked(item)
        if mask is not None and self._regions is None:
            raise InvalidImageError(
                f"{name} has ignored regions, which this file does not take: export the detector again, with "
                "to_onnx(detector, path, ignored=True)"
            )
        pixels, details = self._view(item, name)
        ignored = None if mask is None else Ignored.of(mask, details.geometry, name)
        score, anomaly_map, counted = self._answer(pixels, ignored)
        if counted is not None and counted.min() == 0:
            scale = int(counted.argmin())
            raise (
                nothing_left_of_scale(name, *self.metadata_["ignored"]["grids"][scale]) if scale else nothing_left(name)
            )
        if not np.isfinite(score):
            raise InvalidImageError(f"{name}: its score is {-score}: the image or the backbone is at fault")
        return _Scored(-score, anomaly_map, details, ignored)

    def _answer(
        self, pixels: NDArray[Any], ignored: Ignored | None
    ) -> tuple[float, NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the image score, the anomaly map and how many patches count at each scale, of a view (H, W, C)."""
        if self._tiles is None:
            inputs = {"images": _as_batch(pixels)}
            if self._regions is not None:
                mask = np.zeros((1, 1), bool) if ignored is None else np.ascontiguousarray(ignored.mask)
                inputs["ignored"] = mask[None]
            outputs = self._run(inputs)
            anomaly_map = outputs["map" if self._regions is None else "unerased"][0]
            return float(outputs["score"][0]), anomaly_map, outputs["counted"][0] if "counted" in outputs else None
        if self._regions is None:
            return self._tiles.scored(_as_batch(pixels), self._run)
        if ignored is None:
            return self._tiles.scored(_as_batch(pixels), self._run, ignored=np.zeros(self.map_shape_, bool))
        if ignored.share <= self._regions["fillable"]:
            pixels = ignored.fill_array(pixels)
        compared = ignored.share <= self._regions["comparable"]
        return self._tiles.scored(_as_batch(pixels), self._run, ignored=ignored.at_view, compared=compared)

    def _view(self, item: Any, name: str) -> tuple[NDArray[Any], ViewDetails]:
        """Return what the network sees of an image, (H, W, 1 or 3), of the graph's type, and its details."""
        decoded = decode(item, name)
        shape = decoded.pixels.shape[0], decoded.pixels.shape[1]
        check_size(shape, self.metadata_["smallest_side"], name)
        geometry = Geometry.of(shape, self.map_shape_, self.metadata_["resize"])
        whole = pixels_in_range(decoded.pixels)
        pixels = geometry.view_of_array(whole)
        statistics = ImageStatistics.of(decoded.pixels.dtype, whole, pixels.transpose(2, 0, 1))
        details = ViewDetails(geometry, decoded.transparent, decoded.more_frames, statistics)
        if self._of_bytes and pixels.dtype != np.uint8:
            pixels = np.rint(pixels * 255).astype(np.uint8)
        elif not self._of_bytes and pixels.dtype == np.uint8:
            pixels = pixels / np.float32(255)
        return pixels, details


@dataclass(frozen=True)
class _Scored:
    """What a graph says of an image."""

    score: float  # score_samples
    anomaly_map: NDArray[np.float32]  # at model size, not erased
    details: ViewDetails
    ignored: Ignored | None

    def sized(self, size: str) -> NDArray[np.float32]:
        """Return the anomaly map at the size "model" or "input", 0 where pixels do not count."""
        sized = self.details.geometry.array_to_input(self.anomaly_map) if size == "input" else self.anomaly_map
        return sized if self.ignored is None else self.ignored.erase(sized)


def _as_batch(pixels: NDArray[Any]) -> NDArray[Any]:
    """Return a view (H, W, 1 or 3) as (1, H, W, 3)."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))[None]


def _good_statistics(metadata: Mapping[str, Any], path: Path) -> GoodStatistics:
    found = GoodStatistics.from_note(metadata.get("good_statistics"))
    if found is None:
        raise FileFormatError(f"{path} is damaged: it has no valid good_statistics; export the detector again")
    return found


def _stacked(arrays: list[NDArray[Any]]) -> Any:
    return arrays if len({array.shape for array in arrays}) > 1 else np.stack(arrays)
