"""The page itself: records and tables to one HTML file without links to anything."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterable
from datetime import datetime
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import skpbas
from skpbas._inputs.mask_reader import with_maps
from skpbas.inspection._report.facts import (
    Rows,
    comparison_rows,
    fitted_rows,
    settings_rows,
    version_rows,
)
from skpbas.inspection._report.pictures import legend
from skpbas.inspection._report.records import Inspected, Record
from skpbas.inspection._report.summary import ReportSummary, images

_MOST_FOLDERS = 100


def page_of(found: Inspected, summary: ReportSummary, detector: Any, title: str) -> bytes:
    """Return the file of a report.

    Parameters
    ----------
    found : Inspected
    summary : ReportSummary
    detector : fitted detector
    title : str
    """
    names = _short_names([record.name for record in found.records], [name for name, _ in found.unreadable])
    style, script = _resource("report.css"), _resource("report.js")
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = Template(_resource("report.html")).substitute(
        policy=policy,
        style=style,
        script=script,
        title=_text(title),
        written=_text(f"Written {datetime.now().astimezone():%Y-%m-%d %H:%M %Z} by skpbas {skpbas.__version__}"),
        cards=_cards(summary),
        words="".join(f"<p>{_text(sentence)}</p>" for sentence in _words(found, summary, detector, names)),
        unreadable=_unreadable(found, names),
        differences=_differences(found, names),
        folders=_folders(found, names),
        truth_options=_TRUTH_OPTIONS if found.known else "",
        truth_head=_TRUTH_HEAD if found.known else "",
        rows="".join(_row(i, record, names[record.name], found.known) for i, record in enumerate(found.records)),
        comparison=_comparison(found),
        fitted=_table(("", "value"), fitted_rows(detector, found)),
        settings=_table(("parameter", "value", "default, if another"), settings_rows(detector)),
        versions=_table(("", "version"), version_rows(detector)),
        data=_json(_data(found, names)),
        pictures="".join(
            f'<script type="application/json" id="picture-{i}">{_json(record.picture)}</script>\n'
            for i, record in enumerate(found.records)
        ),
    )
    return page.encode("utf-8")


def _data(found: Inspected, names: dict[str, str]) -> dict[str, Any]:
    """Return what the script computes with."""
    training = found.training_margins
    return {
        "records": [
            {
                "name": _sound(names[record.name]),
                "margin": record.margin,
                "p": record.p_value,
                "verdict": record.verdict,
                "n": record.n_regions,
                "regions": record.regions,
                "defective": record.defective,
            }
            for record in found.records
        ],
        "known": found.known,
        "masks": any(record.picture.get("truth") for record in found.records),
        "unsure": found.unsure_margin,
        "training": None if training is None else [float(f"{margin:.4g}") for margin in training],
        "mapThreshold": found.map_threshold,
        "colors": legend(),
    }


# Words ----------------------------------------------------------------------------------------------------


def _words(found: Inspected, summary: ReportSummary, detector: Any, names: dict[str, str]) -> list[str]:
    """Return the summary in words."""
    said = [" ".join(summary.sentences())]
    if summary.misses and found.unsure_margin:
        n = sum(record.defective is True and record.verdict == "unsure" for record in found.records)
        said.append(
            f"Of the missed ones {n:,} {'is' if n == 1 else 'are'} unsure: a person who looks at these sees them."
        )
    if found.records and found.records[0].margin < 0:
        worst = found.records[0]
        where = worst.regions[0]["box"] if worst.regions else None
        place = f", at x {where[0]}, y {where[1]} ({where[2]} x {where[3]} pixels)" if where else ""
        said.append(f"The most anomalous image is {names[worst.name]}{place}.")
    maker = with_maps(detector)
    n_training, rate = getattr(maker, "n_samples_fit_", None), getattr(detector, "false_alarm_rate", None)
    if n_training is not None:
        aim = (
            ""
            if rate is None or detector.contamination != "auto"
            else f" and aims to flag {100 * rate:g} % of good ones"
        )
        said.append(f"The detector learned from {n_training:,} good images{aim}.")
    if found.good is not None and found.seen is not None and not found.differences:
        said.append("In brightness, contrast, color and size the images are like those that the detector learned from.")
    return said


def _cards(summary: ReportSummary) -> str:
    counts = [
        ("anomalous", summary.n_anomalous, "anomalous"),
        ("unsure", summary.n_unsure, "unsure"),
        ("normal", summary.n_normal, "normal"),
        ("unreadable", len(summary.unreadable), "not readable"),
    ]
    return "".join(
        f'<li class="{kind}"><strong>{n:,}</strong> <span>{words}</span></li>'
        for kind, n, words in counts
        if n or kind != "unreadable"
    )


def _unreadable(found: Inspected, names: dict[str, str]) -> str:
    if not found.unreadable:
        return ""
    rows: Rows = [(names[name], reason) for name, reason in found.unreadable]
    return (
        f'<section class="note bad" id="unreadable"><h2>{images(len(rows)).capitalize()} not readable</h2>'
        "<p>Nothing is said about these: inspect the parts again.</p>"
        + _table(("image", "reason"), rows)
        + "</section>"
    )


def _differences(found: Inspected, names: dict[str, str]) -> str:
    if not found.differences:
        return ""
    texts = list(found.differences)
    for name, short in names.items():
        texts = [text.replace(name, short) for text in texts]
    items = "".join(f"<li>{_text(text[0].upper() + text[1:])}.</li>" for text in texts)
    return (
        '<section class="note" id="differences"><h2>Not like the training images</h2><p>Margins may mean less than '
        f"they should: another camera, light or conversion may have made these images.</p><ul>{items}</ul></section>"
    )


def _folders(found: Inspected, names: dict[str, str]) -> str:
    """Return a table of verdicts by folder, if there are several."""
    counts: dict[str, dict[str, int]] = {}
    for record in found.records:
        folder = os.path.dirname(names[record.name].replace("\\", "/")) or "."
        of_folder = counts.setdefault(folder, {"anomalous": 0, "unsure": 0, "normal": 0})
        of_folder[record.verdict] += 1
    if not 1 < len(counts) <= _MOST_FOLDERS:
        return ""
    rows = [
        (folder, f"{sum(of_folder.values()):,}", *(f"{n:,}" for n in of_folder.values()))
        for folder, of_folder in sorted(counts.items())
    ]
    head = ("folder", "images", "anomalous", "unsure", "normal")
    return f'<section id="folders"><h2>By folder</h2>{_table(head, rows, "numbers")}</section>'


def _comparison(found: Inspected) -> str:
    if found.good is None or found.seen is None:
        return "<p>Not known: the detector has no record of its training images.</p>"
    head = ("", "training images", "these images")
    return _table(head, comparison_rows(found.good, found.seen))


# The table of images ------------------------------------------------------------------------------------

_TRUTH_HEAD = '<th scope="col" class="truth"><button type="button" data-key="defective">Truth</button></th>'
_TRUTH_OPTIONS = (
    '<option value="false alarms">false alarms at the threshold above</option>'
    '<option value="misses">misses at the threshold above</option>'
    '<option value="defective">defective</option><option value="good">good</option>'
)


def _row(i: int, record: Record, name: str, known: bool) -> str:
    largest = f", up to {record.regions[0]['score']:.2f}" if record.regions else ""
    truth = ""
    if known:
        truth = f'<td class="truth">{"defective" if record.defective else "good"}</td>'
    return (
        f'<tr><td class="picture"><button type="button" aria-label="Show {_text(name)}"></button></td>'
        f'<th scope="row" class="name"><bdi>{_text(name)}</bdi></th>'
        f'<td><span class="verdict {record.verdict}">{record.verdict}</span></td>'
        f'<td class="number">{_number(record.margin)}</td><td class="number p">{record.p_value:.3g}</td>'
        f'<td class="regions">{record.n_regions}{largest}</td>{truth}</tr>\n'
    )


def _number(value: float) -> str:
    """Return a margin with a true minus, and never as zero if it is below it."""
    text = f"{value:.3f}" if abs(value) >= 0.0005 or value == 0 else f"{value:.1e}"
    return text.replace("-", "\N{MINUS SIGN}")


def _table(head: tuple[str, ...], rows: Rows, kind: str = "") -> str:
    top = "".join(f'<th scope="col">{_text(name)}</th>' for name in head)
    body = "".join(
        f'<tr><th scope="row"><bdi>{_text(row[0])}</bdi></th>'
        + "".join(f"<td>{_text(cell)}</td>" for cell in row[1:])
        + "</tr>"
        for row in rows
    )
    table = f'<table class="facts {kind}"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table}</div>'


# Text -----------------------------------------------------------------------------------------------------


def _short_names(*groups: Iterable[str]) -> dict[str, str]:
    """Return names without the folder that all have in common."""
    names = [name for group in groups for name in group]
    folders = {os.path.dirname(name) for name in names}
    try:
        common = os.path.commonpath(folders) if all(folders) else ""
    except ValueError:  # on several drives, or absolute and relative ones
        common = ""
    return {name: os.path.relpath(name, common) if common else name for name in names}


def _sound(text: str) -> str:
    """Return text that can be encoded: a file's name may have bytes that are none."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _text(text: str) -> str:
    return escape(_sound(text), quote=True)


def _json(value: Any) -> str:
    """Return JSON in which nothing can end the element that holds it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
