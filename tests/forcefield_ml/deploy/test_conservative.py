"""A conservative model in OpenMM and ASE: what direct models are refused works, and is right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from deploy_helpers import Deployed, Molecules, context_of, forces_of, make_model, mm_system
from openmm import app, unit

import forcefield_ml
from forcefield_ml.deploy.guards.check import check
from forcefield_ml.deploy.model import DeployedModel
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.deploy.model_file.script_guard import faults
from forcefield_ml.deploy.system import force_groups
from forcefield_ml.deploy.system.bound import bound_models
from forcefield_ml.errors import ForceModeError
from forcefield_ml.simulation import mts

BACKENDS = ("pythonforce", "torchforce")
ONE_SLOW = ("pythonforce", pytest.param("torchforce", marks=pytest.mark.slow))


def written(folder: Path, **card: str) -> DeployedModel:
    model = make_model("energy")
    return forcefield_ml.load(bundle.write(model, make_card(model, **card), folder / "energy.pt"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeployedModel:
    """A conservative model of all atoms, with random weights."""
    return written(tmp_path_factory.mktemp("energy"), target_atoms="all")


def simulation_of(
    model: DeployedModel, molecules: Molecules, integrator: openmm.Integrator, *more: openmm.Force
) -> app.Simulation:
    system = model.create_system(molecules.topology)
    for force in more:
        system.addForce(force)
    platform = openmm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(molecules.topology, system, integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(molecules.positions)
    return simulation


def energy_of(context: openmm.Context) -> float:
    return float(context.getState(energy=True).getPotentialEnergy()._value)


@pytest.mark.parametrize("backend", BACKENDS)
def test_energy_and_forces_agree(model: DeployedModel, dry: Molecules, backend: str) -> None:
    """Both backends: displacements change the energy by minus force times displacement; nothing drifts, no remover."""
    assert model.has_energy
    system = model.create_system(dry.topology, backend=backend)
    assert system.getNumForces() == 1 and bound_models(system)[0].has_energy
    context = context_of(system, dry, "CPU")
    forces = forces_of(context)
    assert np.abs(forces.sum(0)).max() < 1e-4 * np.abs(forces).max()
    step = 1e-3 * np.random.default_rng(0).normal(size=forces.shape)
    energies = []
    for sign in (1, -1):
        context.setPositions(dry.positions + sign * step)
        energies.append(energy_of(context))
    assert (energies[1] - energies[0]) / 2 == pytest.approx(float((forces * step).sum()), rel=5e-3)


def test_backends_are_one(model: DeployedModel, wet: Molecules) -> None:
    """The engine's kernels, TorchScript inside TorchForce and the eager model give one energy and one force."""
    found = []
    for backend in BACKENDS:
        context = context_of(model.create_system(wet.topology, backend=backend), wet, "CPU")
        found.append((energy_of(context), forces_of(context)))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    assert np.abs(found[0][1] - found[1][1]).max() < 3e-4 * np.abs(found[1][1]).max()
    alone = model.forces(wet.positions, wet.box, topology=wet.topology)
    assert np.abs(alone - found[0][1]).max() < 1e-5 * np.abs(alone).max()


def test_energy_is_kept(model: DeployedModel, dry: Molecules) -> None:
    """In NVE the total energy swings with the square of the step and does not drift; kinetic energy alone does move."""
    swings = []
    for step in (0.001, 0.0005):
        simulation = simulation_of(model, dry, openmm.VerletIntegrator(step))
        simulation.context.setVelocitiesToTemperature(300, 1)
        totals, kinetic = [], []
        for _ in range(round(0.2 / step / 10)):
            simulation.step(10)
            state = simulation.context.getState(energy=True)
            kinetic.append(state.getKineticEnergy()._value)
            totals.append(kinetic[-1] + state.getPotentialEnergy()._value)
        swings.append(float(np.std(totals)))
        half = len(totals) // 2
        assert abs(np.mean(totals[half:]) - np.mean(totals[:half])) < 0.01 * np.std(kinetic)
        assert np.std(totals) < 0.02 * np.std(kinetic)
    assert swings[1] < 0.5 * swings[0]


def test_work_around_a_loop(model: DeployedModel, deployed: dict[str, Deployed], dry: Molecules) -> None:
    """Around a closed path the conservative force does no work; a direct one does (the control)."""
    direct = forcefield_ml.load(deployed["fast"].path)
    random = np.random.default_rng(2)
    a, b = 0.01 * random.normal(size=(2, *dry.positions.shape))
    work = []
    for tried in (model, direct):
        total, size = 0.0, 0.0
        angles = np.linspace(0, 2 * np.pi, 65)[:-1]
        for angle in angles:
            place = dry.positions + np.cos(angle) * a + np.sin(angle) * b
            forces = tried.forces(place, topology=dry.topology)
            along = (-np.sin(angle) * a + np.cos(angle) * b) * 2 * np.pi / len(angles)
            total += float((forces * along)[: len(forces)].sum())
            size += abs(float((forces * along).sum()))
        work.append(abs(total) / size)
    assert work[0] < 1e-4 < 1e-2 < work[1]


def test_openmms_minimiser_works(model: DeployedModel, dry: Molecules) -> None:
    """LocalEnergyMinimizer finds lower energies, also after `check`."""
    simulation = simulation_of(model, dry, openmm.VerletIntegrator(0.0005))
    check(simulation, last_good=None)
    before = energy_of(simulation.context)
    simulation.minimizeEnergy(maxIterations=30)
    assert energy_of(simulation.context) < before - 100.0


@pytest.mark.parametrize("backend", ONE_SLOW)
def test_barostats_act_on_the_energy(model: DeployedModel, wet: Molecules, backend: str) -> None:
    """A barostat is accepted; moves are tried and the energy of a larger box is another one."""
    barostat = openmm.MonteCarloBarostat(1 * unit.bar, 300 * unit.kelvin, 1)
    barostat.setRandomNumberSeed(1)
    system = model.create_system(wet.topology, backend=backend)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(300, 5.0, 0.0005)
    platform = openmm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(wet.topology, system, integrator, platform, {"Threads": "1"})
    simulation.context.setPositions(wet.positions)
    check(simulation, last_good=None)
    volume = simulation.context.getState().getPeriodicBoxVolume()._value
    before = energy_of(simulation.context)
    simulation.step(8)
    assert simulation.context.getState().getPeriodicBoxVolume()._value != volume
    assert energy_of(simulation.context) != before


def test_integrators_that_use_the_energy(model: DeployedModel, dry: Molecules) -> None:
    """A CustomIntegrator may compute with the energy, which direct models are refused (test_what_acts_besides)."""
    integrator = openmm.CustomIntegrator(0.0005)
    integrator.addGlobalVariable("seen", 0)
    integrator.addComputeGlobal("seen", "energy")
    integrator.addComputePerDof("v", "v+dt*f/m")
    integrator.addComputePerDof("x", "x+dt*v")
    simulation = simulation_of(model, dry, integrator)
    check(simulation, last_good=None)
    expected = energy_of(simulation.context)
    simulation.step(1)
    assert integrator.getGlobalVariableByName("seen") == pytest.approx(expected, rel=1e-6)


def test_it_serves_multiple_time_stepping(model: DeployedModel, dry: Molecules, tmp_path: Path) -> None:
    """Outer kicks by the energy's gradient, inner ones by a direct force, which alone heats: that energy is kept."""
    direct = make_model("fast")
    direct.set_scale(0.2 * float(direct.head.scale))
    path = bundle.write(direct, make_card(direct, target_atoms="all"), tmp_path / "direct.pt")
    system = forcefield_ml.load(path).create_system(dry.topology)
    mts.add_reference(system, model.create_system(dry.topology))
    integrator = mts.integrator(system, timestep=0.0005, n=2)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(dry.positions)
    context.setVelocitiesToTemperature(300, 1)
    groups = integrator.getIntegrationForceGroups()
    totals, kinetic, potential = [], [], []
    for _ in range(40):
        integrator.step(5)
        state = context.getState(energy=True, groups=groups)
        kinetic.append(state.getKineticEnergy()._value)
        potential.append(state.getPotentialEnergy()._value)
        totals.append(kinetic[-1] + potential[-1])
    context.setPositions(dry.positions)
    alone = energy_of(context_of(model.create_system(dry.topology), dry, "Reference"))
    assert context.getState(energy=True, groups=groups).getPotentialEnergy()._value == pytest.approx(alone, rel=1e-6)
    assert np.std(totals) < 0.05 * np.std(kinetic) and np.std(potential) > 0.5 * np.std(kinetic)


@pytest.mark.parametrize("backend", BACKENDS)
def test_as_a_reference_it_is_copied(model: DeployedModel, dry: Molecules, tmp_path: Path, backend: str) -> None:
    """OpenMM's own copy of a TorchForce ends the process; ours has the energy and forces of the first."""
    direct = make_model("fast")
    path = bundle.write(direct, make_card(direct, target_atoms="all"), tmp_path / "direct.pt")
    system = forcefield_ml.load(path).create_system(dry.topology, backend=backend)
    reference = model.create_system(dry.topology, backend=backend)
    mts.add_reference(system, reference)
    integrator = mts.integrator(system, timestep=0.0001, n=2)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    context.setPositions(dry.positions)
    alone = context_of(reference, dry, "CPU")
    expected = [energy_of(alone), forces_of(alone)]
    outer = force_groups.bits(force_groups.of_integrator(integrator).reference)
    found = context.getState(energy=True, forces=True, groups=outer)
    assert found.getPotentialEnergy()._value == pytest.approx(expected[0], rel=1e-5)
    assert np.abs(found.getForces(asNumpy=True)._value - expected[1]).max() < 1e-4 * np.abs(expected[1]).max()
    integrator.step(1)


def test_stored_systems_keep_the_energy(model: DeployedModel, dry: Molecules, tmp_path: Path) -> None:
    """Written as XML and read back, the System has the same energy and forces."""
    system = model.create_system(dry.topology, backend="pythonforce")
    path = tmp_path / "system.xml"
    path.write_text(openmm.XmlSerializer.serialize(system))
    again = forcefield_ml.read_system(path)
    assert bound_models(again)[0].has_energy
    contexts = [context_of(one, dry, "Reference") for one in (system, again)]
    assert energy_of(contexts[0]) == energy_of(contexts[1])
    assert np.array_equal(forces_of(contexts[0]), forces_of(contexts[1]))


@pytest.mark.parametrize("backend", ONE_SLOW)
def test_a_part_of_the_atoms_has_no_energy(
    dry: Molecules, forcefield: app.ForceField, tmp_path: Path, backend: str
) -> None:
    """Where only some of the atoms it sees feel a correction, nothing is conserved: no energy, no barostat."""
    model = written(tmp_path, predicts="reference_minus_mm", target_atoms="all")
    with pytest.warns(UserWarning, match="forces but no energy"):
        part = model.add_to_system(
            mm_system(dry, forcefield), dry.topology, list(range(10)), mode="correction", backend=backend
        )
        context = context_of(part, dry, "CPU")
        energy = energy_of(context)
    assert not bound_models(part)[0].has_energy
    assert energy == pytest.approx(energy_of(context_of(mm_system(dry, forcefield), dry, "CPU")), abs=1e-2)
    with pytest.raises(ForceModeError, match="accepts moves by the energy"):
        system = mm_system(dry, forcefield)
        system.addForce(openmm.MonteCarloBarostat(1, 300))
        model.add_to_system(system, dry.topology, list(range(10)), mode="correction", backend=backend)
    whole = model.add_to_system(mm_system(dry, forcefield), dry.topology, mode="correction", backend=backend)
    assert bound_models(whole)[0].has_energy


def test_ase_minimises(model: DeployedModel, dry: Molecules) -> None:
    """ASE gets the energy in eV, consistent with the forces, and its optimisers work."""
    from ase import Atoms
    from ase.calculators.calculator import PropertyNotImplementedError
    from ase.constraints import FixAtoms
    from ase.optimize import BFGS

    from forcefield_ml.deploy.integrations.ase_calculator import ForcefieldMLCalculator

    numbers = [atom.element.atomic_number for atom in dry.topology.atoms()]
    atoms = Atoms(numbers, positions=10 * dry.positions, calculator=ForcefieldMLCalculator(model))
    energy = atoms.get_potential_energy()
    step = 0.01 * np.random.default_rng(0).normal(size=(len(numbers), 3))
    forces = atoms.get_forces()
    moved = []
    for sign in (1, -1):
        copy = atoms.copy()
        copy.calc = ForcefieldMLCalculator(model)
        copy.positions += sign * step
        moved.append(copy.get_potential_energy())
    assert (moved[1] - moved[0]) / 2 == pytest.approx(float((forces * step).sum()), rel=5e-3)
    BFGS(atoms, logfile=None, maxstep=0.05).run(fmax=0.01, steps=10)
    assert atoms.get_potential_energy() < energy
    atoms.set_constraint(FixAtoms(range(10, len(numbers))))
    atoms.calc = ForcefieldMLCalculator(model, mode="solute", targets=range(10))
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_potential_energy()  # of what surrounds ten atoms alone


def test_the_script_guard_knows_one_way_to_differentiate() -> None:
    """``torch.autograd.grad`` passes; what else stands under ``torch.autograd``, or is called grad, does not."""
    source = "def forward(self, x: Tensor) -> Tensor:\n  return {}\n"
    assert not list(faults({"a.py": source.format("torch.autograd.grad([x], [x], None, None, True, False)")}))
    for call in ("torch.autograd.save(x)", "torch.autograd.backward([x])", "torch.autograd.grad.save(x)", "x.grad()"):
        assert list(faults({"a.py": source.format(call)})), call


def test_gradients_leave_no_trace(model: DeployedModel, dry: Molecules) -> None:
    """Grad mode is what it was, and the weights have gathered no gradients."""
    loaded = bundle.read_cached(str(model.path), model.sha256, "cpu")
    with torch.no_grad():
        model.forces(dry.positions, topology=dry.topology)
        assert not torch.is_grad_enabled()
        loaded.module(torch.tensor([6, 8]), torch.tensor([[0.0, 0.0, 0.0], [0.1, 0.0, 0.0]]))
        assert not torch.is_grad_enabled()
    assert loaded.model is not None
    assert all(parameter.grad is None for parameter in loaded.model.parameters())
