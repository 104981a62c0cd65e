"""Inspections as rows: a table for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from skpbas._cli.console import UsageError, shown
from skpbas._cli.inspecting import Inspection
from skpbas._decisions.regions import Region

COLUMNS = ("file", "label", "verdict", "margin", "p_value", "regions", "error")

_NOT_UTF8 = re.compile("[\udc80-\udcff]")
_FORMULAS = ("=", "+", "-", "@", "\t", "\r")

Write = Callable[[Inspection, "Path | None"], None]
"""Writes an inspection, with the file of its picture if there is one."""


def as_dict(inspection: Inspection, picture: Path | None = None) -> dict[str, Any]:
    """Return an inspection as JSON can hold it."""
    values = {
        "file": as_text(inspection.path),
        "label": inspection.label,
        "verdict": inspection.verdict,
        "margin": inspection.margin,
        "p_value": inspection.p_value,
        "regions": None if inspection.error else [_region(region) for region in inspection.regions],
        "error": inspection.error,
    }
    return values if picture is None else values | {"map": as_text(picture)}


def as_text(path: Path) -> str:
    """Return a path as programs read it: all its characters, and bytes that are no UTF-8 as escapes."""
    return _NOT_UTF8.sub(lambda byte: f"\\x{ord(byte[0]) - 0xDC00:02x}", str(path))


def columns(*, with_maps: bool) -> list[str]:
    """Return the columns of a table."""
    return [*COLUMNS, "map"] if with_maps else list(COLUMNS)


def check_header(path: Path, *, with_maps: bool) -> None:
    """Refuse to continue a table that has other columns."""
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        header = next(csv.reader(file), [])
    wanted = columns(with_maps=with_maps)
    if header != wanted:
        raise UsageError(
            f"--csv {path} has the columns {', '.join(header)}, and would get rows of {', '.join(wanted)}: "
            "give another name, or --maps as when it was begun"
        )


def _no_formula(value: Any) -> Any:
    """Return a value that spreadsheets do not compute: "./=a.png" is the same file."""
    return f"./{value}" if isinstance(value, str) and value.startswith(_FORMULAS) else value


def _region(region: Region) -> dict[str, Any]:
    top, left, height, width = region.bbox
    return {
        "top": top,
        "left": left,
        "height": height,
        "width": width,
        "area": region.area,
        "score": round(region.score, 6),
    }


def csv_writer(file: TextIO, *, with_maps: bool, header: bool = True) -> Write:
    """Return what writes rows of CSV, each at once; regions are JSON."""
    writer = csv.DictWriter(file, columns(with_maps=with_maps), restval="", lineterminator="\n")
    if header:
        writer.writeheader()
        file.flush()

    def write(inspection: Inspection, picture: Path | None) -> None:
        values = as_dict(inspection, picture)
        regions = values["regions"]
        row = {name: "" if value is None else _no_formula(value) for name, value in values.items()}
        writer.writerow(row | {"regions": "" if regions is None else json.dumps(regions)})
        file.flush()

    return write


def json_writer(file: TextIO) -> Write:
    """Return what writes one JSON object per line, each at once."""

    def write(inspection: Inspection, picture: Path | None) -> None:
        file.write(json.dumps(as_dict(inspection, picture), ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()

    return write


def table_writer(echo: Callable[[str], None], width: int) -> Write:
    """Return what prints rows of a table, the first after a header.

    Parameters
    ----------
    echo : callable
        Prints a line.
    width : int
        Of the column of files.
    """
    started = False

    def write(inspection: Inspection, picture: Path | None) -> None:
        nonlocal started
        if not started:
            echo(f"{'file':{width}}  label  {'verdict':9}  {'margin':>9}  p_value  regions (top, left, height x width)")
            started = True
        name = shown(inspection.path)
        if inspection.error is not None:
            echo(f"{name:{width}}      -  unreadable")
            return
        echo(
            f"{name:{width}}  {inspection.label:+5d}  {inspection.verdict:9}  {inspection.margin:9.3f}  "
            f"{inspection.p_value:7.3f}  {_in_short(inspection.regions)}".rstrip()
        )

    return write


def _in_short(regions: tuple[Region, ...], most: int = 2) -> str:
    shown = [f"({r.bbox[0]}, {r.bbox[1]}, {r.bbox[2]} x {r.bbox[3]})" for r in regions[:most]]
    return " ".join(shown) + (f" and {len(regions) - most} more" if len(regions) > most else "")
