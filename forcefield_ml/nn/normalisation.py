"""Equivariant normalisation over atoms, with running statistics."""

import torch
from torch import Tensor, nn

from forcefield_ml.nn.linear import by_order
from forcefield_ml.nn.synchronise import in_processes, mean_over_atoms


class EquivariantNorm(nn.Module):
    """Bring each channel of each order to unit variance over the atoms of a batch.

    Scalars are centred and divided by their standard deviation; a channel of order l is divided by the root mean
    square of its components. While training the batch's own statistics serve and a running mean is kept; afterwards
    the running mean serves, and the layer is a constant factor. Statistics run over atoms, not over the channels of
    an atom: that would erase the magnitude of an atom's vectors, which is what the network is to predict. Where
    several processes train together, they run over the atoms of all.

    Parameters
    ----------
    n_channels
        C.
    order
        Largest order L of the packed features (n, (L + 1)^2, C).
    momentum
        Share of a new batch in the running statistics.

    Attributes
    ----------
    constant : bool
        Whether the statistics of a batch count as constants in every derivative. They must where the output is
        differentiated by positions: an atom's force would otherwise be that of moving the statistics, too, which
        afterwards stand still.

    References
    ----------
    Ioffe and Szegedy, arXiv:1502.03167; for order l > 0 as in e3nn.nn.BatchNorm.
    """

    mean: Tensor
    variance: Tensor
    n_batches: Tensor
    order_of: Tensor

    def __init__(self, n_channels: int, order: int, momentum: float = 0.1):
        super().__init__()
        self.order = order
        self.momentum = momentum
        self.epsilon = 1e-6
        self.constant = False
        self.register_buffer("mean", torch.zeros(n_channels))
        self.register_buffer("variance", torch.ones(order + 1, n_channels))
        self.register_buffer("n_batches", torch.zeros((), dtype=torch.int64))
        order_of = [o for o in range(order + 1) for _ in range(2 * o + 1)]
        self.register_buffer("order_of", torch.tensor(order_of), persistent=False)  # of each component

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same shape (n, (L + 1)^2, C)."""
        mean, variance = self.mean, self.variance
        features = features.to(mean.dtype)  # statistics of bfloat16 would be too coarse
        if self.training and (features.shape[0] > 1 or in_processes()):
            parts = by_order(features, self.order)
            mean = mean_over_atoms(parts[0][:, 0])
            spread = [(parts[0][:, 0] - mean).square()]
            for order in range(1, self.order + 1):
                spread.append(parts[order].square().mean(1))
            variance = mean_over_atoms(torch.stack(spread, dim=1))
            if self.constant:
                mean, variance = mean.detach(), variance.detach()
            # the first batch sets the statistics, later ones are averaged in
            share = self.momentum if int(self.n_batches) > 0 else 1.0
            with torch.no_grad():
                self.mean.lerp_(mean.detach(), share)
                self.variance.lerp_(variance.detach(), share)
                self.n_batches.add_(1)
        scale = (variance + self.epsilon).rsqrt()
        shift = nn.functional.pad((mean * scale[0])[None], [0, 0, 0, scale.shape[0] - 1])
        return features * scale[self.order_of] - shift[self.order_of]
