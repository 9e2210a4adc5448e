"""Parameters of bonded terms, kept by what the atoms of a term are."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.bonded.geometry import N_FUNCTIONS
from forcefield_ml.bonded.terms import KINDS, Terms, find_terms, touching


class Parameters(NamedTuple):
    """The bonded terms of some molecules with their parameters.

    Attributes
    ----------
    atoms
        Kind to (T, k) int64.
    values
        Kind to (T, P) float64; see `geometry`.
    known
        Kind to (T,) bool, False where not even the elements of a term were known, so that it counts for nothing.
    """

    atoms: dict[str, NDArray[np.int64]]
    values: dict[str, NDArray[np.float64]]
    known: dict[str, NDArray[np.bool_]]

    @classmethod
    def none(cls) -> Parameters:
        """Return no terms."""
        no_bonds = np.zeros((0, 2), dtype=np.int64)
        return BondedTable.empty().parameters(np.zeros(0, dtype=np.int64), no_bonds)


class BondedTable(NamedTuple):
    """Parameters by kind and key. Those of a term are the sum over the depths at which its key is known.

    Attributes
    ----------
    keys
        Kind to (K,) int64, sorted; of `terms.Terms`.
    values
        Kind to (K, P) float64; see `geometry`.
    gram
        Kind to (K, P, P), mean products of the functions' forces over the terms of a key; empty where not needed.
    """

    keys: dict[str, NDArray[np.int64]]
    values: dict[str, NDArray[np.float64]]
    gram: dict[str, NDArray[np.float64]]

    @classmethod
    def empty(cls) -> BondedTable:
        """Return a table that knows nothing."""
        none = {kind: np.zeros((0, n), dtype=np.float64) for kind, n in N_FUNCTIONS.items()}
        return cls({kind: np.zeros(0, dtype=np.int64) for kind in KINDS}, none, {})

    def parameters(
        self, species: NDArray[Any], bonds: NDArray[Any], targets: NDArray[np.bool_] | None = None
    ) -> Parameters:
        """Return the terms of some molecules with their parameters.

        Parameters
        ----------
        species
            (N,) atomic numbers.
        bonds
            (B, 2) indices of bonded atoms.
        targets
            (N,) bool, of which each term shall move one at least; None for all terms.
        """
        found = find_terms(species, bonds)
        if targets is not None:
            found = touching(found, targets)
        return Parameters(
            {kind: terms.atoms for kind, terms in found.items()},
            {kind: self.values_of(kind, terms) for kind, terms in found.items()},
            {kind: self._known(kind, terms.keys[:, 0]) for kind, terms in found.items()},
        )

    def values_of(self, kind: str, terms: Terms) -> NDArray[np.float64]:
        """Return (T, P) the parameters of terms of one kind."""
        total = np.zeros((len(terms.atoms), N_FUNCTIONS[kind]))
        keys = self.keys[kind]
        if not len(keys):
            return total
        for depth in range(terms.keys.shape[1]):
            wanted = terms.keys[:, depth]
            known = self._known(kind, wanted)
            place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            total += np.where(known[:, None], self.values[kind][place], 0.0)
        return total

    def _known(self, kind: str, wanted: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.isin(wanted, self.keys[kind])
