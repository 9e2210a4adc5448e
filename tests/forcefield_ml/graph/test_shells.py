"""Shells and batches change nothing but the cost."""

from __future__ import annotations

import torch

from forcefield_ml.graph import NeighbourSearch, concatenate, shells
from forcefield_ml.testing import random_liquid


def test_shells_hold_exactly_what_is_needed() -> None:
    """Layer sizes are the sizes of the sets grown by hand, and targets come first in ascending order."""
    _, positions, box = random_liquid(500, seed=1)
    neighbours = NeighbourSearch("cutoff", cutoff=0.25)(positions, box)
    targets = torch.zeros(500, dtype=torch.bool)
    targets[[17, 3, 250]] = True
    order, reduced, sizes = shells(neighbours, targets, 3)
    needed = [{3, 17, 250}]
    for _ in range(3):
        grown = set(needed[-1])
        for i in needed[-1]:
            grown |= set(neighbours.indices[i][neighbours.mask[i]].tolist())
        needed.append(grown)
    assert sizes == [len(needed[2]), len(needed[1]), len(needed[0])]
    assert order[:3].tolist() == [3, 17, 250]
    assert set(order.tolist()) == needed[3] and len(order) < 500
    for row, atom in enumerate(order[: sizes[0]].tolist()):
        assert torch.equal(
            order[reduced.indices[row][reduced.mask[row]]], neighbours.indices[atom][neighbours.mask[atom]]
        )


def test_concatenation_keeps_systems_apart() -> None:
    """Rows of the second system name atoms of the second system only, with the vectors they had."""
    search = NeighbourSearch("cutoff", cutoff=0.3)
    _, first, _ = random_liquid(40, seed=1)
    _, second, _ = random_liquid(70, seed=2)
    a, b = search(first, None), search(second, None)
    both = concatenate([a, b])
    assert both.indices.shape[0] == 110
    assert int(both.indices[:40][both.mask[:40]].max()) < 40 <= int(both.indices[40:][both.mask[40:]].min())
    assert torch.equal(both.vectors[40:][both.mask[40:]], b.vectors[b.mask])
    assert torch.equal(both.indices[40:][both.mask[40:]] - 40, b.indices[b.mask])
