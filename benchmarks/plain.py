"""The method as a reader of the paper would first write it down: the baseline of the speed benchmarks.

Neighborhoods are unfolded, pooled and interpolated (Eq. 1-4), features are computed again at every step, and every
patch of the batch is used, all in float32 and in torch's default memory format.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from skpbas.core.backbones import IMAGENET_MEAN, IMAGENET_STD


def normalize(images: Tensor) -> Tensor:
    """Normalize (B, 3, H, W) uint8 images by the mean and standard deviation of ImageNet: (B, 3, H, W) float32."""
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    return (images.float() / 255 - mean) / std


def aggregate(feature_maps: Sequence[Tensor], patch_size: int, feature_dim: int) -> Tensor:
    """Return the patch features (B * P, d) of feature maps (B, C_l, H_l, W_l) by unfolding."""
    height, width = feature_maps[0].shape[-2:]
    levels = []
    for level in feature_maps:
        patches = F.unfold(level, patch_size, padding=patch_size // 2)  # (B, C*p*p, P_l)
        patches = patches.unflatten(2, level.shape[-2:])
        if patches.shape[-2:] != (height, width):
            patches = F.interpolate(patches, (height, width), mode="bilinear", align_corners=False)
        patches = patches.flatten(2).transpose(1, 2).flatten(0, 1)  # (B*P, C*p*p)
        levels.append(F.adaptive_avg_pool1d(patches[:, None], feature_dim)[:, 0])
    return F.adaptive_avg_pool1d(torch.cat(levels, dim=1)[:, None], feature_dim)[:, 0]


class PlainMethod:
    """Projector, discriminator and centers of the paper, trained and run in the plain way.

    Parameters
    ----------
    backbone : nn.Module
        Frozen, with batch norms; returns feature maps, shallow first.
    feature_dim : int
    n_centers : int
        Patch positions of an image.
    seed : int
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, n_centers: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.backbone, self.feature_dim = backbone.requires_grad_(False).eval(), feature_dim
        self.projector = nn.Linear(feature_dim, feature_dim)
        self.discriminator = nn.Sequential(
            nn.Linear(feature_dim, 1024), nn.BatchNorm1d(1024), nn.LeakyReLU(0.2), nn.Linear(1024, 1, bias=False)
        )
        self.center = torch.randn(n_centers, feature_dim)
        self.optimizers = [
            torch.optim.Adam(self.projector.parameters(), lr=1e-4, weight_decay=1e-5),
            torch.optim.AdamW(self.discriminator.parameters(), lr=2e-4, weight_decay=1e-2),
        ]

    def features(self, images: Tensor) -> Tensor:
        """Return the patch features (B * P, d) of (B, 3, H, W) uint8 images."""
        with torch.no_grad():
            return aggregate(self.backbone(normalize(images)), 3, self.feature_dim)

    def step(self, images: Tensor, alpha: float = 0.3) -> float:
        """Take one optimization step on all patches of a batch, and return the loss."""
        self.discriminator.train()
        u = self.projector(self.features(images))
        with torch.no_grad():
            similarity = F.normalize(u, dim=1) @ F.normalize(self.center, dim=1).T
            nearest = self.center[similarity.argmax(dim=1)]
        radius = torch.linalg.vector_norm(u - nearest, dim=1).mean()
        ray = (u - nearest).detach()
        v = u + alpha * radius.detach() * ray / torch.linalg.vector_norm(ray, dim=1, keepdim=True)
        probabilities = torch.sigmoid(self.discriminator(torch.cat([u, v]))[:, 0])
        normal, anomaly = probabilities.chunk(2)
        loss = radius + F.binary_cross_entropy(normal, torch.zeros_like(normal))
        loss = loss + F.binary_cross_entropy(anomaly, torch.ones_like(anomaly))
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()

    @torch.no_grad()
    def predict(self, images: Tensor, sigma: float = 4.0) -> tuple[Tensor, list[np.ndarray]]:
        """Return image scores (B,) and smoothed anomaly maps (H, W) of (B, 3, H, W) uint8 images."""
        self.discriminator.eval()
        scores = torch.sigmoid(self.discriminator(self.projector(self.features(images)))[:, 0])
        side = round((len(scores) / len(images)) ** 0.5)
        grid = scores.view(len(images), 1, side, side)
        anomaly_maps = F.interpolate(grid, images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
        return grid.flatten(1).amax(1), [gaussian_filter(anomaly_map.numpy(), sigma) for anomaly_map in anomaly_maps]
