"""The paper's figures, as facts: percent as printed, with its selection on the test set and its own PRO."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

AVERAGE = "average"
METHOD = "PBAS"


@cache
def published() -> dict[tuple[str, str], dict[tuple[str, str], float]]:
    """Return percentages by table and row, such as ("I", "bottle"), then by method and metric."""
    text = files(__package__).joinpath("published.csv").read_text(encoding="utf-8")
    figures: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    for line in csv.DictReader(text.splitlines()):
        row = figures.setdefault((line["table"], line["row"]), {})
        row[line["method"], line["metric"]] = float(line["percent"])
    return figures


def figure(table: str, row: str, metric: str, method: str = METHOD) -> float | None:
    """Return a percentage of the paper, or None if it has none."""
    return published().get((table, row), {}).get((method, metric))


def methods(table: str) -> list[str]:
    """Return the methods of a table, as the paper orders them; PBAS is the last."""
    found = (method for (of, _), row in published().items() if of == table for method, _ in row)
    return list(dict.fromkeys(found))
