"""Which runs a benchmark has, and running those that are not finished."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import skpbas
from skpbas._benchmark.measuring import Protocol, measure
from skpbas._benchmark.sources import CategoryImages, DataSet
from skpbas._benchmark.studies import RESULTS, Setting, Study, check_parameters, parameters_of
from skpbas._benchmark.surroundings import surroundings
from skpbas._training.saving import write_atomically
from skpbas.errors import FileFormatError, SkpbasError

FORMAT = 1
FOLDER = "runs"
_FAILURES = (SkpbasError, ValueError, OSError, ArithmeticError, RuntimeError, MemoryError)

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


def case_of(setting: Setting, base: Mapping[str, Any]) -> Case:
    """Return a setting with all its parameters."""
    return Case(setting.name, parameters_of(setting, base), setting.share)


def execute(plan: Plan, output: Path, say: Say, after_category: Callable[[Outcome], object]) -> Outcome:
    """Run what is not finished, one category after another, and return the records of all.

    A finished run is a file in ``output/runs``, which is written at once. A failed run is reported, and the others go
    on.

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
    FileFormatError
        A file in ``output/runs`` is damaged.
    StorageError
        A file cannot be written.
    """
    outcome = Outcome({}, [])
    images = _load(plan, outcome, say)
    todo = list(_distinct(plan, images))
    facts = surroundings(str(plan.runtime.get("device", "auto")))
    progress = _Progress(say, [_n_images(images[category], case) for category, case, _ in todo])
    for category in plan.categories:
        for _, case, seed in (run for run in todo if run[0] == category):
            identity = _identity(plan, category, images[category], case, seed)
            path = output / FOLDER / f"{_file_stem(category)}-seed{seed}-{_digest(identity)}.json"
            what = f"{category}, {case.name}, seed {seed}"
            if (record := _finished(path, identity)) is None:
                progress.begin(what)
                try:
                    record = _run(plan, images[category], case, seed, identity, facts)
                except _FAILURES as error:
                    reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
                    outcome.failures.append(Failure(category, case.name, seed, reason))
                    progress.failed(what, reason)
                    continue
                write_atomically(path, json.dumps(record, indent=1).encode())
                progress.done(what, record)
            else:
                progress.kept(what, record)
            outcome.records[category, case.key, seed] = record
        after_category(outcome)
    return outcome


def _load(plan: Plan, outcome: Outcome, say: Say) -> dict[str, CategoryImages]:
    """List the images of all categories, so that what is missing is said before hours of computing."""
    images = {}
    for category in plan.categories:
        try:
            images[category] = plan.data_set.load(plan.root, category)
        except (SkpbasError, OSError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            outcome.failures.append(Failure(category, "every setting", None, reason))
            say(f"{category}: failed, {reason}")
    return images


def _distinct(plan: Plan, images: dict[str, CategoryImages]) -> Iterator[tuple[str, Case, int]]:
    """Yield every run once, although several studies have it; those of a category share its feature maps."""
    for category in images:
        seen = set()
        for _, case, seed in plan.cases:
            if (case.key, seed) not in seen:
                seen.add((case.key, seed))
                yield category, case, seed


def _run(
    plan: Plan, images: CategoryImages, case: Case, seed: int, identity: dict[str, Any], facts: dict[str, str]
) -> dict[str, Any]:
    parameters = {**case.parameters, **plan.runtime}
    measured = measure(parameters, images, share=case.share, seed=seed, protocol=plan.protocol)
    return {
        "identity": identity,
        "metrics": measured.metrics,
        "facts": measured.facts,
        "warnings": measured.warnings,
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
    }


def _finished(path: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Return the record of a run, or None if it is not finished."""
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise FileFormatError(f"{path} is damaged ({error}); delete it, and its run is repeated") from error
    if not (isinstance(record, dict) and record.get("identity") == identity):
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


def _digest(identity: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def _file_stem(category: str) -> str:
    return re.sub(r"[^\w.-]", "_", category)[:60]


def _n_images(images: CategoryImages, case: Case) -> float:
    return len(images.train) * case.share + len(images.test)


class _Progress:
    """Says which run is going on, and how long the others may take at the time per image so far."""

    def __init__(self, say: Say, sizes: list[float]) -> None:
        self.say, self.sizes, self.position = say, sizes, 0
        self.seconds = self.images = 0.0

    def begin(self, what: str) -> None:
        left = sum(self.sizes[self.position :])
        rest = f"; about {_duration(left * self.seconds / self.images)} left" if self.images else ""
        self.say(f"[{self.position + 1}/{len(self.sizes)}] {what} ...{rest}")

    def done(self, what: str, record: dict[str, Any]) -> None:
        took = sum(record["seconds"].values())
        self._next(took)
        shown = {"image AUROC": "image_auroc", "PRO": "pixel_pro"}
        figures = [
            f"{name} {100 * record['metrics'][key]:.1f} %" for name, key in shown.items() if key in record["metrics"]
        ]
        self.say(f"    {what}: {', '.join(figures)} ({_duration(took)})")

    def kept(self, what: str, record: dict[str, Any]) -> None:
        self.say(f"[{self.position + 1}/{len(self.sizes)}] {what}: finished before")
        self._next(sum(record["seconds"].values()))

    def failed(self, what: str, reason: str) -> None:
        self.say(f"    {what}: failed, {reason}")
        self.position += 1

    def _next(self, seconds: float) -> None:
        self.seconds += seconds
        self.images += self.sizes[self.position]
        self.position += 1


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
