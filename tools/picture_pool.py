"""The picture pool: training pictures on disk, each with the teacher's feature maps.

A shard is a folder of three .npy files. Its content depends only on its number, the settings and the teacher. It is
written under a temporary name and renamed when it is complete, and complete shards are kept, so that an interrupted
build continues where it stopped.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pictures.training_pictures import training_picture
from torch import Tensor, nn
from tqdm import tqdm

from skpbas.core.backbones import IMAGENET_MEAN, IMAGENET_STD, build_backbone

TEACHER = "resnet18"
TAUGHT_LEVELS = ("layer2", "layer3")
HELD_OUT_SHARD = 0
_ARRAYS = ("pictures", *TAUGHT_LEVELS)


@dataclass(frozen=True)
class PoolSettings:
    """Settings that the content of the pool depends on, and how it is built.

    Parameters
    ----------
    folder : Path
        Folder of the shards, which are kept in a subfolder for these settings.
    seed : int
        Seed of the pictures.
    side : int
        Height and width of the pictures, in pixels; a multiple of 16.
    shard_size : int
        Number of pictures per shard.
    n_shards : int
        Number of shards to train on. One more, number 0, is held out.
    teacher_weights : str
        "imagenet" or the path of a state dict.
    device : str
        Device that the teacher runs on.
    n_workers : int
        Number of processes that build shards.
    """

    folder: Path
    seed: int
    side: int
    shard_size: int
    n_shards: int
    teacher_weights: str
    device: str
    n_workers: int

    def shard(self, number: int) -> Path:
        """Return the folder of a shard."""
        teacher = "imagenet"
        if self.teacher_weights != "imagenet":
            teacher = hashlib.sha256(Path(self.teacher_weights).read_bytes()).hexdigest()[:12]
        return self.folder / f"{teacher}-seed{self.seed}-side{self.side}x{self.shard_size}" / f"{number:05d}"


def normalize(pictures: Tensor) -> Tensor:
    """Return the input of a backbone, (B, 3, H, W) float32, for pictures (B, H, W, 3), uint8."""
    mean = torch.tensor(IMAGENET_MEAN, device=pictures.device)
    std = torch.tensor(IMAGENET_STD, device=pictures.device)
    return ((pictures.float() / 255 - mean) / std).permute(0, 3, 1, 2)  # a view: in memory, channels stay last


def load_teacher(weights: str) -> nn.Module:
    """Return the frozen teacher, whose outputs are the feature maps of the taught levels."""
    teacher = build_backbone(TEACHER, weights, TAUGHT_LEVELS, torch.Generator().manual_seed(0))
    return teacher.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def build_shard(settings: PoolSettings, number: int) -> None:
    """Draw the pictures of a shard, compute the teacher's feature maps, and write both."""
    target = settings.shard(number)
    if target.is_dir():
        return
    torch.set_num_threads(1)  # shards are built in parallel instead
    teacher = load_teacher(settings.teacher_weights).to(settings.device)
    first = number * settings.shard_size
    indices = range(first, first + settings.shard_size)
    pictures = np.stack([training_picture(settings.seed, i, settings.side) for i in indices])
    feature_maps: dict[str, list[Tensor]] = {level: [] for level in TAUGHT_LEVELS}
    with torch.no_grad():
        for batch in torch.from_numpy(pictures).to(settings.device).split(32):
            for level, values in zip(TAUGHT_LEVELS, teacher(normalize(batch)), strict=True):
                feature_maps[level].append(values.half().permute(0, 2, 3, 1).cpu())
    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    partial.mkdir(parents=True)
    np.save(partial / "pictures.npy", pictures)
    for level, values in feature_maps.items():
        np.save(partial / f"{level}.npy", torch.cat(values).contiguous().numpy())
    try:
        partial.rename(target)
    except OSError:  # another process has written the same shard
        shutil.rmtree(partial)


def build_pool(settings: PoolSettings) -> None:
    """Build the shards that do not exist yet."""
    missing = [number for number in range(settings.n_shards + 1) if not settings.shard(number).is_dir()]
    if not missing:
        return
    with tqdm(total=len(missing) * settings.shard_size, desc="pictures", unit="img") as bar:
        if settings.n_workers < 2:
            for number in missing:
                build_shard(settings, number)
                bar.update(settings.shard_size)
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(settings.n_workers, mp_context=context) as workers:
            for done in as_completed([workers.submit(build_shard, settings, number) for number in missing]):
                done.result()
                bar.update(settings.shard_size)


class Pool:
    """Batches of pictures and of the teacher's feature maps, in an order that depends on the seed alone.

    Parameters
    ----------
    settings : PoolSettings
        Settings of a pool whose shards have been built.
    """

    def __init__(self, settings: PoolSettings) -> None:
        self.settings = settings
        self.size = settings.n_shards * settings.shard_size
        self._shards = [
            {name: np.load(settings.shard(number) / f"{name}.npy", mmap_mode="r") for name in _ARRAYS}
            for number in range(settings.n_shards + 1)
        ]
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def batch(self, step: int, batch_size: int) -> dict[str, Tensor]:
        """Return the batch of a training step: pictures and levels, (B, H, W, C) each."""
        per_epoch = self.size // batch_size
        epoch, place = divmod(step, per_epoch)
        if self._order[0] != epoch:
            rng = np.random.default_rng([self.settings.seed, 1, epoch])
            self._order = (epoch, rng.permutation(self.size))
        rows = self._order[1][place * batch_size : (place + 1) * batch_size]
        shards, places = np.divmod(rows, self.settings.shard_size)
        return {
            name: torch.from_numpy(
                np.stack([self._shards[1 + s][name][p] for s, p in zip(shards, places, strict=True)])
            )
            for name in _ARRAYS
        }

    def held_out(self) -> dict[str, Tensor]:
        """Return the held-out pictures with the teacher's feature maps."""
        return {name: torch.from_numpy(np.array(values)) for name, values in self._shards[HELD_OUT_SHARD].items()}

    def standard_deviations(self) -> Mapping[str, Tensor]:
        """Return the standard deviation (C,) of the channels of each level, over the first training shard."""
        values = {level: torch.from_numpy(np.array(self._shards[1][level])).float() for level in TAUGHT_LEVELS}
        return {level: v.flatten(0, 2).std(dim=0) for level, v in values.items()}
