r"""Run each ablation of training and of scoring alone, on every category, with three seeds, at the last step.

    python benchmarks/ablation.py --data ../shared/data \
        --backbone resnet18 --weights ../shared/weights/resnet18-imagenet1k_v1-to-layer3.pth

An ablation changes one thing of the default detector. Training ablations train again; scoring variants compute other
scores from the same training. One row per category, seed, training ablation and scoring variant is written to a CSV as
soon as it is known. Rows that are there are not computed again, so a run may be stopped at any time. Logits and
distances of the test patches are kept in files, so another scoring variant needs no training. ``--summary`` prints
the table: differences from the default, by category, with the standard deviation over the seeds.

Test labels are read for the table alone: a run chooses nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
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
from head_training import train
from measure import append_rows, read_rows, table
from skorch.callbacks import Callback
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from skpbas import PBASDetector
from skpbas._training.exemplars import POOL_SIZE
from skpbas._training.settings import SUFFICIENT_EPOCHS, SUFFICIENT_STEPS, n_epochs
from skpbas.core.centers import distance_to_center
from skpbas.core.coreset import Coreset, farthest_points
from skpbas.core.devices import discriminator_precision
from skpbas.core.maps import MapRenderer
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.objective import PBASObjective, StepTerms
from skpbas.core.patch_scores import DiscriminatorScorer, FusedScorer, binomial_3x3
from skpbas.metrics import image_auroc, pixel_metrics

N_EXEMPLARS, N_DIRECTIONS = PBASDetector().n_exemplars, 128
METRICS = ("image_auroc", "pixel_auroc", "pixel_pro")
KEY = ("category", "seed", "training", "scoring")
FEATURE_PARAMETERS = ("image_size", "layers", "feature_dim")  # of an ablation's parameters, those that change features


# Training ablations


class RandomAlpha(PBASObjective):
    """Draws an anomaly degree for each feature, uniformly from [low, high]."""

    def __init__(self, *networks_and_center: Any, low: float, high: float, **options: Any) -> None:
        super().__init__(*networks_and_center, **options)
        self.low, self.high = low, high

    def forward(self, features: Tensor) -> StepTerms:
        """Compute the terms for (N, d) patch features."""
        degrees = torch.empty(len(features), 1).uniform_(self.low, self.high, generator=self.generator)
        self.alpha = degrees  # type: ignore[assignment]
        return super().forward(features)


class HardestPatches(PBASObjective):
    """Keeps the patches of a step that are farthest from their centers."""

    def __init__(self, *networks_and_center: Any, n_hardest: int, **options: Any) -> None:
        super().__init__(*networks_and_center, **options)
        self.n_hardest = n_hardest

    def forward(self, features: Tensor) -> StepTerms:
        """Compute the terms for (N, d) patch features, of which ``n_hardest`` are used."""
        with torch.no_grad():
            distance = distance_to_center(self.projector(features), self.center)
        return super().forward(features[distance.topk(self.n_hardest).indices])


class NearestByDistance(PBASObjective):
    """Assigns features to centers by Euclidean distance instead of cosine similarity."""

    @torch.no_grad()
    def nearest(self, u: Tensor) -> Tensor:
        """Return the index (N,) of the nearest center of each projected feature (N, d)."""
        return torch.cdist(u, self.center).argmin(1)


class FewerCenters(PBASObjective):
    """Keeps ``n_centers`` of the centers, spread as far as possible."""

    def __init__(
        self, projector: Projector, discriminator: Discriminator, center: Tensor, *, n_centers: int, **options: Any
    ) -> None:
        super().__init__(projector, discriminator, center[farthest_points(center, n_centers)], **options)


class HiddenDropout(PBASObjective):
    """Drops hidden units of the discriminator while it is trained."""

    def __init__(
        self, projector: Projector, discriminator: Discriminator, center: Tensor, *, rate: float, **options: Any
    ) -> None:
        super().__init__(projector, discriminator, center, **options)
        discriminator.activation.register_forward_hook(
            lambda activation, _, hidden: F.dropout(hidden, rate, activation.training)
        )


class AnnealedAlpha(Callback):  # type: ignore[misc]
    """Moves the anomaly degree linearly from one value to another over the steps."""

    def __init__(self, first: float, last: float) -> None:
        self.first, self.last = first, last

    def on_train_begin(self, net: Any, X: Any = None, **kwargs: Any) -> None:
        """Count the steps of the training."""
        self.step_, self.n_steps_ = 0, net.max_epochs * math.ceil(len(X) / net.batch_size)

    def on_batch_begin(self, net: Any, **kwargs: Any) -> None:
        """Set the anomaly degree of the step."""
        self.step_ += 1
        net.module_.alpha = self.first + (self.last - self.first) * self.step_ / self.n_steps_


class AveragedWeights(Callback):  # type: ignore[misc]
    """Replaces the weights by their exponential moving average when training ends."""

    def __init__(self, decay: float) -> None:
        self.decay = decay

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Start the average."""
        self.average_ = AveragedModel(net.module_, multi_avg_fn=get_ema_multi_avg_fn(self.decay), use_buffers=True)

    def on_batch_end(self, net: Any, **kwargs: Any) -> None:
        """Update the average."""
        self.average_.update_parameters(net.module_)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Replace the weights."""
        net.module_.load_state_dict(self.average_.module.state_dict())


@dataclass(frozen=True)
class TrainingAblation:
    """What an ablation changes in training.

    Attributes
    ----------
    parameters : dict of str to object
        Parameters of the detector.
    objective : callable
        Makes the objective, from the arguments of :class:`PBASObjective`.
    callback : callable or None
        Makes a skorch callback of the training.
    sufficient_steps, sufficient_epochs : int
        What ``max_epochs="auto"`` trains at least.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    objective: Callable[..., PBASObjective] = PBASObjective
    callback: Callable[[], Callback] | None = None
    sufficient_steps: int = SUFFICIENT_STEPS
    sufficient_epochs: int = SUFFICIENT_EPOCHS


TRAININGS: dict[str, TrainingAblation] = {
    "default": TrainingAblation(),
    "half the steps": TrainingAblation(sufficient_steps=300, sufficient_epochs=12),
    "twice the steps": TrainingAblation(sufficient_steps=1200, sufficient_epochs=48),
    "one head of 256": TrainingAblation({"n_heads": 1}),
    "one head of 512": TrainingAblation({"n_heads": 1, "hidden_dim": 512}),
    "one head of 1024": TrainingAblation({"n_heads": 1, "hidden_dim": 1024}),
    "two heads of 128": TrainingAblation({"hidden_dim": 128}),
    "three heads of 256": TrainingAblation({"n_heads": 3}),
    "four heads of 128": TrainingAblation({"n_heads": 4, "hidden_dim": 128}),
    "discriminator learning rate 2e-4": TrainingAblation({"discriminator_lr": 2e-4}),
    "projector learning rate 3e-4": TrainingAblation({"projector_lr": 3e-4}),
    "2,048 patches per step": TrainingAblation({"patches_per_step": 2048}),
    "orthogonal projector initialization": TrainingAblation({"projector_init": "orthogonal"}),
    "Xavier projector initialization": TrainingAblation({"projector_init": "xavier"}),
    "orthogonal projector initialization, one head of 512": TrainingAblation(
        {"projector_init": "orthogonal", "n_heads": 1, "hidden_dim": 512}
    ),
    "the paper's networks": TrainingAblation({"projector_init": "xavier", "n_heads": 1, "hidden_dim": 1024}),
    "alpha 0.2": TrainingAblation({"alpha": 0.2}),
    "alpha 0.5": TrainingAblation({"alpha": 0.5}),
    "random alpha from 0.1 to 0.5": TrainingAblation(objective=partial(RandomAlpha, low=0.1, high=0.5)),
    "alpha annealed from 0.6 to 0.2": TrainingAblation(callback=partial(AnnealedAlpha, 0.6, 0.2)),
    "hardest half of twice the patches": TrainingAblation(
        {"patches_per_step": 2048}, partial(HardestPatches, n_hardest=1024)
    ),
    "nearest center by distance": TrainingAblation(objective=NearestByDistance),
    "a quarter of the centers": TrainingAblation(objective=partial(FewerCenters, n_centers=256)),
    "dropout 0.2": TrainingAblation(objective=partial(HiddenDropout, rate=0.2)),
    "EMA of the weights, decay 0.99": TrainingAblation(callback=partial(AveragedWeights, 0.99)),
    "288 pixels": TrainingAblation({"image_size": 288}),
    "320 pixels": TrainingAblation({"image_size": 320}),
    "layers 1 to 3": TrainingAblation({"layers": ("layer1", "layer2", "layer3"), "feature_dim": 448}),
}


# Scoring variants


@dataclass
class Trained:
    """What training gives for the test patches; every scoring variant starts from it.

    Attributes
    ----------
    logits : Tensor of shape (n, H_0, W_0)
        Of the discriminator.
    scale : Tensor of shape (2,)
        Mean and standard deviation, over the training images, of logits averaged over 3 x 3 patches.
    distance_to : callable
        Takes the numbers of exemplars and of directions; returns distances (n, H_0, W_0), in units of their mean over
        the training images.
    """

    logits: Tensor
    scale: Tensor
    distance_to: Callable[[int, int], Tensor]

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
    standardized: bool = True,
) -> Tensor:
    """Return the package's fused patch scores (n, H_0, W_0), or scores with something changed.

    Parameters
    ----------
    trained : Trained
    distance : Tensor of shape (n, H_0, W_0)
    temperature : float, default=3.0
    side : int, default=3
        Odd side of the square of patches that logits are averaged over.
    weight : float, default=1.0
        Of the discriminator's probability.
    standardized : bool, default=True
        Whether logits are standardized.
    """
    averaged = averaged_logits(trained.logits, side)
    mean, std = trained.scale if standardized else (0.0, 1.0)
    return (1 + weight * torch.sigmoid((averaged - mean) / std / temperature)) * distance


def averaged_logits(logits: Tensor, side: int) -> Tensor:
    """Average logits (n, H, W) over squares of patches."""
    return F.avg_pool2d(logits[:, None], side, 1, side // 2, count_include_pad=False)[:, 0]


@dataclass(frozen=True)
class ScoringVariant:
    """How patches and images are scored, and how the anomaly map is smoothed.

    Attributes
    ----------
    patches : callable
        Returns the patch scores (n, H_0, W_0) of a training.
    n_largest : int
        Patch scores whose mean is the image score.
    largest : float or None
        Share of the smoothed patch scores whose mean is the image score instead.
    smoothing_sigma : float
        In pixels of the anomaly map.
    image_from_map : bool
        Whether the image score is the largest value of the anomaly map instead.
    """

    patches: Callable[[Trained], Tensor] = lambda trained: fused(trained, trained.distance)
    n_largest: int = 10
    largest: float | None = None
    smoothing_sigma: float = 4.0
    image_from_map: bool = False

    def image_scores(self, patches: Tensor) -> Tensor:
        """Return the image scores (n,) of patch scores (n, H_0, W_0), other than from maps."""
        if self.largest is None:
            return patches.flatten(1).topk(self.n_largest, dim=1).values.mean(1)
        smoothed = binomial_3x3(patches).flatten(1)
        return smoothed.topk(round(self.largest * smoothed.shape[1]), dim=1).values.mean(1)


def changed(**options: Any) -> ScoringVariant:
    """Return the fused score with something changed; see :func:`fused`."""
    return ScoringVariant(lambda trained: fused(trained, trained.distance, **options))


def with_coreset(n_exemplars: int, n_directions: int) -> ScoringVariant:
    """Return the fused score with another coreset."""
    return ScoringVariant(lambda trained: fused(trained, trained.distance_to(n_exemplars, n_directions)))


SCORINGS: dict[str, ScoringVariant] = {
    "default": ScoringVariant(),  # as in the rows that are kept
    "mean of the largest 1 %, smoothed": ScoringVariant(largest=0.01),  # the package's
    "the paper's score: discriminator, largest patch": ScoringVariant(lambda trained: trained.logits, n_largest=1),
    "distance to exemplars alone": ScoringVariant(lambda trained: trained.distance),
    "largest patch": ScoringVariant(n_largest=1),
    "mean of the 3 largest": ScoringVariant(n_largest=3),
    "mean of the 30 largest": ScoringVariant(n_largest=30),
    "largest of the smoothed map": ScoringVariant(image_from_map=True),
    "logits not averaged": changed(side=1),
    "logits averaged over 5 x 5": changed(side=5),
    "logits not standardized, temperature 2": changed(temperature=2.0, standardized=False),
    "temperature 2": changed(temperature=2.0),
    "temperature 4": changed(temperature=4.0),
    "(1 + 2 D') distance": changed(weight=2.0),
    "(1 + D) distance, largest patch": dataclasses.replace(
        changed(side=1, temperature=1.0, standardized=False), n_largest=1
    ),
    "smoothing 3": ScoringVariant(smoothing_sigma=3.0),
    "smoothing 5": ScoringVariant(smoothing_sigma=5.0),
}
CORESET_SCORINGS: dict[str, ScoringVariant] = {
    "2,048 exemplars": with_coreset(2048, N_DIRECTIONS),
    "8,192 exemplars": with_coreset(8192, N_DIRECTIONS),
    "64 directions": with_coreset(N_EXEMPLARS, 64),
    "256 directions": with_coreset(N_EXEMPLARS, 256),
}
BASIC_SCORINGS = list(SCORINGS)[:3]  # for trainings other than the default
AVERAGED = "logits averaged over all seeds"


def train_and_score(
    category: Features, detector: PBASDetector, ablation: TrainingAblation, seed: int
) -> tuple[Tensor, Tensor]:
    """Train; return the logits (n, H_0, W_0) of the test patches, and their scale (2,) as :class:`Trained` has it."""
    features = category.training(seed)
    settings = detector._training_settings()
    epochs = n_epochs(
        settings,
        len(features),
        sufficient_steps=ablation.sufficient_steps,
        sufficient_epochs=ablation.sufficient_epochs,
    )
    callbacks = [] if ablation.callback is None else [ablation.callback()]
    objective = train(features, dataclasses.replace(settings, max_epochs=epochs), ablation.objective, callbacks)
    assert objective.discriminator is not None
    scorer = DiscriminatorScorer(features.aggregator, objective.projector, objective.discriminator)
    scorer.precision = discriminator_precision(settings.precision, features.device)
    grid = category.extractor.grid_shape
    of_training = torch.cat([scorer(parts) for parts, _ in features.parts_in_order(1)]).unflatten(1, grid)
    averaged = averaged_logits(of_training, 3)
    logits = torch.cat([scorer(parts) for parts in category.test_parts()]).unflatten(1, grid)
    return logits, torch.stack([averaged.mean(), averaged.std()])


def distances_to_exemplars(category: Features, n_exemplars: int, n_directions: int) -> Tensor:
    """Return the distances (n, H_0, W_0) of the test patches; they depend on no seed and on no training."""
    features = category.training(0)
    dim = features.aggregator.feature_dim
    untrained = Projector(dim, torch.Generator()), Discriminator(dim, 1, torch.Generator())  # distances need neither
    coreset = Coreset.of(
        features.sample(POOL_SIZE), min(n_exemplars, len(features) * features.n_positions // 4), n_directions
    )
    scorer = FusedScorer(features.aggregator, *untrained, coreset)
    scorer.precision = discriminator_precision("auto", features.device)
    scorer.standardize(features.parts_in_order(1))
    return torch.cat([scorer.distances(parts) for parts in category.test_parts()]) / scorer.mean_distance


class Runs:
    """The trainings of an ablation on a category; logits and distances are kept in files.

    Parameters
    ----------
    name, category : str
        Of the ablation and of the category.
    options : argparse.Namespace
    """

    def __init__(self, name: str, category: str, options: argparse.Namespace) -> None:
        self.name, self.category_name, self.data = name, category, options.data
        self.folder: Path = options.output.with_suffix("")  # next to the CSV
        self.ablation = TRAININGS[name]
        self.detector = PBASDetector(
            options.backbone,
            weights=None if options.weights == "none" else options.weights,
            resize="stretch",  # as in the rows that are kept
            device="cpu",
            memory=options.memory,
            **self.ablation.parameters,
        )
        self._distances: dict[tuple[int, int], Tensor] = {}

    @cached_property
    def category(self) -> Features:
        """The category's features."""
        return load_features(self.category_name, self.data, self.detector)

    def trained(self, seeds: Sequence[int]) -> Trained:
        """Return what training gives, with the logits averaged over the seeds."""
        of_seeds = [
            self._kept(
                f"{self.name}-{self.category_name}-{seed}",
                partial(train_and_score, self.category, self.detector, self.ablation, seed),
            )
            for seed in seeds
        ]
        logits, scale = (torch.stack(values).mean(0) for values in zip(*of_seeds, strict=True))
        return Trained(logits, scale, self.distance_to)

    def distance_to(self, n_exemplars: int, n_directions: int) -> Tensor:
        """Return the distances of the test patches; ablations with the same features share them."""
        key = n_exemplars, n_directions
        if key not in self._distances:
            changes = [f"{k} {v}" for k, v in self.ablation.parameters.items() if k in FEATURE_PARAMETERS]
            stem = "-".join(["exemplars", self.category_name, *changes, *map(str, key)])
            self._distances[key] = self._kept(stem, partial(distances_to_exemplars, self.category, *key))
        return self._distances[key]

    def _kept(self, stem: str, make: Callable[[], Any]) -> Any:
        file = self.folder / (re.sub(r"[^\w-]+", "_", stem) + ".pt")
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            torch.save(make(), file)
        return torch.load(file, weights_only=True)


def metrics_of(category: Features, trained: Trained, variant: ScoringVariant) -> dict[str, float]:
    """Return the metrics of a scoring variant."""
    patches = variant.patches(trained).flatten(1)
    extractor = category.extractor
    anomaly_maps = MapRenderer(extractor.grid_shape, extractor.image_size, variant.smoothing_sigma)(patches)
    if variant.image_from_map:
        image_scores = anomaly_maps.flatten(1).amax(1)
    else:
        image_scores = variant.image_scores(patches.unflatten(1, extractor.grid_shape))
    return {
        "image_auroc": image_auroc(category.labels, image_scores.numpy()),
        **{k: v for k, v in pixel_metrics(category.masks, anomaly_maps.numpy()).items() if k in METRICS},
    }


# Runs and tables


def summary(rows: list[dict[str, str]], base: tuple[str, str] = ("default", "default")) -> list[dict[str, str]]:
    """Return a row per ablation: the metrics of the base, or an ablation's differences from them, as seed means."""
    cells: dict[tuple[str, str], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        training = AVERAGED if row["seed"] == AVERAGED else row["training"]
        for metric in ("image_auroc", "pixel_pro"):
            cells[training, row["scoring"]][row["category"], metric].append(float(row[metric]))
    of_base = cells[base]
    lines = []
    for (training, scoring), values in cells.items():
        line = {"training": training, "scoring": scoring}
        differences = defaultdict(list)
        for (category, metric), base_values in of_base.items():
            of_seeds = values.get((category, metric))
            if not of_seeds:
                line[f"{category} {metric}"] = ""
                continue
            mean, base_mean = statistics.mean(of_seeds), statistics.mean(base_values)
            if (training, scoring) == base:
                std = statistics.stdev(of_seeds) if len(of_seeds) > 1 else 0.0
                line[f"{category} {metric}"] = f"{mean:.3f} ± {std:.3f}"
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
    parser.add_argument(
        "--training", nargs="+", default=list(TRAININGS), choices=list(TRAININGS), metavar="ABLATION",
        help="training ablations, by name; default: all",
    )  # fmt: skip
    parser.add_argument(
        "--scoring", nargs="+", default=list(SCORINGS), choices=[*SCORINGS, *CORESET_SCORINGS], metavar="VARIANT",
        help="scoring variants, by name; default: all but those with another coreset",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/ablation.csv"))
    parser.add_argument(
        "--memory", type=Path, default=Path("benchmarks/results/feature_maps"), help="folder that keeps feature maps"
    )
    parser.add_argument("--summary", action="store_true", help="only print the table")
    options = parser.parse_args()

    done = {tuple(row[key] for key in KEY) for row in read_rows(options.output)}
    for name, category in product([] if options.summary else options.training, options.category):
        variants = [v for v in options.scoring if name == "default" or v in BASIC_SCORINGS]
        runs = Runs(name, category, options)
        for seed in [*options.seeds, AVERAGED]:
            missing = [v for v in variants if (category, str(seed), name, v) not in done]
            if seed == AVERAGED:
                missing = [v for v in missing if name == "default" and v in BASIC_SCORINGS]
            if not missing:
                continue
            trained = runs.trained(options.seeds if seed == AVERAGED else [seed])
            rows = [
                {"category": category, "seed": seed, "training": name, "scoring": variant}
                | metrics_of(runs.category, trained, (SCORINGS | CORESET_SCORINGS)[variant])
                for variant in missing
            ]
            append_rows(options.output, rows)
            print(name, category, seed, {k: round(rows[0][k], 4) for k in METRICS}, flush=True)
    print(table(summary(read_rows(options.output))))


if __name__ == "__main__":
    main()
