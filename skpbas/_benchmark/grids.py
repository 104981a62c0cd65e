"""Tables as rows of text, which Markdown and HTML print."""

from __future__ import annotations

from skpbas._benchmark.published import AVERAGE
from skpbas._benchmark.tables import LABELS, SHORT, Table, Value

Grid = tuple[list[str], list[list[str]]]


def main_grid(table: Table) -> Grid:
    """Return header and rows: this run, the paper and the difference, then the paper's other methods."""
    if table.study.rows == "metrics":
        return _metrics_grid(table)
    header = [{"categories": "category", "seeds": "seed"}.get(table.study.rows, "setting")]
    cells = [[row.label] for row in table.rows]
    for metric in table.metrics:
        # where only averages are published, another table compares them
        compared = any(metric in row.published for row in table.rows if row.label != AVERAGE)
        header += [SHORT[metric], "paper", "difference"] if compared else [SHORT[metric]]
        for line, row in zip(cells, table.rows, strict=True):
            line.append(_percent(row.values.get(metric)))
            if compared:
                line += [_number(row.published.get(metric)), _signed(row.difference(metric))]
    for method in table.methods:
        header.append(method)
        for line, row in zip(cells, table.rows, strict=True):
            figures = [_number(row.others.get((method, metric))) for metric in table.metrics]
            line.append("/".join(figure or "-" for figure in figures) if any(figures) else "")
    return header, cells


def _metrics_grid(table: Table) -> Grid:
    """Return the grid of a table whose rows are metrics of the one row of averages."""
    header = ["average", "this run", "paper", "difference", *table.methods]
    cells = []
    for row in table.rows:
        for metric in table.metrics:
            others = [_number(row.others.get((method, metric))) for method in table.methods]
            own = _percent(row.values.get(metric)), _number(row.published.get(metric)), _signed(row.difference(metric))
            cells.append([LABELS[metric], *own, *others])
    return header, cells


def protocol_grid(table: Table) -> Grid | None:
    """Return header and rows of the comparison columns; None if none were asked for.

    Tables by category are parts of that of every metric, which has them.
    """
    metrics = [metric for metric in table.metrics if len(table.variants(metric)) > 1]
    if not metrics or not table.rows or table.study.data_set is not None:
        return None
    header, cells = ["", "metric"], []
    names = list(dict.fromkeys(protocol for metric in metrics for _, protocol in table.variants(metric)))
    header += [*names, "paper"]
    for row in table.rows:
        for metric in metrics:
            of = {protocol: row.values.get(name) for name, protocol in table.variants(metric)}
            paper = _number(row.published.get(metric)) if row.comparable else ""
            cells.append([row.label, LABELS[metric], *(_percent(of.get(name)) for name in names), paper])
    return header, cells


def _percent(value: Value | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.1f}" + ("" if value.deviation is None else f" ± {value.deviation:.1f}")


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _signed(value: float | None) -> str:
    if value is None:
        return ""
    return "0.0" if abs(value) < 0.05 else f"{value:+.1f}".replace("-", "−")
