"""Training parameters."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Self

from skpbas._inputs.parameters import as_python_number

SUFFICIENT_STEPS, SUFFICIENT_EPOCHS = 600, 24


@dataclass(frozen=True)
class TrainingSettings:
    """Parameters of the estimator that training uses, under the same names."""

    center_init: str
    center_momentum: float
    synthesis: str | None
    alpha: float
    noise_std: float
    projector_init: str
    n_heads: int
    hidden_dim: int
    max_epochs: int | str
    batch_size: int
    patches_per_step: int | None
    schedule: str
    projector_lr: float
    discriminator_lr: float
    projector_decay: float
    discriminator_decay: float
    patch_score: str
    n_exemplars: int
    smoothing_sigma: float
    contamination: str | float
    exclude_outliers: bool
    false_alarm_rate: float
    precision: str
    verbose: int

    @classmethod
    def of(cls, estimator: Any) -> Self:
        """Read the settings from an estimator's parameters; numbers of numpy become Python's."""
        return cls(**{field.name: as_python_number(getattr(estimator, field.name)) for field in fields(cls)})


def n_epochs(
    settings: TrainingSettings,
    n_images: int,
    *,
    sufficient_steps: int = SUFFICIENT_STEPS,
    sufficient_epochs: int = SUFFICIENT_EPOCHS,
) -> int:
    """Return ``max_epochs``; for "auto" the fewest epochs with sufficient steps and epochs."""
    if settings.max_epochs != "auto":
        return int(settings.max_epochs)
    steps_per_epoch = math.ceil(n_images / settings.batch_size)
    return max(sufficient_epochs, math.ceil(sufficient_steps / steps_per_epoch))
