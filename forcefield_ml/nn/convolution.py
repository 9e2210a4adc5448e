"""Equivariant convolutions on the dense neighbour matrix: plain, as batched products, and compiled."""

import math
from typing import Any, Callable, ClassVar, List, Optional, Tuple

import torch
from torch import Tensor, nn

from forcefield_ml import kernels
from forcefield_ml.nn.linear import SelfInteraction
from forcefield_ml.nn.pairs import Pairs, chunks
from forcefield_ml.nn.products import coupling_numbers, look_up, tensor_products, vector_products
from forcefield_ml.nn.radial import RadialNetwork
from forcefield_ml.nn.spherical import coupling_paths

CHUNK = 64
"""Atoms per batched product on the CPU: what is computed for their neighbours stays in the processor's cache."""

CUDA_CHUNK = 4096
"""The same on a GPU, where a chunk is to fill the device and only memory sets a limit."""


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
            if kernels.trains():
                return make()
            parameters = list(module.parameters())
            if self._table is None or not all(map(_same, parameters, self._made_of)):
                with torch.no_grad():
                    self._made_of = [parameter.clone() for parameter in parameters]
                    self._table = make()
            return self._table

    def __reduce__(self) -> Tuple[Any, ...]:
        return RadialTable, ()  # a copy makes its own


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def kernels_of(network: nn.Module) -> Tuple[kernels.Convolution, ...]:
    """Return the kernels that a network's convolutions run in the compiled form."""
    found = [part for part in network.modules() if isinstance(part, (DenseConvolution, ElementConvolution))]
    return tuple(part._kernel for part in found)


class DenseConvolution(nn.Module):
    """Sum over neighbours of a tensor product of filter and features (a tensor field network's point convolution).

    V_i,c^o = K^-1/2 sum_j sum_{f,i} R_c^{f,i,o}(r_ij) C^{f,i,o} Y^f(r_ij) (x) V_j,c^i, with R linear in the units of a
    `RadialNetwork`: R_c = sum_h W_hc H_h.

    Plain form: weight times feature for each pair, path and component of the input, in chunks of atoms that fit the
    processor's cache, then one batched product per input and output order with the coupled harmonics, over all
    neighbours. Compiled form (`kernels`): pair by pair, R from a table.

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
    combine: Tensor
    inputs: List[Tuple[int, int, int]]
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
        self.chunk, self.cuda_chunk = CHUNK, CUDA_CHUNK
        self.filter_size = (filter_order + 1) ** 2
        self.in_size = (in_order + 1) ** 2
        self.out_size = (out_order + 1) ** 2
        paths = coupling_paths(filter_order, in_order, out_order, parity)
        norms = [1 / math.sqrt(sum(1 for path in paths if path[2] == o) * n_units * n_neighbours) for _, _, o in paths]
        # scalars and vectors alone need no tensors, see _vectors; any other orders take the general product
        self.only_vectors = in_order == 1 and out_order == 1 and parity == "O3"
        make = vector_products if self.only_vectors else tensor_products
        self.inputs, combine, couplings = make(paths, norms, self.filter_size, self.out_size)
        self.register_buffer("combine", combine, persistent=False)  # float64, so that .double() is exact
        self.register_buffer("couplings", couplings, persistent=False)
        self.radial = RadialNetwork(n_basis, n_units)
        self.weights = nn.Parameter(torch.randn(len(paths), n_units, n_channels))
        self._kernel = kernels.Convolution(
            paths, coupling_numbers(paths), n_channels, filter_order, in_order, out_order
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
            if pairs.compiled:
                return self._compiled(features, pairs)
        return self._plain(features, pairs)

    def _plain(self, features: Tensor, pairs: Pairs) -> Tensor:
        n_out, n_neighbours = pairs.indices.shape
        n_channels = self.n_channels
        if n_out == 0:
            return features.new_zeros(0, self.out_size, n_channels)
        # (units, columns): what makes the weights of each pair, one column for each product and channel
        mixing = torch.einsum("qp,phc->hqc", self.combine.to(self.weights.dtype), self.weights).reshape(
            self.n_units, -1
        )
        units = self.radial(pairs.basis, pairs.envelope).transpose(1, 2)  # of each pair, or of a table's nodes
        table = torch.matmul(units[0], mixing) if pairs.tabulated else mixing
        flat = features.reshape(features.shape[0], self.in_size * n_channels)
        results: List[Tensor] = []
        for start, stop in chunks(n_out, False, self.cuda_chunk if features.is_cuda else self.chunk):
            size = stop - start
            seen = flat.index_select(0, pairs.indices[start:stop].reshape(-1))
            seen = seen.view(size, n_neighbours, self.in_size, n_channels)
            if pairs.tabulated:
                radial = look_up(table, pairs.nodes[start:stop], pairs.shares[start:stop])
            else:
                radial = torch.matmul(units[start:stop], mixing)
            radial = radial.view(size, n_neighbours, -1, n_channels)
            harmonics = pairs.harmonics[start:stop, : self.filter_size]
            if self.only_vectors:
                results.append(self._vectors(radial, seen, harmonics))
            else:
                results.append(self._tensors(radial, seen, harmonics))
        return torch.cat(results)

    def _tensors(self, radial: Tensor, seen: Tensor, harmonics: Tensor) -> Tensor:
        """Return the sum over neighbours (n, out_size, C), any orders.

        Parameters
        ----------
        radial
            (n, K, products, C), the weights of each pair.
        seen
            (n, K, in_size, C), the neighbours' features.
        harmonics
            (n, filter_size, K).
        """
        size, n_channels = radial.shape[0], radial.shape[3]
        by_pair = harmonics.transpose(1, 2).reshape(-1, self.filter_size)
        widths = [(last - first) * (2 * i + 1) * self.out_size for i, first, last in self.inputs]
        couplings = self.couplings.to(harmonics.dtype).split_with_sizes(widths, dim=1)
        total = harmonics.new_zeros(0)
        for index, (i, first, last) in enumerate(self.inputs):
            angular = torch.mm(by_pair, couplings[index]).view(size, -1, self.out_size).transpose(1, 2)
            weighted = radial[:, :, first:last, None] * seen[:, :, None, i * i : (i + 1) * (i + 1)]
            weighted = weighted.view(size, -1, n_channels)  # (n, K * paths * (2 i + 1), C)
            total = torch.bmm(angular, weighted) if index == 0 else torch.baddbmm(total, angular, weighted)
        return total

    def _vectors(self, radial: Tensor, seen: Tensor, harmonics: Tensor) -> Tensor:
        """Return the same for scalars and vectors alone, by inner products with the direction."""
        scalars, vectors = seen[:, :, 0], seen[:, :, 1:]
        inner = vectors[:, :, 0] * harmonics[:, 1, :, None]
        inner = torch.addcmul(inner, vectors[:, :, 1], harmonics[:, 2, :, None])
        inner = torch.addcmul(inner, vectors[:, :, 2], harmonics[:, 3, :, None])
        into_scalars = torch.addcmul(radial[:, :, 0] * scalars, radial[:, :, 1], inner)
        along = radial[:, :, 2] * scalars
        if self.filter_size > 4:
            along = torch.addcmul(along, radial[:, :, 4], inner)
        kept = (radial[:, :, 3:4] * vectors).sum(1)
        into_vectors = torch.baddbmm(kept, harmonics[:, 1:4], along)
        return torch.cat([into_scalars.sum(1, keepdim=True), into_vectors], dim=1)

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
        self._kernel = kernels.Convolution(paths, coupling_numbers(paths), n_channels, 1, 0, 1, kinds=True)
        self._radial_table = RadialTable()
        self.register_buffer("columns", torch.tensor(self._kernel.order), persistent=False)

    def forward(self, one_hot: Tensor, kinds: Tensor, pairs: Pairs) -> Tensor:
        """Return (n, 4, C) for the n rows of the pairs.

        Parameters
        ----------
        one_hot
            (n_in, Z), of every atom that a row names.
        kinds
            (n_in,) int32, where its 1 stands.
        pairs
            With harmonics up to at least order 1 in the plain form.
        """
        if not torch.jit.is_scripting():
            if pairs.compiled:
                return self._compiled(kinds, pairs)
        return self._plain(one_hot, kinds, pairs)

    def _plain(self, one_hot: Tensor, kinds: Tensor, pairs: Pairs) -> Tensor:
        n_out, n_neighbours = pairs.indices.shape
        if pairs.tabulated:
            table = self._table(pairs)
            n_nodes = table.shape[1]
            first = kinds.index_select(0, pairs.indices.reshape(-1)).view(n_out, n_neighbours, 1) * n_nodes
            nodes = (pairs.nodes + first).view(n_out, 4 * n_neighbours)
            components: List[Tensor] = []
            for component in range(4):
                order = min(component, 1)
                shares = (pairs.shares * pairs.harmonics[:, component, :, None]).view(n_out, 4 * n_neighbours)
                components.append(look_up(table[..., order, :].reshape(-1, self.n_channels), nodes, shares))
            return torch.stack(components, dim=1) + nn.functional.pad(self.mix.bias[None], [0, 0, 0, 3])
        units = self.radial(pairs.basis, pairs.envelope) * self.scale
        filters = (units[:, None, :, :] * pairs.harmonics[:, :4, None, :]).view(n_out, -1, n_neighbours)
        seen = one_hot.index_select(0, pairs.indices.reshape(-1)).view(n_out, n_neighbours, self.n_elements)
        return self.mix(torch.bmm(filters, seen).view(n_out, 4, self.n_units * self.n_elements))

    def _table(self, pairs: Pairs) -> Tensor:
        """Return the radial weights (Z, nodes, 2, C) of each element, order and channel at a table's nodes."""
        units = self.radial(pairs.basis, pairs.envelope)[0] * self.scale  # (units, nodes)
        weights = self.mix.weights.view(2, self.n_channels, self.n_units, self.n_elements).permute(3, 2, 0, 1)
        table = torch.matmul(units.transpose(0, 1), weights.reshape(self.n_elements, self.n_units, -1))
        return table.view(self.n_elements, -1, 2, self.n_channels)

    @torch.jit.unused
    def _compiled(self, kinds: Tensor, pairs: Pairs) -> Tensor:
        def make() -> Tensor:
            return self._table(pairs).flatten(2)[:, :, self.columns]

        table = self._radial_table.get(self, make)
        first = kernels.table_first(pairs.cutoff)
        summed = self._kernel(None, table, pairs.indices, pairs.vectors, pairs.mask, first, kinds)
        return summed + nn.functional.pad(self.mix.bias[None], [0, 0, 0, 3])
