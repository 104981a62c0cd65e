"""Scores in Parquet files, written atomically, with metadata of their inputs."""

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
    """The images of one file during scoring: results so far, and the number still missing."""

    first: int
    uris: list[str]
    scores: NDArray[np.float64] = field(init=False)
    p_values: NDArray[np.float64] = field(init=False)
    errors: dict[int, str] = field(default_factory=dict)
    missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.scores, self.p_values = np.full((2, len(self.uris)), np.nan)
        self.missing = len(self.uris)

    def put(
        self, first: int, scores: NDArray[np.float64], p_values: NDArray[np.float64], errors: dict[int, str]
    ) -> None:
        """Add the results of a batch that starts with image ``first``."""
        start = first - self.first
        self.scores[start : start + len(scores)] = scores
        self.p_values[start : start + len(scores)] = p_values
        self.errors |= {start + i: text for i, text in errors.items()}
        self.missing -= len(scores)


class ResultFolder:
    """A folder of Parquet files, each with the results of consecutive images and metadata of their inputs.

    ``digest``: of what the detector's scores depend on; None: of the estimator's attributes.
    """

    def __init__(
        self, path: str | os.PathLike[str], detector: Any, images_per_file: int, digest: str | None = None
    ) -> None:
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
        digest = scores_digest(detector) if digest is None else digest
        self._detector = f"{type(detector).__name__}, offset_={self.offset!r}, digest {digest[:16]}"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"output={str(path)!r} cannot be created: {error}") from error
        self._refuse_foreign()

    def _refuse_foreign(self) -> None:
        """Check that the folder, which readers take as one table, has no Parquet files of another origin."""
        for path in sorted(self.path.glob("*.parquet")):
            if path.name.startswith((".", "_")):  # ignored by readers of folders
                continue
            first = _first_of(path)
            if first is None:
                raise ResultsError(
                    f"{path} is not a result of score_images, and would be read as one with the others in output: "
                    "move it away, or take another folder"
                )
            if first % self.images_per_file:
                raise ResultsError(
                    f"{path} has results of another images_per_file than {self.images_per_file}: take another "
                    "folder, or move its files away"
                )

    def refuse_beyond(self, n_images: int) -> None:
        """Check that there are no results of images after the last one.

        Raises
        ------
        ResultsError
            An earlier run had more images.
        """
        for path in sorted(self.path.glob("part-*.parquet")):
            first = _first_of(path)
            if first is not None and first >= n_images:
                raise ResultsError(
                    f"{path} has results of a run with more images than the {n_images} of this one: delete the "
                    "files of images that are no longer asked for, or take another folder; what was scored is kept"
                )

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
        except Exception as error:  # pyarrow raises many types on a damaged file
            raise ResultsError(
                f"{path} is not a result of score_images, or a damaged one ({error}): {hint}; if it is one, delete it "
                "and its images are scored again"
            ) from error
        expected = self._metadata(uris)
        for name, what in (
            ("format", "another version of skpbas"),
            ("detector", "another detector"),
            ("images_per_file", "another images_per_file"),
            ("uris", "other uris, or of the same uris in another order"),
        ):
            given = found.get(name) if isinstance(found, dict) else None
            if given != expected[name]:
                shown = f": {given}, now {expected[name]}" if name != "uris" else ""
                raise ResultsError(f"{path} has results of {what}{shown}; {hint}")
        try:
            with path.open("rb") as file:  # not mapped: a file that shrinks would end the process
                sound = found["digest"] == _digest(self._parquet.read_table(file), found)
        except Exception as error:  # as above
            raise ResultsError(f"{path} is damaged ({error}): delete it, and its images are scored again") from error
        if not sound:
            raise ResultsError(
                f"{path} is damaged or was changed: its digest is another one than when it was written; delete it, and "
                "its images are scored again"
            )
        return dict(found)

    def write(self, part: Part) -> dict[str, Any]:
        """Write a complete part and return the metadata of its file."""
        arrow, failed = self._arrow, np.isin(np.arange(len(part.uris)), list(part.errors))
        margins = part.scores - self.offset
        labels = np.where(margins >= 0, 1, -1).astype(np.int8)
        metadata = self._metadata(part.uris)
        metadata |= {"n_failed": len(part.errors), "n_anomalous": int(np.count_nonzero(labels[~failed] == -1))}
        errors = [_as_text(part.errors[i]) if i in part.errors else None for i in range(len(part.uris))]
        table = arrow.table(
            {
                "index": arrow.array(np.arange(part.first, part.first + len(part.uris))),
                "uri": arrow.array(map(_as_text, part.uris), arrow.string()),
                "score": arrow.array(part.scores),
                "margin": arrow.array(margins),
                "label": arrow.array(labels, mask=failed),
                "p_value": arrow.array(part.p_values, mask=np.isnan(part.p_values)),
                "error": arrow.array(errors, arrow.string()),
            }
        )
        metadata["digest"] = _digest(table, metadata)
        table = table.replace_schema_metadata({"skpbas": json.dumps(metadata)})
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
        digest = digest_of(*uris).hex()
        metadata = {"format": FORMAT, "detector": self._detector, "images_per_file": self.images_per_file}
        return {**metadata, "uris": digest}


def _first_of(path: Path) -> int | None:
    """Return the index of a file's first image, or None if the file has another kind of name."""
    named = re.fullmatch(r"part-(\d{12,})\.parquet", path.name)
    return int(named[1]) if named else None


def _digest(table: Any, metadata: dict[str, Any]) -> str:
    """Return the digest of the rows, their types and the metadata of a file."""
    columns = [(column.name, str(column.type)) for column in table.schema]
    rows = [repr(table.column(name).to_pylist()) for name in table.column_names]
    content = {name: value for name, value in metadata.items() if name != "digest"}
    return digest_of(repr(columns), *rows, json.dumps(content, sort_keys=True)).hex()


def _as_text(name: str) -> str:
    """Escape the bytes of a file name that are not valid Unicode, which Parquet cannot store."""
    return name.encode("utf-8", "backslashreplace").decode()
