"""Scores in Parquet files that are complete or not there, and that know what they were made from."""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas.errors import ResultsError, StorageError


@dataclass
class Part:
    """One file's images on their way: what has come back, and how many are missing."""

    first: int
    uris: list[str]
    scores: NDArray[np.float64] = field(init=False)
    errors: dict[int, str] = field(default_factory=dict)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.full(len(self.uris), np.nan)
        self.missing = len(self.uris)

    def put(self, first: int, scores: NDArray[np.float64], errors: dict[int, str]) -> None:
        """Take in what a batch gave, the first image of which is ``first``."""
        start = first - self.first
        self.scores[start : start + len(scores)] = scores
        self.errors |= {start + i: text for i, text in errors.items()}
        self.missing -= len(scores)


class ResultFolder:
    """Parquet files, one for each run of consecutive images, each of which says what it was made from."""

    def __init__(self, path: str | os.PathLike[str], detector: Any, images_per_file: int) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(f"output needs pyarrow ({error}): pip install skpbas[dask]") from error
        if "://" in str(path):
            raise ValueError(f"output={str(path)!r}: a folder of this machine is expected, which may be a mounted one")
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self.path, self.images_per_file = Path(path), images_per_file
        self.offset = float(detector.offset_)
        self._detector = f"{type(detector).__name__}, offset_={self.offset!r}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"output={str(path)!r} cannot be a folder: {error}") from error

    def found(self, first: int, uris: list[str]) -> dict[str, Any] | None:
        """Return what an earlier run's file says of itself; None if there is none.

        Raises
        ------
        ResultsError
            It was made from something else.
        """
        path = self._file(first)
        if not path.exists():
            return None
        other = "take another folder, or move its files away"
        try:
            told = json.loads(self._parquet.read_schema(path).metadata[b"skpbas"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path} is not a result of score_images ({error}): {other}") from error
        expected = self._about(uris)
        for name, what in (
            ("detector", "another detector"),
            ("images_per_file", "another images_per_file"),
            ("uris", "other uris, or the same in another order"),
        ):
            if told[name] != expected[name]:
                shown = f": {told[name]}, now {expected[name]}" if name != "uris" else ""
                raise ResultsError(f"{path} holds the results of {what}{shown}; {other}")
        return dict(told)

    def write(self, part: Part) -> dict[str, Any]:
        """Write a complete part; return what its file says of itself."""
        arrow, failed = self._arrow, np.isin(np.arange(len(part.uris)), list(part.errors))
        decisions = part.scores - self.offset
        labels = np.where(decisions < 0, -1, 1).astype(np.int8)
        about = self._about(part.uris)
        about |= {"n_failed": len(part.errors), "n_anomalous": int(np.count_nonzero(labels[~failed] == -1))}
        errors = [_as_text(part.errors[i]) if i in part.errors else None for i in range(len(part.uris))]
        table = arrow.table(
            {
                "index": arrow.array(np.arange(part.first, part.first + len(part.uris))),
                "uri": arrow.array(map(_as_text, part.uris), arrow.string()),
                "score": arrow.array(part.scores),
                "decision": arrow.array(decisions),
                "label": arrow.array(labels, mask=failed),
                "error": arrow.array(errors, arrow.string()),
            }
        ).replace_schema_metadata({"skpbas": json.dumps(about)})
        target = self._file(part.first)
        unfinished = target.with_name(f".{target.name}.unfinished")  # a name that readers of folders pass over
        try:
            with unfinished.open("wb") as file:
                self._parquet.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(target)
        except OSError as error:
            raise StorageError(
                f"{target} cannot be written ({error}): make room, then run again; complete files are kept"
            ) from error
        finally:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
        return about

    def _file(self, first: int) -> Path:
        return self.path / f"part-{first:012d}.parquet"

    def _about(self, uris: list[str]) -> dict[str, Any]:
        digest = hashlib.sha256("\0".join(uris).encode("utf-8", "surrogatepass")).hexdigest()
        return {"detector": self._detector, "images_per_file": self.images_per_file, "uris": digest}


def _as_text(name: str) -> str:
    """Return a name that Parquet can hold: what is no Unicode in a file's name is written as an escape."""
    return name.encode("utf-8", "backslashreplace").decode()
