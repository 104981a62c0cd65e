"""The page of a benchmark: one HTML file without links to anything, with bars."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from skpbas._benchmark.bars import panels
from skpbas._benchmark.grids import Grid
from skpbas._benchmark.runs import Outcome, Plan
from skpbas._benchmark.tables import LABELS, Table
from skpbas._benchmark.wording import Run, about, settings_words, surroundings_words

Grids = Sequence[tuple[Table, Grid, Grid | None]]
_CARDS = ("image_auroc", "pixel_auroc", "pixel_pro", "misses_at_1_percent", "misses_at_5_percent")


def benchmark_page(plan: Plan, outcome: Outcome, grids: Grids, runs: Sequence[Run]) -> str:
    """Return the page."""
    style = files(__package__).joinpath("benchmark.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    title = f"Benchmark: {escape(plan.data_set.title)}"
    body = [
        f"<header><h1>{title}</h1>",
        *(f"<p>{escape(sentence)}</p>" for sentence in about(plan, outcome, len(runs))),
        "</header><main>",
        _cards(grids),
        _failures(outcome),
        *(_section(*one) for one in grids),
        _warnings(runs),
        _folded("Settings", (["parameter", "value", "default, if another"], settings_words(plan))),
        _folded("Versions and machine", (["", "value"], [list(row) for row in surroundings_words(runs)])),
        _times(runs),
        "</main>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        + "\n".join(filter(None, body))
        + "\n</body>\n</html>\n"
    )


def _cards(grids: Grids) -> str:
    """Return the averages of the preset itself."""
    rows = [row for table, *_ in grids if table.study.name == "results" for row in table.rows[-1:]]
    if not rows:
        return ""
    items = []
    for metric in _CARDS:
        if (value := rows[0].values.get(metric)) is not None:
            paper = rows[0].published.get(metric) if rows[0].comparable else None
            beside = f"<small>paper {paper:.1f}</small>" if paper is not None else ""
            items.append(f"<li><strong>{value.mean:.1f} %</strong> <span>{LABELS[metric]}</span>{beside}</li>")
    return f'<ul class="cards">{"".join(items)}</ul>'


def _failures(outcome: Outcome) -> str:
    if not outcome.failures:
        return ""
    rows = [
        [one.category, one.setting, "" if one.seed is None else str(one.seed), one.reason] for one in outcome.failures
    ]
    n = len(rows)
    return (
        f'<section class="note"><h2>{n} {"failure" if n == 1 else "failures"}</h2><p>These have no result, and '
        "averages are without them. The same command runs them again.</p>"
        + _table((["category", "setting", "seed", "reason"], rows), n_words=4)
        + "</section>"
    )


def _section(table: Table, main: Grid, protocol: Grid | None) -> str:
    parts = [
        f"<section><h2>{escape(table.study.heading)}</h2>",
        f'<p class="quiet">{escape(" ".join(table.notes))}</p>',
    ]
    if not main[1]:
        return "".join([*parts, "<p>No run of this table is finished.</p></section>"])
    parts += [panels(table), _table(main, last_is_mean=table.study.rows in ("categories", "seeds"))]
    if protocol is not None:
        parts.append(
            '<h3>How much is protocol</h3><p class="quiet">The same runs, measured as published figures are. Only the '
            "last epoch with exact PRO is a result.</p>" + _table(protocol, n_words=2)
        )
    return "".join([*parts, "</section>"])


def _table(grid: Grid, *, n_words: int = 1, last_is_mean: bool = False) -> str:
    """Return a table; the first columns are words."""
    header, rows = grid
    words = [i < n_words for i in range(len(header))]
    kinds = ["" if is_word else ' class="number"' for is_word in words]
    head = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for cell, kind in zip(header, kinds, strict=True))
    lines = []
    for row in rows:
        last = last_is_mean and row is rows[-1] and len(rows) > 1
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for cell, kind in zip(row[1:], kinds[1:], strict=True))
        lines.append(f'<tr{" class=mean" if last else ""}><th scope="row">{escape(row[0])}</th>{cells}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _folded(title: str, grid: Grid) -> str:
    return f"<section><details><summary>{escape(title)}</summary>{_table(grid, n_words=9)}</details></section>"


def _warnings(runs: Sequence[Run]) -> str:
    said: dict[str, list[str]] = {}
    for category, case, seed, record in runs:
        for message in record["warnings"]:
            said.setdefault(message, []).append(f"{category}, {case.name}, seed {seed}")
    if not said:
        return ""
    rows = [[message, of[0] + (f" and {len(of) - 1} more" if len(of) > 1 else "")] for message, of in said.items()]
    return _folded(f"Warnings ({len(rows)})", (["warning", "runs"], rows))


def _times(runs: Sequence[Run]) -> str:
    """Return the measured times, the only part that differs between two equal benchmarks."""
    rows = []
    for category, case, seed, record in runs:
        fit, score = record["seconds"]["fit"], record["seconds"]["score"]
        rows.append([category, case.name, str(seed), f"{fit:.1f}", f"{score:.1f}", record["finished"]])
    header = ["category", "setting", "seed", "fit, s", "score, s", "finished (UTC)"]
    total = sum(record["seconds"]["fit"] + record["seconds"]["score"] for *_, record in runs)
    return (
        f'<section id="times"><details><summary>Times ({total:,.0f} s together)</summary>'
        + _table((header, rows))
        + "</details></section>"
    )
