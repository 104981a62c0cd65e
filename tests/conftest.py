"""What tests share: real-shaped images made here, and a small fitted detector."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from skpbas import PBASDetector

torch.set_num_threads(1)  # on images this small threads mostly wait for each other

GOLDEN = Path(__file__).parent / "data"
SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"the shared measurement data is not at {SHARED}")
    return SHARED


def small_detector(**params) -> PBASDetector:
    """A detector that fits in about a second: random ResNet18, small images, few steps at high rates."""
    defaults = {"weights": None, "image_size": 64, "hidden_dim": 64, "device": "cpu", "random_state": 0}
    recipe = {"max_epochs": 10, "discriminator_lr": 1e-2, "alpha": 1.0}
    return PBASDetector("resnet18", **{**defaults, **recipe, **params})


def textured_images(n: int, side: int = 64, seed: int = 0) -> np.ndarray:
    """Smooth stripes with noise, (n, side, side, 3) uint8: a surface with a phase of its own in each image."""
    rng = np.random.default_rng(seed)
    x = np.arange(side)
    stripes = np.sin(x[None, None, :, None] / 3 + rng.uniform(0, 6, (n, 1, 1, 1)))
    noise = rng.normal(0, 0.1, (n, side, side, 3))
    return np.uint8(np.clip(128 + 60 * (stripes + noise), 0, 255))


@pytest.fixture(scope="session")
def good_images() -> np.ndarray:
    images = textured_images(12)
    images.setflags(write=False)
    return images


@pytest.fixture(scope="session")
def fitted(good_images) -> PBASDetector:
    return small_detector().fit(good_images)
