"""From an entry as deposited to one protein chain in one conformation, ready for repair.

Every choice that a file leaves open is made here, once for PDB and mmCIF: which chain, which alternative location,
which residues count as missing, what a modified residue becomes. Coordinates are the file's; ORIGX and SCALE records
relate them to other frames and are not applied.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

import gemmi
from pdbfixer.pdbfixer import proteinResidues, substitutions

from data_pipeline.errors import EntryError

STANDARD = frozenset(proteinResidues)
"""The twenty residues that a repaired chain consists of."""

CAPS = frozenset({"ACE", "FOR", "NH2", "NHE", "NME"})
"""What may close a chain's end; it is removed, and `repair` closes the end as asked."""

BACKBONE = ("N", "CA", "C")
"""A residue without one of these has no place in the chain: it counts as missing."""

_SAME_RESIDUE = {
    **{name: "HIS" for name in ("HID", "HIE", "HIP", "HSD", "HSE", "HSP")},
    **{"ASH": "ASP", "CYM": "CYS", "CYX": "CYS", "GLH": "GLU", "LYN": "LYS"},
}
"""Names that simulation programs give to protonation states."""


@dataclass(frozen=True)
class ProteinChain:
    """One chain in one conformation, without hydrogens.

    Parameters
    ----------
    residues
        Observed residues in order, with names and numbers as deposited.
    parents
        The standard residue that each becomes.
    missing
        Index in `residues` -> standard names of the residues that are missing before it; the index after the last
        one stands for the end of the chain.
    capped
        Whether the deposited chain goes on at its start and its end: with residues that are missing, or with a cap.
    waters
        Oxygens of the crystal's water.
    """

    residues: tuple[gemmi.Residue, ...]
    parents: tuple[str, ...]
    missing: dict[int, tuple[str, ...]]
    capped: tuple[bool, bool]
    waters: tuple[gemmi.Atom, ...]


def protein_chain(structure: gemmi.Structure) -> ProteinChain:
    """Return the chain with most amino acids of the first model; the structure is altered.

    Of alternative locations, and of several residues at one position, a residue takes the one with the largest mean
    occupancy, the first where two are equal.

    Parameters
    ----------
    structure
        As parsed.

    Raises
    ------
    EntryError
        Of kind no_protein, or unknown_residue naming residues that have no standard parent.
    """
    for chain in structure[0]:
        for residue in chain:
            residue.name = _SAME_RESIDUE.get(residue.name, residue.name)
    structure.setup_entities()
    structure.assign_label_seq_id()
    chain, polymer = max(((chain, _polymer(chain)) for chain in structure[0]), key=lambda pair: _n_known(pair[1]))
    if _n_known(polymer) == 0:
        raise EntryError("no_protein", "the coordinates hold no amino acid")
    declared = _declared_parents(structure, chain.name)
    places = [_conformation(list(group)) for _, group in groupby(polymer, key=lambda r: (r.seqid.num, r.seqid.icode))]
    first = next(i for i, residue in enumerate(places) if residue.name not in CAPS)
    last = next(i for i in reversed(range(len(places))) if places[i].name not in CAPS)
    inside = places[first : last + 1]
    refuse_unknown([f"{r.name} {r.seqid}" for r in inside if _parent(r, declared) is None])
    observed = [i for i, residue in enumerate(inside) if all(residue.find_atom(name, "*") for name in BACKBONE)]
    if not observed:
        raise EntryError("no_protein", f"no residue of chain {chain.name!r} has all of {', '.join(BACKBONE)}")
    missing = _missing(inside, observed, _sequence(structure, polymer), declared)
    end = len(observed)
    capped = (first > 0 or 0 in missing, last < len(places) - 1 or end in missing)
    for index in missing.keys() & {0, end}:
        missing[index] = tuple(name for name in missing[index] if name not in CAPS)
    return ProteinChain(
        residues=tuple(inside[i] for i in observed),
        parents=tuple(_parent(inside[i], declared) or "" for i in observed),
        missing={index: names for index, names in missing.items() if names},
        capped=capped,
        waters=tuple(_waters(structure)),
    )


def refuse_unknown(residues: list[str]) -> None:
    """Raise an EntryError of kind unknown_residue that names the residues, if there are any."""
    if residues:
        raise EntryError(
            "unknown_residue",
            f"{', '.join(residues)} have no standard parent that the file or PDBFixer names; remove or replace them "
            "by hand",
        )


def _polymer(chain: gemmi.Chain) -> list[gemmi.Residue]:
    return list(chain.get_polymer()) or [r for r in chain if r.name in STANDARD]


def _n_known(polymer: list[gemmi.Residue]) -> int:
    return sum(residue.name in STANDARD or residue.name in substitutions for residue in polymer)


def _conformation(alternatives: list[gemmi.Residue]) -> gemmi.Residue:
    """Return a residue with one location for each atom, from all residues at one position."""
    occupancies: dict[tuple[int, str], list[float]] = {}
    for index, residue in enumerate(alternatives):
        for atom in residue:
            if not atom.is_hydrogen() and (atom.has_altloc() or len(alternatives) > 1):
                occupancies.setdefault((index, atom.altloc), []).append(atom.occ)
    index, location = max(occupancies, key=lambda key: _mean(occupancies[key]), default=(0, "\0"))
    source = alternatives[index]
    best: dict[str, tuple[int, float, int]] = {}
    for i, atom in enumerate(source):
        rank = 0 if atom.altloc == location else 2 if atom.has_altloc() else 1
        # Atoms that the chosen location lacks are rebuilt, but without its backbone the residue would be lost.
        if not atom.is_hydrogen() and (rank < 2 or atom.name in BACKBONE):
            best[atom.name] = min(best.get(atom.name, (3, 0.0, 0)), (rank, -atom.occ, i))
    result = gemmi.Residue()
    result.name, result.seqid, result.label_seq = source.name, source.seqid, source.label_seq
    for _, _, i in sorted(best.values(), key=lambda entry: entry[2]):
        atom = source[i].clone()
        atom.altloc = "\0"
        if result.name == "MSE" and atom.name == "SE":  # methionine in all but this
            atom.name, atom.element = "SD", gemmi.Element("S")
        result.add_atom(atom)
    return result


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _declared_parents(structure: gemmi.Structure, chain: str) -> dict[tuple[str, str], str]:
    return {
        (str(mod.res_id.seqid), mod.res_id.name): mod.parent_comp_id
        for mod in structure.mod_residues
        if mod.chain_name == chain and mod.parent_comp_id in STANDARD
    }


def _parent(residue: gemmi.Residue, declared: dict[tuple[str, str], str]) -> str | None:
    if residue.name in STANDARD:
        return residue.name
    return declared.get((str(residue.seqid), residue.name), substitutions.get(residue.name))


def _sequence(structure: gemmi.Structure, polymer: list[gemmi.Residue]) -> list[str]:
    """Return the declared residue names, the first where a position has several; empty where none are declared."""
    subchain = polymer[0].subchain
    entity = next((entity for entity in structure.entities if subchain in entity.subchains), None)
    return [gemmi.Entity.first_mon(name) for name in entity.full_sequence] if entity else []


def _missing(
    inside: list[gemmi.Residue], observed: list[int], sequence: list[str], declared: dict[tuple[str, str], str]
) -> dict[int, tuple[str, ...]]:
    labels = [residue.label_seq for residue in inside if residue.label_seq is not None]
    aligned = bool(sequence) and len(labels) == len(inside) and all(a < b for a, b in pairwise(labels))
    missing: dict[int, list[str]] = {}
    index = reached = 0
    for i, residue in enumerate(inside):
        if aligned:
            missing.setdefault(index, []).extend(sequence[reached : labels[i] - 1])
            reached = labels[i]
        if i in observed:
            index += 1
        else:
            missing.setdefault(index, []).append(_parent(residue, declared) or residue.name)
    if aligned:
        missing.setdefault(index, []).extend(sequence[reached:])
    return {
        index: tuple(name if name in STANDARD else substitutions.get(name, name) for name in names)
        for index, names in missing.items()
        if names
    }


def _waters(structure: gemmi.Structure) -> Iterator[gemmi.Atom]:
    for chain in structure[0]:
        for residue in chain:
            if residue.is_water() and (oxygen := residue.find_atom("O", "*")):
                yield oxygen
