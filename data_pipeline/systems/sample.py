"""Frames of a prepared system: snapshots of a thermal run, or one structure at a minimum.

Everything here moves atoms with a force field and computes no label. Frames are rounded to float32 at once, so that
labels belong to exactly the positions that the dataset holds. Why the protocols are what they are, with the numbers:
docs/decisions/0011-sampling.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openmm
from openmm import unit

from data_pipeline.errors import EntryError
from data_pipeline.systems.build import DEFAULT_FORCE_FIELD, box_of, build_system, make_context
from data_pipeline.systems.prepare import Prepared

PROTOCOLS = ("thermal", "minimized")

BOLTZMANN = 0.00831446261815324
"""kJ/mol/K."""

CUTOFF = 0.7
"""nm, direct space; PME keeps its accuracy, the Lennard-Jones tail beyond it does not matter where labels are exact."""

HYDROGEN_MASS = 3.0
"""Da, taken from the heavy neighbour: allows 4 fs with constraints and does not change what is sampled."""


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
        (F,) float32, the thermostat's in K; zeros where the frames are minima.
    kinetic_temperature
        (F,) float32, of the velocities at each frame in K; zeros where nothing moved.
    """

    positions: np.ndarray
    box: np.ndarray
    temperature: np.ndarray
    kinetic_temperature: np.ndarray


def relax(
    prepared: Prepared,
    *,
    tolerance: float = 30.0,
    cutoff: float = CUTOFF,
    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD,
    platform: str = "CPU",
) -> np.ndarray:
    """Return positions (N, 3) float64 in nm, relaxed with every bond flexible: where both protocols start.

    Parameters
    ----------
    prepared
        The solvated system.
    tolerance
        Root-mean-square force in kJ/mol/nm at which the minimisation stops.
    cutoff, force_field_files, platform
        As in `build_system` and `make_context`.

    Raises
    ------
    EntryError
        Of kind runaway when the minimisation fails, a clash that it could not undo for instance.
    """
    system = build_system(prepared.topology, force_field_files, cutoff=cutoff)
    context = make_context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(prepared.positions)
    try:
        openmm.LocalEnergyMinimizer.minimize(context, tolerance)
        positions = _positions(context.getState(getPositions=True))
    except openmm.OpenMMException as error:
        raise EntryError("runaway", f"the minimisation of the repaired structure failed: {error}") from error
    if not np.isfinite(positions).all():
        raise EntryError("runaway", "the minimisation of the repaired structure gave positions that are not finite")
    return positions


def sample_minimized(
    prepared: Prepared,
    relaxed: np.ndarray,
    *,
    damping_time: float = 0.4,
    damping_friction: float = 5.0,
    cutoff: float = CUTOFF,
    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD,
    platform: str = "CPU",
) -> Frames:
    """Return one frame near a minimum of the constrained system, very likely the paper's protocol.

    Bonds to hydrogen are constrained and water is rigid while the motion is damped to rest (Langevin dynamics at 0 K):
    labelled without constraints, most forces are small there and those along constrained bonds are not. Damped
    dynamics keeps constraints exactly, where a minimiser needs stiff penalties and forty times as long.

    Parameters
    ----------
    prepared
        The solvated system.
    relaxed
        (N, 3) in nm, from `relax`.
    damping_time
        ps; longer comes nearer to the minimum.
    damping_friction
        1/ps.
    cutoff, force_field_files, platform
        As in `build_system` and `make_context`.

    Raises
    ------
    EntryError
        Of kind runaway when it fails.
    """
    timestep = 0.002
    integrator = openmm.LangevinMiddleIntegrator(0.0, damping_friction, timestep)
    system = build_system(prepared.topology, force_field_files, cutoff=cutoff, constrained=True)
    context = make_context(system, integrator, platform)
    try:
        context.setPositions(relaxed)
        context.applyConstraints(1e-6)
        integrator.step(max(1, round(damping_time / timestep)))
        state = context.getState(getPositions=True)
    except openmm.OpenMMException as error:
        raise EntryError("runaway", f"the damped dynamics failed: {error}") from error
    return _frames([state], [0.0], [0.0])


def sample_thermal(
    prepared: Prepared,
    relaxed: np.ndarray,
    *,
    temperatures: Sequence[float] = (300.0,),
    n_frames: int = 4,
    equilibration: float = 2.0,
    interval: float = 1.0,
    timestep: float = 0.004,
    friction: float = 5.0,
    flexible_time: float = 0.2,
    flexible_friction: float = 50.0,
    cutoff: float = CUTOFF,
    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD,
    platform: str = "CPU",
    seed: int = 0,
) -> Frames:
    """Return snapshots of Langevin dynamics at constant volume, every bond and angle at the temperature.

    Between snapshots the system travels with constrained bonds to hydrogen, rigid water, heavy hydrogens and a long
    step; before each it moves for a while with every bond flexible and true masses, until the stiff bonds are as warm
    as the rest.

    Parameters
    ----------
    prepared
        The solvated system.
    relaxed
        (N, 3) in nm, from `relax`.
    temperatures
        K, of the thermostat, one after the other.
    n_frames
        Snapshots at each temperature.
    equilibration, interval
        ps that the system travels before the first snapshot at each temperature, and between two.
    timestep
        ps, of the constrained dynamics; at most 0.004.
    friction
        1/ps, of the constrained dynamics.
    flexible_time, flexible_friction
        ps and 1/ps of the flexible dynamics before each snapshot, with steps of 0.001 ps.
    cutoff, force_field_files, platform
        As in `build_system` and `make_context`.
    seed
        Of velocities and random forces.

    Raises
    ------
    EntryError
        Of kind runaway when the system blows up.
    """
    flexible_step = 0.001
    travel = openmm.LangevinMiddleIntegrator(temperatures[0], friction, timestep)
    flex = openmm.LangevinMiddleIntegrator(temperatures[0], flexible_friction, flexible_step)
    travel.setRandomNumberSeed(_nonzero(seed))
    flex.setRandomNumberSeed(_nonzero(seed + 1))
    rigid = build_system(
        prepared.topology, force_field_files, cutoff=cutoff, constrained=True, hydrogen_mass=HYDROGEN_MASS
    )
    soft = build_system(prepared.topology, force_field_files, cutoff=cutoff)
    travelling, flexing = make_context(rigid, travel, platform), make_context(soft, flex, platform)
    freedom = 3 * soft.getNumParticles()
    states: list[openmm.State] = []
    thermostat: list[float] = []
    kinetic: list[float] = []
    positions = relaxed
    try:
        for temperature in temperatures:
            travel.setTemperature(temperature)
            flex.setTemperature(temperature)
            for frame in range(n_frames):
                draw = _nonzero(seed + 2 * len(states) + 2)
                travelling.setPositions(positions)
                travelling.applyConstraints(1e-6)
                # From rest half of the kinetic energy flows into the potential, in a nearly harmonic system.
                travelling.setVelocitiesToTemperature(temperature if states else 2 * temperature, draw)
                travel.step(max(1, round((interval if frame else equilibration) / timestep)))
                flexing.setPositions(travelling.getState(getPositions=True).getPositions(asNumpy=True))
                flexing.setVelocitiesToTemperature(temperature, draw + 1)
                flex.step(max(1, round(flexible_time / flexible_step)))
                state = flexing.getState(getPositions=True, getEnergy=True)
                positions = _positions(state)
                states.append(state)
                thermostat.append(temperature)
                energy = state.getKineticEnergy().value_in_unit(unit.kilojoule_per_mole)
                kinetic.append(2 * energy / (freedom * BOLTZMANN))
    except openmm.OpenMMException as error:
        raise EntryError("runaway", f"the dynamics at {temperature} K failed: {error}") from error
    return _frames(states, thermostat, kinetic)


def _frames(states: list[openmm.State], temperature: list[float], kinetic: list[float]) -> Frames:
    positions = np.stack([_positions(state).astype(np.float32) for state in states])
    if not np.isfinite(positions).all():
        raise EntryError("runaway", "some positions are not finite; shorten sample.timestep or look at the entry")
    return Frames(
        positions,
        np.stack([box_of(state).astype(np.float32) for state in states]),
        np.array(temperature, dtype=np.float32),
        np.array(kinetic, dtype=np.float32),
    )


def _positions(state: openmm.State) -> np.ndarray:
    return np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))


def _nonzero(seed: int) -> int:
    # OpenMM draws a new seed by itself when given 0, and takes 32-bit signed integers only.
    return seed % (2**31 - 2) + 1
