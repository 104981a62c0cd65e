"""Sets of parameters: ``PBASDetector(**presets.THOROUGH)``.

``THOROUGH`` finds more than the defaults, for about three times their time: larger images, inspected at two scales.
Other parameters, such as the backbone, go with it: ``PBASDetector("embedded", **presets.THOROUGH)``.

``PAPER`` has the settings in the text of the paper (Section IV-B), ``REFERENCE`` those of the authors' released code.
Both train on every patch for hundreds of epochs.
"""

from __future__ import annotations

from typing import Any

THOROUGH: dict[str, Any] = {"image_size": 384, "scales": (1.0, 2 / 3)}

PAPER: dict[str, Any] = {
    "backbone": "wide_resnet50_2",
    "weights": "imagenet",
    "layers": ("layer2", "layer3"),
    "patch_size": 3,
    "feature_dim": 1536,
    "image_size": 256,
    "resize": "crop",
    "center_init": "alignment",
    "center_momentum": 0.1,
    "synthesis": "ray",
    "alpha": 0.3,
    "projector_init": "xavier",
    "n_heads": 1,
    "hidden_dim": 1024,
    "max_epochs": 400,
    "batch_size": 8,
    "patches_per_step": None,
    "schedule": "constant",
    "projector_lr": 1e-4,
    "discriminator_lr": 2e-4,
    "projector_decay": 1e-5,
    "discriminator_decay": 1e-2,
    "patch_score": "discriminator",
    "exclude_outliers": False,
    "smoothing_sigma": 4.0,
}

REFERENCE: dict[str, Any] = {**PAPER, "max_epochs": 640, "image_size": 288, "alpha": 0.25}
