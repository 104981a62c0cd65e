"""Try each lever of training and scoring alone, on every category, three seeds, at the last step.

    python benchmarks/ablation.py --data ../shared/data \
        --backbone resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

A lever changes one thing of the default detector. Training levers train anew; readings only read another score out of
the same training. One row a category, seed, training and reading goes to a CSV as soon as it is known, and rows that
are there are not computed again, so a run may be stopped at any time. ``--summary`` prints the table: differences to
the default, by category, with the seeds' spread. Patch scores are kept, so that another reading needs no training.
Test labels are read for the table alone: nothing is chosen by a run.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from categories import GENERATED, Features, load_features
from measure import append_rows, read_rows, table
from skorch.callbacks import Callback
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from skpbas import PBASDetector
from skpbas._features.sampling import TrainingFeatures
from skpbas._training.exemplars import POOL_SIZE
from skpbas._training.loop import TrainedHead, new_net, new_objective
from skpbas._training.settings import TrainingSettings
from skpbas.core.coreset import Coreset, farthest_points
from skpbas.core.devices import discriminator_precision
from skpbas.core.maps import MapRenderer
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.objective import PBASObjective, StepTerms
from skpbas.core.patch_scores import DiscriminatorScorer, FusedScorer
from skpbas.metrics import image_auroc, pixel_metrics

N_EXEMPLARS, N_DIRECTIONS = PBASDetector().n_exemplars, 128
METRICS = ("image_auroc", "pixel_auroc", "pixel_pro")
KEY = ("category", "seed", "training", "reading")
FEATURE_PARAMETERS = ("image_size", "layers", "feature_dim")  # those among the levers' that change features


# Training levers


class VariantObjective(PBASObjective):
    """The package's step with one thing changed; ``options`` says what."""

    options: dict[str, Any]
    n_steps: int
    step = 0

    def forward(self, features: Tensor) -> StepTerms:
        """Compute the terms for (N, d) patch features."""
        if self.training:
            self.step += 1
        if "hardest" in self.options:
            with torch.no_grad():
                u = self.projector(features)
                distance = torch.linalg.vector_norm(u - self.center[_most_similar(u, self.center)], dim=1)
            features = features[distance.topk(self.options["hardest"]).indices]
        if "anneal" in self.options:
            first, last = self.options["anneal"]
            self.alpha = first + (last - first) * self.step / self.n_steps
        if "alphas" in self.options:
            low, high = self.options["alphas"]
            self.alpha = torch.empty(len(features), 1).uniform_(low, high, generator=self.generator)  # type: ignore[assignment]
        return super().forward(features)


def _most_similar(features: Tensor, center: Tensor) -> Tensor:
    return (features @ F.normalize(center, dim=1).T).argmax(1)


def _nearest_by_distance(features: Tensor, center: Tensor) -> Tensor:
    return torch.cdist(features, center).argmin(1)


class _Ema(Callback):  # type: ignore[misc]
    """Averages the weights over the steps, and puts the average in their place at the end."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.average_ = AveragedModel(net.module_, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)

    def on_batch_end(self, net: Any, **kwargs: Any) -> None:
        self.average_.update_parameters(net.module_)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        net.module_.load_state_dict(self.average_.module.state_dict())


@dataclass(frozen=True)
class Training:
    """A training lever: parameters of the detector, or what only this file can do."""

    parameters: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    steps: tuple[int, int] | None = None  # at least so many steps and epochs


TRAININGS: dict[str, Training] = {
    "default": Training(),
    "half the steps": Training(steps=(300, 12)),
    "twice the steps": Training(steps=(1200, 48)),
    "one head of 256": Training({"n_heads": 1}),
    "one head of 512": Training({"n_heads": 1, "hidden_dim": 512}),
    "one head of 1024": Training({"n_heads": 1, "hidden_dim": 1024}),
    "two heads of 128": Training({"hidden_dim": 128}),
    "three heads of 256": Training({"n_heads": 3}),
    "four heads of 128": Training({"n_heads": 4, "hidden_dim": 128}),
    "discriminator's rate 2e-4": Training({"discriminator_lr": 2e-4}),
    "projector's rate 3e-4": Training({"projector_lr": 3e-4}),
    "2,048 patches a step": Training({"patches_per_step": 2048}),
    "a rotation for a projector": Training({"projector_init": "orthogonal"}),
    "Xavier's projector": Training({"projector_init": "xavier"}),
    "a rotation, one head of 512": Training({"projector_init": "orthogonal", "n_heads": 1, "hidden_dim": 512}),
    "the article's networks": Training({"projector_init": "xavier", "n_heads": 1, "hidden_dim": 1024}),
    "alpha 0.2": Training({"alpha": 0.2}),
    "alpha 0.5": Training({"alpha": 0.5}),
    "alpha from 0.1 to 0.5 at random": Training(options={"alphas": (0.1, 0.5)}),
    "alpha annealed from 0.6 to 0.2": Training(options={"anneal": (0.6, 0.2)}),
    "hardest half of twice the patches": Training({"patches_per_step": 2048}, {"hardest": 1024}),
    "nearest centre by distance": Training(options={"nearest": "distance"}),
    "a quarter of the centres": Training(options={"n_centers": 256}),
    "dropout 0.2": Training(options={"dropout": 0.2}),
    "EMA 0.99 of the weights": Training(options={"ema": 0.99}),
    "288 pixels": Training({"image_size": 288}),
    "320 pixels": Training({"image_size": 320}),
    "layers 1 to 3": Training({"layers": ("layer1", "layer2", "layer3"), "feature_dim": 448}),
}


def train(features: TrainingFeatures, settings: TrainingSettings, lever: Training) -> TrainedHead:
    """Train a head as the package does, with the lever's change."""
    options = lever.options
    objective = new_objective(features, settings)
    if "n_centers" in options:
        center = objective.center
        objective.center = center[farthest_points(center, options["n_centers"])]
    if "dropout" in options:
        assert objective.discriminator is not None
        activation = objective.discriminator.activation
        objective.discriminator.activation = torch.nn.Sequential(activation, torch.nn.Dropout(options["dropout"]))  # type: ignore[assignment]
    objective.__class__ = VariantObjective
    objective.options = options  # type: ignore[attr-defined]
    epochs = _training.n_epochs(settings, len(features))
    objective.n_steps = epochs * -(-len(features) // settings.batch_size)  # type: ignore[attr-defined]
    net = new_net(objective, settings, len(features), "")
    if "ema" in options:
        net.callbacks.append(("ema", _Ema(options["ema"])))
    net.initialize()
    net.notify("on_train_begin", X=features, y=None)
    net.fit_loop(features)
    net.notify("on_train_end", X=features, y=None)
    objective.eval()
    if "dropout" in options:
        objective.discriminator.activation = activation  # type: ignore[union-attr]
    curve = {name: net.history[:, name] for name in objective.term_names}
    return TrainedHead(objective.projector, objective.discriminator, objective.center, curve, len(net.history))


# Readings


@dataclass
class Trained:
    """What a training gives for the test patches; every reading starts from it."""

    logit: Tensor  # (n, H_0, W_0), of D
    scale: Tensor  # (2,): mean and deviation, over the training images, of logits averaged over 3 x 3
    distance_to: Callable[[int, int], Tensor]  # exemplars, directions: (n, H_0, W_0), in units of the training's mean

    @property
    def distance(self) -> Tensor:
        """The package's distance to the nearest exemplar."""
        return self.distance_to(N_EXEMPLARS, N_DIRECTIONS)


def fused(
    trained: Trained,
    distance: Tensor,
    *,
    temperature: float = 3.0,
    side: int = 3,
    weight: float = 1.0,
    standardised: bool = True,
) -> Tensor:
    """Return the package's score, or one with something changed."""
    around = average_around(trained.logit, side)
    mean, deviation = trained.scale if standardised else (0.0, 1.0)
    return (1 + weight * torch.sigmoid((around - mean) / deviation / temperature)) * distance


def average_around(logit: Tensor, side: int) -> Tensor:
    """Average (n, H, W) over the patches around each."""
    return F.avg_pool2d(logit[:, None], side, 1, side // 2, count_include_pad=False)[:, 0]


@dataclass(frozen=True)
class Reading:
    """Patch scores, image scores, and the map's smoothing."""

    patches: Callable[[Trained], Tensor] = lambda trained: fused(trained, trained.distance)
    largest: int = 10  # patches whose mean score is the image's
    sigma: float = 4.0
    image_from_map: bool = False


def changed(**settings: Any) -> Reading:
    """Return the fused score with something changed."""
    return Reading(lambda trained: fused(trained, trained.distance, **settings))


def with_coreset(n_exemplars: int, n_directions: int) -> Reading:
    """Return the fused score with another coreset."""

    def patches(trained: Trained) -> Tensor:
        return fused(trained, trained.distance_to(n_exemplars, n_directions))

    return Reading(patches)


READINGS: dict[str, Reading] = {
    "default": Reading(),
    "the article's score: discriminator, largest": Reading(lambda t: t.logit, largest=1),
    "distance to exemplars alone": Reading(lambda t: t.distance),
    "largest patch": Reading(largest=1),
    "mean of the 3 largest": Reading(largest=3),
    "mean of the 30 largest": Reading(largest=30),
    "largest of the smoothed map": Reading(image_from_map=True),
    "logits as they come": changed(side=1),
    "logits averaged over 5 x 5": changed(side=5),
    "logits not standardised, temperature 2": changed(temperature=2.0, standardised=False),
    "temperature 2": changed(temperature=2.0),
    "temperature 4": changed(temperature=4.0),
    "(1 + 2 D') distance": changed(weight=2.0),
    "(1 + D) distance, largest patch": dataclasses.replace(
        changed(side=1, temperature=1.0, standardised=False), largest=1
    ),
    "smoothing 3": Reading(sigma=3.0),
    "smoothing 5": Reading(sigma=5.0),
}
CORESET_READINGS: dict[str, Reading] = {
    "2,048 exemplars": with_coreset(2048, N_DIRECTIONS),
    "8,192 exemplars": with_coreset(8192, N_DIRECTIONS),
    "64 directions": with_coreset(N_EXEMPLARS, 64),
    "256 directions": with_coreset(N_EXEMPLARS, 256),
}
BASIC_READINGS = list(READINGS)[:2]  # for trainings other than the default
AVERAGED = "heads of all seeds averaged"


def logits_of_training(category: Features, detector: PBASDetector, lever: Training, seed: int) -> tuple[Tensor, Tensor]:
    """Train, and return the logits (n, H_0, W_0) of the test patches, and the training images' scale of logits (2,)."""
    features = category.training(seed)
    settings = detector._training_settings()
    saved = _training.SUFFICIENT_STEPS, _training.SUFFICIENT_EPOCHS
    nearest = losses.nearest_center
    if lever.steps:
        _training.SUFFICIENT_STEPS, _training.SUFFICIENT_EPOCHS = lever.steps
    if lever.options.get("nearest") == "distance":
        losses.nearest_center = _nearest_by_distance
    try:
        head = train(features, settings, lever)
    finally:
        _training.SUFFICIENT_STEPS, _training.SUFFICIENT_EPOCHS = saved
        losses.nearest_center = nearest
    assert head.discriminator is not None
    scorer = DiscriminatorScorer(features.aggregator, head.projector, head.discriminator)
    scorer.precision = discriminator_precision(settings.precision, features.device)
    grid = category.extractor.grid_shape
    of_training = torch.cat([scorer(parts) for parts, _ in features.parts_in_order(1)]).unflatten(1, grid)
    of_patches = average_around(of_training, 3)
    logits = torch.cat([scorer(parts) for parts in category.test_parts()]).unflatten(1, grid)
    return logits, torch.stack([of_patches.mean(), of_patches.std()])


def distances_to_exemplars(category: Features, n_exemplars: int, n_directions: int) -> Tensor:
    """Return the distances (n, H_0, W_0) of the test patches; no seed and no training moves them."""
    features = category.training(0)
    dim = features.aggregator.feature_dim
    untrained = Projector(dim, torch.Generator()), Discriminator(dim, 1, torch.Generator())  # distances ask neither
    coreset = Coreset.of(
        features.sample(POOL_SIZE), min(n_exemplars, len(features) * features.n_positions // 4), n_directions
    )
    scorer = FusedScorer(features.aggregator, *untrained, coreset)
    scorer.precision = discriminator_precision("auto", features.device)
    scorer.standardize(features.parts_in_order(1))
    return torch.cat([scorer.distances(parts) for parts in category.test_parts()]) / scorer.mean_distance


class Runs:
    """A lever's trainings on a category; logits and distances are kept in files.

    Parameters
    ----------
    name, category : str
        Of the lever and of the category.
    options : argparse.Namespace
    """

    def __init__(self, name: str, category: str, options: argparse.Namespace) -> None:
        self.name, self.category_name, self.data = name, category, options.data
        self.folder: Path = options.output.with_suffix("")  # beside the CSV
        self.lever = TRAININGS[name]
        self.detector = PBASDetector(
            options.backbone,
            weights=None if options.weights == "none" else options.weights,
            device="cpu",
            memory=options.memory,
            **self.lever.parameters,
        )
        self._distances: dict[tuple[int, int], Tensor] = {}

    @cached_property
    def category(self) -> Features:
        """The category's features."""
        return load_features(self.category_name, self.data, self.detector)

    def trained(self, seeds: Sequence[int]) -> Trained:
        """Return what a training gives, or the mean of several's logits."""
        made = [
            self._kept(
                f"{self.name}-{self.category_name}-{seed}",
                partial(logits_of_training, self.category, self.detector, self.lever, seed),
            )
            for seed in seeds
        ]
        logit, scale = (torch.stack(values).mean(0) for values in zip(*made, strict=True))
        return Trained(logit, scale, self.distance_to)

    def distance_to(self, n_exemplars: int, n_directions: int) -> Tensor:
        """Return the distances of the test patches; levers that leave the features alone share them."""
        key = n_exemplars, n_directions
        if key not in self._distances:
            changed = [f"{k} {v}" for k, v in self.lever.parameters.items() if k in FEATURE_PARAMETERS]
            stem = "-".join(["exemplars", self.category_name, *changed, *map(str, key)])
            self._distances[key] = self._kept(stem, partial(distances_to_exemplars, self.category, *key))
        return self._distances[key]

    def _kept(self, stem: str, make: Callable[[], Any]) -> Any:
        file = self.folder / (re.sub(r"[^\w-]+", "_", stem) + ".pt")
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(make(), file)
        return torch.load(file, weights_only=True)


def measure(category: Features, trained: Trained, reading: Reading) -> dict[str, float]:
    """Return the metrics of a reading."""
    patches = reading.patches(trained)
    maps = MapRenderer(category.extractor.grid_shape, category.extractor.image_size, reading.sigma)(patches.flatten(1))
    largest = patches.flatten(1).topk(reading.largest, dim=1).values.mean(1)
    images = maps.flatten(1).amax(1) if reading.image_from_map else largest
    return {
        "image_auroc": image_auroc(category.labels, images.numpy()),
        **{k: v for k, v in pixel_metrics(category.masks, maps.numpy()).items() if k in METRICS},
    }


# Runs and tables


def summary(rows: list[dict[str, str]], base: tuple[str, str] = ("default", "default")) -> list[dict[str, str]]:
    """Return a row a lever: the base's metrics, or how far the lever's lie from them, means over the seeds."""
    cells: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        training = AVERAGED if row["seed"] == AVERAGED else row["training"]
        for metric in ("image_auroc", "pixel_pro"):
            cells[training, row["reading"]][row["category"], metric].append(float(row[metric]))
    of_base = cells[base]
    lines = []
    for (training, reading), values in cells.items():
        line = {"training": training, "reading": reading}
        differences = defaultdict(list)
        for (category, metric), base_values in of_base.items():
            mine = values.get((category, metric))
            if not mine:
                line[f"{category} {metric}"] = ""
                continue
            mean, base_mean = statistics.mean(mine), statistics.mean(base_values)
            if (training, reading) == base:
                spread = statistics.stdev(mine) if len(mine) > 1 else 0.0
                line[f"{category} {metric}"] = f"{mean:.3f} ± {spread:.3f}"
            else:
                line[f"{category} {metric}"] = f"{mean - base_mean:+.3f}"
            differences[metric].append(mean - base_mean)
        for metric, of_metric in differences.items():
            line[f"mean {metric}"] = f"{statistics.mean(of_metric):+.4f}"
        lines.append(line)
    return lines


def main() -> None:
    """Parse the command line, run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of categories in MVTec AD's layout")
    parser.add_argument("--category", nargs="+", default=["bottle", "screw", "commutator", *GENERATED])
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--weights", default="imagenet", help='"imagenet", a state-dict file, or "none"')
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--training", nargs="+", default=list(TRAININGS), choices=list(TRAININGS), metavar="LEVER")
    parser.add_argument(
        "--reading", nargs="+", default=list(READINGS), choices=[*READINGS, *CORESET_READINGS], metavar="READING"
    )
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/ablation.csv"))
    parser.add_argument("--memory", type=Path, default=Path("benchmarks/results/maps"), help="keeps the network's maps")
    parser.add_argument("--summary", action="store_true", help="only print the table")
    options = parser.parse_args()

    done = {tuple(row[key] for key in KEY) for row in read_rows(options.output)}
    for name, category in product([] if options.summary else options.training, options.category):
        readings = [r for r in options.reading if name == "default" or r in BASIC_READINGS]
        runs = Runs(name, category, options)
        for seed in [*options.seeds, AVERAGED]:
            missing = [r for r in readings if (category, str(seed), name, r) not in done]
            if seed == AVERAGED:
                missing = [r for r in missing if name == "default" and r in BASIC_READINGS]
            if not missing:
                continue
            trained = runs.trained(options.seeds if seed == AVERAGED else [seed])
            rows = [
                {"category": category, "seed": seed, "training": name, "reading": reading}
                | measure(runs.category, trained, (READINGS | CORESET_READINGS)[reading])
                for reading in missing
            ]
            append_rows(options.output, rows)
            print(name, category, seed, {k: round(rows[0][k], 4) for k in METRICS}, flush=True)
    print(table(summary(read_rows(options.output))))


if __name__ == "__main__":
    main()
