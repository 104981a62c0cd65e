"""The training loop of the embedded backbone: its maps are to be the teacher's."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from embedded_pool import TAUGHT_LEVELS, Pool, normalise
from torch import Tensor
from tqdm import tqdm

from skpbas.core.backbones.embedded import EmbeddedBackbone, shipped_form

WARM_UP_STEPS = 100
DECAY_SHARE = 0.3
"""The learning rate is constant, then falls to zero over this share of the steps."""


@dataclass(frozen=True)
class TrainingSettings:
    """What the trained weights depend on, besides the pool.

    Parameters
    ----------
    steps : int
        Optimisation steps.
    batch_size : int
        Pictures a step.
    learning_rate, weight_decay : float
        AdamW's.
    seed : int
    bf16 : bool
        bfloat16 arithmetic in the network's convolutions.
    n_threads : int
        Of torch; sums depend on it in their last bits.
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
        """The step from which on the learning rate falls."""
        return self.steps - round(DECAY_SHARE * self.steps)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm_up = min(1.0, (step + 1) / WARM_UP_STEPS)
        decay = min(1.0, (self.steps - step) / max(self.steps - self.decay_start, 1))
        return self.learning_rate * warm_up * decay


class Distillation:
    """A network in training, with all that its continuation depends on.

    Parameters
    ----------
    pool : Pool
    settings : TrainingSettings
    device : torch.device

    Attributes
    ----------
    network : EmbeddedBackbone
        With batch norms.
    step : int
        Steps done.
    seconds : float
        Time spent in steps.
    """

    def __init__(self, pool: Pool, settings: TrainingSettings, device: torch.device) -> None:
        self.pool, self.settings, self.device = pool, settings, device
        self.network = new_network(settings.seed).to(device)
        self.step, self.seconds = 0, 0.0
        # a fraction of every channel's own deviation and of the level's, so that no faint channel weighs too much
        self._scales = {
            level: ((spread.square() + spread.square().mean()) / 2).sqrt().to(device)
            for level, spread in pool.spread().items()
        }
        decaying = [p for p in self.network.parameters() if p.ndim > 1]
        others = [p for p in self.network.parameters() if p.ndim <= 1]
        groups = [{"params": decaying, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)

    def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Return the mean squared difference from the teacher's maps, in units of their spread."""
        images = normalise(batch["pictures"].to(self.device))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.bf16):
            levels = self.network(images)
        loss = images.new_zeros(())
        for name, level in zip(TAUGHT_LEVELS, levels, strict=True):
            difference = level.permute(0, 2, 3, 1).float() - batch[name].to(self.device).float()
            loss = loss + (difference / self._scales[name]).square().mean()
        return loss

    def advance(self) -> float:
        """Do one step; return its loss."""
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
        """Write the checkpoint: complete or not at all."""
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
        """Go on from a checkpoint.

        Raises
        ------
        ValueError
            It belongs to another training. Another number of steps is allowed as long as the learning rate had not
            begun to fall under either.
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
                    f"{path} was written with {name}={before[name]!r}, now it is {value!r}; "
                    "remove the file to start anew, or name another folder with --work"
                )
        self.network.load_state_dict(saved["network"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step, self.seconds = saved["step"], saved["seconds"]


def new_network(seed: int) -> EmbeddedBackbone:
    """Return the network for training, with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return EmbeddedBackbone(TAUGHT_LEVELS, batch_norm=True).to(memory_format=torch.channels_last)


def train(distillation: Distillation, checkpoint: Path, checkpoint_every: int) -> None:
    """Run the steps that are left, with a progress bar and periodic checkpoints.

    The caller has set torch's threads and its deterministic algorithms.
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
    """Return, for each taught level, how much of the teacher's variance the folded network's maps explain.

    Parameters
    ----------
    pool : Pool
        Its held-out pictures are used.
    network : EmbeddedBackbone
        With batch norms.

    Returns
    -------
    dict of dict
        By level: ``explained``, of the variance over all channels together, and ``cosine``, the mean similarity of
        the two networks' vectors at a position, each less the teacher's mean.
    """
    batch = pool.held_out()
    folded = shipped_form(network.cpu()).to(memory_format=torch.channels_last)
    parts = [folded(normalise(pictures)) for pictures in batch["pictures"].split(32)]
    scores = {}
    for number, level in enumerate(TAUGHT_LEVELS):
        mine = torch.cat([part[number] for part in parts]).permute(0, 2, 3, 1).flatten(0, 2).double()
        teacher = batch[level].flatten(0, 2).double()
        mean = teacher.mean(dim=0)
        explained = 1 - (mine - teacher).square().sum() / (teacher - mean).square().sum()
        cosine = torch.cosine_similarity(mine - mean, teacher - mean, dim=1).mean()
        scores[level] = {"explained": float(explained), "cosine": float(cosine)}
    return scores
