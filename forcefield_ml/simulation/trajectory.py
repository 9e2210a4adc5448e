"""Frames of a run in DCD or XTC: written one by one, cut back to a known length after a kill, read again.

| kind | a coordinate is kept as | cutting back                                                                 |
|------|-------------------------|------------------------------------------------------------------------------|
| dcd  | float32, 12 bytes/atom  | frames of one length; the count in the header is mended                      |
| xtc  | 0.001 nm, 4 to 5        | frames stand by themselves, with no header before them: nothing to be mended |
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from openmm import Vec3, app, unit

Kind: TypeAlias = Literal["dcd", "xtc"]


def name_of(kind: Kind) -> str:
    """Return the name of a trajectory in a run's folder."""
    return f"trajectory.{kind}"


class Writer:
    """Appends frames to a trajectory, whose kind is told by the ending of its name.

    Parameters
    ----------
    path
        The file.
    topology
        OpenMM Topology of all atoms.
    timestep
        ps.
    frame_every
        Steps between two frames.
    append
        Go on with the file, which ends with a whole frame; otherwise it starts empty.

    Attributes
    ----------
    length
        Bytes up to the end of the last whole frame.
    """

    def __init__(self, path: Path, topology: Any, timestep: float, frame_every: int, append: bool) -> None:
        append = append and path.stat().st_size > 0
        self._file = open(path, "r+b" if append else "w+b")
        if path.suffix == ".xtc":
            self._frames = app.XTCFile(str(path), topology, timestep, 0, frame_every, append)
        else:
            if append:
                _mend_header(path, topology.getNumAtoms(), topology.getPeriodicBoxVectors() is not None)
            self._frames = app.DCDFile(self._file, topology, timestep, 0, frame_every, append)
        self.length = 0
        self._measure()

    def write(self, positions: NDArray[np.float64], box: NDArray[np.float64]) -> None:
        """Append a frame.

        Parameters
        ----------
        positions
            (N, 3) nm.
        box
            (3, 3) nm, vectors as rows.
        """
        vectors = [Vec3(*row) for row in box.tolist()] * unit.nanometer
        self._frames.writeModel(positions, periodicBoxVectors=vectors)
        self._measure()

    def to_disk(self) -> None:
        """Return when all that was written is on the disk."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _measure(self) -> None:
        self._file.flush()
        self.length = os.fstat(self._file.fileno()).st_size


def read_frames(path: Path, n_atoms: int, periodic: bool) -> NDArray[np.float32]:
    """Return the frames that `Writer` wrote; of a DCD, a torn last one is left out.

    MDTraj's readers would serve, but print to standard output from C.

    Parameters
    ----------
    path
        The trajectory.
    n_atoms
        Atoms in a frame.
    periodic
        Whether frames of a DCD hold a box.

    Returns
    -------
    ndarray
        (F, N, 3) nm.
    """
    if path.suffix == ".xtc":
        return _read_xtc(path, n_atoms)
    layout = _frame_layout(n_atoms, periodic)
    count = max(0, path.stat().st_size - _HEADER) // layout.itemsize
    frames = np.fromfile(path, dtype=layout, count=count, offset=_HEADER) if count else np.empty(0, dtype=layout)
    angstrom = np.stack([frames[axis] for axis in "xyz"], axis=-1)
    return (angstrom / 10).astype(np.float32)


def _read_xtc(path: Path, n_atoms: int) -> NDArray[np.float32]:
    if not path.stat().st_size:
        return np.empty((0, n_atoms, 3), dtype=np.float32)
    from openmm.app.internal.xtc_utils import read_xtc

    coordinates = read_xtc(str(path).encode())[0]  # (N, 3, F)
    return np.ascontiguousarray(np.moveaxis(coordinates, -1, 0), dtype=np.float32)


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
