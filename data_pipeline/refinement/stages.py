"""What a worker does with one candidate: read, match, compute its vectors, write one file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import EntryError
from data_pipeline.refinement.match import Match, match
from data_pipeline.refinement.structure import Structure, read_structure
from data_pipeline.refinement.vectors import refinement_vectors
from data_pipeline.stages import save_arrays

EXAMPLES = 3
"""Residues named in a message."""


def label_pair(out: Path, candidate: str, native: str, native_sha256: str, settings: dict[str, Any]) -> None:
    """Write labelled/ID.npz: every field of the dataset, and what was counted."""
    moving, target = read_structure(candidate), _native(native, native_sha256)
    save_arrays(
        out,
        {
            **label(moving, target, **settings),
            "native_file": np.str_(Path(native).name),
            "native_sha256": np.str_(native_sha256),
        },
    )


def label(
    candidate: Structure, native: Structure, *, min_matched: float, min_covered: float, n_neighbours: int
) -> dict[str, Any]:
    """Return the fields and attributes of `schema` that a pair gives, but for the natives's file.

    Parameters
    ----------
    candidate, native
        Of `structure.read_structure`.
    min_matched, min_covered, n_neighbours
        As `RefinementConfig` describes them.

    Raises
    ------
    EntryError
        Of kind ``no_native``, ``incomplete`` or ``degenerate``.
    """
    found = match(candidate, native)
    _require_fit(candidate, native, found, min_matched, min_covered)
    has_partner = found.has_partner
    native_positions = np.where(has_partner[:, None], native.positions[found.partner], np.float32(0))
    vectors = refinement_vectors(candidate.positions, native_positions, has_partner, n_neighbours)
    if not vectors.defined.any():
        raise EntryError(
            "degenerate",
            f"{candidate.name}: the surroundings of none of its {len(has_partner)} atoms define a superposition (fewer "
            "than three atoms, or all on a line).",
        )
    return {
        "species": candidate.species,
        "atom_names": candidate.atom_names,
        "residue_names": candidate.residue_names,
        "residue_index": candidate.residue_index,
        "bonds": candidate.bonds,
        "target_mask": vectors.defined,
        "positions": candidate.positions[None],
        "refinement": vectors.vectors[None].astype(np.float32),
        "native_positions": native_positions[None],
        "has_partner": has_partner,
        "chain_names": candidate.chain_names,
        "residue_numbers": candidate.residue_numbers,
        "sequence": np.str_(candidate.sequence),
        "native_atoms": np.int64(len(native.species)),
        "renamed_residues": np.int64(len(found.renamed)),
        "missing_residues": np.int64(len(found.missing)),
        "degenerate_atoms": np.int64(vectors.degenerate),
    }


@lru_cache(maxsize=2)
def _native(path: str, sha256: str) -> Structure:
    """Return a native, which many candidates have in common; the hash makes the cache safe."""
    return read_structure(path)


def _require_fit(candidate: Structure, native: Structure, found: Match, min_matched: float, min_covered: float) -> None:
    n_pairs, n_atoms, n_native = int(found.has_partner.sum()), len(candidate.species), len(native.species)
    if n_pairs < min_matched * n_atoms:
        raise EntryError(
            "no_native",
            f"{candidate.name}: {n_pairs} of {n_atoms} atoms have a partner in {native.name} "
            f"({n_pairs / n_atoms:.0%}), match.min_matched = {min_matched:.0%} are asked for. "
            f"{_differences(candidate, native, found)} See that it is this candidate's native, chains "
            "in the same order, residues with the same numbers.",
        )
    if n_pairs < min_covered * n_native:
        raise EntryError(
            "incomplete",
            f"{candidate.name} has {n_pairs} of the {n_native} atoms of {native.name} ({n_pairs / n_native:.0%}), "
            f"match.min_covered = {min_covered:.0%} are asked for. {_differences(candidate, native, found)} Is the "
            "file cut off, or a part of the molecule?",
        )


def _differences(candidate: Structure, native: Structure, found: Match) -> str:
    told = [f"Chains {_chains(candidate)} against {_chains(native)}"]
    for what, residues in (("other names", found.renamed), ("no counterpart", found.missing)):
        if residues:
            more = ", ..." if len(residues) > EXAMPLES else ""
            told.append(f"{len(residues)} residues with {what} ({', '.join(residues[:EXAMPLES])}{more})")
    return "; ".join(told) + "."


def _chains(structure: Structure) -> str:
    first = np.unique(structure.chain_index, return_index=True)[1]
    return ", ".join(name.decode() or "(no name)" for name in structure.chain_names[first].tolist())
