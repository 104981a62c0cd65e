"""The terms of one optimization step: ABL, AFS and RBO together (Eq. 6-10 of the paper)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skpbas.core.centers import nearest_center
from skpbas.core.networks import Discriminator, Projector
from skpbas.core.synthesis import along_ray, gaussian


@dataclass(frozen=True)
class StepTerms:
    """Everything that one step computes for its loss, for N features of dimension d.

    Attributes
    ----------
    projected : Tensor of shape (N, d)
        Normal features u.
    nearest : Tensor of shape (N,)
        Index of the nearest center of each.
    center_loss : Tensor of shape ()
        L_ABL, which is also the radius r (Eq. 6).
    anomalies : Tensor of shape (N, d) or None
        Synthetic features v.
    normal_logits, anomaly_logits : Tensor of shape (N, n_heads) or None
        Logits of the heads of D.
    normal_loss, anomaly_loss : Tensor of shape () or None
        L_n and L_a (Eq. 8, 9), summed over the heads.
    """

    projected: Tensor
    nearest: Tensor
    center_loss: Tensor
    anomalies: Tensor | None = None
    normal_logits: Tensor | None = None
    anomaly_logits: Tensor | None = None
    normal_loss: Tensor | None = None
    anomaly_loss: Tensor | None = None

    def losses(self) -> dict[str, Tensor]:
        """Return the terms of the loss by name: "center", and with synthesis "normal" and "anomaly"."""
        terms = {"center": self.center_loss, "normal": self.normal_loss, "anomaly": self.anomaly_loss}
        return {name: term for name, term in terms.items() if term is not None}

    @property
    def total(self) -> Tensor:
        """L_ABL + L_n + L_a; the optimizer adds the two weight penalties of Eq. 10."""
        return torch.stack(list(self.losses().values())).sum()


class PBASObjective(nn.Module):
    """Projector, discriminator and fixed center set: patch features to the terms of a step.

    Parameters
    ----------
    projector : Projector
    discriminator : Discriminator or None
        None if ``synthesis`` is None.
    center : Tensor of shape (P, d)
        Fixed during training.
    synthesis : {"ray", "gaussian"} or None
        None: ABL alone.
    alpha : float
        Anomaly degree of "ray".
    noise_std : float
        Standard deviation of "gaussian".
    generator : torch.Generator
        On the device of ``center``; draws the noise of "gaussian".
    precision : torch.dtype, default=torch.float32
        Arithmetic of the discriminator, which is two thirds of a step: float32 or bfloat16. Projector, centers and
        synthesis keep that of the features: u - c* cancels too many digits for bfloat16.
    """

    center: Tensor

    def __init__(
        self,
        projector: Projector,
        discriminator: Discriminator | None,
        center: Tensor,
        *,
        synthesis: str | None,
        alpha: float,
        noise_std: float,
        generator: torch.Generator,
        precision: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        self.projector = projector
        self.discriminator = discriminator
        self.register_buffer("center", center)
        self.synthesis = synthesis
        self.alpha = alpha
        self.noise_std = noise_std
        self.generator = generator
        self.precision = precision

    @property
    def term_names(self) -> tuple[str, ...]:
        """Names of the terms of the loss, as in :meth:`StepTerms.losses`."""
        return ("center",) if self.discriminator is None else ("center", "normal", "anomaly")

    @torch.no_grad()
    def nearest(self, u: Tensor) -> Tensor:
        """Return the index (N,) of the nearest center of each projected feature (N, d)."""
        return nearest_center(u, self.center)

    def forward(self, features: Tensor) -> StepTerms:
        """Compute the terms for (N, d) patch features t."""
        u = self.projector(features)
        nearest = self.nearest(u)
        nearest_u = self.center[nearest]
        radius = torch.linalg.vector_norm(u - nearest_u, dim=1).mean()  # r = L_ABL
        if self.discriminator is None:
            return StepTerms(u, nearest, radius)
        if self.synthesis == "ray":
            v = along_ray(u, nearest_u, radius, self.alpha)
        else:
            v = gaussian(u, self.noise_std, self.generator)
        rounded = self.precision != torch.float32
        # no cache: within an autocast of the caller it would outlive the step, and the weights that it holds change
        with torch.autocast(u.device.type, self.precision if rounded else None, enabled=rounded, cache_enabled=False):
            logits = self.discriminator.head_logits(torch.cat([u, v]))  # one batch, so that BatchNorm sees both
        normal, anomaly = logits.to(u.dtype).chunk(2)
        n_heads = logits.shape[1]
        return StepTerms(
            u,
            nearest,
            radius,
            v,
            normal,
            anomaly,
            n_heads * F.binary_cross_entropy_with_logits(normal, torch.zeros_like(normal)),
            n_heads * F.binary_cross_entropy_with_logits(anomaly, torch.ones_like(anomaly)),
        )
