"""Trajectory, log and checkpoint of a run, kept in step: after a kill the three agree again.

The checkpoint is written last and as a whole; it tells how long trajectory and log were. Going on from it cuts both
back to that length, so no frame is there twice and none is missing.
"""

from __future__ import annotations

import csv
import io
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.errors import ConfigError
from forcefield_ml.files import write_whole
from forcefield_ml.simulation.trajectory import Kind, Writer, name_of

COLUMNS = ("step", "time_ps", "solute_K", "solvent_K", "potential_kJ_mol", "max_force_kJ_mol_nm")
"""Of log.csv. The potential is the MM one in the modes whose network has no energy."""

LOG, CHECKPOINT, TOPOLOGY = "log.csv", "checkpoint.npz", "topology.cif"


@dataclass(frozen=True)
class Snapshot:
    """The state of the atoms after a step.

    Parameters
    ----------
    step
        Steps done.
    positions, velocities
        (N, 3), nm and nm/ps; molecules whole, not wrapped into the box.
    box
        (3, 3) nm, vectors as rows.
    seconds
        Wall time of the dynamics so far.
    """

    step: int
    positions: NDArray[np.float64]
    velocities: NDArray[np.float64]
    box: NDArray[np.float64]
    seconds: float


class Recorder:
    """Writes a run's files.

    Parameters
    ----------
    folder
        Where they go.
    topology
        OpenMM Topology of all atoms.
    timestep
        ps.
    frame_every
        Steps between two frames.
    resume
        Cut trajectory and log back to the checkpoint and append; otherwise they start empty.
    kind
        Of the trajectory.
    """

    def __init__(
        self, folder: Path, topology: Any, timestep: float, frame_every: int, resume: bool, kind: Kind = "dcd"
    ) -> None:
        self.folder = folder
        trajectory = name_of(kind)
        lengths = _lengths(folder / CHECKPOINT, trajectory) if resume else None
        for name, length in (lengths or {}).items():
            _cut(folder / name, length)
        self._log = open(folder / LOG, "a" if lengths else "w", newline="", encoding="utf-8")
        self._frames = Writer(folder / trajectory, topology, timestep, frame_every, append=bool(lengths))
        self._writer = csv.writer(self._log)
        if not lengths:
            self._writer.writerow(COLUMNS)

    def row(self, values: dict[str, float]) -> None:
        """Append one line to the log.

        Parameters
        ----------
        values
            `COLUMNS` to numbers.
        """
        self._writer.writerow([values[name] if name == "step" else f"{values[name]:.6g}" for name in COLUMNS])
        self._log.flush()

    def frame(self, snapshot: Snapshot) -> None:
        """Append one frame to the trajectory.

        Parameters
        ----------
        snapshot
            The state to write.
        """
        self._frames.write(snapshot.positions, snapshot.box)

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Make this state the one to go on from: files to disk first, then the checkpoint in one piece.

        Parameters
        ----------
        snapshot
            The last state that was logged.
        """
        self._log.flush()
        os.fsync(self._log.fileno())
        self._frames.to_disk()
        buffer = io.BytesIO()
        np.savez(
            buffer,
            step=snapshot.step,
            positions=snapshot.positions,
            velocities=snapshot.velocities,
            box=snapshot.box,
            seconds=snapshot.seconds,
            log_bytes=(self.folder / LOG).stat().st_size,
            trajectory_bytes=self._frames.length,
        )
        write_whole(self.folder / CHECKPOINT, buffer.getvalue())

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        self._frames.close()


def read_checkpoint(folder: Path) -> Snapshot | None:
    """Return the state a run goes on from, or None when it has none.

    Parameters
    ----------
    folder
        Of the run.

    Raises
    ------
    ConfigError
        If the checkpoint is damaged.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    values = _load(path)
    return Snapshot(
        step=int(values["step"]),
        positions=values["positions"],
        velocities=values["velocities"],
        box=values["box"],
        seconds=float(values["seconds"]),
    )


def read_log(folder: Path) -> dict[str, list[float]]:
    """Return the columns of log.csv; a torn last line is left out.

    Parameters
    ----------
    folder
        Of the run.
    """
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    with open(folder / LOG, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if all(row.get(name) for name in COLUMNS):
                for name in COLUMNS:
                    columns[name].append(float(row[name]))
    return columns


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is damaged ({error}). Start anew with --restart.") from None


def _lengths(path: Path, trajectory: str) -> dict[str, int]:
    values = _load(path)
    return {LOG: int(values["log_bytes"]), trajectory: int(values["trajectory_bytes"])}


def _cut(path: Path, length: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size < length:
        raise ConfigError(f"{path} has {size} bytes, the checkpoint expects {length}. Start anew with --restart.")
    os.truncate(path, length)
