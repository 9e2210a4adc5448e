"""Small systems with known answers, for tests of models, searches and forces."""

from __future__ import annotations

import torch
from torch import Tensor

from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix


def random_liquid(
    n_atoms: int,
    seed: int = 0,
    elements: tuple[int, ...] = (1, 6, 7, 8, 16),
    spacing: float = 0.22,
    box_height: float | None = None,
    triclinic: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return species, positions and box of jittered atoms on a grid: no two closer than about half the spacing.

    Parameters
    ----------
    n_atoms
        Atoms; grid places beyond this number stay empty.
    seed
        Of the generator.
    elements
        Atomic numbers to draw from.
    spacing
        nm between grid points, when no box is given.
    box_height
        nm; smallest edge of the box, when the spacing is to follow from it.
    triclinic
        Tilt the box as OpenMM's reduced form allows.
    dtype
        Of positions and box.

    Returns
    -------
    species : Tensor
        (N,) int64.
    positions : Tensor
        (N, 3) nm.
    box : Tensor
        (3, 3) nm, vectors as rows.
    """
    generator = torch.Generator().manual_seed(seed)
    side = 1
    while side**3 < n_atoms:
        side += 1
    edge = box_height if box_height is not None else side * spacing
    box = torch.eye(3, dtype=dtype) * edge
    if triclinic:
        box[1, 0], box[2, 0], box[2, 1] = 0.3 * edge, -0.2 * edge, 0.25 * edge
    grid = torch.stack(torch.meshgrid(*[torch.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)[:n_atoms]
    jitter = 0.5 * (torch.rand(n_atoms, 3, generator=generator, dtype=dtype) - 0.5)
    positions = ((grid.to(dtype) + 0.5 + jitter) / side) @ box
    species = torch.tensor(elements)[torch.randint(len(elements), (n_atoms,), generator=generator)]
    return species, positions, box


def brute_force_pairs(positions: Tensor, box: Tensor | None, cutoff: float) -> list[set[tuple[int, int, int, int]]]:
    """Return for each atom the set of (j, shift_a, shift_b, shift_c) within the cutoff, by looking at every image.

    Parameters
    ----------
    positions
        (N, 3) nm.
    box
        (3, 3) nm or None.
    cutoff
        nm.
    """
    reach = range(-2, 3) if box is not None else range(1)
    found: list[set[tuple[int, int, int, int]]] = [set() for _ in range(len(positions))]
    for a in reach:
        for b in reach:
            for c in reach:
                shift = torch.zeros(3, dtype=positions.dtype)
                if box is not None:
                    shift = torch.tensor([a, b, c], dtype=positions.dtype) @ box
                distances = (positions[None, :, :] + shift - positions[:, None, :]).norm(dim=-1)
                for i, j in torch.nonzero(distances < cutoff).tolist():
                    if i != j or (a, b, c) != (0, 0, 0):
                        found[i].add((j, a, b, c))
    return found


def matrix_pairs(
    neighbours: NeighbourMatrix, positions: Tensor, box: Tensor | None
) -> list[set[tuple[int, int, int, int]]]:
    """Return a neighbour matrix in the form of `brute_force_pairs`, the shifts read off its vectors.

    Parameters
    ----------
    neighbours
        Of all N atoms.
    positions
        (N, 3) nm.
    box
        (3, 3) nm or None.
    """
    found: list[set[tuple[int, int, int, int]]] = []
    for i in range(neighbours.indices.shape[0]):
        row: set[tuple[int, int, int, int]] = set()
        for j, vector in zip(
            neighbours.indices[i][neighbours.mask[i]].tolist(), neighbours.vectors[i][neighbours.mask[i]], strict=True
        ):
            shift = [0, 0, 0]
            if box is not None:
                offset = vector - (positions[j] - positions[i])
                shift = torch.linalg.solve(box.T, offset).round().int().tolist()
            row.add((j, shift[0], shift[1], shift[2]))
        found.append(row)
    return found
