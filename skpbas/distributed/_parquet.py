"""Scores in Parquet files, written atomically, with metadata of their inputs."""

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
    """The images of one file during scoring: results so far, and the number still missing."""

    first: int
    uris: list[str]
    scores: NDArray[np.float64] = field(init=False)
    errors: dict[int, str] = field(default_factory=dict)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.scores = np.full(len(self.uris), np.nan)
        self.missing = len(self.uris)

    def put(self, first: int, scores: NDArray[np.float64], errors: dict[int, str]) -> None:
        """Add the results of a batch that starts with image ``first``."""
        start = first - self.first
        self.scores[start : start + len(scores)] = scores
        self.errors |= {start + i: text for i, text in errors.items()}
        self.missing -= len(scores)


class ResultFolder:
    """A folder of Parquet files, each with the results of consecutive images and metadata of their inputs."""

    def __init__(self, path: str | os.PathLike[str], detector: Any, images_per_file: int) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError(f"output needs pyarrow ({error}): pip install skpbas[dask]") from error
        if "://" in str(path):
            raise ValueError(f"output={str(path)!r}: expected a folder on this machine, which may be a mounted one")
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self.path, self.images_per_file = Path(path), images_per_file
        self.offset = float(detector.offset_)
        self._detector = f"{type(detector).__name__}, offset_={self.offset!r}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"output={str(path)!r} cannot be created: {error}") from error

    def found(self, first: int, uris: list[str]) -> dict[str, Any] | None:
        """Return the metadata of the file of an earlier run, or None if there is none.

        Raises
        ------
        ResultsError
            The file has different inputs.
        """
        path = self._file(first)
        if not path.exists():
            return None
        hint = "use another folder, or move its files"
        try:
            found = json.loads(self._parquet.read_schema(path).metadata[b"skpbas"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResultsError(f"{path} is not a result of score_images ({error}): {hint}") from error
        expected = self._metadata(uris)
        for name, what in (
            ("detector", "another detector"),
            ("images_per_file", "another images_per_file"),
            ("uris", "other uris, or of the same uris in another order"),
        ):
            if found[name] != expected[name]:
                shown = f": {found[name]}, now {expected[name]}" if name != "uris" else ""
                raise ResultsError(f"{path} has results of {what}{shown}; {hint}")
        return dict(found)

    def write(self, part: Part) -> dict[str, Any]:
        """Write a complete part and return the metadata of its file."""
        arrow, failed = self._arrow, np.isin(np.arange(len(part.uris)), list(part.errors))
        decisions = part.scores - self.offset
        labels = np.where(decisions < 0, -1, 1).astype(np.int8)
        metadata = self._metadata(part.uris)
        metadata |= {"n_failed": len(part.errors), "n_anomalous": int(np.count_nonzero(labels[~failed] == -1))}
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
        ).replace_schema_metadata({"skpbas": json.dumps(metadata)})
        target = self._file(part.first)
        partial = target.with_name(f".{target.name}.unfinished")  # readers of folders ignore hidden files
        try:
            with partial.open("wb") as file:
                self._parquet.write_table(table, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
        except OSError as error:
            raise StorageError(
                f"{target} cannot be written ({error}): free some space and run again; complete files are kept"
            ) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
        return metadata

    def _file(self, first: int) -> Path:
        return self.path / f"part-{first:012d}.parquet"

    def _metadata(self, uris: list[str]) -> dict[str, Any]:
        digest = hashlib.sha256("\0".join(uris).encode("utf-8", "surrogatepass")).hexdigest()
        return {"detector": self._detector, "images_per_file": self.images_per_file, "uris": digest}


def _as_text(name: str) -> str:
    """Escape the bytes of a file name that are not valid Unicode, which Parquet cannot store."""
    return name.encode("utf-8", "backslashreplace").decode()
