"""Positions and box -> NeighbourMatrix, in O(N) by vesin. Compiles to TorchScript."""

import math
from typing import List, Optional, Tuple

import torch
import vesin_torch  # noqa: F401  registers torch.classes.vesin, also for scripted models loaded later
from torch import Tensor, nn

from forcefield_ml.graph.box import heights
from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix

LIQUID_DENSITY = 100.0
"""Atoms per nm³ in water and proteins: sets the radius with which the search for the nearest K begins."""


def _pairs(positions: Tensor, box: Optional[Tensor], cutoff: float) -> Tuple[Tensor, Tensor, Tensor]:
    """Return all pairs within the cutoff: i (E,) ascending, j (E,), and shift vectors (E, 3) in nm."""
    periodic = box is not None
    cell = torch.zeros(3, 3, dtype=torch.float64, device=positions.device)
    if box is not None:
        cell = box.detach().to(torch.float64)
    finder = torch.classes.vesin._NeighborList(cutoff, True, True, "auto", 0.0, 0)
    pairs, shifts = finder.compute(positions.detach().to(torch.float64), cell, torch.tensor(periodic), "PS", True)
    offsets = torch.zeros(pairs.shape[0], 3, dtype=positions.dtype, device=positions.device)
    if box is not None:
        offsets = shifts.to(positions.dtype) @ box.to(positions.dtype)
    return pairs[:, 0], pairs[:, 1], offsets


def _pack(i: Tensor, j: Tensor, offsets: Tensor, n_atoms: int) -> Tuple[Tensor, Tensor, Tensor]:
    """Spread pairs sorted by i over rows: indices (N, M), offsets (N, M, 3), mask (N, M), M the longest row."""
    counts = torch.bincount(i, minlength=n_atoms)
    width = max(int(counts.max()), 1)
    starts = torch.cumsum(counts, 0) - counts
    place = i * width + torch.arange(i.shape[0], device=i.device) - starts[i]
    indices = torch.zeros(n_atoms * width, dtype=torch.int64, device=i.device)
    indices[place] = j
    mask = torch.zeros(n_atoms * width, dtype=torch.bool, device=i.device)
    mask[place] = True
    spread = torch.zeros(n_atoms * width, 3, dtype=offsets.dtype, device=i.device)
    spread[place] = offsets
    return indices.view(n_atoms, width), spread.view(n_atoms, width, 3), mask.view(n_atoms, width)


def _vectors(positions: Tensor, indices: Tensor, offsets: Tensor, mask: Tensor) -> Tensor:
    """Return r_j + shift - r_i (N, K, 3), zero where there is no neighbour; differentiable in the positions."""
    n_atoms, width = indices.shape
    neighbours = positions.index_select(0, indices.reshape(-1)).view(n_atoms, width, 3)
    return (neighbours + offsets - positions[:, None, :]) * mask[:, :, None].to(positions.dtype)


def _half_height(box: Tensor) -> float:
    """Return half the smallest distance between opposite faces of the box, nm."""
    return 0.5 * float(heights(box.detach().to(torch.float64)).min())


class NeighbourSearch(nn.Module):
    """Find each atom's neighbours.

    Parameters
    ----------
    kind
        ``"nearest"``: the `n_neighbours` nearest atoms, however far (the paper); ``"cutoff"``: all atoms within
        `cutoff`.
    n_neighbours
        K of a nearest search.
    cutoff
        nm, of a cutoff search.

    Raises
    ------
    ValueError
        When called with positions that are not finite, or with a box lower than twice the radius that is needed.
    """

    def __init__(self, kind: str, n_neighbours: int = 0, cutoff: float = 0.0):
        super().__init__()
        if kind not in ("nearest", "cutoff"):
            raise ValueError(f"kind of neighbours {kind!r}; allowed: 'nearest', 'cutoff'")
        if kind == "nearest" and n_neighbours < 1:
            raise ValueError(f"a nearest search needs n_neighbours of at least 1, got {n_neighbours}")
        if kind == "cutoff" and not cutoff > 0:
            raise ValueError(f"a cutoff search needs a cutoff above 0 nm, got {cutoff}")
        self.kind = kind
        self.n_neighbours = n_neighbours
        self.cutoff = cutoff
        self.first_radius = 1.25 * (0.75 * n_neighbours / (math.pi * LIQUID_DENSITY)) ** (1.0 / 3.0)

    def forward(self, positions: Tensor, box: Optional[Tensor] = None) -> NeighbourMatrix:
        """Return the neighbour matrix.

        Parameters
        ----------
        positions
            (N, 3) nm; need not lie inside the box.
        box
            (3, 3) nm, vectors as rows; None where there is no periodicity.

        Returns
        -------
        NeighbourMatrix
            K is `n_neighbours` for a nearest search, the longest row for a cutoff search (at least 1).
        """
        if positions.shape[0] == 0:
            raise ValueError("there are no atoms: positions have shape (0, 3)")
        if not bool(torch.isfinite(positions).all()):
            raise ValueError(
                "some positions are not finite (NaN or infinite): the simulation that made them has failed before"
            )
        if self.kind == "nearest":
            return self._nearest(positions, box)
        if box is not None and _half_height(box) < self.cutoff:
            raise ValueError("the box is lower than twice the cutoff of " + str(self.cutoff) + " nm; use a larger box")
        i, j, offsets = _pairs(positions, box, self.cutoff)
        indices, offsets, mask = _pack(i, j, offsets, positions.shape[0])
        return NeighbourMatrix(indices, _vectors(positions, indices, offsets, mask), mask)

    def _nearest(self, positions: Tensor, box: Optional[Tensor]) -> NeighbourMatrix:
        n_atoms = positions.shape[0]
        wanted = min(self.n_neighbours, n_atoms - 1)
        limit = 0.0
        if box is not None:
            limit = _half_height(box)
        else:
            extent = positions.detach().max(0).values - positions.detach().min(0).values
            limit = 1.001 * float(extent.norm()) + 1e-3  # everything is within this
        radius = min(self.first_radius, limit)
        i, j, offsets = _pairs(positions, box, radius)
        while radius < limit and int(torch.bincount(i, minlength=n_atoms).min()) < wanted:
            radius = min(1.25 * radius, limit)
            i, j, offsets = _pairs(positions, box, radius)
        if box is not None:
            if int(torch.bincount(i, minlength=n_atoms).min()) < wanted:
                raise ValueError(
                    "the box is too small for the nearest " + str(self.n_neighbours) + " neighbours: within half its "
                    "smallest height, " + str(limit) + " nm, some atom has fewer. Use a larger box or more solvent"
                )
        indices, offsets, mask = _pack(i, j, offsets, n_atoms)
        vectors = _vectors(positions, indices, offsets, mask)
        distances = vectors.detach().square().sum(-1).masked_fill(~mask, float("inf"))
        if distances.shape[1] < self.n_neighbours:  # pad, so that K is always the same
            missing = self.n_neighbours - distances.shape[1]
            distances = nn.functional.pad(distances, [0, missing], value=float("inf"))
            indices = nn.functional.pad(indices, [0, missing])
            mask = nn.functional.pad(mask, [0, missing])
            vectors = nn.functional.pad(vectors, [0, 0, 0, missing])
        nearest = torch.topk(distances, self.n_neighbours, dim=1, largest=False).indices
        return NeighbourMatrix(
            indices.gather(1, nearest),
            vectors.gather(1, nearest[:, :, None].expand(-1, -1, 3)),
            mask.gather(1, nearest),
        )


def whole(n_atoms: int, n_layers: int) -> List[int]:
    """Return the ``layer_sizes`` of a whole system: every layer on every atom."""
    return [n_atoms] * n_layers
