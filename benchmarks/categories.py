"""Categories for the benchmarks: real ones in MVTec AD's layout and generated ones, as images or as stored features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skpbas import PBASDetector
from skpbas._features.sampling import TrainingFeatures
from skpbas._features.store import FeatureStore
from skpbas._inputs.images import Geometry
from skpbas.core.backbones import FeatureExtractor
from skpbas.datasets import load_mvtec, make_inspection_images

GENERATED = {"generated-hex_nut": "hex_nut", "generated-printed_board": "printed_board"}
"""Names of generated categories: 60 good images to learn from, 30 good and 40 defective ones to judge."""


@dataclass
class Images:
    """What a category consists of: arrays or paths, labels +1 and -1, and masks (None, paths or arrays)."""

    train: Any
    test: Any
    labels: np.ndarray
    masks: Any


@dataclass
class Features:
    """Features of a category, as training and the scorers read them.

    Attributes
    ----------
    extractor : FeatureExtractor
    train : FeatureStore
    test : list of Tensor of shape (n, n_l, H_l, W_l)
        One a level.
    labels : ndarray of shape (n,)
    masks : ndarray of shape (n, H, W)
        At the maps' size.
    """

    extractor: FeatureExtractor
    train: FeatureStore
    test: list[Tensor]
    labels: np.ndarray
    masks: np.ndarray

    def training(self, seed: int, n_images: int | None = None) -> TrainingFeatures:
        """Return the training images, or the first so many of an order that depends on the seed."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.arange(len(self.train))
        if n_images is not None:
            rows = torch.randperm(len(rows), generator=generator)[:n_images].sort().values
        return TrainingFeatures(self.train, rows, self.extractor.aggregator, torch.device("cpu"), generator)

    def test_parts(self) -> list[list[Tensor]]:
        """Return the levels' parts, one test image after the other, as prediction on a CPU has them."""
        return [[level[i : i + 1] for level in self.test] for i in range(len(self.labels))]


def category_root(data: Path, category: str) -> Path:
    """Return the folder that holds a category's folder: ``data`` or one of its own folders."""
    for root in (data, *sorted(p for p in data.iterdir() if p.is_dir())):
        if (root / category / "train").is_dir():
            return root
    raise SystemExit(f"--category {category}: neither {data} nor a folder in it holds {category}/train")


def load_images(name: str, data: Path) -> Images:
    """Return the images of a category."""
    if name in GENERATED:
        made = make_inspection_images(90, 40, kind=GENERATED[name], size=256, random_state=0)
        return Images(made.images[:60], made.images[60:], made.labels[60:], list(made.masks[60:]))
    root = category_root(data, name)
    train, test = (load_mvtec(root, name, split) for split in ("train", "test"))
    return Images(train.images, test.images, test.labels, test.masks)


def masks_at_map_size(masks: Any, map_shape: tuple[int, int], resize: str = "stretch") -> np.ndarray:
    """Bring masks (paths, arrays or None) to the maps' geometry, nearest: (n, H, W) bool."""
    seen = np.zeros((len(masks), *map_shape), bool)
    for i, mask in enumerate(masks):
        if mask is None:
            continue
        if isinstance(mask, Path):
            with Image.open(mask) as opened:
                mask = np.asarray(opened.convert("L")) > 127
        seen[i] = Geometry.of(mask.shape, map_shape, resize).view_of_mask(mask)
    return seen


def load_features(name: str, data: Path, detector: PBASDetector) -> Features:
    """Run the detector's backbone over a category; its ``memory`` keeps what an earlier run computed."""
    images = load_images(name, data)
    extractor = detector._make_extractor(torch.Generator().manual_seed(0))

    def stored(items: Any) -> FeatureStore:
        return detector._level_maps(items, extractor).store(range(len(items)), torch.float16, show_progress=False)

    test = [part.float() for part in stored(images.test).get(torch.arange(len(images.test)))]
    masks = masks_at_map_size(images.masks, extractor.image_size, detector.resize)
    return Features(extractor, stored(images.train), test, images.labels, masks)
