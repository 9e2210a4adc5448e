"""Judge entries by criteria that are data.

The paper's five criteria (section 4.2): contains protein; a single chain; fewer than 200 amino acids; better than
2.5 Å; solved by X-ray crystallography. Three more keep out what preparation cannot turn into one honest system. The
others are off by default, but for `modified`: a residue inside the chain that nobody can repair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from data_pipeline.entries.facts import EntryFacts

XRAY = "X-RAY DIFFRACTION"


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
    max_internal_missing
        Residues without coordinates inside the chain, all gaps together.
    max_gap
        Residues of the longest gap inside the chain.
    min_observed
        Share of the chain's residues that have coordinates, 0 to 1; the ends count.
    modified
        ``repair`` keeps residues that preparation can replace by their standard parent, ``reject`` none.
    ligands
        ``keep`` any, ``reject`` all, or the names of those that are kept. Preparation removes them.
    disulfides
        ``any`` number, ``required`` at least one, or ``none``.
    altlocs
        ``keep`` or ``reject``; of a kept entry preparation takes the first locations.
    insertion_codes
        ``keep`` or ``reject``.
    """

    n_chains: int | None = 1
    max_residues: int | None = 200
    min_residues: int | None = None
    method: str | None = XRAY
    max_resolution: float | None = 2.5
    max_models: int | None = 1
    max_internal_missing: int | None = None
    max_gap: int | None = None
    min_observed: float | None = None
    modified: Literal["repair", "reject"] = "repair"
    ligands: Literal["keep", "reject"] | tuple[str, ...] = "keep"
    disulfides: Literal["any", "required", "none"] = "any"
    altlocs: Literal["keep", "reject"] = "keep"
    insertion_codes: Literal["keep", "reject"] = "keep"


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


def _internal_missing(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.max_internal_missing is None or facts.n_internal_missing <= limits.max_internal_missing:
        return None
    return f"{facts.n_internal_missing} residues missing inside the chain; at most {limits.max_internal_missing} may be"


def _gap(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.max_gap is None or facts.longest_gap <= limits.max_gap:
        return None
    return f"a gap of {facts.longest_gap} residues inside the chain; at most {limits.max_gap} are allowed"


def _observed(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.min_observed is None or facts.fraction_observed >= limits.min_observed:
        return None
    return (
        f"{facts.n_observed} of {facts.n_residues} residues have coordinates, {facts.fraction_observed:.3f}; "
        f"at least {limits.min_observed:g} is needed"
    )


def _modified(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.modified == "reject" and facts.modified:
        return f"modified residues {_named(facts.modified)}; only the twenty standard ones are allowed"
    if facts.irreparable:
        return f"modified residues {_named(facts.irreparable)}; no standard parent is known to repair them with"
    return None


def _named(residues: tuple[str, ...]) -> str:
    return ", ".join("MSE (selenomethionine)" if name == "MSE" else name for name in residues)


def _ligands(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.ligands == "keep":
        return None
    allowed = () if limits.ligands == "reject" else limits.ligands
    found = [name for name in facts.ligands if name not in allowed]
    if not found:
        return None
    return f"ligands {', '.join(found)}; allowed: {', '.join(allowed) or 'none'}"


def _disulfides(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.disulfides == "required" and not facts.n_disulfides:
        return "no disulfide bond; at least one is required"
    if limits.disulfides == "none" and facts.n_disulfides:
        return f"{facts.n_disulfides} disulfide bonds; none is allowed"
    return None


def _altlocs(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.altlocs == "keep" or not facts.n_altloc:
        return None
    return f"{facts.n_altloc} residues with alternative locations; none is allowed"


def _insertion_codes(facts: EntryFacts, limits: Criteria) -> str | None:
    if limits.insertion_codes == "keep" or not facts.n_insertion_codes:
        return None
    return f"{facts.n_insertion_codes} residues with insertion codes; none is allowed"


CRITERIA: dict[str, Callable[[EntryFacts, Criteria], str | None]] = {
    "protein": _protein,
    "single_chain": _single_chain,
    "length": _length,
    "method": _method,
    "resolution": _resolution,
    "one_model": _one_model,
    "all_atoms": _all_atoms,
    "current": _current,
    "internal_missing": _internal_missing,
    "gap": _gap,
    "observed": _observed,
    "modified": _modified,
    "ligands": _ligands,
    "disulfides": _disulfides,
    "altlocs": _altlocs,
    "insertion_codes": _insertion_codes,
}
"""Name of a criterion -> what returns the reason of a rejection, or None. The first five are the paper's."""


def judge(facts: EntryFacts, criteria: Criteria | None = None) -> Verdict:
    """Judge one entry by every criterion.

    Parameters
    ----------
    facts
        From `facts.inspect`.
    criteria
        The limits; the paper's where None.
    """
    limits = criteria or Criteria()
    unmet = {name: reason for name, check in CRITERIA.items() if (reason := check(facts, limits)) is not None}
    return Verdict(not unmet, "; and ".join(unmet.values()), next(iter(unmet), ""))
