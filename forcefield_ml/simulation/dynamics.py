"""A run's integrator and Context, and how to make them anew so that what follows depends on a snapshot alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openmm
from numpy.typing import NDArray
from openmm import unit

from data_pipeline.config import entry_seed
from forcefield_ml.deploy.stored.serialise import TORCH_FORCE
from forcefield_ml.deploy.system.force_groups import acting
from forcefield_ml.deploy.system.mm import class_name
from forcefield_ml.simulation import mts
from forcefield_ml.simulation.build import platform_named
from forcefield_ml.simulation.config import SimulationConfig
from forcefield_ml.simulation.record import Snapshot

ALL_GROUPS = -1


class Dynamics:
    """What runs.

    A Context remembers more than positions and velocities: neighbour lists, OpenMM's and the model's, that set the
    order in which rounded numbers are added, and where the random numbers stand. `renew` makes all of it anew from
    the System, with random numbers drawn by seed and step; done at each checkpoint, it leaves nothing that a process
    which reads the checkpoint would not have.

    Parameters
    ----------
    config
        Settings.
    system
        With every force.
    snapshot
        Where to begin.
    options
        Of the Context: platform and properties.

    Attributes
    ----------
    context, integrator
        OpenMM's.
    """

    def __init__(
        self, config: SimulationConfig, system: openmm.System, snapshot: Snapshot, options: tuple[Any, ...]
    ) -> None:
        self._config, self._options, self._system = config, options, system
        # A copy holds callables without memory. A TorchForce cannot be copied, and has none.
        copyable = not any(class_name(force) in ("Force", TORCH_FORCE) for force in system.getForces())
        self._xml = openmm.XmlSerializer.serialize(system) if config.deterministic and copyable else None
        self.context: openmm.Context
        self.integrator: openmm.Integrator
        self.renew(snapshot)

    def renew(self, snapshot: Snapshot) -> None:
        """Make integrator and Context anew at this state."""
        self.__dict__.pop("context", None)  # its memory first
        system = self._system if self._xml is None else openmm.XmlSerializer.deserialize(self._xml)
        self.integrator = self._integrator(system)
        # each step another seed, far from those of other runs
        self.integrator.setRandomNumberSeed(entry_seed(self._config.seed, f"step {snapshot.step}") % 2**30 + 1)
        self._acting = acting(system) if self._config.mts > 1 else ALL_GROUPS
        self.context = openmm.Context(system, self.integrator, *self._options)
        self.context.setPeriodicBoxVectors(*(openmm.Vec3(*row) * unit.nanometer for row in snapshot.box.tolist()))
        self.context.setPositions(snapshot.positions * unit.nanometer)
        self.context.setVelocities(snapshot.velocities * unit.nanometer / unit.picosecond)
        self.context.setStepCount(snapshot.step // self._config.mts)
        self.context.setTime(snapshot.step * self._config.timestep_fs * 1e-3)

    def _integrator(self, system: openmm.System) -> openmm.Integrator:
        config = self._config
        temperature, friction = config.temperature * unit.kelvin, config.friction_per_ps / unit.picosecond
        step = config.timestep_fs * unit.femtosecond
        if config.mts > 1:
            return mts.integrator(system, step, config.mts, temperature, friction)
        return openmm.LangevinMiddleIntegrator(temperature, friction, step)

    def step(self, count: int) -> None:
        """Do so many steps of the model's force, a multiple of those in an outer step."""
        self.integrator.step(count // self._config.mts)

    def snapshot(self, step: int, seconds: float) -> Snapshot:
        """Return the state as it is, said to be after this step and this wall time."""
        state = self.context.getState(positions=True, velocities=True)
        return Snapshot(
            step,
            np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)),
            np.array(state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)),
            np.array(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)),
            seconds,
        )

    def forces(self) -> tuple[NDArray[np.float64], float]:
        """Return the forces by which atoms move, (N, 3) kJ/mol/nm, and the potential energy, kJ/mol.

        The energy is that of the reference under multiple time stepping; else that of all forces that have one.
        """
        energy_groups = self.integrator.getIntegrationForceGroups()
        together = energy_groups == self._acting
        state = self.context.getState(forces=True, energy=together, groups=self._acting)
        other = state if together else self.context.getState(energy=True, groups=energy_groups)
        return (
            np.asarray(state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)),
            float(other.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)),
        )


def context_options(config: SimulationConfig) -> tuple[Any, ...]:
    """Return what a Context needs beside System and integrator, after setting the platform's defaults.

    Raises
    ------
    ConfigError
        If there is no such platform.
    """
    platform = platform_named(config.platform)
    # Said aloud, since preparing a structure sets one thread as the default of this process.
    # Defaults again, so that the inner Context of mode solute has the same.
    if config.platform == "CPU":
        threads = 1 if config.deterministic else config.threads or os.cpu_count() or 1
        platform.setPropertyDefaultValue("Threads", str(threads))
    if "DeterministicForces" in platform.getPropertyNames():
        platform.setPropertyDefaultValue("DeterministicForces", str(config.deterministic).lower())
    return (platform,)


@contextmanager
def one_torch_thread(wanted: bool) -> Iterator[None]:
    """Let PyTorch compute on one thread meanwhile, where wanted: the order of sums is then always the same."""
    if not wanted:
        yield
        return
    import torch

    former = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(former)
