"""Accuracy over the course of training: the default recipe beside the article's, last step beside best step.

    python benchmarks/curves.py --data ../shared/data \
        --backbone resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

The article's recipe has constant rates, so its first epochs are what a shorter run of it would be; ``--paper-epochs``
says how many. Every epoch (of the default: every second) is measured on the test images, to draw the curve and to see
what choosing the best epoch there would have gained: nothing is chosen. Rows go to a CSV as soon as they are known; a
category, seed and recipe that is there whole is not run again.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from categories import GENERATED, Features, load_features
from measure import append_rows, read_rows, table
from skorch.callbacks import Callback

from skpbas import PBASDetector, presets
from skpbas._features.sampling import TrainingFeatures, new_net, new_objective
from skpbas._training.exemplars import CORESET_POOL
from skpbas.core.coreset import N_EXEMPLARS, Coreset
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


class Measured(Callback):  # type: ignore[misc]
    """Measures the networks after an epoch, on the test images."""

    def __init__(self, category: Features, features: TrainingFeatures, coreset: Coreset, every: int) -> None:
        self.category, self.features, self.coreset, self.every = category, features, coreset, every
        extractor = category.extractor
        self.renderer = MapRenderer(extractor.grid_shape, extractor.image_size, 4.0)
        self.rows: list[dict[str, Any]] = []

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Take the distances, which training does not move."""
        fused = self._scorer(net)
        of_training = [fused.distances(*batch) for batch in self.features.parts_in_order(1)]
        self.training_distance = torch.cat(of_training)
        self.distance = torch.cat([fused.distances(parts) for parts in self.category.test_parts()])

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Measure every so many epochs."""
        epoch = len(net.history)
        if epoch % self.every:
            return
        fuser = self._scorer(net)
        fuser.standardize(self.features.parts_in_order(1), self.training_distance)
        scorer = fuser.discriminator
        logits = torch.cat([scorer(parts) for parts in self.category.test_parts()])
        fused = fuser.fuse(logits.view_as(self.distance), self.distance).flatten(1)
        patches = {
            "discriminator": (scorer.image_scores(logits), torch.sigmoid(logits)),
            "fused": (fuser.image_scores(fused), fused),
        }
        for name, (image_scores, shown) in patches.items():
            pixels = pixel_metrics(self.category.masks, self.renderer(shown).numpy())
            auroc = image_auroc(self.category.labels, image_scores.numpy())
            figures = {"image_auroc": auroc, "pixel_auroc": pixels["pixel_auroc"], "pixel_pro": pixels["pixel_pro"]}
            self.rows.append({"epoch": epoch, "score": name, **figures})

    def _scorer(self, net: Any) -> FusedScorer:
        objective = net.module_.eval()
        aggregator = self.category.extractor.aggregator
        return FusedScorer(aggregator, objective.projector, objective.discriminator, self.coreset)


def run(category: Features, detector: PBASDetector, seed: int, every: int) -> list[dict[str, Any]]:
    """Train once; return what was measured on the way."""
    features = category.training(seed)
    settings = detector._training_settings()
    objective = new_objective(features, settings)
    pool = list(features.sample(CORESET_POOL))
    coreset = Coreset.of(pool, min(N_EXEMPLARS, len(features) * features.n_positions // 4))
    net = new_net(objective, settings, len(features), "")
    measured = Measured(category, features, coreset, every)
    net.callbacks.append(("measured", measured))
    net.initialize()
    net.notify("on_train_begin", X=features, y=None)
    net.fit_loop(features)
    net.notify("on_train_end", X=features, y=None)
    return measured.rows


def summary(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return last and best figures of the second half of training, means and deviations over the seeds."""
    runs: dict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        runs[row["category"], row["recipe"], row["score"], row["seed"]].append(row)
    cells: dict[tuple[str, ...], list[dict[str, float]]] = defaultdict(list)
    for (category, recipe, score, _), of_run in runs.items():
        last = max(int(row["epoch"]) for row in of_run)
        second_half = [row for row in of_run if int(row["epoch"]) > last / 2]
        end = next(row for row in of_run if int(row["epoch"]) == last)
        cell = {"epochs": last, "best": max(float(row["image_auroc"]) for row in second_half)}
        cells[category, recipe, score].append(
            cell | {name: float(end[name]) for name in ("image_auroc", "pixel_auroc", "pixel_pro")}
        )

    def over_seeds(values: list[float]) -> str:
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        return f"{statistics.mean(values):.3f} ± {spread:.3f}"

    return [
        {
            "category": category,
            "recipe": recipe,
            "epochs": str(int(of_cell[0]["epochs"])),
            "score": score,
            "seeds": str(len(of_cell)),
            "image AUROC, last": over_seeds([c["image_auroc"] for c in of_cell]),
            "best of the second half, less last": f"{max(c['best'] - c['image_auroc'] for c in of_cell):.4f} at most",
            "pixel AUROC, last": over_seeds([c["pixel_auroc"] for c in of_cell]),
            "PRO, last": over_seeds([c["pixel_pro"] for c in of_cell]),
        }
        for (category, recipe, score), of_cell in cells.items()
    ]


def draw(rows: list[dict[str, str]], target: Path) -> None:
    """Draw image AUROC and PRO over the share of the training, a line a seed."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "skpbas"
    categories = list(dict.fromkeys(row["category"] for row in rows))
    metrics = {"image_auroc": "image AUROC", "pixel_pro": "PRO"}
    shown = {("default", "fused"): "C0", ("default", "discriminator"): "C1", ("article", "discriminator"): "C2"}
    figure, axes = plt.subplots(
        len(metrics), len(categories), figsize=(3.2 * len(categories), 5), layout="constrained", squeeze=False
    )
    for column, category in enumerate(categories):
        for line, (metric, title) in zip(axes[:, column], metrics.items(), strict=True):
            for (recipe, score), colour in shown.items():
                of_recipe = [r for r in rows if (r["category"], r["recipe"], r["score"]) == (category, recipe, score)]
                for i, seed in enumerate(dict.fromkeys(r["seed"] for r in of_recipe)):
                    points = sorted((int(r["epoch"]), float(r[metric])) for r in of_recipe if r["seed"] == seed)
                    label = f"{recipe} recipe, {score} score" if i == 0 else None
                    line.plot(*zip(*points, strict=True), color=colour, label=label, linewidth=1)
            line.set(xlabel="epoch", ylabel=title if column == 0 else None)
        axes[0, column].set_title(category)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=len(shown), fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def main() -> None:
    """Parse the command line, run what is missing, print the table, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", default=["bottle", "screw", "commutator"], help=f"or {[*GENERATED]}")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--recipe", nargs="+", default=["default", "article"], choices=["default", "article"])
    parser.add_argument("--paper-epochs", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/curves.csv"))
    parser.add_argument("--memory", type=Path, default=Path("benchmarks/results/maps"), help="keeps the network's maps")
    parser.add_argument("--draw", type=Path, help="write the curves as a picture")
    options = parser.parse_args()

    for name in options.category:
        category = None
        for recipe in options.recipe:
            parameters: dict[str, Any] = {}
            if recipe == "article":
                parameters = {key: presets.PAPER[key] for key in PAPER_RECIPE} | {"max_epochs": options.paper_epochs}
            detector = PBASDetector(
                options.backbone,
                weights=None if options.weights == "none" else options.weights,
                device="cpu",
                memory=options.memory,
                **parameters,
            )
            for seed in options.seeds:
                if any(
                    (r["category"], r["recipe"], r["seed"]) == (name, recipe, str(seed))
                    for r in read_rows(options.output)
                ):
                    continue
                category = category or load_features(name, options.data, detector)
                rows = run(category, detector, seed, every=2 if recipe == "default" else 1)
                key = {"category": name, "seed": seed, "recipe": recipe, "epochs": rows[-1]["epoch"]}
                append_rows(options.output, [key | row for row in rows])
                print(name, recipe, seed, rows[-1], flush=True)
    rows_read = read_rows(options.output)
    if rows_read:
        print(table(summary(rows_read)))
        if options.draw:
            draw(rows_read, options.draw)


if __name__ == "__main__":
    main()
