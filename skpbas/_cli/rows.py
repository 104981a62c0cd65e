"""Inspections as rows: a table for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from skpbas._cli.inspecting import Inspection
from skpbas._decisions.regions import Region

COLUMNS = ("file", "label", "verdict", "margin", "p_value", "regions", "error")

Write = Callable[[Inspection, "Path | None"], None]
"""Writes an inspection, with the file of its picture if there is one."""


def as_dict(inspection: Inspection, picture: Path | None = None) -> dict[str, Any]:
    """Return an inspection as JSON can hold it."""
    values = {
        "file": shown(inspection.path),
        "label": inspection.label,
        "verdict": inspection.verdict,
        "margin": inspection.margin,
        "p_value": inspection.p_value,
        "regions": None if inspection.error else [_region(region) for region in inspection.regions],
        "error": inspection.error,
    }
    return values if picture is None else values | {"map": shown(picture)}


def shown(path: Path) -> str:
    """Return a path as text, also where the locale knows fewer characters than the names of files have."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


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
    columns = [*COLUMNS, "map"] if with_maps else list(COLUMNS)
    writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
    if header:
        writer.writeheader()
        file.flush()

    def write(inspection: Inspection, picture: Path | None) -> None:
        values = as_dict(inspection, picture)
        regions = values["regions"]
        row = {name: "" if value is None else value for name, value in values.items()}
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
