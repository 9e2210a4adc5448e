"""What a worker does with one candidate: read, match, compute its vectors, write one file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import EntryError
from data_pipeline.refinement.augment import bend
from data_pipeline.refinement.match import Match, match
from data_pipeline.refinement.structure import MIN_DISTANCE, Structure, least_distance, read_structure
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
    candidate: Structure,
    native: Structure,
    *,
    min_matched: float,
    min_covered: float,
    n_neighbours: int,
    augment: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the fields and attributes of `schema` that a pair gives, but for the natives's file.

    Parameters
    ----------
    candidate, native
        Of `structure.read_structure`.
    min_matched, min_covered, n_neighbours
        As `RefinementConfig` describes them.
    augment
        ``copies``, ``displacement``, ``correlation`` and ``seed`` of `augment.bend`; None for no copies. Those on which
        two atoms come too near, or an atom has no vector that has one on the candidate, are left out and counted.

    Raises
    ------
    EntryError
        Of kind ``no_native``, ``incomplete`` or ``degenerate``.
    """
    paired = match(candidate, native)
    _require_fit(candidate, native, paired, min_matched, min_covered)
    has_partner = paired.has_partner
    native_positions = np.where(has_partner[:, None], native.positions[paired.partner], np.float32(0))
    vectors = refinement_vectors(candidate.positions, native_positions, has_partner, n_neighbours)
    if not vectors.defined.any():
        raise EntryError(
            "degenerate",
            f"{candidate.name}: the surroundings of none of its {len(has_partner)} atoms define a superposition (fewer "
            "than three atoms, or all on a line).",
        )
    positions, found = [candidate.positions], [vectors.vectors]
    copied: dict[str, Any] = {}
    if augment is not None:
        for copy in bend(candidate.positions, **augment):
            again = refinement_vectors(copy, native_positions, has_partner, n_neighbours)
            if least_distance(copy) >= MIN_DISTANCE and np.array_equal(again.defined, vectors.defined):
                positions.append(copy)
                found.append(again.vectors)
        sigma = np.full(len(positions), augment["displacement"], dtype=np.float32)
        sigma[0] = 0.0
        copied = {"displacement": sigma, "dropped_copies": np.int64(1 + augment["copies"] - len(positions))}
    return {
        "species": candidate.species,
        "atom_names": candidate.atom_names,
        "residue_names": candidate.residue_names,
        "residue_index": candidate.residue_index,
        "bonds": candidate.bonds,
        "target_mask": vectors.defined,
        "positions": np.stack(positions),
        "refinement": np.stack(found).astype(np.float32),
        "native_positions": np.stack([native_positions] * len(positions)),
        "has_partner": has_partner,
        "chain_names": candidate.chain_names,
        "residue_numbers": candidate.residue_numbers,
        "sequence": np.str_(candidate.sequence),
        "native_atoms": np.int64(len(native.species)),
        "renamed_residues": np.int64(len(paired.renamed)),
        "missing_residues": np.int64(len(paired.missing)),
        "degenerate_atoms": np.int64(vectors.degenerate),
        **copied,
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
