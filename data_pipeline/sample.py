"""Frames of a prepared system: snapshots of a thermal run, or one minimised structure.

Both move every atom with the reference force field; no label is computed here. Frames are rounded to float32 at
once, so that labels belong to exactly the positions that the dataset holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openmm
from openmm import unit

from data_pipeline.errors import EntryError
from data_pipeline.prepare import Prepared
from data_pipeline.systems import DEFAULT_FORCE_FIELD, box_of, build_system, make_context

PROTOCOLS = ("thermal", "minimized")

BOLTZMANN = 0.00831446261815324
"""kJ/mol/K."""


@dataclass(frozen=True)
class Frames:
    """Snapshots of one system.

    Parameters
    ----------
    positions
        (F, N, 3) float32 in nm, molecules whole.
    box
        (F, 3, 3) float32 in nm, rows.
    temperature
        (F,) kinetic temperature in K at each frame; zeros where nothing moved.
    """

    positions: np.ndarray
    box: np.ndarray
    temperature: np.ndarray


def sample_thermal(
    prepared: Prepared,
    *,
    temperature: float = 300.0,
    n_frames: int = 4,
    equilibration: float = 2.0,
    interval: float = 1.0,
    timestep: float = 0.001,
    friction: float = 2.0,
    equilibration_friction: float = 10.0,
    minimise_iterations: int = 200,
    cutoff: float = 0.9,
    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD,
    platform: str = "CPU",
    seed: int = 0,
) -> Frames:
    """Return snapshots of Langevin dynamics at constant volume with every bond flexible.

    Velocities start at twice the temperature: in a nearly harmonic system half of that kinetic energy flows into
    the potential within some tenths of a ps, and the thermostat does the rest.

    Parameters
    ----------
    prepared
        The solvated system.
    temperature
        K.
    n_frames
        Number of snapshots.
    equilibration, interval
        ps before the first snapshot, and ps between two.
    timestep
        ps; without constraints at most 0.001.
    friction, equilibration_friction
        1/ps between snapshots and before the first.
    minimise_iterations
        Steps of minimisation that relax the repaired structure before it moves.
    cutoff, force_field_files, platform
        As in `build_system` and `make_context`.
    seed
        Of velocities and random forces.

    Raises
    ------
    EntryError
        Of kind runaway when the system blows up.
    """
    system = build_system(prepared.topology, force_field_files, cutoff=cutoff)
    integrator = openmm.LangevinMiddleIntegrator(
        temperature * unit.kelvin, equilibration_friction / unit.picosecond, timestep * unit.picosecond
    )
    integrator.setRandomNumberSeed(_nonzero(seed))
    context = make_context(system, integrator, platform)
    context.setPositions(prepared.positions)
    freedom = 3 * system.getNumParticles()
    try:
        if minimise_iterations:
            openmm.LocalEnergyMinimizer.minimize(context, 10.0, minimise_iterations)
        context.setVelocitiesToTemperature(2 * temperature * unit.kelvin, _nonzero(seed))
        integrator.step(max(1, round(equilibration / timestep)))
        integrator.setFriction(friction / unit.picosecond)
        positions, boxes, temperatures = [], [], []
        for frame in range(n_frames):
            if frame:
                integrator.step(max(1, round(interval / timestep)))
            state = context.getState(getPositions=True, getEnergy=True)
            positions.append(_positions(state))
            boxes.append(box_of(state).astype(np.float32))
            kinetic = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole)
            temperatures.append(2 * kinetic / (freedom * BOLTZMANN))
    except openmm.OpenMMException as error:
        raise EntryError("runaway", f"the dynamics at {temperature} K failed: {error}") from error
    return _checked(Frames(np.stack(positions), np.stack(boxes), np.array(temperatures)))


def sample_minimized(
    prepared: Prepared,
    *,
    flexible_tolerance: float = 30.0,
    constrained_tolerance: float = 10.0,
    max_iterations: int = 0,
    cutoff: float = 0.9,
    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD,
    platform: str = "CPU",
) -> Frames:
    """Return one frame at a minimum of the constrained system, very likely the paper's protocol.

    All bonds flexible first, which is cheap, then bonds to hydrogen constrained and water rigid: labelled without
    constraints, most forces are tiny there and those along constrained bonds are not.

    Parameters
    ----------
    prepared
        The solvated system.
    flexible_tolerance, constrained_tolerance
        Root-mean-square force in kJ/mol/nm at which each minimisation stops.
    max_iterations
        Of each minimisation; 0 for no limit.
    cutoff, force_field_files, platform
        As in `build_system` and `make_context`.

    Raises
    ------
    EntryError
        Of kind runaway when a minimisation fails.
    """
    positions = prepared.positions
    try:
        for constrained, tolerance in ((False, flexible_tolerance), (True, constrained_tolerance)):
            system = build_system(prepared.topology, force_field_files, cutoff=cutoff, constrained=constrained)
            context = make_context(system, openmm.VerletIntegrator(0.001), platform)
            context.setPositions(positions)
            openmm.LocalEnergyMinimizer.minimize(context, tolerance, max_iterations)
            state = context.getState(getPositions=True)
            positions = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
    except openmm.OpenMMException as error:
        raise EntryError("runaway", f"the minimisation failed: {error}") from error
    return _checked(Frames(_positions(state)[None], box_of(state).astype(np.float32)[None], np.zeros(1)))


def _positions(state: openmm.State) -> np.ndarray:
    return np.asarray(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer), dtype=np.float32)


def _checked(frames: Frames) -> Frames:
    if not np.isfinite(frames.positions).all():
        raise EntryError("runaway", "some positions are not finite; shorten sample.timestep or look at the entry")
    return frames


def _nonzero(seed: int) -> int:
    # OpenMM draws a new seed by itself when given 0, and takes 32-bit signed integers only.
    return seed % (2**31 - 2) + 1
