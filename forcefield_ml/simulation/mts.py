"""Multiple time stepping: a direct force at every step, and at every n-th what it lacks of a conservative reference.

With D the direct and R the reference force, h the inner step and K(F, t) a kick v += t F / m, an outer step of n h is

    K(R - D, n h / 2)  [ K(D, h / 2)  drift h  K(D, h / 2) ]^n  K(R - D, n h / 2)

(reversible RESPA: Tuckerman, Berne and Martyna, J. Chem. Phys. 97, 1990 (1992)). Over n steps R acts in full and D in
none: energy is that of R and is kept as well as the splitting allows. With a thermostat the same kicks, each drift
split around the random force (LangevinMiddle), so that each force is evaluated once a point.

Evaluations in an outer step: with a thermostat n of each shared and direct force, one of the reference. In NVE one
more of each force group but the model's, which OpenMM keeps from the end of the step before.

The outer interval is limited by resonance: kicks as often as half a period of a vibration pump energy into it, however
small R - D is, and nothing is gained by smaller inner steps (docs/mts.md).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import openmm
from openmm import unit

from forcefield_ml import units
from forcefield_ml.deploy.guards.steps import free_atoms
from forcefield_ml.deploy.system.force_groups import MARK, ForceGroups, add_reference, arrange, bits
from forcefield_ml.errors import ConfigError

__all__ = ["LONGEST_OUTER", "add_reference", "integrator"]

LONGEST_OUTER = 4.0
"""fs between two outer kicks for free hydrogens of 1 u; half the period of their fastest vibration is 4.5 fs."""


def integrator(
    system: openmm.System,
    timestep: Any = 0.0005,
    n: int = 8,
    temperature: Any = None,
    friction: Any = 1.0,
    groups: ForceGroups | None = None,
) -> openmm.CustomIntegrator:
    """Return an integrator that kicks by the direct force at every step and by reference minus direct at every n-th.

    In mode `solute` the reference is the MM system that is there; elsewhere add one first by `add_reference`. Force
    groups are set where they must be, so make the integrator after the last force and the Context after both.
    ``step(1)`` is an outer step, n times `timestep`, and so is ``getStepSize``. Energies that reporters show are those
    of the reference; by hand ``context.getState(energy=True, groups=integrator.getIntegrationForceGroups())``.

    Parameters
    ----------
    system
        With a model.
    timestep
        Quantity or ps, of the inner steps; the model is evaluated at each.
    n
        Inner steps in an outer one.
    temperature
        Quantity or K; None runs without a thermostat, at constant energy of the reference.
    friction
        Quantity or 1/ps, of the thermostat.
    groups
        For a direct force of your own: which groups hold what. None finds it out.

    Raises
    ------
    ConfigError
        If a number is out of range.
    ForceModeError
        If the System holds no model or no reference, or its force groups cannot be told apart.
    """
    step = float(units.strip(timestep, "picosecond"))
    rate = float(friction.value_in_unit(unit.picosecond**-1) if unit.is_quantity(friction) else friction)
    kelvin = None if temperature is None else float(units.strip(temperature, "kelvin"))
    if n != int(n) or n < 1:
        raise ConfigError(f"n is {n}; it counts inner steps in an outer one: 1 or more, 8 is usual with 0.5 fs")
    for name, value in (("timestep", step), ("friction", rate), ("temperature", 1.0 if kelvin is None else kelvin)):
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name} is {value}; it must be greater than 0")
    groups = arrange(system) if groups is None else groups
    free = free_atoms(system)
    if 1000 * n * step > LONGEST_OUTER * free.stretch * (1 + 1e-6):
        warnings.warn(
            f"{1000 * n * step:.3g} fs between two kicks by the reference is long for bonds that no constraint holds: "
            f"from half the period of {free.label}'s vibration on they pump energy into it. At most "
            f"{LONGEST_OUTER * free.stretch:.2g} fs, which is n={int(LONGEST_OUTER * free.stretch / (1000 * step))}",
            stacklevel=2,
        )
    made = openmm.CustomIntegrator(int(n) * step)
    for kind, members in groups._asdict().items():
        made.addGlobalVariable(MARK.format(kind), bits(members))
    made.setIntegrationForceGroups(groups.energy)
    constrained = system.getNumConstraints() > 0
    if constrained:
        made.addPerDofVariable("x1", 0)
    if kelvin is None:
        _add_nve(made, groups, int(n), constrained)
    else:
        _add_langevin(made, groups, int(n), constrained, kelvin, rate)
    return made


def _add_nve(made: openmm.CustomIntegrator, groups: ForceGroups, n: int, constrained: bool) -> None:
    made.addUpdateContextState()
    # The model's group comes last at the end of a step and first at the next: OpenMM keeps the last group's forces.
    order = [*groups.reference, *groups.shared, *groups.direct]
    for k in range(n):
        for group in reversed(order):
            _kick(made, groups, n, group, outer=k == 0, share="0.5*" if k == 0 else "")
        _drift(made, f"dt/{n}", constrained)
        _settle(made, f"dt/{n}", constrained)
    for group in order:
        _kick(made, groups, n, group, outer=True, share="0.5*")
    if constrained:
        made.addConstrainVelocities()


def _add_langevin(
    made: openmm.CustomIntegrator, groups: ForceGroups, n: int, constrained: bool, temperature: float, friction: float
) -> None:
    made.addGlobalVariable("kT", unit.MOLAR_GAS_CONSTANT_R.value_in_unit(unit.kilojoule_per_mole / unit.kelvin))
    made.setGlobalVariableByName("kT", made.getGlobalVariableByName("kT") * temperature)
    made.addGlobalVariable("friction", friction)
    made.addGlobalVariable("kept", 0)
    made.addUpdateContextState()
    made.addComputeGlobal("kept", f"exp(-friction*dt/{n})")
    for k in range(n):
        for group in (*groups.reference, *groups.shared, *groups.direct):
            _kick(made, groups, n, group, outer=k == 0)
        if constrained:
            made.addConstrainVelocities()
        _drift(made, f"dt/{2 * n}", constrained=False)
        made.addComputePerDof("v", "kept*v+sqrt((1-kept*kept)*kT/m)*gaussian")
        _drift(made, f"dt/{2 * n}", constrained)
        _settle(made, f"dt/{n}", constrained)


def _kick(
    made: openmm.CustomIntegrator, groups: ForceGroups, n: int, group: int, *, outer: bool, share: str = ""
) -> None:
    """Add a kick of one group; an outer one is that of R - D over n steps and that of D over one."""
    if group in groups.reference:
        time = "dt" if outer else ""
    elif group in groups.direct and outer:
        time = f"(dt/{n}-dt)"
    else:
        time = f"dt/{n}"
    if time:
        made.addComputePerDof("v", f"v+{share}{time}*f{group}/m")


def _drift(made: openmm.CustomIntegrator, time: str, constrained: bool) -> None:
    made.addComputePerDof("x", f"x+{time}*v")
    if constrained:
        made.addComputePerDof("x1", "x")


def _settle(made: openmm.CustomIntegrator, time: str, constrained: bool) -> None:
    """Put constrained atoms in their places and give the velocities the same push."""
    if constrained:
        made.addConstrainPositions()
        made.addComputePerDof("v", f"v+(x-x1)/({time})")
