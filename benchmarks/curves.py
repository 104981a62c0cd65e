r"""Accuracy in the course of training: the default recipe and the paper's, at the last and at the best epoch.

    python benchmarks/curves.py --data ../shared/data \
        --backbone resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

The paper's recipe has constant learning rates, so its first epochs are those of any shorter run of it;
``--paper-epochs`` is their number. A dozen epochs or more (``--every``) are measured on the test images, to draw the
curve and to see what choosing the best epoch there would have gained: nothing is chosen. The rows of a category, seed
and recipe are written to a CSV when its training ends, and it is not run again. ``seconds`` are those of the processor,
without measuring.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from categories import GENERATED, Features, load_features
from head_training import train
from measure import append_rows, read_rows, table
from skorch.callbacks import Callback

from skpbas import PBASDetector, presets
from skpbas._features.sampling import TrainingFeatures
from skpbas._training.exemplars import POOL_SIZE
from skpbas.core.coreset import Coreset
from skpbas.core.maps import MapRenderer
from skpbas.core.patch_scores import FusedScorer
from skpbas.metrics import image_auroc, pixel_metrics

PAPER_RECIPE = (
    "projector_init",
    "n_heads",
    "hidden_dim",
    "batch_size",
    "patches_per_step",
    "schedule",
    "projector_lr",
    "discriminator_lr",
)


AXES = {"epoch": "epoch", "seconds": "seconds of training, one core"}


class EpochMetrics(Callback):  # type: ignore[misc]
    """Measures the networks on the test images, once every ``every`` epochs."""

    def __init__(
        self, category: Features, features: TrainingFeatures, coreset: Coreset, smoothing_sigma: float, every: int
    ) -> None:
        self.category, self.features, self.coreset, self.every = category, features, coreset, every
        extractor = category.extractor
        self.renderer = MapRenderer(extractor.grid_shape, extractor.image_size, smoothing_sigma)
        self.rows: list[dict[str, Any]] = []

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Compute the distances, which training does not change."""
        scorer = self._scorer(net)
        of_training = [scorer.distances(*batch) for batch in self.features.parts_in_order(1)]
        self.training_distances_ = torch.cat(of_training)
        self.distances_ = torch.cat([scorer.distances(parts) for parts in self.category.test_parts()])
        self.start = time.process_time()

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Measure the fused score and the discriminator's."""
        epoch = len(net.history)
        if epoch % self.every:
            return
        start = time.process_time()
        scorer = self._scorer(net)
        scorer.standardize(self.features.parts_in_order(1), self.training_distances_)
        discriminator, grid = scorer.discriminator, self.category.extractor.grid_shape
        logits = torch.cat([discriminator(parts) for parts in self.category.test_parts()])
        fused = scorer.fuse(logits.view_as(self.distances_), self.distances_).flatten(1)
        scores = {
            "discriminator": (discriminator.image_scores(logits, grid), torch.sigmoid(logits)),
            "fused": (scorer.image_scores(fused, grid), fused),
        }
        for name, (image_scores, patch_scores) in scores.items():
            pixels = pixel_metrics(self.category.masks, self.renderer(patch_scores).numpy())
            auroc = image_auroc(self.category.labels, image_scores.numpy())
            figures = {"image_auroc": auroc, "pixel_auroc": pixels["pixel_auroc"], "pixel_pro": pixels["pixel_pro"]}
            self.rows.append({"epoch": epoch, "patch_score": name, **figures, "seconds": round(start - self.start, 1)})
        self.start += time.process_time() - start

    def _scorer(self, net: Any) -> FusedScorer:
        objective = net.module_.eval()
        aggregator = self.category.extractor.aggregator
        return FusedScorer(aggregator, objective.projector, objective.discriminator, self.coreset)


def run(category: Features, detector: PBASDetector, seed: int, every: int) -> list[dict[str, Any]]:
    """Train once, and return the metrics measured once every ``every`` epochs."""
    features = category.training(seed)
    settings = detector._training_settings()
    n_exemplars = min(settings.n_exemplars, len(features) * features.n_positions // 4)
    coreset = Coreset.of(features.sample(POOL_SIZE), n_exemplars)
    metrics = EpochMetrics(category, features, coreset, settings.smoothing_sigma, every)
    train(features, settings, callbacks=[metrics])
    return metrics.rows


def summary(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return last and best figures of the second half of training: means and standard deviations over the seeds."""
    runs: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        runs[row["category"], row["recipe"], row["patch_score"], row["seed"]].append(row)
    cells: dict[tuple[str, ...], list[dict[str, float]]] = defaultdict(list)
    for (category, recipe, patch_score, _), of_run in runs.items():
        last = max(int(row["epoch"]) for row in of_run)
        second_half = [row for row in of_run if int(row["epoch"]) > last / 2]
        end = next(row for row in of_run if int(row["epoch"]) == last)
        cell = {"epochs": last, "best": max(float(row["image_auroc"]) for row in second_half)}
        cells[category, recipe, patch_score].append(
            cell | {name: float(end[name]) for name in ("image_auroc", "pixel_auroc", "pixel_pro")}
        )

    def over_seeds(values: list[float]) -> str:
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.3f} ± {std:.3f}"

    return [
        {
            "category": category,
            "recipe": recipe,
            "epochs": str(int(of_cell[0]["epochs"])),
            "patch_score": patch_score,
            "seeds": str(len(of_cell)),
            "image AUROC, last": over_seeds([c["image_auroc"] for c in of_cell]),
            "best of the second half minus last": f"at most {max(c['best'] - c['image_auroc'] for c in of_cell):.4f}",
            "pixel AUROC, last": over_seeds([c["pixel_auroc"] for c in of_cell]),
            "PRO, last": over_seeds([c["pixel_pro"] for c in of_cell]),
        }
        for (category, recipe, patch_score), of_cell in cells.items()
    ]


def draw(rows: list[dict[str, str]], target: Path, over: str) -> None:
    """Draw image AUROC and PRO over "epoch" or "seconds", with a line per seed."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "skpbas"
    categories = list(dict.fromkeys(row["category"] for row in rows))
    metrics = {"image_auroc": "image AUROC", "pixel_pro": "PRO"}
    colors = {("default", "fused"): "C0", ("default", "discriminator"): "C1", ("paper", "discriminator"): "C2"}
    figure, axes = plt.subplots(
        len(metrics), len(categories), figsize=(3.2 * len(categories), 5), layout="constrained", squeeze=False
    )
    for column, category in enumerate(categories):
        for axis, (metric, title) in zip(axes[:, column], metrics.items(), strict=True):
            for (recipe, score), color in colors.items():
                key = category, recipe, score
                of_recipe = [row for row in rows if (row["category"], row["recipe"], row["patch_score"]) == key]
                for i, seed in enumerate(dict.fromkeys(row["seed"] for row in of_recipe)):
                    points = sorted((float(row[over]), float(row[metric])) for row in of_recipe if row["seed"] == seed)
                    label = f"{recipe} recipe, {score} score" if i == 0 else None
                    axis.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1)
            axis.set(xlabel=AXES[over], ylabel=title if column == 0 else None)
            if over == "seconds":
                axis.set_xscale("log")
                axis.xaxis.set_major_formatter("{x:g}")
        axes[0, column].set_title(category)
    labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=len(categories), fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Parse the command line, run what is missing, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument(
        "--category",
        nargs="+",
        default=["bottle", "screw", "commutator"],
        help=f"categories under --data, or generated ones: {', '.join(GENERATED)}",
    )
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--recipe", nargs="+", default=["default", "paper"], choices=["default", "paper"])
    parser.add_argument("--paper-epochs", type=int, default=10, help="epochs of the paper's recipe")
    parser.add_argument("--every", type=int, help="measure the paper's recipe every n epochs; by default a dozen times")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/curves.csv"))
    parser.add_argument(
        "--memory", type=Path, default=Path("benchmarks/results/feature_maps"), help="folder that keeps feature maps"
    )
    parser.add_argument("--draw", type=Path, help="SVG file to draw the curves in")
    parser.add_argument("--over", default="epoch", choices=list(AXES), help="horizontal axis of the curves")
    options = parser.parse_args()

    for name in options.category:
        category = None
        for recipe in options.recipe:
            parameters: dict[str, Any] = {}
            if recipe == "paper":
                parameters = {key: presets.PAPER[key] for key in PAPER_RECIPE} | {"max_epochs": options.paper_epochs}
            detector = PBASDetector(
                options.backbone,
                weights=None if options.weights == "none" else options.weights,
                resize="stretch",  # as in the rows that are kept
                device="cpu",
                memory=options.memory,
                **parameters,
            )
            for seed in options.seeds:
                written = read_rows(options.output)
                if (name, recipe, str(seed)) in {(row["category"], row["recipe"], row["seed"]) for row in written}:
                    continue
                category = category or load_features(name, options.data, detector)
                every = 2 if recipe == "default" else options.every or max(options.paper_epochs // 12, 1)
                rows = run(category, detector, seed, every)
                key = {"category": name, "seed": seed, "recipe": recipe, "epochs": rows[-1]["epoch"]}
                append_rows(options.output, [key | row for row in rows])
                print(name, recipe, seed, rows[-1], flush=True)
    rows_read = read_rows(options.output)
    if rows_read:
        print(table(summary(rows_read)))
        if options.draw:
            draw(rows_read, options.draw, options.over)


if __name__ == "__main__":
    main()
