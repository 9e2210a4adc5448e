"""A model that leaves the reciprocal-space sum to OpenMM: the sum is there once, on the right atoms, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
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
from data_pipeline.labels import ewald
from forcefield_ml.deploy.model import DeployedModel
from forcefield_ml.deploy.model_file.card import MESH_TOLERANCE, make_card
from forcefield_ml.deploy.system import force_groups
from forcefield_ml.errors import BoxError, ForceModeError, ModelFileError
from forcefield_ml.simulation import mts

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")

ALPHA = 4.0
"""1/nm; not the alpha that OpenMM would take for any MM system here."""

PER_ATOM = 1e-4
"""|difference| on an atom over the root mean square force."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> DeployedModel:
    """Return a model with random weights whose card leaves the reciprocal sum to OpenMM, on a fine mesh."""
    reciprocal = {"alpha": ALPHA, "force_field": AMBER14, "tolerance": 1e-6}
    folder = tmp_path_factory.mktemp("reciprocal")
    return forcefield_ml.load(
        write_model(folder, predicts="total_minus_reciprocal", target_atoms="all", reciprocal=reciprocal)
    )


def reciprocal_group(molecules: Molecules, forcefield: app.ForceField) -> np.ndarray:
    """Return the reciprocal-space forces of a whole AMBER14 system at ALPHA, as OpenMM's force groups tell them."""
    system = mm_system(molecules, forcefield, nonbondedCutoff=0.6)
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setReciprocalSpaceForceGroup(7)
            force.setPMEParameters(ALPHA, *(int(n) for n in ewald.mesh(molecules.box, ALPHA, 1e-6)))
    return forces_of(context_of(system, molecules, "Reference"), groups={7})


def scale_of(forces: np.ndarray) -> float:
    return float(np.sqrt((forces**2).sum(1).mean()))


def test_beside_the_reference_of_multiple_time_steps(
    model: DeployedModel, wet: Molecules, forcefield: app.ForceField
) -> None:
    """MM in full beside network and reciprocal sum: each group has the forces it has alone, on the CPU platform."""
    system = model.create_system(wet.topology)
    alone = forces_of(context_of(system, wet, "CPU"))
    mm = mm_system(wet, forcefield)
    mts.add_reference(system, mm)
    groups = mts.integrator(system)
    context = context_of(system, wet, "CPU")
    scale = scale_of(alone)
    assert per_atom(forces_of(context, groups=force_groups.acting(system)), alone, scale) < PER_ATOM
    plain = context_of(mm, wet, "CPU")
    expected = forces_of(plain)
    assert per_atom(forces_of(context, groups=groups.getIntegrationForceGroups()), expected, scale) < PER_ATOM
    assert "forcefield_ml:reciprocal" in [force.getName() for force in system.getForces()]


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
@pytest.mark.parametrize("structure", ["wet", "triclinic"])
def test_system(
    platform: str,
    structure: str,
    model: DeployedModel,
    forcefield: app.ForceField,
    request: pytest.FixtureRequest,
) -> None:
    """Every atom feels the network plus the reciprocal part of AMBER14's own PME, wherever the charges come from."""
    molecules: Molecules = request.getfixturevalue(structure)
    network, supplied = eager_forces(make_model("fast"), molecules), reciprocal_group(molecules, forcefield)
    scale = scale_of(network)
    network -= network.mean(axis=0)
    assert per_atom(network, network + supplied, scale) > 100 * PER_ATOM, "control: it makes a difference"
    mm = mm_system(molecules, forcefield)
    nonbonded = next(force for force in mm.getForces() if isinstance(force, openmm.NonbondedForce))
    numbers = [nonbonded.getParticleParameters(i)[0]._value for i in range(mm.getNumParticles())]
    for charges in (None, mm, numbers):
        system = model.create_system(molecules.topology, charges=charges)
        found = forces_of(context_of(system, molecules, platform))
        assert per_atom(found, network + supplied, scale) < PER_ATOM


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_solute(platform: str, backend: str, model: DeployedModel, wet: Molecules, forcefield: app.ForceField) -> None:
    """A solute atom feels network plus reciprocal sum, once; a solvent atom feels full MM and no second sum."""
    system = mm_system(wet, forcefield)
    expected = forces_of(context_of(system, wet, platform))
    scale = scale_of(expected)
    supplied = reciprocal_group(wet, forcefield)
    expected[wet.solute] = (eager_forces(make_model("fast"), wet) + supplied)[wet.solute]
    model.add_to_system(system, wet.topology, atoms=wet.solute, backend=backend)
    context = context_of(system, wet, platform)
    for factor in (1.0, 1.002, 1.0):  # the inner Contexts follow the positions
        context.setPositions(wet.positions * factor)
        found = forces_of(context)
    assert per_atom(found, expected, scale) < PER_ATOM
    for wrong in (-1.0, 1.0):
        other = expected.copy()
        other[wet.solute] += wrong * supplied[wet.solute]
        assert per_atom(found, other, scale) > 100 * PER_ATOM, "control: none, or twice, would be seen"


def test_mode_solute_survives_xml(model: DeployedModel, wet: Molecules, forcefield: app.ForceField) -> None:
    """The System can be stored, read back without running foreign code, and gives the same forces."""
    system = model.add_to_system(mm_system(wet, forcefield), wet.topology)
    expected = forces_of(context_of(system, wet, "Reference"))
    again = forcefield_ml.read_system(openmm.XmlSerializer.serialize(system))
    found = forces_of(context_of(again, wet, "Reference"))
    assert per_atom(found, expected, scale_of(expected)) < 1e-6


def test_mesh_of_a_simulation_is_fine_enough(wet: Molecules, forcefield: app.ForceField, tmp_path: Path) -> None:
    """With the tolerance that a new card gets, the sum is right to 1e-3 of itself, far below any network's error."""
    reciprocal = {"alpha": ALPHA, "force_field": AMBER14}
    path = write_model(tmp_path, predicts="total_minus_reciprocal", reciprocal=reciprocal)
    deployed = forcefield_ml.load(path)
    assert deployed.card["reciprocal"]["tolerance"] == MESH_TOLERANCE
    system = bare_system(wet)
    system.addForce(deployed.create_reciprocal_force(wet.topology))
    found, expected = forces_of(context_of(system, wet, "CPU")), reciprocal_group(wet, forcefield)
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 1e-3


def edited(system: openmm.System, **changes: Any) -> openmm.System:
    """Return a System whose NonbondedForce is changed."""
    for index, force in enumerate(system.getForces()):
        if isinstance(force, openmm.NonbondedForce):
            if changes.get("remove"):
                system.removeForce(index)
                break
            if changes.get("offset"):
                force.addGlobalParameter("scale", 1.0)
                force.addParticleParameterOffset("scale", 0, 0.1, 0.0, 0.0)
            for i in range(force.getNumParticles()):
                charge, sigma, epsilon = force.getParticleParameters(i)
                force.setParticleParameters(i, changes.get("factor", 1.0) * charge, sigma, epsilon)
    return system


def test_what_cannot_fit_is_refused(
    model: DeployedModel, wet: Molecules, dry: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed]
) -> None:
    """No box, no PME, no charges, charges that change, too few: each has its reason, and the System stays as it was."""
    with pytest.raises(BoxError, match="periodic box only"):
        model.add_to_system(mm_system(dry, forcefield), dry.topology, atoms=dry.solute)
    with pytest.raises(BoxError, match="periodic box only"):
        model.create_system(dry.topology)
    for system, message in (
        (mm_system(wet, forcefield, nonbondedMethod=app.CutoffPeriodic), "nonbondedMethod=PME"),
        (edited(mm_system(wet, forcefield), remove=True), "has 0 NonbondedForce"),
        (edited(mm_system(wet, forcefield), factor=0.0), "every charge"),
        (edited(mm_system(wet, forcefield), offset=True), "depend on parameters"),
    ):
        with pytest.raises(ForceModeError, match=message):
            model.create_reciprocal_force(wet.topology, system)
    system = mm_system(wet, forcefield, nonbondedMethod=app.CutoffPeriodic)
    before = system.getNumForces()
    with pytest.raises(ForceModeError, match="nonbondedMethod=PME"):
        model.add_to_system(system, wet.topology)
    assert system.getNumForces() == before
    with pytest.raises(ForceModeError, match=r"shape \(2,\)"):
        model.create_system(wet.topology, charges=[0.5, -0.5])
    with pytest.raises(ForceModeError, match="not finite"):
        model.create_system(wet.topology, charges=np.full(len(wet.positions), np.nan))
    whole = forcefield_ml.load(deployed["fast"].path)
    with pytest.raises(ForceModeError, match="leave out charges"):
        whole.add_to_system(mm_system(wet, forcefield), wet.topology, charges=[0.0])
    assert whole.create_reciprocal_force(wet.topology) is None


def test_charges_of_another_force_field_are_told(
    model: DeployedModel, wet: Molecules, forcefield: app.ForceField, recwarn: pytest.WarningsRecorder
) -> None:
    """Charges far from those of training warn, naming the atom; those of training do not."""
    model.add_to_system(mm_system(wet, forcefield), wet.topology)
    assert not [w for w in recwarn if "charges differ" in str(w.message)]
    with pytest.warns(UserWarning, match=r"charges differ by up to 0\.\d+ e \(\w+"):
        model.add_to_system(edited(mm_system(wet, forcefield), factor=0.8), wet.topology)


def test_a_force_field_that_does_not_know_the_topology(wet: Molecules, tmp_path: Path) -> None:
    """Mode `system` without charges needs the card's force field; where it does not serve, the way out is named."""
    for files, message in ((["nowhere.xml"], "nowhere"), (["amber14/tip3pfb.xml"], "No template")):
        path = write_model(
            tmp_path,
            predicts="total_minus_reciprocal",
            target_atoms="all",
            reciprocal={"alpha": ALPHA, "force_field": files},
        )
        with pytest.raises(ForceModeError, match=rf"(?s){message}.*Pass charges="):
            forcefield_ml.load(path).create_system(wet.topology)


@pytest.mark.parametrize("key", ["alpha", "tolerance", "force_field"])
def test_a_card_without_what_is_needed_is_refused(key: str) -> None:
    """Without alpha, tolerance or force field the model could not be completed: the card is not accepted."""
    reciprocal = {"alpha": ALPHA, "force_field": AMBER14, "tolerance": 1e-4} | {key: None}
    with pytest.raises(ModelFileError, match=rf"reciprocal\.{key} = None"):
        make_card(make_model("fast"), predicts="total_minus_reciprocal", reciprocal=reciprocal)
    with pytest.raises(ModelFileError, match=r"reciprocal\.alpha = None"):
        make_card(make_model("fast"), predicts="total_minus_reciprocal")


def test_ase_has_no_such_sum(model: DeployedModel) -> None:
    """Outside OpenMM the forces would lack a part: refused."""
    calculator = pytest.importorskip("forcefield_ml.deploy.integrations.ase_calculator")
    with pytest.raises(ForceModeError, match="ASE does not have"):
        calculator.ForcefieldMLCalculator(model)


def test_openmm_ml_brings_the_sum(model: DeployedModel, wet: Molecules) -> None:
    """What openmm-ml's createSystem makes gives the forces of ours, with the charges it is given."""
    openmmml = pytest.importorskip("openmmml")
    charges = np.linspace(-0.5, 0.5, len(wet.positions))
    potential = openmmml.MLPotential("forcefield-ml", model=str(model.path))
    for options in ({}, {"charges": charges}):
        found = forces_of(context_of(potential.createSystem(wet.topology, **options), wet, "Reference"))
        expected = forces_of(context_of(model.create_system(wet.topology, **options), wet, "Reference"))
        assert per_atom(found, expected, scale_of(expected)) < 1e-6
