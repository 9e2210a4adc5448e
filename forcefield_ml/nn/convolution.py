"""Equivariant convolutions on the dense neighbour matrix: plain, as batched products, and compiled."""

import math
from typing import Any, Callable, ClassVar, List, Optional, Tuple

import torch
from torch import Tensor, nn

from forcefield_ml import kernels
from forcefield_ml.nn.linear import SelfInteraction
from forcefield_ml.nn.pairs import Pairs
from forcefield_ml.nn.radial import RadialNetwork
from forcefield_ml.nn.spherical import clebsch_gordan, coupling_paths

CHUNK = 512
"""Atoms per batched product: their neighbours' features stay in the processor's cache."""


class RadialTable:
    """Keeps the radial weights of a compiled convolution as long as the parameters they come from do not change."""

    def __init__(self) -> None:
        self._made_of: List[Tensor] = []
        self._table: Optional[Tensor] = None

    def get(self, module: nn.Module, make: Callable[[], Tensor]) -> Tensor:
        """Return ``make()``, or what it gave before; with gradients it is made anew. In full precision always.

        Parameters are compared by their values: identity and version of a tensor do not tell of all changes.
        """
        with torch.autocast("cpu", enabled=False):
            if torch.is_grad_enabled():
                return make()
            parameters = list(module.parameters())
            if self._table is None or not all(map(_same, parameters, self._made_of)):
                self._made_of = [parameter.clone() for parameter in parameters]
                self._table = make()
            return self._table

    def __reduce__(self) -> Tuple[Any, ...]:
        return RadialTable, ()  # a copy makes its own


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _coupling_numbers(paths: Tuple[Tuple[int, int, int], ...]) -> Tuple[Tuple[float, ...], ...]:
    return tuple(tuple(clebsch_gordan(*path).flatten().tolist()) for path in paths)


def kernels_of(network: nn.Module) -> Tuple[kernels.Convolution, ...]:
    """Return the kernels that a network's convolutions run in the compiled form."""
    found = [part for part in network.modules() if isinstance(part, (DenseConvolution, ElementConvolution))]
    return tuple(part._kernel for part in found)


class DenseConvolution(nn.Module):
    """Sum over neighbours of a tensor product of filter and features (a tensor field network's point convolution).

    V_i,c^o = K^-1/2 sum_j sum_{f,i} R_c^{f,i,o}(r_ij) C^{f,i,o} Y^f(r_ij) (x) V_j,c^i, with R linear in the units of a
    `RadialNetwork`: R_c = sum_h W_hc H_h.

    Plain form: the sum over neighbours is taken first, of the products H_h Y_m x_m',c, as one matrix product per
    atom; weights and couplings then act once per atom instead of once per pair, and nothing of size pairs x channels x
    paths exists. Compiled form (`kernels`): pair by pair, R from a table.

    Features are packed as (n, (L + 1)^2, C): all orders up to L with the same number of channels.

    Parameters
    ----------
    n_channels
        C.
    filter_order, in_order, out_order
        Largest order of the harmonics, the input and the output.
    n_basis, n_units
        Functions of the radial basis, units of the radial network.
    n_neighbours
        Typical K, for the normalisation only.
    parity
        ``"O3"`` or ``"SO3"``, see `coupling_paths`.

    References
    ----------
    Thomas et al., arXiv:1802.08219, section 3.1.2 (point convolution).
    """

    couplings: Tensor
    scales: Tensor
    columns: Tensor
    __jit_ignored_attributes__: ClassVar[List[str]] = ["_kernel", "_radial_table"]

    def __init__(
        self,
        n_channels: int,
        filter_order: int,
        in_order: int,
        out_order: int,
        n_basis: int,
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
        norms = []
        for index, (f, i, o) in enumerate(paths):
            n_into = sum(1 for path in paths if path[2] == o)
            norms.append(1 / math.sqrt(n_into * n_units * n_neighbours))
            couplings[index, f * f : (f + 1) ** 2, i * i : (i + 1) ** 2, o * o : (o + 1) ** 2] = (
                clebsch_gordan(f, i, o) * norms[-1]
            )
        self.register_buffer("couplings", couplings, persistent=False)  # float64, so that .double() is exact
        self.radial = RadialNetwork(n_basis, n_units)
        self.weights = nn.Parameter(torch.randn(len(paths), n_units, n_channels))
        self._kernel = kernels.Convolution(
            paths, _coupling_numbers(paths), n_channels, filter_order, in_order, out_order
        )
        self._radial_table = RadialTable()
        scales = torch.tensor(self._kernel.scales) * torch.tensor(norms)
        self.register_buffer("scales", scales[:, None, None], persistent=False)
        self.register_buffer("columns", torch.tensor(self._kernel.order), persistent=False)

    def forward(self, features: Tensor, pairs: Pairs) -> Tensor:
        """Return (n, out_size, C) for the n rows of the pairs.

        Parameters
        ----------
        features
            (n_in, in_size, C), of every atom that a row names.
        pairs
            With harmonics up to at least the filter's order in the plain form.
        """
        if not torch.jit.is_scripting():
            if pairs.tabulated:
                return self._compiled(features, pairs)
        return self._plain(features, pairs)

    def _plain(self, features: Tensor, pairs: Pairs) -> Tensor:
        n_out, n_neighbours = pairs.indices.shape
        units = self.radial(pairs.basis, pairs.envelope)
        harmonics = pairs.harmonics[:, : self.filter_size]
        # (C, units * filter_size * in_size, out_size): weights and couplings act as one matrix per channel
        mixing = torch.einsum("phc,pfio->chfio", self.weights, self.couplings.to(self.weights.dtype)).reshape(
            self.n_channels, self.n_units * self.filter_size * self.in_size, self.out_size
        )
        flat = features.reshape(features.shape[0], self.in_size * self.n_channels)
        results: List[Tensor] = []
        for start in range(0, n_out, self.chunk):
            stop = min(start + self.chunk, n_out)
            size = stop - start
            seen = flat.index_select(0, pairs.indices[start:stop].reshape(-1)).view(size, n_neighbours, -1)
            filters = (units[start:stop, :, None, :] * harmonics[start:stop, None, :, :]).reshape(
                size, self.n_units * self.filter_size, n_neighbours
            )
            summed = torch.bmm(filters, seen)  # (size, units * filter_size, in_size * C)
            by_channel = (
                summed.view(size, self.n_units * self.filter_size * self.in_size, self.n_channels)
                .permute(2, 0, 1)
                .contiguous()
            )
            results.append(torch.bmm(by_channel, mixing).permute(1, 2, 0))
        if len(results) == 0:
            return features.new_zeros(0, self.out_size, self.n_channels)
        return torch.cat(results).contiguous()

    @torch.jit.unused
    def _compiled(self, features: Tensor, pairs: Pairs) -> Tensor:
        def make() -> Tensor:
            units = self.radial(pairs.basis, pairs.envelope)[0]  # (units, nodes)
            weights = (self.weights * self.scales).transpose(0, 1).reshape(self.n_units, -1)
            return units.T @ weights[:, self.columns]

        table = self._radial_table.get(self, make)
        first = kernels.table_first(pairs.cutoff)
        return self._kernel(features, table, pairs.indices, pairs.vectors, pairs.mask, first)


class ElementConvolution(nn.Module):
    """The first layer's sum over neighbours, which know nothing yet but their element.

    V_i,c^l = K^-1/2 sum_j sum_h W^l_c,h,z_j H_h(r_ij) Y^l(r_ij) (+ b_c for l = 0), for l = 0, 1: each element has
    radial weights of its own.

    Parameters
    ----------
    n_elements
        Z.
    n_basis, n_units
        Functions of the radial basis, units of the radial network.
    n_channels
        C.
    n_neighbours
        Typical K, for the normalisation only.
    """

    columns: Tensor
    __jit_ignored_attributes__: ClassVar[List[str]] = ["_kernel", "_radial_table"]

    def __init__(self, n_elements: int, n_basis: int, n_units: int, n_channels: int, n_neighbours: float):
        super().__init__()
        self.n_units, self.n_elements, self.n_channels = n_units, n_elements, n_channels
        self.radial = RadialNetwork(n_basis, n_units)
        self.mix = SelfInteraction(n_units * n_elements, n_channels, 1)
        self.scale = n_neighbours**-0.5
        paths = ((0, 0, 0), (1, 0, 1))
        self._kernel = kernels.Convolution(paths, _coupling_numbers(paths), n_channels, 1, 0, 1, kinds=True)
        self._radial_table = RadialTable()
        self.register_buffer("columns", torch.tensor(self._kernel.order), persistent=False)

    def forward(self, one_hot: Tensor, pairs: Pairs) -> Tensor:
        """Return (n, 4, C) for the n rows of the pairs.

        Parameters
        ----------
        one_hot
            (n_in, Z), of every atom that a row names.
        pairs
            With harmonics up to at least order 1 in the plain form.
        """
        if not torch.jit.is_scripting():
            if pairs.tabulated:
                return self._compiled(one_hot, pairs)
        return self._plain(one_hot, pairs)

    def _plain(self, one_hot: Tensor, pairs: Pairs) -> Tensor:
        n_out, n_neighbours = pairs.indices.shape
        units = self.radial(pairs.basis, pairs.envelope) * self.scale
        filters = (units[:, None, :, :] * pairs.harmonics[:, :4, None, :]).view(n_out, -1, n_neighbours)
        seen = one_hot.index_select(0, pairs.indices.reshape(-1)).view(n_out, n_neighbours, self.n_elements)
        return self.mix(torch.bmm(filters, seen).view(n_out, 4, self.n_units * self.n_elements))

    @torch.jit.unused
    def _compiled(self, one_hot: Tensor, pairs: Pairs) -> Tensor:
        def make() -> Tensor:
            units = self.radial(pairs.basis, pairs.envelope)[0] * self.scale  # (units, nodes)
            weights = self.mix.weights.view(2, self.n_channels, self.n_units, self.n_elements).permute(3, 2, 0, 1)
            return torch.matmul(units.T, weights.reshape(self.n_elements, self.n_units, -1)[:, :, self.columns])

        table = self._radial_table.get(self, make)
        kinds = one_hot.argmax(1).int()
        first = kernels.table_first(pairs.cutoff)
        summed = self._kernel(None, table, pairs.indices, pairs.vectors, pairs.mask, first, kinds)
        return summed + nn.functional.pad(self.mix.bias[None], [0, 0, 0, 3])
