"""Which atoms of a molecule make a bonded term, and what kind of term it is: told by bonds alone, not by names."""

from __future__ import annotations

import hashlib
from itertools import combinations, permutations
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.errors import TopologyError
from forcefield_ml.nn.atom_types import distinct, partners_of, surroundings

KINDS = {"bond": 2, "angle": 3, "proper": 4, "improper": 4}
"""Kind of term to its number of atoms. The middle atom of an angle and the third one of an improper is the centre."""

DEPTHS = 3
"""Levels at which the atoms of a term are told apart: elements; surroundings of one bond; of two."""


MOST_PARTNERS = 16
"""Bonds of an atom; terms grow with the square of their number."""


class Terms(NamedTuple):
    """Terms of one kind.

    Attributes
    ----------
    atoms
        (T, k) int64, indices of the atoms.
    keys
        (T, `DEPTHS`) int64, hashes of what the atoms are, from elements alone to their surroundings of two bonds.
    """

    atoms: NDArray[np.int64]
    keys: NDArray[np.int64]


def find_terms(species: NDArray[Any], bonds: NDArray[Any]) -> dict[str, Terms]:
    """Return the bonded terms of some molecules.

    Angles are all pairs of bonds at an atom, propers all chains of three bonds. Impropers stand at each atom of three
    partners, one for each order of these: force fields have different rules which of them counts, and a fit finds it.

    Parameters
    ----------
    species
        (N,) atomic numbers.
    bonds
        (B, 2) indices of bonded atoms; one that is told twice is one.

    Returns
    -------
    dict
        One of `KINDS` to its terms.

    Raises
    ------
    TopologyError
        If bonds name atoms that there are not, or an atom has more than `MOST_PARTNERS`.
    """
    species, bonds = np.asarray(species, dtype=np.int64), distinct(bonds)
    if len(bonds) and (bonds.min() < 0 or bonds.max() >= len(species) or (bonds[:, 0] == bonds[:, 1]).any()):
        raise TopologyError(
            f"bonds name atoms {bonds.min()} to {bonds.max()} of {len(species)}, or bind an atom to itself; give pairs "
            "of different atoms, counted from 0"
        )
    most = np.bincount(bonds.reshape(-1), minlength=1).max()
    if most > MOST_PARTNERS:
        raise TopologyError(f"an atom has {most} bonds; bonded terms are for molecules, with at most {MOST_PARTNERS}")
    partners = partners_of(len(species), bonds)
    atoms: dict[str, list[tuple[int, ...]]] = {kind: [] for kind in KINDS}
    atoms["bond"] = [(one, other) for one, other in bonds.tolist()]
    for centre, near in enumerate(partners):
        atoms["angle"] += [(one, centre, other) for one, other in combinations(near, 2)]
        if len(near) == 3:
            atoms["improper"] += [(one, two, centre, three) for one, two, three in permutations(near)]
    for one, other in bonds.tolist():
        atoms["proper"] += [
            (first, one, other, last)
            for first in partners[one]
            for last in partners[other]
            if first != other and last != one and first != last
        ]
    labels = np.column_stack([species, surroundings(species, bonds, DEPTHS - 1)])
    return {
        kind: _keyed(np.array(found, dtype=np.int64).reshape(-1, KINDS[kind]), labels, kind)
        for kind, found in atoms.items()
    }


def touching(terms: dict[str, Terms], chosen: NDArray[np.bool_]) -> dict[str, Terms]:
    """Return the terms that hold at least one of some atoms.

    Parameters
    ----------
    terms
        Of `find_terms`.
    chosen
        (N,) bool.
    """
    here = {kind: chosen[found.atoms].any(axis=1) for kind, found in terms.items()}
    return {kind: Terms(found.atoms[here[kind]], found.keys[here[kind]]) for kind, found in terms.items()}


def _keyed(atoms: NDArray[np.int64], labels: NDArray[np.int64], kind: str) -> Terms:
    keys = np.empty((len(atoms), DEPTHS), dtype=np.int64)
    for depth in range(DEPTHS):
        told = labels[atoms, depth]
        if kind != "improper":  # the same term read backwards
            backwards = told[:, ::-1]
            differs = told != backwards
            first = differs.argmax(axis=1)
            rows = np.arange(len(told))
            turn = backwards[rows, first] < told[rows, first]
            told = np.where(turn[:, None], backwards, told)
        unique, which = np.unique(told, axis=0, return_inverse=True)
        keys[:, depth] = np.array([_hash(kind, depth, row) for row in unique], dtype=np.int64)[which.reshape(-1)]
    return Terms(atoms, keys)


def _hash(kind: str, depth: int, row: NDArray[np.int64]) -> int:
    text = f"{kind} {depth} {' '.join(map(str, row.tolist()))}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)
