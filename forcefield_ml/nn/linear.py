"""Mixing of channels on each atom: the paper's self-interaction."""

import math
from typing import List

import torch
from torch import Tensor, nn


def by_order(features: Tensor, order: int) -> List[Tensor]:
    """Split packed features (n, (order + 1)^2, C) into (n, 1, C), (n, 3, C), ... up to (n, 2 order + 1, C).

    One split, not a slice for each: a slice's gradient is a tensor of the whole size.
    """
    sizes = [2 * o + 1 for o in range(order + 1)]
    return [part for part in features.split_with_sizes(sizes, dim=1)]


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
        parts = by_order(features, self.order)
        mixed = [nn.functional.linear(parts[0], self.weights[0], self.bias)]
        for order in range(1, self.order + 1):
            mixed.append(nn.functional.linear(parts[order], self.weights[order]))
        return mixed[0] if self.order == 0 else torch.cat(mixed, dim=1)
