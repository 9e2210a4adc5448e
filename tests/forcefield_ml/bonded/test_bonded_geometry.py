"""The functions of bonded terms: their gradients by autograd, their energies and forces by OpenMM."""

from __future__ import annotations

import numpy as np
import openmm
import pytest
import torch
from molecule_files import AMIDE, CYCLOPROPANE, chosen_table, openmm_context, openmm_forces, openmm_system, together

from forcefield_ml.bonded import KINDS, Parameters
from forcefield_ml.bonded.geometry import N_FUNCTIONS, bonded_energy, bonded_forces, functions, slopes, term_vectors

MOLECULE = together(AMIDE, CYCLOPROPANE)


def random_terms(seed: int, n_atoms: int = 30, n_terms: int = 25) -> Parameters:
    """Return terms of any atoms, so that lengths and angles take any value, with random parameters."""
    random = np.random.default_rng(seed)
    atoms = {
        kind: np.array([random.permutation(n_atoms)[:size] for _ in range(n_terms)]) for kind, size in KINDS.items()
    }
    values = {kind: random.normal(size=(n_terms, n)) for kind, n in N_FUNCTIONS.items()}
    values["bond"] = np.abs(values["bond"])
    values["angle"] = np.stack([50 * random.random(n_terms) + 5, 50 * random.random(n_terms) + 5], axis=1)
    return Parameters(atoms, values, {kind: np.ones(n_terms, dtype=bool) for kind in KINDS})


def tensors(parameters: Parameters) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    atoms = {kind: torch.from_numpy(atoms) for kind, atoms in parameters.atoms.items()}
    return atoms, {kind: torch.from_numpy(values) for kind, values in parameters.values.items()}


@pytest.mark.parametrize("kind", list(KINDS))
def test_slopes_are_gradients(kind: str) -> None:
    """At random geometries each function's slope is what autograd finds, in double precision."""
    generator = torch.Generator().manual_seed(1)
    places = torch.randn(200, KINDS[kind], 3, generator=generator, dtype=torch.float64).requires_grad_(True)
    found = slopes(kind, places[:, 1:] - places[:, :-1])
    assert found.shape == (200, N_FUNCTIONS[kind], KINDS[kind], 3)
    values = functions(kind, places[:, 1:] - places[:, :-1])
    for p in range(N_FUNCTIONS[kind]):
        (expected,) = torch.autograd.grad(values[:, p].sum(), places, retain_graph=True)
        assert (found[:, p] - expected).abs().max() < 1e-8 * expected.abs().max()
    torch.testing.assert_close(found.sum(2), torch.zeros_like(found.sum(2)), atol=1e-10, rtol=0)


def test_functions_by_hand() -> None:
    """A bond of 3-4-5, a right angle, a dihedral of 60 degrees by its cosines."""
    bond = functions("bond", torch.tensor([[[0.3, 0.4, 0.0]]], dtype=torch.float64))
    assert bond[0].tolist() == pytest.approx([0.125, -0.5])
    angle = functions("angle", torch.tensor([[[-1.0, 0, 0], [0, 2.0, 0]]], dtype=torch.float64))
    assert angle[0].tolist() == pytest.approx([np.pi**2 / 8, -np.pi / 2])
    turned = [np.cos(np.pi / 3), np.sin(np.pi / 3), 0.5]
    vectors = torch.tensor([[[-1.0, 0, 0.3], [0, 0, 1.0], turned]], dtype=torch.float64)
    cosines = [np.cos(n * np.pi / 3) for n in (1, 2, 3, 4)]
    assert functions("proper", vectors)[0].tolist() == pytest.approx(cosines)
    assert functions("improper", vectors)[0].tolist() == pytest.approx(cosines[1:2])


@pytest.mark.parametrize("seed", range(3))
def test_forces_are_minus_the_gradient(seed: int) -> None:
    """Of the energy, with a box and without; the forces of terms sum to zero."""
    atoms, values = tensors(random_terms(seed))
    places = torch.randn(30, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for box in (None, torch.tensor([[1.5, 0, 0], [0.3, 1.6, 0], [-0.2, 0.4, 1.4]], dtype=torch.float64)):
        x = places.clone().requires_grad_(True)
        (gradient,) = torch.autograd.grad(bonded_energy(atoms, values, x, box), x)
        forces = bonded_forces(atoms, values, places, box)
        assert (forces + gradient).abs().max() < 1e-9 * gradient.abs().max()
        assert forces.sum(0).abs().max() < 1e-10 * forces.abs().max()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("where", ["vacuum", "triclinic"])
@pytest.mark.parametrize("kinds", [("bond",), ("angle",), ("proper",), ("improper",), tuple(KINDS)], ids="+".join)
def test_openmm_agrees(kinds: tuple[str, ...], where: str, seed: int) -> None:
    """Forces are those of OpenMM's own terms; energies too, up to one constant, with atoms in different images."""
    random = np.random.default_rng(seed)
    table = chosen_table(MOLECULE, seed=seed)
    parameters = table.parameters(*MOLECULE)
    values = {kind: v if kind in kinds else np.zeros_like(v) for kind, v in parameters.values.items()}
    parameters = parameters._replace(values=values)
    box = np.array([[1.4, 0, 0], [0.5, 1.3, 0], [-0.6, 0.4, 1.2]]) if where == "triclinic" else None
    context = openmm_context(openmm_system(parameters, MOLECULE.species, box))
    atoms, numbers = tensors(parameters)
    cell = None if box is None else torch.from_numpy(box)
    differences, energies = [], []
    for _ in range(3):
        places = 0.25 * random.random((len(MOLECULE.species), 3))
        if box is not None:
            places = places + random.integers(-2, 3, size=places.shape) @ box
        context.setPositions(places)
        state = context.getState(forces=True, energy=True)
        expected = state.getForces(asNumpy=True)._value
        x = torch.from_numpy(places)
        found = bonded_forces(atoms, numbers, x, cell).numpy()
        assert np.abs(found - expected).max() < 1e-8 * np.abs(expected).max()
        energies.append(float(bonded_energy(atoms, numbers, x, cell)))
        differences.append(energies[-1] - state.getPotentialEnergy()._value)
    assert np.ptp(energies) > 1.0
    assert np.ptp(differences) < 1e-8 * max(1.0, np.abs(energies).max())


def test_images_matter() -> None:
    """The control: without the box, atoms in different images are far apart."""
    parameters = chosen_table(MOLECULE).parameters(*MOLECULE)
    box = 1.4 * np.eye(3)
    places = 0.25 * np.random.default_rng(0).random((len(MOLECULE.species), 3))
    places[::2] += box[0]
    atoms, values = tensors(parameters)
    expected = openmm_forces(openmm_system(parameters, MOLECULE.species, box), places)
    wrong = bonded_forces(atoms, values, torch.from_numpy(places), None).numpy()
    assert np.abs(wrong - expected).max() > np.abs(expected).max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_where_a_function_has_no_gradient(dtype: torch.dtype) -> None:
    """Angles of 0 and 180 degrees, and dihedrals with three atoms in a line, give numbers and no force for the turn."""
    line = torch.tensor([[[1.0, 0, 0], [2.0, 0, 0]], [[1.0, 0, 0], [-2.0, 0, 0]]], dtype=dtype)
    nearly = line + torch.tensor([0, 1e-4, 0], dtype=dtype) * torch.tensor([1.0, 0.5], dtype=dtype)[:, None]
    for vectors in (line, nearly, 0.1 * line):
        for found in (functions("angle", vectors), slopes("angle", vectors)):
            assert torch.isfinite(found).all()
    bent = torch.tensor([0.0, 1.0, 0], dtype=dtype)
    collinear = torch.stack([line, line.flip(1)]).reshape(-1, 2, 3)
    vectors = torch.cat(
        [
            torch.cat([collinear, bent.expand(4, 1, 3)], 1),
            torch.cat([bent.expand(4, 1, 3), collinear], 1),
            torch.cat([collinear, collinear[:, :1]], 1),
        ]
    )
    for scale in (1.0, 0.1):
        for kind in ("proper", "improper"):
            assert torch.isfinite(functions(kind, scale * vectors)).all()
            found = slopes(kind, scale * vectors)
            assert torch.isfinite(found).all() and found.abs().max() < 1e3


@pytest.mark.parametrize("where", ["vacuum", "box"])
def test_compiles_to_torchscript(where: str) -> None:
    """TorchScript gives the same numbers."""
    atoms, values = tensors(random_terms(7))
    places = torch.randn(30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    box = None if where == "vacuum" else 1.3 * torch.eye(3, dtype=torch.float64)
    for function in (bonded_energy, bonded_forces):
        compiled = torch.jit.script(function)
        for _ in range(3):
            torch.testing.assert_close(compiled(atoms, values, places, box), function(atoms, values, places, box))


def test_shortest_vectors() -> None:
    """In a triclinic box vectors between atoms as near as bonded are the shortest, in whatever images these are."""
    random = np.random.default_rng(3)
    box = np.array([[1.2, 0, 0], [0.6, 1.1, 0], [-0.6, -0.5, 1.3]])
    near = 0.3 * (random.random((50, 2, 3)) - 0.5)
    places = (near + random.integers(-3, 4, size=near.shape) @ box).reshape(-1, 3)
    atoms = torch.arange(100).reshape(-1, 2)
    found = term_vectors(atoms, torch.from_numpy(places), torch.from_numpy(box))[:, 0].numpy()
    assert np.allclose(found, near[:, 1] - near[:, 0], atol=1e-12)


def test_openmm_numbers_are_not_all_zero() -> None:
    """The control of the comparison: every kind of term does something."""
    system = openmm_system(chosen_table(MOLECULE).parameters(*MOLECULE), MOLECULE.species)
    assert [force.getNumBonds() for force in system.getForces() if isinstance(force, openmm.HarmonicBondForce)] == [20]
    assert sum(force.getNumTorsions() for force in system.getForces() if hasattr(force, "getNumTorsions")) > 100
