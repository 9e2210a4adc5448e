"""Equivariant non-linearities."""

import torch
from torch import Tensor, nn

from forcefield_ml.nn.linear import by_order


class Gate(nn.Module):
    """Scalars through SiLU; every channel of higher order times a sigmoid of its own, learnt mix of scalars.

    V^0 -> silu(V^0), V_c^l -> V_c^l sigmoid(sum_c' G_c'c^l V_c'^0 + b_c^l). A factor that depends on invariants alone
    keeps equivariance.

    Parameters
    ----------
    n_channels
        C.
    order
        Largest order L of the packed features (n, (L + 1)^2, C).

    References
    ----------
    Weiler et al., arXiv:1807.02547, section 4.3 (gated non-linearity).
    """

    def __init__(self, n_channels: int, order: int):
        super().__init__()
        self.order = order
        self.n_channels = n_channels
        self.gates = nn.Linear(n_channels, n_channels * order) if order > 0 else nn.Identity()

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (n, (L + 1)^2, C)."""
        parts = by_order(features, self.order)
        outputs = [nn.functional.silu(parts[0])]
        if self.order > 0:
            gates = torch.sigmoid(self.gates(parts[0])).chunk(self.order, dim=2)
            for order in range(1, self.order + 1):
                outputs.append(parts[order] * gates[order - 1])
        return torch.cat(outputs, dim=1)
