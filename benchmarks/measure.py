"""What the benchmarks share: timing in turn, peak memory, tables and CSV files, and a description of the machine."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
import platform
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import skpbas

_CLEAR_PEAK = Path("/proc/self/clear_refs")


def in_turn(jobs: Mapping[str, Callable[[], Any]], rounds: int, pause: float = 0.0) -> dict[str, float]:
    """Return the median seconds of each job: one call of each per round, after a first round as warm-up.

    ``pause``: seconds before each call, in which the threads of the one before come to rest.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for round_ in range(rounds + 1):
        for name, job in jobs.items():
            time.sleep(pause)
            start = time.perf_counter()
            job()
            if round_:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


class PeakMemory:
    """The most memory that this process held during the ``with`` block, beyond what it held at its start.

    Except on Linux: beyond the most that it had held until then.

    Attributes
    ----------
    bytes : int
    """

    def __enter__(self) -> PeakMemory:
        if _CLEAR_PEAK.exists():
            _CLEAR_PEAK.write_text("5")
        self._before = self._peak()
        return self

    def __exit__(self, *_error: object) -> None:
        self.bytes = self._peak() - self._before

    @staticmethod
    def _peak() -> int:
        if _CLEAR_PEAK.exists():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module-level function in a new process, so that its memory is measured alone."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as a Markdown table."""
    columns = list(rows[0])
    lines = [columns, ["---"] * len(columns), *([str(row[c]) for c in columns] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV; none if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to a CSV, with a header if it is new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        if fresh:
            writer.writeheader()
        writer.writerows(rows)


def machine() -> dict[str, Any]:
    """Return what results depend on besides the program."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        name = lines[0].split(":", 1)[1].strip() if lines else name
    return {
        "processor": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "skpbas": skpbas.__version__,
    }


def report(name: str, rows: Sequence[Mapping[str, Any]], output: Path) -> None:
    """Print rows as a table, and write them as JSON with a description of the machine."""
    print(table(rows))
    print(f"\nmachine: {json.dumps(machine())}")
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"{name}.json"
    target.write_text(json.dumps({"machine": machine(), "rows": list(rows)}, indent=1))
    print(f"written to {target}")
