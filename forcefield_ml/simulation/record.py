"""Trajectory, log and checkpoint of a run, kept in step: after a kill the three agree again.

The checkpoint is written last and as a whole; it tells how long trajectory and log were. Going on from it cuts both
back to that length, so no frame is there twice and none is missing.
"""

from __future__ import annotations

import csv
import io
import os
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import Vec3, app, unit

from forcefield_ml.errors import ConfigError
from forcefield_ml.files import write_whole

COLUMNS = ("step", "time_ps", "solute_K", "solvent_K", "potential_kJ_mol", "max_force_kJ_mol_nm")
"""Of log.csv. The potential is the MM one in the modes whose network has no energy."""

TRAJECTORY, LOG, CHECKPOINT, TOPOLOGY = "trajectory.dcd", "log.csv", "checkpoint.npz", "topology.cif"


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
    """

    def __init__(self, folder: Path, topology: Any, timestep: float, frame_every: int, resume: bool) -> None:
        self.folder = folder
        lengths = _lengths(folder / CHECKPOINT) if resume else None
        for name, length in (lengths or {}).items():
            _cut(folder / name, length)
        if lengths:
            _mend_header(folder / TRAJECTORY, topology.getNumAtoms(), topology.getPeriodicBoxVectors() is not None)
        self._log = open(folder / LOG, "a" if lengths else "w", newline="", encoding="utf-8")
        self._dcd_file = open(folder / TRAJECTORY, "r+b" if lengths else "w+b")
        self._dcd = app.DCDFile(self._dcd_file, topology, timestep, 0, frame_every, append=bool(lengths))
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
        box = [Vec3(*row) for row in snapshot.box.tolist()] * unit.nanometer
        self._dcd.writeModel(snapshot.positions, periodicBoxVectors=box)

    def checkpoint(self, snapshot: Snapshot) -> None:
        """Make this state the one to go on from: files to disk first, then the checkpoint in one piece.

        Parameters
        ----------
        snapshot
            The last state that was logged.
        """
        for file in (self._log, self._dcd_file):
            file.flush()
            os.fsync(file.fileno())
        buffer = io.BytesIO()
        np.savez(
            buffer,
            step=snapshot.step,
            positions=snapshot.positions,
            velocities=snapshot.velocities,
            box=snapshot.box,
            seconds=snapshot.seconds,
            log_bytes=(self.folder / LOG).stat().st_size,
            trajectory_bytes=(self.folder / TRAJECTORY).stat().st_size,
        )
        write_whole(self.folder / CHECKPOINT, buffer.getvalue())

    def close(self) -> None:
        """Close the files."""
        self._log.close()
        self._dcd_file.close()


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


def read_frames(path: Path, n_atoms: int, periodic: bool) -> NDArray[np.float32]:
    """Return the frames that `Recorder` wrote; a torn last one is left out.

    MDTraj's reader would serve, but prints to standard output from C.

    Parameters
    ----------
    path
        The trajectory.
    n_atoms
        Atoms in a frame.
    periodic
        Whether frames hold a box.

    Returns
    -------
    ndarray
        (F, N, 3) nm.
    """
    layout = _frame_layout(n_atoms, periodic)
    count = max(0, path.stat().st_size - _HEADER) // layout.itemsize
    frames = np.fromfile(path, dtype=layout, count=count, offset=_HEADER) if count else np.empty(0, dtype=layout)
    angstrom = np.stack([frames[axis] for axis in "xyz"], axis=-1)
    return (angstrom / 10).astype(np.float32)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is damaged ({error}). Start anew with --restart.") from None


def _lengths(path: Path) -> dict[str, int]:
    values = _load(path)
    return {LOG: int(values["log_bytes"]), TRAJECTORY: int(values["trajectory_bytes"])}


def _cut(path: Path, length: int) -> None:
    size = path.stat().st_size if path.is_file() else 0
    if size < length:
        raise ConfigError(f"{path} has {size} bytes, the checkpoint expects {length}. Start anew with --restart.")
    os.truncate(path, length)


_HEADER = 276
"""Bytes before the first frame of a DCD that OpenMM writes."""


def _frame_layout(n_atoms: int, periodic: bool) -> np.dtype[Any]:
    fields: list[Any] = [("cell", "V56")] if periodic else []
    for axis in "xyz":
        fields += [(f"before_{axis}", "<i4"), (axis, "<f4", (n_atoms,)), (f"after_{axis}", "<i4")]
    return np.dtype(fields)


def _mend_header(path: Path, n_atoms: int, periodic: bool) -> None:
    """Make the count of frames in a DCD's header that of the file: a frame cut off was counted there."""
    with open(path, "r+b") as file:
        count = (path.stat().st_size - _HEADER) // _frame_layout(n_atoms, periodic).itemsize
        file.seek(8)
        file.write(struct.pack("<i", count))
