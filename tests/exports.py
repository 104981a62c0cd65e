"""Detectors that the tests of exports share."""

from __future__ import annotations

import torch
from helpers import small_detector, textured_images

TORCH = tuple(map(int, torch.__version__.split(".")[:2]))

CASES = {
    "resnet18": {"backbone": "resnet18"},
    "embedded": {},
    "wide": {"image_size": (48, 80), "resize": "stretch"},
    "crop": {"resize": "crop", "image_size": 48},
    "distance": {"patch_score": "distance"},
    "discriminator": {"patch_score": "discriminator"},
    "without synthesis": {"synthesis": None},
    "two scales": {"image_size": 128, "scales": (1.0, 0.5)},
    "own module": {"backbone": "module", "layers": ["1", "2"]},
}


class OwnModule(torch.nn.Sequential):
    """A backbone of a user, with a level of stride 8 and one of 16."""

    def __init__(self):
        super().__init__(torch.nn.Conv2d(3, 6, 8, 8), torch.nn.ReLU(), torch.nn.Conv2d(6, 8, 2, 2))


def fitted_detector(images, **params):
    params = {"backbone": "embedded", "precision": "float32", "max_epochs": 2, **params}
    if params["backbone"] == "module":
        params["backbone"] = OwnModule()
    return small_detector().set_params(**params).fit(images)


def odd_images(n, height, width, seed=3):
    """Textured images that were not in fit, with a white corner in the first."""
    images = textured_images(n, max(height, width), seed)[:, :height, :width].copy()
    images[0, : height // 4, : width // 3] = 255
    return images
