"""Atom types from bonds: what a topology tells of an atom besides its element.

A force field gives each atom its charge and its bonded terms by what it is bonded to. A network that sees elements
alone has to guess that from distances, and takes a hydrogen bond for a bond when one is stretched. A type is the atom's
element with its bonded surroundings up to some bonds away, as a circular fingerprint (Morgan, J. Chem. Doc. 5, 107
(1965); Rogers and Hahn, J. Chem. Inf. Model. 50, 742 (2010)): no names of atoms or residues, so that it is the same for
every file format, protonation state and end of a chain. Surroundings that training has not seen fall back to those of
fewer bonds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

CODE_STEP = 128
"""A code is an atomic number plus this times the number of a type; without a type it is the atomic number."""


FEWEST = 10
"""Atoms that must have a type: what fewer have cannot be learnt."""


def distinct(bonds: NDArray[Any]) -> NDArray[np.int64]:
    """Return (B, 2) bonds, each told once, its lower index first: some files tell one twice."""
    return np.unique(np.sort(np.asarray(bonds, dtype=np.int64).reshape(-1, 2), axis=1), axis=0)


def partners_of(n_atoms: int, bonds: NDArray[np.int64]) -> list[list[int]]:
    """Return the atoms that each is bonded to; bonds of `distinct`."""
    partners: list[list[int]] = [[] for _ in range(n_atoms)]
    for one, other in bonds.tolist():
        partners[one].append(other)
        partners[other].append(one)
    return partners


def surroundings(species: NDArray[Any], bonds: NDArray[Any], depth: int) -> NDArray[np.int64]:
    """Return hashes of the bonded surroundings of each atom.

    Parameters
    ----------
    species
        (N,) atomic numbers.
    bonds
        (B, 2) indices of bonded atoms; one told twice counts once.
    depth
        D, bonds to go.

    Returns
    -------
    ndarray
        (N, D) int64; column d - 1 is of all that is up to d bonds away.
    """
    partners = partners_of(len(species), distinct(bonds))
    labels = [str(int(number)) for number in species]
    found = np.empty((len(labels), depth), dtype=np.int64)
    for level in range(depth):
        around = [
            f"{own}({','.join(sorted(labels[j] for j in near))})" for own, near in zip(labels, partners, strict=True)
        ]
        digests = {text: hashlib.blake2b(text.encode(), digest_size=8).hexdigest() for text in set(around)}
        labels = [digests[text] for text in around]
        values = {text: int.from_bytes(bytes.fromhex(text), "big", signed=True) for text in set(labels)}
        found[:, level] = [values[text] for text in labels]
    return found


def bonds_among(bonds: NDArray[Any], chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the bonds whose atoms are both chosen, in the numbers that these have among themselves.

    Parameters
    ----------
    bonds
        (B, 2) indices of bonded atoms.
    chosen
        (N,) bool.
    """
    place, bonds = np.cumsum(chosen) - 1, np.asarray(bonds, dtype=np.int64)
    return place[bonds[chosen[bonds].all(axis=1)]]


class AtomTypes(NamedTuple):
    """The types that a model knows; type t >= 1 is row t - 1, and 0 no type.

    Attributes
    ----------
    hashes
        (T,) int64, of `surroundings`.
    depths
        (T,) int64, bonds that each goes.
    parents
        (T,) int64, the type of the same atom one bond shorter; 0 for those of one bond.
    """

    hashes: NDArray[np.int64]
    depths: NDArray[np.int64]
    parents: NDArray[np.int64]

    @classmethod
    def none(cls) -> AtomTypes:
        """Return no types."""
        return cls(*(np.zeros(0, dtype=np.int64) for _ in cls._fields))

    @classmethod
    def of(
        cls, molecules: Iterable[tuple[NDArray[Any], NDArray[Any]]], depth: int, room: int, fewest: int = FEWEST
    ) -> AtomTypes:
        """Return the types that occur in some molecules; parameters as of `grown`."""
        return cls.none().grown(molecules, depth, room, fewest)

    def grown(
        self, molecules: Iterable[tuple[NDArray[Any], NDArray[Any]]], depth: int, room: int, fewest: int = FEWEST
    ) -> AtomTypes:
        """Return these types, their numbers as they are, followed by others that occur in some molecules.

        Parameters
        ----------
        molecules
            Species (N,) and bonds (B, 2) of each.
        depth
            Bonds to go.
        room
            Most types in all: of the others the most frequent ones.
        fewest
            See `FEWEST`.
        """
        counts: Counter[tuple[int, int, int]] = Counter()  # depth, hash, hash of the parent
        for species, bonds in molecules:
            around = surroundings(species, bonds, depth)
            for level in range(depth):
                parents = around[:, level - 1] if level else np.zeros(len(around), dtype=np.int64)
                counts.update(
                    (level + 1, *pair) for pair in zip(around[:, level].tolist(), parents.tolist(), strict=True)
                )
        number = {value: t for t, value in enumerate(self.hashes.tolist(), start=1)}
        others = [(key, count) for key, count in counts.most_common() if key[1] not in number]
        frequent = [key for key, count in others[: max(room - len(number), 0)] if count >= fewest]
        kept = sorted(frequent)  # a parent is at least as frequent, and less deep
        number |= {key[1]: t for t, key in enumerate(kept, start=len(number) + 1)}
        new = ([key[1] for key in kept], [key[0] for key in kept], [number.get(key[2], 0) for key in kept])
        return AtomTypes(
            *(np.concatenate([old, np.array(added, dtype=np.int64)]) for old, added in zip(self, new, strict=True))
        )

    def ancestry(self, depth: int) -> NDArray[np.int64]:
        """Return (T + 1, depth): the types along the way to each, 0 where there is none; row 0 is zero."""
        rows = np.zeros((len(self.hashes) + 1, depth), dtype=np.int64)
        for t, (level, parent) in enumerate(zip(self.depths.tolist(), self.parents.tolist(), strict=True), start=1):
            rows[t] = rows[parent]
            rows[t, level - 1] = t
        return rows

    def find(self, species: NDArray[Any], bonds: NDArray[Any]) -> NDArray[np.int64]:
        """Return (N,) the deepest known type of each atom, 0 where not even the nearest surroundings are known."""
        found = np.zeros(len(species), dtype=np.int64)
        depth = int(self.depths.max(initial=0))
        around = surroundings(species, bonds, depth)
        number = {value: t for t, value in enumerate(self.hashes.tolist(), start=1)}
        for level in range(depth):
            here = np.array([number.get(value, 0) for value in around[:, level].tolist()], dtype=np.int64)
            found = np.where((here > 0) & ((found > 0) | (level == 0)), here, found)
        return found

    def codes(self, species: NDArray[Any], bonds: NDArray[Any]) -> NDArray[np.int64]:
        """Return (N,) int64 what a model is told of each atom: its atomic number, and `CODE_STEP` times its type."""
        return np.asarray(species, dtype=np.int64) + CODE_STEP * self.find(species, bonds)
