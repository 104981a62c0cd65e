"""What is done to a network's input: its normalization, and resizing as matrices that every exporter knows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Resizing(nn.Module):
    """Antialiased resizing to another shape: one matrix for the rows and one for the columns.

    Parameters
    ----------
    old, new : (int, int)
        Height and width before and after.
    mode : {"bilinear", "bicubic"}, default="bilinear"
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, old: tuple[int, int], new: tuple[int, int], mode: str = "bilinear") -> None:
        super().__init__()
        for name, n_in, n_out in zip(("rows", "columns"), old, new, strict=True):
            identity = torch.eye(n_in, dtype=torch.float32, device="cpu")[None, None]
            matrix = F.interpolate(identity, (n_out, n_in), mode=mode, antialias=True, align_corners=False)
            self.register_buffer(name, matrix[0, 0], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Return images (B, C, H, W), of the old height and width, with the new ones."""
        return self.rows @ images @ self.columns.T
