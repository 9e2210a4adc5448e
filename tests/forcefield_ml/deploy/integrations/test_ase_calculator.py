"""The ASE calculator: ASE's units, rules of caching and errors, and the forces that OpenMM gets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deploy_helpers import (
    Deployed,
    Molecules,
    bare_system,
    context_of,
    eager_forces,
    forces_of,
    make_model,
    write_model,
)
from energy_model import write_energy_model

import forcefield_ml
from forcefield_ml.errors import BoxError, ConfigError, ForceModeError, TopologyError, UnstableError

ase = pytest.importorskip("ase", reason='pip install "forcefield-ml[ase]"')
from ase import units  # noqa: E402
from ase.calculators.calculator import PropertyNotImplementedError  # noqa: E402
from ase.constraints import FixAtoms  # noqa: E402

from forcefield_ml.deploy.integrations.ase_calculator import ForcefieldMLCalculator, _cell  # noqa: E402

EXACT = 1e-4
"""Relative, float32."""

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the total force on all atoms."""
    return write_model(tmp_path_factory.mktemp("whole"), target_atoms="all")


def atoms_of(molecules: Molecules) -> Any:
    """Return ASE's atoms of a structure."""
    numbers = [atom.element.atomic_number for atom in molecules.topology.atoms()]
    cell = None if molecules.box is None else 10 * molecules.box
    return ase.Atoms(numbers, 10 * molecules.positions, cell=cell, pbc=cell is not None)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    """Return |found - expected| / |expected|."""
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


EV_PER_ANGSTROM = units.kJ / units.mol / (10 * units.Angstrom)
"""1 kJ/mol/nm, by ASE's own constants."""


@pytest.mark.parametrize("structure", ["dry", "wet", "triclinic"])
def test_forces(structure: str, whole: Path, request: pytest.FixtureRequest) -> None:
    """Forces are the eager model's, DeployedModel's and OpenMM's, in eV/Å; by default without their mean."""
    molecules: Molecules = request.getfixturevalue(structure)
    atoms = atoms_of(molecules)
    atoms.calc = ForcefieldMLCalculator(whole, remove_net_force=False)
    found = atoms.get_forces() / EV_PER_ANGSTROM
    model = forcefield_ml.load(whole)
    atoms.calc = ForcefieldMLCalculator(whole)
    assert relative(atoms.get_forces() / EV_PER_ANGSTROM, found - found.mean(axis=0)) < 1e-12
    assert relative(found, eager_forces(make_model("fast"), molecules)) < EXACT
    assert relative(found, model.forces(molecules.positions, molecules.box, topology=molecules.topology)) < 1e-6
    system = bare_system(molecules)
    system.addForce(model.create_force(molecules.topology))
    assert relative(found, forces_of(context_of(system, molecules, "Reference"))) < 1e-6


def test_no_energy(dry: Molecules, whole: Path) -> None:
    """A model without an energy has forces alone: ASE's own error for energy and stress."""
    atoms = atoms_of(dry)
    atoms.calc = ForcefieldMLCalculator(whole)
    assert atoms.calc.implemented_properties == ["forces"]
    for ask in (atoms.get_potential_energy, atoms.get_stress):
        with pytest.raises(PropertyNotImplementedError):
            ask()
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energy(force_consistent=True)


def test_energy(dry: Molecules, tmp_path: Path) -> None:
    """The energy of a model that has one is in eV, and its finite differences are the forces."""
    atoms = atoms_of(dry)
    atoms.calc = ForcefieldMLCalculator(write_energy_model(tmp_path, target_atoms="all"))
    away = dry.positions - dry.positions.mean(0)
    energy = 500.0 * (away**2).sum() * units.kJ / units.mol
    assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-6)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    forces = atoms.get_forces()
    for i, axis in ((0, 0), (5, 2)):
        ends = []
        for step in (1e-3, -1e-3):
            moved = atoms.copy()
            moved.calc = atoms.calc
            moved.positions[i, axis] += step
            ends.append(moved.get_potential_energy())
        assert (ends[1] - ends[0]) / 2e-3 == pytest.approx(forces[i, axis], rel=1e-4)


def test_caching(wet: Molecules, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ASE's rules: nothing is computed twice, any change of positions or cell is, charges and moments are not."""
    atoms = atoms_of(wet)
    calculator = atoms.calc = ForcefieldMLCalculator(whole)
    calls = []
    once = ForcefieldMLCalculator.calculate

    def counted(self: Any, *arguments: Any, **options: Any) -> None:
        calls.append(1)
        once(self, *arguments, **options)

    monkeypatch.setattr(ForcefieldMLCalculator, "calculate", counted)
    first = atoms.get_forces()
    assert (atoms.get_forces() == first).all() and len(calls) == 1
    first[:] = 0
    assert atoms.get_forces().any(), "the cache is no view"
    atoms.set_initial_charges(np.ones(len(atoms)))
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
    atoms.set_velocities(np.ones((len(atoms), 3)))
    atoms.get_forces()
    assert len(calls) == 1 and not calculator.calculation_required(atoms, ["forces"])
    atoms.positions[0, 0] += 0.05
    assert calculator.calculation_required(atoms, ["forces"])
    moved = atoms.get_forces()
    assert len(calls) == 2
    neighbours = calculator._evaluate.neighbour_list
    assert neighbours.statistics.rebuilds == 1, "the neighbour list is kept"
    atoms.set_cell(atoms.cell * 1.02)
    stretched = atoms.get_forces()
    assert len(calls) == 3 and neighbours.statistics.rebuilds == 2 and np.abs(stretched - moved).max() > 1e-3
    model = forcefield_ml.load(whole)
    expected = model.forces(0.1 * atoms.positions, 0.1 * np.array(atoms.cell), topology=wet.topology)
    assert relative(stretched, (expected - expected.mean(axis=0)) * EV_PER_ANGSTROM) < 1e-5


def test_other_atoms(dry: Molecules, wet: Molecules, whole: Path) -> None:
    """One calculator serves other elements, other numbers of atoms and no periodicity in turn."""
    calculator = ForcefieldMLCalculator(whole)
    swapped = atoms_of(wet)
    swapped.numbers[:2] = swapped.numbers[1::-1]
    no_box = atoms_of(wet)
    no_box.pbc = False
    found = []
    for atoms in (atoms_of(wet), swapped, no_box, atoms_of(dry), atoms_of(wet)):
        atoms.calc = calculator
        found.append(atoms.get_forces())
        fresh = atoms.copy()
        fresh.calc = ForcefieldMLCalculator(whole)
        assert relative(found[-1], fresh.get_forces()) < 1e-5
    assert np.abs(found[0] - found[1]).max() > 1e-2 and np.abs(found[0] - found[2]).max() > 1e-2


@pytest.mark.parametrize("change", ["wrapped", "rotated", "skewed", "left-handed", "permuted"])
def test_cells(change: str, triclinic: Molecules, whole: Path) -> None:
    """Any cell of the same lattice, in any orientation and handedness, gives the same forces, turned with it."""
    atoms = atoms_of(triclinic)
    atoms.calc = ForcefieldMLCalculator(whole)
    expected = atoms.get_forces()
    back = np.eye(3)
    if change == "wrapped":
        atoms.positions += [3.0, -40.0, 7.0]
        unwrapped = atoms.get_forces()
        assert relative(unwrapped, expected) < EXACT
        atoms.wrap()
    elif change == "rotated":
        before = atoms.positions.copy()
        atoms.rotate(50, (1, 2, 3), rotate_cell=True)
        back = np.linalg.lstsq(atoms.positions, before, rcond=None)[0]
    else:
        rows = {
            "skewed": [[1, 0, 0], [2, 1, 0], [-1, 3, 1]],
            "left-handed": [[1, 0, 0], [0, 1, 0], [0, 0, -1]],
            "permuted": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
        }[change]
        atoms.set_cell(np.array(rows) @ np.array(atoms.cell))
    box, rotation = _cell(atoms, 0.0)
    assert np.linalg.det(rotation) == pytest.approx(1) and np.linalg.det(box) > 0, "turned, never mirrored"
    assert relative(atoms.get_forces() @ back, expected) < EXACT


def test_boxes_refused(wet: Molecules, whole: Path) -> None:
    """Periodic along some axes, no cell, or a cell lower than twice the cutoff."""
    atoms = atoms_of(wet)
    atoms.calc = ForcefieldMLCalculator(whole)
    atoms.pbc = (True, True, False)
    with pytest.raises(BoxError, match="some axes only"):
        atoms.get_forces()
    atoms.pbc = True
    atoms.cell = np.diag([17.0, 17.0, 8.0])
    with pytest.raises(BoxError, match="twice the cutoff"):
        atoms.get_forces()
    atoms.cell = None
    with pytest.raises(BoxError, match="no volume"):
        atoms.get_forces()
    atoms.cell = 10 * np.array(wet.box)  # after a refusal it computes again
    assert np.isfinite(atoms.get_forces()).all()


def test_elements_refused(dry: Molecules, whole: Path) -> None:
    """Elements the model does not know, atoms without one, and no atoms at all."""
    atoms = atoms_of(dry)
    atoms.calc = ForcefieldMLCalculator(whole)
    atoms.numbers[3] = 30
    with pytest.raises(TopologyError, match=r"Zn \(atom 3\).*trained on H, C, N, O"):
        atoms.get_forces()
    atoms.numbers[3] = 0
    with pytest.raises(TopologyError, match=r"X \(atom 3\)"):
        atoms.get_forces()
    nothing = ase.Atoms()
    nothing.calc = atoms.calc
    with pytest.raises(TopologyError, match="no atoms"):
        nothing.get_forces()


def test_modes(dry: Molecules, wet: Molecules, deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """The card decides what the atoms must be; targets alone move, all others must be held."""
    with pytest.raises(ForceModeError, match="all atoms"):
        ForcefieldMLCalculator(deployed["fast"].path)
    with pytest.raises(ForceModeError, match="targets"):
        ForcefieldMLCalculator(deployed["fast"].path, mode="solute")
    alone = write_model(tmp_path, predicts="solute_alone")
    with pytest.raises(ForceModeError, match="part of a system do not sum to zero"):
        ForcefieldMLCalculator(alone, mode="embedded", remove_net_force=True)
    with pytest.raises(ForceModeError, match="Modes for it: 'embedded'"):
        ForcefieldMLCalculator(alone)
    atoms = atoms_of(dry)
    atoms.calc = ForcefieldMLCalculator(forcefield_ml.load(alone), mode="embedded")
    assert relative(atoms.get_forces() / EV_PER_ANGSTROM, eager_forces(make_model("fast"), dry)) < EXACT
    atoms = atoms_of(wet)
    atoms.calc = ForcefieldMLCalculator(deployed["fast"].path, mode="solute", targets=wet.solute[::-1])
    with pytest.raises(ForceModeError, match="FixAtoms"):
        atoms.get_forces()
    others = np.setdiff1d(np.arange(len(atoms)), wet.solute)
    atoms.set_constraint(FixAtoms(others))
    forces = atoms.get_forces(apply_constraint=False) / EV_PER_ANGSTROM
    assert not forces[others].any()
    assert relative(forces[wet.solute], eager_forces(deployed["fast"].eager, wet)[wet.solute]) < EXACT
    atoms.calc = ForcefieldMLCalculator(deployed["fast"].path, mode="solute", targets=[len(atoms)])
    with pytest.raises(TopologyError, match=f"index {len(atoms)}, but there are atoms 0 to {len(atoms) - 1}"):
        atoms.get_forces()
    with pytest.raises(ConfigError, match="no device"):
        ForcefieldMLCalculator(alone, mode="embedded", device="cuda:99")


def test_sum_with_another_calculator(dry: Molecules, tmp_path: Path) -> None:
    """A correction is added to an MM calculator by ASE's SumCalculator."""
    from ase.calculators.lj import LennardJones
    from ase.calculators.mixing import SumCalculator

    correction = ForcefieldMLCalculator(
        write_model(tmp_path, predicts="reference_minus_mm", target_atoms="all"), mode="correction"
    )
    atoms = atoms_of(dry)
    atoms.calc = SumCalculator([LennardJones(sigma=1.0, epsilon=1e-3), correction])
    total = atoms.get_forces()
    parts = []
    for calculator in (LennardJones(sigma=1.0, epsilon=1e-3), correction):
        atoms.calc = calculator
        parts.append(atoms.get_forces())
    assert relative(total, parts[0] + parts[1]) < 1e-6 and all(part.any() for part in parts)


def test_a_correction_of_the_solute_leaves_water_alone(wet: Molecules, tmp_path: Path) -> None:
    """A model trained on solute atoms needs targets; the other atoms are MM's, so that nothing must hold them."""
    path = write_model(tmp_path, predicts="reference_minus_mm", target_atoms="solute")
    with pytest.raises(ForceModeError, match=r"'correction' needs targets=.*trained on these only"):
        ForcefieldMLCalculator(path, mode="correction")
    atoms = atoms_of(wet)
    atoms.calc = ForcefieldMLCalculator(path, mode="correction", targets=wet.solute)
    found = atoms.get_forces() / EV_PER_ANGSTROM
    assert relative(found[wet.solute], eager_forces(make_model("fast"), wet)[wet.solute]) < EXACT
    assert not np.delete(found, wet.solute, axis=0).any()


def test_embedded_targets_are_all_that_the_model_sees(dry: Molecules, wet: Molecules, tmp_path: Path) -> None:
    """In a box of water the targets feel what they would feel without it, also where water is unknown or lost."""
    path = write_model(tmp_path, predicts="solute_alone")
    atoms = atoms_of(wet)
    others = np.setdiff1d(np.arange(len(atoms)), wet.solute)
    atoms.calc = ForcefieldMLCalculator(path, mode="embedded", targets=wet.solute)
    with pytest.raises(ForceModeError, match=f"{len(others)} other atoms are free"):
        atoms.get_forces()
    atoms.set_constraint(FixAtoms(others))
    atoms.numbers[others[-1]] = 30
    atoms.positions[others[-1]] = np.nan
    found = atoms.get_forces(apply_constraint=False) / EV_PER_ANGSTROM
    assert not found[others].any()
    bare = atoms_of(wet)[wet.solute]
    bare.calc = ForcefieldMLCalculator(path, mode="embedded")
    assert relative(found[wet.solute], bare.get_forces() / EV_PER_ANGSTROM) < 1e-6
    in_water = eager_forces(make_model("fast"), wet)[wet.solute]
    assert relative(found[wet.solute], in_water) > 100 * EXACT, "control: water makes a difference"


def test_targets_as_a_mask(dry: Molecules, wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """A mask is what ASE's atoms take, too; of another length, or floats, it is refused."""
    mask = np.isin(np.arange(len(wet.positions)), wet.solute)
    found = []
    for targets in (mask, mask.tolist(), iter(wet.solute)):
        atoms = atoms_of(wet)
        atoms.set_constraint(FixAtoms(mask=~mask))
        atoms.calc = ForcefieldMLCalculator(deployed["fast"].path, mode="solute", targets=targets)
        found.append(atoms.get_forces())
    assert found[0][mask].all() and not found[0][~mask].any()
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    small = atoms_of(dry)
    small.calc = atoms.calc  # its targets came from an iterator, and are all there once more
    assert small.get_forces().any()
    small.calc = ForcefieldMLCalculator(deployed["fast"].path, mode="solute", targets=mask)
    with pytest.raises(TopologyError, match=f"targets is a mask of {len(mask)} booleans, but there are {len(small)}"):
        small.get_forces()
    with pytest.raises(TopologyError, match=r"targets holds 0\.0, a float"):
        ForcefieldMLCalculator(deployed["fast"].path, mode="solute", targets=np.array(wet.solute, dtype=float))
    small.calc = ForcefieldMLCalculator(deployed["fast"].path, mode="solute", targets=[-1])
    with pytest.raises(TopologyError, match="index -1"):
        small.get_forces()


def test_dynamics(dry: Molecules, whole: Path) -> None:
    """Langevin dynamics runs; constrained atoms stay; one step of Verlet is v = F/m dt in ASE's units."""
    from ase.md.langevin import Langevin
    from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
    from ase.md.verlet import VelocityVerlet

    atoms = atoms_of(dry)
    atoms.calc = ForcefieldMLCalculator(whole)
    start, force = atoms.positions.copy(), atoms.get_forces()
    VelocityVerlet(atoms, 0.1 * units.fs).run(1)
    expected = start + 0.5 * force / atoms.get_masses()[:, None] * (0.1 * units.fs) ** 2
    assert np.allclose(atoms.positions, expected, atol=1e-9) and not np.allclose(atoms.positions, start, atol=1e-6)

    atoms.set_constraint(FixAtoms([0, 1]))
    fixed = atoms.positions[:2].copy()
    rng = np.random.default_rng(1)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=rng)
    dynamics = Langevin(atoms, 0.2 * units.fs, temperature_K=300, friction=0.1 / units.fs, rng=rng, fixcm=False)
    dynamics.run(20)
    assert np.isfinite(atoms.positions).all() and (atoms.positions[:2] == fixed).all()
    assert atoms.calc._evaluate.neighbour_list.statistics.steps > 20
    assert not (atoms.get_forces()[:2]).any()


def test_optimisers(dry: Molecules, whole: Path, tmp_path: Path) -> None:
    """ASE's optimisers ask for the energy: refused without one, and with one they go to the bottom of the well."""
    from ase.optimize import BFGS, FIRE

    for optimiser in (BFGS, FIRE):
        atoms = atoms_of(dry)
        atoms.calc = ForcefieldMLCalculator(whole)
        with pytest.raises(PropertyNotImplementedError, match="energy"):
            optimiser(atoms, logfile=None).run(fmax=0.01, steps=1)
    atoms = atoms_of(dry)[:6]
    atoms.calc = ForcefieldMLCalculator(write_energy_model(tmp_path, target_atoms="all"))
    assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=200)
    assert np.abs(atoms.positions - atoms.positions.mean(0)).max() < 1e-2


def test_trajectory(dry: Molecules, whole: Path, tmp_path: Path) -> None:
    """Forces are stored in ASE's files with the atoms."""
    from ase.io import read, write

    atoms = atoms_of(dry)
    atoms.calc = ForcefieldMLCalculator(whole)
    forces = atoms.get_forces()
    write(tmp_path / "frame.extxyz", atoms)
    assert np.allclose(read(tmp_path / "frame.extxyz").get_forces(), forces, atol=1e-6)
    write(tmp_path / "frame.traj", atoms)
    assert np.allclose(read(tmp_path / "frame.traj").get_forces(), forces)


def test_forces_that_are_not_finite(dry: Molecules, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN is refused with the atoms' names, and not kept as a result."""
    from forcefield_ml.models.interface import Prediction

    atoms = atoms_of(dry)
    calculator = atoms.calc = ForcefieldMLCalculator(whole)
    good = atoms.get_forces()
    evaluate = calculator._evaluate
    monkeypatch.setattr(
        calculator, "_evaluate", lambda *_: Prediction(torch.full((len(atoms), 3), float("nan")), None, None)
    )
    atoms.positions += 1e-3
    with pytest.raises(UnstableError, match=r"not finite on \d+ atoms: N \(atom 0\)"):
        atoms.get_forces()
    monkeypatch.setattr(calculator, "_evaluate", lambda *_: Prediction(torch.full((len(atoms), 3), 1e6), None, None))
    with pytest.raises(UnstableError, match="are above 100000 kJ/mol/nm"):
        atoms.get_forces()
    monkeypatch.setattr(calculator, "_evaluate", evaluate)
    assert relative(atoms.get_forces(), good) < 0.1
    atoms.positions[4] = np.nan
    with pytest.raises(UnstableError, match=r"positions are not finite: C \(atom 4\)"):
        atoms.get_forces()


def test_positions_in_another_unit(dry: Molecules, whole: Path) -> None:
    """Positions in nm, where ASE has Å, are refused."""
    atoms = atoms_of(dry)
    atoms.positions *= 0.1
    atoms.calc = ForcefieldMLCalculator(whole)
    with pytest.raises(ConfigError, match="a bond is"):
        atoms.get_forces()
