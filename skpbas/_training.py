"""The training loop: skorch drives, the core computes (METHOD 2-5)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch
from joblib import Memory
from numpy.typing import NDArray
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import Dataset

from skpbas._devices import discriminator_arithmetic, inference_batch
from skpbas._exemplars import fused_scorer
from skpbas._progress import progress_bar
from skpbas._store import FeatureStore
from skpbas._threshold import SMALLEST_SPLIT, auto_offset, offset_of_ratios
from skpbas.core.aggregation import PatchAggregator, PatchGatherer
from skpbas.core.centers import initial_center
from skpbas.core.losses import PBASObjective, StepTerms
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.scorers import DiscriminatorScorer, DistanceScorer, FusedScorer
from skpbas.errors import TrainingError

SUFFICIENT_STEPS, SUFFICIENT_EPOCHS = 600, 24

Scorer = DiscriminatorScorer | DistanceScorer | FusedScorer


@dataclass(frozen=True)
class TrainingSettings:
    """The estimator's parameters that training reads, under the same names and already resolved."""

    center_init: str
    center_momentum: float
    synthesis: str | None
    alpha: float
    noise_std: float
    projector_init: str
    n_heads: int
    hidden_dim: int
    max_epochs: int | str
    batch_size: int
    patches_per_step: int | None
    schedule: str
    projector_lr: float
    discriminator_lr: float
    projector_decay: float
    discriminator_decay: float
    score: str
    precision: str
    verbose: int


class TrainingFeatures(Dataset[Tensor]):
    """A view of some stored images, and the shuffled batches of patch features that training draws from it.

    Parameters
    ----------
    store : FeatureStore
        The levels' parts of the patch features.
    rows : Tensor of shape (n,)
        Stored images to use.
    aggregator : PatchAggregator
        Makes patch features of the parts.
    device : torch.device
        Where batches go.
    generator : torch.Generator
        On the CPU; every pass draws a new order from it.
    memory : joblib.Memory or None
        Keeps exemplars across fits.
    """

    def __init__(
        self,
        store: FeatureStore,
        rows: Tensor,
        aggregator: PatchAggregator,
        device: torch.device,
        generator: torch.Generator,
        memory: Memory | None = None,
    ) -> None:
        self.store, self.rows, self.aggregator = store, rows, aggregator
        self.device, self.generator, self.memory = device, generator, memory
        self.n_positions = math.prod(store.grids[0])
        self._gatherer = PatchGatherer(aggregator, store.grids).to(store.device)

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, batch_size: int) -> Iterator[Tensor]:
        """Yield the patch features t, (B, P, d), of shuffled batches of images."""
        return (self._of(rows) for rows in self._shuffled(batch_size))

    def parts_in_order(self, batch_size: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """Yield the levels' parts (B, n_l, H_l, W_l) and numbers (B,) of images, in the order of ``rows``."""
        return ((self._parts(rows), rows.to(self.device)) for rows in self.rows.split(batch_size))

    def patch_batches(self, batch_size: int, n_patches: int | None) -> Iterator[Tensor]:
        """Yield patch features t, (N, d): all or ``n_patches``, drawn at random, of shuffled batches of images."""
        for rows in self._shuffled(batch_size):
            if n_patches is None or n_patches >= len(rows) * self.n_positions:
                yield self._of(rows).flatten(0, 1)
            else:
                drawn = torch.randperm(len(rows) * self.n_positions, generator=self.generator)[:n_patches]
                yield self._gather(rows, drawn)

    def sample(self, n_patches: int, batch_size: int = 8192) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield patch features t, (N, d), and their images' numbers (N,), in batches: all, or ``n_patches`` of them.

        They are spread evenly over the images, and so is every batch, and no seed moves them: the places, numbered
        through the images, are cut into ``n_patches`` equal stretches. Where in its stretch a patch lies, and in which
        batch it comes, goes by multiples of irrational numbers, so that no column of the grid is preferred.
        """
        n_places = len(self) * self.n_positions
        number = torch.arange(min(n_patches, n_places) + 1)
        edges = number * n_places // number[-1]
        shares, turns = (number[:-1].double() * math.sqrt(irrational) % 1 for irrational in (5, 2))
        places = edges[:-1] + (shares * edges.diff()).long()
        for part in places[turns.argsort()].split(batch_size):
            yield self._gather(self.rows, part), self.rows[part // self.n_positions]

    def halves(self) -> list[TrainingFeatures]:
        """Split the images into two halves at random."""
        order = self.rows[torch.randperm(len(self), generator=self.generator)]
        return [self._view(rows, self.generator) for rows in order.chunk(2)]

    def as_of_now(self) -> TrainingFeatures:
        """Return the same features with a generator of their own, which goes on from where this one is."""
        return self._view(self.rows, self.generator.clone_state())

    def _view(self, rows: Tensor, generator: torch.Generator) -> TrainingFeatures:
        return TrainingFeatures(self.store, rows, self.aggregator, self.device, generator, self.memory)

    def _shuffled(self, batch_size: int) -> Iterator[Tensor]:
        yield from self.rows[torch.randperm(len(self), generator=self.generator)].split(batch_size)

    def _gather(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """Return the patch features (N, d) at places numbered through the images at ``rows``."""
        home = self.store.device
        image, position = rows[drawn // self.n_positions].to(home), (drawn % self.n_positions).to(home)
        patches: Tensor = self._gatherer(self.store.tables, image, position)
        return patches.to(self.device, non_blocking=True)

    def _of(self, rows: Tensor) -> Tensor:
        return self.aggregator.combine(self._parts(rows))

    def _parts(self, rows: Tensor) -> list[Tensor]:
        return [part.to(self.device, non_blocking=True).float() for part in self.store.get(rows)]


class _PatchBatches:
    """skorch's iterator over one epoch: (N, d) patch features a step."""

    def __init__(self, dataset: TrainingFeatures, batch_size: int, patches_per_step: int | None) -> None:
        self.dataset, self.batch_size, self.patches_per_step = dataset, batch_size, patches_per_step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        no_target = torch.empty(0)
        for patches in self.dataset.patch_batches(self.batch_size, self.patches_per_step):
            yield patches, no_target


class _Total(nn.Module):
    """skorch's criterion: the objective has summed its terms already."""

    def forward(self, terms: StepTerms, _target: Tensor) -> Tensor:
        return terms.total


class _LossTerms(Callback):  # type: ignore[misc]
    """Averages each term of the loss over the epoch, without waiting for the device at every step."""

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.sums_: dict[str, Tensor] = {}
        self.steps_ = 0

    def on_batch_end(self, net: NeuralNet, training: bool = True, y_pred: Any = None, **kwargs: Any) -> None:
        for name, term in y_pred.losses().items():
            self.sums_[name] = self.sums_.get(name, 0.0) + term.detach()
        self.steps_ += 1

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        means = {name: float(total) / self.steps_ for name, total in self.sums_.items()}
        for name, mean in means.items():
            net.history.record(name, mean)
        if not all(math.isfinite(mean) for mean in means.values()):
            raise TrainingError(
                f"the loss is no longer finite after {len(net.history)} epochs ({means}): lower projector_lr and "
                "discriminator_lr"
            )


class _StepBar(Callback):  # type: ignore[misc]
    """One progress bar over all steps of the training."""

    def __init__(self, total: int, description: str) -> None:
        self.total, self.description = total, description

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_ = progress_bar(self.total, self.description, "step", True)

    def on_batch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_.close()


class _Net(NeuralNet):  # type: ignore[misc]
    """skorch's net, which leaves the loss of a step where it is: reading it would wait for the device."""

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        for batch in iterator or ():
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            self.notify("on_batch_end", batch=batch, training=training, **step)


@dataclass
class TrainedHead:
    """What training leaves behind.

    Attributes
    ----------
    projector, discriminator : nn.Module
        In evaluation mode; the discriminator is None without synthesis.
    center : Tensor of shape (P, d)
    loss_curve : dict of str to list of float
        Mean of each term, and of their sum "loss", an epoch.
    n_epochs : int
    """

    projector: Projector
    discriminator: Discriminator | None
    center: Tensor
    loss_curve: dict[str, list[float]]
    n_epochs: int


def n_epochs(settings: TrainingSettings, n_images: int) -> int:
    """Return the passes over the training images: as given, or enough of both steps and passes."""
    if settings.max_epochs != "auto":
        return int(settings.max_epochs)
    steps_an_epoch = math.ceil(n_images / settings.batch_size)
    return max(SUFFICIENT_EPOCHS, math.ceil(SUFFICIENT_STEPS / steps_an_epoch))


class EpochListener(Protocol):
    """Who is told of epochs."""

    def begin_epoch(self) -> None:
        """Take note that an epoch begins."""

    def end_epoch(self, head: Callable[[], TrainedHead]) -> bool:
        """Return whether training ends here; ``head`` makes a copy of what it would leave behind."""


def train_head(
    features: TrainingFeatures,
    settings: TrainingSettings,
    description: str = "training",
    *,
    listener: EpochListener | None = None,
    stop_after: int | None = None,
) -> TrainedHead:
    """Compute the centre set, then train projector and discriminator on stored features.

    ``description`` is the progress bar's. ``stop_after``: epochs after which training stops, where its schedule is.

    Raises
    ------
    TrainingError
        The loss became NaN or infinite.
    """
    objective = new_objective(features, settings)
    net = new_net(objective, settings, len(features), description)
    net.initialize()
    net.notify("on_train_begin", X=features, y=None)
    try:
        for _ in range(net.max_epochs if stop_after is None else stop_after):
            if listener is not None:
                listener.begin_epoch()
            net.fit_loop(features, epochs=1)  # not fit(), which takes Ctrl-C for the end of training
            if listener is not None and listener.end_epoch(lambda: _copy_of_head(objective, net)):
                break
    finally:
        net.notify("on_train_end", X=features, y=None)
    return _copy_of_head(objective, net)


def _copy_of_head(objective: PBASObjective, net: NeuralNet) -> TrainedHead:
    """Return the head as it is now; further training leaves it alone."""
    projector, discriminator = copy.deepcopy(objective.projector), copy.deepcopy(objective.discriminator)
    terms = {name: net.history[:, name] for name in objective.term_names}
    curve = {"loss": [sum(means) for means in zip(*terms.values(), strict=True)], **terms}
    if discriminator is not None:
        discriminator.eval()
    return TrainedHead(projector.eval(), discriminator, objective.center, curve, len(net.history))


def new_objective(features: TrainingFeatures, settings: TrainingSettings) -> PBASObjective:
    """Return what training starts from: networks with random weights, and the centre set."""
    device, feature_dim = features.device, features.aggregator.feature_dim
    initial = torch.Generator().manual_seed(_draw_seed(features.generator))
    noise = torch.Generator(device).manual_seed(_draw_seed(features.generator))
    projector = Projector(feature_dim, initial, settings.projector_init).to(device)
    discriminator = None
    if settings.synthesis is not None:
        discriminator = Discriminator(feature_dim, settings.hidden_dim, initial, settings.n_heads).to(device)

    def projected() -> Iterator[Tensor]:
        with torch.no_grad():
            for batch in features.batches(settings.batch_size):
                yield projector(batch)

    return PBASObjective(
        projector,
        discriminator,
        initial_center(projected, settings.center_init, settings.center_momentum, initial),
        synthesis=settings.synthesis,
        alpha=settings.alpha,
        noise_std=settings.noise_std,
        generator=noise,
        autocast=discriminator_arithmetic(settings.precision, device),
    )


def new_scorer(features: TrainingFeatures, head: TrainedHead, settings: TrainingSettings) -> Scorer:
    """Return what prediction runs, for a head trained on ``features``."""
    aggregator = features.aggregator
    scorer: Scorer
    if head.discriminator is None or settings.score == "distance":
        scorer = DistanceScorer(aggregator, head.projector, head.center, head.loss_curve["center"][-1])
    elif settings.score == "discriminator":
        scorer = DiscriminatorScorer(aggregator, head.projector, head.discriminator)
    else:
        arithmetic = discriminator_arithmetic(settings.precision, features.device)
        return fused_scorer(features, head.projector, head.discriminator, arithmetic)
    scorer.autocast = scorer_arithmetic(scorer, settings.precision, features.device)
    return scorer.to(features.device)


def scorer_arithmetic(scorer: Scorer, precision: str, device: torch.device) -> torch.dtype | None:
    """Return what the discriminator predicts in, None for float32.

    In the fused score it may be bfloat16; alone, where that moved an image AUROC by 0.0016, only if asked for.
    """
    if isinstance(scorer, FusedScorer):
        return discriminator_arithmetic(precision, device)
    return torch.bfloat16 if precision == "bfloat16" else None


def score_stored(features: TrainingFeatures, scorer: Scorer, *, as_new: bool = False) -> NDArray[np.float64]:
    """Return the images' ``score_samples`` from their stored features.

    ``as_new``: of training images, as if the exemplars among their own patches were not there.
    """
    batches = features.parts_in_order(inference_batch(features.device))
    scores = [scorer.of_images(scorer(parts, numbers if as_new else None)) for parts, numbers in batches]
    return -torch.cat(scores).cpu().double().numpy()


class Completion:
    """What follows the training of a head, each made when first asked for: the scorer, then the threshold.

    Parameters
    ----------
    features : TrainingFeatures
        What the head was trained on.
    head : TrainedHead
    settings : TrainingSettings
    contamination : "auto" or float
    """

    def __init__(
        self,
        features: TrainingFeatures,
        head: TrainedHead,
        settings: TrainingSettings,
        contamination: str | float,
    ) -> None:
        self.features, self.head, self.settings, self.contamination = features, head, settings, contamination

    @property
    def attributes(self) -> dict[str, Any]:
        """The fitted detector's attributes by name; in the place of scorer and threshold stands this object."""
        return {
            "center_": self.head.center,
            "projector_": self.head.projector,
            "discriminator_": self.head.discriminator,
            "n_iter_": self.head.n_epochs,
            "loss_curve_": self.head.loss_curve,
            "device_": self.features.device,
            "n_samples_fit_": len(self.features),
            "_completion": self,
        }

    @cached_property
    def scorer(self) -> Scorer:
        """What prediction runs."""
        return new_scorer(self.features, self.head, self.settings)

    @cached_property
    def offset(self) -> float:
        """Threshold on ``score_samples``."""
        if self.contamination == "auto":
            return estimate_offset(self.features, self.scorer, self.settings, stop_after=self.head.n_epochs)
        return float(np.quantile(score_stored(self.features, self.scorer), float(self.contamination)))


def estimate_offset(
    features: TrainingFeatures, scorer: Scorer, settings: TrainingSettings, *, stop_after: int | None = None
) -> float:
    """Return the score below which about 1 in 100 unseen good images lie; a second head stops as the first did."""
    if isinstance(scorer, FusedScorer):  # its training images were scored as if they were new
        return offset_of_ratios(scorer.good_scores.cpu().double().numpy())
    halves = score_halves(features, settings, stop_after=stop_after)
    return auto_offset(score_stored(features, scorer, as_new=True), halves)


def score_halves(
    features: TrainingFeatures, settings: TrainingSettings, *, stop_after: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]] | None:
    """Train a second head on one half of the images, and return its scores of that half and of the other.

    It makes as many epochs as one on all images would, or ``stop_after``, so half the steps. None where there are too
    few images.
    """
    if len(features) < SMALLEST_SPLIT:
        return None
    halves = features.halves()
    quiet = settings.verbose if settings.verbose == 1 else 0  # the lines an epoch are for the detector itself
    settings = replace(settings, max_epochs=n_epochs(settings, len(features)), verbose=quiet)
    head = train_head(halves[0], settings, description="threshold", stop_after=stop_after)
    scorer = new_scorer(halves[0], head, settings)
    return score_stored(halves[0], scorer, as_new=True), score_stored(halves[1], scorer, as_new=True)


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator))


def new_net(objective: PBASObjective, settings: TrainingSettings, n_images: int, description: str) -> NeuralNet:
    """Compose the skorch net: one Adam with a group for each network, schedule and records."""
    epochs = n_epochs(settings, n_images)
    total_steps = epochs * math.ceil(n_images / settings.batch_size)
    groups = [("projector.*", {"lr": settings.projector_lr, "weight_decay": settings.projector_decay})]
    if objective.discriminator is not None:
        decoupled = {"weight_decay": settings.discriminator_decay, "decoupled_weight_decay": True}  # AdamW's
        groups.append(("discriminator.*", {"lr": settings.discriminator_lr, **decoupled}))
    callbacks: list[Any] = [("loss_terms", _LossTerms())]
    if settings.schedule == "cosine":
        callbacks.append(("schedule", LRScheduler(CosineAnnealingLR, T_max=total_steps, step_every="batch")))
    if settings.verbose == 1:
        callbacks.append(("bar", _StepBar(total_steps, description)))
    return _Net(
        objective,
        criterion=_Total,
        optimizer=torch.optim.Adam,
        optimizer__param_groups=groups,
        optimizer__fused=objective.center.device.type in ("cpu", "cuda"),
        lr=settings.projector_lr,
        max_epochs=epochs,
        batch_size=settings.batch_size,
        iterator_train=_PatchBatches,
        iterator_train__patches_per_step=settings.patches_per_step,
        train_split=None,
        callbacks=callbacks,
        callbacks__train_loss=None,
        callbacks__valid_loss=None,
        device=None,
        verbose=int(settings.verbose >= 2),
    )
