"""`simulate`: a protein in water at constant temperature with a model's force, guarded, logged and resumable.

The output folder holds config.json, topology.cif (atoms, bonds and box), trajectory.dcd or .xtc, log.csv,
checkpoint.npz and, at the end, result.json. A killed run goes on from its last checkpoint. With `deterministic` it then
takes the path that it would have taken without the kill, bit for bit; otherwise one that is as likely.
"""

from __future__ import annotations

import hashlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import numpy as np
import openmm
from openmm import unit

from data_pipeline.systems.prepare import Prepared, read_prepared
from forcefield_ml import pretrained
from forcefield_ml.deploy.force.openmm_force import choose_backend
from forcefield_ml.deploy.guards import stability, steps
from forcefield_ml.deploy.model_file.bundle import read_card
from forcefield_ml.errors import ConfigError, UnstableError
from forcefield_ml.files import write_whole
from forcefield_ml.progress import ProgressLine, duration
from forcefield_ml.simulation import build, record
from forcefield_ml.simulation.config import SimulationConfig
from forcefield_ml.simulation.dynamics import Dynamics, context_options, one_torch_thread
from forcefield_ml.simulation.fire import minimise
from forcefield_ml.simulation.result import describe_run
from forcefield_ml.simulation.trajectory import Kind, name_of

MAY_CHANGE = {"output", "steps", "max_minutes", "threads", "platform", "structure"}
"""Settings that a resumed run may have otherwise than before; structure and model are compared by content."""

INTERRUPTED = "interrupted"

Message = Callable[[str], None]


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
    if config.reference is not None:
        config = config.model_copy(update={"reference": pretrained.resolve(config.reference)})
    resolved = _resolved(config)
    _refuse(config)
    if restart:
        _forget(folder)
    folder.mkdir(parents=True, exist_ok=True)
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
            config.structure,
            topology_file,
            ph=config.ph,
            padding=config.padding,
            box_shape=config.box_shape,
            seed=config.seed,
        )
        if left_out:
            message(f"note: {left_out}")
            warnings.append(left_out)
    if not (folder / "config.json").is_file():
        write_whole(folder / "config.json", json.dumps(resolved, indent=1).encode())
    system = build.mm_system(prepared, config.force_field, config.cutoff, config.hydrogen_mass)
    options = context_options(config)
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
            system,
            prepared.topology,
            config.model,
            config.mode,
            config.backend,
            config.platform,
            reference=config.reference or config.mts > 1,
            remove_net_force=config.remove_net_force,
        )
    warnings += simulated.warnings
    for line in simulated.warnings:
        message(f"note: {line}")
    dynamics = Dynamics(config, simulated.system, snapshot, options)
    new = not (folder / record.CHECKPOINT).is_file()
    if new and config.start == "minimised" and config.fire_steps:
        try:
            with build.without_energy_warning():
                fired = asdict(minimise(dynamics.context, config.fire_tolerance, config.fire_steps))
        except openmm.OpenMMException as error:
            raise UnstableError(
                f"the minimisation with the model's force failed: {error}. Start from a thermal structure "
                "(--start thermal), or use a better model."
            ) from error
        message(f"FIRE: largest force {fired['start_max_force']:.0f} -> {fired['max_force']:.0f} kJ/mol/nm")
    if new and (fired is not None or not snapshot.velocities.any()):
        dynamics.context.setVelocitiesToTemperature(config.temperature * unit.kelvin, config.seed + 1)
        snapshot = dynamics.snapshot(0, 0.0)
    if not new:
        message(f"going on from step {snapshot.step} in {folder}")
    run = _Run(config, prepared, simulated, dynamics)
    with build.without_energy_warning(), one_torch_thread(config.deterministic):
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
            f"stopped at step {event.step} of {config.steps}: {event.reason}{_worst(event)}. "
            f"The last good state (step {last.step}) and result.json are in {folder}. Try a smaller timestep, the "
            "other start, or a better model."
        )
    return result


def _worst(event: stability.Event) -> str:
    return f"; worst: {', '.join(event.atoms[:3])}" if event.atoms else ""


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
        dynamics: Dynamics,
    ) -> None:
        self.config, self.prepared, self.simulated, self.dynamics = config, prepared, simulated, dynamics
        system = simulated.system
        dalton = unit.dalton
        self.masses = np.array([system.getParticleMass(i).value_in_unit(dalton) for i in range(len(simulated.solute))])
        self.limits = stability.Limits(config.max_force, config.max_temperature, config.torn_bonds)
        self.speed: float | None = None

    def loop(self, snapshot: record.Snapshot, resume: bool) -> tuple[str, stability.Event | None, record.Snapshot]:
        """Return the status as result.json has it, what a guard saw, and the last good state."""
        config = self.config
        recorder = record.Recorder(
            config.output,
            self.prepared.topology,
            config.timestep_fs * 1e-3,
            config.frame_every,
            resume,
            config.trajectory,
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
                        self._checkpoint(last, recorder)
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
                    if self._at_checkpoint(last):
                        self._checkpoint(last, recorder)
                    line.show(last.step / config.steps, self._progress(last.step, first, started))
                    if config.deterministic and not self._at_checkpoint(last):
                        continue  # elsewhere it could not stop and take the same path later
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
            same_path = not config.deterministic or event is not None or self._at_checkpoint(last)
            if same_path and (last.step > first or not resume):
                recorder.checkpoint(last)
            recorder.close()
            if last.step > first:
                self.speed = (last.step - first) * config.timestep_fs * 1e-6 / (time.monotonic() - started) * 86400
        return status, event, last

    def _at_checkpoint(self, last: record.Snapshot) -> bool:
        return last.step % self.config.checkpoint_every == 0 or last.step == self.config.steps

    def _checkpoint(self, last: record.Snapshot, recorder: record.Recorder) -> None:
        recorder.checkpoint(last)
        if self.config.deterministic and last.step < self.config.steps:
            self.dynamics.renew(last)

    def _advance(
        self, last: record.Snapshot, count: int, begin: float, recorder: record.Recorder
    ) -> tuple[record.Snapshot, stability.Event | None]:
        """Return the state after `count` steps, or the one before them and what a guard saw."""
        try:
            if count:
                self.dynamics.step(count)
            now = self.dynamics.snapshot(last.step + count, time.monotonic() - begin)
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
        forces, potential = self.dynamics.forces()
        solute = self.simulated.solute
        temperatures = {
            "solute": stability.kinetic_temperature(now.velocities[solute], self.masses[solute]),
            "solvent": stability.kinetic_temperature(now.velocities[~solute], self.masses[~solute]),
        }
        event = stability.check_state(
            now.step,
            now.positions,
            forces,
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
                    "potential_kJ_mol": potential,
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


def _resolved(config: SimulationConfig) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    for name in ("structure", "model", "reference"):
        path = getattr(config, name)
        if path is not None and not path.is_file():
            raise ConfigError(f"{name} is {path}, which is not a file. Give the path of an existing one.")
        values[f"{name}_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest() if path else None
    return values


def _refuse(config: SimulationConfig) -> None:
    """Refuse what cannot be run, before anything is prepared, or thrown away for it."""
    build.platform_named(config.platform)
    if config.model is None:
        return
    choose_backend(config.backend)
    reference = config.reference or config.mts > 1
    build.mode_for(read_card(config.model), config.mode, reference=reference, remove_net_force=config.remove_net_force)


def _same_run(folder: Path, resolved: dict[str, Any]) -> None:
    path = folder / "config.json"
    if not path.is_file():
        if (folder / record.CHECKPOINT).is_file():
            raise ConfigError(f"{folder} holds a run without its config.json. Use another folder, or --restart.")
        return
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(f"{path} is damaged. Start anew with --restart.") from None
    changed = [
        key for key in resolved if key not in {*MAY_CHANGE, "model", "reference"} and former.get(key) != resolved[key]
    ]
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
    trajectories = [name_of(kind) for kind in get_args(Kind)]
    for name in ("config.json", "result.json", record.TOPOLOGY, record.LOG, record.CHECKPOINT, *trajectories):
        (folder / name).unlink(missing_ok=True)


def _timestep_warnings(config: SimulationConfig, message: Message) -> list[str]:
    longest = steps.WARN_STEP * config.stretch
    if config.timestep_fs <= longest * (1 + 1e-6):
        return []
    line = f"a timestep of {config.timestep_fs:g} fs is long for bonds without constraints; {longest / 2:.2g} is safe."
    message(f"warning: {line}")
    return [line]
