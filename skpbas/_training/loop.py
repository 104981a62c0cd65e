"""The training loop, run by skorch (Eq. 5-10 of the paper)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback, LRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from skpbas._features.progress import progress_bar
from skpbas._features.sampling import TrainingFeatures
from skpbas._training.settings import TrainingSettings, n_epochs
from skpbas.core.centers import initial_center
from skpbas.core.devices import discriminator_precision
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.objective import PBASObjective, StepTerms
from skpbas.errors import TrainingError


class _PatchBatches:
    """skorch's iterator over one epoch: patch features (N, d) per step."""

    def __init__(self, dataset: TrainingFeatures, batch_size: int, patches_per_step: int | None) -> None:
        self.dataset, self.batch_size, self.patches_per_step = dataset, batch_size, patches_per_step

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        no_target = torch.empty(0, dtype=torch.float32, device="cpu")
        for patches in self.dataset.patch_batches(self.batch_size, self.patches_per_step):
            yield patches, no_target


class _Total(nn.Module):
    """skorch's criterion: returns the sum computed by the objective."""

    def forward(self, terms: StepTerms, _target: Tensor) -> Tensor:
        return terms.total


class _LossTerms(Callback):  # type: ignore[misc]
    """Averages each loss term over the epoch, without a device synchronization per step."""

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
                f"the loss is not finite after {len(net.history)} epochs ({means}), although the features are finite: "
                "lower projector_lr and discriminator_lr, or alpha and noise_std if they are far from their defaults"
            )


class _StepBar(Callback):  # type: ignore[misc]
    """One progress bar for all training steps."""

    def __init__(self, total: int, description: str) -> None:
        self.total, self.description = total, description

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_ = progress_bar(self.total, self.description, "step", True)

    def on_batch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self.bar_.close()


class _Net(NeuralNet):  # type: ignore[misc]
    """skorch's net without reading the loss after every step, which would synchronize with the device."""

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        for batch in iterator or ():
            self.notify("on_batch_begin", batch=batch, training=training)
            step = step_fn(batch, **fit_params)
            self.notify("on_batch_end", batch=batch, training=training, **step)


@dataclass
class TrainedHead:
    """The result of training.

    Attributes
    ----------
    projector, discriminator : nn.Module
        In evaluation mode; the discriminator is None without synthesis.
    center : Tensor of shape (P, d)
    loss_curve : dict of str to list of float
        Mean of each term, and of their sum "loss", per epoch.
    n_epochs : int
    """

    projector: Projector
    discriminator: Discriminator | None
    center: Tensor
    loss_curve: dict[str, list[float]]
    n_epochs: int


class EpochListener(Protocol):
    """Receives epoch events."""

    def begin_epoch(self) -> None:
        """Called at the beginning of an epoch."""

    def end_epoch(self, head: Callable[[], TrainedHead]) -> bool:
        """Return whether to stop training; ``head`` returns a copy of the current result."""


def train_head(
    features: TrainingFeatures,
    settings: TrainingSettings,
    description: str = "training",
    *,
    listener: EpochListener | None = None,
    stop_after: int | None = None,
) -> TrainedHead:
    """Compute the center set, then train projector and discriminator on stored features.

    ``description``: label of the progress bar. ``stop_after``: number of epochs after which to stop, without changing
    the schedule.

    Raises
    ------
    TrainingError
        The loss became NaN or infinite.
    """
    objective = new_objective(features, settings)
    net = new_net(objective, settings, features.n_images, description)
    net.initialize()
    net.notify("on_train_begin", X=features, y=None)
    try:
        for _ in range(net.max_epochs if stop_after is None else stop_after):
            if listener is not None:
                listener.begin_epoch()
            net.fit_loop(features, epochs=1)  # unlike fit(), propagates KeyboardInterrupt
            if listener is not None and listener.end_epoch(lambda: _copy_of_head(objective, net)):
                break
    finally:
        net.notify("on_train_end", X=features, y=None)
    return _copy_of_head(objective, net)


def _copy_of_head(objective: PBASObjective, net: NeuralNet) -> TrainedHead:
    """Return a copy of the current head, which further training does not change."""
    projector, discriminator = copy.deepcopy(objective.projector), copy.deepcopy(objective.discriminator)
    terms = {name: net.history[:, name] for name in objective.term_names}
    curve = {"loss": [sum(means) for means in zip(*terms.values(), strict=True)], **terms}
    if discriminator is not None:
        discriminator.eval()
    return TrainedHead(projector.eval(), discriminator, objective.center, curve, len(net.history))


def new_objective(
    features: TrainingFeatures, settings: TrainingSettings, make: Callable[..., PBASObjective] = PBASObjective
) -> PBASObjective:
    """Return the objective before training, with initialized networks and the center set.

    ``make`` takes the arguments of :class:`PBASObjective`; pass another callable to change the training step.
    """
    device, feature_dim = features.device, features.aggregator.feature_dim
    initial = torch.Generator("cpu").manual_seed(_draw_seed(features.generator))
    noise = torch.Generator(device).manual_seed(_draw_seed(features.generator))
    projector = Projector(feature_dim, initial, settings.projector_init).to(device)
    discriminator = None
    if settings.synthesis is not None:
        discriminator = Discriminator(feature_dim, settings.hidden_dim, initial, settings.n_heads).to(device)

    def projected() -> Iterator[Tensor]:
        with torch.no_grad():
            for batch in features.batches(settings.batch_size):
                yield projector(batch)

    return make(
        projector,
        discriminator,
        initial_center(projected, settings.center_init, settings.center_momentum, initial),
        synthesis=settings.synthesis,
        alpha=settings.alpha,
        noise_std=settings.noise_std,
        generator=noise,
        precision=discriminator_precision(settings.precision, device),
    )


def _draw_seed(generator: torch.Generator) -> int:
    return int(torch.randint(2**62, (), generator=generator, device="cpu"))


def new_net(objective: PBASObjective, settings: TrainingSettings, n_images: int, description: str) -> NeuralNet:
    """Return the skorch net: Adam with one parameter group per network, the schedule and callbacks."""
    epochs = n_epochs(settings, n_images)
    total_steps = epochs * math.ceil(n_images / settings.batch_size)
    groups = [("projector.*", {"lr": settings.projector_lr, "weight_decay": settings.projector_decay})]
    if objective.discriminator is not None:
        decoupled = {"weight_decay": settings.discriminator_decay, "decoupled_weight_decay": True}  # as in AdamW
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
