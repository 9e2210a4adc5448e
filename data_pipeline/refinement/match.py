"""Which atom of a native is which atom of a candidate: by order of the chain, residue number and atom name.

Chains are counted as they come in the files, since programs name them anew; residues at the same place pair only where
their names agree, as some natives were mutated to crystallise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_pipeline.refinement.structure import Structure


@dataclass(frozen=True)
class Match:
    """The partners of a candidate's N atoms.

    Parameters
    ----------
    partner
        (N,) int64, the atom of the native, or -1.
    renamed
        Residues of the candidate whose place in the native has another residue: ``A:U17 is A``.
    missing
        Residues of the candidate whose place the native lacks: ``A:U17``.
    """

    partner: NDArray[np.int64]
    renamed: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def has_partner(self) -> NDArray[np.bool_]:
        """(N,) bool."""
        return self.partner >= 0


def match(candidate: Structure, native: Structure) -> Match:
    """Find the native's atom for each atom of a candidate.

    Parameters
    ----------
    candidate, native
        As `structure.read_structure` gives them.

    Returns
    -------
    Match
        Whoever calls decides whether enough atoms have a partner.
    """
    places = _places(native)
    atoms = {(*place, name): atom for atom, (place, name) in enumerate(zip(_keys(native), _names(native), strict=True))}
    partner = np.full(len(candidate.species), -1, dtype=np.int64)
    renamed: dict[tuple[int, str], str] = {}
    missing: dict[tuple[int, str], str] = {}
    residues = candidate.residue_names.tolist()
    for atom, (place, name) in enumerate(zip(_keys(candidate), _names(candidate), strict=True)):
        there = places.get(place)
        if there is None:
            missing.setdefault(place, candidate.label(atom).rpartition(":")[0])
        elif there != residues[atom]:
            renamed.setdefault(place, f"{candidate.label(atom).rpartition(':')[0]} is {there.decode()}")
        else:
            partner[atom] = atoms.get((*place, name), -1)
    return Match(partner, tuple(renamed.values()), tuple(missing.values()))


def _places(structure: Structure) -> dict[tuple[int, str], bytes]:
    """Return the residue name at each place."""
    return dict(zip(_keys(structure), structure.residue_names.tolist(), strict=True))


def _keys(structure: Structure) -> list[tuple[int, str]]:
    """Return (chain's order, residue number) of each atom."""
    numbers = [number.decode() for number in structure.residue_numbers.tolist()]
    return list(zip(structure.chain_index.tolist(), numbers, strict=True))


def _names(structure: Structure) -> list[bytes]:
    names: list[bytes] = structure.atom_names.tolist()
    return names
