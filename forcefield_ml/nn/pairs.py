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

    In the plain form `basis`, `envelope` and `harmonics` hold a value for each pair. In the tabulated form the
    compiled kernels work from the vectors: basis and envelope are those of a table's nodes, one row of
    `kernels.N_NODES`, and there are no harmonics.

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
        (n, (order + 1)², K), or empty.
    cutoff
        nm; 0 for a nearest-K graph.
    tabulated
        Which form this is.
    """

    indices: Tensor
    vectors: Tensor
    mask: Tensor
    basis: Tensor
    envelope: Tensor
    harmonics: Tensor
    cutoff: float
    tabulated: bool


def rows(pairs: Pairs, start: int, stop: int) -> Pairs:
    """Return the rows from `start` up to, not including, `stop`."""
    if start == 0 and stop == pairs.indices.shape[0]:
        return pairs
    indices, vectors, mask = pairs.indices[start:stop], pairs.vectors[start:stop], pairs.mask[start:stop]
    if pairs.tabulated:
        return Pairs(indices, vectors, mask, pairs.basis, pairs.envelope, pairs.harmonics, pairs.cutoff, True)
    return Pairs(
        indices,
        vectors,
        mask,
        pairs.basis[start:stop],
        pairs.envelope[start:stop],
        pairs.harmonics[start:stop],
        pairs.cutoff,
        False,
    )


CHUNK = 1024
"""Atoms that a layer works on at a time: what is computed in between stays in the processor's cache."""


def chunks(n_rows: int, training: bool, size: int = CHUNK) -> List[Tuple[int, int]]:
    """Return first and last row of each chunk; while training one for all rows, whose statistics count together."""
    if training or n_rows <= size:
        return [(0, n_rows)]
    bounds: List[Tuple[int, int]] = []
    for start in range(0, n_rows, size):
        bounds.append((start, min(start + size, n_rows)))
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
        distances = kernels.table_distances(cutoff)[None]
        envelope = torch.ones_like(distances) if cutoff == 0 else cosine_envelope(distances, cutoff)
        self.register_buffer("table_basis", self.basis(distances), persistent=False)
        self.register_buffer("table_envelope", envelope, persistent=False)

    def forward(self, neighbours: NeighbourMatrix) -> Pairs:
        """Return the geometry of all rows."""
        if not torch.jit.is_scripting():
            if self._compiled_serve(neighbours):
                none = neighbours.vectors.new_zeros(0)
                return Pairs(*neighbours, self.table_basis, self.table_envelope, none, self.cutoff, True)
        squared = neighbours.vectors.square().sum(-1)
        distances = torch.where(neighbours.mask, squared, torch.ones_like(squared)).sqrt()
        envelope = neighbours.mask.to(distances.dtype)
        if self.cutoff > 0.0:
            envelope = envelope * cosine_envelope(distances, self.cutoff)
        directions = neighbours.vectors / distances[:, :, None]
        return Pairs(
            neighbours.indices,
            neighbours.vectors,
            neighbours.mask,
            self.basis(distances),
            envelope,
            spherical_harmonics(directions, self.order),
            self.cutoff,
            False,
        )

    @torch.jit.unused
    def _compiled_serve(self, neighbours: NeighbourMatrix) -> bool:
        places = neighbours.indices.shape[1]
        loads = [partial(kernel.library, places) for kernel in self._needed]
        return places <= kernels.MAX_PLACES and kernels.serves(neighbours.vectors, *loads)
