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


def find_candidates(x: Tensor, box: Tensor | None, radii: Tensor) -> Candidates:
    """Return all pairs nearer than their row's radius.

    Parameters
    ----------
    x
        (N, 3) float64 nm, inside the box where there is one: then no shift is larger than one box vector.
    box
        (3, 3) float64 nm, vectors as rows, or None.
    radii
        (N,) float64 nm, at most half the box's smallest height.
    """
    pairs, shifts = find_pairs(x, box, float(radii.max()), "PS")
    starts = torch.searchsorted(pairs[:, 0].contiguous(), torch.arange(len(x) + 1, device=x.device))
    steps = torch.tensor([9, 3, 1], dtype=torch.int32, device=x.device)
    images = ((shifts * steps).sum(1, dtype=torch.int32) + 13).to(torch.uint8)
    found = Candidates(starts, pairs[:, 1].int(), images, image_shifts(box, x.device))
    if bool((radii == radii[0]).all()):
        return found
    return keep_pairs(found, pair_vectors(x, found).square_().sum(1) < radii.square()[pair_rows(found)])


def pair_rows(candidates: Candidates) -> Tensor:
    """Return the row of each pair, (E,) int64."""
    counts = candidates.starts.diff()
    return torch.repeat_interleave(counts, output_size=len(candidates.partners))


def pair_vectors(x: Tensor, candidates: Candidates) -> Tensor:
    """Return x[partner] + shift - x[row], (E, 3) float64 nm.

    Parameters
    ----------
    x
        (n, 3) float64 nm.
    candidates
        Of the first rows of x.
    """
    partners = x.index_select(0, candidates.partners)
    partners += candidates.shifts.index_select(0, candidates.images.int())
    return partners.sub_(x.index_select(0, pair_rows(candidates)))


def keep_pairs(candidates: Candidates, kept: Tensor) -> Candidates:
    """Return the candidates for which `kept` (E,) bool is True."""
    before = torch.nn.functional.pad(kept.cumsum(0), [1, 0])
    return Candidates(before[candidates.starts], candidates.partners[kept], candidates.images[kept], candidates.shifts)


def hops_from(candidates: Candidates, targets: Tensor, n_layers: int) -> Tensor:
    """Return each atom's number of hops from a target along candidates, (N,) int64; n_layers + 1 for all beyond.

    Parameters
    ----------
    candidates
        With a row for each of the N atoms.
    targets
        (N,) bool.
    n_layers
        Message passing layers of the model.
    """
    hops = torch.where(targets, 0, n_layers + 1)
    rows = pair_rows(candidates)
    for hop in range(1, n_layers + 1):
        seen = candidates.partners[hops[rows] == hop - 1].long()
        hops[seen] = hops[seen].clamp(max=hop)
    return hops


def select_rows(candidates: Candidates, order: Tensor, n_rows: int) -> Candidates:
    """Return the rows of the first atoms in an order, with partners counted along that order.

    Parameters
    ----------
    candidates
        With a row for each of the N atoms.
    order
        (n,) int64, atoms; every partner of the first `n_rows` is among them.
    n_rows
        Rows to keep.
    """
    place = torch.zeros(len(candidates.starts) - 1, dtype=torch.int32, device=order.device)
    place[order] = torch.arange(len(order), dtype=torch.int32, device=order.device)
    rows = order[:n_rows]
    counts = candidates.starts.diff()[rows]
    starts = torch.nn.functional.pad(counts.cumsum(0), [1, 0])
    pairs = torch.repeat_interleave(candidates.starts[rows] - starts[:-1], counts)
    pairs += torch.arange(len(pairs), device=order.device)
    return Candidates(starts, place[candidates.partners[pairs].long()], candidates.images[pairs], candidates.shifts)
