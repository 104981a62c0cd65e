"""Distillation: the embedded backbone is trained to reproduce the teacher's feature maps."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from picture_pool import TAUGHT_LEVELS, Pool, normalize
from torch import Tensor
from tqdm import tqdm

from skpbas.core.backbones.embedded import EmbeddedBackbone, shipped_form

WARM_UP_STEPS = 100
DECAY_SHARE = 0.3
"""Fraction of the steps at the end over which the learning rate falls to zero; before, it is constant."""


@dataclass(frozen=True)
class TrainingSettings:
    """Settings that the trained weights depend on, besides those of the pool.

    Parameters
    ----------
    steps : int
        Number of training steps.
    batch_size : int
        Pictures per step.
    learning_rate, weight_decay : float
        Of AdamW.
    seed : int
        Seed of the initial weights.
    bf16 : bool
        Whether the network runs in bfloat16 (autocast).
    n_threads : int
        Number of torch's threads, which sums depend on in their last bits.
    """

    steps: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    bf16: bool
    n_threads: int

    @property
    def decay_start(self) -> int:
        """The step at which the learning rate starts to fall."""
        return self.steps - round(DECAY_SHARE * self.steps)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
        decay = min(1.0, (self.steps - step) / max(self.steps - self.decay_start, 1))
        return self.learning_rate * warm_up * decay


class Distillation:
    """A network in training, with everything that is needed to continue.

    Parameters
    ----------
    pool : Pool
        Pictures and feature maps to train on.
    settings : TrainingSettings
        Steps, batch size, learning rate and so on.
    device : torch.device
        Device to train on.

    Attributes
    ----------
    network : EmbeddedBackbone
        The network, with batch norms.
    step : int
        Number of steps done.
    seconds : float
        Time spent in training steps.
    """

    def __init__(self, pool: Pool, settings: TrainingSettings, device: torch.device) -> None:
        self.pool, self.settings, self.device = pool, settings, device
        self.network = new_network(settings.seed).to(device)
        self.step, self.seconds = 0, 0.0
        # averaged with the level's mean variance, so that channels of small variance get no excessive weight
        self._scales = {
            level: ((std.square() + std.square().mean()) / 2).sqrt().to(device)
            for level, std in pool.standard_deviations().items()
        }
        decaying = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean squared difference from the teacher's feature maps, relative to their variance."""
        images = normalize(batch["pictures"].to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            levels = self.network(images)
        loss = images.new_zeros(())
        for name, level in zip(TAUGHT_LEVELS, levels, strict=True):
            difference = level.permute(0, 2, 3, 1).float() - batch[name].to(self.device).float()
            loss = loss + (difference / self._scales[name]).square().mean()
        return loss

    def advance(self) -> float:
        """Run one training step and return its loss."""
        started = time.perf_counter()
        self.network.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate(self.step)
        loss = self.loss(self.pool.batch(self.step, self.settings.batch_size))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        self.step += 1
        self.seconds += time.perf_counter() - started
        return float(loss.detach())

    def save(self, path: Path) -> None:
        """Write a checkpoint atomically."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.part")
        torch.save(
            {
                "network": self.network.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "seconds": self.seconds,
                "settings": asdict(self.settings),
                "pool_size": self.pool.size,
            },
            partial,
        )
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        ValueError
            The checkpoint was written with other settings. A different number of steps is allowed as long as the
            learning rate has not started to fall with either number.
        """
        saved = torch.load(path, map_location=self.device, weights_only=True)
        before, now = saved["settings"] | {"pool_size": saved["pool_size"]}, asdict(self.settings)
        now["pool_size"] = self.pool.size
        still_constant = saved["step"] <= min(
            self.settings.decay_start, TrainingSettings(**saved["settings"]).decay_start
        )
        for name, value in now.items():
            if before[name] != value and not (name == "steps" and still_constant):
                raise ValueError(
                    f"{path} was written with {name}={before[name]!r}, but {name} is {value!r} now; "
                    "remove the file to start over, or give another folder with --work"
                )
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]


def new_network(seed: int) -> EmbeddedBackbone:
    """Return a network for training, with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EmbeddedBackbone(TAUGHT_LEVELS, batch_norm=True).to(memory_format=torch.channels_last)


def train(distillation: Distillation, checkpoint: Path, checkpoint_every: int) -> None:
    """Run the remaining steps, with a progress bar and periodic checkpoints.

    The caller must have set the number of torch's threads and deterministic algorithms.
    """
    settings = distillation.settings
    smooth = None
    with tqdm(total=settings.steps, initial=distillation.step, desc="training", unit="step") as bar:
        while distillation.step < settings.steps:
            loss = distillation.advance()
            smooth = loss if smooth is None else 0.98 * smooth + 0.02 * loss
            bar.update()
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            if distillation.step % checkpoint_every == 0 or distillation.step == settings.steps:
                distillation.save(checkpoint)


@torch.no_grad()
def held_out_scores(pool: Pool, network: EmbeddedBackbone) -> dict[str, dict[str, float]]:
    """Return how well the folded network reproduces the teacher on the held-out pictures.

    Parameters
    ----------
    pool : Pool
        Pool with the held-out pictures.
    network : EmbeddedBackbone
        The network, with batch norms.

    Returns
    -------
    dict of dict
        For each taught level ``explained``, the fraction of the teacher's variance that is explained, over all
        channels, and ``cosine``, the mean cosine similarity of the two networks' feature vectors, both centered at
        the teacher's mean.
    """
    batch = pool.held_out()
    folded = shipped_form(network.cpu()).to(memory_format=torch.channels_last)
    parts = [folded(normalize(pictures)) for pictures in batch["pictures"].split(32)]
    scores = {}
    for number, level in enumerate(TAUGHT_LEVELS):
        student = torch.cat([part[number] for part in parts]).permute(0, 2, 3, 1).flatten(0, 2).double()
        teacher = batch[level].flatten(0, 2).double()
        mean = teacher.mean(dim=0)
        explained = 1 - (student - teacher).square().sum() / (teacher - mean).square().sum()
        cosine = torch.cosine_similarity(student - mean, teacher - mean, dim=1).mean()
        scores[level] = {"explained": float(explained), "cosine": float(cosine)}
    return scores
