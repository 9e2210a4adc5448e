"""The four modes atom by atom against independent sums, and their refusals."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from deploy_helpers import (
    AMBER14,
    Deployed,
    Molecules,
    bare_system,
    context_of,
    eager_forces,
    forces_of,
    make_model,
    mm_system,
    per_atom,
    write_model,
)
from openmm import app

import forcefield_ml
from forcefield_ml import models
from forcefield_ml.deploy.system.bound import bound_models, callable_of
from forcefield_ml.errors import BoxError, ForceModeError, TopologyError

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")

PER_ATOM = 1e-4
"""|difference| on an atom over the root mean square MM force, single precision MM taken twice."""


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
@pytest.mark.parametrize("structure", ["wet", "dry"])
def test_solute(
    platform: str,
    backend: str,
    structure: str,
    forcefield: app.ForceField,
    deployed: dict[str, Deployed],
    request: pytest.FixtureRequest,
) -> None:
    """Each solute atom feels exactly the network, each solvent atom exactly full MM, solute included."""
    molecules: Molecules = request.getfixturevalue(structure)
    system = mm_system(molecules, forcefield)
    mm = forces_of(context_of(system, molecules, platform))
    scale = float(np.sqrt((mm**2).sum(1).mean()))
    expected = eager_forces(deployed["fast"].eager, molecules)
    solvent = np.setdiff1d(np.arange(len(mm)), molecules.solute)
    expected[solvent] = mm[solvent]
    # A hundred times what is allowed below; the scale depends on the water that happens to lie nearest.
    assert per_atom(mm[molecules.solute], expected[molecules.solute], scale) > 100 * PER_ATOM, "control: MM differs"
    model = forcefield_ml.load(deployed["fast"].path)
    returned = model.add_to_system(system, molecules.topology, backend=backend)
    assert returned is system
    context = context_of(system, molecules, platform)
    for factor in (1.0, 1.002, 1.0):  # the inner Context follows the positions
        context.setPositions(molecules.positions * factor)
        found = forces_of(context)
    assert per_atom(found, expected, scale) < PER_ATOM
    assert any(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())


def test_solute_runs_with_any_integrator_and_survives_xml(
    wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed]
) -> None:
    """The System can be stored, read back and stepped by a Langevin integrator; forces are those before."""
    system = mm_system(wet, forcefield)
    forcefield_ml.load(deployed["fast"].path).add_to_system(system, wet.topology)
    expected = forces_of(context_of(system, wet, "CPU"))
    again = openmm.XmlSerializer.clone(system)
    integrator = openmm.LangevinMiddleIntegrator(300, 5, 0.0002)
    context = openmm.Context(again, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(wet.positions)
    assert np.allclose(forces_of(context), expected, rtol=1e-3, atol=0.5)
    integrator.step(3)
    assert np.isfinite(forces_of(context)).all()


def test_solute_follows_parameters(dry: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed]) -> None:
    """A term of the MM system that a parameter switches on later is taken off the solute, too."""
    system = mm_system(dry, forcefield)
    field = openmm.CustomExternalForce("strength*(x + 2*y)")
    field.addGlobalParameter("strength", 0.0)
    for i in dry.solute:
        field.addParticle(i, [])
    system.addForce(field)
    forcefield_ml.load(deployed["fast"].path).add_to_system(system, dry.topology)
    context = context_of(system, dry, "Reference")
    before = forces_of(context)
    context.setParameter("strength", 1e4)
    assert np.abs(forces_of(context) - before).max() < 1


def test_constraints_on_the_solute(wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed]) -> None:
    """Rigid water may stay; constraints on the solute are refused with the option that avoids them."""
    model = forcefield_ml.load(deployed["fast"].path)
    model.add_to_system(mm_system(wet, forcefield, rigidWater=True), wet.topology)
    with pytest.raises(ForceModeError, match="constraints=None"):
        model.add_to_system(mm_system(wet, forcefield, constraints=app.HBonds), wet.topology)


def test_embedded(wet: Molecules, dry: Molecules, forcefield: app.ForceField, tmp_path: Path) -> None:
    """Solvent feels full MM; the solute feels MM without its own terms plus the network of itself alone.

    The solute's own MM terms are computed from the solute in vacuum, without a cutoff.
    """
    path = write_model(tmp_path, predicts="solute_alone")
    system = mm_system(wet, forcefield)
    full = forces_of(context_of(system, wet, "Reference"))
    alone = Molecules(dry.topology, wet.positions[wet.solute], None, dry.solute)
    expected = full.copy()
    expected[wet.solute] -= forces_of(context_of(mm_system(alone, forcefield), alone, "Reference"))
    expected[wet.solute] += eager_forces(make_model("fast"), alone)
    mixed = forcefield_ml.load(path).add_to_system(system, wet.topology, mode="embedded")
    assert system.getNumForces() == mixed.getNumForces() - 2, "model and CMMotionRemover; the one given stays as it is"
    found = forces_of(context_of(mixed, wet, "Reference"))
    scale = float(np.sqrt((full**2).sum(1).mean()))
    assert per_atom(found, expected, scale) < 2e-3  # Lennard-Jones beyond the cutoff, Ewald tolerance
    others = np.setdiff1d(np.arange(len(full)), wet.solute)
    assert per_atom(found[others], full[others], scale) < 1e-9


def test_embedded_refuses_forces_it_cannot_split(wet: Molecules, forcefield: app.ForceField, tmp_path: Path) -> None:
    """A force of a class whose terms cannot be told apart is named."""
    system = mm_system(wet, forcefield)
    force = openmm.CustomCentroidBondForce(1, "x1")
    force.setName("restraint of the centre")
    system.addForce(force)
    model = forcefield_ml.load(write_model(tmp_path, predicts="solute_alone"))
    with pytest.raises(ForceModeError, match="restraint of the centre"):
        model.add_to_system(system, wet.topology, mode="embedded")


def test_correction(dry: Molecules, forcefield: app.ForceField, tmp_path: Path) -> None:
    """The network's force comes on top of MM."""
    path = write_model(tmp_path, predicts="reference_minus_mm")
    system = mm_system(dry, forcefield)
    expected = forces_of(context_of(system, dry, "Reference")) + eager_forces(make_model("fast"), dry)
    forcefield_ml.load(path).add_to_system(system, dry.topology, mode="correction")
    found = forces_of(context_of(system, dry, "Reference"))
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-4


@pytest.mark.parametrize("target_atoms", ["solute", "all"])
def test_correction_in_water(target_atoms: str, wet: Molecules, forcefield: app.ForceField, tmp_path: Path) -> None:
    """The network's force comes on top of MM on the atoms that the card names, and on these alone."""
    path = write_model(tmp_path, predicts="reference_minus_mm", target_atoms=target_atoms)
    system = mm_system(wet, forcefield)
    mm, network = forces_of(context_of(system, wet, "Reference")), eager_forces(make_model("fast"), wet)
    expected = mm.copy()
    chosen = wet.solute if target_atoms == "solute" else range(len(mm))
    expected[chosen] += network[chosen]
    forcefield_ml.load(path).add_to_system(system, wet.topology, mode="correction")
    found = forces_of(context_of(system, wet, "Reference"))
    assert per_atom(found, expected, float(np.sqrt((mm**2).sum(1).mean()))) < PER_ATOM


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
def test_system(backend: str, wet: Molecules, tmp_path: Path) -> None:
    """Every atom, water and ions included, feels the network and nothing else; with and without its net force."""
    model = forcefield_ml.load(write_model(tmp_path, target_atoms="all"))
    expected = eager_forces(make_model("fast"), wet)
    scale = float(np.sqrt((expected**2).sum(1).mean()))
    mean = expected.mean(axis=0)
    assert np.linalg.norm(mean) > 20 * PER_ATOM * scale, "control: a direct force has a net force"
    for keep, wanted in ((True, expected), (False, expected - mean)):
        system = model.create_system(wet.topology, backend=backend, remove_net_force=None if not keep else False)
        found = forces_of(context_of(system, wet, "Reference"))
        assert per_atom(found, wanted, scale) < PER_ATOM
        assert bound_models(system)[0].removes_net_force is not keep
    assert np.abs(found.sum(axis=0)).max() < 1e-9 * np.abs(found).sum()


def test_a_part_keeps_its_net_force(
    wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed], tmp_path: Path
) -> None:
    """On the solute nothing is taken off, and asking for it is refused; correction acts on all atoms unchanged."""
    model = forcefield_ml.load(deployed["fast"].path)
    with pytest.raises(ForceModeError, match="part of a system do not sum to zero"):
        model.add_to_system(mm_system(wet, forcefield), wet.topology, remove_net_force=True)
    system = model.add_to_system(mm_system(wet, forcefield), wet.topology)
    other = forcefield_ml.load(write_model(tmp_path, predicts="reference_minus_mm", target_atoms="all"))
    corrected = other.add_to_system(mm_system(wet, forcefield), wet.topology, mode="correction")
    for made in (system, corrected):
        assert not bound_models(made)[0].removes_net_force


def test_a_stored_system_keeps_its_net_force_removed(wet: Molecules, tmp_path: Path) -> None:
    """XML holds the choice; one stored before there was a choice is read as it was meant, without."""
    system = forcefield_ml.load(write_model(tmp_path, target_atoms="all")).create_system(wet.topology)
    text = openmm.XmlSerializer.serialize(system)
    assert bound_models(forcefield_ml.read_system(text))[0].removes_net_force
    made = callable_of(bound_models(system)[0].force)
    del made.binding["remove_net_force"]
    former = openmm.PythonForce(made)
    former.setName(bound_models(system)[0].force.getName())
    former.setUsesPeriodicBoundaryConditions(True)
    old = bare_system(wet)
    old.addForce(former)
    assert not bound_models(old)[0].removes_net_force
    assert np.abs(forces_of(context_of(old, wet, "Reference")).sum(axis=0)).max() > 1


def test_a_model_of_the_solute_alone_sees_nothing_else(wet: Molecules, tmp_path: Path) -> None:
    """The bare force, and forces without OpenMM, are those of the solute without water, too."""
    model = forcefield_ml.load(write_model(tmp_path, predicts="solute_alone"))
    system = bare_system(wet)
    system.addForce(model.create_force(wet.topology))
    expected = np.zeros((len(wet.positions), 3))
    expected[wet.solute] = solute_network(wet)
    scale = float(np.sqrt((expected[wet.solute] ** 2).sum(1).mean()))
    assert per_atom(forces_of(context_of(system, wet, "Reference")), expected, scale) < PER_ATOM
    for options in ({}, {"atoms": wet.solute}):
        found = model.forces(wet.positions, wet.box, topology=wet.topology, **options)
        assert per_atom(found, expected[wet.solute], scale) < PER_ATOM
    in_water = eager_forces(make_model("fast"), wet)[wet.solute]
    assert per_atom(in_water, expected[wet.solute], scale) > 100 * PER_ATOM, "control: water makes a difference"


def solute_network(molecules: Molecules) -> np.ndarray:
    """Return the eager model's forces on the solute without anything else, (n, 3)."""
    species = torch.tensor([a.element.atomic_number for a in molecules.topology.atoms()])[molecules.solute]
    positions = torch.tensor(molecules.positions[molecules.solute], dtype=torch.float32)
    model = make_model("fast")
    with torch.no_grad():
        layers = [len(species)] * model.capabilities.n_layers
        found = model(models.Atoms(species), model.search()(positions, None), layers).forces
    return found.double().numpy()


ALLOWED = {
    ("total", "solute"): {"solute"},
    ("total", "all"): {"solute", "system"},
    ("total_minus_reciprocal", "solute"): {"solute"},
    ("total_minus_reciprocal", "all"): {"solute", "system"},
    ("solute_alone", "solute"): {"embedded"},
    ("reference_minus_mm", "solute"): {"correction"},
    ("reference_minus_mm", "all"): {"correction"},
}


@pytest.mark.parametrize("predicts, target_atoms", ALLOWED)
def test_the_card_decides(
    predicts: str, target_atoms: str, wet: Molecules, forcefield: app.ForceField, tmp_path: Path
) -> None:
    """Each card admits its own modes and no other; the refusal of a known mode names what the card says."""
    reciprocal = {"alpha": 4.5, "force_field": AMBER14} if predicts == "total_minus_reciprocal" else None
    path = write_model(tmp_path, predicts=predicts, target_atoms=target_atoms, reciprocal=reciprocal)
    model = forcefield_ml.load(path)
    for mode in ("system", "solute", "embedded", "correction"):
        system = bare_system(wet) if mode == "system" else mm_system(wet, forcefield)
        if mode in ALLOWED[predicts, target_atoms]:
            model.add_to_system(system, wet.topology, mode=mode)
        else:
            with pytest.raises(ForceModeError, match="card"):
                model.add_to_system(system, wet.topology, mode=mode)
    with pytest.raises(ForceModeError, match="Did you mean 'solute'"):
        model.add_to_system(bare_system(wet), wet.topology, mode="solut")


def test_create_system_sends_a_solute_model_to_add_to_system(dry: Molecules, deployed: dict[str, Deployed]) -> None:
    """The error says what to call instead."""
    with pytest.raises(ForceModeError, match=r"model\.add_to_system"):
        forcefield_ml.load(deployed["fast"].path).create_system(dry.topology)


def test_systems_that_do_not_fit(
    dry: Molecules, wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed], tmp_path: Path
) -> None:
    """No MM forces, another topology, another box, a barostat, a second model: each is refused with its reason."""
    model = forcefield_ml.load(deployed["fast"].path)
    with pytest.raises(ForceModeError, match="no forces"):
        model.add_to_system(bare_system(dry), dry.topology)
    with pytest.raises(TopologyError, match="particles"):
        model.add_to_system(mm_system(dry, forcefield), wet.topology)
    with pytest.raises(BoxError, match="not periodic"):
        model.add_to_system(mm_system(wet, forcefield, nonbondedMethod=app.NoCutoff), wet.topology)
    other = mm_system(wet, forcefield)
    other.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in 1.1 * wet.box))
    with pytest.raises(BoxError, match="setPeriodicBoxVectors"):
        model.add_to_system(other, wet.topology)
    barostat = mm_system(wet, forcefield)
    barostat.addForce(openmm.MonteCarloBarostat(1, 300))
    with pytest.raises(ForceModeError, match="constant volume"):
        model.add_to_system(barostat, wet.topology)
    twice = mm_system(wet, forcefield)
    model.add_to_system(twice, wet.topology)
    with pytest.raises(ForceModeError, match="second"):
        model.add_to_system(twice, wet.topology)
    whole = forcefield_ml.load(write_model(tmp_path, target_atoms="all"))
    with pytest.raises(ForceModeError, match="create_system"):
        whole.add_to_system(mm_system(wet, forcefield), wet.topology, mode="system")
