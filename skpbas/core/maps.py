"""Patch scores to anomaly maps (Eq. 12 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skpbas.core.aggregation import upsampling_matrix

_TRUNCATE = 4.0  # radius of the Gaussian in standard deviations, as in scipy.ndimage


def gaussian_matrix(n: int, sigma: float) -> Tensor:
    """Gaussian smoothing along one axis as an (n, n) matrix, float64.

    The same as ``scipy.ndimage.gaussian_filter`` with mode "reflect" (d c b a | a b c d | d c b a) and truncate 4.
    """
    if sigma == 0:
        return torch.eye(n, dtype=torch.float64, device="cpu")
    radius = int(_TRUNCATE * sigma + 0.5)
    offset = torch.arange(-radius, radius + 1, device="cpu")
    kernel = torch.exp(-0.5 * (offset.double() / sigma) ** 2)
    kernel /= kernel.sum()
    source = (torch.arange(n, device="cpu")[:, None] + offset) % (2 * n)
    source = torch.minimum(source, 2 * n - 1 - source)  # reflected at the edges, repeatedly if needed
    return torch.zeros(n, n, dtype=torch.float64, device="cpu").scatter_add_(1, source, kernel.expand(n, -1))


class MapRenderer(nn.Module):
    """Patch scores to anomaly maps: bilinear upsampling, then Gaussian smoothing (Eq. 12).

    Both are linear and separable, so together they are one matrix for the rows and one for the columns.

    Parameters
    ----------
    grid_shape : (int, int)
        Patch positions (H0, W0).
    map_shape : (int, int)
        Height and width of the anomaly maps, in pixels.
    sigma : float
        Standard deviation of the smoothing, in pixels of the anomaly map; 0: none.

    Examples
    --------
    >>> import torch
    >>> from skpbas.core.maps import MapRenderer
    >>> MapRenderer((8, 8), (64, 64), sigma=4.0)(torch.rand(2, 64)).shape
    torch.Size([2, 64, 64])
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, grid_shape: tuple[int, int], map_shape: tuple[int, int], sigma: float) -> None:
        super().__init__()
        self.grid_shape = grid_shape
        for name, n_in, n_out in zip(("rows", "columns"), grid_shape, map_shape, strict=True):
            matrix = gaussian_matrix(n_out, sigma) @ upsampling_matrix(n_in, n_out)
            self.register_buffer(name, matrix.float(), persistent=False)

    def forward(self, scores: Tensor) -> Tensor:
        """Return the upsampled and smoothed maps (B, H, W) of patch scores (B, P)."""
        grid = scores.unflatten(1, self.grid_shape)
        return self.rows @ grid @ self.columns.T
