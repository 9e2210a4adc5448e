"""Watch a simulation: keep its last good state, and when it fails say where, which atoms, and where that state is."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openmm

from forcefield_ml.deploy.force.openmm_force import kind_of
from forcefield_ml.deploy.guards.stability import Limits, check_state, kinetic_temperature, name_atoms
from forcefield_ml.errors import ForcefieldMLError, UnstableError
from forcefield_ml.files import write_whole


class Watch:
    """A reporter of `openmm.app.Simulation` that keeps the last good state and writes it when the simulation fails.

    A state is good if positions are finite, no bond is torn, no force is absurd and atoms are not too hot. Between two
    looks the model itself raises at the step where its forces are not finite or absurd. Nothing is written as long as
    all goes well; a look costs one evaluation of the forces.

    Parameters
    ----------
    path
        The State XML to write; ``simulation.loadState(path)`` reads it.
    every
        Steps between two looks.
    masses
        (N,) u.
    limits
        What a state may show.
    """

    def __init__(self, path: Path, every: int, masses: np.ndarray, limits: Limits):
        self.path, self.every, self.limits = path, every, limits
        self._masses = masses
        self._good: openmm.State | None = None
        self._before: Callable[[], None] | None = None

    def describeNextReport(self, simulation: Any) -> dict[str, Any]:
        """Return what OpenMM asks a reporter: how many steps to the next look, and what it needs to see."""
        return {
            "steps": self.every - simulation.currentStep % self.every,
            "periodic": False,
            "include": ["positions", "velocities", "forces"],
        }

    def report(self, simulation: Any, state: openmm.State) -> None:
        """Keep the state, or raise `UnstableError` if it is not good."""
        self._look(simulation, state, self.limits)

    def _begin(self, simulation: Any) -> None:
        """Keep the first state, whatever clashes are in it, as long as it is finite."""
        state = simulation.context.getState(positions=True, velocities=True, forces=True)
        self._look(simulation, state, Limits(math.inf, math.inf, torn_bonds=False))

    def _look(self, simulation: Any, state: openmm.State, limits: Limits) -> None:
        temperature = kinetic_temperature(state.getVelocities(asNumpy=True)._value, self._masses)
        event = check_state(
            state.getStepCount(),
            state.getPositions(asNumpy=True)._value,
            state.getForces(asNumpy=True)._value,
            {"system": temperature},
            limits,
            simulation.topology,
        )
        if event is not None:
            raise UnstableError(f"at step {event.step}: {event.reason}; worst: {', '.join(event.atoms[:5])}")
        # no forces: what saveState would write, what thermostats remember included
        self._good = simulation.context.getState(
            positions=True, velocities=True, parameters=True, integratorParameters=True
        )

    def attach(self, simulation: Any, before: Callable[[], None]) -> None:
        """Make ``simulation.step`` and ``runForClockTime`` tell a failure in one error.

        Parameters
        ----------
        simulation
            An `openmm.app.Simulation`.
        before
            Called before each of them: what may have been changed since the last call.
        """
        attached = [reporter for reporter in simulation.reporters if isinstance(reporter, Watch)]
        for former in attached:
            simulation.reporters.remove(former)
        simulation.reporters.insert(0, self)
        self._before = before
        for name in ("step", "runForClockTime"):
            # of the class: `check` may be called twice
            setattr(simulation, name, self._guarded(simulation, getattr(type(simulation), name)))

    def _guarded(self, simulation: Any, run: Callable[..., Any]) -> Callable[..., Any]:
        def guarded(*arguments: Any, **options: Any) -> Any:
            if self._before is not None:
                self._before()
            try:
                if self._good is None:
                    self._begin(simulation)
                return run(simulation, *arguments, **options)
            except (openmm.OpenMMException, UnstableError) as error:
                if "have not been set" in str(error):  # no positions yet
                    raise
                positions = simulation.context.getState(positions=True).getPositions(asNumpy=True)._value
                message = plain_message(error, positions, simulation.topology)
                if message == "<NULL>":  # all that is left of a Ctrl-C inside the model
                    raise KeyboardInterrupt from None
                raise self._failure(simulation, message) from error

        guarded.__doc__ = run.__doc__
        return guarded

    def _failure(self, simulation: Any, message: str) -> ForcefieldMLError:
        kind = kind_of(message)
        step = simulation.context.getStepCount()
        where = "" if message.startswith("at step") else f"after step {step}: "
        if self._good is None:
            return kind(f"{where}{message}. There is no good state to go back to: this was the first")
        write_whole(self.path, openmm.XmlSerializer.serialize(self._good).encode())
        return kind(
            f"{where}{message}. The last good state, step {self._good.getStepCount()}, is in {self.path}; "
            f"simulation.loadState({str(self.path)!r}) goes back to it"
        )


def plain_message(error: BaseException, positions: np.ndarray, topology: Any) -> str:
    """Return what an error raised inside OpenMM says, without the trace of TorchScript around it.

    Parameters
    ----------
    error
        An OpenMMException, or one of ours.
    positions
        (N, 3) nm, of the Context now: OpenMM's own message about NaN names no atoms.
    topology
        To name them by, or None.
    """
    message = str(error).rpartition("ValueError: ")[2].strip().rstrip(".")
    if "coordinate is NaN" in message:
        lost = np.flatnonzero(~np.isfinite(positions).all(axis=1))
        message = f"positions are not finite: {name_atoms(lost, topology)}"
    return message
