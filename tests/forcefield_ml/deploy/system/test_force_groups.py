"""Under multiple time stepping no force counts twice, in any mode, and what would make one do so is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from deploy_helpers import Deployed, Molecules, bare_system, context_of, forces_of, mm_system, write_model
from energy_model import write_energy_model
from openmm import app, unit

import forcefield_ml
from forcefield_ml.deploy.guards.steps import interval
from forcefield_ml.deploy.system import force_groups
from forcefield_ml.deploy.system.bound import bound_models
from forcefield_ml.deploy.system.mm import SUBTRACT_MM
from forcefield_ml.errors import ConfigError, ForceModeError
from forcefield_ml.simulation import fire, mts

pytestmark = [
    pytest.mark.filterwarnings("ignore:this model has forces but no energy"),
    pytest.mark.filterwarnings("error:.*between two kicks"),
    pytest.mark.filterwarnings("error:.*takes back what it does"),
]

H = 0.0005
"""ps, of the inner steps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For models with other cards."""
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def relaxed(wet: Molecules, forcefield: app.ForceField) -> Molecules:
    """The solvated peptide without clashes."""
    context = context_of(mm_system(wet, forcefield), wet, "CPU")
    openmm.LocalEnergyMinimizer.minimize(context, 100.0, 30)
    return wet._replace(positions=context.getState(positions=True).getPositions(asNumpy=True)._value)


def mixed(mode: str, wet: Molecules, forcefield: app.ForceField, folder: Path, **options: Any) -> openmm.System:
    """Return a System in a mode, with MM as its reference where it needs one."""
    card = {
        "solute": {},
        "system": {"target_atoms": "all"},
        "embedded": {"predicts": "solute_alone"},
    }[mode]
    model = forcefield_ml.load(write_model(folder, **card))
    mm = mm_system(wet, forcefield, **options)
    if mode == "system":
        system = model.create_system(wet.topology)
    else:
        system = model.add_to_system(mm_system(wet, forcefield, **options), wet.topology, mode=mode)
    if mode != "solute":
        mts.add_reference(system, mm)
    return system


def run(system: openmm.System, integrator: openmm.Integrator, wet: Molecules, steps: int) -> openmm.State:
    """Return the state after some steps on Reference, from the same velocities."""
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(wet.positions)
    velocities = np.random.default_rng(0).normal(size=wet.positions.shape) * 0.3
    context.setVelocities(velocities)
    context.applyVelocityConstraints(1e-8)
    integrator.step(steps)
    return context.getState(positions=True, velocities=True, energy=True, groups=integrator.getIntegrationForceGroups())


@pytest.mark.parametrize("mode", ["solute", "system", "embedded"])
@pytest.mark.parametrize("thermostat", [False, True])
def test_with_one_inner_step_it_is_the_reference(
    mode: str, thermostat: bool, wet: Molecules, forcefield: app.ForceField, folder: Path
) -> None:
    """With n = 1 the kicks add up to the reference: atoms take the path of MM alone, and the model leaves no trace.

    With a thermostat at 0 K without friction it is leapfrog, as OpenMM's VerletIntegrator.
    """
    system = mixed(mode, wet, forcefield, folder)
    for index in reversed(range(system.getNumForces())):
        if isinstance(system.getForce(index), openmm.CMMotionRemover):
            system.removeForce(index)
    plain = mm_system(wet, forcefield)
    for i in range(system.getNumParticles()):  # those of the force field differ in the fifth digit
        system.setParticleMass(i, plain.getParticleMass(i))
    cold = {"temperature": 1e-12, "friction": 1e-12} if thermostat else {}
    found = run(system, mts.integrator(system, H, 1, **cold), wet, 3)
    verlet = openmm.CustomIntegrator(H)
    verlet.addComputePerDof("v", "v+0.5*dt*f/m")
    verlet.addComputePerDof("x", "x+dt*v")
    verlet.addComputePerDof("v", "v+0.5*dt*f/m")
    expected = run(plain, openmm.VerletIntegrator(H) if thermostat else verlet, wet, 3)
    moved = np.abs(expected.getPositions(asNumpy=True)._value - wet.positions).max()
    differ = np.abs(found.getPositions(asNumpy=True)._value - expected.getPositions(asNumpy=True)._value).max()
    assert differ < 1e-6 * moved, (differ, moved)  # the inner MM of mode solute is in single precision
    assert found.getPotentialEnergy()._value == pytest.approx(expected.getPotentialEnergy()._value, rel=1e-6)


def test_inner_steps_are_the_models(wet: Molecules, forcefield: app.ForceField, folder: Path) -> None:
    """Between outer kicks atoms feel the direct force alone: with n = 2 the path is not that of MM."""
    system = mixed("solute", wet, forcefield, folder)
    n_2 = run(system, mts.integrator(system, H, 2), wet, 2).getPositions(asNumpy=True)._value
    n_1 = run(system, mts.integrator(system, H, 1), wet, 4).getPositions(asNumpy=True)._value
    solvent = np.setdiff1d(np.arange(len(n_1)), wet.solute)
    difference = np.abs(n_2 - n_1).max(axis=1)
    assert difference[wet.solute].max() > 1e-5 and difference[solvent].max() < 0.1 * difference[wet.solute].max()


def test_rigid_water_stays_rigid(wet: Molecules, forcefield: app.ForceField, folder: Path) -> None:
    """Constraints of the solvent hold; velocities along them vanish where they are those of the same moment (NVE)."""
    for options in ({}, {"temperature": 300.0}):
        system = mixed("solute", wet, forcefield, folder, rigidWater=True)
        state = run(system, mts.integrator(system, H, 2, **options), wet, 2)
        x, v = state.getPositions(asNumpy=True)._value, state.getVelocities(asNumpy=True)._value
        for k in range(system.getNumConstraints()):
            i, j, distance = system.getConstraintParameters(k)
            assert np.linalg.norm(x[i] - x[j]) == pytest.approx(distance._value, rel=1e-4)
            assert options or abs((x[i] - x[j]) @ (v[i] - v[j])) < 1e-5


@pytest.mark.parametrize("mode", ["solute", "system"])
def test_check_and_watch_accept_it(
    mode: str, relaxed: Molecules, forcefield: app.ForceField, folder: Path, tmp_path: Path
) -> None:
    """A guarded simulation runs, reports the reference's energy, and the step that counts is the inner one."""
    system = mixed(mode, relaxed, forcefield, folder)
    integrator = mts.integrator(system, 0.1 * H * unit.picosecond, 8, 300 * unit.kelvin, 1 / unit.picosecond)
    simulation = app.Simulation(relaxed.topology, system, integrator, openmm.Platform.getPlatformByName("CPU"))
    simulation.context.setPositions(relaxed.positions)
    forcefield_ml.check(simulation, last_good=tmp_path / "last_good.xml", every=1, torn_bonds=False)
    rows: list[float] = []

    class Reporter:
        def describeNextReport(self, simulation: Any) -> dict[str, Any]:
            return {"steps": 1, "periodic": False, "include": ["energy"]}

        def report(self, simulation: Any, state: openmm.State) -> None:
            rows.append(state.getPotentialEnergy()._value)

    simulation.reporters.append(Reporter())
    simulation.step(2)
    now = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
    context = context_of(mm_system(relaxed, forcefield), relaxed._replace(positions=now), "CPU")
    assert rows[1] == pytest.approx(context.getState(energy=True).getPotentialEnergy()._value, rel=1e-4)
    assert interval(integrator, bound_models(system)[0].force.getForceGroup()) == pytest.approx(0.1 * H)
    assert integrator.getStepSize()._value == pytest.approx(0.8 * H)


def test_minimising_leaves_the_reference_out(wet: Molecules, forcefield: app.ForceField, folder: Path) -> None:
    """FIRE follows the force by which atoms move, not that of model and reference together."""
    system = mixed("system", wet, forcefield, folder)
    alone = forcefield_ml.load(write_model(folder, target_atoms="all")).create_system(wet.topology)
    largest = np.linalg.norm(forces_of(context_of(alone, wet, "CPU")), axis=1).max()
    assert fire.minimise(context_of(system, wet, "CPU"), max_steps=1).start_max_force == pytest.approx(
        largest, rel=1e-4
    )


def test_a_reference_counts_twice_with_other_integrators(
    wet: Molecules, forcefield: app.ForceField, folder: Path
) -> None:
    """Any integrator that adds up all forces is refused where a reference stands beside the model."""
    system = mixed("system", wet, forcefield, folder)
    for integrator in (openmm.VerletIntegrator(H), openmm.MTSIntegrator(8 * H, [(1, 8), (2, 1)])):
        context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
        with pytest.raises(ForceModeError, match=r"Integrator adds up, so that forces count twice.*mts\.integrator"):
            forcefield_ml.check(context)


def test_groups_changed_afterwards(wet: Molecules, forcefield: app.ForceField, folder: Path) -> None:
    """A force moved to another group, or added to the model's, is named; one added to group 0 acts beside MM."""
    for name, group in (("NonbondedForce", 1), (SUBTRACT_MM, 0), ("HarmonicBondForce", 7)):
        system = mixed("solute", wet, forcefield, folder)
        integrator = mts.integrator(system, H, 8)
        next(force for force in system.getForces() if force.getName() == name).setForceGroup(group)
        context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
        with pytest.raises(ForceModeError, match=f"{name} is in force group {group}, but must be in"):
            forcefield_ml.check(context)
    system = mixed("solute", wet, forcefield, folder)
    integrator = mts.integrator(system, H, 8)
    system.addForce(openmm.CustomExternalForce("x"))
    forcefield_ml.check(openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU")))


def test_forces_are_known_by_what_they_call(wet: Molecules, forcefield: app.ForceField, folder: Path) -> None:
    """Another name makes no shared force of the model or of what takes MM off the solute."""
    system = mixed("solute", wet, forcefield, folder)
    for force in system.getForces():
        if isinstance(force, openmm.PythonForce):
            force.setName(f"renamed {force.getName()}")
    assert force_groups.arrange(system) == force_groups.ForceGroups((0,), (1,), ())
    mts.integrator(system, H, 8)


def test_a_model_with_an_energy_is_a_reference(
    wet: Molecules, forcefield: app.ForceField, folder: Path, tmp_path: Path
) -> None:
    """It kicks once in n steps and is none of the models that act: nothing overlaps, and `check` lets it pass."""
    system = forcefield_ml.load(write_model(folder, target_atoms="all")).create_system(wet.topology)
    springs = forcefield_ml.load(write_energy_model(tmp_path, target_atoms="all"))
    mts.add_reference(system, springs.create_system(wet.topology))
    assert [model.has_energy for model in bound_models(system)] == [False]
    context = openmm.Context(system, mts.integrator(system, H, 8), openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(wet.positions)
    forcefield_ml.check(context)
    found = context.getState(energy=True, groups=context.getIntegrator().getIntegrationForceGroups())
    away = wet.positions - wet.positions.mean(axis=0)
    assert found.getPotentialEnergy()._value == pytest.approx(500 * (away**2).sum(), rel=1e-5)


def test_restraints_beside_a_reference_act_in_both(wet: Molecules, forcefield: app.ForceField, folder: Path) -> None:
    """What is added after the reference is no part of what the reference stands for, so the outer kick keeps it."""
    system = mixed("system", wet, forcefield, folder)
    restraint = openmm.CustomExternalForce("x")
    system.addForce(restraint)
    groups = force_groups.arrange(system)
    assert groups == force_groups.ForceGroups((0,), (1,), (2,)) and restraint.getForceGroup() == 0
    assert groups.energy == 0b101 and groups.acting == 0b011
    assert force_groups.of_integrator(mts.integrator(system, H, 8)) == groups
    assert force_groups.of_integrator(openmm.MTSIntegrator(0.001, [(0, 1)])) is None


def test_restraints_before_a_reference_are_told(wet: Molecules, forcefield: app.ForceField, folder: Path) -> None:
    """The outer kick takes back what they do: with n = 1 a pull on an atom leaves no trace, and nobody would know."""
    model = forcefield_ml.load(write_model(folder, target_atoms="all"))
    velocities = {}
    for when in ("never", "before", "after"):
        system, pull = model.create_system(wet.topology), openmm.CustomExternalForce("1000*x")
        pull.addParticle(0, [])
        if when == "before":
            system.addForce(pull)
            with pytest.warns(UserWarning, match=r"CustomExternalForce was .* takes back .* Add restraints and biases"):
                mts.add_reference(system, mm_system(wet, forcefield))
        else:
            mts.add_reference(system, mm_system(wet, forcefield))
        if when == "after":
            system.addForce(pull)
        state = run(system, mts.integrator(system, H, 1), wet, 1)
        velocities[when] = state.getVelocities(asNumpy=True)._value[0]
    assert velocities["before"] == pytest.approx(velocities["never"], abs=1e-6)
    assert abs(velocities["after"] - velocities["never"])[0] > 0.01


def test_no_reference(wet: Molecules, forcefield: app.ForceField, folder: Path) -> None:
    """Without a model, without a reference, with one that is none: each is refused with its reason."""
    with pytest.raises(ForceModeError, match="holds no model"):
        mts.integrator(mm_system(wet, forcefield))
    model = forcefield_ml.load(write_model(folder, target_atoms="all"))
    system = model.create_system(wet.topology)
    with pytest.raises(ForceModeError, match=r"no conservative reference.*add_reference"):
        mts.integrator(system)
    for reference, told in (
        (model.create_system(wet.topology), "forces-without-energy, which has no energy"),
        (bare_system(wet), "has no forces"),
        (openmm.System(), "has 0 particles"),
        (mm_system(wet, forcefield, rigidWater=True), "constraints=None"),
    ):
        with pytest.raises(ForceModeError, match=told):
            mts.add_reference(system, reference)
    mts.add_reference(system, mm_system(wet, forcefield))
    with pytest.raises(ForceModeError, match="has a reference already"):
        mts.add_reference(system, mm_system(wet, forcefield))
    with pytest.raises(ForceModeError, match="add one first"):
        mts.add_reference(mm_system(wet, forcefield), mm_system(wet, forcefield))


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"n": 2.5}, {"timestep": -1.0}, {"temperature": 0.0}, {"friction": np.nan}]
)
def test_numbers_out_of_range(
    wrong: dict[str, Any], wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed]
) -> None:
    """Each is named with its value."""
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        mts.integrator(mm_system(wet, forcefield), **wrong)


def test_resonance_is_warned_of(wet: Molecules, forcefield: app.ForceField, folder: Path) -> None:
    """Above 4 fs between outer kicks, with hydrogens of 1 u; heavy ones allow more."""
    system = mixed("solute", wet, forcefield, folder)
    mts.integrator(system, H, 8)
    with pytest.warns(UserWarning, match=r"5 fs between two kicks.*n=8$"):
        mts.integrator(system, H, 10)
    mts.integrator(mixed("solute", wet, forcefield, folder, hydrogenMass=3.0), H, 12)
