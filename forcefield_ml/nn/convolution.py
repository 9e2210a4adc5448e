"""The equivariant convolution on the dense neighbour matrix, as two batched products."""

import math
from typing import List

import torch
from torch import Tensor, nn

from forcefield_ml.nn.spherical import clebsch_gordan, coupling_paths

CHUNK = 512
"""Atoms per batched product: their neighbours' features stay in the processor's cache."""


class DenseConvolution(nn.Module):
    """Sum over neighbours of a tensor product of filter and features (a tensor field network's point convolution).

    V_i,c^o = K^-1/2 sum_j sum_{f,i} R_c^{f,i,o}(r_ij) C^{f,i,o} Y^f(r_ij) (x) V_j,c^i, with R linear in the units of a
    `RadialNetwork`: R_c = sum_h W_hc H_h. The sum over neighbours is taken first, of the products H_h Y_m x_c,m', as
    one matrix product per atom; weights and couplings then act once per atom instead of once per pair, and nothing
    of size pairs x channels x paths exists.

    Features are packed as (n, C, (L + 1)^2): all orders up to L with the same number of channels.

    Parameters
    ----------
    n_channels
        C.
    filter_order, in_order, out_order
        Largest order of the harmonics, the input and the output.
    n_units
        Units of the radial network.
    n_neighbours
        Typical K, for the normalisation only.
    parity
        ``"O3"`` or ``"SO3"``, see `coupling_paths`.

    References
    ----------
    Thomas et al., arXiv:1802.08219, section 3.1.2 (point convolution).
    """

    couplings: Tensor

    def __init__(
        self,
        n_channels: int,
        filter_order: int,
        in_order: int,
        out_order: int,
        n_units: int,
        n_neighbours: int,
        parity: str = "O3",
    ):
        super().__init__()
        self.n_channels = n_channels
        self.n_units = n_units
        self.chunk = CHUNK
        self.filter_size = (filter_order + 1) ** 2
        self.in_size = (in_order + 1) ** 2
        self.out_size = (out_order + 1) ** 2
        paths = coupling_paths(filter_order, in_order, out_order, parity)
        couplings = torch.zeros(len(paths), self.filter_size, self.in_size, self.out_size, dtype=torch.float64)
        for index, (f, i, o) in enumerate(paths):
            n_into = sum(1 for path in paths if path[2] == o)
            couplings[index, f * f : (f + 1) ** 2, i * i : (i + 1) ** 2, o * o : (o + 1) ** 2] = clebsch_gordan(
                f, i, o
            ) / math.sqrt(n_into * n_units * n_neighbours)
        self.register_buffer("couplings", couplings, persistent=False)  # float64, so that .double() is exact
        self.weights = nn.Parameter(torch.randn(len(paths), n_units, n_channels))

    def forward(self, features: Tensor, units: Tensor, harmonics: Tensor, indices: Tensor) -> Tensor:
        """Return (n_out, C, out_size).

        Parameters
        ----------
        features
            (n_in, C, in_size), of every atom that a row of `indices` names.
        units
            (n, n_units, K) of the radial network, zero where there is no neighbour; n >= n_out.
        harmonics
            (n, at least filter_size, K).
        indices
            (n_out, K).
        """
        n_out, n_neighbours = indices.shape
        # (C, units * filter_size * in_size, out_size): weights and couplings act as one matrix per channel
        mixing = torch.einsum("phc,pfio->chfio", self.weights, self.couplings.to(self.weights.dtype)).reshape(
            self.n_channels, self.n_units * self.filter_size * self.in_size, self.out_size
        )
        flat = features.reshape(features.shape[0], self.n_channels * self.in_size)
        results: List[Tensor] = []
        for start in range(0, n_out, self.chunk):
            stop = min(start + self.chunk, n_out)
            size = stop - start
            seen = flat.index_select(0, indices[start:stop].reshape(-1)).view(size, n_neighbours, -1)
            filters = (units[start:stop, :, None, :] * harmonics[start:stop, None, : self.filter_size, :]).reshape(
                size, self.n_units * self.filter_size, n_neighbours
            )
            summed = torch.bmm(filters, seen)  # (size, units * filter_size, C * in_size)
            by_channel = (
                summed.view(size, self.n_units * self.filter_size, self.n_channels, self.in_size)
                .permute(2, 0, 1, 3)
                .reshape(self.n_channels, size, self.n_units * self.filter_size * self.in_size)
            )
            results.append(torch.bmm(by_channel, mixing).permute(1, 0, 2))
        if len(results) == 0:
            return features.new_zeros(0, self.n_channels, self.out_size)
        return torch.cat(results)
