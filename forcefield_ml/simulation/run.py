"""`simulate`: a protein in water at constant temperature with a model's force, guarded, logged and resumable.

The output folder holds config.json, topology.cif (atoms, bonds and box), trajectory.dcd, log.csv, checkpoint.npz
and, at the end, result.json. A killed run goes on from its last checkpoint: the random forces then start from
another seed, so it repeats in distribution and not bit by bit.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import openmm
from openmm import unit
from pydantic import Field, model_validator

from data_pipeline.systems.build import DEFAULT_FORCE_FIELD
from data_pipeline.systems.prepare import Prepared, read_prepared
from forcefield_ml import pretrained
from forcefield_ml.config import StrictConfig
from forcefield_ml.deploy.guards import stability, steps
from forcefield_ml.errors import ConfigError, UnstableError
from forcefield_ml.files import write_whole
from forcefield_ml.progress import ProgressLine, duration
from forcefield_ml.simulation import build, record
from forcefield_ml.simulation.fire import minimise
from forcefield_ml.simulation.result import describe_run

MAY_CHANGE = {"output", "steps", "max_minutes", "threads", "platform", "structure"}
"""Settings that a resumed run may have otherwise than before; structure and model are compared by content."""

INTERRUPTED = "interrupted"

Message = Callable[[str], None]


class SimulationConfig(StrictConfig):
    """What to simulate and how.

    Steps are steps of the dynamics with the model; times are in the units that the names say.
    """

    structure: Path
    model: Path | None = None
    output: Path
    steps: int = Field(2000, ge=1)
    timestep_fs: float = Field(0.5, gt=0)
    temperature: float = Field(300.0, gt=0)
    friction_per_ps: float = Field(1.0, gt=0)
    mode: Literal["system", "solute", "embedded", "correction"] | None = None
    backend: str = "auto"
    start: Literal["thermal", "minimised"] = "thermal"
    equilibration_ps: float = Field(1.0, ge=0)
    minimise_iterations: int = Field(200, ge=1)
    fire_steps: int = Field(200, ge=0)
    fire_tolerance: float = Field(500.0, gt=0)
    log_every: int = Field(10, ge=1)
    frame_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    max_minutes: float | None = Field(None, gt=0)
    max_force: float = Field(stability.MAX_FORCE, gt=0, le=stability.MAX_FORCE)
    max_temperature: float = Field(stability.MAX_TEMPERATURE, gt=0)
    platform: str = "CPU"
    threads: int | None = Field(None, ge=1)
    force_field: tuple[str, ...] = DEFAULT_FORCE_FIELD
    cutoff: float = Field(0.9, gt=0)
    ph: float = 7.0
    padding: float = Field(0.8, gt=0)
    seed: int = Field(0, ge=0, le=2**31 - 2**20)

    @model_validator(mode="after")
    def _consistent(self) -> SimulationConfig:
        for name in ("frame_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a multiple of log_every.")
        if self.timestep_fs > steps.LONGEST_STEP:
            raise ValueError(
                f"timestep_fs is {self.timestep_fs:g}; without constraints at most {steps.LONGEST_STEP:g} fs is "
                "allowed and 0.5 fs is safe."
            )
        return self


def simulate(config: SimulationConfig, restart: bool = False, message: Message = print) -> dict[str, Any]:
    """Run a simulation, or go on with the one that the output folder holds.

    Parameters
    ----------
    config
        What to simulate.
    restart
        Throw away what the output folder holds of a former run.
    message
        Called with lines for the user.

    Returns
    -------
    dict
        What result.json holds.

    Raises
    ------
    ConfigError
        If the structure cannot be prepared, the folder holds a run with other settings, or a file cannot be written.
    UnstableError
        If a guard stopped the run; the last good state and result.json are written first.
    KeyboardInterrupt
        After Ctrl-C, once the steps in hand are done and the state is written; the same call goes on from there.
    ModelFileError, ForceModeError, TopologyError
        If the model cannot act on this system.
    """
    folder = config.output
    if config.model is not None:
        config = config.model_copy(update={"model": pretrained.resolve(config.model)})
    if restart:
        _forget(folder)
    folder.mkdir(parents=True, exist_ok=True)
    resolved = _resolved(config)
    _same_run(folder, resolved)
    former = _former_result(folder)
    snapshot = record.read_checkpoint(folder)
    if former is not None and snapshot is not None and _nothing_left(former, config):
        if former["status"] == "unstable":
            raise UnstableError(f"{former['event']['reason']} (a former run in {folder}). Use --restart to try again.")
        message(f"{folder} holds the finished run ({former['steps']} steps); --restart runs it again")
        return former
    warnings = _timestep_warnings(config, message)

    topology_file = folder / record.TOPOLOGY
    # without config.json nobody knows which structure the topology came from: a run killed while preparing
    if topology_file.is_file() and (folder / "config.json").is_file():
        prepared = read_prepared(topology_file)
    else:
        message(f"preparing {config.structure.name} (repair, hydrogens and water where missing)")
        prepared, left_out = build.solvated(
            config.structure, topology_file, ph=config.ph, padding=config.padding, seed=config.seed
        )
        if left_out:
            message(f"note: {left_out}")
            warnings.append(left_out)
    if not (folder / "config.json").is_file():
        write_whole(folder / "config.json", json.dumps(resolved, indent=1).encode())
    system = build.mm_system(prepared, config.force_field, config.cutoff)
    options = _context_options(config)
    fired: dict[str, Any] | None = None
    if snapshot is None:
        equilibration = config.equilibration_ps if config.start == "thermal" else 0.0
        message(f"{prepared.topology.getNumAtoms()} atoms: minimising and warming up with the MM force field")
        positions, velocities = build.relax(
            system,
            prepared,
            options,
            temperature=config.temperature,
            timestep=config.timestep_fs * 1e-3,
            equilibration=equilibration,
            max_iterations=config.minimise_iterations,
            seed=config.seed,
        )
        snapshot = record.Snapshot(0, positions, velocities, prepared.box, 0.0)
    with build.without_energy_warning():
        simulated = build.add_model(
            system, prepared.topology, config.model, config.mode, config.backend, config.platform
        )
    warnings += simulated.warnings
    for line in simulated.warnings:
        message(f"note: {line}")
    integrator = openmm.LangevinMiddleIntegrator(
        config.temperature * unit.kelvin,
        config.friction_per_ps / unit.picosecond,
        config.timestep_fs * unit.femtosecond,
    )
    integrator.setRandomNumberSeed(config.seed + snapshot.step % 2**20 + 2)
    context = openmm.Context(simulated.system, integrator, *options)
    _place(context, snapshot)
    new = not (folder / record.CHECKPOINT).is_file()
    if new and config.start == "minimised" and config.fire_steps:
        try:
            with build.without_energy_warning():
                fired = asdict(minimise(context, config.fire_tolerance, config.fire_steps))
        except openmm.OpenMMException as error:
            raise UnstableError(
                f"the minimisation with the model's force failed: {error}. Start from a thermal structure "
                "(--start thermal), or use a better model."
            ) from error
        message(f"FIRE: largest force {fired['start_max_force']:.0f} -> {fired['max_force']:.0f} kJ/mol/nm")
    if new and (fired is not None or not snapshot.velocities.any()):
        context.setVelocitiesToTemperature(config.temperature * unit.kelvin, config.seed + 1)
        snapshot = _snapshot(context, 0, 0.0)
    if not new:
        message(f"going on from step {snapshot.step} in {folder}")
    run = _Run(config, prepared, simulated, context, integrator)
    with build.without_energy_warning():
        status, event, last = run.loop(snapshot, resume=not new)
    result = describe_run(
        config, resolved, prepared, simulated, status=status, event=event, last=last, speed=run.speed, fire=fired
    )
    result["warnings"] = warnings
    write_whole(folder / "result.json", json.dumps(result, indent=1).encode())
    if status == INTERRUPTED:
        message(f"interrupted at step {last.step} of {config.steps}; the same command goes on from there")
        raise KeyboardInterrupt
    if event is not None:
        raise UnstableError(
            f"stopped at step {event.step} of {config.steps}: {event.reason}; worst: {', '.join(event.atoms[:3])}. "
            f"The last good state (step {last.step}) and result.json are in {folder}. Try a smaller timestep, the "
            "other start, or a better model."
        )
    return result


def summary(result: dict[str, Any], folder: Path) -> str:
    """Return the lines that a command ends with.

    Parameters
    ----------
    result
        Of `simulate`.
    folder
        Where the files are.
    """
    second = result["temperature"]["second_half"]
    structure, speed = result["structure"], result["ns_per_day"]
    lines = [
        f"{result['status']}: {result['steps']} steps of {result['timestep_fs']:g} fs ({result['time_ps']:.3g} ps), "
        f"{result['solute_atoms']} solute of {result['atoms']} atoms, mode {result['mode']}",
        f"temperature, second half: solute {second['solute']['mean']:.0f} K, solvent {second['solvent']['mean']:.0f} K"
        f" (set to {result['temperature']['target']:g} K)",
    ]
    if structure["frames"]:
        lines.append(f"RMSD {structure['rmsd_nm'][-1]:.3f} nm, Rg {structure['rg_nm'][-1]:.3f} nm at the last frame")
    lines.append(f"{f'{speed:.3g} ns/day, ' if speed else ''}files in {folder}")
    return "\n".join(lines)


class _Run:
    """The loop and what it needs."""

    def __init__(
        self,
        config: SimulationConfig,
        prepared: Prepared,
        simulated: build.Simulated,
        context: openmm.Context,
        integrator: openmm.Integrator,
    ) -> None:
        self.config, self.prepared, self.simulated = config, prepared, simulated
        self.context, self.integrator = context, integrator
        system = simulated.system
        dalton = unit.dalton
        self.masses = np.array([system.getParticleMass(i).value_in_unit(dalton) for i in range(len(simulated.solute))])
        self.limits = stability.Limits(config.max_force, config.max_temperature)
        self.speed: float | None = None

    def loop(self, snapshot: record.Snapshot, resume: bool) -> tuple[str, stability.Event | None, record.Snapshot]:
        """Return the status as result.json has it, what a guard saw, and the last good state."""
        config = self.config
        recorder = record.Recorder(
            config.output, self.prepared.topology, config.timestep_fs * 1e-3, config.frame_every, resume
        )
        last, status, event = snapshot, "finished", None
        begin, first = time.monotonic() - snapshot.seconds, snapshot.step
        started = time.monotonic()
        try:
            with ProgressLine("simulate") as line, _interrupt_asked() as asked:
                if not resume:
                    last, event = self._advance(last, 0, begin, recorder)
                    if event is None:
                        recorder.frame(last)
                        recorder.checkpoint(last)
                while event is None and last.step < config.steps:
                    # to the next multiple: a run that is prolonged may begin between two
                    count = min(config.log_every - last.step % config.log_every, config.steps - last.step)
                    last, event = self._advance(last, count, begin, recorder)
                    if event is not None:
                        if event.kind == "exception" and asked.is_set():  # a second Ctrl-C, in the model's callable
                            status, event = INTERRUPTED, None
                        break
                    if last.step % config.frame_every == 0:
                        recorder.frame(last)
                    if last.step % config.checkpoint_every == 0 or last.step == config.steps:
                        recorder.checkpoint(last)
                    line.show(last.step / config.steps, self._progress(last.step, first, started))
                    if config.max_minutes is not None and last.seconds > 60 * config.max_minutes:
                        status = "time_limit" if last.step < config.steps else "finished"
                        break
                    if asked.is_set() and last.step < config.steps:
                        status = INTERRUPTED
                        break
            if event is not None:
                status = "unstable"
        finally:
            # Also after an error: the state at the last look is good, and nothing of it is lost.
            if last.step > first or not resume:
                recorder.checkpoint(last)
            recorder.close()
            if last.step > first:
                self.speed = (last.step - first) * config.timestep_fs * 1e-6 / (time.monotonic() - started) * 86400
        return status, event, last

    def _advance(
        self, last: record.Snapshot, count: int, begin: float, recorder: record.Recorder
    ) -> tuple[record.Snapshot, stability.Event | None]:
        """Return the state after `count` steps, or the one before them and what a guard saw."""
        try:
            if count:
                self.integrator.step(count)
            now = _snapshot(self.context, last.step + count, time.monotonic() - begin)
            event = self._look(now, recorder)
        except openmm.OpenMMException as error:
            # Types are lost on the way through OpenMM: the message is all there is.
            event = stability.Event(str(error), "exception", last.step + count, [])
        return (now, None) if event is None else (last, event)

    def _progress(self, step: int, first: int, started: float) -> str:
        seconds = max(time.monotonic() - started, 1e-9)
        speed = (step - first) * self.config.timestep_fs * 1e-6 / seconds * 86400
        left = (self.config.steps - step) * seconds / max(step - first, 1)
        return f"{duration(left)} left · step {step} of {self.config.steps} · {speed:.3g} ns/day"

    def _look(self, now: record.Snapshot, recorder: record.Recorder) -> stability.Event | None:
        state = self.context.getState(forces=True, energy=True)
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        solute = self.simulated.solute
        temperatures = {
            "solute": stability.kinetic_temperature(now.velocities[solute], self.masses[solute]),
            "solvent": stability.kinetic_temperature(now.velocities[~solute], self.masses[~solute]),
        }
        event = stability.check_state(
            now.step,
            now.positions,
            np.asarray(forces),
            temperatures,
            self.limits,
            self.prepared.topology,
            {"solute": solute, "solvent": ~solute},
        )
        if event is None:
            recorder.row(
                {
                    "step": now.step,
                    "time_ps": now.step * self.config.timestep_fs * 1e-3,
                    "solute_K": temperatures["solute"],
                    "solvent_K": temperatures["solvent"],
                    "potential_kJ_mol": state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole),
                    "max_force_kJ_mol_nm": stability.worst_force(forces)[0],
                }
            )
        return event


@contextmanager
def _interrupt_asked() -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets; a second one interrupts at once.

    Raised inside the model's Python callable, a KeyboardInterrupt would come out of OpenMM as an exception without
    a message, and the run would pass for unstable.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    former = signal.getsignal(signal.SIGINT)

    def note(*_: Any) -> None:
        asked.set()
        signal.signal(signal.SIGINT, former)

    signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, former)


def _snapshot(context: openmm.Context, step: int, seconds: float) -> record.Snapshot:
    state = context.getState(positions=True, velocities=True)
    return record.Snapshot(
        step,
        np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)),
        np.array(state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)),
        np.array(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)),
        seconds,
    )


def _place(context: openmm.Context, snapshot: record.Snapshot) -> None:
    context.setPeriodicBoxVectors(*(openmm.Vec3(*row) * unit.nanometer for row in snapshot.box.tolist()))
    context.setPositions(snapshot.positions * unit.nanometer)
    context.setVelocities(snapshot.velocities * unit.nanometer / unit.picosecond)


def _context_options(config: SimulationConfig) -> tuple[Any, ...]:
    platform = build.platform_named(config.platform)
    # Said aloud, since preparing a structure sets one thread as the default of this process.
    # A default again, so that the inner Context of mode solute has the same.
    if config.platform == "CPU":
        platform.setPropertyDefaultValue("Threads", str(config.threads or os.cpu_count() or 1))
    return (platform,)


def _resolved(config: SimulationConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    for name in ("structure", "model"):
        path = getattr(config, name)
        if path is not None and not path.is_file():
            raise ConfigError(f"{name} is {path}, which is not a file. Give the path of an existing one.")
        values[f"{name}_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest() if path else None
    return values


def _same_run(folder: Path, resolved: dict[str, Any]) -> None:
    path = folder / "config.json"
    if not path.is_file():
        return
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path} is damaged. Start anew with --restart.") from None
    changed = [key for key in resolved if key not in {*MAY_CHANGE, "model"} and former.get(key) != resolved[key]]
    if changed:
        told = "; ".join(f"{key} was {former.get(key)!r}, is {resolved[key]!r}" for key in changed)
        raise ConfigError(f"{folder} holds a run with other settings ({told}). Use another folder, or --restart.")


def _former_result(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _nothing_left(former: dict[str, Any], config: SimulationConfig) -> bool:
    spent = config.max_minutes is not None and former["seconds"] > 60 * config.max_minutes
    return former["status"] == "unstable" or former["steps"] >= config.steps or spent


def _forget(folder: Path) -> None:
    for name in ("config.json", "result.json", record.TOPOLOGY, record.TRAJECTORY, record.LOG, record.CHECKPOINT):
        (folder / name).unlink(missing_ok=True)


def _timestep_warnings(config: SimulationConfig, message: Message) -> list[str]:
    if config.timestep_fs <= steps.WARN_STEP:
        return []
    line = f"a timestep of {config.timestep_fs:g} fs is long for bonds without constraints; 0.5 fs is safe."
    message(f"warning: {line}")
    return [line]
