"""Records of runs to tables beside the published figures."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field

from skpbas._benchmark.measuring import BEST, DILATED, FALSE_ALARMS, MISSES, Protocol
from skpbas._benchmark.published import AVERAGE, METHOD, figure, methods
from skpbas._benchmark.runs import Outcome, Plan, case_of
from skpbas._benchmark.studies import RESULTS, Setting, Study

LABELS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_pro": "PRO",
    **{name: f"misses at {100 * rate:g} % false alarms" for name, rate in zip(MISSES, FALSE_ALARMS, strict=True)},
}
SHORT = {
    name: label.removesuffix(" false alarms").replace(" %", "\N{NO-BREAK SPACE}%") for name, label in LABELS.items()
}
"""For the head of a column, below a note on what misses are at."""
LAST_EPOCH, BEST_EPOCH = "last epoch", "best epoch on the test set"
_TABLES_OF = {"mvtec": ("I", "II"), "visa": ("III",), "mpdd": ("IV",)}


@dataclass(frozen=True)
class Value:
    """A figure in percent.

    Attributes
    ----------
    mean : float
        Over seeds and categories.
    deviation : float or None
        Standard deviation of the means over the categories, between seeds; None for one seed.
    n_seeds : int
    categories : tuple of str
        The categories that are finished with every seed; others do not count.
    """

    mean: float
    deviation: float | None
    n_seeds: int
    categories: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes
    ----------
    label : str
    values : dict of str to Value
        By metric, with those of comparison columns.
    published : dict of str to float
        By metric: what the paper has for the same row.
    comparable : bool
        Whether the published figures are over the same categories.
    others : dict of (str, str) to float
        Published figures of other methods, by method and metric.
    """

    label: str
    values: dict[str, Value]
    published: dict[str, float] = field(default_factory=dict)
    comparable: bool = True
    others: dict[tuple[str, str], float] = field(default_factory=dict)

    def difference(self, metric: str, of: str | None = None) -> float | None:
        """Return this run minus the paper; ``of`` names the value if it is that of a comparison column."""
        if not self.comparable or metric not in self.published or (of or metric) not in self.values:
            return None
        return self.values[of or metric].mean - self.published[metric]


@dataclass(frozen=True)
class Table:
    """A study with its rows."""

    study: Study
    metrics: tuple[str, ...]
    rows: list[Row]
    notes: list[str]
    protocol: Protocol
    methods: list[str] = field(default_factory=list)

    def variants(self, metric: str) -> list[tuple[str, str]]:
        """Return name and protocol of a metric and of its comparison columns."""
        found = [(metric, LAST_EPOCH)]
        dilated = self.protocol.dilated_pro and metric == "pixel_pro"
        if dilated:
            found.append((DILATED, f"{LAST_EPOCH}, dilated PRO"))
        if self.protocol.best_epoch and metric not in MISSES:
            found.append((BEST + metric, BEST_EPOCH))
            if dilated:
                found.append((BEST + DILATED, f"{BEST_EPOCH}, dilated PRO"))
        return found


def tables_of(plan: Plan, outcome: Outcome) -> list[Table]:
    """Return the tables of a plan, as far as its runs are finished."""
    return [_Builder(plan, outcome, study).table() for study in plan.all_studies]


class _Builder:
    """Makes the table of a study."""

    def __init__(self, plan: Plan, outcome: Outcome, study: Study) -> None:
        self.plan, self.outcome, self.study = plan, outcome, study
        self.seeds = plan.seeds_of(study)
        self.known = plan.data_set.known
        self.metrics = (*study.metrics, *MISSES) if study is RESULTS else study.metrics

    def table(self) -> Table:
        rows = {"categories": self._categories, "metrics": self._average, "settings": self._settings}.get(
            self.study.rows, self._seeds
        )()
        others = [name for name in methods(self.study.name) if name != METHOD]
        return Table(self.study, self.metrics, rows, self._notes(rows), self.plan.protocol, others)

    def _categories(self) -> list[Row]:
        rows = [
            self._row(category, self.study.settings[0], self.seeds, (category,)) for category in self.plan.categories
        ]
        rows = [row for row in rows if row.values]
        return [*rows, *self._average()] if len(rows) > 1 else rows

    def _average(self) -> list[Row]:
        row = self._row(AVERAGE, self.study.settings[0], self.seeds, self.plan.categories)
        return [row] if row.values else []

    def _settings(self) -> list[Row]:
        rows = (self._row(setting.name, setting, self.seeds, self.plan.categories) for setting in self.study.settings)
        return [row for row in rows if row.values]

    def _seeds(self) -> list[Row]:
        full = self.study.settings[0]
        rows = [self._row(f"seed {seed}", full, (seed,), self.plan.categories) for seed in self.seeds]
        rows = [row for row in rows if row.values]
        if len(self.seeds) > 1 and rows:
            mean = self._row("mean", full, self.seeds, self.plan.categories)
            rows += [mean] if mean.values else []
        return rows

    def _row(self, label: str, setting: Setting, seeds: tuple[int, ...], categories: tuple[str, ...]) -> Row:
        found = {name: self._value(setting, seeds, categories, name) for name in self._names()}
        values = {name: value for name, value in found.items() if value is not None}
        used = next(iter(values.values())).categories if values else ()
        if label in used or set(used) == set(self.known):
            return Row(label, values, self._published(label), True, self._others(label))
        of_used = [self._published(category) for category in used]
        shared = [name for name in self.metrics if of_used and all(name in one for one in of_used)]
        if label == AVERAGE and shared:  # the paper has every category: it is averaged over the same ones
            return Row(label, values, {name: statistics.fmean(one[name] for one in of_used) for name in shared})
        return Row(label, values, self._published(label), False, self._others(label))

    def _names(self) -> Iterable[str]:
        """Every name under which a value of this table may be recorded."""
        shape = Table(self.study, self.metrics, [], [], self.plan.protocol)
        return [name for metric in self.metrics for name, _ in shape.variants(metric)]

    def _value(self, setting: Setting, seeds: tuple[int, ...], categories: tuple[str, ...], name: str) -> Value | None:
        key = case_of(setting, self.plan.base).key
        complete = {}
        for category in categories:
            records = [self.outcome.records.get((category, key, seed)) for seed in seeds]
            figures = [record["metrics"][name] for record in records if record and name in record["metrics"]]
            if len(figures) == len(seeds):
                complete[category] = figures
        if not complete:
            return None
        by_seed = [100 * statistics.fmean(of[i] for of in complete.values()) for i in range(len(seeds))]
        deviation = statistics.stdev(by_seed) if len(by_seed) > 1 else None
        return Value(statistics.fmean(by_seed), deviation, len(seeds), tuple(complete))

    def _published(self, row: str) -> dict[str, float]:
        name = self.plan.data_set.name
        if self.study is RESULTS:
            tables = _TABLES_OF.get(name, ())
        else:  # studies without a data set are published for MVTec AD alone
            tables = (self.study.name,) if self.study.data_set or name == "mvtec" else ()
        found = ((metric, figure(table, row, metric)) for table in tables for metric in self.metrics)
        return {metric: value for metric, value in found if value is not None}

    def _others(self, row: str) -> dict[tuple[str, str], float]:
        names = (method for method in methods(self.study.name) if method != METHOD)
        found = {(one, metric): figure(self.study.name, row, metric, one) for one in names for metric in self.metrics}
        return {key: value for key, value in found.items() if value is not None}

    def _notes(self, rows: list[Row]) -> list[str]:
        n = len(self.seeds)
        notes = [
            f"Percent; mean ± standard deviation over {n} seeds ({', '.join(map(str, self.seeds))})."
            if n > 1 and self.study.rows != "seeds"
            else "Percent."
        ]
        if MISSES[0] in self.metrics:
            notes.append(
                "Misses at x %: share of the defective images missed where at most x % of the good ones are flagged."
            )
        done = {category for row in rows for value in row.values.values() for category in value.categories}
        left = [category for category in self.plan.categories if category not in done]
        if left:
            notes.append(f"Not finished with every seed, and not counted: {', '.join(left)}.")
        single = self.study.rows == "categories" and len(done) == 1
        if self.known and not single and set(self.plan.categories) - set(left) != set(self.known):
            n_known, title = len(self.known), self.plan.data_set.title
            over = f"Averages are over {len(done)} {'category' if len(done) == 1 else 'categories'}"
            same = self.study.rows == "categories" and self.plan.data_set.name == "mvtec"
            then = "its figures are averaged over the same categories here" if same else "no difference is given"
            notes.append(f"{over}, the paper's over all {n_known} of {title}: {then}.")
        return [*notes, *self._fewer(rows, done)]

    def _fewer(self, rows: list[Row], done: set[str]) -> list[str]:
        """Return which averages are over fewer categories: those of metrics that need masks, and of unfinished rows."""
        of_metric = {
            metric: {category for row in rows if metric in row.values for category in row.values[metric].categories}
            for metric in self.metrics
        }
        fewer: dict[tuple[str, ...], list[str]] = {}
        for metric, categories in of_metric.items():
            if 0 < len(categories) < len(done):
                fewer.setdefault(tuple(one for one in self.plan.categories if one in categories), []).append(metric)
        notes = [
            f"Averages of {_listed([LABELS[name] for name in names])} are over {len(categories)} of {len(done)} "
            f"categories, those with masks: {', '.join(categories)}."
            for categories, names in fewer.items()
        ]
        partial = {
            row.label: len(value.categories)
            for row in rows
            for metric, value in row.values.items()
            if metric in of_metric and len(value.categories) < len(of_metric[metric])
        }
        if self.study.rows in ("settings", "seeds") and partial:
            notes.append(
                "Averages of these rows are over fewer categories, and do not compare with the others: "
                + "; ".join(f"{label} ({n})" for label, n in partial.items())
                + "."
            )
        return notes


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
