"""Whether a topology is that of a System, told by the masses."""

from __future__ import annotations

import numpy as np
import openmm
from openmm import app

from forcefield_ml import units
from forcefield_ml.deploy.guards.stability import name_atoms
from forcefield_ml.errors import TopologyError

MASS_TOLERANCE = 0.1
"""u, by which a mass in a System may differ from that of the element."""


def masses_of(system: openmm.System) -> np.ndarray:
    """Return the masses of all particles, (N,) u."""
    return np.array([units.strip(system.getParticleMass(i), "dalton") for i in range(system.getNumParticles())])


def check_order(system: openmm.System, topology: app.Topology) -> None:
    """Refuse a topology that is not that of a System: of another size, or with its atoms in another order.

    Masses that someone changed are none of this guard's business (heavy hydrogens, frozen atoms): it looks for the
    topology's own masses in other places, atom by atom and, as hydrogens keep their residue's mass, by residue.

    Parameters
    ----------
    system
        With masses.
    topology
        Said to be its own.

    Raises
    ------
    TopologyError
        If it is not.
    """
    atoms = list(topology.atoms())
    found = masses_of(system)
    if len(atoms) != len(found):
        raise TopologyError(
            f"the system has {len(found)} particles, the topology {len(atoms)} atoms; pass the topology that the "
            "system was made from (after adding hydrogens, solvent and extra particles)"
        )
    expected = np.array([0.0 if a.element is None else units.strip(a.element.mass, "dalton") for a in atoms])
    change = found - expected
    wrong = np.flatnonzero(np.abs(change) > MASS_TOLERANCE)
    if not len(wrong):
        return
    shuffled = np.abs(np.sort(found) - np.sort(expected)).max() <= MASS_TOLERANCE
    # heavy hydrogens take their mass from atoms of the same residue; what a residue gained, another must have lost
    residue = np.array([atom.residue.index for atom in atoms], dtype=np.int64)
    changes = np.bincount(residue, change)
    odd = np.flatnonzero(np.abs(changes) > MASS_TOLERANCE)
    exchanged = len(odd) > 1 and abs(changes[odd].sum()) < 0.01 * np.abs(changes[odd]).sum()
    if shuffled or exchanged:
        i = int(wrong[0] if shuffled else np.flatnonzero(residue == odd[0])[0])
        raise TopologyError(
            f"the topology's atoms are not in the order of the system's particles: from {name_atoms([i], topology)} "
            "on, masses of the topology's elements are in the system, but in other places. Pass the topology that the "
            "system was made from"
        )
