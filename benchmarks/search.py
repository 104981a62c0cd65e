r"""A grid search on a real category: what it costs, and whether generated defects rank settings as true defects do.

    python benchmarks/search.py --data ../shared/data --category bottle screw --backbone resnet18 \
        --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

One ``GridSearchCV`` over alpha and patch_size per category: folds of all its normal images, of its anomalous images,
and of copies of the normal images with generated defects, each copy in the fold of its image. Every candidate is scored
twice from one pass, on the true and on the generated defects. The output is both scores, how well the two rankings
agree, and the time of the search compared with that of training and one extraction in the same run. Nothing is chosen
by it.

A category whose JSON file is in the output folder, with the same options, is not measured again.
"""

from __future__ import annotations

import argparse
import ast
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from categories import category_root, masks_at_map_size
from measure import machine, table
from scipy.stats import kendalltau, spearmanr
from sklearn.model_selection import GridSearchCV

from skpbas import PBASDetector
from skpbas._features.reading import Reading
from skpbas._inputs.images import check_images
from skpbas.core.devices import resolve_device
from skpbas.datasets import load_mvtec
from skpbas.metrics import image_auroc, pixel_pro
from skpbas.model_selection import GroupNormalKFold, synthetic_validation

METRICS = ("pixel_pro", "image_auroc")


class Clock:
    """Sums the seconds that the parts of fits take, as a callback of the detector, and those of functions.

    The parts are "features", "training" and "threshold": exemplars and threshold, and where the threshold needs a
    second head, its training.

    Attributes
    ----------
    seconds : dict of str to float
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._part_began = 0.0

    def setup(self, estimator: PBASDetector, context: Any) -> None:
        """Do nothing before a fit."""

    def teardown(self, estimator: PBASDetector, context: Any) -> None:
        """Do nothing after a fit."""

    def on_fit_task_begin(self, estimator: PBASDetector, context: Any) -> None:
        """Note when features begin, and that training has ended where the threshold begins."""
        if context.task_name == "threshold":
            self._end_part("training")
        elif context.task_name == "features":
            self._part_began = time.perf_counter()

    def on_fit_task_end(self, estimator: PBASDetector, context: Any) -> None:
        """Add the time of features and threshold; training follows the features."""
        if context.task_name in ("features", "threshold"):
            self._end_part(context.task_name)

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, whose calls then add their time to ``seconds[name]``."""

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self._add(name, time.perf_counter() - start)

        return call

    def _end_part(self, name: str) -> None:
        now = time.perf_counter()
        self._add(name, now - self._part_began)
        self._part_began = now

    def _add(self, name: str, seconds: float) -> None:
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


class TrueAndGenerated:
    """A scorer that measures on true and on generated defects separately, from one pass.

    Parameters
    ----------
    copies : Path
        Folder of the images with generated defects.
    """

    def __init__(self, copies: Path) -> None:
        self.copies = copies

    def __call__(self, estimator: PBASDetector, X: list[Path], y: list[Any]) -> dict[str, float]:
        """Return each metric for both kinds of defects; y: masks, None for normal images."""
        scores, anomaly_maps = zip(*estimator.iter_scores_and_maps(X), strict=True)
        masks = masks_at_map_size(y, X, estimator.map_shape_, estimator.resize)
        anomalous = np.array([mask is not None for mask in y])
        generated = np.array([path.parent == self.copies for path in X])
        metrics = {}
        for kind, rows in (("true", ~anomalous | ~generated), ("generated", ~anomalous | generated)):
            chosen = np.flatnonzero(rows)
            metrics[f"{kind}_image_auroc"] = image_auroc(anomalous[chosen], -np.array(scores)[chosen])
            metrics[f"{kind}_pixel_pro"] = pixel_pro(masks[chosen], [anomaly_maps[i] for i in chosen])
        return metrics


def agreement(true: np.ndarray, generated: np.ndarray) -> dict[str, float | None]:
    """Return how well two scores of the candidates agree in rank, and what choosing by the generated defects costs.

    Rank correlations are None if a score is the same for all candidates.
    """
    ranked = np.ptp(true) > 0 and np.ptp(generated) > 0
    return {
        "kendall": float(kendalltau(true, generated).statistic) if ranked else None,
        "spearman": float(spearmanr(true, generated).statistic) if ranked else None,
        "best_true": float(true.max()),
        "true_of_best_generated": float(true[np.argmax(generated)]),
        "median_true": float(np.median(true)),
    }


def extraction_seconds(detector: PBASDetector, X: list[Path]) -> float:
    """Return the time of decoding each image once and running the backbone on it, without a cache."""
    reading, items = Reading.planned(detector, check_images(X), np.arange(len(X)))
    extractor = reading.new_extractor(detector, torch.Generator().manual_seed(0)).to(resolve_device("auto"))
    level_maps = detector._level_maps(items, extractor, reading)
    start = time.perf_counter()
    for _ in level_maps.batches(range(len(X))):
        pass
    return time.perf_counter() - start


def search(root: Path, category: str, options: argparse.Namespace) -> dict[str, Any]:
    """Search the settings of a category, and return the tables."""
    train, test = (load_mvtec(root, category, split) for split in ("train", "test"))
    tested_normal = [image for image, label in zip(test.images, test.labels, strict=True) if label == 1]
    normal = [*train.images, *tested_normal][: options.limit]
    anomalous = [(i, m) for i, m in zip(test.images, test.masks, strict=True) if m is not None][: options.limit]
    grid = {"alpha": options.alpha, "patch_size": options.patch_size}
    with tempfile.TemporaryDirectory(prefix="skpbas-search-") as scratch:
        copies = Path(scratch, "copies")
        X, y, groups = synthetic_validation(normal, folder=copies, random_state=options.seed, return_groups=True)
        X += [image for image, _ in anomalous]
        y += [mask for _, mask in anomalous]
        groups = np.concatenate([groups, len(normal) + np.arange(len(anomalous))])
        detector = PBASDetector(
            options.backbone,
            weights=None if options.weights == "none" else options.weights,
            image_size=options.image_size,
            random_state=options.seed,
            **options.parameters,
        )
        seconds_extracting = extraction_seconds(detector, X)
        clock, scorer = Clock(), TrueAndGenerated(copies)
        grid_search = GridSearchCV(
            detector.set_params(memory=str(Path(scratch, "memory"))).set_callbacks(clock),
            grid,
            scoring=clock.timed("scoring", scorer),
            refit=False,
            cv=GroupNormalKFold(options.folds),
            error_score="raise",
            n_jobs=options.n_jobs,
        )
        start = time.perf_counter()
        grid_search.fit(X, y, groups=groups)
        whole = time.perf_counter() - start
    results = grid_search.cv_results_
    candidates = [
        {
            **parameters,
            **{
                f"{kind}_{metric}": float(results[f"mean_test_{kind}_{metric}"][i])
                for metric in METRICS
                for kind in ("true", "generated")
            },
        }
        for i, parameters in enumerate(results["params"])
    ]
    return {
        "normal": len(normal),
        "generated": len(normal),
        "anomalous": len(anomalous),
        "candidates": candidates,
        "agreement": {
            metric: agreement(*(results[f"mean_test_{kind}_{metric}"] for kind in ("true", "generated")))
            for metric in METRICS
        },
        "seconds": {
            "search": whole,
            "one extraction": seconds_extracting,
            **clock.seconds,
            # other processes have clocks of their own
            "ratio": whole / (clock.seconds["training"] + seconds_extracting) if options.n_jobs == 1 else None,
        },
    }


def show(category: str, result: dict[str, Any]) -> None:
    """Print the tables of a category."""
    n_images = ", ".join(f"{result[kind]} {kind}" for kind in ("normal", "anomalous", "generated"))
    print(f"\n{category}: {n_images} images")
    rows = [{name: _short(value) for name, value in row.items()} for row in result["candidates"]]
    print(table(rows))
    agreements = [
        {"by": metric, **{name: _short(value) for name, value in figures.items()}}
        for metric, figures in result["agreement"].items()
    ]
    print(f"\n{table(agreements)}")
    print("\nseconds: " + ", ".join(f"{name} {_short(value)}" for name, value in result["seconds"].items()))


def _short(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Parse the command line, search each category, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", required=True)
    parser.add_argument("--backbone", default="wide_resnet50_2")
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--alpha", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.4, 0.5])
    parser.add_argument("--patch-size", nargs="+", type=int, default=[1, 3, 5])
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n-jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--limit", type=int, help="largest number of normal, and of anomalous images")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other parameters of the detector")
    parser.add_argument("--name", default="", help="appended to the names of the output files")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.parameters = {}
    for assignment in options.set:
        name, value = assignment.split("=", 1)
        try:
            options.parameters[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options.parameters[name] = value
    given = {name: value for name, value in vars(options).items() if name not in ("category", "output", "set")}
    settings = json.loads(json.dumps(given, default=str))
    for category in options.category:
        target = options.output / "-".join(filter(None, ("search", category, options.backbone, options.name)))
        target = target.with_name(f"{target.name}.json")
        written = json.loads(target.read_text()) if target.exists() else {}
        if written.get("settings") == settings:
            print(f"\n{target} is up to date")
        else:
            result = search(category_root(options.data, category), category, options)
            written = {"machine": machine(), "settings": settings, "result": result}
            target.parent.mkdir(parents=True, exist_ok=True)
            unfinished = target.with_suffix(".part")
            unfinished.write_text(json.dumps(written, indent=1))
            unfinished.replace(target)
        show(category, written["result"])
        print(f"machine: {json.dumps(written['machine'])}; written to {target}", flush=True)


if __name__ == "__main__":
    main()
