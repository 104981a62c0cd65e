"""Scores in Parquet files that are complete or not there, and that know what they were made from."""

from __future__ import annotations

import json
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skpbas._features.digests import digest_of
from skpbas._training.sealing import scores_digest
from skpbas.errors import ResultsError, StorageError

FORMAT = 1
"""Of the files."""


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
        self._detector = f"{type(detector).__name__}, offset_={self.offset!r}, digest {scores_digest(detector)[:16]}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"output={str(path)!r} cannot be a folder: {error}") from error
        self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        """Check that whoever reads the folder as one table reads nothing but results of this run."""
        for path in sorted(self.path.glob("*.parquet")):
            if path.name.startswith((".", "_")):  # readers of folders pass over these
                continue
            first = _first_of(path)
            if first is None:
                raise ResultsError(
                    f"{path} is not a result of score_images, and would be read as one with the others in output: "
                    "move it away, or take another folder"
                )
            if first % self.images_per_file:
                raise ResultsError(
                    f"{path} holds the results of another images_per_file than {self.images_per_file}: take another "
                    "folder, or move its files away"
                )

    def refuse_beyond(self, n_images: int) -> None:
        """Check that there is no file of images after the last.

        Raises
        ------
        ResultsError
            A run with more images left it.
        """
        for path in sorted(self.path.glob("part-*.parquet")):
            first = _first_of(path)
            if first is not None and first >= n_images:
                raise ResultsError(
                    f"{path} holds the results of a run with more images than the {n_images} of this one: delete the "
                    "files of images that are no longer asked for, or take another folder; what was scored is kept"
                )

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
        except Exception as error:  # whatever pyarrow makes of a file that is none of its own
            raise ResultsError(
                f"{path} is not a result of score_images, or a damaged one ({error}): {other}; if it is one, delete it "
                "and its images are scored again"
            ) from error
        expected = self._about(uris)
        for name, what in (
            ("format", "another version of skpbas"),
            ("detector", "another detector"),
            ("images_per_file", "another images_per_file"),
            ("uris", "other uris, or the same in another order"),
        ):
            given = told.get(name) if isinstance(told, dict) else None
            if given != expected[name]:
                shown = f": {given}, now {expected[name]}" if name != "uris" else ""
                raise ResultsError(f"{path} holds the results of {what}{shown}; {other}")
        try:
            with path.open("rb") as file:  # a file that is mapped, and shrinks, ends the process
                sound = told["digest"] == _digest(self._parquet.read_table(file), told)
        except Exception as error:  # whatever pyarrow makes of damaged pages
            raise ResultsError(f"{path} is damaged ({error}): delete it, and its images are scored again") from error
        if not sound:
            raise ResultsError(
                f"{path} is damaged or was changed: its digest is another one than when it was written; delete it, and "
                "its images are scored again"
            )
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
        )
        about["digest"] = _digest(table, about)
        table = table.replace_schema_metadata({"skpbas": json.dumps(about)})
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
        digest = digest_of(*uris).hex()
        about = {"format": FORMAT, "detector": self._detector, "images_per_file": self.images_per_file}
        return {**about, "uris": digest}


def _first_of(path: Path) -> int | None:
    """Return the index of a file's first image; None if its name is none of ours."""
    named = re.fullmatch(r"part-(\d{12,})\.parquet", path.name)
    return int(named[1]) if named else None


def _digest(table: Any, about: dict[str, Any]) -> str:
    """Return the digest of the rows of a file and of what it says of itself."""
    rows = [repr(table.column(name).to_pylist()) for name in table.column_names]
    told = {name: value for name, value in about.items() if name != "digest"}
    return digest_of(repr(table.column_names), *rows, json.dumps(told, sort_keys=True)).hex()


def _as_text(name: str) -> str:
    """Return a name that Parquet can hold: what is no Unicode in a file's name is written as an escape."""
    return name.encode("utf-8", "backslashreplace").decode()
