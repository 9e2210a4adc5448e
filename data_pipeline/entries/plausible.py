"""Refuse coordinates that no protein can have, before anything is built from them.

The limits are wide: of the 963 qualifying files that docs/results/selection.md counts none comes near them, and a
strained structure is not refused. They catch what damage and broken programs leave: numbers that are not numbers,
atoms far away from their residue, a chain blown up or shrunk, everything at one point, the same atom twice.
"""

from __future__ import annotations

import gemmi
import numpy as np

from data_pipeline.errors import EntryError

MAX_PER_RESIDUE = 4.0
"""Å that a chain can be long for each of its residues; a stretched one has 3.8 between its Cα atoms."""

ALLOWANCE = 20.0
"""Å that a chain can be longer than that: side chains at both ends."""

SHELL = 200.0
"""Å that a whole model can be longer than that: water and ligands in other cells of the crystal."""

MAX_ATOMS = 500
"""Atoms of an amino acid, with all its alternative locations."""

MAX_RESIDUE = 15.0
"""Å between two atoms of an amino acid; arginine's length is 10."""

MAX_STRAY = 4.0
"""Å from an atom to the nearest other one of its amino acid; larger than any bond, so that one atom may be missing."""

BACKBONE_BOND = (1.0, 2.0)
"""Å of N-CA and CA-C; they are 1.46 and 1.53."""

MAX_WRONG_BONDS = 0.05
"""Share of the backbone bonds that may be outside of `BACKBONE_BOND`; disordered ends are often drawn badly."""


def check_coordinates(structure: gemmi.Structure) -> None:
    """Check the coordinates of every model as a whole, and those of the amino acids of the first.

    Parameters
    ----------
    structure
        As parsed.

    Raises
    ------
    EntryError
        Of kind ``coordinates`` or ``duplicate``, saying which atoms, what was found and what is allowed.
    """
    atoms = gemmi.FlatStructure(structure)
    xyz = np.asarray(atoms.pos, dtype=float)
    finite = np.isfinite(xyz).all(axis=1)
    if not finite.all():
        raise EntryError(
            "coordinates", f"{np.sum(~finite)} atoms have no number for a coordinate; take the entry from the archive."
        )
    occupancy = np.asarray(atoms.occ, dtype=float)
    if not (occupancy >= 0).all():
        raise EntryError("coordinates", f"an occupancy is {occupancy.min():g}; none can be below 0.")
    n_residues = sum(len(chain) for chain in structure[0])
    _check_extent(xyz, MAX_PER_RESIDUE * n_residues + SHELL, f"the {n_residues} residues of the model")
    wrong = bonds = 0
    for chain in structure[0]:
        positions = []
        for residue in chain:
            if not gemmi.find_tabulated_residue(residue.name).is_amino_acid():
                continue
            positions.append(_check_residue(chain.name, residue))
            lengths = _backbone(residue)
            bonds += len(lengths)
            wrong += sum(not BACKBONE_BOND[0] <= length <= BACKBONE_BOND[1] for length in lengths)
        if positions:
            limit = MAX_PER_RESIDUE * len(positions) + ALLOWANCE
            _check_extent(np.concatenate(positions), limit, f"chain {chain.name!r}")
    if wrong > MAX_WRONG_BONDS * bonds:
        raise EntryError(
            "coordinates",
            f"{wrong} of {bonds} backbone bonds are not between {BACKBONE_BOND[0]:g} and {BACKBONE_BOND[1]:g} Å long; "
            "the coordinates are no protein's.",
        )


def _check_extent(xyz: np.ndarray, limit: float, what: str) -> None:
    extent = float(np.ptp(xyz, axis=0).max())
    if extent > limit:
        raise EntryError("coordinates", f"{what} measures {extent:.3g} Å from end to end; at most {limit:.0f} can be.")


def _check_residue(chain: str, residue: gemmi.Residue) -> np.ndarray:
    """Return the positions (n, 3) in Å of an amino acid's atoms."""
    names = {(atom.name, atom.altloc) for atom in residue}
    where = f"{residue.name} {chain}{residue.seqid}"
    if len(names) < len(residue):
        raise EntryError("duplicate", f"{where} has {len(residue)} atoms, but only {len(names)} different ones.")
    if len(residue) > MAX_ATOMS:
        raise EntryError("coordinates", f"{where} has {len(residue)} atoms; at most {MAX_ATOMS} can be.")
    xyz = np.array([atom.pos.tolist() for atom in residue])
    if len(residue) == 1:
        return xyz
    distances = np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)
    if distances.max() > MAX_RESIDUE:
        raise EntryError(
            "coordinates",
            f"{where} has atoms {distances.max():.1f} Å apart; those of an amino acid are at most {MAX_RESIDUE:g}.",
        )
    np.fill_diagonal(distances, np.inf)
    nearest = distances.min(axis=1)
    if nearest.max() > MAX_STRAY:
        raise EntryError(
            "coordinates",
            f"{where}: {residue[int(nearest.argmax())].name} is {nearest.max():.1f} Å from every other of its atoms; "
            f"at most {MAX_STRAY:g} can be.",
        )
    return xyz


def _backbone(residue: gemmi.Residue) -> list[float]:
    """Return the lengths of N-CA and CA-C of the first conformer, in Å."""
    first: dict[str, gemmi.Atom] = {}
    for atom in residue:
        first.setdefault(atom.name, atom)
    pairs = (("N", "CA"), ("CA", "C"))
    return [first[a].pos.dist(first[b].pos) for a, b in pairs if a in first and b in first]
