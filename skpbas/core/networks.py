"""The two trained networks: projector phi (METHOD 2) and discriminator D (METHOD 5)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PROJECTOR_INITS = ("identity", "orthogonal", "xavier")


def _linear(n_in: int, n_out: int, generator: torch.Generator, *, bias: bool) -> nn.Linear:
    """Make a Linear layer, weights Xavier-normal, drawn from ``generator`` and not from the global stream."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out, bias=bias, device="cpu", dtype=torch.float32)
    nn.init.xavier_normal_(layer.weight, generator=generator)
    if bias:
        bound = n_in**-0.5  # torch's own rule for a Linear's bias
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
        "identity": phi gives the features as they are; "orthogonal": a random rotation of them; "xavier": weights of
        Xavier's normal law (the article's), which distort lengths and angles by another amount with every seed.
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

    With several heads each has hidden units of its own, and a logit that is trained for itself; D's is their mean.

    Parameters
    ----------
    feature_dim : int
        Dimension d of the features.
    hidden_dim : int
        Hidden width of a head.
    generator : torch.Generator
        Source of the initial weights.
    n_heads : int, default=1
        Heads; 1: the article's D.
    """

    def __init__(self, feature_dim: int, hidden_dim: int, generator: torch.Generator, n_heads: int = 1) -> None:
        super().__init__()
        self.hidden = _linear(feature_dim, n_heads * hidden_dim, generator, bias=True)
        # batch norm cancels this bias: its gradient is rounding noise, which Adam would turn into full steps
        self.hidden.get_parameter("bias").requires_grad_(False)
        self.norm = nn.BatchNorm1d(n_heads * hidden_dim, device="cpu", dtype=torch.float32)
        self.activation = nn.LeakyReLU(0.2)
        self.output = _linear(hidden_dim, n_heads, generator, bias=False)  # a row reads its own head's units alone

    def head_logits(self, features: Tensor) -> Tensor:
        """Map (N, d) to the logits (N, n_heads) of the heads."""
        activated = self.activation(self.norm(self.hidden(features)))
        of_heads = activated.unflatten(1, self.output.weight.shape)  # (N, n_heads, hidden_dim)
        return torch.einsum("nhk,hk->nh", of_heads, self.output.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, d) to logits (N,); D(u) of the paper is their sigmoid."""
        return self.head_logits(features).mean(1)
