"""`check`: look a simulation over before its first step."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
import torch

from forcefield_ml import units
from forcefield_ml.deploy.mm import BAROSTATS, SUBTRACT_MM, class_name
from forcefield_ml.deploy.modes import barostat_message
from forcefield_ml.deploy.openmm_force import NO_ENERGY, WITH_ENERGY
from forcefield_ml.errors import BoxError, ForceModeError
from forcefield_ml.graph.box import check_box

LONGEST_FREE_STEP = 0.0015
"""ps, above which an X-H bond without a constraint is integrated badly."""

MINIMISE = (
    "this simulation holds a model with forces but no energy, and OpenMM's minimiser walks downhill in energy: it "
    "would do nothing and say nothing. Use forcefield_ml.simulation.fire.minimise(simulation), which follows the "
    "forces, or minimise with the MM force field before the model is added"
)


def check(simulation: Any) -> Any:
    """Refuse a simulation that would run and be wrong; make its ``minimizeEnergy`` refuse where it cannot work.

    Parameters
    ----------
    simulation
        An `openmm.app.Simulation` whose System holds a model's force. Without one, nothing is checked.

    Returns
    -------
    Simulation
        The same object. Its ``minimizeEnergy`` raises `ForceModeError` if the model has no energy.

    Raises
    ------
    ForceModeError
        If there is a barostat and no energy, two models, or a time step too long for bonds to hydrogen without
        constraints.
    BoxError
        If the Context's box is malformed.
    """
    system = simulation.system
    forces = list(system.getForces())
    models = [force for force in forces if force.getName() in (NO_ENERGY, WITH_ENERGY)]
    if not models:
        return simulation
    if len(models) > 1:
        raise ForceModeError(f"the system holds {len(models)} models; their forces would add up. Keep one")
    energyless = any(force.getName() in (NO_ENERGY, SUBTRACT_MM) for force in forces)
    if energyless:
        for force in forces:
            if class_name(force) in BAROSTATS:
                raise ForceModeError(barostat_message(class_name(force)))
    _check_step(simulation)
    if models[0].usesPeriodicBoundaryConditions():
        box = np.array(units.strip(simulation.context.getState().getPeriodicBoxVectors(), "nanometer"), dtype=float)
        check_box(torch.tensor(box), 0.0)
        default = np.array([units.strip(row, "nanometer") for row in system.getDefaultPeriodicBoxVectors()])
        if energyless and np.abs(box - default).max() > 1e-4:
            raise BoxError(
                f"the Context's box {box.round(4).tolist()} nm is not the one the model was bound to, "
                f"{default.round(4).tolist()}; set the topology's box and add the model to a fresh system"
            )
    if energyless:
        simulation.minimizeEnergy = _refuse_minimiser
    return simulation


def _refuse_minimiser(*arguments: Any, **options: Any) -> NoReturn:
    raise ForceModeError(MINIMISE)


def _check_step(simulation: Any) -> None:
    """Refuse a step too long for light atoms that no constraint holds."""
    system = simulation.system
    step = float(units.strip(simulation.integrator.getStepSize(), "picosecond"))
    if step <= LONGEST_FREE_STEP:
        return
    held = {i for k in range(system.getNumConstraints()) for i in system.getConstraintParameters(k)[:2]}
    for i in range(system.getNumParticles()):
        mass = float(units.strip(system.getParticleMass(i), "dalton"))
        if 0 < mass < 1.5 and i not in held:
            raise ForceModeError(
                f"the time step is {1000 * step:g} fs, but atom {i} is a hydrogen without a constraint; a model needs "
                "flexible molecules, so use 0.5 to 1 fs, or heavier hydrogens (createSystem(..., hydrogenMass=...))"
            )
