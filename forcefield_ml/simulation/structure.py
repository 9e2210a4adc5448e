"""RMSD and radius of gyration of a trajectory's protein, by MDTraj."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openmm import app

from forcefield_ml.simulation.trajectory import read_frames

BACKBONE = ("N", "CA", "C", "O")


def structure_series(
    topology: app.Topology, trajectory: Path, solute: NDArray[np.bool_], interval: float
) -> dict[str, Any]:
    """Return backbone RMSD to the first frame and radius of gyration, frame by frame.

    The protein must be whole in every frame, as `record` writes it.

    Parameters
    ----------
    topology
        Of all atoms.
    trajectory
        Of `simulation.trajectory`.
    solute
        (N,) bool, the protein's atoms.
    interval
        ps between frames.

    Returns
    -------
    dict
        ``frames``, ``time_ps``, ``rmsd_nm`` and ``rg_nm`` (lists), ``rmsd_atoms`` (what the RMSD runs over);
        ``frames`` alone, 0, where there is none.
    """
    positions = read_frames(trajectory, topology.getNumAtoms(), topology.getPeriodicBoxVectors() is not None)
    if not len(positions):
        return {"frames": 0}
    return measured(solute_alone(topology, positions, solute), interval)


def solute_alone(topology: app.Topology, positions: NDArray[Any], solute: NDArray[np.bool_]) -> Any:
    """Return the protein's atoms of some frames as an MDTraj trajectory without a box.

    Parameters
    ----------
    topology
        Of all atoms.
    positions
        (F, N, 3) nm, the protein whole.
    solute
        (N,) bool, the protein's atoms.
    """
    import mdtraj

    atoms = np.flatnonzero(solute)
    return mdtraj.Trajectory(positions[:, atoms], mdtraj.Topology.from_openmm(topology).subset(atoms))


def measured(frames: Any, interval: float) -> dict[str, Any]:
    """Return `structure_series` of a trajectory that holds the protein alone.

    Parameters
    ----------
    frames
        Of `solute_alone`, at least one.
    interval
        ps between frames.
    """
    import mdtraj

    names = [(atom.name, atom.element.symbol if atom.element else "") for atom in frames.topology.atoms]
    chosen, label = [i for i, (name, _) in enumerate(names) if name in BACKBONE], "backbone N, CA, C, O"
    if len(chosen) < 8:
        chosen, label = [i for i, (_, symbol) in enumerate(names) if symbol != "H"], "heavy atoms"
    masses = np.array([atom.element.mass if atom.element else 0.0 for atom in frames.topology.atoms])
    return {
        "frames": frames.n_frames,
        "time_ps": [interval * i for i in range(frames.n_frames)],
        "rmsd_nm": [float(x) for x in mdtraj.rmsd(frames, frames, 0, atom_indices=chosen)],
        "rg_nm": [float(x) for x in mdtraj.compute_rg(frames, masses=masses)],
        "rmsd_atoms": label,
    }
