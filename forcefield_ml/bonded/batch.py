"""What a batch carries of bonded terms: which parameters, and how their functions move the targets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from forcefield_ml.bonded.geometry import N_FUNCTIONS, slopes, term_vectors
from forcefield_ml.bonded.module import ROOM, TermBatch
from forcefield_ml.bonded.terms import DEPTHS, KINDS, Terms

NONE = sum(ROOM[kind] * N_FUNCTIONS[kind] for kind in KINDS)
"""Index of the parameter that is zero."""


class EntryTerms(NamedTuple):
    """The terms of one molecule or several, with the parameters they have.

    Attributes
    ----------
    atoms
        Kind to (T, k) int64.
    which
        Kind to (T, P, `DEPTHS`) int64, places among all parameters of a model, see `module.TermBatch`.
    """

    atoms: dict[str, NDArray[np.int64]]
    which: dict[str, NDArray[np.int64]]


def looked_up(terms: Mapping[str, Terms], keys: Mapping[str, NDArray[np.int64]]) -> EntryTerms:
    """Return terms with the places of their parameters.

    Parameters
    ----------
    terms
        Of `find_terms`.
    keys
        Kind to (K,) int64, sorted, as a model has them.
    """
    index, first = {}, 0
    for kind in KINDS:
        known, functions = keys[kind], np.arange(N_FUNCTIONS[kind])
        places = np.full((len(terms[kind].atoms), N_FUNCTIONS[kind], DEPTHS), NONE, dtype=np.int64)
        for depth in range(DEPTHS):
            wanted = terms[kind].keys[:, depth]
            here = np.isin(wanted, known)
            row = np.searchsorted(known, wanted[here])
            places[here, :, depth] = first + row[:, None] * N_FUNCTIONS[kind] + functions
        index[kind] = places
        first += ROOM[kind] * N_FUNCTIONS[kind]
    return EntryTerms({kind: found.atoms for kind, found in terms.items()}, index)


def term_batch(
    terms: EntryTerms, positions: NDArray[Any], box: NDArray[Any] | None, rows: NDArray[np.int64], n_targets: int
) -> TermBatch:
    """Return the terms that move some targets.

    Parameters
    ----------
    terms
        Of all atoms of a frame.
    positions
        (N, 3) nm.
    box
        (3, 3) nm or None.
    rows
        (N,) int64, the row of each atom among the targets; `n_targets` or more for those that are none.
    n_targets
        Number of targets.
    """
    places = torch.from_numpy(np.asarray(positions, dtype=np.float64))
    lattice = None if box is None else torch.from_numpy(np.asarray(box, dtype=np.float64))
    found_rows, found_index, found_slopes = [], [], []
    for kind, size in KINDS.items():
        moved = (rows[terms.atoms[kind]] < n_targets).any(axis=1)
        atoms, functions = terms.atoms[kind][moved], N_FUNCTIONS[kind]
        each = slopes(kind, term_vectors(torch.from_numpy(atoms), places, lattice))  # (T, P, k, 3)
        padded = torch.zeros(len(atoms), functions, 4, 3)
        padded[:, :, :size] = each.float()
        row = np.full((len(atoms), 4), n_targets, dtype=np.int64)
        row[:, :size] = np.minimum(rows[atoms], n_targets)
        found_rows.append(torch.from_numpy(np.repeat(row, functions, axis=0)))
        found_index.append(torch.from_numpy(terms.which[kind][moved].reshape(-1, DEPTHS)))
        found_slopes.append(padded.reshape(-1, 4, 3))
    return TermBatch(torch.cat(found_rows), torch.cat(found_index), torch.cat(found_slopes))


def joined(parts: list[TermBatch]) -> TermBatch:
    """Return the terms of several frames as those of one batch; their rows are of the batch already."""
    return TermBatch(*(torch.cat(fields) for fields in zip(*parts, strict=True)))
