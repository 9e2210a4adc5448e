"""`forcefield_ml.check` finds what was changed after the model joined, in a Simulation and in a bare Context."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import openmm
import pytest
from deploy_helpers import Deployed, Molecules, context_of, write_model
from openmm import app, unit

import forcefield_ml
from forcefield_ml.deploy.guards.order import check_order
from forcefield_ml.deploy.system.bound import bound_models
from forcefield_ml.deploy.system.mm import BAROSTATS, SUBTRACT_MM
from forcefield_ml.errors import BoxError, ConfigError, ForceModeError, TopologyError, UnstableError

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")

BACKENDS = ("pythonforce", "torchforce")


@pytest.fixture
def mixed(wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed]) -> Callable[..., openmm.System]:
    """Make a System in mode solute; options go to createSystem."""

    def make(backend: str = "pythonforce", **options: Any) -> openmm.System:
        flexible = {"constraints": None, "rigidWater": False, "nonbondedMethod": app.PME, "nonbondedCutoff": 0.8}
        system = forcefield.createSystem(wet.topology, **{**flexible, **options})
        model = forcefield_ml.load(deployed["fast"].path)
        return model.add_to_system(system, wet.topology, backend=backend, mm_platform="CPU")

    return make


def simulation_of(
    system: openmm.System, molecules: Molecules, integrator: openmm.Integrator | None = None
) -> app.Simulation:
    """Return a Simulation with positions set."""
    platform = openmm.Platform.getPlatformByName("CPU")
    simulation = app.Simulation(molecules.topology, system, integrator or openmm.VerletIntegrator(0.0005), platform)
    simulation.context.setPositions(molecules.positions)
    return simulation


def test_a_sound_simulation_is_let_through(wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """Without a mistake nothing is raised and nothing said; rigid water may stay where the model does not act."""
    for options in ({}, {"backend": "torchforce"}, {"rigidWater": True}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", message="this model has forces but no energy")
            simulation = simulation_of(mixed(**options), wet)
            assert forcefield_ml.check(simulation) is simulation
            simulation.step(2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_models_are_found(
    backend: str, wet: Molecules, deployed: dict[str, Deployed], mixed: Callable[..., openmm.System]
) -> None:
    """What a force was bound to is read back from the System, for either backend."""
    (model,) = bound_models(mixed(backend))
    assert (model.backend, model.has_energy, model.targets) == (backend, False, sorted(wet.solute))
    assert model.inputs == list(range(wet.topology.getNumAtoms()))
    assert model.species == [atom.element.atomic_number for atom in wet.topology.atoms()]
    assert np.allclose(model.box, wet.box)


def test_a_force_with_a_borrowed_name(wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """A force of someone else's under a model's name is refused, and its code is not run."""
    system = mixed()
    ran = []
    other = openmm.PythonForce(_foreign)
    other.setName(bound_models(system)[0].force.getName())
    system.addForce(other)
    with pytest.raises(ForceModeError, match="another name"):
        forcefield_ml.check(simulation_of(system, wet))
    assert not ran


def _foreign(state: openmm.State) -> tuple[float, np.ndarray]:
    raise AssertionError


@pytest.mark.parametrize("name", BAROSTATS)
def test_barostats_added_later(name: str, wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """Each kind of barostat is found when it was added after the model."""
    system = mixed()
    arguments: dict[str, tuple[Any, ...]] = {
        "MonteCarloAnisotropicBarostat": (openmm.Vec3(1, 1, 1), 300),
        "MonteCarloMembraneBarostat": (1, 0, 300, 0, 0),
    }
    system.addForce(getattr(openmm, name)(*arguments.get(name, (1, 300))))
    with pytest.raises(ForceModeError, match=f"a {name} accepts moves by the energy.*constant volume"):
        forcefield_ml.check(simulation_of(system, wet))


@pytest.mark.parametrize("backend", BACKENDS)
def test_constraints_added_later(backend: str, wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """A constraint on an atom that feels the model is found though the model was there first; others may stay."""
    system = mixed(backend)
    water = next(r for r in wet.topology.residues() if r.name == "HOH")
    oxygen, hydrogen, _ = (atom.index for atom in water.atoms())
    system.addConstraint(oxygen, hydrogen, 0.0957)
    forcefield_ml.check(simulation_of(system, wet))
    system.addConstraint(wet.solute[0], wet.solute[1], 0.1)
    with pytest.raises(ForceModeError, match=r"1 constraints act on the atoms.*flexible"):
        forcefield_ml.check(simulation_of(system, wet))


def test_rigid_water_that_feels_the_model(wet: Molecules, forcefield: app.ForceField, tmp_path: Any) -> None:
    """Where the model acts on water, rigid water is refused, in mode correction as in the others."""
    model = forcefield_ml.load(write_model(tmp_path, predicts="reference_minus_mm", target_atoms="all"))
    system = forcefield.createSystem(wet.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.8, rigidWater=True)
    with pytest.raises(ForceModeError, match="rigidWater=False"):
        model.add_to_system(system, wet.topology, mode="correction")


def test_virtual_and_frozen_atoms(wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """A virtual site among the model's atoms is refused; frozen ones are named in a warning, frozen water is not."""
    system = mixed()
    system.setParticleMass(wet.topology.getNumAtoms() - 1, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="this model has forces but no energy")
        forcefield_ml.check(simulation_of(system, wet))
    system.setParticleMass(wet.solute[2], 0)
    with pytest.warns(UserWarning, match=r"1 of the atoms that feel the model have mass zero \(LYS351"):
        forcefield_ml.check(simulation_of(system, wet))
    system.setVirtualSite(wet.solute[2], openmm.TwoParticleAverageSite(wet.solute[0], wet.solute[1], 0.5, 0.5))
    with pytest.raises(ForceModeError, match=r"virtual sites \(LYS351"):
        forcefield_ml.check(simulation_of(system, wet))


def test_time_steps(wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """Above 1 fs warns and above 2 fs is refused, at check and when the step grows; the warning points at the call."""
    with pytest.warns(UserWarning, match=r"time step of 1\.5 fs is long") as caught:
        simulation = forcefield_ml.check(simulation_of(mixed(), wet, openmm.VerletIntegrator(0.0015)))
    assert [w.filename for w in caught if "time step" in str(w.message)] == [__file__]
    simulation.integrator.setStepSize(0.0005)
    simulation.step(1)
    simulation.integrator.setStepSize(0.004)
    with pytest.raises(ForceModeError, match=r"every 4 fs, but no constraint holds \w+:\w+ \(\d+\) of 1\.01 u"):
        simulation.step(1)
    with pytest.raises(ForceModeError, match="3 fs"):
        forcefield_ml.check(simulation_of(mixed(), wet, openmm.VerletIntegrator(0.003)))


def test_force_groups_of_mode_solute(wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """With multiple time steps MM and what takes MM off the solute must act together; the model may act alone."""
    system = mixed()
    for force in system.getForces():
        force.setForceGroup(1)
    bound_models(system)[0].force.setForceGroup(0)
    forcefield_ml.check(simulation_of(system, wet, openmm.MTSIntegrator(0.002, [(1, 2), (0, 4)])))
    bonds = next(force for force in system.getForces() if isinstance(force, openmm.HarmonicBondForce))
    bonds.setForceGroup(0)
    with pytest.raises(ForceModeError, match=rf"{SUBTRACT_MM}, group 1.*HarmonicBondForce in 0"):
        forcefield_ml.check(simulation_of(system, wet, openmm.MTSIntegrator(0.002, [(1, 2), (0, 4)])))
    forcefield_ml.check(simulation_of(system, wet))  # without multiple time steps groups are no matter


def test_boxes(wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed]) -> None:
    """Another box in the Context, one of NaN, and MM that knows no box beside a model that does, are refused."""
    model = forcefield_ml.load(deployed["fast"].path)
    system = forcefield.createSystem(wet.topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False)
    system.addForce(model.create_force(wet.topology))
    with pytest.raises(BoxError, match="bound to a periodic box, but NonbondedForce is not periodic"):
        forcefield_ml.check(context_of(system, wet, "CPU"))


def test_box_under_twice_the_cutoff(wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """A box changed before or after check is refused, at check and at the next step."""
    simulation = forcefield_ml.check(simulation_of(mixed(), wet))
    small = [openmm.Vec3(*row) for row in np.diag([1.62] * 3)]
    simulation.context.setPeriodicBoxVectors(*small)
    with pytest.raises(BoxError, match="not the one the model was bound to"):
        forcefield_ml.check(simulation)
    with pytest.raises(BoxError, match=r"box differs by 0\.08 nm"):
        simulation.step(1)


def test_other_orders_and_sizes(dry: Molecules, wet: Molecules, forcefield: app.ForceField) -> None:
    """A topology of another size or order is refused; heavy hydrogens and frozen atoms in the right order are not."""
    order = [1, 0, *range(2, dry.topology.getNumAtoms())]
    shuffled = app.Topology()
    residues = {r: shuffled.addResidue(r.name, shuffled.addChain(), r.id) for r in dry.topology.residues()}
    atoms = list(dry.topology.atoms())
    for i in order:
        shuffled.addAtom(atoms[i].name, atoms[i].element, residues[atoms[i].residue])
    for options in ({}, {"hydrogenMass": 3.0}):
        system = forcefield.createSystem(dry.topology, **options)
        check_order(system, dry.topology)
        with pytest.raises(TopologyError, match="particles, the topology"):
            check_order(system, wet.topology)
    system = forcefield.createSystem(dry.topology)
    frozen = copy.deepcopy(system)
    frozen.setParticleMass(0, 0)
    check_order(frozen, dry.topology)
    with pytest.raises(TopologyError, match=r"LYS351:\w+ \(0\)"):
        check_order(system, shuffled)
    backwards = app.Modeller(wet.topology, wet.positions * unit.nanometer)
    solvent = [r for r in wet.topology.residues() if r.name in ("HOH", "NA", "CL")]
    backwards.delete(solvent)
    first = app.Modeller(wet.topology, wet.positions * unit.nanometer)
    first.delete([r for r in wet.topology.residues() if r not in solvent])
    first.add(backwards.topology, backwards.positions)  # water first, protein last
    heavy = forcefield.createSystem(wet.topology, hydrogenMass=3.0)
    with pytest.raises(TopologyError, match=r"from HOH\d+:O \(0\) on"):
        check_order(heavy, first.topology)


def test_positions_in_angstrom(wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """Positions ten times too far apart are taken for ångström; a Context without positions is not looked at."""
    context = simulation_of(mixed(), wet).context
    context.setPositions(10 * wet.positions)
    with pytest.raises(ConfigError, match=r"unit\.angstrom"):
        forcefield_ml.check(context)
    empty = openmm.Context(mixed(), openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName("CPU"))
    assert forcefield_ml.check(empty) is empty


def test_forces_are_tried(wet: Molecules, mixed: Callable[..., openmm.System]) -> None:
    """What the model finds wrong at the start is told by check, with the atom; NaN positions are."""
    for backend in BACKENDS:
        simulation = simulation_of(mixed(backend), wet)
        positions = wet.positions.copy()
        positions[wet.solute[4]] = np.nan
        simulation.context.setPositions(positions)
        with pytest.raises(UnstableError, match=r"positions are not finite: .*LYS351.*\(.*4\)") as caught:
            forcefield_ml.check(simulation)
        assert "TorchScript" not in str(caught.value)


def test_hardware_that_does_not_match(
    wet: Molecules, mixed: Callable[..., openmm.System], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Check warns where model and OpenMM run apart."""
    simulation = simulation_of(mixed(), wet)
    simulation.context.getState(forces=True)
    monkeypatch.setattr("forcefield_ml.deploy.guards.check.choose_device", lambda wanted: "cuda")
    with pytest.warns(UserWarning, match="the model runs on cuda, OpenMM on its CPU platform"):
        forcefield_ml.check(simulation)
