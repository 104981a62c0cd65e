"""The files of a benchmark: CSV, JSON, Markdown, and times apart, so that the others do not depend on them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skpbas._benchmark.grids import Grid, main_grid, protocol_grid
from skpbas._benchmark.html_page import benchmark_page
from skpbas._benchmark.runs import Outcome, Plan
from skpbas._benchmark.tables import LABELS, Row, Table, tables_of
from skpbas._benchmark.wording import Run, about, finished_runs, protocol_words, settings_words, surroundings_words
from skpbas._training.saving import write_atomically


def write_outputs(plan: Plan, outcome: Outcome, output: Path) -> list[Path]:
    """Write all files of a benchmark, each at once, and return their paths.

    ``results.csv``, ``tables.csv``, ``results.json`` and ``results.md`` depend on the results alone; ``times.csv`` has
    the measured times; ``results.html`` has everything.

    Raises
    ------
    StorageError
        A file cannot be written.
    """
    tables = tables_of(plan, outcome)
    grids = [(table, main_grid(table), protocol_grid(table)) for table in tables]
    runs = finished_runs(plan, outcome)
    contents = {
        "results.csv": _csv(_results_lines(plan, runs)),
        "tables.csv": _csv(_tables_lines(tables)),
        "times.csv": _csv(_times_lines(runs)),
        "results.json": json.dumps(_json(plan, outcome, tables, runs), indent=1, ensure_ascii=False) + "\n",
        "results.md": _markdown(plan, outcome, grids, runs),
        "results.html": benchmark_page(plan, outcome, grids, runs),
    }
    for name, content in contents.items():
        write_atomically(output / name, content.encode("utf-8", "backslashreplace"))
    return [output / name for name in contents]


def _results_lines(plan: Plan, runs: Sequence[Run]) -> list[list[Any]]:
    metrics = [name for name in LABELS if any(name in record["metrics"] for *_, record in runs)]
    metrics += [name for *_, record in runs for name in record["metrics"] if name not in metrics]
    metrics = list(dict.fromkeys(metrics))
    facts = list(dict.fromkeys(name for *_, record in runs for name in record["facts"]))
    lines: list[list[Any]] = [["data_set", "category", "setting", "seed", *facts, *metrics]]
    for category, case, seed, record in runs:
        values = [record["facts"].get(name, "") for name in facts] + [
            record["metrics"].get(name, "") for name in metrics
        ]
        lines.append([plan.data_set.title, category, case.name, seed, *values])
    return lines


def _times_lines(runs: Sequence[Run]) -> list[list[Any]]:
    lines: list[list[Any]] = [["category", "setting", "seed", "fit_seconds", "score_seconds", "finished"]]
    for category, case, seed, record in runs:
        seconds = record["seconds"]
        lines.append([category, case.name, seed, seconds["fit"], seconds["score"], record["finished"]])
    return lines


def _tables_lines(tables: Sequence[Table]) -> list[list[Any]]:
    lines: list[list[Any]] = [
        ["table", "row", "metric", "protocol", "percent", "deviation", "seeds", "categories", "paper", "difference"]
    ]
    for table in tables:
        for row in table.rows:
            for figure in _figures(table, row):
                lines.append([table.study.name, row.label, *("" if cell is None else cell for cell in figure.values())])
    return lines


def _figures(table: Table, row: Row) -> list[dict[str, Any]]:
    """Return every figure of a row, of the headline and of the comparison columns."""
    found = []
    for metric in table.metrics:
        for name, protocol in table.variants(metric):
            if (value := row.values.get(name)) is not None:
                found.append(
                    {
                        "metric": metric,
                        "protocol": protocol,
                        "percent": _rounded(value.mean),
                        "deviation": _rounded(value.deviation),
                        "seeds": value.n_seeds,
                        "categories": len(value.categories),
                        "paper": row.published.get(metric),
                        "difference": _rounded(row.difference(metric, name)),
                    }
                )
    return found


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)  # sums of percents; more digits are rounding


def _json(plan: Plan, outcome: Outcome, tables: Sequence[Table], runs: Sequence[Run]) -> dict[str, Any]:
    return {
        "data_set": plan.data_set.title,
        "categories": list(plan.categories),
        "preset": plan.preset,
        "protocol": protocol_words(plan.protocol),
        "tables": [
            {
                "name": table.study.name,
                "title": table.study.heading,
                "notes": table.notes,
                "rows": [
                    {
                        "row": row.label,
                        "figures": _figures(table, row),
                        "other_methods": [
                            {"method": method, "metric": metric, "percent": percent}
                            for (method, metric), percent in row.others.items()
                        ],
                    }
                    for row in table.rows
                ],
            }
            for table in tables
        ],
        "runs": [
            {
                "category": category,
                "setting": case.name,
                "seed": seed,
                **{name: record[name] for name in ("facts", "metrics", "warnings", "identity", "surroundings")},
            }
            for category, case, seed, record in runs
        ],
        "failures": [
            {"category": one.category, "setting": one.setting, "seed": one.seed, "reason": one.reason}
            for one in outcome.failures
        ],
    }


def _csv(lines: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def _markdown(
    plan: Plan, outcome: Outcome, grids: Sequence[tuple[Table, Grid, Grid | None]], runs: Sequence[Run]
) -> str:
    parts = [_escaped(f"# Benchmark: {plan.data_set.title}"), *map(_escaped, about(plan, outcome, len(runs)))]
    if outcome.failures:
        lines = [
            _escaped(f"- {one.category}, {one.setting}{'' if one.seed is None else f', seed {one.seed}'}: {one.reason}")
            for one in outcome.failures
        ]
        parts += ["## Failed", "\n".join(lines)]
    for table, main, protocol in grids:
        parts += [f"## {table.study.heading}", _escaped(" ".join(table.notes))]
        parts.append(_pipes(main) if main[1] else "No run of this table is finished.")
        if protocol is not None:
            parts += ["How much is protocol, on the same runs:", _pipes(protocol)]
    parts += [
        "## Settings",
        _pipes((["parameter", "value", "default, if another"], settings_words(plan)), numbers=False),
    ]
    versions = [[name, value] for name, value in surroundings_words(runs)]
    parts += ["## Versions and machine", _pipes((["", ""], versions), numbers=False)]
    return "\n\n".join(parts) + "\n"


def _pipes(grid: Grid, *, numbers: bool = True) -> str:
    header, rows = grid
    lines = [header, ["---"] + ["---:" if numbers else "---"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(_escaped(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _escaped(text: str) -> str:
    """Return a text that Markdown does not take for HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
