"""Least squares for the parameters of bonded terms, from elements to surroundings.

First the parameters of terms that differ by their elements are fitted to the forces, then corrections for those that
differ by surroundings of one bond to what is left, then of two. Each step is one linear system, with a ridge that keeps
rare terms near what their more frequent kin have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy.linalg
import scipy.sparse
import torch
from numpy.typing import NDArray

from forcefield_ml.bonded.geometry import N_FUNCTIONS, slopes, term_vectors
from forcefield_ml.bonded.module import require_room
from forcefield_ml.bonded.table import BondedTable
from forcefield_ml.bonded.terms import DEPTHS, KINDS, Terms

RIDGE = {"bond": 1e-7, "angle": 1e-7, "proper": 1e-2, "improper": 1e-2}
"""Times the mean diagonal of each function's block. More than that could not tell a bond's stiffness from its length;
less than that gives a torsion, of which the frames show some conformers only, huge terms that cancel there and nowhere
else."""

FEWEST = 20
"""Terms in all frames that must have a key: what fewer have is taken for their kin."""


FEWEST_NEW = 8
"""The same where keys are added to a trained model."""


class Frame(NamedTuple):
    """One frame to fit to.

    Attributes
    ----------
    terms
        Kind to terms, of `terms.find_terms`; shared by the frames of an entry.
    positions
        (N, 3) nm.
    box
        (3, 3) nm or None.
    forces
        (N, 3) kJ/mol/nm.
    targets
        (N,) bool, atoms whose forces count.
    """

    terms: dict[str, Terms]
    positions: NDArray[Any]
    box: NDArray[Any] | None
    forces: NDArray[Any]
    targets: NDArray[np.bool_]


def fit(frames: Callable[[], Iterable[Frame]], ridge: Mapping[str, float] = RIDGE, fewest: int = FEWEST) -> BondedTable:
    """Return the parameters that leave least of the forces.

    Parameters
    ----------
    frames
        Gives the frames, once for each depth.
    ridge, fewest
        See `RIDGE` and `FEWEST`.

    Raises
    ------
    ConfigError
        If there are more kinds of terms than a model has room for.
    """
    table = BondedTable.empty()
    for depth in range(DEPTHS):
        table = _fitted(frames, table, depth, ridge, fewest)
    return table._replace(gram=_gram(frames(), table))


def unknown(
    frames: Callable[[], Iterable[Frame]],
    table: BondedTable,
    ridge: Mapping[str, float] = RIDGE,
    fewest: int = FEWEST_NEW,
) -> BondedTable:
    """Return the keys that a table lacks.

    Those of elements are fitted: no network makes up for a bond. Corrections to them for their surroundings begin at
    zero, so that such terms are at first what their kin are: a fit to what the table leaves would give them what the
    trained network, which is not at hand here, has learnt already.

    Parameters
    ----------
    frames
        As for `fit`.
    table
        Of the model.
    ridge, fewest
        See `RIDGE` and `FEWEST_NEW`.
    """
    fitted = _fitted(frames, table, 0, ridge, fewest)
    keys, values = {}, {}
    for kind in KINDS:
        deeper = [_columns(frames(), depth, fewest).keys[kind] for depth in range(1, DEPTHS)]
        keys[kind] = np.setdiff1d(np.concatenate([fitted.keys[kind], *deeper]), table.keys[kind])
        values[kind] = np.zeros((len(keys[kind]), N_FUNCTIONS[kind]))
        here = np.isin(keys[kind], fitted.keys[kind])
        values[kind][here] = fitted.values[kind][np.searchsorted(fitted.keys[kind], keys[kind][here])]
    found = BondedTable(keys, values, {})
    return found._replace(gram=_gram(frames(), found))


def _fitted(
    frames: Callable[[], Iterable[Frame]], table: BondedTable, depth: int, ridge: Mapping[str, float], fewest: int
) -> BondedTable:
    """Return a table with the keys of a depth that it lacks, fitted to what it leaves."""
    columns = _columns(frames(), depth, fewest, table)
    if not columns.size:
        return table
    for kind, keys in columns.keys.items():  # before a system of equations that would not fit into memory
        require_room(kind, len(table.keys[kind]) + len(keys))
    normal, right = np.zeros((columns.size, columns.size)), np.zeros(columns.size)
    for frame in frames():
        design, rest = _design(frame, table, columns, depth)
        normal += (design.T @ design).toarray()
        right += design.T @ rest
    return _joined(table, columns, _solve(normal, right, columns, ridge))


def residual(frames: Callable[[], Iterable[Frame]], table: BondedTable) -> float:
    """Return the root mean square norm of the forces that a table leaves on the targets, kJ/mol/nm."""
    total, count = 0.0, 0
    for frame in frames():
        _, rest = _design(frame, table, _Columns({kind: np.zeros(0, dtype=np.int64) for kind in KINDS}, {}, 0), 0)
        total, count = total + float((rest**2).sum()), count + len(rest) // 3
    return float(np.sqrt(total / max(count, 1)))


class _Columns(NamedTuple):
    """Which column of the linear system a parameter is: `first` of a kind, then key by key its functions."""

    keys: dict[str, NDArray[np.int64]]
    first: dict[str, int]
    size: int


def _columns(frames: Iterable[Frame], depth: int, fewest: int, table: BondedTable | None = None) -> _Columns:
    """Return the columns of the keys that enough terms have and a table has not."""
    known = BondedTable.empty() if table is None else table
    counts: dict[str, dict[int, int]] = {kind: {} for kind in KINDS}
    for frame in frames:
        for kind, terms in frame.terms.items():
            unique, number = np.unique(terms.keys[:, depth], return_counts=True)
            for key, count in zip(unique.tolist(), number.tolist(), strict=True):
                counts[kind][key] = counts[kind].get(key, 0) + count
    keys, first, size = {}, {}, 0
    for kind in KINDS:
        found = np.array(sorted(key for key, count in counts[kind].items() if count >= fewest), dtype=np.int64)
        keys[kind] = np.setdiff1d(found, known.keys[kind])
        first[kind] = size
        size += len(keys[kind]) * N_FUNCTIONS[kind]
    return _Columns(keys, first, size)


def _design(
    frame: Frame, table: BondedTable, columns: _Columns, depth: int
) -> tuple[scipy.sparse.csr_matrix, NDArray[np.float64]]:
    """Return the forces of each parameter on the targets (3 n, P) and what is left of the true ones (3 n,)."""
    positions = torch.from_numpy(np.asarray(frame.positions, dtype=np.float64))
    box = None if frame.box is None else torch.from_numpy(np.asarray(frame.box, dtype=np.float64))
    n_atoms = len(positions)
    rest = np.asarray(frame.forces, dtype=np.float64).copy()
    rows, places, entries = [], [], []
    for kind, terms in frame.terms.items():
        if not len(terms.atoms):
            continue
        each = slopes(kind, term_vectors(torch.from_numpy(terms.atoms), positions, box)).numpy()  # (T, P, k, 3)
        known = table.values_of(kind, terms)
        for p in range(N_FUNCTIONS[kind]):
            np.add.at(rest, terms.atoms.reshape(-1), (known[:, p, None, None] * each[:, p]).reshape(-1, 3))
        keys = columns.keys[kind]
        if not len(keys):
            continue
        here = np.isin(terms.keys[:, depth], keys)
        place = np.searchsorted(keys, terms.keys[here, depth]) * N_FUNCTIONS[kind] + columns.first[kind]
        atoms = terms.atoms[here]
        row = (3 * atoms[:, :, None] + np.arange(3)).reshape(-1)
        for p in range(N_FUNCTIONS[kind]):
            rows.append(row)
            places.append(np.repeat(place + p, 3 * atoms.shape[1]))
            entries.append(-each[here, p].reshape(-1))
    if not entries:
        entries, rows, places = [np.zeros(0)], [np.zeros(0, dtype=int)], [np.zeros(0, dtype=int)]
    design = scipy.sparse.csr_matrix(
        (np.concatenate(entries), (np.concatenate(rows), np.concatenate(places))), shape=(3 * n_atoms, columns.size)
    )
    chosen = np.repeat(frame.targets, 3)
    return design[chosen], rest.reshape(-1)[chosen]


def _solve(
    normal: NDArray[np.float64], right: NDArray[np.float64], columns: _Columns, ridge: Mapping[str, float]
) -> NDArray[np.float64]:
    diagonal = np.diag(normal).copy()
    for kind, keys in columns.keys.items():
        for p in range(N_FUNCTIONS[kind]):
            block = columns.first[kind] + p + N_FUNCTIONS[kind] * np.arange(len(keys))
            if len(block):
                normal[block, block] += ridge[kind] * max(float(diagonal[block].mean()), 1e-12)
    return np.asarray(scipy.linalg.solve(normal, right, assume_a="pos", overwrite_a=True))


def _joined(table: BondedTable, columns: _Columns, solved: NDArray[np.float64]) -> BondedTable:
    keys, values = {}, {}
    for kind in KINDS:
        size = N_FUNCTIONS[kind]
        new = solved[columns.first[kind] :][: len(columns.keys[kind]) * size].reshape(-1, size)
        all_keys = np.concatenate([table.keys[kind], columns.keys[kind]])
        order = np.argsort(all_keys)
        keys[kind] = all_keys[order]
        values[kind] = np.concatenate([table.values[kind], new])[order]
    return BondedTable(keys, values, {})


def _gram(frames: Iterable[Frame], table: BondedTable) -> dict[str, NDArray[np.float64]]:
    """Return kind to (K, P, P): products of the functions' forces, the mean over the terms of each key."""
    total = {kind: np.zeros((len(keys), N_FUNCTIONS[kind], N_FUNCTIONS[kind])) for kind, keys in table.keys.items()}
    count = {kind: np.zeros(len(keys)) for kind, keys in table.keys.items()}
    for frame in frames:
        positions = torch.from_numpy(np.asarray(frame.positions, dtype=np.float64))
        box = None if frame.box is None else torch.from_numpy(np.asarray(frame.box, dtype=np.float64))
        for kind, terms in frame.terms.items():
            if not len(terms.atoms):
                continue
            each = slopes(kind, term_vectors(torch.from_numpy(terms.atoms), positions, box)).flatten(2)
            products = (each @ each.mT).numpy()
            for depth in range(DEPTHS):
                here = np.isin(terms.keys[:, depth], table.keys[kind])
                row = np.searchsorted(table.keys[kind], terms.keys[here, depth])
                np.add.at(total[kind], row, products[here])
                np.add.at(count[kind], row, 1.0)
    return {kind: total[kind] / np.maximum(count[kind], 1.0)[:, None, None] for kind in table.keys}
