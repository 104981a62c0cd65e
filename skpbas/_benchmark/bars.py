"""Bars of what is missing to a perfect result, as inline SVG: they start at zero, and small differences are seen."""

from __future__ import annotations

import math
from html import escape

from skpbas._benchmark.measuring import MISSES
from skpbas._benchmark.tables import LABELS, Table

Bar = tuple[str, float, float | None]
"""Label, what this run misses and what the paper's does, in percent."""

_WIDTH, _CHARACTER, _VALUES, _LINE, _TOP = 420, 7.2, 36, 26, 34
_OF_RESULTS = ("image_auroc", "pixel_pro", MISSES[0])


def panels(table: Table) -> str:
    """Return a panel of bars for each metric of a table."""
    if table.study.rows == "metrics":
        row = table.rows[0]
        shown: list[Bar] = []
        for metric in table.metrics:
            if metric in row.values:
                paper = row.published.get(metric) if row.comparable else None
                shown.append((LABELS[metric], _missing(metric, row.values[metric].mean), _missing_of(metric, paper)))
        drawn = [_panel("averages", shown, "100 % minus the metric")]
    else:
        metrics = _OF_RESULTS if table.study.name == "results" else table.metrics
        drawn = [_panel(LABELS[metric], _bars(table, metric), _axis(metric)) for metric in metrics]
    drawn = [one for one in drawn if one]
    if not drawn:
        return ""
    paper = any(row.published for row in table.rows)
    key = '<span class="key"><i class="own"></i>this run' + ('<i class="paper"></i>paper' if paper else "") + "</span>"
    return f'<div class="panels">{"".join(drawn)}</div><p class="quiet">Shorter bars are better. {key}</p>'


def _bars(table: Table, metric: str) -> list[Bar]:
    bars: list[Bar] = []
    for row in table.rows:
        if metric in row.values:
            paper = row.published.get(metric) if row.comparable else None
            bars.append((row.label, _missing(metric, row.values[metric].mean), _missing_of(metric, paper)))
    return bars


def _axis(metric: str) -> str:
    return "missed defective images" if metric in MISSES else "100 % minus the metric"


def _missing(metric: str, percent: float) -> float:
    return percent if metric in MISSES else 100 - percent


def _missing_of(metric: str, percent: float | None) -> float | None:
    return None if percent is None else _missing(metric, percent)


def _panel(title: str, bars: list[Bar], axis: str) -> str:
    if not bars:
        return ""
    most = max(value for _, *values in bars for value in values if value is not None)
    step = _step(most)
    end = step * max(1, math.ceil(most / step - 1e-9))
    start = round(12 + _CHARACTER * max(10, *(len(_short(label)) for label, *_ in bars)))
    scale = (_WIDTH - start - _VALUES) / end
    height = _TOP + _LINE * len(bars) + 4
    parts = [f'<text x="1" y="12" class="title">{escape(title)}</text>']
    for i in range(round(end / step) + 1):
        x = start + i * step * scale
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 4}" y2="{height}" class="grid"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 8}" class="tick">{i * step:g}</text>')
    for i, (label, own, paper) in enumerate(bars):
        y = _TOP + _LINE * i
        middle = y + (11 if paper is None else 12)
        parts.append(f'<text x="{start - 8}" y="{middle + 3}" class="label">{escape(_short(label))}</text>')
        parts.append(f'<rect x="{start}" y="{y + 3}" width="{own * scale:.1f}" height="10" class="own"/>')
        parts.append(f'<text x="{start + own * scale + 5:.1f}" y="{y + 12}" class="value">{own:.1f}</text>')
        if paper is not None:
            parts.append(f'<rect x="{start}" y="{y + 14}" width="{paper * scale:.1f}" height="6" class="paper"/>')
    words = f"{title}: " + "; ".join(f"{label} {own:.1f}" for label, own, _ in bars)
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(words)}">{"".join(parts)}</svg>'
        f"<figcaption>{axis}, percent</figcaption></figure>"
    )


def _step(most: float) -> float:
    """Return a round distance of ticks, of which there are three to six."""
    if most <= 0:
        return 0.5
    power = 10 ** math.floor(math.log10(most))
    return next(power * factor for factor in (0.2, 0.5, 1, 2, 5) if most / (power * factor) <= 5)


def _short(label: str) -> str:
    label = label.replace(" false alarms", "")
    return label if len(label) <= 29 else label[:28] + "…"
