"""What acts beside a model, or is left of it: barostats, the drift of the centre, parameters, force groups, names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import openmm
import pytest
from deploy_helpers import AMBER14, Deployed, Molecules, context_of, forces_of, mm_system, write_model
from energy_model import write_energy_model
from openmm import app

import forcefield_ml
from forcefield_ml.deploy.system.bound import bound_models
from forcefield_ml.deploy.system.mm import SUBTRACT_MM
from forcefield_ml.errors import ForceModeError, ModelFileError, UnstableError

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


def removers(system: openmm.System) -> int:
    return sum(isinstance(force, openmm.CMMotionRemover) for force in system.getForces())


def test_an_energy_model_in_mode_solute_has_no_energy(
    wet: Molecules, forcefield: app.ForceField, tmp_path: Path
) -> None:
    """MM taken off some atoms belongs to no energy: a barostat is refused, a box that moves is, too."""
    model = forcefield_ml.load(write_energy_model(tmp_path))
    system = mm_system(wet, forcefield)
    system.addForce(openmm.MonteCarloBarostat(1, 300))
    with pytest.raises(ForceModeError, match="accepts moves by the energy"):
        model.add_to_system(system, wet.topology)
    for backend in ("pythonforce", "torchforce"):
        mixed = model.add_to_system(mm_system(wet, forcefield), wet.topology, backend=backend)
        context = context_of(mixed, wet, "CPU")
        context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in 1.01 * wet.box))
        with pytest.raises(openmm.OpenMMException, match="periodic box differs"):
            forces_of(context)


def test_the_centre_is_held_once(wet: Molecules, forcefield: app.ForceField, tmp_path: Path) -> None:
    """Forces of a network do not sum to zero: each mode holds the centre, once; an energy's forces need none."""
    folders = [tmp_path / name for name in "abcd"]
    for folder in folders:
        folder.mkdir()
    whole = forcefield_ml.load(write_model(folders[0], target_atoms="all"))
    assert removers(whole.create_system(wet.topology)) == 1
    for folder, mode, predicts in zip(
        folders[1:], ("embedded", "correction"), ("solute_alone", "reference_minus_mm"), strict=False
    ):
        model = forcefield_ml.load(write_model(folder, predicts=predicts))
        for given in (False, True):
            system = mm_system(wet, forcefield, removeCMMotion=given)
            assert removers(model.add_to_system(system, wet.topology, mode=mode)) == 1
    model = forcefield_ml.load(write_energy_model(folders[3], target_atoms="all"))
    assert removers(model.create_system(wet.topology)) == 0


def test_mode_system_takes_the_topology_s_box(wet: Molecules, tmp_path: Path) -> None:
    """A System without forces has OpenMM's box of 2 nm, which nobody chose."""
    system = openmm.System()
    for atom in wet.topology.atoms():
        system.addParticle(atom.element.mass)
    model = forcefield_ml.load(write_model(tmp_path, target_atoms="all"))
    model.add_to_system(system, wet.topology, mode="system")
    forces_of(context_of(system, wet, "CPU"))
    assert np.allclose([row._value for row in system.getDefaultPeriodicBoxVectors()], wet.box)


def test_parameters_of_exceptions_inside(dry: Molecules, forcefield: app.ForceField, tmp_path: Path) -> None:
    """In mode `embedded` a parameter does not bring back a pair inside the subset."""
    model = forcefield_ml.load(write_model(tmp_path, predicts="solute_alone"))
    system = mm_system(dry, forcefield)
    force = next(f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    force.addGlobalParameter("strength", 1.0)
    scaled = [k for k in range(force.getNumExceptions()) if force.getExceptionParameters(k)[2]._value != 0]
    force.addExceptionParameterOffset("strength", scaled[0], 1.0, 0.0, 0.0)
    mixed = model.add_to_system(system, dry.topology, mode="embedded")
    found = forces_of(context_of(mixed, dry, "Reference"))
    network = model.forces(dry.positions, topology=dry.topology)
    assert np.abs(found - network).max() < 1e-3 * np.abs(network).max()


def test_forces_are_known_by_what_they_call(
    wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed]
) -> None:
    """Another name switches no guard off: neither the model's nor that of what takes MM off the solute."""
    system = mm_system(wet, forcefield)
    forcefield_ml.load(deployed["fast"].path).add_to_system(system, wet.topology, backend="pythonforce")
    for force in system.getForces():
        if type(force).__name__ == "PythonForce":
            force.setForceGroup(1 if force.getName() == SUBTRACT_MM else 0)
            force.setName("ML")
    assert [model.targets for model in bound_models(system)] == [sorted(wet.solute)]
    with pytest.raises(ForceModeError, match="takes them off the solute"):
        forcefield_ml.check(_context(system, wet, openmm.MTSIntegrator(0.0005, [(0, 1), (1, 1)])))
    system.addForce(openmm.MonteCarloBarostat(1, 300))
    with pytest.raises(ForceModeError, match="MonteCarloBarostat"):
        forcefield_ml.check(context_of(system, wet, "CPU"))


def _context(system: openmm.System, molecules: Molecules, integrator: openmm.Integrator) -> openmm.Context:
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(molecules.positions)
    return context


def _custom(force: str) -> openmm.CustomIntegrator:
    integrator = openmm.CustomIntegrator(0.0005)
    integrator.addComputePerDof("v", f"v+dt*{force}/m")
    integrator.addComputePerDof("x", "x+dt*v")
    return integrator


@pytest.mark.parametrize(
    ("integrated", "custom", "nonbonded", "minus", "message"),
    [
        ({0}, None, 3, 0, "NonbondedForce in 3"),
        (None, "f0", 0, 1, "group 1, which this CustomIntegrator never evaluates"),
        (None, "(f+f1)", 1, 0, "NonbondedForce in 1"),
        ({0, 3}, None, 3, 0, None),
        (None, "f", 3, 0, None),
    ],
)
def test_groups_that_are_left_out(
    integrated: set[int] | None,
    custom: str | None,
    nonbonded: int,
    minus: int,
    message: str | None,
    wet: Molecules,
    forcefield: app.ForceField,
    deployed: dict[str, Deployed],
) -> None:
    """MM that is not integrated but subtracted, MM integrated and not subtracted, or twice, is refused."""
    system = mm_system(wet, forcefield)
    forcefield_ml.load(deployed["fast"].path).add_to_system(system, wet.topology)
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            force.setForceGroup(nonbonded)
        if force.getName() == SUBTRACT_MM:
            force.setForceGroup(minus)
    integrator = openmm.VerletIntegrator(0.0005) if custom is None else _custom(custom)
    if integrated is not None:
        integrator.setIntegrationForceGroups(integrated)
    context = _context(system, wet, integrator)
    if message is None:
        forcefield_ml.check(context)
    else:
        with pytest.raises(ForceModeError, match=message):
            forcefield_ml.check(context)


def test_a_reciprocal_sum_that_is_left_out(wet: Molecules, tmp_path: Path) -> None:
    """What the model leaves to OpenMM must be integrated."""
    reciprocal = {"alpha": 4.5, "force_field": AMBER14}
    model = forcefield_ml.load(
        write_model(tmp_path, predicts="total_minus_reciprocal", target_atoms="all", reciprocal=reciprocal)
    )
    system = model.create_system(wet.topology)
    for force in system.getForces():
        force.setForceGroup(0 if isinstance(force, openmm.NonbondedForce) else 1)
    integrator = openmm.VerletIntegrator(0.0005)
    integrator.setIntegrationForceGroups({1})
    with pytest.raises(ForceModeError, match="reciprocal is in force group 0, which this VerletIntegrator never"):
        forcefield_ml.check(_context(system, wet, integrator))


def test_an_integrator_that_uses_the_energy(wet: Molecules, tmp_path: Path) -> None:
    """It is refused where there is no energy; where there is one, it may."""
    for name, write in (("forces", write_model), ("energy", write_energy_model)):
        folder = tmp_path / name
        folder.mkdir()
        model = forcefield_ml.load(write(folder, target_atoms="all"))
        integrator = _custom("f")
        integrator.addGlobalVariable("before", 0.0)
        integrator.addComputeGlobal("before", "energy")
        context = _context(model.create_system(wet.topology), wet, integrator)
        if name == "forces":
            with pytest.raises(ForceModeError, match="uses the energy"):
                forcefield_ml.check(context)
        else:
            _check_quietly(context)


def _check_quietly(context: openmm.Context) -> None:
    try:
        forcefield_ml.check(context)
    except UnstableError:  # the model of springs is no force field
        pass


def test_the_kind_of_error_is_the_model_s(wet: Molecules, tmp_path: Path) -> None:
    """A missing file is a missing file, though its path has "box" in it."""
    folder = tmp_path / "sandbox"
    folder.mkdir()
    path = write_model(folder, target_atoms="all")
    model = forcefield_ml.load(path)
    system = model.create_system(wet.topology, backend="pythonforce")
    path.unlink()
    with pytest.raises(ModelFileError, match="sandbox"):
        forcefield_ml.check(context_of(system, wet, "CPU"))
