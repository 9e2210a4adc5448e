"""Select entries: read the facts from an entry's header, judge them by criteria that are data.

The paper's five criteria (section 4.2): contains protein; a single chain; fewer than 200 amino acids; better than
2.5 Å; solved by X-ray crystallography. Three more keep out what preparation cannot turn into one honest system.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gemmi

from data_pipeline.errors import EntryError
from data_pipeline.sources.mirror import normalise_id
from data_pipeline.structure import Entry, read_entry

XRAY = "X-RAY DIFFRACTION"


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

    @property
    def n_residues(self) -> int:
        """Residues of the first protein chain as deposited, those without coordinates included."""
        return len(self.sequence)

    @property
    def n_chains(self) -> int:
        """Polymer chains of any kind."""
        return self.n_protein_chains + self.n_nucleic_chains + self.n_other_chains

    @property
    def has_nucleic(self) -> bool:
        """True where a chain is DNA or RNA."""
        return self.n_nucleic_chains > 0


@dataclass(frozen=True)
class Criteria:
    """The limits; the defaults are the paper's. None lifts a limit.

    Parameters
    ----------
    n_chains
        Polymer chains of any kind.
    max_residues
        The chain has fewer residues than this.
    min_residues
        The chain has at least so many; the paper has no such limit.
    method
        The only experimental method.
    max_resolution
        Å; the resolution is strictly better (smaller) than this.
    max_models
        Models in the file; with more than one nobody says which is meant.
    """

    n_chains: int | None = 1
    max_residues: int | None = 200
    min_residues: int | None = None
    method: str | None = XRAY
    max_resolution: float | None = 2.5
    max_models: int | None = 1


@dataclass(frozen=True)
class Verdict:
    """Whether an entry is kept, and why not.

    Parameters
    ----------
    keep
        True where every criterion is met.
    reason
        What was found and what is allowed, of every criterion that is not met; empty for a kept entry.
    criterion
        Name of the first criterion that is not met; empty for a kept entry.
    """

    keep: bool
    reason: str
    criterion: str


def _protein(facts: EntryFacts, limits: Criteria) -> str | None:
    if facts.n_protein_chains == 0:
        found = "only nucleic acid" if facts.has_nucleic else "no protein chain"
        return f"{found}; an entry must contain protein"
    return None


def _single_chain(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.n_chains is None or facts.n_chains == limits.n_chains:
        return None
    parts = (
        (facts.n_protein_chains, "protein"),
        (facts.n_nucleic_chains, "nucleic acid"),
        (facts.n_other_chains, "other polymer"),
    )
    found = ", ".join(f"{n} {kind}" for n, kind in parts if n)
    return f"{facts.n_chains} chains ({found}); exactly {limits.n_chains} is allowed"


def _length(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.max_residues is not None and facts.n_residues >= limits.max_residues:
        return f"{facts.n_residues} residues; fewer than {limits.max_residues} are allowed"
    if limits.min_residues is not None and facts.n_residues < limits.min_residues:
        return f"{facts.n_residues} residues; at least {limits.min_residues} are needed"
    return None


def _method(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.method is None or facts.method.upper() == limits.method.upper():
        return None
    return f"method {facts.method or 'not given'}; only {limits.method} is allowed"


def _resolution(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.max_resolution is None:
        return None
    if facts.resolution is None:
        return f"no resolution; better than {limits.max_resolution:g} Å is needed"
    if facts.resolution >= limits.max_resolution:
        return f"resolution {facts.resolution:g} Å; better than {limits.max_resolution:g} Å is needed"
    return None


def _one_model(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.max_models is None or facts.n_models <= limits.max_models:
        return None
    return f"{facts.n_models} models; at most {limits.max_models} is allowed"


def _all_atoms(facts: EntryFacts, limits: Criteria) -> str | None:
    return "Cα atoms only; side chains are needed" if facts.ca_only else None


def _current(facts: EntryFacts, limits: Criteria) -> str | None:
    return "withdrawn or replaced in the archive; only current entries are allowed" if facts.obsolete else None


CRITERIA: dict[str, Callable[[EntryFacts, Criteria], str | None]] = {
    "protein": _protein,
    "single_chain": _single_chain,
    "length": _length,
    "method": _method,
    "resolution": _resolution,
    "one_model": _one_model,
    "all_atoms": _all_atoms,
    "current": _current,
}
"""Name of a criterion -> what returns the reason of a rejection, or None. The first five are the paper's."""


def judge(facts: EntryFacts, criteria: Criteria | None = None) -> Verdict:
    """Judge one entry by every criterion.

    Parameters
    ----------
    facts
        From `inspect`.
    criteria
        The limits; the paper's where None.
    """
    limits = criteria or Criteria()
    unmet = {name: reason for name, check in CRITERIA.items() if (reason := check(facts, limits)) is not None}
    return Verdict(not unmet, "; and ".join(unmet.values()), next(iter(unmet), ""))


def inspect(path: Path | str) -> EntryFacts:
    """Read the facts of one entry.

    Parameters
    ----------
    path
        A PDB or mmCIF file, plain or gzipped.

    Raises
    ------
    EntryError
        Of kind ``empty``, ``html``, ``truncated`` or ``unreadable``.
    """
    entry = read_entry(path)
    structure = entry.structure
    chains = _declared_chains(entry) or _observed_chains(structure)
    kinds = [_kind(names) for _, names in chains]
    chain_id, names = next((c for c, kind in zip(chains, kinds, strict=True) if kind == "protein"), ("", []))

    structure.setup_entities()
    structure.assign_label_seq_id()
    n_models = len(structure)
    polymer = _polymer(structure, chain_id)
    if chain_id and not polymer:
        raise EntryError("empty", f"{Path(path).name}: chain {chain_id!r} is declared but has no coordinates.")
    residues = {residue.label_seq or index: residue for index, residue in enumerate(polymer, 1)}
    return EntryFacts(
        entry_id=_entry_id(entry),
        format=entry.format,
        method=_methods(entry),
        resolution=structure.resolution or None,
        n_protein_chains=kinds.count("protein"),
        n_nucleic_chains=kinds.count("nucleic"),
        n_other_chains=kinds.count("other"),
        chain_id=chain_id,
        sequence="".join(_letter(name) for name in names),
        n_observed=len(residues),
        n_internal_missing=max(residues) - min(residues) + 1 - len(residues) if residues else 0,
        modified=tuple(sorted({name for name in names if not _is_standard(name)})),
        ligands=_ligands(structure),
        n_altloc=sum(any(atom.has_altloc() for atom in residue) for residue in residues.values()),
        n_models=n_models,
        ca_only=bool(residues) and all(atom.name == "CA" for residue in residues.values() for atom in residue),
        obsolete=_is_obsolete(entry),
    )


def _declared_chains(entry: Entry) -> list[tuple[str, list[str]]]:
    """Return (author's chain name, residue names) of every polymer chain that the header declares."""
    chains = []
    for entity in entry.structure.entities:
        if entity.entity_type != gemmi.EntityType.Polymer or not entity.full_sequence:
            continue
        # Where a position has two residues (microheterogeneity), the first is taken, as SEQRES does.
        names = [gemmi.Entity.first_mon(name) for name in entity.full_sequence]
        if entry.block is None:
            chains.append((entity.name, names))
        else:
            chains += [(_author_chain(entry.structure, subchain), names) for subchain in entity.subchains]
    return chains


def _author_chain(structure: gemmi.Structure, subchain: str) -> str:
    for chain in structure[0]:
        if any(residue.subchain == subchain for residue in chain):
            return chain.name
    return subchain


def _observed_chains(structure: gemmi.Structure) -> list[tuple[str, list[str]]]:
    """Return the same from the coordinates, for files whose header declares nothing."""
    structure.setup_entities()
    chains = [
        (chain.name, [residue.name for residue in chain.get_polymer().first_conformer()]) for chain in structure[0]
    ]
    return [(name, names) for name, names in chains if names]


def _polymer(structure: gemmi.Structure, chain_id: str) -> list[gemmi.Residue]:
    chain = next((chain for chain in structure[0] if chain.name == chain_id), None)
    return [] if chain is None else list(chain.get_polymer().first_conformer())


def _kind(names: list[str]) -> str:
    """Tell what a polymer is from what most of its residues are."""
    tabulated = [gemmi.find_tabulated_residue(name) for name in names]
    # Unlike the table, SEQRES may say UNK: an amino acid that was not identified.
    n_amino = sum(t.is_amino_acid() or name == "UNK" for t, name in zip(tabulated, names, strict=True))
    n_nucleic = sum(t.is_nucleic_acid() for t in tabulated)
    if 2 * n_amino > len(names):
        return "protein"
    return "nucleic" if 2 * n_nucleic > len(names) else "other"


def _is_standard(name: str) -> bool:
    tabulated = gemmi.find_tabulated_residue(name)
    return tabulated.is_standard() and tabulated.is_amino_acid()


def _letter(name: str) -> str:
    letter = gemmi.find_tabulated_residue(name).one_letter_code.strip().upper()
    return letter or "X"


def _ligands(structure: gemmi.Structure) -> tuple[str, ...]:
    kinds = (gemmi.EntityType.Polymer, gemmi.EntityType.Water)
    return tuple(sorted({r.name for chain in structure[0] for r in chain if r.entity_type not in kinds}))


def _entry_id(entry: Entry) -> str:
    info = entry.structure.info
    return normalise_id(info["_entry.id"]) if "_entry.id" in info else ""


def _methods(entry: Entry) -> str:
    if entry.block is not None:
        return "; ".join(gemmi.cif.as_string(value) for value in entry.block.find_values("_exptl.method"))
    info = entry.structure.info
    return info["_exptl.method"] if "_exptl.method" in info else ""


def _is_obsolete(entry: Entry) -> bool:
    if entry.block is None:
        return any(line.startswith("OBSLTE") for line in entry.lines)
    status = gemmi.cif.as_string(entry.block.find_value("_pdbx_database_status.status_code") or "?")
    return status == "OBS"
