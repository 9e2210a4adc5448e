"""The atoms on which a model errs most, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.units import MEV_PER_ANGSTROM
from forcefield_ml.validation.forces.groups import CLASSES, ProteinAtoms

SHOWN = 20


def worst_atoms(
    predicted: NDArray[Any],
    target: NDArray[Any],
    entry: NDArray[Any],
    atom: NDArray[Any],
    described: Mapping[int, ProteinAtoms],
    names: list[str],
    count: int = SHOWN,
) -> list[dict[str, Any]]:
    """Return the atoms with the largest mean error over their frames, worst first.

    Parameters
    ----------
    predicted
        (m, 3) forces or (m,) magnitudes, kJ/mol/nm; the error is |F_p - F_t| or, of magnitudes, ||F_p| - |F_t||.
    target
        (m, 3) true forces, kJ/mol/nm.
    entry, atom, described
        As in `groups.by_class`.
    names
        Of the entries, by number.
    count
        Most atoms to return.

    Returns
    -------
    list of dict
        ``atom`` (such as GLU7:OE1), ``entry``, ``frames``, ``error``, ``true`` and ``predicted`` (mean magnitudes,
        meV/Å), ``place`` (of the atom among the marked ones), and the atom's classes under ``classes``.
    """
    true = np.linalg.norm(target, axis=1)
    if predicted.ndim == 1:
        given, error = predicted, np.abs(predicted - true)
    else:
        given, error = np.linalg.norm(predicted, axis=1), np.linalg.norm(predicted - target, axis=1)
    pairs, row, frames = np.unique(np.stack([entry, atom], axis=1), axis=0, return_inverse=True, return_counts=True)

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        return np.bincount(row.ravel(), values.astype(np.float64), len(pairs)) / frames * MEV_PER_ANGSTROM

    errors, trues, givens = mean(error), mean(true), mean(given)
    found = []
    for which in np.argsort(-errors, kind="stable")[:count]:
        atoms = described[int(pairs[which, 0])]
        place = int(np.searchsorted(atoms.number, pairs[which, 1]))
        found.append(
            {
                "atom": atoms.label(place),
                "entry": names[int(pairs[which, 0])],
                "frames": int(frames[which]),
                "error": float(errors[which]),
                "true": float(trues[which]),
                "predicted": float(givens[which]),
                "place": place,
                "classes": {kind: str(atoms.classes[kind][place]) for kind in CLASSES},
            }
        )
    return found
