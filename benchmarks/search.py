"""A grid search on a real category: what it costs, and whether generated defects rank settings as true ones do.

    python benchmarks/search.py --data ../shared/data --category bottle screw --backbone resnet18 \
        --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

One ``GridSearchCV`` over alpha and patch_size a category: folds of all its good images, of its defective ones, and of
copies of the good ones with generated defects, each copy in its image's fold. Every candidate is scored twice from one
pass, on the true and on the generated defects; printed are both scores, how well the two rankings agree, and the time
of the search beside that of its training steps and one extraction, measured in the same run. Nothing is chosen by it.

A category whose JSON file is in the output folder, with the same options, is not measured again.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from categories import category_root
from measure import machine, table
from scipy.stats import kendalltau, spearmanr
from sklearn.model_selection import GridSearchCV

import skpbas._training.loop
import skpbas.estimator
from skpbas import PBASDetector
from skpbas._features.extraction import LevelMaps
from skpbas._inputs.images import check_images
from skpbas._inputs.mask_reader import masks_at_map_size
from skpbas.datasets import load_mvtec
from skpbas.metrics import image_auroc, pixel_pro
from skpbas.model_selection import GroupNormalKFold, synthetic_validation

METRICS = ("pixel_pro", "image_auroc")


class Clock:
    """Sums the seconds that functions take while they are watched."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, which then adds its time to ``seconds[name]``."""

        def call(*arguments: Any, **named: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return call

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the parts of a fit."""
        training = skpbas._training.loop
        with contextlib.ExitStack() as patches:
            for owner, attribute, name in (
                (skpbas.estimator, "train_head", "training"),
                (training, "train_head", "training"),  # the threshold's second head
                (training, "new_scorer", "exemplars"),
                (LevelMaps, "store", "features"),
            ):
                patches.enter_context(patch.object(owner, attribute, self.timed(name, getattr(owner, attribute))))
            yield


class TwoTruths:
    """A scorer that measures on the true and on the generated defects apart, from one pass."""

    def __init__(self, copies: Path) -> None:
        self.copies = copies

    def __call__(self, estimator: PBASDetector, X: list[Path], y: list[Any]) -> dict[str, float]:
        """Return each metric for both kinds of defects."""
        scores, maps = zip(*estimator.iter_scores_and_maps(X), strict=True)
        seen, anomalous = masks_at_map_size(y, X, estimator.map_shape_, estimator.resize)
        generated = np.array([path.parent == self.copies for path in X])
        found = {}
        for kind, rows in (("true", ~anomalous | ~generated), ("generated", ~anomalous | generated)):
            chosen = np.flatnonzero(rows)
            found[f"{kind}_image_auroc"] = image_auroc(anomalous[chosen], -np.array(scores)[chosen])
            found[f"{kind}_pixel_pro"] = pixel_pro([seen[i] for i in chosen], [maps[i] for i in chosen])
        return found


def agreement(true: np.ndarray, generated: np.ndarray) -> dict[str, float | None]:
    """Return how alike two scores rank the candidates (None: one has no order), and what choosing by one costs."""
    ranked = np.ptp(true) > 0 and np.ptp(generated) > 0
    return {
        "kendall": float(kendalltau(true, generated).statistic) if ranked else None,
        "spearman": float(spearmanr(true, generated).statistic) if ranked else None,
        "best_true": float(true.max()),
        "true_of_best_generated": float(true[np.argmax(generated)]),
        "median_true": float(np.median(true)),
    }


def extraction_seconds(detector: PBASDetector, X: list[Path]) -> float:
    """Time one decoding and one run of the backbone for each image, with nothing kept."""
    extractor = detector._make_extractor(torch.Generator().manual_seed(0)).to(skpbas.estimator.resolve_device("auto"))
    level_maps = detector._level_maps(check_images(X), extractor)
    start = time.perf_counter()
    for _ in level_maps.batches(range(len(X))):
        pass
    return time.perf_counter() - start


def search(root: Path, category: str, options: argparse.Namespace) -> dict[str, Any]:
    """Search a category's settings, and return the tables."""
    train, test = (load_mvtec(root, category, split) for split in ("train", "test"))
    tested_good = [image for image, label in zip(test.images, test.labels, strict=True) if label == 1]
    good = [*train.images, *tested_good][: options.limit]
    defective = [(i, m) for i, m in zip(test.images, test.masks, strict=True) if m is not None][: options.limit]
    grid = {"alpha": options.alpha, "patch_size": options.patch_size}
    with tempfile.TemporaryDirectory(prefix="skpbas-search-") as scratch:
        copies = Path(scratch, "copies")
        X, y, groups = synthetic_validation(good, folder=copies, random_state=options.seed, return_groups=True)
        X += [image for image, _ in defective]
        y += [mask for _, mask in defective]
        groups = np.concatenate([groups, len(good) + np.arange(len(defective))])
        detector = PBASDetector(
            options.backbone,
            weights=None if options.weights == "none" else options.weights,
            image_size=options.image_size,
            random_state=options.seed,
            **options.parameters,
        )
        seconds_extracting = extraction_seconds(detector, X)
        clock, scorer = Clock(), TwoTruths(copies)
        wanted = GridSearchCV(
            detector.set_params(memory=str(Path(scratch, "memory"))),
            grid,
            scoring=clock.timed("scoring", scorer),
            refit=False,
            cv=GroupNormalKFold(options.folds),
            error_score="raise",
            n_jobs=options.n_jobs,
        )
        start = time.perf_counter()
        with clock.watching():
            wanted.fit(X, y, groups=groups)
        whole = time.perf_counter() - start
    results = wanted.cv_results_
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
        "good": len(good),
        "generated": len(good),
        "defective": len(defective),
        "candidates": candidates,
        "agreement": {
            metric: agreement(*(results[f"mean_test_{kind}_{metric}"] for kind in ("true", "generated")))
            for metric in METRICS
        },
        "seconds": {
            "search": whole,
            "one extraction": seconds_extracting,
            **clock.seconds,
            # the parts of fits in other processes are not seen
            "ratio": whole / (clock.seconds["training"] + seconds_extracting) if options.n_jobs == 1 else None,
        },
    }


def show(category: str, result: dict[str, Any]) -> None:
    """Print a category's tables."""
    print(
        f"\n{category}: {result['good']} good images, {result['defective']} defective, {result['generated']} generated"
    )
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
    parser.add_argument("--n-jobs", type=int, default=1, help="processes of the search")
    parser.add_argument("--limit", type=int, help="at most so many good, and so many defective images")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="further parameters")
    parser.add_argument("--name", default="", help="a word for the files' names")
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
            print(f"\n{target} is kept")
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
