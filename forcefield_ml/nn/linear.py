"""Mixing of channels on each atom: the paper's self-interaction."""

import math

import torch
from torch import Tensor, nn


class SelfInteraction(nn.Module):
    """Mix channels with one matrix per order; scalars get a bias.

    V_i,c'^l = sum_c W_c'c^l V_i,c^l (+ b_c' for l = 0).

    Parameters
    ----------
    in_channels, out_channels
        C and C'.
    order
        Largest order L of the packed features (n, (L + 1)^2, C).

    References
    ----------
    Thomas et al., arXiv:1802.08219, section 3.2.1.
    """

    def __init__(self, in_channels: int, out_channels: int, order: int):
        super().__init__()
        self.order = order
        self.weights = nn.Parameter(torch.randn(order + 1, out_channels, in_channels) / math.sqrt(in_channels))
        self.bias = nn.Parameter(torch.zeros(out_channels))

    def forward(self, features: Tensor) -> Tensor:
        """Return (n, (L + 1)^2, C') for features (n, (L + 1)^2, C)."""
        scalars = nn.functional.linear(features[:, :1], self.weights[0], self.bias)
        if self.order == 0:
            return scalars
        parts = [scalars]
        for order in range(1, self.order + 1):
            parts.append(
                nn.functional.linear(features[:, order * order : (order + 1) * (order + 1)], self.weights[order])
            )
        return torch.cat(parts, dim=1)
