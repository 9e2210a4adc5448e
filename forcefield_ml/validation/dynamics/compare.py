"""Runs a structure by a model and by AMBER14 from the same start, and reads off what can be compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit
from pydantic import Field

from data_pipeline.systems.build import DEFAULT_FORCE_FIELD
from data_pipeline.systems.prepare import Prepared
from forcefield_ml.config import StrictConfig
from forcefield_ml.deploy.guards import stability
from forcefield_ml.errors import ConfigError, SurroundingsWarning
from forcefield_ml.simulation import build, mts
from forcefield_ml.validation.dynamics.blocks import drift
from forcefield_ml.validation.dynamics.motion import Motion, move
from forcefield_ml.validation.dynamics.observables import (
    circular_difference,
    geometry,
    temperatures,
    water_structure,
)

ML, AMBER, MTS = "model", "amber14", "multiple_time_stepping"


class DynamicsSettings(StrictConfig):
    """How long to run, and how: each of the runs has so many steps."""

    steps: int = Field(200, ge=40)
    timestep_fs: float = Field(0.5, gt=0, le=1.0)
    temperature: float = Field(300.0, gt=0)
    friction_per_ps: float = Field(1.0, gt=0)
    equilibration_ps: float = Field(1.0, gt=0)
    minimise_iterations: int = Field(200, ge=1)
    frames: int = Field(40, ge=5, le=400)
    mode: str | None = None
    backend: str = "auto"
    platform: str = "CPU"
    padding: float = Field(0.8, gt=0)
    cutoff: float = Field(0.9, gt=0)
    seed: int = Field(0, ge=0, le=2**31 - 2**20)

    @property
    def inner_steps(self) -> int:
        """Steps by the model for one kick by AMBER14 minus model: as many as multiple time stepping bears."""
        return max(1, int(mts.LONGEST_OUTER / self.timestep_fs + 1e-6))


def compare(
    structure: Path,
    model: Path,
    folder: Path,
    settings: DynamicsSettings,
    message: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Run a structure at constant temperature and at constant energy, by a model and by AMBER14.

    All runs begin with the same positions and velocities, warmed up with AMBER14. A run that a guard ends is judged by
    what it did until then, and says so. One more run at constant energy has multiple time stepping, in the mode in
    which the model moves a solute, whatever mode the others have.

    Parameters
    ----------
    structure
        PDB or mmCIF file.
    model
        A model.pt.
    folder
        Where the prepared system goes (dynamics.cif).
    settings
        How long and how.
    message
        Called with lines for the user.

    Returns
    -------
    dict
        ``nvt`` and ``nve`` (each run by name), ``differences``, ``multiple_time_stepping`` (``mode``, ``inner_steps``,
        and why there was no such run: ``refused``), ``surroundings`` (which atoms are bonded as none that the model
        was trained on, in words), and what was run.

    Raises
    ------
    ConfigError
        If the structure cannot be prepared, or blows up with AMBER14.
    ModelFileError, ForceModeError, TopologyError
        If the model cannot act on it.
    """
    prepared, left_out = build.solvated(
        structure, folder / "dynamics.cif", ph=7.0, padding=settings.padding, seed=settings.seed
    )
    platform = build.platform_named(settings.platform)
    plain = build.mm_system(prepared, DEFAULT_FORCE_FIELD, settings.cutoff)
    message(f"dynamics: {prepared.topology.getNumAtoms()} atoms, warming up with AMBER14")
    positions, velocities = build.relax(
        plain,
        prepared,
        (platform,),
        temperature=settings.temperature,
        timestep=settings.timestep_fs * 1e-3,
        equilibration=settings.equilibration_ps,
        max_iterations=settings.minimise_iterations,
        seed=settings.seed,
    )
    start = (positions, velocities)
    base = build.mm_system(prepared, DEFAULT_FORCE_FIELD, settings.cutoff)
    driven, surroundings = _driven(base, prepared, model, settings)
    runner = _Runner(prepared, plain, platform, settings, start)
    systems = {AMBER: plain, ML: driven.system}
    nvt = {name: runner.constant_temperature(system, f"NVT by {name}") for name, system in systems.items()}
    nve: dict[str, Motion] = {}
    for name, system in systems.items():
        integrator = openmm.VerletIntegrator(settings.timestep_fs * unit.femtosecond)
        nve[name] = runner.run(system, integrator, f"NVE by {name}")
    multiple = _multiple_time_stepping(prepared, model, settings)
    if multiple.system is not None:
        integrator = mts.integrator(multiple.system, settings.timestep_fs * 1e-3, settings.inner_steps)
        nve[MTS] = runner.run(multiple.system, integrator, "NVE by multiple time stepping")
    judged = {name: _constant_temperature(motion, prepared, driven.solute, runner) for name, motion in nvt.items()}
    return {
        "structure": structure.name,
        "left_out": left_out,
        "mode": driven.mode,
        "target_atoms": driven.card["target_atoms"],
        "surroundings": surroundings,
        "atoms": prepared.topology.getNumAtoms(),
        "solute_atoms": int(driven.solute.sum()),
        "settings": settings.model_dump(mode="json"),
        "nvt": judged,
        "nve": {
            **{name: _constant_energy(motion, prepared.topology.getNumAtoms()) for name, motion in nve.items()},
            **({} if MTS in nve else {MTS: None}),
        },
        "differences": _differences(judged),
        "multiple_time_stepping": {
            "mode": multiple.mode,
            "inner_steps": settings.inner_steps,
            "refused": multiple.refused,
        },
    }


def _driven(
    base: openmm.System, prepared: Prepared, model: Path, settings: DynamicsSettings
) -> tuple[build.Simulated, list[str]]:
    """Add the model; return with it what was warned of atoms that are bonded as none in training."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", SurroundingsWarning)
        driven = build.add_model(base, prepared.topology, model, settings.mode, settings.backend, settings.platform)
    for one in told:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return driven, [str(one.message) for one in told if issubclass(one.category, SurroundingsWarning)]


@dataclass(frozen=True)
class _Multiple:
    """A System for multiple time stepping, or why there is none."""

    system: openmm.System | None
    mode: str | None
    refused: str | None


def _multiple_time_stepping(prepared: Prepared, model: Path, settings: DynamicsSettings) -> _Multiple:
    base = build.mm_system(prepared, DEFAULT_FORCE_FIELD, settings.cutoff)
    try:
        made = build.add_model(
            base, prepared.topology, model, None, settings.backend, settings.platform, reference=True
        )
    except ConfigError as error:  # the modes that know no multiple time stepping
        return _Multiple(None, None, str(error))
    return _Multiple(made.system, made.mode, None)


class _Runner:
    """What all runs share: the start, the reference and the guards."""

    def __init__(
        self,
        prepared: Prepared,
        reference: openmm.System,
        platform: openmm.Platform,
        settings: DynamicsSettings,
        start: tuple[NDArray[np.float64], NDArray[np.float64]],
    ):
        self.prepared, self.platform, self.settings, self.start = prepared, platform, settings, start
        self.every = max(1, settings.steps // settings.frames)
        dalton = unit.dalton
        self.masses = np.array(
            [reference.getParticleMass(i).value_in_unit(dalton) for i in range(reference.getNumParticles())]
        )
        self.reference = openmm.Context(reference, openmm.VerletIntegrator(0.001), platform)

    def constant_temperature(self, system: openmm.System, title: str) -> Motion:
        settings = self.settings
        integrator = openmm.LangevinMiddleIntegrator(
            settings.temperature * unit.kelvin,
            settings.friction_per_ps / unit.picosecond,
            settings.timestep_fs * unit.femtosecond,
        )
        integrator.setRandomNumberSeed(settings.seed + 2)
        return self.run(system, integrator, title)

    def run(self, system: openmm.System, integrator: openmm.Integrator, title: str) -> Motion:
        """Return a run of the same simulated time, whatever the integrator's step."""
        step = integrator.getStepSize().value_in_unit(unit.femtosecond)
        ratio = max(1, round(step / self.settings.timestep_fs))
        with build.without_energy_warning():
            context = openmm.Context(system, integrator, self.platform)
            context.setPositions(self.start[0])
            context.setVelocities(self.start[1])
            return move(
                context,
                integrator,
                self.reference,
                self.prepared.topology,
                steps=max(4, self.settings.steps // ratio),
                every=max(1, self.every // ratio),
                limits=stability.Limits(),
                title=title,
            )


def _constant_temperature(
    motion: Motion, prepared: Prepared, solute: NDArray[np.bool_], runner: _Runner
) -> dict[str, Any]:
    """Return what a run at constant temperature showed; the start belongs to neither force and is left out."""
    found: dict[str, Any] = {"event": motion.event, "frames": len(motion.time), "seconds": motion.seconds}
    if len(motion.time) < 2:
        return {**found, "temperature": None, "geometry": None, "water": None}
    positions, velocities = np.array(motion.positions), np.array(motion.velocities[1:])
    box = np.array(prepared.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    interval = motion.time[1] - motion.time[0]
    return {
        **found,
        "length": motion.time[-1],
        "temperature": temperatures(prepared.topology, velocities, runner.masses, solute),
        "geometry": geometry(prepared.topology, positions, solute, interval),
        "water": water_structure(prepared.topology, positions[1:], box, runner.settings.seed),
    }


def _constant_energy(motion: Motion, n_atoms: int) -> dict[str, Any]:
    total = np.array(motion.kinetic) + np.array(motion.reference)
    return {
        "event": motion.event,
        "drift": drift(motion.time, motion.kinetic, motion.reference, n_atoms) if len(motion.time) >= 4 else None,
        "time": motion.time,
        "total": (total - total[0]).tolist() if len(total) else [],
        "seconds": motion.seconds,
    }


def _differences(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return how far the model's run is from AMBER14's where one number says it."""
    ours, theirs = runs[ML]["geometry"], runs[AMBER]["geometry"]
    if ours is None or theirs is None:
        return {"phi": None, "psi": None}
    return {angle: circular_difference(np.array(ours[angle]), np.array(theirs[angle])) for angle in ("phi", "psi")}
