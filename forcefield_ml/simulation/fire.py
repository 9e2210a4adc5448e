"""Minimise with forces alone: FIRE, which never asks for an energy.

OpenMM's own minimiser compares energies, so with a network that predicts forces directly (a constant energy) it
stops at once and says nothing. FIRE follows the force with inertia: while the power P = F.v is positive the step
grows and the velocity turns towards the force; when P turns negative the atoms stop and the step is halved.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.deploy.guards.stability import name_atoms, worst_force
from forcefield_ml.deploy.system.force_groups import acting
from forcefield_ml.errors import ConfigError, UnstableError

N_MIN = 5
"""Steps of positive power before the time step grows."""
GROW, SHRINK = 1.1, 0.5
ALPHA_START, ALPHA_DECAY = 0.1, 0.99
STEP_START, STEP_MAX = 2e-4, 2e-3
"""Time steps, in ps for the mass of 1 u that every atom gets here: a C=O bond turns unstable above 2.9e-3."""


@dataclass(frozen=True)
class Minimised:
    """What a minimisation did.

    Parameters
    ----------
    converged
        Whether the largest force came below the tolerance.
    steps
        Force evaluations after the first.
    max_force, rms_force
        Largest norm of a force on an atom, and the root mean square of the norms, at the end, kJ/mol/nm.
    start_max_force
        The largest norm at the start, kJ/mol/nm.
    displacement
        The farthest any atom moved, nm.
    """

    converged: bool
    steps: int
    max_force: float
    rms_force: float
    start_max_force: float
    displacement: float


def minimise(
    simulation: Any,
    tolerance: float = 100.0,
    max_steps: int = 1000,
    max_displacement: float = 0.01,
    report: Callable[[int, float], None] | None = None,
) -> Minimised:
    """Move the atoms of a Context downhill along their forces until the largest force is below a tolerance.

    Every atom gets the same mass, whatever the System says; atoms of mass zero stay where they are. Energies are
    never read, so any force will do, also one that is the gradient of nothing. The lowest-force positions met are
    the ones the Context holds at the end.

    Parameters
    ----------
    simulation
        An ``openmm.app.Simulation`` or an ``openmm.Context``, with positions.
    tolerance
        Largest norm of a force at convergence, kJ/mol/nm.
    max_steps
        Most steps to take.
    max_displacement
        Farthest any atom moves in one step, nm.
    report
        Called with the step and the largest force after each step.

    Returns
    -------
    Minimised
        Whether it converged, and how far it came.

    Raises
    ------
    ConfigError
        If the System has constraints, or an argument is not positive.
    UnstableError
        If a force is not finite; the message names the atoms and the Context keeps the last finite positions.

    References
    ----------
    Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006), with the semi-implicit Euler step and the displacement cap
    that ASE uses.
    """
    from openmm import unit

    context = getattr(simulation, "context", simulation)
    topology = getattr(simulation, "topology", None)
    system = context.getSystem()
    if system.getNumConstraints():
        raise ConfigError(
            f"FIRE moves atoms freely, and this System has {system.getNumConstraints()} constraints. Create it with "
            "constraints=None and rigidWater=False."
        )
    for name, value in (("tolerance", tolerance), ("max_displacement", max_displacement)):
        if not value > 0:
            raise ConfigError(f"{name} is {value}; it must be greater than 0.")
    masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]
    free = np.array(masses)[:, None] > 0
    groups = acting(system)

    def forces() -> NDArray[np.float64]:
        found = context.getState(forces=True, groups=groups).getForces(asNumpy=True)
        return np.where(free, found.value_in_unit(unit.kilojoule_per_mole / unit.nanometer), 0.0)

    def place(values: NDArray[np.float64]) -> None:
        context.setPositions(values * unit.nanometer)
        context.computeVirtualSites()

    start = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
    positions, velocity = np.array(start), np.zeros_like(start)
    force = _finite(forces(), 0, topology)
    first, _ = worst_force(force)
    best, best_positions = first, positions.copy()
    step_size, alpha, uphill_free, step, largest = STEP_START, ALPHA_START, 0, 0, first
    while largest > tolerance and step < max_steps:
        step += 1
        if np.vdot(force, velocity) > 0:
            norm_force = np.linalg.norm(force)
            velocity = (1 - alpha) * velocity + alpha * np.linalg.norm(velocity) / norm_force * force
            uphill_free += 1
            if uphill_free > N_MIN:
                step_size, alpha = min(step_size * GROW, STEP_MAX), alpha * ALPHA_DECAY
        elif step > 1:
            velocity[:] = 0.0
            uphill_free, step_size, alpha = 0, step_size * SHRINK, ALPHA_START
        velocity += step_size * force
        move = step_size * velocity
        farthest = float(np.linalg.norm(move, axis=1).max())
        if farthest > max_displacement:
            move *= max_displacement / farthest
        former, positions = positions, positions + move
        place(positions)
        try:
            force = _finite(forces(), step, topology)
        except Exception:
            place(former)
            raise
        largest, _ = worst_force(force)
        if largest < best:
            best, best_positions = largest, positions.copy()
        if report is not None:
            report(step, largest)
    if largest > best:
        place(best_positions)
        positions, force = best_positions, forces()
    return Minimised(
        converged=best <= tolerance,
        steps=step,
        max_force=best,
        rms_force=float(np.sqrt((force**2).sum(axis=1).mean())),
        start_max_force=first,
        displacement=float(np.linalg.norm(positions - start, axis=1).max()),
    )


def _finite(force: NDArray[np.float64], step: int, topology: Any) -> NDArray[np.float64]:
    bad = np.flatnonzero(~np.isfinite(force).all(axis=1))
    if len(bad):
        raise UnstableError(
            f"{len(bad)} forces are not finite at minimisation step {step}: {name_atoms(bad, topology)}. Check the "
            "structure for overlapping atoms, or minimise with the MM force field first."
        )
    return force
