"""The neighbour search against looking at every pair and image."""

from __future__ import annotations

import math

import pytest
import torch

from forcefield_ml.errors import BoxError
from forcefield_ml.graph import NeighbourSearch, check_box, heights
from forcefield_ml.testing import brute_force_pairs, matrix_pairs, random_liquid


@pytest.mark.parametrize("scripted", [False, True])
@pytest.mark.parametrize("triclinic", [False, True])
@pytest.mark.parametrize("tight", [False, True])
def test_cutoff_neighbours_are_those_of_brute_force(scripted: bool, triclinic: bool, tight: bool) -> None:
    """Every pair and image within the cutoff, none beyond, in a box barely larger than twice the cutoff too."""
    _, positions, box = random_liquid(180, triclinic=triclinic, seed=1)
    cutoff = 0.4999 * float(heights(box).min()) if tight else 0.35
    positions = positions + 5 * box[0] - 3 * box[2]  # positions need not lie in the box
    search = NeighbourSearch("cutoff", cutoff=cutoff)
    found = (torch.jit.script(search) if scripted else search)(positions, box)
    assert matrix_pairs(found, positions, box) == brute_force_pairs(positions, box, cutoff)


def test_cutoff_neighbours_without_a_box() -> None:
    """No periodicity where no box is given."""
    _, positions, _ = random_liquid(150, seed=2)
    found = NeighbourSearch("cutoff", cutoff=0.4)(positions, None)
    assert matrix_pairs(found, positions, None) == brute_force_pairs(positions, None, 0.4)


@pytest.mark.parametrize("triclinic", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
def test_nearest_neighbours_are_the_nearest(triclinic: bool, periodic: bool) -> None:
    """The K found are the K smallest distances over all atoms and images."""
    _, positions, box = random_liquid(400, triclinic=triclinic, seed=3)
    cell = box if periodic else None
    found = NeighbourSearch("nearest", n_neighbours=24)(positions, cell)
    assert bool(found.mask.all())
    assert found.indices.shape == (400, 24)
    shifts = torch.tensor([[a, b, c] for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)]).double() @ box
    images = (positions[None] + shifts[:, None]).reshape(-1, 3) if periodic else positions
    distances = torch.cdist(positions, images).sort(dim=1).values[:, 1:25]
    assert torch.allclose(found.vectors.norm(dim=-1).sort(dim=1).values, distances, atol=1e-12)
    assert torch.allclose(
        (positions[found.indices] - positions[:, None] - found.vectors) @ torch.linalg.inv(box),
        ((positions[found.indices] - positions[:, None] - found.vectors) @ torch.linalg.inv(box)).round(),
        atol=1e-9,
    ), "vectors differ from position differences by other than box vectors"


def test_nearest_reaches_lonely_atoms() -> None:
    """An atom far from all others still gets its K nearest: the radius grows until it does."""
    _, positions, _ = random_liquid(100, seed=4)
    positions[0] += 7.0
    found = NeighbourSearch("nearest", n_neighbours=10)(positions, None)
    expected = (positions[1:] - positions[0]).norm(dim=1).sort().values[:10]
    assert torch.allclose(found.vectors[0].norm(dim=1).sort().values, expected)


@pytest.mark.parametrize("n_atoms", [1, 2, 5])
def test_fewer_atoms_than_neighbours(n_atoms: int) -> None:
    """Empty places are masked, with zero vectors and a valid index."""
    _, positions, _ = random_liquid(n_atoms, seed=5)
    found = NeighbourSearch("nearest", n_neighbours=8)(positions, None)
    assert found.indices.shape == (n_atoms, 8)
    assert bool((found.mask.sum(1) == n_atoms - 1).all())
    assert bool((found.vectors[~found.mask] == 0).all()) and bool((found.indices[~found.mask] == 0).all())


def test_vectors_carry_gradients() -> None:
    """d(sum of squared vectors)/dx equals the hand-made gradient, so Jacobians of models are right."""
    _, positions, box = random_liquid(60, seed=6)
    positions.requires_grad_()
    found = NeighbourSearch("cutoff", cutoff=0.3)(positions, box)
    found.vectors.square().sum().backward()
    assert torch.allclose(positions.grad, -4 * found.vectors.detach().sum(1), atol=1e-12)


def test_bad_input_is_refused() -> None:
    """NaN positions, no atoms, a box lower than twice the cutoff, and too few atoms within half the box."""
    _, positions, box = random_liquid(64, seed=7)
    search = NeighbourSearch("cutoff", cutoff=0.3)
    with pytest.raises(ValueError, match="not finite"):
        search(positions * math.nan, box)
    with pytest.raises(ValueError, match="no atoms"):
        search(positions[:0], box)
    with pytest.raises(ValueError, match="twice the cutoff"):
        NeighbourSearch("cutoff", cutoff=0.51 * float(heights(box).min()))(positions, box)
    with pytest.raises(ValueError, match="too small for the nearest"):
        NeighbourSearch("nearest", n_neighbours=60)(positions, box)
    with pytest.raises(ValueError, match="too small for the nearest"):  # fewer atoms than K, some out of reach
        NeighbourSearch("nearest", n_neighbours=80)(positions, box)
    with pytest.raises(BoxError, match="twice the cutoff"):
        check_box(box, 1.0)
    with pytest.raises(BoxError, match="no volume"):
        check_box(torch.zeros(3, 3), 0.1)


def test_heights_of_a_tilted_box() -> None:
    """A sheared unit cube keeps its volume; its heights are the hand-computed ones."""
    box = torch.tensor([[1.0, 0, 0], [1.0, 1.0, 0], [0, 0, 1.0]], dtype=torch.float64)
    assert torch.allclose(heights(box), torch.tensor([1 / math.sqrt(2), 1.0, 1.0], dtype=torch.float64))
