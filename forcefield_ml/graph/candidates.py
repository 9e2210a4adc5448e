"""Candidates: all pairs that may become neighbours before some atom has moved far, row by row, compactly stored."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from forcefield_ml.graph.search import find_pairs

MORTON_CELL = 0.25
"""nm, edge of the cells along which atoms are put in order."""


class Candidates(NamedTuple):
    """Pairs (row, partner, periodic image), sorted by row.

    Attributes
    ----------
    starts
        (n_rows + 1,) int64, where each row's pairs begin and end.
    partners
        (E,) int32, the other atom.
    images
        (E,) uint8, row of `shifts` to add to the partner's position.
    shifts
        (27, 3) float64 nm, all sums of -1, 0 or 1 times each box vector.
    """

    starts: Tensor
    partners: Tensor
    images: Tensor
    shifts: Tensor


def wrapping_offsets(positions: Tensor, box: Tensor | None) -> Tensor:
    """Return what moves each atom into the box by whole box vectors, (N, 3) nm; zeros where there is no box."""
    if box is None:
        return torch.zeros_like(positions)
    return -torch.floor(positions @ torch.linalg.inv(box)) @ box


def spatial_order(positions: Tensor) -> Tensor:
    """Return the atoms (N,) int64 along a Morton curve, so that neighbours in space are near in memory."""
    cells = ((positions - positions.min(0).values) / MORTON_CELL).clamp(max=2**20 - 1).long()
    for step, kept in (
        (32, 0x001F00000000FFFF),
        (16, 0x001F0000FF0000FF),
        (8, 0x100F00F00F00F00F),
        (4, 0x10C30C30C30C30C3),
        (2, 0x1249249249249249),
    ):
        cells = (cells | cells << step) & kept  # in the end two zeros follow each bit
    return torch.argsort(cells[:, 0] | cells[:, 1] << 1 | cells[:, 2] << 2, stable=True)


def image_shifts(box: Tensor | None, device: torch.device) -> Tensor:
    """Return the shifts (27, 3) nm of `Candidates`; zeros where there is no box."""
    units = torch.arange(-1.0, 2.0, dtype=torch.float64, device=device)
    table = torch.cartesian_prod(units, units, units)
    return torch.zeros_like(table) if box is None else table @ box


def pair_rows(candidates: Candidates) -> Tensor:
    """Return the row of each pair, (E,) int64."""
    return torch.repeat_interleave(candidates.starts.diff(), output_size=len(candidates.partners))


def pair_vectors(centres: Tensor, x: Tensor, candidates: Candidates) -> Tensor:
    """Return x[partner] + shift - centres[row], (E, 3) float64 nm.

    Parameters
    ----------
    centres
        (at least n_rows, 3) float64 nm, of the rows' atoms.
    x
        (n, 3) float64 nm, of the atoms that partners name.
    candidates
        The pairs.
    """
    partners = x.index_select(0, candidates.partners)
    partners += candidates.shifts.index_select(0, candidates.images.int())
    return partners.sub_(centres.index_select(0, pair_rows(candidates)))


def keep_pairs(candidates: Candidates, kept: Tensor) -> Candidates:
    """Return the candidates for which `kept` (E,) bool is True."""
    before = torch.nn.functional.pad(kept.cumsum(0), [1, 0])
    return Candidates(before[candidates.starts], candidates.partners[kept], candidates.images[kept], candidates.shifts)


def take_rows(candidates: Candidates, rows: Tensor) -> Candidates:
    """Return these rows (m,) int64 alone, in this order."""
    counts = candidates.starts.diff()[rows]
    starts = torch.nn.functional.pad(counts.cumsum(0), [1, 0])
    pairs = torch.repeat_interleave(candidates.starts[rows] - starts[:-1], counts)
    pairs += torch.arange(len(pairs), device=rows.device)
    return Candidates(starts, candidates.partners[pairs], candidates.images[pairs], candidates.shifts)


def join_rows(blocks: list[Candidates], order: Tensor, n_atoms: int) -> Candidates:
    """Return blocks of rows as one, with partners counted along an order.

    Parameters
    ----------
    blocks
        One after the other; partners count all atoms.
    order
        (n,) int64, the atoms; all partners are among them.
    n_atoms
        N.
    """
    place = torch.zeros(n_atoms, dtype=torch.int32, device=order.device)
    place[order] = torch.arange(len(order), dtype=torch.int32, device=order.device)
    counts = torch.cat([block.starts.diff() for block in blocks])
    partners = torch.cat([block.partners for block in blocks])
    images = torch.cat([block.images for block in blocks])
    starts = torch.nn.functional.pad(counts.cumsum(0), [1, 0])
    return Candidates(starts, place.index_select(0, partners), images, blocks[0].shifts)


class PlainSearch:
    """Find candidates of some rows by vesin: it searches all atoms at once, which is kept for rows asked for later.

    Parameters
    ----------
    x
        (N, 3) float64 nm, inside the box where there is one: then no shift is larger than one box vector.
    box
        (3, 3) float64 nm, vectors as rows, or None.
    """

    def __init__(self, x: Tensor, box: Tensor | None):
        self._x, self._box = x, box
        self._found: Candidates | None = None
        self._radius = 0.0

    def __call__(self, rows: Tensor, radii: Tensor) -> Candidates:
        """Return all pairs of these rows that are nearer than the row's radius; partners count all atoms.

        Parameters
        ----------
        rows
            (m,) int64, at least one atom.
        radii
            (m,) float64 nm, at most half the box's smallest height.
        """
        x, radius = self._x, float(radii.max())
        if self._found is None or radius > self._radius:
            pairs, shifts = find_pairs(x, self._box, radius, "PS")
            starts = torch.searchsorted(pairs[:, 0].contiguous(), torch.arange(len(x) + 1, device=x.device))
            steps = torch.tensor([9, 3, 1], dtype=torch.int32, device=x.device)
            images = ((shifts * steps).sum(1, dtype=torch.int32) + 13).to(torch.uint8)
            self._found = Candidates(starts, pairs[:, 1].int(), images, image_shifts(self._box, x.device))
            self._radius = radius
        found = take_rows(self._found, rows)
        if bool((radii == self._radius).all()):
            return found
        distances = pair_vectors(x[rows], x, found).square_().sum(1)
        return keep_pairs(found, distances < radii.square()[pair_rows(found)])
