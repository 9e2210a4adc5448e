"""Which force acts when under multiple time stepping: three kinds of force groups, and what may stand in them.

With D the direct force and R the conservative reference, R - D is kicked once in n steps and D at each of them:

| kind        | in D | in R | holds                                                                              |
|-------------|------|------|------------------------------------------------------------------------------------|
| `shared`    | yes  | yes  | in mode `solute` the MM forces; restraints and biases that are to act in any case  |
| `direct`    | yes  | no   | the model and what it brings; in mode `solute` also what takes MM off the solute   |
| `reference` | no   | yes  | what `add_reference` added                                                         |

In mode `solute` the System holds the reference already: full MM stands in it, and what is taken off the solute and put
there instead is R - D with its sign turned. So the outer kick is that of the `direct` groups, negative, and costs
nothing: they are evaluated at that moment anyway.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import NamedTuple

import openmm

from forcefield_ml.deploy.force.openmm_force import OURS, REFERENCE, copied
from forcefield_ml.deploy.system.bound import bound_models, callables
from forcefield_ml.deploy.system.mm import FORCELESS, SubtractMM, class_name
from forcefield_ml.deploy.system.present import look
from forcefield_ml.deploy.system.reciprocal import RECIPROCAL, put_on_solute
from forcefield_ml.errors import ForceModeError

MARK = "mts_{}_groups"
"""Global variable of an integrator of `simulation.mts` that holds the groups of a kind, one bit each."""

N_GROUPS = 32
"""Of OpenMM."""

ADD_REFERENCE = "forcefield_ml.simulation.mts.add_reference(system, reference)"


class ForceGroups(NamedTuple):
    """Force groups by kind, each ascending.

    Attributes
    ----------
    shared, direct, reference
        See the module.
    """

    shared: tuple[int, ...]
    direct: tuple[int, ...]
    reference: tuple[int, ...]

    @property
    def energy(self) -> int:
        """Bits of the groups whose energy is that of the reference."""
        return bits((*self.shared, *self.reference))

    @property
    def acting(self) -> int:
        """Bits of the groups that make up the direct force."""
        return bits((*self.shared, *self.direct))


def bits(groups: Iterable[int]) -> int:
    """Return force groups as OpenMM's ``groups=`` takes them, one bit each."""
    return sum(1 << group for group in set(groups))


def add_reference(system: openmm.System, reference: openmm.System, mm_platform: str = "auto") -> None:
    """Add the forces of a conservative System for the outer kick; all that acts now becomes the direct force.

    Forces added afterwards, to a group of their own or to the default group 0, act in both: restraints, biases. A
    System with a reference runs with an integrator of `simulation.mts` alone: with any other, forces count twice, and
    `check` refuses it. The reciprocal-space sum that a model brings moves into a Context of its own, since platforms
    other than Reference take no two NonbondedForces with different exclusions.

    Parameters
    ----------
    system
        With a model. Changed in place: its forces are put into one group, those of the reference into another.
    reference
        With the same particles and no constraints: the MM system, one of openmm-ml, of a model with an energy.
    mm_platform
        Of that Context: ``"auto"`` takes the fastest there is.

    Raises
    ------
    ForceModeError
        If there is no model or already a reference, particles differ, the reference has constraints or no energy.
    """
    if not bound_models(system):
        raise ForceModeError("the system holds no model; add one first (model.add_to_system), the reference afterwards")
    if _reference_forces(system):
        raise ForceModeError("the system has a reference already; a second would count its forces twice")
    if reference.getNumParticles() != system.getNumParticles():
        raise ForceModeError(
            f"the reference has {reference.getNumParticles()} particles, the system {system.getNumParticles()}; make "
            "both from one topology"
        )
    if reference.getNumConstraints():
        raise ForceModeError(
            f"the reference has {reference.getNumConstraints()} constraints, so that it lacks the forces of these "
            "bonds; make it with constraints=None and rigidWater=False"
        )
    forces = [force for force in reference.getForces() if class_name(force) not in FORCELESS]
    made = callables(reference)
    energyless = [model.force.getName() for model in bound_models(reference, made) if not model.has_energy]
    energyless += [reference.getForce(k).getName() for k, called in made.items() if isinstance(called, SubtractMM)]
    if energyless or not forces:
        raise ForceModeError(
            f"the reference {f'holds {energyless[0]}, which has no energy' if energyless else 'has no forces'}; it "
            "must be conservative, such as the MM system without the model"
        )
    _warn_of_restraints(system, {class_name(force) for force in forces})
    for index, force in enumerate(system.getForces()):
        if force.getName() == RECIPROCAL and isinstance(force, openmm.NonbondedForce):
            alone = put_on_solute(copy.deepcopy(force), system, range(system.getNumParticles()), mm_platform)
            system.removeForce(index)
            system.addForce(alone)
            break
    here, there = _free_groups(system, 2)
    for force in system.getForces():
        _put(force, here)
    for force in forces:
        added = copied(force)
        _put(added, there)
        added.setName(REFERENCE + force.getName())
        system.addForce(added)


def arrange(system: openmm.System) -> ForceGroups:
    """Return the groups of a System for multiple time stepping; in mode `solute`, move the model's to one of its own.

    Parameters
    ----------
    system
        With a model in mode `solute`, or with a reference. A Context of it must be made afterwards.

    Raises
    ------
    ForceModeError
        If there is no model, or no reference, or groups hold what does not belong together.
    """
    if not _reference_forces(system):
        (free,) = _free_groups(system, 1)
        ours, others = ([f for f, kind in _kinds(system) if kind == wanted] for wanted in ("direct", "shared"))
        theirs = {group for force in others for group in _groups(force)}
        if any(force.getForceGroup() in theirs for force in ours):
            for force in ours:
                _put(force, free)
    found = _found(system)
    check_split(system, found)
    return found


def check_split(system: openmm.System, groups: ForceGroups) -> None:
    """Refuse groups under which a force would count twice, never, or at the wrong time.

    Parameters
    ----------
    system
        As it is now.
    groups
        By which an integrator works.

    Raises
    ------
    ForceModeError
        Naming the force.
    """
    made = callables(system)
    models = bound_models(system, made)
    if not models:
        raise ForceModeError(
            "the system holds no model, so there is no direct force to step with; add one with model.add_to_system, "
            "or use an ordinary integrator"
        )
    reference = _reference_forces(system)
    if not reference:
        replaced: set[int] = set()
        for called in made.values():
            if isinstance(called, SubtractMM):
                replaced.update(called.atoms)
        if not all(replaced.issuperset(model.targets) for model in models):
            raise ForceModeError(
                "the system holds no conservative reference, and only in mode 'solute' does the MM system serve as "
                f"one; add it with {ADD_REFERENCE}"
            )
    for force, kind in _kinds(system):
        allowed = getattr(groups, kind)
        if kind == "shared" and reference:  # what the reference stands for is direct as well
            allowed, kind = groups.shared + groups.direct, "shared or direct"
        wrong = [group for group in _groups(force) if group not in allowed]
        if wrong:
            raise ForceModeError(
                f"{force.getName()} is in force group {wrong[0]}, but must be in one that the integrator takes for "
                f"{kind} forces ({', '.join(map(str, allowed)) or 'it has none'}): a force would count twice, never or "
                "at the wrong time. Leave the groups as simulation.mts.integrator put them, and make the integrator "
                "after the last force"
            )


def of_integrator(integrator: openmm.Integrator) -> ForceGroups | None:
    """Return the groups by which an integrator of `simulation.mts` works; None for every other integrator."""
    if not isinstance(integrator, openmm.CustomIntegrator):
        return None
    names = [integrator.getGlobalVariableName(k) for k in range(integrator.getNumGlobalVariables())]
    if not {MARK.format(kind) for kind in ForceGroups._fields} <= set(names):
        return None
    masks = [int(integrator.getGlobalVariableByName(MARK.format(kind))) for kind in ForceGroups._fields]
    return ForceGroups(*(tuple(g for g in range(N_GROUPS) if mask >> g & 1) for mask in masks))


def acting(system: openmm.System) -> int:
    """Return the bits of all groups but those of a reference: what makes up the force by which atoms move."""
    return bits(range(N_GROUPS)) & ~bits(_found(system).reference)


def has_reference(system: openmm.System) -> bool:
    """Tell whether forces of `add_reference` are in a System."""
    return bool(_reference_forces(system))


def _kinds(system: openmm.System) -> list[tuple[openmm.Force, str]]:
    """Return each force that exerts one and its kind: by what it calls, should it have got another name."""
    found = []
    for force in system.getForces():
        if class_name(force) in FORCELESS:
            continue
        name = force.getName()
        if name.startswith(REFERENCE):
            kind = "reference"
        elif name.startswith(OURS) or ((known := look(force)) is not None and known.kind != "foreign"):
            kind = "direct"
        else:
            kind = "shared"
        found.append((force, kind))
    return found


def _found(system: openmm.System) -> ForceGroups:
    groups: dict[str, set[int]] = {kind: set() for kind in ForceGroups._fields}
    for force, kind in _kinds(system):
        groups[kind].update(_groups(force))
    groups["shared"] -= groups["direct"] | groups["reference"]
    return ForceGroups(*(tuple(sorted(groups[kind])) for kind in ForceGroups._fields))


def _warn_of_restraints(system: openmm.System, known: set[str]) -> None:
    """Warn of forces such as restraints that the reference, of these classes, does not stand for."""
    others = [force for force, kind in _kinds(system) if kind == "shared" and class_name(force) not in known]
    lost = [force.getName() for force in others if class_name(force).startswith(("Custom", "RMSD", "RG"))]
    if lost:
        warnings.warn(
            f"{', '.join(lost)} was in the system before the reference, which holds nothing like it, so that the outer "
            "kick takes back what it does: over an outer step it has no effect. Add restraints and biases after "
            "add_reference",
            stacklevel=3,
        )


def _groups(force: openmm.Force) -> list[int]:
    found = [force.getForceGroup()]
    if isinstance(force, openmm.NonbondedForce) and force.getReciprocalSpaceForceGroup() >= 0:
        found.append(force.getReciprocalSpaceForceGroup())
    return found


def _free_groups(system: openmm.System, count: int) -> list[int]:
    """Return the first groups that no force is in; never 0, where forces added later land."""
    used = {group for force in system.getForces() for group in _groups(force)}
    free = [group for group in range(1, N_GROUPS) if group not in used]
    if len(free) < count:
        raise ForceModeError(f"the system uses {len(used)} of OpenMM's {N_GROUPS} force groups; free {count} of them")
    return free[:count]


def _put(force: openmm.Force, group: int) -> None:
    force.setForceGroup(group)
    if isinstance(force, openmm.NonbondedForce):
        force.setReciprocalSpaceForceGroup(-1)  # with the rest


def _reference_forces(system: openmm.System) -> list[openmm.Force]:
    return [force for force in system.getForces() if force.getName().startswith(REFERENCE)]
