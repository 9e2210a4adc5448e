"""What every model must satisfy, as assertions: for our own architectures and for a newcomer's.

Each takes a `predict` that maps species (N,), positions (N, 3) and box (3, 3) or None to vectors (N, 3) or, for a
model of magnitudes, scalars (N,), and raises AssertionError with the largest deviation when the property is broken.
Tolerances are relative to the largest component of the prediction.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Predict = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

FLOAT64 = 1e-9
"""Default tolerance: round-off of a three-layer network in double precision."""


def random_rotation(seed: int, reflect: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a rotation matrix (3, 3) with determinant 1, or -1 if it is to reflect."""
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    q = q * torch.sign(torch.det(q))
    return ((-q) if reflect else q).to(dtype)


def _compare(got: Tensor, expected: Tensor, tolerance: float, what: str) -> None:
    largest = float(expected.abs().max())
    assert largest > 0, f"{what}: the prediction is zero everywhere, which proves nothing"
    deviation = float((got - expected).abs().max()) / largest
    assert deviation <= tolerance, f"{what}: relative deviation {deviation:.3g}, allowed {tolerance:.3g}"


def assert_equivariant(
    predict: Predict,
    species: Tensor,
    positions: Tensor,
    box: Tensor | None,
    reflect: bool = False,
    tolerance: float = FLOAT64,
) -> None:
    """Assert f(x Q^T) = f(x) Q^T: vectors turn with the system, scalars stay.

    Parameters
    ----------
    predict, species, positions, box
        See the module.
    reflect
        Test an improper rotation.
    tolerance
        Relative.
    """
    q = random_rotation(7, reflect, positions.dtype)
    plain = predict(species, positions, box)
    turned = predict(species, positions @ q.T, None if box is None else box @ q.T)
    expected = plain @ q.T if plain.dim() == 2 else plain
    _compare(turned, expected, tolerance, "reflection" if reflect else "rotation")


def assert_translation_invariant(
    predict: Predict, species: Tensor, positions: Tensor, box: Tensor | None, tolerance: float = FLOAT64
) -> None:
    """Assert that moving everything changes nothing."""
    moved = predict(species, positions + torch.tensor([1.7, -0.4, 2.3], dtype=positions.dtype), box)
    _compare(moved, predict(species, positions, box), tolerance, "translation")


def assert_permutation_equivariant(
    predict: Predict, species: Tensor, positions: Tensor, box: Tensor | None, tolerance: float = FLOAT64
) -> None:
    """Assert that renaming atoms renames predictions."""
    order = torch.randperm(len(species), generator=torch.Generator().manual_seed(3))
    _compare(
        predict(species[order], positions[order], box),
        predict(species, positions, box)[order],
        tolerance,
        "permutation",
    )


def assert_lattice_invariant(
    predict: Predict, species: Tensor, positions: Tensor, box: Tensor, tolerance: float = FLOAT64
) -> None:
    """Assert that moving single atoms by whole box vectors changes nothing."""
    generator = torch.Generator().manual_seed(5)
    shifts = torch.randint(-2, 3, (len(species), 3), generator=generator).to(positions.dtype) @ box
    _compare(predict(species, positions + shifts, box), predict(species, positions, box), tolerance, "lattice shift")


def assert_additive(
    predict: Predict, species: Tensor, positions: Tensor, distance: float, tolerance: float = FLOAT64
) -> None:
    """Assert that two copies of a system, far apart, do not feel each other. For cutoff graphs.

    Parameters
    ----------
    predict, species, positions
        See the module; no box.
    distance
        nm between the copies, beyond the reach of the network.
    tolerance
        Relative.
    """
    alone = predict(species, positions, None)
    far = positions + torch.tensor([distance, 0.0, 0.0], dtype=positions.dtype)
    both = predict(torch.cat([species, species]), torch.cat([positions, far]), None)
    _compare(both, torch.cat([alone, alone]), tolerance, "additivity")


def assert_smooth_at_cutoff(predict: Predict, cutoff: float, tolerance: float = 1e-4) -> None:
    """Assert that the prediction does not jump when an atom crosses the cutoff. For cutoff graphs.

    An atom is moved through the cutoff of a bound pair in steps of 1e-5 nm; a jump would stand out against the
    change per step before the crossing.

    Parameters
    ----------
    predict
        See the module.
    cutoff
        nm.
    tolerance
        Largest change over the crossing, relative to the prediction.
    """
    species = torch.tensor([6, 8, 7])
    values = []
    for step in (-1, 1):
        positions = torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.02, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
        positions[2, 2] = cutoff + 1e-5 * step
        values.append(predict(species, positions, None)[0])
    _compare(values[1], values[0], tolerance, "crossing the cutoff")
