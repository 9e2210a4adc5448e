"""Refuse a file that contradicts itself.

An archive file tells its sequence more than once: what is declared (SEQRES, entity_poly_seq), what has coordinates,
which residues and how many atoms there are (pdbx_poly_seq_scheme, MASTER), the sequence in letters. Damage that leaves
a readable file shows there.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest

import gemmi
from pdbfixer.pdbfixer import proteinResidues

from data_pipeline.errors import EntryError

STANDARD = frozenset(proteinResidues)
"""The twenty amino acids."""


def check_counts(lines: tuple[str, ...]) -> None:
    """Compare a PDB file with what its MASTER and SEQRES records say of it.

    MASTER's number of atoms may leave out alternative locations and hydrogens: the archive's own files differ in that.

    Parameters
    ----------
    lines
        Of a PDB file; none for mmCIF.

    Raises
    ------
    EntryError
        Of kind ``altered``, with both numbers.
    """
    master = next((line for line in lines if line.startswith("MASTER")), "")
    atoms = [line for line in lines if line.startswith(("ATOM  ", "HETATM"))]
    sequence = [line for line in lines if line.startswith("SEQRES")]
    if master:
        fewest = len({line[12:16] + line[17:27] for line in atoms if not _is_hydrogen(line)})
        _check_count("atoms", master[50:55], fewest, len(atoms))
        _check_count("SEQRES records", master[65:70], len(sequence), len(sequence))
    for chain in {line[11] for line in sequence if len(line) > 11}:
        own = [line for line in sequence if line[11] == chain]
        n_residues = sum(len(line[19:70].split()) for line in own)
        for line in own:
            _check_count(f"residues of chain {chain!r} in SEQRES", line[13:17], n_residues, n_residues)


def _check_count(what: str, told: str, fewest: int, most: int) -> None:
    if not told.strip().isdecimal() or not fewest <= int(told) <= most:
        raise EntryError(
            "altered", f"{most} {what} instead of {told.strip()!r}, as the file says; take the entry from the archive."
        )


def _is_hydrogen(line: str) -> bool:
    element = line[76:78].strip() or line[12:16].strip(" 0123456789")[:1]
    return element in ("H", "D")


def check_chains(structure: gemmi.Structure, declared: set[str]) -> None:
    """Refuse amino acids that belong to no chain that the header declares.

    Amino acids that are ligands are told by their record, HETATM.

    Parameters
    ----------
    structure
        With its coordinates, entities and numbers along the declared sequences.
    declared
        The authors' names of the chains that the header declares.

    Raises
    ------
    EntryError
        Of kind ``sequence``.
    """
    for chain in structure[0]:
        for residue in chain:
            if residue.het_flag != "A" or residue.name not in STANDARD:
                continue
            if residue.label_seq is None or chain.name not in declared:
                raise EntryError(
                    "sequence",
                    f"{residue.name} {residue.seqid} of chain {chain.name!r} has coordinates, but is not declared.",
                )


def check_sequence(polymer: Iterable[gemmi.Residue], alternatives: list[str]) -> None:
    """Compare the residues that have coordinates with the declared ones, position by position, in order.

    Parameters
    ----------
    polymer
        The residues of one chain, numbered along its declared sequence by ``label_seq``.
    alternatives
        Names of the declared residues; where a position has several, they are separated by commas.

    Raises
    ------
    EntryError
        Of kind ``sequence``, naming the residue.
    """
    found: dict[int, list[gemmi.Residue]] = {}
    last = 0
    for residue in polymer:
        position = residue.label_seq or 0
        where = f"residue {residue.name} {residue.seqid}"
        if not 1 <= position <= len(alternatives):
            raise EntryError("sequence", f"{where} has no place in the declared sequence.")
        if position < last or residue.name in [other.name for other in found.get(position, [])]:
            raise EntryError("sequence", f"{where} comes twice or out of order.")
        found.setdefault(position, []).append(residue)
        last = position
    for position, residues in found.items():
        names = [residue.name for residue in residues]
        if len(names) > 1 and not all(_is_alternative(residue) for residue in residues):
            raise EntryError("sequence", f"residue {position} of the chain is {' and '.join(names)} at the same place.")
        # One of them is enough: SEQRES names one residue where the crystal has a mixture of two.
        if not set(names) & set(alternatives[position - 1].split(",")):
            raise EntryError(
                "sequence",
                f"residue {position} of the chain is {' or '.join(names)} in the coordinates and "
                f"{alternatives[position - 1]} in the declared sequence.",
            )


def _is_alternative(residue: gemmi.Residue) -> bool:
    """Tell whether a residue can be one of several at a place, and not an atom or two with a damaged name."""
    return len(residue) > 2 and any(atom.has_altloc() for atom in residue)


def check_one_letter(block: gemmi.cif.Block, structure: gemmi.Structure) -> None:
    """Compare the sequence in letters with the one in residue names, of every protein that an mmCIF file declares.

    Parameters
    ----------
    block
        The file's block.
    structure
        Read from it.

    Raises
    ------
    EntryError
        Of kind ``sequence``.
    """
    for row in block.find("_entity_poly.", ["entity_id", "type", "pdbx_seq_one_letter_code"]):
        entity = structure.get_entity(row.str(0))
        letters = "".join(row.str(2).split())
        if entity is None or not entity.full_sequence or not row.str(1).startswith("polypeptide") or letters in "?.":
            continue
        names = gemmi.expand_one_letter_sequence(letters, gemmi.ResidueKind.AA)
        if [a for a, b in zip_longest(names, entity.full_sequence, fillvalue="") if a not in b.split(",")]:
            raise EntryError(
                "sequence", f"entity {row.str(0)} has one sequence in letters and another one in residue names."
            )


def check_scheme(block: gemmi.cif.Block) -> None:
    """Compare the atoms of an mmCIF file with the archive's list of residues seen, and their numbers with 1, 2, 3, ...

    Files without that list are not the archive's and pass.

    Parameters
    ----------
    block
        The file's block.

    Raises
    ------
    EntryError
        Of kind ``altered``, saying what is missing or too much.
    """
    scheme = block.find("_pdbx_poly_seq_scheme.", ["asym_id", "seq_id", "pdb_mon_id"])
    if not scheme:
        if block.find_values("_audit_conform.dict_name"):
            raise EntryError("altered", "the list of residues is missing; take the entry from the archive.")
        return
    told = {(row[0], row[1]) for row in scheme if row[2] not in "?."}
    atoms = block.find("_atom_site.", ["label_asym_id", "label_seq_id"])
    found = {(row[0], row[1]) for row in atoms if row[1] not in "?."}
    if told != found:
        asym, number = min(told ^ found)
        raise EntryError(
            "altered",
            f"residue {number} of chain {asym} is {'missing' if (asym, number) in told else 'too much'} in the "
            f"coordinates, by the file's own list of residues, and {len(told ^ found) - 1} others; "
            "take the entry from the archive.",
        )
    numbers = list(block.find_values("_atom_site.id"))
    wrong = [(k, given) for k, given in enumerate(numbers, start=1) if given != str(k)]
    if wrong:
        raise EntryError("altered", f"atom {wrong[0][0]} is called {wrong[0][1]!r}; take the entry from the archive.")
