"""What every layer needs of the pairs: radial basis, cutoff envelope, harmonics; or only where to look them up."""

from functools import partial
from typing import ClassVar, List, NamedTuple, Tuple

import torch
from torch import Tensor, nn

from forcefield_ml import kernels
from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.nn.radial import ExponentialNormalBasis, cosine_envelope
from forcefield_ml.nn.spherical import spherical_harmonics


class Pairs(NamedTuple):
    """Geometry of the leading n rows of a neighbour matrix.

    In the exact form `basis`, `envelope` and `harmonics` hold a value for each pair. In the tabulated form basis and
    envelope are those of a table's nodes, one row of `kernels.N_NODES`, and each pair has its rows of the table and
    their shares. The compiled kernels find these, and the harmonics, from the vectors.

    Attributes
    ----------
    indices, vectors, mask
        (n, K), (n, K, 3) nm, (n, K), of the neighbour matrix.
    basis
        (n, n_basis, K), or (1, n_basis, nodes).
    envelope
        (n, K), or (1, nodes): 1 for a neighbour, 0 for an empty place; falling smoothly to 0 at the cutoff if the
        graph has one.
    harmonics
        (n, (order + 1)², K); empty in the compiled form.
    nodes, shares
        (n, K, 4) int32 and (n, K, 4): rows of a table and what each counts, cubic interpolation; 0 for an empty place.
        Both empty in the exact and the compiled form.
    cutoff
        nm; 0 for a nearest-K graph.
    tabulated
        Whether basis and envelope are those of a table's nodes.
    compiled
        Whether compiled kernels are to serve; tabulated too.
    """

    indices: Tensor
    vectors: Tensor
    mask: Tensor
    basis: Tensor
    envelope: Tensor
    harmonics: Tensor
    nodes: Tensor
    shares: Tensor
    cutoff: float
    tabulated: bool
    compiled: bool


def rows(pairs: Pairs, start: int, stop: int) -> Pairs:
    """Return the rows from `start` up to, not including, `stop`."""
    if start == 0 and stop == pairs.indices.shape[0]:
        return pairs
    basis, envelope, harmonics, nodes, shares = pairs.basis, pairs.envelope, pairs.harmonics, pairs.nodes, pairs.shares
    if not pairs.tabulated:
        basis, envelope = basis[start:stop], envelope[start:stop]
    if not pairs.compiled:
        harmonics, nodes, shares = harmonics[start:stop], nodes[start:stop], shares[start:stop]
    return Pairs(
        pairs.indices[start:stop],
        pairs.vectors[start:stop],
        pairs.mask[start:stop],
        basis,
        envelope,
        harmonics,
        nodes,
        shares,
        pairs.cutoff,
        pairs.tabulated,
        pairs.compiled,
    )


CHUNK = 1024
"""Atoms that a layer works on at a time: what is computed in between stays in the processor's cache."""


def chunks(n_rows: int, training: bool, size: int = CHUNK) -> List[Tuple[int, int]]:
    """Return first and last row of each chunk, all about equal; while training one chunk, whose statistics count."""
    n_chunks = 1 if training else max(1, (n_rows + size // 2) // size)
    bounds: List[Tuple[int, int]] = []
    for chunk in range(n_chunks):
        bounds.append((n_rows * chunk // n_chunks, n_rows * (chunk + 1) // n_chunks))
    return bounds


class PairGeometry(nn.Module):
    """From a neighbour matrix to `Pairs`; decides which form the whole network runs in.

    Parameters
    ----------
    n_basis
        Radial functions.
    r_max
        nm, where their resolution ends.
    cutoff
        nm; 0 for a nearest-K graph, which has no smooth edge.
    order
        Largest order of the harmonics.
    needed
        Kernels that the network runs in the compiled form; where one of them cannot be had, the plain form serves.
    """

    __jit_ignored_attributes__: ClassVar[List[str]] = ["_needed"]
    table_basis: Tensor
    table_envelope: Tensor

    def __init__(
        self,
        n_basis: int,
        r_max: float,
        cutoff: float,
        order: int,
        needed: Tuple[kernels.Convolution, ...] = (),
    ):
        super().__init__()
        self._needed = needed
        self.basis = ExponentialNormalBasis(n_basis, r_max)
        self.cutoff = cutoff
        self.order = order
        self.table_first, self.table_scale = kernels.table_first(cutoff), kernels.TABLE_SCALE
        distances = kernels.table_distances(cutoff)[None]
        envelope = torch.ones_like(distances) if cutoff == 0 else cosine_envelope(distances, cutoff)
        self.register_buffer("table_basis", self.basis(distances), persistent=False)
        self.register_buffer("table_envelope", envelope, persistent=False)

    def forward(self, neighbours: NeighbourMatrix) -> Pairs:
        """Return the geometry of all rows."""
        vectors, mask = neighbours.vectors, neighbours.mask
        none = vectors.new_zeros(0)
        if not torch.jit.is_scripting():
            if self._compiled_serve(neighbours):
                basis, envelope = self.table_basis, self.table_envelope
                return Pairs(*neighbours, basis, envelope, none, none, none, self.cutoff, True, True)
        squared = torch.where(mask, vectors.square().sum(-1), torch.ones_like(vectors[:, :, 0]))
        distances = squared.sqrt()
        harmonics = spherical_harmonics(vectors / distances[:, :, None], self.order)
        # without gradients, in single precision, on the CPU: Gaussians and networks of each pair would take longer
        tabulated = not torch.is_grad_enabled() and vectors.dtype == torch.float32 and not vectors.is_cuda
        if tabulated:
            nodes, shares = self._interpolation(squared, mask)
            basis, envelope = self.table_basis, self.table_envelope
        else:
            nodes, shares = none[:, None], none[:, None]
            basis, envelope = self.basis(distances), mask.to(distances.dtype)
            if self.cutoff > 0.0:
                envelope = envelope * cosine_envelope(distances, self.cutoff)
        return Pairs(
            neighbours.indices,
            vectors,
            mask,
            basis,
            envelope,
            harmonics,
            nodes,
            shares,
            self.cutoff,
            tabulated,
            False,
        )

    @torch.jit.unused
    def _compiled_serve(self, neighbours: NeighbourMatrix) -> bool:
        places = neighbours.indices.shape[1]
        loads = [partial(kernel.library, places) for kernel in self._needed]
        if neighbours.vectors.requires_grad:
            loads.extend(partial(kernel.slope_library, places) for kernel in self._needed)
        return places <= kernels.MAX_PLACES and kernels.serves(neighbours.vectors, *loads)

    def _interpolation(self, squared: Tensor, mask: Tensor) -> Tuple[Tensor, Tensor]:
        """Return rows of a table and their shares, (n, K, 4) both, for squared distances; Lagrange's polynomials."""
        n_nodes = self.table_basis.shape[2]
        place = (self.table_scale / (self.table_scale + squared) - self.table_first) * (
            (n_nodes - 1) / (1.0 - self.table_first)
        )
        place = place.clamp(min=0.0)
        first = (place.to(torch.int32) - 1).clamp(min=0, max=n_nodes - 4)  # clamped as an integer: place may be NaN
        t = place - first
        one, two, three = t - 1.0, t - 2.0, t - 3.0
        low, high = t * one * mask, two * three * mask
        shares = torch.stack([one * high / -6.0, t * high / 2.0, low * three / -2.0, low * two / 6.0], dim=2)
        return first[:, :, None] + torch.arange(4, dtype=torch.int32, device=first.device), shares
