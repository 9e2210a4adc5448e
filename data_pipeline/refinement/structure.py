"""Read a candidate or native: the heavy atoms of its proteins and nucleic acids, from a file of any program.

What is left out is counted: hydrogens (few natives have any, and what a network sees must be alike), water, ions and
ligands, all but the likeliest of alternative locations, all models but the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from openmm import app
from scipy.spatial import cKDTree

from data_pipeline.entries.structure import read_entry
from data_pipeline.errors import EntryError
from data_pipeline.systems.residues import is_protein, parent_name

ANGSTROM = 0.1
"""nm."""

MIN_DISTANCE = 0.04
"""nm; two atoms that are nearer lie on top of each other. The shortest bond of heavy atoms (C=O) has 0.12."""

_OTHER_ATOM_NAMES = {"O1P": "OP1", "O2P": "OP2", "O3P": "OP3"}


@dataclass(frozen=True)
class Structure:
    """The N heavy atoms of a structure's polymers, in order of the file.

    Parameters
    ----------
    name
        Of the file.
    positions
        (N, 3) float32, nm.
    species
        (N,) uint8 atomic numbers.
    atom_names, residue_names, chain_names, residue_numbers
        (N,) bytes, as `schema.ENTRY_FIELDS` has them; names in today's spelling (``O5'``, ``OP1``, HIS for HID).
    residue_index, chain_index
        (N,) int32, counted from 0 over the structure.
    bonds
        (B, 2) int32, the covalent bonds that residue and atom names imply.
    sequence
        One letter for each residue, chains parted by /.
    left_out
        What was not taken -> how many: hydrogens, other_residues, alternatives (atoms), models.
    """

    name: str
    positions: NDArray[np.float32]
    species: NDArray[np.uint8]
    atom_names: NDArray[np.bytes_]
    residue_names: NDArray[np.bytes_]
    chain_names: NDArray[np.bytes_]
    residue_numbers: NDArray[np.bytes_]
    residue_index: NDArray[np.int32]
    chain_index: NDArray[np.int32]
    bonds: NDArray[np.int32]
    sequence: str
    left_out: dict[str, int]

    def label(self, atom: int) -> str:
        """Return a name of an atom for messages: ``A:U17:C4'``."""
        chain, residue, number, name = (
            values[atom].decode()
            for values in (self.chain_names, self.residue_names, self.residue_numbers, self.atom_names)
        )
        return f"{chain}:{residue}{number}:{name}"


def read_structure(path: Path | str) -> Structure:
    """Read a PDB or mmCIF file, plain or gzipped.

    Parameters
    ----------
    path
        The file; a header and an end are not asked for, as programs that predict structures write neither.

    Raises
    ------
    EntryError
        As `entries.structure.read_entry`; of kind ``empty`` where there is no protein or nucleic acid,
        ``unknown_element``, ``duplicate`` where a residue has an atom twice, or ``overlap`` where two atoms lie on top
        of each other.
    """
    path = Path(path)
    parsed = read_entry(path, archive=False).structure
    left_out = {"hydrogens": 0, "other_residues": 0, "alternatives": 0, "models": len(parsed) - 1}
    chains = [(chain.name, list(_polymer(chain, left_out))) for chain in parsed[0]]
    chains = [(name, residues) for name, residues in chains if residues]
    if not chains:
        raise EntryError("empty", f"{path.name}: no protein or nucleic acid in it; give a file that has one.")
    atoms: list[gemmi.Atom] = []
    rows: list[tuple[str, str, str, str, int, int]] = []
    n_residues = 0
    for number, (chain, residues) in enumerate(chains):
        for residue, chosen in residues:
            name = parent_name(residue.name)
            atoms += chosen
            rows += [(_atom_name(one.name), name, chain, str(residue.seqid), n_residues, number) for one in chosen]
            n_residues += 1
    unknown = [f"{row[2]}:{row[1]}{row[3]}:{row[0]}" for row, one in zip(rows, atoms, strict=True) if _number(one) == 0]
    if unknown:
        raise EntryError("unknown_element", f"{path.name}: atoms without an element: {', '.join(unknown[:5])}.")
    twice = [row for row, count in Counter((*row[2:4], row[0]) for row in rows).items() if count > 1]
    if twice:
        raise EntryError(
            "duplicate",
            f"{path.name}: {len(twice)} atoms are there more than once, such as {':'.join(twice[0])}; keep one each.",
        )
    names, residue_names, chain_names, numbers, index, chain_index = zip(*rows, strict=True)
    found = Structure(
        path.name,
        np.array([one.pos.tolist() for one in atoms], dtype=np.float32) * np.float32(ANGSTROM),
        np.array([_number(one) for one in atoms], dtype=np.uint8),
        np.array([one.encode() for one in names], dtype="S4"),
        np.array([one.encode() for one in residue_names], dtype="S4"),
        np.array([one.encode() for one in chain_names], dtype="S4"),
        np.array([one.encode() for one in numbers], dtype="S8"),
        np.array(index, dtype=np.int32),
        np.array(chain_index, dtype=np.int32),
        _bonds(chains),
        "/".join("".join(_letter(residue) for residue, _ in residues) for _, residues in chains),
        left_out,
    )
    _require_distinct(found)
    return found


def _polymer(chain: gemmi.Chain, left_out: dict[str, int]) -> Iterator[tuple[gemmi.Residue, list[gemmi.Atom]]]:
    """Yield the residues of proteins and nucleic acids with the heavy atoms of their likeliest location."""
    for group in _same_place(chain):
        kept = [residue for residue in group if _is_polymer(residue)]
        left_out["other_residues"] += len(group) - len(kept)
        if not kept:
            continue
        residue = max(kept, key=lambda one: sum(atom.occ for atom in one))  # of several at one place the likeliest
        heavy = [atom for atom in residue if not atom.is_hydrogen()]
        left_out["hydrogens"] += len(residue) - len(heavy)
        chosen = _likeliest(heavy)
        left_out["alternatives"] += len(heavy) - len(chosen) + sum(len(one) for one in kept if one is not residue)
        if chosen:
            yield residue, chosen


def _same_place(chain: gemmi.Chain) -> Iterator[list[gemmi.Residue]]:
    """Yield the residues of each place in a chain: one, or several that share it as alternatives."""
    group: list[gemmi.Residue] = []
    for residue in chain:
        shares = group and residue.seqid == group[0].seqid and any(atom.has_altloc() for atom in residue)
        if group and not shares:
            yield group
            group = []
        group.append(residue)
    if group:
        yield group


def _likeliest(atoms: list[gemmi.Atom]) -> list[gemmi.Atom]:
    """Return each atom once, at the alternative location that the residue's atoms have most often."""
    weight: dict[str, float] = {}
    for atom in atoms:
        if atom.has_altloc():
            weight[atom.altloc] = weight.get(atom.altloc, 0.0) + atom.occ
    if not weight:
        return atoms
    ranked = sorted(weight, key=lambda label: (-weight[label], label))
    best: dict[str, gemmi.Atom] = {}
    for label in ranked:
        for atom in atoms:
            if atom.altloc == label:
                best.setdefault(atom.name, atom)
    chosen = {id(atom) for atom in best.values()}
    return [atom for atom in atoms if not atom.has_altloc() or id(atom) in chosen]


def _bonds(chains: list[tuple[str, list[tuple[gemmi.Residue, list[gemmi.Atom]]]]]) -> NDArray[np.int32]:
    """Return the bonds that OpenMM's templates of the standard residues give, none over a gap in the numbering."""
    topology = app.Topology()
    apart: set[tuple[int, int]] = set()
    first = 0
    for name, residues in chains:
        chain = topology.addChain(name)
        for residue, atoms in residues:
            made = topology.addResidue(parent_name(residue.name), chain)
            for atom in atoms:
                topology.addAtom(_atom_name(atom.name), app.Element.getByAtomicNumber(_number(atom) or 1), made)
        for place, (one, other) in enumerate(pairwise([residue for residue, _ in residues]), first):
            if not 0 <= (other.seqid.num or 0) - (one.seqid.num or 0) <= 1:
                apart.add((place, place + 1))
        first += len(residues)
    topology.createStandardBonds()
    bonds = [
        sorted((one.index, other.index))
        for one, other in topology.bonds()
        if (one.residue.index, other.residue.index) not in apart
        and (other.residue.index, one.residue.index) not in apart
    ]
    return np.array(sorted(bonds), dtype=np.int32).reshape(-1, 2)


def least_distance(positions: NDArray[np.floating]) -> float:
    """Return the least distance between two of (N, 3) positions, infinite for one atom."""
    return float(cKDTree(positions).query(positions, k=2)[0][:, 1].min()) if len(positions) > 1 else np.inf


def _require_distinct(structure: Structure) -> None:
    pairs = cKDTree(structure.positions).query_pairs(MIN_DISTANCE, output_type="ndarray")
    if len(pairs):
        one, other = (int(atom) for atom in min(pairs.tolist()))
        distance = float(np.linalg.norm(structure.positions[one] - structure.positions[other]))
        raise EntryError(
            "overlap",
            f"{structure.name}: {len(pairs)} pairs of atoms lie on top of each other, such as {structure.label(one)} "
            f"and {structure.label(other)}, {distance / ANGSTROM:.2f} Å apart; at least {MIN_DISTANCE / ANGSTROM:g} Å "
            "is asked for. Mend the file or leave it out.",
        )


def _is_polymer(residue: gemmi.Residue) -> bool:
    kind = gemmi.find_tabulated_residue(residue.name)
    return kind.is_amino_acid() or kind.is_nucleic_acid() or is_protein(residue.name)


def _atom_name(name: str) -> str:
    plain = name.strip().replace("*", "'")
    return _OTHER_ATOM_NAMES.get(plain, plain)


def _letter(residue: gemmi.Residue) -> str:
    return gemmi.find_tabulated_residue(parent_name(residue.name)).one_letter_code.strip().upper() or "X"


def _number(atom: gemmi.Atom) -> int:
    """Return the atomic number; the name's where the element's column says another, as some programs write O for N4."""
    name = _atom_name(atom.name).lstrip("0123456789").upper()
    told = atom.element if name.startswith(atom.element.name.upper()) else gemmi.Element(name[:1])
    return int(told.atomic_number)
