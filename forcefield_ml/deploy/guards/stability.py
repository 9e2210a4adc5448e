"""When to stop a simulation: forces, positions or temperatures that no physics would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import gemmi
import numpy as np
from numpy.typing import ArrayLike, NDArray
from openmm import unit

from forcefield_ml.units import ANGSTROM, BOLTZMANN

MAX_FORCE = 1e5
"""kJ/mol/nm. At 300 K the largest force on any of 14,000 atoms is below 1e4; a bond torn to 0.3 nm gives 6e4."""

MAX_TEMPERATURE = 1000.0
"""K, of solute or solvent as a whole."""

TORN = 1.6
"""Length of a bond over the sum of its atoms' covalent radii beyond which it is torn: 0.155 nm for O-H, which at 300 K
stays below 0.11 nm."""

_bonds: WeakKeyDictionary[Any, tuple[int, NDArray[np.int64], NDArray[np.float64]]] = WeakKeyDictionary()
"""Topology to its number of bonds, their atoms, and the lengths at which they are torn."""


@dataclass(frozen=True)
class Limits:
    """What a state may show before the simulation stops.

    Parameters
    ----------
    max_force
        Largest norm of a force on an atom, kJ/mol/nm.
    max_temperature
        Highest kinetic temperature of solute or solvent, K.
    torn_bonds
        Stop where a bond of the topology is torn (`TORN`).
    """

    max_force: float = MAX_FORCE
    max_temperature: float = MAX_TEMPERATURE
    torn_bonds: bool = True


@dataclass(frozen=True)
class Event:
    """Why a guard stopped a simulation.

    Parameters
    ----------
    reason
        One sentence with the value and the limit.
    kind
        "positions", "bond", "force", "temperature" or "exception".
    step
        Step of the state that showed it.
    atoms
        The worst atoms, at most ten, as "GLY12:CA (index)".
    """

    reason: str
    kind: str
    step: int
    atoms: list[str]


def check_state(
    step: int,
    positions: NDArray[np.float64],
    forces: NDArray[np.float64],
    temperatures: dict[str, float],
    limits: Limits,
    topology: Any = None,
    members: Mapping[str, NDArray[np.bool_]] | None = None,
) -> Event | None:
    """Return what is wrong with a state, or None.

    Parameters
    ----------
    step
        Its step.
    positions
        (N, 3) nm.
    forces
        (N, 3) kJ/mol/nm.
    temperatures
        Name of a group of atoms to its kinetic temperature, K.
    limits
        What is allowed.
    topology
        OpenMM Topology, to name the atoms, and for its bonds: a bond that tears heats a few atoms, which no temperature
        shows.
    members
        Name of a group to (N,) bool: an event of its temperature names atoms of it only.
    """
    for kind, values in (("positions", positions), ("force", forces)):
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        if len(bad):
            reason = f"{kind if kind == 'positions' else 'forces'} of {len(bad)} atoms are not finite"
            return Event(reason, kind, step, atom_names(bad, topology))
    norms = np.linalg.norm(forces, axis=1)
    bad = np.flatnonzero(norms > limits.max_force)
    if len(bad):
        bad = bad[np.argsort(norms[bad])[::-1]]
        reason = f"the force on {len(bad)} atoms is above {limits.max_force:g} kJ/mol/nm, at most {norms[bad[0]]:.3g}"
        return Event(reason, "force", step, atom_names(bad, topology))
    for group, value in temperatures.items():
        if not value <= limits.max_temperature:
            reason = f"the temperature of the {group} is {value:.0f} K, above {limits.max_temperature:g} K"
            inside = norms if members is None else np.where(members[group], norms, -1.0)
            worst = np.argsort(-inside, kind="stable")[: np.count_nonzero(inside >= 0)]
            return Event(reason, "temperature", step, atom_names(worst, topology))
    torn = torn_bonds(positions, topology) if limits.torn_bonds else []
    if torn:
        atoms = [atom for _, *pair in torn for atom in pair]
        count = "1 bond is" if len(torn) == 1 else f"{len(torn)} bonds are"
        reason = (
            f"{count} torn, the longest to {torn[0][0]:.3f} nm, beyond {TORN:g} times the covalent radii "
            "of its atoms. Where bonds may break, or are none, turn torn_bonds off"
        )
        return Event(reason, "bond", step, atom_names(atoms, topology))
    return None


def torn_bonds(positions: NDArray[np.float64], topology: Any) -> list[tuple[float, int, int]]:
    """Return length (nm) and atoms of each bond that is torn, the longest first.

    Parameters
    ----------
    positions
        (N, 3) nm; a bond between copies of the periodic box is as long as to the nearest copy.
    topology
        OpenMM Topology; None has no bonds.
    """
    if topology is None:
        return []
    bonds, longest = bonds_of(topology)
    vectors = positions[bonds[:, 0]] - positions[bonds[:, 1]]
    box = topology.getPeriodicBoxVectors()
    if box is not None:
        rows = np.array(box.value_in_unit(unit.nanometer))
        for row in (2, 1, 0):  # reduced form: each row reaches into those before it alone
            vectors = vectors - np.round(vectors[:, row : row + 1] / rows[row, row]) * rows[row]
    lengths = np.linalg.norm(vectors, axis=1)
    bad = np.flatnonzero(lengths > longest)
    return [(float(lengths[k]), int(bonds[k, 0]), int(bonds[k, 1])) for k in bad[np.argsort(-lengths[bad])]]


def bonds_of(topology: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (B, 2) atoms of each bond of a topology and (B,) the length in nm at which it is torn.

    Bonds of virtual sites, which have no element, do not count.
    """
    known = _bonds.get(topology)
    if known is not None and known[0] == topology.getNumBonds():
        return known[1:]
    pairs, longest = [], []
    for one, other in topology.bonds():
        if one.element is not None and other.element is not None:
            pairs.append((one.index, other.index))
            radii = (gemmi.Element(atom.element.symbol).covalent_r for atom in (one, other))
            longest.append(TORN * sum(radii) * ANGSTROM)
    found = np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(longest, dtype=np.float64)
    _bonds[topology] = (topology.getNumBonds(), *found)
    return found


def worst_force(forces: ArrayLike) -> tuple[float, int]:
    """Return the largest norm of a force and the atom it acts on.

    Parameters
    ----------
    forces
        (N, 3), any unit.
    """
    norms = np.linalg.norm(np.asarray(forces), axis=1)
    return float(norms.max()), int(norms.argmax())


def kinetic_temperature(velocities: ArrayLike, masses: ArrayLike) -> float:
    """Return the kinetic temperature T = sum m v^2 / (3 n k_B) of some atoms, K; 0 for no atoms.

    Atoms of mass zero do not count. The three degrees of freedom of a removed centre-of-mass motion are not taken
    off: they belong to the whole system, not to a part of it.

    Parameters
    ----------
    velocities
        (n, 3) nm/ps.
    masses
        (n,) u.
    """
    mass, speed = np.asarray(masses, dtype=np.float64), np.asarray(velocities, dtype=np.float64)
    count = int((mass > 0).sum())
    return float((mass * (speed**2).sum(axis=1)).sum() / (3 * count * BOLTZMANN)) if count else 0.0


def atom_names(indices: ArrayLike, topology: Any = None, limit: int = 10) -> list[str]:
    """Return names such as ``GLY12:CA (101)`` of the first atoms given.

    Parameters
    ----------
    indices
        (n,) atom indices.
    topology
        OpenMM Topology; without it the names are ``atom 101``.
    limit
        Most names to give.
    """
    chosen = [int(index) for index in np.asarray(indices)[:limit]]
    if topology is None:
        return [f"atom {index}" for index in chosen]
    atoms = list(topology.atoms())
    return [f"{(a := atoms[i]).residue.name}{a.residue.id}:{a.name} ({i})" for i in chosen]


def name_atoms(indices: ArrayLike, topology: Any = None) -> str:
    """Return `atom_names` as one phrase, with how many were left out.

    Parameters
    ----------
    indices
        (n,) atom indices.
    topology
        OpenMM Topology or None.
    """
    names = atom_names(indices, topology)
    more = len(np.asarray(indices)) - len(names)
    return ", ".join(names) + (f" and {more} more" if more > 0 else "")
