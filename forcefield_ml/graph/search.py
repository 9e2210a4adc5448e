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


def check_positions(positions: Tensor) -> None:
    """Refuse positions that nothing can be searched in.

    Parameters
    ----------
    positions
        (N, 3) nm.

    Raises
    ------
    ValueError
        If there are no atoms, or some position is not finite.
    """
    if positions.shape[0] == 0:
        raise ValueError("there are no atoms: positions have shape (0, 3)")
    if not bool(torch.isfinite(positions).all()):
        raise ValueError(
            "some positions are not finite (NaN or infinite): the simulation that made them has failed before"
        )


def largest_radius(positions: Tensor, box: Optional[Tensor]) -> float:
    """Return the radius in nm beyond which no search goes: half the smallest height of the box, else everything.

    Parameters
    ----------
    positions
        (N, 3) nm.
    box
        (3, 3) nm, vectors as rows, or None.

    Raises
    ------
    ValueError
        If the box spans no volume.
    """
    if box is not None:
        half = 0.5 * float(heights(box.detach().to(torch.float64)).min())
        if not half > 0.0:
            raise ValueError("the box vectors span no volume or are not finite; give three independent vectors in nm")
        return half
    extent = positions.detach().max(0).values - positions.detach().min(0).values
    return 1.001 * float(extent.norm()) + 1e-3


def check_cutoff(cutoff: float, largest: float) -> None:
    """Raise ValueError if a box whose `largest_radius` is given is lower than twice the cutoff, both in nm."""
    if largest < cutoff:
        raise ValueError(
            "the box is lower than twice the cutoff of " + str(cutoff) + " nm (its smallest height is "
            "" + str(2 * largest) + " nm): an atom would meet two images of one neighbour. Use a larger box"
        )


def refuse_too_few(n_neighbours: int, largest: float) -> None:
    """Raise ValueError: some atom has fewer than `n_neighbours` others within `largest` nm, half a box's height."""
    raise ValueError(
        "the box is too small for the nearest " + str(n_neighbours) + " neighbours: within half its smallest height, "
        "" + str(largest) + " nm, some atom has fewer. Use a larger box or more solvent"
    )


def first_radius(n_neighbours: int) -> float:
    """Return the radius in nm with which a search for the nearest K begins: 1.25 times theirs in a liquid."""
    return 1.25 * (0.75 * n_neighbours / (math.pi * LIQUID_DENSITY)) ** (1.0 / 3.0)


def find_pairs(positions: Tensor, box: Optional[Tensor], cutoff: float, quantities: str) -> List[Tensor]:
    """Return vesin's answer for all pairs within the cutoff, both ways, with i ascending.

    Parameters
    ----------
    positions
        (N, 3) nm; the vectors can be differentiated with respect to them.
    box
        (3, 3) nm, vectors as rows, or None.
    cutoff
        nm.
    quantities
        Of vesin: P pairs (E, 2) int64, S shifts (E, 3) int32, d distances (E,), D vectors r_j + shift - r_i (E, 3),
        both float64.
    """
    cell = torch.zeros(3, 3, dtype=torch.float64, device=positions.device)
    if box is not None:
        cell = box.detach().to(torch.float64)
    finder = torch.classes.vesin._NeighborList(cutoff, True, True, "auto", 0.0, 0)
    return finder.compute(positions.to(torch.float64), cell, torch.tensor(box is not None), quantities, True)


def row_places(i: Tensor, n_atoms: int, least: int) -> Tuple[Tensor, Tensor]:
    """Lay pairs sorted by i out in rows.

    Parameters
    ----------
    i
        (E,) int64, ascending.
    n_atoms
        N.
    least
        Of places in a row.

    Returns
    -------
    places : Tensor
        (N, M) int64, the pair in each place; E where there is none; M is the longest row, or `least`.
    mask : Tensor
        (N, M) bool, where there is a pair.
    """
    starts = torch.searchsorted(i, torch.arange(n_atoms + 1, device=i.device))
    counts = starts[1:] - starts[:-1]
    steps = torch.arange(max(int(counts.max()), least), device=i.device)
    mask = steps < counts[:, None]
    return torch.where(mask, starts[:-1, None] + steps, i.shape[0]), mask


def take(values: Tensor, places: Tensor) -> Tensor:
    """Return the rows of `values` (E, ...) in these places (N, M), as (N, M, ...); 0 where the place is E."""
    padded = nn.functional.pad(values, [0] * (2 * values.dim() - 1) + [1])  # one more row, of zeros
    taken = padded.index_select(0, places.reshape(-1))
    return taken.view(list(places.shape) + list(values.shape[1:]))


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
        self.first_radius = first_radius(n_neighbours)

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
        check_positions(positions)
        if self.kind == "nearest":
            return self._nearest(positions, box)
        if box is not None:
            check_cutoff(self.cutoff, largest_radius(positions, box))
        pairs, vectors = find_pairs(positions, box, self.cutoff, "PD")
        places, mask = row_places(pairs[:, 0].contiguous(), positions.shape[0], 1)
        return NeighbourMatrix(take(pairs[:, 1], places), take(vectors.to(positions.dtype), places), mask)

    def _nearest(self, positions: Tensor, box: Optional[Tensor]) -> NeighbourMatrix:
        n_atoms = positions.shape[0]
        wanted = min(self.n_neighbours, n_atoms - 1)
        largest = largest_radius(positions, box)
        radius = min(self.first_radius, largest)
        pairs, distances, vectors = find_pairs(positions, box, radius, "PdD")
        while radius < largest and int(torch.bincount(pairs[:, 0], minlength=n_atoms).min()) < wanted:
            radius = min(1.25 * radius, largest)
            pairs, distances, vectors = find_pairs(positions, box, radius, "PdD")
        places, mask = row_places(pairs[:, 0].contiguous(), n_atoms, self.n_neighbours)
        if int(mask.sum(1).min()) < wanted:
            refuse_too_few(self.n_neighbours, largest)
        infinite = torch.full([1], float("inf"), dtype=distances.dtype, device=distances.device)
        spread = torch.cat([distances.detach(), infinite]).index_select(0, places.reshape(-1)).view(places.shape)
        nearest = torch.topk(spread, self.n_neighbours, dim=1, largest=False).indices
        places = places.gather(1, nearest)
        return NeighbourMatrix(
            take(pairs[:, 1], places), take(vectors.to(positions.dtype), places), places < pairs.shape[0]
        )


def whole(n_atoms: int, n_layers: int) -> List[int]:
    """Return the ``layer_sizes`` of a whole system: every layer on every atom."""
    return [n_atoms] * n_layers
