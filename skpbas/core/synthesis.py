"""Synthetic anomaly features (AFS: Eq. 7 and Table V of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor

SYNTHESES = ("ray", "gaussian")


def along_ray(features: Tensor, nearest: Tensor, radius: Tensor, alpha: float) -> Tensor:
    """Push each feature away from its center, along the ray from center to feature (Eq. 7).

    v = u + alpha * r * (u - c*) / ||u - c*||. The step is a constant for the gradient, so dv/du is the identity. A
    feature that equals its center has no direction and is not moved.

    Parameters
    ----------
    features : Tensor of shape (N, d)
        Normal features u.
    nearest : Tensor of shape (N, d)
        Nearest center c* of each.
    radius : Tensor of shape ()
        r, the mean distance of the batch to its centers.
    alpha : float
        Anomaly degree: v lies alpha * r beyond u.

    Returns
    -------
    Tensor of shape (N, d)
    """
    ray = (features - nearest).detach()
    length = torch.linalg.vector_norm(ray, dim=1, keepdim=True).clamp_min(torch.finfo(ray.dtype).tiny)
    return features + alpha * radius.detach() * (ray / length)


def gaussian(features: Tensor, std: float, generator: torch.Generator) -> Tensor:
    """Add Gaussian noise to each feature (SimpleNet's synthesis, for comparison).

    Parameters
    ----------
    features : Tensor of shape (N, d)
    std : float
        Standard deviation of the noise in every dimension.
    generator : torch.Generator
        On the device of ``features``.

    Returns
    -------
    Tensor of shape (N, d)
    """
    noise = torch.empty_like(features).normal_(0.0, std, generator=generator)
    return features + noise
