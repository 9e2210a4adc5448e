"""Runs a Context and keeps positions, velocities and energies; a guard ends a run that goes wrong."""

from __future__ import annotations

import time as clock
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from forcefield_ml.deploy.guards import stability
from forcefield_ml.progress import ProgressLine, duration


@dataclass
class Motion:
    """What was kept of a run; the first frame is the start.

    Parameters
    ----------
    time
        ps.
    positions, velocities
        (N, 3) float32 each; nm, molecules whole, and nm/ps.
    kinetic, reference
        kJ/mol: kinetic energy, and the reference's potential energy at these positions.
    event
        What a guard saw; None for a run that went to its end.
    seconds
        Wall time.
    """

    time: list[float] = field(default_factory=list)
    positions: list[NDArray[np.float32]] = field(default_factory=list)
    velocities: list[NDArray[np.float32]] = field(default_factory=list)
    kinetic: list[float] = field(default_factory=list)
    reference: list[float] = field(default_factory=list)
    event: dict[str, Any] | None = None
    seconds: float = 0.0


def move(
    context: openmm.Context,
    integrator: openmm.Integrator,
    reference: openmm.Context,
    topology: Any,
    *,
    steps: int,
    every: int,
    limits: stability.Limits,
    title: str,
    quiet: bool = False,
) -> Motion:
    """Run, and keep a frame every so many steps.

    Parameters
    ----------
    context, integrator
        Positions and velocities set.
    reference
        Of the reference force field, same box.
    topology
        For the names of atoms.
    steps
        Of the integrator.
    every
        Steps between two frames.
    limits
        Of the guards.
    title
        For progress.
    quiet
        Show none.

    Returns
    -------
    Motion
        Up to the end, or to the last frame before a guard fired.
    """
    motion = Motion()
    system = context.getSystem()
    masses = [system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())]
    timestep = integrator.getStepSize().value_in_unit(unit.picosecond)
    began, done = clock.monotonic(), 0
    with ProgressLine(title, quiet) as line:
        while True:
            event = _look(context, reference, motion, done * timestep, topology, np.array(masses), limits, done)
            if event is not None or done >= steps:
                break
            count = min(every, steps - done)
            try:
                integrator.step(count)
            except openmm.OpenMMException as error:  # types are lost on the way through OpenMM
                event = stability.Event(str(error), "exception", done + count, [])
                break
            done += count
            left = (clock.monotonic() - began) * (steps / done - 1)
            line.show(done / steps, f"{duration(left)} left · step {done} of {steps}", done == steps)
    motion.event = None if event is None else asdict(event)
    motion.seconds = clock.monotonic() - began
    return motion


def _look(
    context: openmm.Context,
    reference: openmm.Context,
    motion: Motion,
    time: float,
    topology: Any,
    masses: NDArray[np.float64],
    limits: stability.Limits,
    step: int,
) -> stability.Event | None:
    try:
        state = context.getState(positions=True, velocities=True, forces=True, energy=True)
        positions = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        velocities = np.array(state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond))
        forces = np.asarray(state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer))
        temperature = {"whole system": stability.kinetic_temperature(velocities, masses)}
        event = stability.check_state(step, positions, forces, temperature, limits, topology)
        if event is not None:
            return event
        reference.setPositions(positions)
        potential = reference.getState(energy=True).getPotentialEnergy()
    except openmm.OpenMMException as error:
        return stability.Event(str(error), "exception", step, [])
    motion.time.append(time)
    motion.positions.append(positions.astype(np.float32))
    motion.velocities.append(velocities.astype(np.float32))
    motion.kinetic.append(state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole))
    motion.reference.append(potential.value_in_unit(unit.kilojoule_per_mole))
    return None
