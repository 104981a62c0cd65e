"""What the files say of a benchmark in words: settings, protocol, and what computed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skpbas import PBASDetector
from skpbas._benchmark.measuring import Protocol
from skpbas._benchmark.runs import Case, Outcome, Plan, case_of
from skpbas._benchmark.studies import FULL, PRESETS

Run = tuple[str, Case, int, dict[str, Any]]


def finished_runs(plan: Plan, outcome: Outcome) -> list[Run]:
    """Return category, setting, seed and record of every finished run, in the order of the plan."""
    found: dict[tuple[str, str, int], Run] = {}
    for category in plan.categories:
        for _, case, seed in plan.cases:
            key = category, case.key, seed
            if key in outcome.records:
                found.setdefault(key, (category, case, seed, outcome.records[key]))
    return list(found.values())


def about(plan: Plan, outcome: Outcome, n_runs: int) -> list[str]:
    """Return sentences on what was run, and on what figures of the paper compare with."""
    n, failed = len(plan.categories), len(outcome.failures)
    said = [
        f"{_counted(n_runs, 'run')} on {_counted(n, 'category', 'categories')} of {plan.data_set.title}"
        + (f"; {failed} failed" if failed else "")
        + f". Preset {plan.preset}"
        + (f", with changes: {', '.join(changes)}." if (changes := _changes(plan)) else "."),
        "Training is on the normal training images only, and the detector of the last epoch is measured: nothing is "
        "selected on the test set. PRO is exact, up to a false positive rate of 0.3.",
    ]
    if plan.data_set.known:
        said.append(
            "The paper's figures are those of the epoch with the best image AUROC on the test set, and its PRO dilates "
            "predictions. Differences contain both, besides the settings"
            + ("." if plan.preset in ("paper", "reference") and not changes else ", which are not the paper's here.")
        )
    return [*said, *protocol_words(plan.protocol)[1:]]


def protocol_words(protocol: Protocol) -> list[str]:
    """Return what the columns are: the headline, then the comparison columns."""
    said = ["Last epoch, exact PRO: the result."]
    if protocol.best_epoch:
        said.append(
            'Comparison column "best epoch on the test set": the epoch with the largest image AUROC on the test '
            "images, among equal ones the largest pixel AUROC. It is selected by test labels, as "
            "published figures are; it is no result, and says nothing about new images."
        )
    if protocol.dilated_pro:
        said.append(
            'Comparison column "dilated PRO": that of the authors\' released code, with 200 thresholds and predictions '
            "dilated by 5 x 5 pixels inside the regions, but not for false positives. It is larger than PRO."
        )
    return said


def settings_words(plan: Plan) -> list[list[str]]:
    """Return the parameters of the preset with its changes: name, value, and the default where it is another."""
    defaults = inspect.signature(PBASDetector).parameters
    rows = []
    for name, value in case_of(FULL, plan.base).parameters.items():
        default = defaults[name].default
        shown = "not used" if name == "weights" and plan.base.get("backbone") == "embedded" else _shown(name, value)
        rows.append([name, shown, "" if value == default else str(default)])
    return rows


def surroundings_words(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """Return what computed, by name; several values where runs differ."""
    found: dict[str, dict[str, int]] = {}
    for *_, record in runs:
        for name, value in record["surroundings"].items():
            counts = found.setdefault(name, {})
            counts[value] = counts.get(value, 0) + 1
    return [
        (name, next(iter(of)) if len(of) == 1 else "; ".join(f"{value} ({n} runs)" for value, n in of.items()))
        for name, of in found.items()
    ]


def _changes(plan: Plan) -> list[str]:
    preset = PRESETS[plan.preset]
    changed = {name: value for name, value in plan.base.items() if name not in preset or preset[name] != value}
    return [f"{name}={_shown(name, value)}" for name, value in changed.items()]


def _shown(name: str, value: Any) -> str:
    """Return a parameter as text; a file of weights without its folder, which says nothing."""
    return Path(value).name if name == "weights" and value is not None else str(value)


def _counted(n: int, one: str, many: str | None = None) -> str:
    return f"{n:,} {one if n == 1 else many or one + 's'}"
