"""How near a structure is to its native: RMSD, local RMSD, lDDT. The native's frame plays no part in any of them.

| score        | definition                                                                                   |
|--------------|----------------------------------------------------------------------------------------------|
| `rmsd`       | root mean square distance of partners after the best superposition of all atoms                |
| `local_rmsd` | the same of the K atoms nearest to an atom after superposing these, mean over all atoms: what  |
|              | algorithm 1 leaves after its superposition (`data_pipeline.refinement.vectors`)                |
| `to_go`      | mean length of algorithm 1's vectors: how far atoms are from where their surroundings say      |
| `lddt`       | share of the native's distances up to 15 Å between atoms of different residues that are kept   |
|              | within 0.5, 1, 2 and 4 Å, mean over the four; 1 is best                                        |

All are of the atoms that have a partner, each with the same weight. The lDDT of Mariani et al. counts atoms that the
structure lacks as lost, refuses bad stereochemistry and takes the better of two namings of symmetric side chains; this
one does none of the three: it compares a structure with itself after moving, where no atom comes or goes.

References
----------
Mariani, Biasini, Barbato and Schwede, Bioinformatics 29, 2722 (2013): lDDT.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from data_pipeline.errors import EntryError
from data_pipeline.refinement.match import match
from data_pipeline.refinement.structure import Structure, read_structure
from data_pipeline.refinement.vectors import NEIGHBOURS, best_rotations, nearest_atoms, refinement_vectors
from forcefield_ml.errors import TopologyError
from forcefield_ml.units import ANGSTROM

LDDT_RADIUS = 1.5
"""nm, of the native's distances that count."""

LDDT_THRESHOLDS = (0.05, 0.1, 0.2, 0.4)
"""nm, by which they may differ."""

FEWEST = 3
"""Atoms with a partner, without which nothing can be superposed."""


def rmsd(positions: NDArray[np.float64], native: NDArray[np.float64]) -> float:
    """Return the root mean square distance after the best superposition, in the unit of the positions.

    Parameters
    ----------
    positions, native
        (n, 3), partners in the same row.
    """
    rotation, _ = best_rotations(native[None], positions[None])
    moved = (native - native.mean(axis=0)) @ rotation[0].T
    return float(np.sqrt(((moved - positions + positions.mean(axis=0)) ** 2).sum(axis=1).mean()))


def local_rmsd(
    positions: NDArray[np.float64], native: NDArray[np.float64], n_neighbours: int = NEIGHBOURS
) -> NDArray[np.float64]:
    """Return (n,) the RMSD of the surroundings of each atom after superposing these, in the unit of the positions.

    Parameters
    ----------
    positions, native
        (n, 3), partners in the same row.
    n_neighbours
        K, the atom itself included; all where they are fewer.
    """
    nearest = nearest_atoms(positions, min(n_neighbours, len(positions)))
    here, there = positions[nearest], native[nearest]
    rotation, _ = best_rotations(there, here)
    moved = np.einsum("aij,akj->aki", rotation, there - there.mean(axis=1, keepdims=True))
    away = moved - here + here.mean(axis=1, keepdims=True)
    return np.asarray(np.sqrt((away**2).sum(axis=2).mean(axis=1)))


class DistanceTest:
    """The local distance difference test (lDDT) against one native.

    Parameters
    ----------
    native
        (n, 3) nm.
    residue
        (n,) number of each atom's residue; distances inside one do not count.
    """

    def __init__(self, native: NDArray[np.float64], residue: NDArray[np.int64]):
        pairs = cKDTree(native).query_pairs(LDDT_RADIUS, output_type="ndarray")
        self._pairs = pairs[residue[pairs[:, 0]] != residue[pairs[:, 1]]]
        self._lengths = self._between(native)

    def score(self, positions: NDArray[np.float64]) -> float | None:
        """Return the share of distances kept, None where the native has none.

        Parameters
        ----------
        positions
            (n, 3) nm, partners in the native's order.
        """
        if not len(self._pairs):
            return None
        change = np.abs(self._between(positions) - self._lengths)
        return float(np.mean([(change < threshold).mean() for threshold in LDDT_THRESHOLDS]))

    def _between(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.linalg.norm(positions[self._pairs[:, 0]] - positions[self._pairs[:, 1]], axis=1))


@dataclass(frozen=True)
class Native:
    """The native of a structure with N atoms.

    Parameters
    ----------
    positions
        (N, 3) nm, of each atom's partner, in the native's frame; rows without a partner mean nothing.
    has_partner
        (N,) bool.
    residue
        (N,) number of each atom's residue.
    """

    positions: NDArray[np.float64]
    has_partner: NDArray[np.bool_]
    residue: NDArray[np.int64]

    @cached_property
    def _test(self) -> DistanceTest:
        return DistanceTest(self._partners, self.residue[self.has_partner])

    @property
    def _partners(self) -> NDArray[np.float64]:
        return self.positions[self.has_partner]

    def vectors(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N, 3) nm, the true refinement vectors; zero for atoms without one.

        Parameters
        ----------
        positions
            (N, 3) nm.
        """
        return refinement_vectors(positions, self.positions, self.has_partner).vectors

    def scores(self, positions: NDArray[np.float64]) -> dict[str, float | None]:
        """Return the scores of the module's table by name, lengths in nm.

        Parameters
        ----------
        positions
            (N, 3) nm.
        """
        own = positions[self.has_partner]
        vectors = self.vectors(positions)[self.has_partner]
        return {
            "rmsd": rmsd(own, self._partners),
            "local_rmsd": float(local_rmsd(own, self._partners).mean()),
            "to_go": float(np.linalg.norm(vectors, axis=1).mean()),
            "lddt": self._test.score(own),
        }

    def onto(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return (N, 3) nm, the native superposed onto a structure by all partners."""
        own = positions[self.has_partner]
        rotation, _ = best_rotations(self._partners[None], own[None])
        return (self.positions - self._partners.mean(axis=0)) @ rotation[0].T + own.mean(axis=0)


def find_native(structure: Structure, path: Path | str) -> tuple[Native, dict[str, int]]:
    """Read the native of a structure and match it: chain by order, residue by number, atom by name.

    Parameters
    ----------
    structure
        The candidate.
    path
        The native's file.

    Returns
    -------
    native : Native
        In the candidate's order of atoms.
    counts : dict
        ``atoms`` of the candidate, how many are ``matched``; residues that are ``renamed`` or ``missing`` in the
        native.

    Raises
    ------
    TopologyError
        If the file cannot be read or too few atoms have a partner.
    """
    try:
        other = read_structure(path)
    except EntryError as error:
        raise TopologyError(f"the native cannot be used: {error}") from None
    found = match(structure, other)
    matched = int(found.has_partner.sum())
    if matched < FEWEST:
        raise TopologyError(
            f"{matched} of {len(structure.species)} atoms of {structure.name} have a partner in {other.name}; at least "
            f"{FEWEST} are needed. Partners have the same place of their chain in the file, residue number, residue "
            "name and atom name: renumber one of the files, or leave out --native"
        )
    positions = other.positions[np.maximum(found.partner, 0)].astype(np.float64)
    counts = {
        "atoms": len(structure.species),
        "matched": matched,
        "renamed": len(found.renamed),
        "missing": len(found.missing),
    }
    return Native(positions, found.has_partner, structure.residue_index.astype(np.int64)), counts


def in_angstrom(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return scores with lengths in Å, as reports print them."""
    return {name: value if value is None or name == "lddt" else value / ANGSTROM for name, value in scores.items()}
