"""Categories for the benchmarks: real ones in MVTec AD's layout and generated ones, as images or as stored features."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from skpbas import PBASDetector
from skpbas._features.reading import Reading
from skpbas._features.sampling import TrainingFeatures
from skpbas._features.store import FeatureStore
from skpbas.core.backbones import FeatureExtractor
from skpbas.datasets import load_mvtec, make_inspection_images
from skpbas.masks import to_map_size

GENERATED = {"generated-hex_nut": "hex_nut", "generated-printed_board": "printed_board"}
"""Generated categories and their kinds: 60 normal images for training, 30 normal and 40 anomalous ones for testing."""


@dataclass
class Images:
    """The images of a category: arrays or paths, labels +1 and -1, and masks (None, paths or arrays)."""

    train: Any
    test: Any
    labels: NDArray[np.int64]
    masks: Any


@dataclass
class Features:
    """The features of a category, as training and patch scorers read them.

    Attributes
    ----------
    extractor : FeatureExtractor
    train : FeatureStore
    test : list of Tensor of shape (n, n_l, H_l, W_l)
        One per level.
    labels : ndarray of shape (n,)
        +1 normal, -1 anomalous.
    masks : ndarray of shape (n, H, W), bool
        At the size of the anomaly maps.
    """

    extractor: FeatureExtractor
    train: FeatureStore
    test: list[Tensor]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]

    def training(self, seed: int) -> TrainingFeatures:
        """Return the training images, with a generator of this seed."""
        generator = torch.Generator().manual_seed(seed)
        rows = torch.arange(len(self.train))
        return TrainingFeatures(self.train, rows, self.extractor.aggregator, torch.device("cpu"), generator)

    def test_parts(self) -> list[list[Tensor]]:
        """Return the levels' parts, one test image at a time, as in prediction on a CPU."""
        return [[level[i : i + 1] for level in self.test] for i in range(len(self.labels))]


def category_root(data: Path, category: str) -> Path:
    """Return the folder that contains a category's folder: ``data`` or one of its subfolders."""
    for root in (data, *sorted(p for p in data.iterdir() if p.is_dir())):
        if (root / category / "train").is_dir():
            return root
    raise SystemExit(f"--category {category}: no {category}/train in {data} or in one of its subfolders")


def load_images(name: str, data: Path) -> Images:
    """Return the images of a category."""
    if name in GENERATED:
        made = make_inspection_images(90, 40, kind=GENERATED[name], size=256, random_state=0)
        return Images(made.images[:60], made.images[60:], made.labels[60:], list(made.masks[60:]))
    root = category_root(data, name)
    train, test = (load_mvtec(root, name, split) for split in ("train", "test"))
    return Images(train.images, test.images, test.labels, test.masks)


def masks_at_map_size(masks: Any, images: Any, map_shape: tuple[int, int], resize: str) -> NDArray[np.bool_]:
    """Bring masks (paths, arrays or None) to the geometry of their images' anomaly maps: (n, H, W)."""
    seen = to_map_size(masks, images, SimpleNamespace(map_shape_=map_shape, resize=resize))
    return np.stack([np.zeros(map_shape, bool) if mask is None else mask for mask in seen])


def load_features(name: str, data: Path, detector: PBASDetector) -> Features:
    """Run the detector's backbone on a category; its ``memory`` keeps the feature maps across runs."""
    images = load_images(name, data)
    reading, _ = Reading.planned(detector, images.train, np.arange(len(images.train)))
    extractor = reading.new_extractor(detector, torch.Generator().manual_seed(0))

    def stored(items: Any) -> FeatureStore:
        return detector._level_maps(items, extractor, reading).store(
            range(len(items)), torch.float16, show_progress=False
        )

    test = [part.float() for part in stored(images.test).get(torch.arange(len(images.test)))]
    masks = masks_at_map_size(images.masks, images.test, extractor.image_size, detector.resize)
    return Features(extractor, stored(images.train), test, images.labels, masks)
