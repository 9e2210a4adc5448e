"""`check`: look a simulation over before its first step, and watch it from then on. docs/guards.md lists all guards."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import openmm
import torch

from forcefield_ml import units
from forcefield_ml.deploy.force.device import choose_device, mismatch
from forcefield_ml.deploy.force.openmm_force import BOX_TOLERANCE, OURS, kind_of
from forcefield_ml.deploy.force.plugin_repair import refusal
from forcefield_ml.deploy.guards.coordinates import check_unit
from forcefield_ml.deploy.guards.order import check_order, masses_of
from forcefield_ml.deploy.guards.stability import MAX_TEMPERATURE, Limits, name_atoms
from forcefield_ml.deploy.guards.steps import (
    FreeAtoms,
    check_evaluated,
    check_step,
    free_atoms,
    parts,
    together,
    uses_energy,
)
from forcefield_ml.deploy.guards.watch import Watch, plain_message
from forcefield_ml.deploy.system.bound import BoundModel, bound_models, callables
from forcefield_ml.deploy.system.force_groups import check_split, has_reference, of_integrator
from forcefield_ml.deploy.system.mm import BAROSTATS, FORCELESS, SUBTRACT_MM, SubtractMM, class_name
from forcefield_ml.deploy.system.modes import barostat_message, check_constraints
from forcefield_ml.deploy.system.present import refuse_overlaps_within
from forcefield_ml.deploy.system.reciprocal import RECIPROCAL
from forcefield_ml.errors import BoxError, ForceModeError
from forcefield_ml.graph.box import check_box

MINIMISE = (
    "this simulation holds a model with forces but no energy, and OpenMM's minimiser walks downhill in an energy that "
    "is not that of these forces: it would stop at once or go astray, and say nothing. Use "
    "forcefield_ml.simulation.fire.minimise(simulation), which follows the forces, or minimise with the MM force field "
    "before the model is added"
)


def check(
    simulation: Any,
    last_good: Path | str | None = "last_good.xml",
    every: int = 100,
    max_temperature: float = MAX_TEMPERATURE,
    torn_bonds: bool = True,
) -> Any:
    """Refuse a simulation that would run and be wrong; from then on stop it where it fails, with its last good state.

    Call it when positions are set, before anything moves. An OpenMM Context will do, too; it is looked over and not
    watched.

    Parameters
    ----------
    simulation
        An `openmm.app.Simulation` whose System holds a model's force.
    last_good
        The file that gets the last good state if the simulation fails, for ``simulation.loadState``; nothing is
        written otherwise. None does not watch.
    every
        Steps between two looks at the state; each costs one evaluation of the forces.
    max_temperature
        K, of all atoms, above which the simulation has failed.
    torn_bonds
        Whether it has failed when a bond of the topology is longer than 1.6 times the sum of the covalent radii. False
        where bonds may break, or the topology has bonds that are none.

    Returns
    -------
    Simulation
        The same object. Its ``minimizeEnergy`` raises `ForceModeError` if the model has no energy; its ``step`` and
        ``runForClockTime`` raise `UnstableError` with step, atoms and the file of the last good state.

    Raises
    ------
    ForceModeError
        If there is a barostat and no energy, two models on the same atoms, a constraint on atoms that feel the
        model, a virtual site among them, too long a time step, or a TorchForce where it would end the process.
    BoxError
        If the Context's box is not the one bound, malformed or lower than twice the cutoff.
    TopologyError
        If the simulation's topology is not that of its System.
    ConfigError
        If positions are most likely in another unit.
    UnstableError
        If the model's forces are not finite or absurd from the start.
    """
    context = getattr(simulation, "context", simulation)
    system, integrator = context.getSystem(), context.getIntegrator()
    topology = getattr(simulation, "topology", None)
    made = callables(system)
    models = bound_models(system, made)
    if not models:
        warnings.warn(
            "this simulation holds no model, so nothing was checked. Was the System that model.add_to_system returned "
            "(in mode 'embedded' another one than it got) given to the Simulation?",
            stacklevel=2,
        )
        return simulation
    refuse_overlaps_within(models)
    minus = [system.getForce(k) for k, called in made.items() if isinstance(called, SubtractMM)]
    energyless = not all(model.has_energy for model in models) or bool(minus)
    if topology is not None:
        check_order(system, topology)
    for force in system.getForces():
        if energyless and class_name(force) in BAROSTATS:
            raise ForceModeError(barostat_message(class_name(force)))
    step_check = _StepCheck(integrator, [model.force.getForceGroup() for model in models], free_atoms(system, topology))
    step_check.now(stacklevel=3)
    _check_groups(system, integrator, minus, ours={*made})
    if energyless and uses_energy(integrator):
        raise ForceModeError(
            "this CustomIntegrator uses the energy, but the forces here have none: what it computes from it would be "
            "wrong and nothing would show it. Use an integrator that needs forces alone"
        )
    for model in models:
        if model.backend == "torchforce" and (reason := refusal(context.getPlatform().getName())):
            raise ForceModeError(reason)
        check_constraints(system, model.targets)
        _check_sites(system, model, topology)
        _check_box(context, model, energyless)
        complaint = mismatch(context.getPlatform().getName(), choose_device(model.device))
        if complaint and model.backend == "pythonforce":
            warnings.warn(complaint, stacklevel=2)
    _try_forces(context, models, topology)
    if hasattr(simulation, "minimizeEnergy") and energyless:
        simulation.minimizeEnergy = _refuse_minimiser
    if hasattr(simulation, "reporters") and last_good is not None:
        limits = Limits(max_temperature=max_temperature, torn_bonds=torn_bonds)
        Watch(Path(last_good).absolute(), every, masses_of(system), limits).attach(simulation, step_check)
    return simulation


class _StepCheck:
    """Checks the time step, and again when it has grown."""

    def __init__(self, integrator: openmm.Integrator, groups: list[int], free: FreeAtoms):
        self.integrator, self.groups, self.free = integrator, groups, free
        self._checked = self._step()

    def now(self, stacklevel: int) -> None:
        for group in sorted(set(self.groups)):
            check_step(self.integrator, group, self.free, stacklevel)

    def __call__(self) -> None:
        step = self._step()
        if step > self._checked:
            self.now(stacklevel=4)
            self._checked = step

    def _step(self) -> float:
        variable = hasattr(self.integrator, "getMaximumStepSize")  # their current step is theirs to change
        return 0.0 if variable else float(units.strip(self.integrator.getStepSize(), "picosecond"))


def _check_sites(system: openmm.System, model: BoundModel, topology: Any) -> None:
    sites = [i for i in model.targets if system.isVirtualSite(i)]
    if sites:
        raise ForceModeError(
            f"{len(sites)} of the atoms that feel the model are virtual sites ({name_atoms(sites, topology)}), which "
            "have no motion of their own: the model was trained on atoms that move. Make the system without virtual "
            "sites on these atoms"
        )
    frozen = [i for i in model.targets if units.strip(system.getParticleMass(i), "dalton") == 0]
    if frozen:
        warnings.warn(
            f"{len(frozen)} of the atoms that feel the model have mass zero ({name_atoms(frozen, topology)}): they "
            "stay where they are whatever the model says, and the others feel them there",
            stacklevel=3,
        )


def _check_groups(
    system: openmm.System, integrator: openmm.Integrator, minus: list[openmm.Force], ours: set[int]
) -> None:
    """Refuse to take MM forces off the solute at other times than they act, and to leave out what a model needs.

    Integrators of `simulation.mts` do the first by design, and have a rule of their own.
    """
    plain = []
    for part in parts(integrator):
        groups = of_integrator(part)
        if groups is not None:
            check_split(system, groups)
        elif has_reference(system):
            raise ForceModeError(
                "the system holds the forces of a reference beside those of the model, which this "
                f"{type(part).__name__} adds up, so that forces count twice. Use "
                "forcefield_ml.simulation.mts.integrator(system, ...), or make the system without the reference"
            )
        else:
            plain.append(part)
    acting = {}
    for index, force in enumerate(system.getForces()):
        group = force.getForceGroup()
        if index in ours or force.getName() == RECIPROCAL:
            check_evaluated(integrator, group, f"the {class_name(force)} {force.getName()}")
            continue
        if class_name(force) not in FORCELESS and not force.getName().startswith(OURS):
            acting[force.getName()] = group
        if isinstance(force, openmm.NonbondedForce) and force.getReciprocalSpaceForceGroup() >= 0:
            acting[f"reciprocal space of {force.getName()}"] = force.getReciprocalSpaceForceGroup()
    for force in minus:
        wanted = force.getForceGroup()
        apart = {n: g for n, g in acting.items() if not all(together(part, g, wanted) for part in plain)}
        if apart:
            told = ", ".join(f"{name} in {group}" for name, group in apart.items())
            raise ForceModeError(
                "the integrator evaluates force groups at different times or leaves some out, but the MM forces and "
                f"the force that takes them off the solute ({SUBTRACT_MM}, group {wanted}) are not in one group "
                f"({told}): the solute would be kicked by MM and kicked back later or never. Put all of them into "
                "one group; the model may have its own"
            )


def _check_box(context: openmm.Context, model: BoundModel, energyless: bool) -> None:
    system = context.getSystem()
    periodic = model.box is not None
    nonbonded = [force for force in system.getForces() if isinstance(force, openmm.NonbondedForce)]
    odd = [force.getName() for force in nonbonded if force.usesPeriodicBoundaryConditions() != periodic]
    if odd:
        raise BoxError(
            f"the model is bound {'to a periodic box' if periodic else 'without a box'}, but {odd[0]} is "
            f"{'not ' if periodic else ''}periodic; make the MM system with the nonbonded method that fits the topology"
        )
    if model.box is None:
        return
    now = np.array(units.strip(context.getState().getPeriodicBoxVectors(), "nanometer"), dtype=float)
    check_box(torch.tensor(now), 0.0)
    if energyless and not np.abs(now - np.array(model.box)).max() <= BOX_TOLERANCE:
        raise BoxError(
            f"the Context's box {now.round(4).tolist()} nm is not the one the model was bound to, "
            f"{np.array(model.box).round(4).tolist()}; set the topology's box (topology.setPeriodicBoxVectors) and add "
            "the model to a fresh system"
        )


def _try_forces(context: openmm.Context, models: list[BoundModel], topology: Any) -> None:
    """Evaluate the forces once, if positions are set: what the model itself finds is told now."""
    positions = context.getState(positions=True).getPositions(asNumpy=True)._value
    if not positions.any():  # as in a new Context
        return
    if np.isfinite(positions).all():
        check_unit(positions[models[0].inputs], models[0].species)
    try:
        context.getState(forces=True)
    except openmm.OpenMMException as error:
        message = plain_message(error, positions, topology)
        raise kind_of(message)(message) from error


def _refuse_minimiser(*arguments: Any, **options: Any) -> NoReturn:
    raise ForceModeError(MINIMISE)
