"""Scoring of large sets of images on the workers of a Dask cluster.

The detector, or the content of its file, is registered as a worker plugin: the scheduler sends it once to every current
and future worker, so it survives the loss of any worker. Batches of paths are submitted as tasks, a few per worker at a
time, and scores come back, so memory use of client and workers does not depend on the number of images.
"""

from __future__ import annotations

import hashlib
import math
import os
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, overload

import numpy as np
from distributed import Client, Future, KilledWorker, as_completed, default_client
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skpbas._compat import HasMethods, validate_parameter_constraints
from skpbas._features.extraction import in_batches
from skpbas._inputs.parameters import WholeNumber
from skpbas.distributed._parquet import Part, ResultFolder
from skpbas.distributed._worker import FILES, DetectorPlugin, FilePlugin, open_detector, score_on_worker
from skpbas.errors import ClusterError, InvalidImageError
from skpbas.runtime import OnnxDetector

__all__ = ["ImageResult", "ScoringSummary", "score_images"]

_BATCHES_PER_THREAD = 2  # one running, one queued, so that no worker idles
_SECONDS_BETWEEN_COUNTS = 5.0  # of the threads of the cluster
_LOSSES_IN_A_ROW = 8  # lost batches without a successful one in between

_Future: TypeAlias = "Future[Any]"

_CONSTRAINTS: dict[str, list[Any]] = {
    "detector": [HasMethods(["score_samples"]), str, os.PathLike],
    "client": [Client, None],
    "batch_size": [WholeNumber(1)],
    "max_in_flight": [WholeNumber(1), None],
    "output": [str, os.PathLike, None],
    "images_per_file": [WholeNumber(1)],
}


@dataclass(frozen=True, order=True, slots=True)
class ImageResult:
    """Result of one image; results sort in the order of the images.

    Attributes
    ----------
    index : int
        Index in ``uris``.
    uri : str
    score : float
        ``score_samples`` of the detector; NaN if there is an error.
    margin : float
        ``score - detector.offset_``: negative for an anomalous image; NaN if there is an error.
    label : int or None
        +1 normal, -1 anomalous; None if there is an error.
    p_value : float or None
        As by ``p_values`` of the detector; None if there is an error, or if the detector is of another package and has
        none.
    error : str or None
        Why the image has no score.
    """

    index: int
    uri: str
    score: float
    margin: float
    label: int | None
    p_value: float | None
    error: str | None


@dataclass(frozen=True)
class ScoringSummary:
    """Summary of a folder of results.

    Attributes
    ----------
    folder : Path
    n_images : int
        Number of images, including those of earlier runs.
    n_anomalous : int
        Images labeled -1.
    n_failed : int
        Images without a score; see their ``error``.
    n_resumed : int
        Images scored by earlier runs.
    n_files : int
        Number of Parquet files.
    """

    folder: Path
    n_images: int = 0
    n_anomalous: int = 0
    n_failed: int = 0
    n_resumed: int = 0
    n_files: int = 0


@overload
def score_images(
    detector: Any,
    uris: Iterable[str | os.PathLike[str]],
    *,
    client: Client | None = ...,
    batch_size: int = ...,
    max_in_flight: int | None = ...,
    output: None = ...,
    images_per_file: int = ...,
) -> Iterator[ImageResult]: ...


@overload
def score_images(
    detector: Any,
    uris: Iterable[str | os.PathLike[str]],
    *,
    client: Client | None = ...,
    batch_size: int = ...,
    max_in_flight: int | None = ...,
    output: str | os.PathLike[str],
    images_per_file: int = ...,
) -> ScoringSummary: ...


def score_images(
    detector: Any,
    uris: Iterable[str | os.PathLike[str]],
    *,
    client: Client | None = None,
    batch_size: int = 32,
    max_in_flight: int | None = None,
    output: str | os.PathLike[str] | None = None,
    images_per_file: int = 10_000,
) -> Iterator[ImageResult] | ScoringSummary:
    """Score images on the workers of a Dask cluster, each exactly once.

    Parameters
    ----------
    detector : fitted estimator with ``score_samples`` and ``offset_``, or path
        Such as :class:`~skpbas.PBASDetector` or :class:`~skpbas.calibration.ConformalThreshold`; or a file on the
        client, ".skpbas" of :meth:`PBASDetector.save <skpbas.PBASDetector.save>` or ".onnx" of
        :func:`skpbas.export.to_onnx`. The estimator, or the content of the file, is sent once to every worker,
        including those that join later or replace a lost one; each opens it once.
    uris : iterable of str or path
        Paths on the workers, or URLs that ``fsspec`` can open there, such as "s3://bucket/key.png". Consumed lazily, so
        generators of any length are supported.
    client : distributed.Client or None, default=None
        None: the current client.
    batch_size : int, default=32
        Images per task.
    max_in_flight : int or None, default=None
        Number of batches submitted at a time; None: 2 per thread of the cluster, updated every few seconds.
    output : path or None, default=None
        None: return an iterator of results. A folder on the client: write Parquet files there; a later run with the
        same detector and uris resumes where the earlier one ended.
    images_per_file : int, default=10_000
        Images per Parquet file. Images not yet written are scored again after an interruption.

    Returns
    -------
    iterator of ImageResult, or ScoringSummary
        The iterator yields results in order of completion. Files have the columns "index", "uri", "score", "margin",
        "label", "p_value" and "error" of :class:`ImageResult`, in the order of ``uris`` within and across sorted files,
        and are written atomically.

    Raises
    ------
    ValueError
        An invalid parameter, no client, a detector without ``offset_``, or a file of another kind.
    NotFittedError
        The detector is not fitted.
    TypeError
        ``detector`` is an :class:`~skpbas.runtime.OnnxDetector`: pass the path of its file.
    FileNotFoundError
        There is no such file of a detector on the client.
    FileFormatError
        The file of the detector is damaged, of another version, or something else.
    InvalidImageError
        ``uris`` is a single path or URL, or contains something other than str or path.
    ResultsError
        ``output`` contains results of other uris, of more uris or of another detector, a damaged file, or Parquet
        files of another origin; the message names the file.
    StorageError
        ``output`` cannot be written.
    ClusterError
        The scheduler was lost, workers die repeatedly, or one cannot open the file of the detector. Results in
        ``output`` are kept.
    ImportError
        ``output`` without pyarrow; an ".onnx" file without ONNX Runtime or OpenVINO on the client; a URL whose protocol
        needs a package that the workers do not have.

    Notes
    -----
    An image that cannot be read or scored is reported in its result, and the run continues. An error other than a read
    error that all images of a batch share ends the run.

    If a worker dies, Dask reassigns its batches up to ``distributed.scheduler.allowed-failures`` times (default 3).
    Then the images of the batch are scored one by one while nothing else runs; only an image that kills workers on its
    own is reported as failed.

    Workers need the same versions of skpbas and torch as the client; for an ".onnx" file no torch, but ONNX Runtime or
    OpenVINO. With a ".skpbas" file nothing of the detector is pickled, and each worker computes on the device that
    :func:`skpbas.load` takes there; torchvision's weights, if the file is without them, come from the worker's cache.
    An ".onnx" file computes on CPUs, with as many threads as ``OMP_NUM_THREADS`` of the worker says.

    On CPUs use one worker per core with one thread each: ``LocalCluster(n_workers=..., threads_per_worker=1)``. Dask
    starts its workers with ``OMP_NUM_THREADS=1``.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from distributed import Client
    >>> from PIL import Image
    >>> from skpbas import PBASDetector
    >>> from skpbas.datasets import make_inspection_images
    >>> from skpbas.distributed import score_images
    >>> images = make_inspection_images(n_normal=6, n_anomalous=0, size=64, random_state=0).images
    >>> detector = PBASDetector("embedded", image_size=64, max_epochs=1, contamination=0.1, device="cpu").fit(images)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     paths = [Path(folder) / f"{i}.png" for i in range(6)]
    ...     for path, image in zip(paths, images):
    ...         Image.fromarray(image).save(path)
    ...     with Client(processes=False, n_workers=1, threads_per_worker=1, dashboard_address=":0") as client:
    ...         results = sorted(score_images(detector, paths, client=client, batch_size=4))
    >>> [result.score for result in results] == detector.score_samples(images).tolist()
    True
    """
    validate_parameter_constraints(
        _CONSTRAINTS,
        {
            "detector": detector,
            "client": client,
            "batch_size": batch_size,
            "max_in_flight": max_in_flight,
            "output": output,
            "images_per_file": images_per_file,
        },
        caller_name="score_images",
    )
    if isinstance(detector, (str, os.PathLike)):
        plugin, detector, digest = _of_file(os.fspath(detector))
    else:
        plugin, detector, digest = _of_estimator(detector)
    if isinstance(uris, (str, bytes, os.PathLike)):
        raise InvalidImageError(f"uris must be an iterable of paths or URLs; got a single one, {str(uris)!r}")
    if isinstance(uris, (set, frozenset)):
        raise InvalidImageError("uris is a set, which has no order: pass sorted(uris)")
    if not isinstance(uris, Iterable):
        raise InvalidImageError(f"uris must be an iterable of paths or URLs; got {type(uris).__name__}")
    run = _Run(plugin, _resolved(client), int(max_in_flight) if max_in_flight else None)
    names = _names(uris)
    if output is None:
        return _stream(run, names, int(batch_size), float(detector.offset_))
    folder = ResultFolder(output, detector, int(images_per_file), digest)
    if isinstance(uris, Sized):
        folder.refuse_beyond(len(uris))
    return _to_folder(run, names, int(batch_size), folder)


_Sent: TypeAlias = "tuple[DetectorPlugin | FilePlugin, Any, str | None]"
"""What is sent, the detector with its ``offset_``, and its digest if it has one of its own."""


def _of_estimator(detector: Any) -> _Sent:
    if isinstance(detector, OnnxDetector):
        raise TypeError("detector is an OnnxDetector, which cannot be sent to workers: pass the path of its file")
    check_is_fitted(detector)
    if not hasattr(detector, "offset_"):
        raise ValueError(f"detector={detector!r} has no offset_, the threshold between normal and anomalous")
    detector = detector._snapshot() if hasattr(detector, "_snapshot") else detector  # not changed by a later fit
    return DetectorPlugin(detector), detector, None


def _of_file(path: str) -> _Sent:
    if Path(path).suffix.lower() not in FILES:
        raise ValueError(
            f"detector={path!r} is no file with the ending {' or '.join(FILES)}: write one with detector.save or "
            "skpbas.export.to_onnx"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"detector={path!r}: no such file on this machine, the client")
    content = Path(path).read_bytes()
    detector = open_detector(content, path)  # what is sent is what was checked, also if the file is replaced meanwhile
    digest = hashlib.sha256(content).hexdigest() if isinstance(detector, OnnxDetector) else None
    return FilePlugin(content, path), detector, digest


def _resolved(client: Client | None) -> Client:
    if client is None:
        try:
            client = default_client()
        except ValueError as error:
            raise ValueError(
                "score_images found no Dask client: create one, such as client = distributed.Client(n_workers=4, "
                "threads_per_worker=1) or distributed.Client('scheduler:8786'), and pass it as client="
            ) from error
    if client.asynchronous:
        raise ValueError("score_images needs a client with asynchronous=False")
    return client


def _names(uris: Iterable[str | os.PathLike[str]]) -> Iterator[str]:
    for index, uri in enumerate(uris):
        if not isinstance(uri, (str, os.PathLike)):
            raise InvalidImageError(f"uris[{index}] is {type(uri).__name__}; expected a path or URL (str or PathLike)")
        yield os.fspath(uri)


# The run --------------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """Consecutive images; ``alone``: a single image to score while nothing else runs."""

    first: int
    uris: list[str]
    alone: bool = False


@dataclass
class _Scored:
    """A completed batch."""

    first: int
    uris: list[str]
    scores: NDArray[np.float64]
    p_values: NDArray[np.float64]
    errors: dict[int, str]


class _Run:
    """Submits batches to a cluster, with a bounded number in flight.

    Parameters
    ----------
    plugin : DetectorPlugin or FilePlugin
    client : distributed.Client
    max_in_flight : int or None
    """

    def __init__(self, plugin: DetectorPlugin | FilePlugin, client: Client, max_in_flight: int | None) -> None:
        self.client, self.max_in_flight = client, max_in_flight
        self.run = uuid.uuid4().hex
        self.plugin, self.name = plugin, f"skpbas-detector-{self.run}"
        self._counted, self._window = -math.inf, 1

    def scored(self, batches: Iterator[_Batch]) -> Iterator[_Scored]:
        """Yield every batch once, in order of completion."""
        self.client.register_plugin(self.plugin, name=self.name)
        in_flight: dict[_Future, _Batch] = {}
        suspects: deque[_Batch] = deque()
        completed = as_completed(with_results=True, raise_errors=False)
        losses = 0
        try:
            while True:
                while not suspects and len(in_flight) < self._capacity() and (batch := next(batches, None)) is not None:
                    self._send(batch, in_flight, completed)
                if suspects and not in_flight:
                    self._send(suspects.popleft(), in_flight, completed)
                if not in_flight:
                    return
                future, result = next(completed)
                batch = in_flight.pop(future)
                if future.status == "finished":
                    losses = 0
                    yield _Scored(batch.first, batch.uris, *result)
                    continue
                lost = self._killed(future, result)  # raises any other error
                losses += 1
                if losses >= _LOSSES_IN_A_ROW:
                    raise ClusterError(
                        f"workers died on {losses} batches in a row: {lost} Give workers more memory, or use a smaller "
                        "batch_size or detector"
                    ) from lost
                if batch.alone:
                    text = f"{batch.uris[0]}: all {lost.allowed_failures + 1} workers that scored it alone died"
                    yield _Scored(batch.first, batch.uris, np.array([np.nan]), np.array([np.nan]), {0: text})
                else:
                    suspects.extend(_Batch(batch.first + i, [uri], alone=True) for i, uri in enumerate(batch.uris))
        finally:
            self._clean_up(list(in_flight))

    def _send(self, batch: _Batch, in_flight: dict[_Future, _Batch], completed: as_completed) -> None:
        key = f"skpbas-score-{self.run}-{batch.first}{'-alone' if batch.alone else ''}"
        future = self.client.submit(score_on_worker, batch.uris, self.name, key=key, pure=False)
        in_flight[future] = batch
        completed.add(future)

    def _killed(self, future: _Future, result: Any) -> KilledWorker:
        """Return the error of a batch whose workers died; raise any other error."""
        if future.status != "error":
            raise ClusterError(
                f"the cluster lost a batch ({future.status}): its scheduler was closed, restarted or lost"
            ) from (result if isinstance(result, CancelledError) else None)
        _, error, trace = result
        if isinstance(error, KilledWorker):
            return error
        raise error.with_traceback(trace)

    def _capacity(self) -> int:
        """Return how many batches may be in flight."""
        if self.max_in_flight is not None:
            return self.max_in_flight
        if time.monotonic() - self._counted > _SECONDS_BETWEEN_COUNTS:
            self._window = max(1, _BATCHES_PER_THREAD * sum(self.client.nthreads().values()))
            self._counted = time.monotonic()
        return self._window

    def _clean_up(self, in_flight: list[_Future]) -> None:
        """Cancel batches in flight and remove the detector from the workers."""
        if self.client.status != "running":
            return
        with suppress(OSError, TimeoutError, CancelledError):  # the cluster may be closing
            self.client.cancel(in_flight)
            self.client.unregister_worker_plugin(self.name)


def _stream(run: _Run, names: Iterator[str], batch_size: int, offset: float) -> Iterator[ImageResult]:
    def batches() -> Iterator[_Batch]:
        first = 0
        for uris in in_batches(names, batch_size):
            yield _Batch(first, uris)
            first += len(uris)

    for scored in run.scored(batches()):
        judged = zip(scored.uris, scored.scores.tolist(), scored.p_values.tolist(), strict=True)
        for i, (uri, score, p_value) in enumerate(judged):
            error = scored.errors.get(i)
            label = None if error is not None else (1 if score - offset >= 0 else -1)
            of_normal = None if math.isnan(p_value) else p_value
            yield ImageResult(scored.first + i, uri, score, score - offset, label, of_normal, error)


def _to_folder(run: _Run, names: Iterator[str], batch_size: int, folder: ResultFolder) -> ScoringSummary:
    open_parts: dict[int, Part] = {}
    total = dict.fromkeys(("n_images", "n_anomalous", "n_failed", "n_resumed", "n_files"), 0)

    def count(n_images: int, metadata: dict[str, Any], *, resumed: bool = False) -> None:
        total["n_images"] += n_images
        total["n_resumed"] += n_images * resumed
        total["n_files"] += 1
        for name in ("n_anomalous", "n_failed"):
            total[name] += metadata[name]

    def batches() -> Iterator[_Batch]:
        first = 0
        for uris in in_batches(names, folder.images_per_file):
            metadata = folder.found(first, uris)
            if metadata is not None:
                count(len(uris), metadata, resumed=True)
            else:
                open_parts[first] = Part(first, uris)
                for start in range(0, len(uris), batch_size):
                    yield _Batch(first + start, uris[start : start + batch_size])
            first += len(uris)

    for scored in run.scored(batches()):
        first = scored.first - scored.first % folder.images_per_file
        part = open_parts[first]
        part.put(scored.first, scored.scores, scored.p_values, scored.errors)
        if not part.missing:
            count(len(part.uris), folder.write(part))
            del open_parts[first]
    folder.refuse_beyond(total["n_images"])
    return ScoringSummary(folder.path, **total)
