"""Which runs a benchmark has, and running those that are not finished."""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import skpbas
from skpbas._benchmark.measuring import Protocol, measure
from skpbas._benchmark.published import AVERAGE
from skpbas._benchmark.sources import CategoryImages, DataSet
from skpbas._benchmark.studies import RESULTS, Setting, Study, check_parameters, parameters_of
from skpbas._benchmark.surroundings import surroundings
from skpbas._training.saving import write_atomically
from skpbas.errors import FileFormatError, SkpbasError

FORMAT = 2
FOLDER = "runs"
_FAILURES = (SkpbasError, ValueError, OSError, ArithmeticError, RuntimeError, MemoryError)
EVERY = "every setting"

Say = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes
    ----------
    data_set : DataSet
    root : Path
    categories : tuple of str
    preset : str
    base : dict of str to object
        Parameters of the preset and changes to them.
    studies : tuple of Study
    seeds : tuple of int or None
        None: the study's own, or 0.
    protocol : Protocol
    runtime : dict of str to object
        Parameters of the estimator that say where and how it computes.
    """

    data_set: DataSet
    root: Path
    categories: tuple[str, ...]
    preset: str
    base: dict[str, Any]
    studies: tuple[Study, ...]
    seeds: tuple[int, ...] | None = None
    protocol: Protocol = field(default_factory=Protocol)
    runtime: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if wrong := [seed for seed in self.seeds or () if not 0 <= seed < 2**32]:
            raise ValueError(f"seeds: {wrong[0]} is not from 0 to 4,294,967,295")
        if odd := [name for name in self.categories if name == AVERAGE or _is_unprintable(name)]:
            raise ValueError(
                f"category {odd[0]!r}: the name "
                + ("is that of the row of means" if odd[0] == AVERAGE else "has characters that cannot be printed")
                + "; rename its folder"
            )
        for _, case, _ in self.cases:
            try:
                check_parameters({**case.parameters, **self.runtime})
            except ValueError as error:
                raise ValueError(f"setting {case.name!r}: {error}") from error

    @property
    def all_studies(self) -> tuple[Study, ...]:
        """The studies, with the table of every metric first where one of them has the preset itself."""
        plain = any(study.settings == RESULTS.settings for study in self.studies) or not self.studies
        return (RESULTS, *self.studies) if plain else self.studies

    def seeds_of(self, study: Study) -> tuple[int, ...]:
        """Return the seeds of a study."""
        if study is RESULTS and self.studies:
            plain = next(one for one in self.studies if one.settings == RESULTS.settings)
            return self.seeds_of(plain)
        return self.seeds or study.seeds or (0,)

    @cached_property
    def cases(self) -> list[tuple[Study, Case, int]]:
        """Every setting of every study with every seed; the same ones occur in several studies."""
        return [
            (study, case_of(setting, self.base), seed)
            for study in self.all_studies
            for setting in study.settings
            for seed in self.seeds_of(study)
        ]


@dataclass(frozen=True)
class Case:
    """A setting with all its parameters."""

    name: str
    parameters: dict[str, Any]
    share: float

    @property
    def key(self) -> str:
        """The same for settings that are the same, whatever they are called."""
        return _digest({"parameters": _portable(self.parameters), "share": self.share})


@dataclass(frozen=True)
class Failure:
    """A run, or all of a category, without a result."""

    category: str
    setting: str
    seed: int | None
    reason: str


@dataclass(frozen=True)
class Outcome:
    """Records by category, :attr:`Case.key` and seed; and failures."""

    records: dict[tuple[str, str, int], dict[str, Any]]
    failures: list[Failure]

    def fail(self, category: str, setting: str, seed: int | None, error: BaseException) -> str:
        """Note a failure, and return its reason."""
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self.failures.append(Failure(category, setting, seed, reason))
        return reason


@dataclass(frozen=True)
class _Run:
    category: str
    case: Case
    seed: int
    images: CategoryImages
    identity: dict[str, Any]
    path: Path

    @property
    def what(self) -> str:
        return f"{self.category}, {self.case.name}, seed {self.seed}"

    @property
    def key(self) -> tuple[str, str, int]:
        return self.category, self.case.key, self.seed

    @property
    def n_images(self) -> float:
        return len(self.images.train) * self.case.share + len(self.images.test)


def _is_unprintable(name: str) -> bool:
    """Return whether a name has control characters, line breaks, or bytes that are no UTF-8."""
    return not {"Cc", "Cs", "Zl", "Zp"}.isdisjoint(map(unicodedata.category, name))


def case_of(setting: Setting, base: Mapping[str, Any]) -> Case:
    """Return a setting with all its parameters."""
    return Case(setting.name, parameters_of(setting, base), setting.share)


def execute(plan: Plan, output: Path, say: Say, after_category: Callable[[Outcome], object]) -> Outcome:
    """Run what is not finished, one category after another, and return the records of all.

    A finished run is a file in ``output/runs``, which is written at once. A failed run is reported, one with a damaged
    file too, and the others go on.

    Parameters
    ----------
    plan : Plan
    output : Path
    say : callable
        Called with each line about the progress.
    after_category : callable
        Called with what there is after each category.

    Raises
    ------
    StorageError
        A file cannot be written.
    """
    outcome = Outcome({}, [])
    runs = list(_distinct(plan, _load(plan, outcome, say), output / FOLDER))
    todo = _unfinished(runs, outcome, say)
    facts = surroundings(str(plan.runtime.get("device", "auto")))
    progress = _Progress(say, [run.n_images for run in todo], len(runs) - len(todo))
    for category in plan.categories:
        _run_category(plan, [run for run in todo if run.category == category], facts, outcome, progress)
        after_category(outcome)
    return outcome


def _run_category(plan: Plan, todo: list[_Run], facts: dict[str, str], outcome: Outcome, progress: _Progress) -> None:
    if not todo:
        return
    category = todo[0].category
    try:
        notes = todo[0].images.check()
    except _FAILURES as error:
        progress.failed(category, outcome.fail(category, EVERY, None, error), len(todo))
        return
    for note in notes:
        progress.say(f"{category}: {note}")
    for run in todo:
        progress.begin(run.what)
        try:
            record = _record(plan, run, facts, notes)
        except _FAILURES as error:
            progress.failed(run.what, outcome.fail(category, run.case.name, run.seed, error))
            continue
        checked = {**record, "sha256": _digest(record)}
        write_atomically(run.path, json.dumps(checked, indent=1, allow_nan=False).encode())
        outcome.records[run.key] = record
        progress.done(run.what, record)


def _unfinished(runs: list[_Run], outcome: Outcome, say: Say) -> list[_Run]:
    """Note the records of finished runs, and return the others; those with a damaged file have failed."""
    todo = []
    for run in runs:
        try:
            record = _finished(run.path, run.identity)
        except _FAILURES as error:
            say(f"{run.what}: failed, {outcome.fail(run.category, run.case.name, run.seed, error)}")
        else:
            if record is None:
                todo.append(run)
            else:
                outcome.records[run.key] = record
    if outcome.records:
        say(f"{len(outcome.records)} of {len(runs)} runs were finished before")
    return todo


def _load(plan: Plan, outcome: Outcome, say: Say) -> dict[str, CategoryImages]:
    """List the images of all categories, so that what is missing is said before hours of computing."""
    images = {}
    for category in plan.categories:
        try:
            images[category] = plan.data_set.load(plan.root, category)
        except _FAILURES as error:
            say(f"{category}: failed, {outcome.fail(category, EVERY, None, error)}")
    return images


def _distinct(plan: Plan, images: dict[str, CategoryImages], folder: Path) -> Iterator[_Run]:
    """Yield every run once, although several studies have it; those of a category share its feature maps."""
    for category, its_images in images.items():
        seen = set()
        for _, case, seed in plan.cases:
            if (case.key, seed) not in seen:
                seen.add((case.key, seed))
                identity = _identity(plan, category, its_images, case, seed)
                path = folder / f"{_file_stem(category)}-seed{seed}-{_digest(identity)[:16]}.json"
                yield _Run(category, case, seed, its_images, identity, path)


def _record(plan: Plan, run: _Run, facts: dict[str, str], notes: list[str]) -> dict[str, Any]:
    """Measure, and return what is kept; notes are on the images."""
    parameters = {**run.case.parameters, **plan.runtime}
    measured = measure(parameters, run.images, share=run.case.share, seed=run.seed, protocol=plan.protocol)
    if wrong := [name for name, value in measured.metrics.items() if not math.isfinite(value)]:
        raise ValueError(f"{wrong[0]} is {measured.metrics[wrong[0]]}")
    return {
        "identity": run.identity,
        "metrics": measured.metrics,
        "facts": measured.facts,
        "warnings": [*notes, *measured.warnings],
        "surroundings": facts,
        "seconds": {name: round(value, 3) for name, value in measured.seconds.items()},
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _identity(plan: Plan, category: str, images: CategoryImages, case: Case, seed: int) -> dict[str, Any]:
    """Return all that a result depends on, but for the device; a finished run with the same is not repeated."""
    return {
        "format": FORMAT,
        "skpbas": skpbas.__version__,
        "data_set": plan.data_set.name,
        "category": category,
        "files": images.digest,
        "parameters": _portable(case.parameters),
        "share": case.share,
        "seed": seed,
        "protocol": asdict(plan.protocol),
        "memory": plan.runtime.get("memory") is not None,  # which keeps feature maps in float16
    }


def _finished(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of a run, or None if it is not finished."""
    try:
        record = json.loads(path.read_bytes())
        is_whole = isinstance(record, dict) and record.pop("sha256", None) == _digest(record)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged ({error}); delete it, and its run is repeated") from error
    if not is_whole:
        raise FileFormatError(f"{path} is damaged: its checksum is another; delete it, and its run is repeated")
    if record.get("identity") != identity:
        raise FileFormatError(f"{path} is not the result of the run that it is named for; delete it")
    return record


def _portable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as JSON has them; a file of weights by name and content."""
    portable = dict(parameters)
    weights = portable.get("weights")
    if portable.get("backbone") == "embedded":
        portable["weights"] = None  # not read
    elif weights not in ("imagenet", None):
        portable["weights"] = {"file": Path(weights).name, "sha256": _content_digest(Path(weights))}
    return json.loads(json.dumps(portable))


@cache
def _content_digest(path: Path) -> str:
    if not path.is_file():
        raise ValueError(f'weights: there is no file {path}; give "imagenet", none, or the path of a state dict')
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _file_stem(category: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", category)[:60]


class _Progress:
    """Says which run is going on, and how long the others may take at the time per image so far."""

    def __init__(self, say: Say, sizes: list[float], n_finished: int = 0) -> None:
        self.say, self.sizes, self.n_finished, self.position = say, sizes, n_finished, 0
        self.seconds = self.images = 0.0

    def begin(self, what: str) -> None:
        left = sum(self.sizes[self.position :])
        rest = f"; about {_duration(left * self.seconds / self.images)} left" if self.images else ""
        number, n_runs = self.n_finished + self.position + 1, self.n_finished + len(self.sizes)
        self.say(f"[{number}/{n_runs}] {what} ...{rest}")

    def done(self, what: str, record: dict[str, Any]) -> None:
        took = sum(record["seconds"].values())
        self.seconds += took
        self.images += self.sizes[self.position]
        self.position += 1
        shown = {"image AUROC": "image_auroc", "PRO": "pixel_pro"}
        figures = [
            f"{name} {100 * record['metrics'][key]:.1f} %" for name, key in shown.items() if key in record["metrics"]
        ]
        self.say(f"    {what}: {', '.join(figures)} ({_duration(took)})")

    def failed(self, what: str, reason: str, n_runs: int = 1) -> None:
        self.say(f"    {what}: failed, {reason}")
        self.position += n_runs


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
