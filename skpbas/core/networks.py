"""The two trained networks: projector phi and discriminator D (Eq. 8 and 9 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PROJECTOR_INITS = ("identity", "orthogonal", "xavier")


def _linear(n_in: int, n_out: int, generator: torch.Generator, *, bias: bool) -> nn.Linear:
    """Make a Linear layer with Xavier-normal weights, drawn from ``generator`` instead of the global stream."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias, device="cpu", dtype=torch.float32)
    nn.init.xavier_normal_(layer.weight, generator=generator)
    if bias:
        bound = n_in**-0.5  # torch's own rule for the bias of a Linear layer
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)
    return layer


class Projector(nn.Module):
    """phi: one affine map of the patch features, t -> u.

    Parameters
    ----------
    feature_dim : int
        Dimension d of t and of u.
    generator : torch.Generator
        Source of the initial weights.
    init : {"identity", "orthogonal", "xavier"}, default="identity"
        "identity": phi returns the features unchanged; "orthogonal": a random rotation; "xavier": Xavier-normal weights
        (the paper's), which distort lengths and angles differently with every seed.
    """

    def __init__(self, feature_dim: int, generator: torch.Generator, init: str = "identity") -> None:
        super().__init__()
        self.linear = _linear(feature_dim, feature_dim, generator, bias=True)
        if init == "orthogonal":
            nn.init.orthogonal_(self.linear.weight, generator=generator)
        elif init == "identity":
            identity = torch.eye(feature_dim, dtype=torch.float32, device="cpu")
            self.linear.weight = nn.Parameter(identity)
            nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Map (..., d) to (..., d)."""
        u: Tensor = self.linear(features)
        return u


class Discriminator(nn.Module):
    """D without its last sigmoid: the logit of a feature being anomalous.

    Each head has hidden units of its own and a logit that is trained separately; the logit of D is their mean.

    Parameters
    ----------
    feature_dim : int
        Dimension d of the features.
    hidden_dim : int
        Hidden width of each head.
    generator : torch.Generator
        Source of the initial weights.
    n_heads : int, default=1
        Number of heads; 1: the paper's D.
    """

    def __init__(self, feature_dim: int, hidden_dim: int, generator: torch.Generator, n_heads: int = 1) -> None:
        super().__init__()
        self.hidden = _linear(feature_dim, n_heads * hidden_dim, generator, bias=True)
        # batch norm cancels this bias: its gradient is rounding noise, which Adam would scale to full steps
        self.hidden.get_parameter("bias").requires_grad_(False)
        self.norm = nn.BatchNorm1d(n_heads * hidden_dim, device="cpu", dtype=torch.float32)
        self.activation = nn.LeakyReLU(0.2)
        self.output = _linear(hidden_dim, n_heads, generator, bias=False)  # each row reads the units of its own head

    def head_logits(self, features: Tensor) -> Tensor:
        """Map (N, d) to the logits (N, n_heads) of the heads."""
        activated = self.activation(self.norm(self.hidden(features)))
        of_heads = activated.unflatten(1, self.output.weight.shape)  # (N, n_heads, hidden_dim)
        return torch.einsum("nhk,hk->nh", of_heads, self.output.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, d) to logits (N,); D(u) of the paper is their sigmoid."""
        return self.head_logits(features).mean(1)
