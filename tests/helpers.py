"""What tests share: small detectors and images that they fit in about a second, and bounds on rounding."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from skpbas import PBASDetector

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "data"
SHARED = ROOT.parent / "shared"


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


def assert_equal_but_for_rounding(actual: Tensor, expected: Tensor, *, n_terms: int, n_layers: int = 1) -> None:
    """Assert that two float32 computations of one value differ by their rounding only.

    Kernels add up n terms in blocks, so a sum is off by about log2(n) roundings of the largest value; layers are
    independent of each other. Four times that leaves room for the largest of many values.
    """
    scale = float(expected.abs().max())
    bound = 4 * math.log2(n_terms) * math.sqrt(n_layers) * torch.finfo(torch.float32).eps * scale
    torch.testing.assert_close(actual, expected, rtol=0, atol=bound)
