"""Compare two ways to train the embedded backbone on generated pictures, with equal numbers of steps and pictures.

    python tools/compare_embedded_routes.py --teacher-weights resnet18.pth

"distilled": the network learns to reproduce the feature maps of a pretrained ResNet18, as in
``train_embedded_backbone.py``. "formula": without a teacher, the network learns to classify by which formula a picture
was generated: which material or part, which fractal, or which noise spectrum. Both networks are written in the
package's format, for ``benchmarks/accuracy.py --backbone FILE.safetensors``.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from distillation import Distillation, TrainingSettings, new_network
from numpy.typing import NDArray
from picture_pool import TAUGHT_LEVELS, Pool, PoolSettings, build_pool, normalize
from pictures.training_pictures import colored_noise, fractal, vary
from pictures.variety import (
    PARTS,
    SURFACES,
    draw_ground,
    scene_of_part,
    scene_of_surface,
    take_picture,
)
from torch import nn
from tqdm import tqdm
from train_embedded_backbone import export, write_atomically

from skpbas.core.backbones.embedded import LEVELS, WIDTHS, EmbeddedBackbone

N_FRACTALS, N_NOISES = 200, 20
N_MATERIALS = len(SURFACES) + len(PARTS)
N_FORMULAS = N_MATERIALS + N_FRACTALS + N_NOISES
_KIND_SHARES = (0.5, 0.4, 0.1)  # materials and parts, fractals, noise
logger = logging.getLogger("compare_embedded_routes")


def formula_picture(seed: int, index: int, side: int) -> tuple[NDArray[np.uint8], int]:
    """Return a picture (side, side, 3), uint8, and the number of its formula.

    The formula determines the kind of material or part, or the parameters of a fractal or of noise. Everything else is
    random.
    """
    rng = np.random.default_rng([seed, 2, index])
    kind = rng.choice(3, p=_KIND_SHARES)
    if kind == 0:
        formula = int(rng.integers(N_MATERIALS))
        shape = (side, side)
        if formula < len(SURFACES):
            scene = scene_of_surface(SURFACES[formula](rng, shape), shape)
        else:
            scene = scene_of_part(rng, PARTS[formula - len(SURFACES)], draw_ground(rng, shape), shape)
        picture = take_picture(rng, scene) / np.float32(255)
    elif kind == 1:
        code = int(rng.integers(N_FRACTALS))
        formula = N_MATERIALS + code
        picture = fractal(rng, side, np.random.default_rng([seed, 3, code]))
    else:
        code = int(rng.integers(N_NOISES))
        formula = N_MATERIALS + N_FRACTALS + code
        picture = colored_noise(rng, side, power=0.3 + 1.9 * code / (N_NOISES - 1))
    return vary(rng, picture), formula


def _pictures_of(seed: int, start: int, end: int, side: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    pictures, formulas = zip(*(formula_picture(seed, i, side) for i in range(start, end)), strict=True)
    return np.stack(pictures), np.array(formulas)


def formula_pool(seed: int, n_pictures: int, side: int, n_workers: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return pictures (n, side, side, 3), uint8, and the numbers of their formulas (n,)."""
    starts = range(0, n_pictures, 64)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, mp_context=context) as workers:
        jobs = [workers.submit(_pictures_of, seed, s, min(s + 64, n_pictures), side) for s in starts]
        parts = [job.result() for job in tqdm(jobs, desc="pictures", unit="x64")]
    return np.concatenate([p for p, _ in parts]), np.concatenate([f for _, f in parts])


class FormulaClassifier(nn.Module):
    """The network with a linear classifier on the channels' means and standard deviations in both taught levels.

    Parameters
    ----------
    seed : int
        Seed of the initial weights.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network: EmbeddedBackbone = new_network(seed)
        width = sum(WIDTHS[LEVELS.index(level)] for level in TAUGHT_LEVELS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.classifier = nn.Linear(2 * width, N_FORMULAS)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits (B, N_FORMULAS) for normalized images (B, 3, H, W)."""
        levels = self.network(images)
        summaries = [level.mean((2, 3)) for level in levels] + [level.std((2, 3)) for level in levels]
        return self.classifier(torch.cat(summaries, dim=1))


def train_formula(
    pictures: NDArray[np.uint8], formulas: NDArray[np.int64], settings: TrainingSettings, device: torch.device
) -> EmbeddedBackbone:
    """Train as a classifier of formulas, with the steps, batches and learning rates of the distillation."""
    classifier = FormulaClassifier(settings.seed).to(device)
    optimizer = torch.optim.AdamW(
        classifier.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    rng, order, accuracy = np.random.default_rng([settings.seed, 4]), np.empty(0, np.int64), 0.0
    classifier.train()
    with tqdm(total=settings.steps, desc="formula", unit="step") as bar:
        for step in range(settings.steps):
            if len(order) < settings.batch_size:
                order = rng.permutation(len(pictures))
            rows, order = order[: settings.batch_size], order[settings.batch_size :]
            for group in optimizer.param_groups:
                group["lr"] = settings.rate(step)
            target = torch.from_numpy(formulas[rows]).to(device)
            logits = classifier(normalize(torch.from_numpy(pictures[rows]).to(device)))
            loss = F.cross_entropy(logits, target, label_smoothing=0.1)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(classifier.parameters(), 5.0)
            optimizer.step()
            accuracy += 0.02 * (float((logits.argmax(1) == target).float().mean()) - accuracy)
            bar.update()
            bar.set_postfix(accuracy=f"{accuracy:.2f}", refresh=False)
    logger.info("training accuracy over the last batches: %.2f, for %d formulas", accuracy, N_FORMULAS)
    return classifier.network


def train_distilled(pool: PoolSettings, settings: TrainingSettings, device: torch.device) -> EmbeddedBackbone:
    """Train to reproduce the teacher's feature maps."""
    build_pool(pool)
    distillation = Distillation(Pool(pool), settings, device)
    for _ in tqdm(range(settings.steps), desc="distilled", unit="step"):
        distillation.advance()
    return distillation.network


def main(arguments: Sequence[str] | None = None) -> int:
    """Train in both ways and write both networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--work", type=Path, default=Path(".embedded-training") / "routes", help="folder for the pool and the results")
    add(
        "--teacher-weights", default="imagenet", help='state dict of the teacher, or "imagenet" for that of torchvision'
    )
    add("--steps", type=int, default=1500)
    add("--batch-size", type=int, default=8)
    add("--pictures", type=int, default=2048)
    add("--side", type=int, default=160)
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    settings = TrainingSettings(
        steps=options.steps,
        batch_size=options.batch_size,
        learning_rate=4e-3,
        weight_decay=0.01,
        seed=options.seed,
        bf16=False,
        n_threads=torch.get_num_threads(),
    )
    device = torch.device(options.device)
    shard_size = min(256, options.pictures)
    pool = PoolSettings(
        folder=options.work / "pool",
        seed=options.seed,
        side=options.side,
        shard_size=shard_size,
        n_shards=options.pictures // shard_size,
        teacher_weights=options.teacher_weights,
        device=options.device,
        n_workers=options.workers,
    )
    pictures, formulas = formula_pool(options.seed, options.pictures, options.side, options.workers)
    for name, network in (
        ("formula", train_formula(pictures, formulas, settings, device)),
        ("distilled", train_distilled(pool, settings, device)),
    ):
        target = options.work / f"{name}.safetensors"
        write_atomically(target, export(network))
        logger.info("wrote %s", target)
    return 0


if __name__ == "__main__":
    sys.exit(main())
