"""What a repaired chain must satisfy before anything is computed with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from openmm import app
from scipy.spatial import cKDTree

from data_pipeline.errors import EntryError

MAX_PEPTIDE_BOND = 0.25
"""nm; a longer C-N distance between neighbours in the chain means that residues between them are missing."""

MIN_DISTANCE = 0.05
"""nm between atoms that are not bonded; anything nearer is a failed repair, not a strained one."""

MIN_HEAVY_DISTANCE = 0.1
"""nm between atoms other than hydrogen that are not bonded, less than any bond between them has. PDBFixer leaves atoms
that it builds at 0.13 nm, which a minimisation mends."""

BACKBONE_HAND = ("N", "C", "CB", "CA")
"""Three neighbours of the first chiral centre of every residue but glycine, so ordered that their triple product is
positive, and the centre."""

HANDS = {"ILE": ("CA", "CG1", "CG2", "CB"), "THR": ("CA", "OG1", "CG2", "CB")}
"""Residue -> the same of its second centre."""

_SIX = ("CG", "CD1", "CE1", "CZ", "CE2", "CD2")
RINGS = {
    "HIS": (("CG", "ND1", "CE1", "NE2", "CD2"),),
    "PHE": (_SIX,),
    "PRO": (("N", "CA", "CB", "CG", "CD"),),
    "TRP": (("CG", "CD1", "NE1", "CE2", "CD2"), ("CD2", "CE2", "CZ2", "CH2", "CZ3", "CE3")),
    "TYR": (_SIX,),
}
"""Residue -> atoms around each of its rings."""

_RING_REACH = 0.2
"""nm from a ring's centre to the middle of a bond that may pass through it."""

_ROUNDING = 1e-9
"""nm^3, of volumes of about 1e-3: a bond through the middle of a ring meets the edges of all its triangles."""


def check_geometry(topology: app.Topology, positions: np.ndarray) -> None:
    """Refuse a chain with a hole in it, atoms on top of each other, and residues of the wrong hand.

    Parameters
    ----------
    topology
        Of the protein, before solvation.
    positions
        (N, 3) in nm.

    Raises
    ------
    EntryError
        Of kind chain_break, clash or chirality, naming the atoms.
    """
    atoms = list(topology.atoms())
    bonded = set()
    for a, b in topology.bonds():
        bonded.add((min(a.index, b.index), max(a.index, b.index)))
        distance = float(np.linalg.norm(positions[a.index] - positions[b.index]))
        if {a.name, b.name} == {"C", "N"} and distance > MAX_PEPTIDE_BOND:
            raise EntryError(
                "chain_break",
                f"{_label(a)} and {_label(b)} are neighbours in the chain but {distance:.2f} nm apart: "
                "residues between them are missing and the file's sequence does not say which",
            )
    for i, j in sorted(cKDTree(positions).query_pairs(MIN_HEAVY_DISTANCE)):
        light = "H" in (atoms[i].element.symbol, atoms[j].element.symbol)
        distance = float(np.linalg.norm(positions[i] - positions[j]))
        allowed = MIN_DISTANCE if light else MIN_HEAVY_DISTANCE
        if distance < allowed and (i, j) not in bonded:
            raise EntryError(
                "clash",
                f"{_label(atoms[i])} and {_label(atoms[j])} are {distance:.3f} nm apart after repair; at least "
                f"{allowed} nm is needed between atoms that are not bonded",
            )
    for residue in topology.residues():
        for *neighbours, centre in centres(residue):
            if hand(positions, neighbours, centre) < 0:
                raise EntryError(
                    "chirality",
                    f"{_label(centre)} has the wrong hand: a D-amino acid, or drawn wrongly; only L-amino acids are "
                    "prepared",
                )
    pierced = pierced_rings(topology, positions, np.ones(len(atoms), dtype=bool))
    if pierced:
        raise EntryError("clash", "; ".join(pierced))


def centres(residue: Any) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Yield (three neighbours, centre) of each chiral centre that the residue has."""
    atoms = {atom.name: atom for atom in residue.atoms()}
    for names in (BACKBONE_HAND, HANDS.get(residue.name, ())):
        if names and all(name in atoms for name in names):
            a, b, c, centre = (atoms[name] for name in names)
            yield a, b, c, centre


def hand(positions: np.ndarray, neighbours: Sequence[Any], centre: Any) -> float:
    """Return the triple product of the bonds from a centre to its neighbours in nm³, positive for the right hand."""
    a, b, c = (positions[atom.index] - positions[centre.index] for atom in neighbours)
    return float(np.dot(a, np.cross(b, c)))


def pierced_rings(topology: app.Topology, positions: np.ndarray, moving: np.ndarray) -> list[str]:
    """Name the rings through which a bond passes; no minimisation frees them.

    Parameters
    ----------
    topology
        Of the protein.
    positions
        (N, 3) in nm.
    moving
        (N,) bool; only rings and bonds that have one of these atoms are looked at.
    """
    ends = [(a, b) for a, b in topology.bonds() if a.residue.name != "HOH"]
    first, second = (np.array([bond[side].index for bond in ends], dtype=int) for side in (0, 1))
    middles = cKDTree((positions[first] + positions[second]) / 2)
    found = []
    for residue in topology.residues():
        atoms = {atom.name: atom.index for atom in residue.atoms()}
        for names in RINGS.get(residue.name, ()):
            ring = [atoms[name] for name in names if name in atoms]
            centre = positions[ring].mean(axis=0)
            for k in middles.query_ball_point(centre, _RING_REACH):
                i, j = first[k], second[k]
                new = moving[ring].any() or moving[[i, j]].any()
                if new and i not in ring and j not in ring and _passes(positions, ring, centre, i, j):
                    found.append(
                        f"the bond {_label(ends[k][0])}-{_label(ends[k][1])} passes through the ring of "
                        f"{residue.name}{residue.id}"
                    )
    return found


def _passes(positions: np.ndarray, ring: list[int], centre: np.ndarray, i: int, j: int) -> bool:
    """Tell whether the line from i to j meets one of the triangles that the ring's edges span with its centre."""
    p, q = positions[i], positions[j]

    def volume(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
        return float(np.dot(a - d, np.cross(b - d, c - d)))

    for a, b in zip(positions[ring], positions[[*ring[1:], ring[0]]], strict=True):
        if (volume(p, a, b, centre) > 0) != (volume(q, a, b, centre) > 0):
            around = [volume(p, q, a, b), volume(p, q, b, centre), volume(p, q, centre, a)]
            if min(around) > -_ROUNDING or max(around) < _ROUNDING:  # the edge of two triangles belongs to both
                return True
    return False


def _label(atom: Any) -> str:
    return f"{atom.residue.name}{atom.residue.id}:{atom.name}"
