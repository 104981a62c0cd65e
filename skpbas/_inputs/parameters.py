"""Validation of the detector's parameters."""

from __future__ import annotations

import os
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import nn

from skpbas._compat import HasMethods, Interval, Options, StrOptions
from skpbas.core.backbones import TORCHVISION_BACKBONES, is_timm_name
from skpbas.core.centers import CENTER_INITS
from skpbas.core.networks import PROJECTOR_INITS
from skpbas.core.synthesis import SYNTHESES


class WholeNumber(Interval):  # type: ignore[misc]
    """Integers of Python and of numpy from a smallest one on, but no bool."""

    def __init__(self, smallest: int) -> None:
        super().__init__(Integral, smallest, None, closed="left")

    def is_satisfied_by(self, val: Any) -> bool:
        return not isinstance(val, bool) and bool(super().is_satisfied_by(val))


class BackboneName(StrOptions):  # type: ignore[misc]
    """Names of networks: those of the options, and those of timm, which timm checks."""

    def is_satisfied_by(self, val: Any) -> bool:
        return is_timm_name(val) or bool(super().is_satisfied_by(val))

    def __str__(self) -> str:
        return f"{super().__str__()} or 'timm:' and a name in timm"


PRECISIONS = ("auto", "float32", "bfloat16")

CONSTRAINTS: dict[str, list[Any]] = {
    "backbone": [BackboneName({*TORCHVISION_BACKBONES, "embedded"}), nn.Module],
    "weights": [str, Path, None],
    "layers": ["array-like"],
    "patch_size": [WholeNumber(1)],
    "feature_dim": [StrOptions({"auto"}), WholeNumber(1)],
    "image_size": [WholeNumber(1), "array-like"],
    "tile": [WholeNumber(1), None],
    "scales": ["array-like"],
    "resize": [StrOptions({"aspect", "stretch", "crop"})],
    "center_init": [StrOptions(set(CENTER_INITS))],
    "center_momentum": [Interval(Real, 0, 1, closed="right")],
    "synthesis": [StrOptions(set(SYNTHESES)), None],
    "alpha": [Interval(Real, 0, None, closed="neither")],
    "noise_std": [Interval(Real, 0, None, closed="neither")],
    "projector_init": [StrOptions(set(PROJECTOR_INITS))],
    "n_heads": [WholeNumber(1)],
    "hidden_dim": [WholeNumber(1)],
    "max_epochs": [StrOptions({"auto"}), WholeNumber(1)],
    "batch_size": [WholeNumber(1)],
    "patches_per_step": [WholeNumber(2), None],
    "schedule": [StrOptions({"cosine", "constant"})],
    "projector_lr": [Interval(Real, 0, None, closed="neither")],
    "discriminator_lr": [Interval(Real, 0, None, closed="neither")],
    "projector_decay": [Interval(Real, 0, None, closed="left")],
    "discriminator_decay": [Interval(Real, 0, None, closed="left")],
    "patch_score": [StrOptions({"fused", "discriminator", "distance"})],
    "n_exemplars": [WholeNumber(1)],
    "smoothing_sigma": [Interval(Real, 0, None, closed="left")],
    "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
    "exclude_outliers": ["boolean"],
    "false_alarm_rate": [Interval(Real, 0, 0.5, closed="right")],
    "device": [str, torch.device],
    "precision": [StrOptions(set(PRECISIONS))],
    "random_state": ["random_state"],
    "memory": [str, Path, HasMethods(["cache"]), None],
    "n_jobs": [Options(Integral, {-1}), WholeNumber(1), None],
    "verbose": ["verbose"],
}


def draw_seed(random_state: Any) -> int:
    """Draw a seed from a ``random_state``; None uses system entropy, not numpy's global random state."""
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, bool):
        raise ValueError(f"random_state={random_state}: give an integer, a RandomState or None")
    return int(check_random_state(random_state).randint(2**31 - 1))


def as_python_number(value: Any) -> Any:
    """Return a number of numpy as the int or float that it is, and anything else unchanged.

    torch takes numpy's integers in some places only, and small ones overflow.
    """
    if isinstance(value, np.integer):
        return int(value)
    return float(value) if isinstance(value, np.floating) else value


def height_and_width(image_size: Any) -> tuple[int, int]:
    """Return ``image_size`` as (height, width), in pixels."""
    sides = (image_size, image_size) if isinstance(image_size, Integral) else tuple(image_size)
    if len(sides) != 2 or not all(WholeNumber(1).is_satisfied_by(side) for side in sides):
        raise ValueError(f"image_size={image_size!r}: expected a side or (height, width), in pixels")
    return int(sides[0]), int(sides[1])


def odd(patch_size: int) -> int:
    """Return ``patch_size``, checked to be odd, so that a neighborhood has a center."""
    if patch_size % 2 == 0:
        raise ValueError(f"patch_size={patch_size}: expected an odd number")
    return int(patch_size)


def check_scales(scales: Any, patch_score: str, synthesis: str | None) -> tuple[float, ...]:
    """Return ``scales`` from large to small, checked to be distinct numbers in (0, 1] with 1 among them."""
    try:
        checked = tuple(sorted(map(float, scales), reverse=True))
    except (TypeError, ValueError):
        checked = ()
    if not checked or checked[0] != 1 or not all(0 < s <= 1 for s in checked) or len(set(checked)) < len(checked):
        raise ValueError(
            f"scales={scales!r}: expected distinct numbers in (0, 1], multiples of image_size, with 1 among them"
        )
    if len(checked) > 1 and (patch_score != "fused" or synthesis is None):
        raise ValueError(
            f'scales={scales!r} with patch_score="{patch_score}", synthesis={synthesis!r}: only patch_score="fused", '
            "which needs synthesis, sums the scores of several scales; use scales=(1.0,)"
        )
    return checked


def check_layers(layers: Any) -> list[str]:
    """Return ``layers`` as a list of distinct names."""
    names = list(layers)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"layers={layers!r}: expected one or more distinct names")
    return names


def n_threads(n_jobs: int | None) -> int:
    """Return the number of threads for ``n_jobs``: None means 1, -1 one per core."""
    if n_jobs == -1:
        return os.cpu_count() or 1
    return int(n_jobs or 1)
