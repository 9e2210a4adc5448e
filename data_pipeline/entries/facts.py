"""Read the facts of an entry that criteria look at."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import gemmi
from pdbfixer.pdbfixer import substitutions

from data_pipeline.entries import consistent
from data_pipeline.entries.consistent import STANDARD
from data_pipeline.entries.structure import Entry, read_entry
from data_pipeline.errors import EntryError
from data_pipeline.sources import normalise_id


@dataclass(frozen=True)
class EntryFacts:
    """What the criteria look at, and what a reader of the selection wants to know.

    Parameters
    ----------
    entry_id
        As the file's own header says, lower case; empty where it does not say.
    format
        ``pdb`` or ``mmcif``.
    method
        Experimental methods, joined by ``"; "``; empty where none is named.
    resolution
        Å; None where none is given.
    n_protein_chains, n_nucleic_chains, n_other_chains
        Polymer chains as declared (SEQRES, entity_poly), copies counted each.
    chain_id
        The first protein chain, as the authors call it; empty where there is no protein.
    sequence
        Of that chain as deposited, one letter a residue: a modified residue is its parent's letter, X is unknown.
    n_observed
        Residues of that chain with coordinates.
    n_internal_missing
        Residues without coordinates between the first and the last that have them.
    modified
        Names of that chain's residues that are not among the twenty, sorted.
    ligands
        Names of what is neither polymer nor water, sorted.
    n_altloc
        Residues of that chain that have alternative locations.
    n_models
        Models in the file.
    ca_only
        True where that chain has Cα atoms only.
    obsolete
        True where the archive has withdrawn or replaced the entry.
    longest_gap
        Longest run of residues without coordinates between two that have them.
    irreparable
        Those of `modified` for which no standard parent is known, sorted. A cap at an end of the chain, such as
        acetyl, is not counted: it is cut off.
    n_insertion_codes
        Residues of that chain with coordinates whose number has an insertion code.
    n_disulfides
        Bonds between two of that chain's cysteines that the header declares.
    deposited
        Date of deposition, YYYY-MM-DD; empty where none is given.
    r_free
        0 to 1; None where none is given.
    entity_id
        Number of the protein among the entry's molecules, as mmCIF says and RCSB's clusters use; in a PDB file, which
        has no such number, 1 where the chain is the only polymer, and empty where it is not.
    """

    entry_id: str
    format: str
    method: str
    resolution: float | None
    n_protein_chains: int
    n_nucleic_chains: int
    n_other_chains: int
    chain_id: str
    sequence: str
    n_observed: int
    n_internal_missing: int
    modified: tuple[str, ...]
    ligands: tuple[str, ...]
    n_altloc: int
    n_models: int
    ca_only: bool
    obsolete: bool
    longest_gap: int = 0
    irreparable: tuple[str, ...] = ()
    n_insertion_codes: int = 0
    n_disulfides: int = 0
    deposited: str = ""
    r_free: float | None = None
    entity_id: str = ""

    @property
    def n_residues(self) -> int:
        """Residues of the first protein chain as deposited, those without coordinates included."""
        return len(self.sequence)

    @property
    def fraction_observed(self) -> float:
        """Share of the chain's residues that have coordinates, 0 to 1."""
        return self.n_observed / self.n_residues if self.n_residues else 0.0

    @property
    def n_chains(self) -> int:
        """Polymer chains of any kind."""
        return self.n_protein_chains + self.n_nucleic_chains + self.n_other_chains

    @property
    def has_nucleic(self) -> bool:
        """True where a chain is DNA or RNA."""
        return self.n_nucleic_chains > 0


def inspect(path: Path | str) -> EntryFacts:
    """Read the facts of one entry.

    Parameters
    ----------
    path
        A PDB or mmCIF file, plain or gzipped.

    Raises
    ------
    EntryError
        As `structure.read_entry`; and of kind ``empty`` where the declared chain has no coordinates, ``altered``
        where there are more or fewer records than the file says, ``sequence`` where the chain is not the declared one.
    """
    try:
        return _facts(read_entry(path))
    except EntryError as error:
        name = Path(path).name
        raise EntryError(error.kind, str(error) if name in str(error) else f"{name}: {error}") from error


def _facts(entry: Entry) -> EntryFacts:
    structure = entry.structure
    consistent.check_counts(entry.lines)
    declared = _declared_chains(entry)
    chains = declared or _observed_chains(structure)
    kinds = [_kind(_first_names(names)) for _, names in chains]
    chain_id, alternatives = next((c for c, kind in zip(chains, kinds, strict=True) if kind == "protein"), ("", []))
    names = _first_names(alternatives)

    structure.setup_entities()
    structure.assign_label_seq_id()
    mixture = _polymer(structure, chain_id)
    polymer = list(mixture.first_conformer()) if mixture else []
    if chain_id and not polymer:
        raise EntryError("empty", f"chain {chain_id!r} is declared but has no coordinates.")
    if declared:
        consistent.check_chains(structure, {chain for chain, _ in declared})
        consistent.check_sequence(mixture or [], alternatives)
    if entry.block is not None:
        consistent.check_one_letter(entry.block, structure)
        consistent.check_scheme(entry.block)
    residues = {residue.label_seq or index: residue for index, residue in enumerate(polymer, 1)}
    gaps = [after - before - 1 for before, after in pairwise(sorted(residues))]
    parents = _declared_parents(structure)
    return EntryFacts(
        entry_id=_entry_id(entry),
        format=entry.format,
        method=_methods(entry),
        resolution=structure.resolution or None,
        n_protein_chains=kinds.count("protein"),
        n_nucleic_chains=kinds.count("nucleic"),
        n_other_chains=kinds.count("other"),
        chain_id=chain_id,
        sequence="".join(_letter(parents.get(name, name)) for name in names),
        n_observed=len(residues),
        n_internal_missing=sum(gaps),
        modified=tuple(sorted(set(names) - STANDARD)),
        ligands=_ligands(structure),
        n_altloc=sum(any(atom.has_altloc() for atom in residue) for residue in residues.values()),
        n_models=len(structure),
        ca_only=bool(residues) and all(atom.name == "CA" for residue in residues.values() for atom in residue),
        obsolete=_is_obsolete(entry),
        longest_gap=max(gaps, default=0),
        irreparable=tuple(sorted(set(names[1:-1]) - STANDARD - {*substitutions, *parents})),
        n_insertion_codes=sum(residue.seqid.icode != " " for residue in residues.values()),
        n_disulfides=_disulfides(structure, chain_id),
        deposited=_info(structure, "_pdbx_database_status.recvd_initial_deposition_date"),
        r_free=_r_free(structure),
        entity_id=_entity_id(entry, chain_id, len(chains)),
    )


def _first_names(alternatives: list[str]) -> list[str]:
    """Return the first residue where a position has several (microheterogeneity), as SEQRES does."""
    return [gemmi.Entity.first_mon(name) for name in alternatives]


def _declared_chains(entry: Entry) -> list[tuple[str, list[str]]]:
    """Return (author's chain name, residue names, alternatives by comma) of every chain that the header declares."""
    chains = []
    for entity in entry.structure.entities:
        if entity.entity_type != gemmi.EntityType.Polymer or not entity.full_sequence:
            continue
        if entry.block is None:
            chains.append((entity.name, entity.full_sequence))
        else:
            names = entity.full_sequence
            chains += [(_author_chain(entry.structure, subchain), names) for subchain in entity.subchains]
    return chains


def _author_chain(structure: gemmi.Structure, subchain: str) -> str:
    for chain in structure[0]:
        if any(residue.subchain == subchain for residue in chain):
            return chain.name
    return subchain


def _entity_id(entry: Entry, chain_id: str, n_chains: int) -> str:
    if entry.block is None:
        return "1" if chain_id and n_chains == 1 else ""
    for entity in entry.structure.entities:
        if entity.entity_type == gemmi.EntityType.Polymer and chain_id in {
            _author_chain(entry.structure, subchain) for subchain in entity.subchains
        }:
            return entity.name
    return ""


def _observed_chains(structure: gemmi.Structure) -> list[tuple[str, list[str]]]:
    """Return the same from the coordinates, for files whose header declares nothing."""
    structure.setup_entities()
    chains = [
        (chain.name, [residue.name for residue in chain.get_polymer().first_conformer()]) for chain in structure[0]
    ]
    return [(name, names) for name, names in chains if names]


def _polymer(structure: gemmi.Structure, chain_id: str) -> gemmi.ResidueSpan | None:
    chain = next((chain for chain in structure[0] if chain.name == chain_id), None)
    return chain.get_polymer() if chain_id and chain is not None else None


def _kind(names: list[str]) -> str:
    """Tell what a polymer is from what most of its residues are."""
    tabulated = [gemmi.find_tabulated_residue(name) for name in names]
    # Unlike the table, SEQRES may say UNK: an amino acid that was not identified.
    n_amino = sum(t.is_amino_acid() or name == "UNK" for t, name in zip(tabulated, names, strict=True))
    n_nucleic = sum(t.is_nucleic_acid() for t in tabulated)
    if 2 * n_amino > len(names):
        return "protein"
    return "nucleic" if 2 * n_nucleic > len(names) else "other"


def _declared_parents(structure: gemmi.Structure) -> dict[str, str]:
    """Return the modified residues whose parent the header names, which is the one that preparation puts in place."""
    return {mod.res_id.name: mod.parent_comp_id for mod in structure.mod_residues if mod.parent_comp_id in STANDARD}


def _letter(name: str) -> str:
    letter = gemmi.find_tabulated_residue(name).one_letter_code.strip().upper()
    return letter or "X"


def _ligands(structure: gemmi.Structure) -> tuple[str, ...]:
    kinds = (gemmi.EntityType.Polymer, gemmi.EntityType.Water)
    return tuple(sorted({r.name for chain in structure[0] for r in chain if r.entity_type not in kinds}))


def _entry_id(entry: Entry) -> str:
    return normalise_id(_info(entry.structure, "_entry.id"))


def _info(structure: gemmi.Structure, key: str) -> str:
    return structure.info[key] if key in structure.info else ""


def _disulfides(structure: gemmi.Structure, chain_id: str) -> int:
    bonds = {
        frozenset(str(end.res_id.seqid) for end in (bond.partner1, bond.partner2))
        for bond in structure.connections
        if bond.type == gemmi.ConnectionType.Disulf
        and bond.asu != gemmi.Asu.Different
        and bond.partner1.chain_name == bond.partner2.chain_name == chain_id
    }
    return len(bonds)


def _r_free(structure: gemmi.Structure) -> float | None:
    values = [refinement.r_free for refinement in structure.meta.refinement]
    return next((value for value in values if 0 < value < 1), None)


def _methods(entry: Entry) -> str:
    if entry.block is not None:
        return "; ".join(gemmi.cif.as_string(value) for value in entry.block.find_values("_exptl.method"))
    return _info(entry.structure, "_exptl.method")


def _is_obsolete(entry: Entry) -> bool:
    if entry.block is None:
        return any(line.startswith("OBSLTE") for line in entry.lines)
    status = gemmi.cif.as_string(entry.block.find_value("_pdbx_database_status.status_code") or "?")
    return status == "OBS"
