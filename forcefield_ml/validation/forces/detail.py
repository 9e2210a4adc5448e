"""Everything the page says of single atoms and classes of them, from the forces that evaluate kept."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.data import ForceDataset
from forcefield_ml.errors import ConfigError
from forcefield_ml.validation.forces.groups import ProteinAtoms, by_class, protein_atoms
from forcefield_ml.validation.forces.picture import structure
from forcefield_ml.validation.forces.worst import worst_atoms

PICTURES = 3
"""Most proteins drawn: those that hold most of the worst atoms."""


@dataclass(frozen=True)
class PerAtomForces:
    """What `evaluate` wrote per atom.

    Parameters
    ----------
    target, predicted
        (m, 3), or (m,) magnitudes predicted, kJ/mol/nm.
    entry, atom
        (m,) numbers of the entry and of the atom in the file.
    entries
        Names of the entries.
    """

    target: NDArray[Any]
    predicted: NDArray[Any]
    entry: NDArray[Any]
    atom: NDArray[Any]
    entries: list[str]


@dataclass(frozen=True)
class Detail:
    """What report.json and the page hold.

    Parameters
    ----------
    classes
        Of `groups.by_class`.
    worst
        Of `worst.worst_atoms`.
    pictures
        Name of a protein to SVG.
    """

    classes: dict[str, dict[str, Any]]
    worst: list[dict[str, Any]]
    pictures: dict[str, str]


def read_forces(path: Path) -> PerAtomForces:
    """Read what `evaluate` wrote per atom.

    Raises
    ------
    ConfigError
        If the file cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in ("target", "predicted", "entry", "atom")}
            return PerAtomForces(**found, entries=[str(name) for name in arrays["entries"]])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{path} holds no forces per atom: {error}. Delete it and run again.") from None


def in_detail(forces: PerAtomForces, frames: ForceDataset) -> Detail:
    """Return classes, worst atoms and pictures.

    Parameters
    ----------
    forces
        Of `read_forces`.
    frames
        The dataset they belong to.
    """
    described: dict[int, ProteinAtoms] = {
        int(which): protein_atoms(frames, forces.entries[int(which)]) for which in np.unique(forces.entry)
    }
    rows = (forces.predicted, forces.target, forces.entry, forces.atom, described)
    worst = worst_atoms(*rows, forces.entries)
    pictures: dict[str, str] = {}
    for name, _ in Counter(atom["entry"] for atom in worst).most_common(PICTURES):
        here = [atom for atom in worst if atom["entry"] == name]
        places, errors = [atom["place"] for atom in here], [atom["error"] for atom in here]
        ranks = [worst.index(atom) + 1 for atom in here]
        atoms = described[forces.entries.index(name)]
        pictures[name] = structure(atoms, places, errors, ranks, f"structure{len(pictures)}")
    return Detail(by_class(*rows), worst, pictures)
