"""What runs on a worker: the detector that was sent to it, and batches of names, any of which may be unreadable.

Nothing here imports torch: a worker with an ONNX file does without.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import fsspec
import numpy as np
from distributed import Worker, WorkerPlugin, get_worker
from numpy.typing import NDArray
from PIL import Image

from skpbas._decisions.judging import Judge
from skpbas._inputs.decoding import check_regular_file, decoding, known_formats
from skpbas.errors import ClusterError, FileFormatError, InvalidImageError, SkpbasError

FILES = (".skpbas", ".onnx")
"""Endings of the files that hold a detector."""


class DetectorPlugin(WorkerPlugin):
    """Delivers a detector, as a pickle, to every current and future worker."""

    def __init__(self, detector: Any) -> None:
        self._detector = detector

    def detector(self) -> Any:
        """Return the detector."""
        return self._detector


class FilePlugin(WorkerPlugin):
    """Delivers the content of a detector's file to every current and future worker, which opens it once.

    It is opened by the first batch, whose error reaches the client; that of ``setup`` would be in the worker's log.
    """

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.name = content, name

    def setup(self, worker: Worker) -> None:
        """Prepare opening on a worker."""
        self._worker, self._opening, self._detector = worker, threading.Lock(), None

    def detector(self) -> Any:
        """Return the detector, opened by the first thread that asks."""
        with self._opening:
            if self._detector is None:
                try:
                    self._detector = open_detector(self.content, self.name, self._worker.local_directory)
                except Exception as error:  # the client could open it
                    raise ClusterError(
                        f"worker {self._worker.address} cannot open {self.name}: {type(error).__name__}: {error}"
                    ) from error
            return self._detector


def open_detector(content: bytes, name: str, folder: str | None = None) -> Any:
    """Return the detector of a file with this content.

    Parameters
    ----------
    content : bytes
    name : str
        Path that the content was read from, which errors name.
    folder : str or None, default=None
        Where a copy may be for the time of opening; None: the system's folder for temporary files.
    """
    with TemporaryDirectory(prefix="skpbas-", dir=folder, ignore_cleanup_errors=True) as temporary:
        copy = Path(temporary) / Path(name).name
        copy.write_bytes(content)
        try:
            if copy.suffix.lower() == ".onnx":
                from skpbas.runtime import OnnxDetector

                return OnnxDetector(copy, n_threads=_n_threads())
            from skpbas.persistence import load

            return load(copy)
        except (SkpbasError, ValueError) as error:
            text = str(error).replace(str(copy), name)
            if isinstance(error, SkpbasError) or type(error) is ValueError:
                raise type(error)(text) from error
            # such as UnicodeDecodeError, which takes other arguments than a message
            raise FileFormatError(f"{name} cannot be read ({type(error).__name__}: {text}); write it again") from error


def _n_threads() -> int | None:
    """Return the limit that Dask sets for its workers, which the runtimes of ONNX would not read themselves."""
    limit = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    return int(limit) if limit.isdigit() and int(limit) else None


Scores: TypeAlias = "tuple[NDArray[np.float64], NDArray[np.float64], dict[int, str]]"
"""Scores and p-values (n,) of a batch, NaN for failed images, and the error messages of these by position."""


def score_on_worker(uris: Sequence[str], plugin: str) -> Scores:
    """Score a batch with the detector of a plugin of this worker: see :func:`score_batch`."""
    worker = get_worker()
    plugin_on_worker = worker.plugins.get(plugin)
    if not isinstance(plugin_on_worker, (DetectorPlugin, FilePlugin)):
        raise ClusterError(f"worker {worker.address} could not load the detector: see its log")
    return score_batch(plugin_on_worker.detector(), uris)


def score_batch(detector: Any, uris: Sequence[str]) -> Scores:
    """Score a batch; all p-values are NaN if the detector has none."""
    scores, p_values = np.full((2, len(uris)), np.nan)
    items: dict[int, Any] = {}
    errors: dict[int, str] = {}
    for i, uri in enumerate(uris):
        try:
            items[i] = _fetch(uri)
        except (ImportError, MemoryError):  # missing package or too little memory
            raise
        except Exception as error:  # noqa: BLE001 - each file system has its own errors
            errors[i] = _describe(error, uri)
    try:
        if items:
            scores[list(items)], p_values[list(items)] = _judged(detector, list(items.values()))
    except Exception:  # noqa: BLE001 - the failing images are found one by one
        _score_one_by_one(detector, uris, items, scores, p_values, errors)
    for i in np.flatnonzero(~np.isfinite(scores)).tolist():
        errors.setdefault(i, f"{uris[i]}: the detector's score is {scores[i]}")
    scores[list(errors)] = p_values[list(errors)] = np.nan
    return scores, p_values, errors


def _judged(detector: Any, items: list[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the scores and the p-values of images, which pass through the network once."""
    if hasattr(detector, "_judged"):  # a ConformalThreshold, whose p-values may need the scores of its folds
        of_all = detector._judged(items)
        return of_all.scores, of_all.p_values
    scores = np.asarray(detector.score_samples(items), dtype=np.float64)
    judge = getattr(detector, "_judge", None)
    if callable(judge):
        judge = judge()
    return scores, judge.p_values(scores) if isinstance(judge, Judge) else np.full(len(scores), np.nan)


def _score_one_by_one(
    detector: Any,
    uris: Sequence[str],
    items: dict[int, Any],
    scores: NDArray[np.float64],
    p_values: NDArray[np.float64],
    errors: dict[int, str],
) -> None:
    unexpected: list[Exception] = []
    for i, item in items.items():
        try:
            (scores[i],), (p_values[i],) = _judged(detector, [item])
        except (InvalidImageError, OSError) as error:
            errors[i] = _describe(error, uris[i])
        except Exception as error:  # noqa: BLE001 - a bug of the detector must not end the run
            errors[i] = _describe(error, uris[i])
            unexpected.append(error)
    if len(unexpected) == len(items) > 1:
        raise unexpected[0]  # not caused by individual images


def _fetch(uri: str) -> Any:
    """Return a path as it is, or the image at a URL."""
    if "://" not in uri:
        return uri
    if uri.startswith("file://"):
        check_regular_file(url2pathname(urlsplit(uri).path), uri)  # opening a named pipe would block forever
    with fsspec.open(uri, "rb") as file:
        content = file.read()
    with decoding(uri):
        image = Image.open(io.BytesIO(content), formats=known_formats())
        image.load()
    return image


def _describe(error: Exception, uri: str) -> str:
    """Return an error message that names the image by its URI."""
    if isinstance(error, InvalidImageError):
        text = str(error).replace(f"X[0] ({uri})", uri).replace("X[0]", uri)
        return text if uri in text else f"{uri}: {text}"
    return f"{uri}: {type(error).__name__}: {error}"
