"""When to stop a simulation: forces, positions or temperatures that no physics would give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forcefield_ml.units import BOLTZMANN

MAX_FORCE = 1e5
"""kJ/mol/nm. At 300 K the largest force on any of 14,000 atoms is below 1e4; a bond torn to 0.3 nm gives 6e4."""

MAX_TEMPERATURE = 1000.0
"""K, of solute or solvent as a whole."""


@dataclass(frozen=True)
class Limits:
    """What a state may show before the simulation stops.

    Parameters
    ----------
    max_force
        Largest norm of a force on an atom, kJ/mol/nm.
    max_temperature
        Highest kinetic temperature of solute or solvent, K.
    """

    max_force: float = MAX_FORCE
    max_temperature: float = MAX_TEMPERATURE


@dataclass(frozen=True)
class Event:
    """Why a guard stopped a simulation.

    Parameters
    ----------
    reason
        One sentence with the value and the limit.
    kind
        "positions", "force", "temperature" or "exception".
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
        OpenMM Topology, to name the atoms.
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
    return None


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
