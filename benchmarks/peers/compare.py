r"""skpbas beside PatchCore, PaDiM, SimpleNet and others: the same images, weights, metrics, machine and threads.

    benchmarks/peers/make_environment.sh
    .venv-peers/bin/python benchmarks/peers/compare.py --data ../shared/data \
        --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth --seeds 0 1 2

Each run is a process of its own: it fits to the good training images of a category and predicts the test images one by
one, from file to score and map. Rows are appended to a CSV as soon as they are known; those that are there are not
computed again. The tables that are printed, and written beside the CSV, have the best value of each line in bold,
whoever has it. A method that fails leaves its message in the CSV, the others go on, and the exit code is 1.

Methods have their default settings, except that every backbone is the same ResNet18. skpbas: ``PBASDetector``.
"simplenet": see ``simplenet.py``. The others are anomalib's: PatchCore, PaDiM, DFM and MH-PatchCore, which need no
other weights and no training by gradients. Left out are those that train a network for many epochs, which takes hours
on a CPU (STFPM, CFA, FRE, SuperSimpleNet, Reverse Distillation, the flows and others), and those that need weights of
other networks: layer 4 (DFKDE), DINO or CLIP (AnomalyDINO, Dinomaly, WinCLIP and others), or a distilled teacher
(EfficientAd).

PatchCore's coreset is selected by ``greedy_coreset.py``, which takes the same patches as anomalib's code; this is
checked at the start. What fit takes with anomalib's selection is estimated from five of its steps;
"patchcore-unmodified" runs it. CPU time is that of all threads: on one thread it is what an idle machine takes,
whatever else runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

sys.path.insert(0, str(Path(__file__).parents[1]))

from categories import GENERATED, load_images, masks_at_map_size
from measure import PeakMemory, append_rows, in_child, machine, read_rows, table

from skpbas import PBASDetector
from skpbas._inputs.shapes import input_shape, peek_shapes
from skpbas.metrics import image_ap, image_auroc, miss_rate, pixel_metrics

TABLE_KEY = ("category", "resize", "shape", "threads")
KEY = (*TABLE_KEY, "method", "seed")
"""Columns that tell tables and rows apart."""

FIGURES: dict[str, tuple[str, Callable[[Sequence[float]], float], str]] = {
    "image AUROC": ("image_auroc", max, ".3f"),
    "image AP": ("image_ap", max, ".3f"),
    "misses at 1 %": ("misses_at_1", min, ".1%"),
    "misses at 2 %": ("misses_at_2", min, ".1%"),
    "misses at 5 %": ("misses_at_5", min, ".1%"),
    "pixel AUROC": ("pixel_auroc", max, ".3f"),
    "pixel AP": ("pixel_ap", max, ".3f"),
    "PRO": ("pixel_pro", max, ".3f"),
    "fit, s": ("fit_seconds", min, ",.0f"),
    "fit, CPU s": ("fit_cpu_seconds", min, ",.0f"),
    "fit with anomalib's coreset, CPU s": ("fit_cpu_seconds_unmodified", min, ",.0f"),
    "ms per image": ("ms_per_image", min, ",.0f"),
    "CPU ms per image": ("cpu_ms_per_image", min, ",.0f"),
    "model, MB": ("model_mb", min, ",.1f"),
    "peak memory, MB": ("peak_mb", min, ",.0f"),
}
"""Lines of a table: the column, which value is best, and how it is printed."""


class Method(Protocol):
    """What a run needs of a method."""

    def fit(self, paths: Sequence[Path]) -> None:
        """Fit to good images."""

    def predict(self, path: Path) -> tuple[float, NDArray[np.float32]]:
        """Return the score and the anomaly map of an image; higher is more anomalous."""

    def save(self, path: Path) -> None:
        """Write what prediction needs."""


@dataclass(frozen=True)
class Task:
    """One run.

    Attributes
    ----------
    category, method : str
    resize : {"stretch", "aspect"}
    shape : (int, int)
        Height and width that images are brought to.
    seed, image_size, threads : int
    data, weights : Path
    """

    category: str
    method: str
    resize: str
    shape: tuple[int, int]
    seed: int
    image_size: int
    threads: int
    data: Path
    weights: Path


class Skpbas:
    """skpbas with its defaults."""

    def __init__(self, task: Task) -> None:
        self.detector = PBASDetector(
            "resnet18",
            weights=task.weights,
            image_size=task.image_size,
            resize=task.resize,
            device="cpu",
            random_state=task.seed,
        )

    def fit(self, paths: Sequence[Path]) -> None:
        """Fit to good images."""
        self.detector.fit(paths)

    def predict(self, path: Path) -> tuple[float, NDArray[np.float32]]:
        """Return the score and the anomaly map of an image; higher is more anomalous."""
        score, anomaly_map = next(iter(self.detector.iter_scores_and_maps([path])))
        return -score, anomaly_map

    def save(self, path: Path) -> None:
        """Write what prediction needs."""
        self.detector.save(path, include_backbone=True)


def of_anomalib(name: str) -> Callable[[Task], Method]:
    """Return what makes a method of ``anomalib_methods.py``, which is imported in the run's own process."""
    return lambda task: getattr(import_module("anomalib_methods"), name)(task.weights, task.shape)


def of_simplenet(published: bool) -> Callable[[Task], Method]:
    """Return what makes SimpleNet, with its published training or with that of skpbas."""

    def make(task: Task) -> Method:
        module = import_module("simplenet")
        training = module.PUBLISHED_TRAINING if published else {}
        return module.SimpleNet(task.weights, task.image_size, task.resize, task.seed, **training)

    return make


METHODS: dict[str, Callable[[Task], Method]] = {
    "skpbas": Skpbas,
    "patchcore": of_anomalib("PatchCore"),
    "padim": of_anomalib("PaDiM"),
    "simplenet": of_simplenet(False),
    "dfm": of_anomalib("DFM"),
    "mh-patchcore": of_anomalib("MHPatchCore"),
    "patchcore-unmodified": of_anomalib("UnmodifiedPatchCore"),
    "simplenet-published": of_simplenet(True),
}
DEFAULT_METHODS = list(METHODS)[:6]  # the last two take hours
OF_SKPBAS = ("skpbas", "simplenet", "simplenet-published")  # those that need no anomalib


def shapes_of(paths: Sequence[Path], image_size: int) -> dict[str, tuple[int, int]]:
    """Return the shapes that images are compared at, by the name of ``resize``: one, if they are square."""
    sizes, _ = peek_shapes(paths, np.arange(len(paths)))
    shapes = {resize: input_shape(image_size, resize, sizes) for resize in ("stretch", "aspect")}
    return {resize: shape for resize, shape in shapes.items() if resize == "stretch" or shape != shapes["stretch"]}


def run(task: Task) -> dict[str, Any]:
    """Fit, predict and measure, in this process."""
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    np.random.seed(task.seed)  # noqa: NPY002 - anomalib draws its projection from the global stream
    warnings.filterwarnings("ignore", category=FutureWarning)
    images = load_images(task.category, task.data)
    method = METHODS[task.method](task)
    results, seconds, cpu_seconds = [], [], []
    with threadpool_limits(task.threads), PeakMemory() as peak:
        start, cpu_start = time.perf_counter(), time.process_time()
        method.fit(images.train)
        fit_seconds, fit_cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        for path in images.test:
            start, cpu_start = time.perf_counter(), time.process_time()
            results.append(method.predict(path))
            seconds.append(time.perf_counter() - start)
            cpu_seconds.append(time.process_time() - cpu_start)
    with tempfile.TemporaryDirectory() as folder:
        method.save(Path(folder) / "model")
        n_bytes = (Path(folder) / "model").stat().st_size
    scores, anomaly_maps = np.array([score for score, _ in results]), np.stack([a_map for _, a_map in results])
    masks = masks_at_map_size(images.masks, images.test, task.shape, task.resize)
    return {
        "image_auroc": image_auroc(images.labels, scores),
        "image_ap": image_ap(images.labels, scores),
        **{f"misses_at_{rate}": miss_rate(images.labels, scores, rate / 100) for rate in (1, 2, 5)},
        **pixel_metrics(masks, anomaly_maps),
        "fit_seconds": fit_seconds,
        "fit_cpu_seconds": fit_cpu_seconds,
        "fit_cpu_seconds_unmodified": fit_cpu_seconds + getattr(method, "saved_seconds", 0.0),
        "ms_per_image": 1000 * statistics.median(seconds),
        "cpu_ms_per_image": 1000 * statistics.median(cpu_seconds),
        "model_mb": n_bytes / 1e6,
        "peak_mb": peak.bytes / 1e6,
    }


def attempt(task: Task) -> dict[str, Any]:
    """Return the row of a run in a process of its own; of one that fails, the error and no figures."""
    row: dict[str, Any] = dict(zip(KEY, key_of(task), strict=True))
    figures: dict[str, Any] = dict.fromkeys(column for column, _, _ in FIGURES.values())
    error = ""
    try:
        figures |= in_child(run, task)
    except Exception as caught:  # noqa: BLE001 - whatever stops one method, the others are measured
        error = f"{type(caught).__name__}: {caught}"
    return row | figures | {"machine": json.dumps(described()), "error": error}


def key_of(task: Task) -> tuple[str, ...]:
    """Return the columns ``KEY`` of a run."""
    height, width = task.shape
    return task.category, task.resize, f"{height} x {width}", str(task.threads), task.method, str(task.seed)


def described() -> dict[str, Any]:
    """Return what results depend on besides the program, with the versions of the peers."""
    found = machine()
    del found["threads"]  # a column
    for name in ("anomalib", "timm", "torchvision"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def latest(rows: Sequence[Mapping[str, str]]) -> dict[tuple[str, ...], Mapping[str, str]]:
    """Return the last row of each run."""
    return {tuple(row[key] for key in KEY): row for row in rows}


def tables(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a Markdown table of each category and shape: means over seeds, the best of each line in bold."""
    kept = list(latest(rows).values())
    parts = []
    for of_table in dict.fromkeys(tuple(row[key] for key in TABLE_KEY) for row in kept):
        found = [row for row in kept if tuple(row[key] for key in TABLE_KEY) == of_table]
        of_methods = {name: [row for row in found if row["method"] == name] for name in METHODS}
        of_methods = {name: its_rows for name, its_rows in of_methods.items() if its_rows}
        seeds = {name: str(sum(not row["error"] for row in its_rows)) for name, its_rows in of_methods.items()}
        lines = [table_line(title, figure, of_methods) for title, figure in FIGURES.items()]
        category, resize, shape, threads = of_table
        heading = f"## {category}, {shape} ({resize}), threads: {threads}"
        parts.append(f"{heading}\n\n{table([{'': 'seeds', **seeds}, *lines])}")
    return "\n\n".join(parts)


def table_line(
    title: str,
    figure: tuple[str, Callable[[Sequence[float]], float], str],
    of_methods: Mapping[str, Sequence[Mapping[str, str]]],
) -> dict[str, str]:
    """Return a line of a table: the figure of each method, "failed" if every run did."""
    column, best_of, form = figure
    values = {name: [float(row[column]) for row in rows if not row["error"]] for name, rows in of_methods.items()}
    means = {name: statistics.mean(found) for name, found in values.items() if found}
    printed = {name: format(mean, form) for name, mean in means.items()}
    best = format(best_of(list(means.values())), form) if means else None
    cells = {name: f"**{text}**" if text == best else text for name, text in printed.items()}
    return {"": title, **{name: cells.get(name, "failed") for name in of_methods}}


def check(paths: Sequence[Path], weights: Path, shape: tuple[int, int], threads: int) -> str:
    """Return what was checked: anomalib computes the same features, and its coreset is the one that is selected."""
    torch.set_num_threads(threads)
    try:
        module = import_module("anomalib_methods")
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}: run this in the environment of benchmarks/peers/make_environment.sh") from error
    difference = module.check_features(weights)
    n_selected = module.check_coreset(paths, weights, shape)
    return f"features differ by at most {difference:.1e}; the same {n_selected} patches in {len(paths)} images"


def main() -> None:
    """Parse the command line, run what is missing, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--weights", type=Path, required=True, help="state-dict file of torchvision's ResNet18")
    parser.add_argument("--category", nargs="+", default=["bottle", "screw", "commutator"])
    parser.add_argument("--method", nargs="+", default=DEFAULT_METHODS, choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--resize", nargs="+", default=["stretch", "aspect"], choices=["stretch", "aspect"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/peers.csv"))
    parser.add_argument("--summary", action="store_true", help="only print the tables")
    options = parser.parse_args()
    if generated := set(options.category) & set(GENERATED):
        parser.error(f"--category {' '.join(sorted(generated))}: methods read files, and generated images have none")

    if not options.summary:
        compare(options)
    rows = read_rows(options.output)
    if not rows:
        parser.error(f"--output {options.output}: no rows")
    written = tables(rows)
    print(written)
    options.output.with_suffix(".md").write_text(written + "\n")
    if failed := [row for row in latest(rows).values() if row["error"]]:
        sys.exit("\n".join(f"failed: {' '.join(row[key] for key in KEY)}: {row['error']}" for row in failed))


def compare(options: argparse.Namespace) -> None:
    """Append the rows that are missing."""
    if any(name not in OF_SKPBAS for name in options.method):
        few = load_images(options.category[0], options.data).train[:6]
        print(in_child(check, few, options.weights, (options.image_size,) * 2, options.threads), flush=True)
    done = {key for key, row in latest(read_rows(options.output)).items() if not row["error"]}
    for task in tasks(options):
        if key_of(task) in done:
            continue
        row = attempt(task)
        append_rows(options.output, [row])
        figures = {key: row[key] for key in ("image_auroc", "pixel_pro", "fit_seconds", "ms_per_image")}
        print(*key_of(task), row["error"] or figures, flush=True)


def tasks(options: argparse.Namespace) -> Iterator[Task]:
    """Yield all runs: by seed, and within a seed by category and shape."""
    trains = {category: load_images(category, options.data).train for category in options.category}
    shapes = {category: shapes_of(train, options.image_size) for category, train in trains.items()}
    for seed in options.seeds:
        for category, of_category in shapes.items():
            for (resize, shape), method in product(of_category.items(), options.method):
                if resize not in options.resize:
                    continue
                yield Task(
                    category=category,
                    method=method,
                    resize=resize,
                    shape=shape,
                    seed=seed,
                    image_size=options.image_size,
                    threads=options.threads,
                    data=options.data,
                    weights=options.weights,
                )


if __name__ == "__main__":
    main()
