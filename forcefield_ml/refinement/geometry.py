"""Bonds and clashes: what a move must not spoil, counted, and put right after each step.

A network moves each atom by itself, so that bonds stretch and chains run into each other: by the true vectors of
algorithm 1, too (docs/decisions/0033-refine.md has the numbers). `Geometry.restored` gives every bond and every
distance over one angle the length it had in the input, and keeps atoms that are not bonded from coming nearer than
`CLASH`, by the smallest moves that do it.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any, NamedTuple

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse.linalg import spsolve
from scipy.spatial import cKDTree

from forcefield_ml.nn.atom_types import distinct, partners_of
from forcefield_ml.units import ANGSTROM

BOND_TOLERANCE = 0.04
"""nm by which a bond may be longer than the sum of the covalent radii."""

LINKS = (frozenset({"O3'", "P"}), frozenset({"C", "N"}), frozenset({"SG"}))
"""Names of atoms that bind one residue to another; anything else as near as a bond is a clash."""

CLASH = 0.24
"""nm, below which two heavy atoms that are neither bonded nor bonded to the same atom clash. Hydrogen bonds are longer;
natives of RNA puzzles have at most a few such pairs."""

ITERATIONS = 3
"""Of `Geometry.restored`: linearised, so that each makes up for most of what the one before left."""

_SOFT = 1e-4
"""Added to the diagonal of the equations, as lengths around a ring depend on each other; the diagonal itself is 2."""

_SOFT_CLASH = 0.1
"""The same for clashes: where bonds and angles hold two atoms together, these win."""

_MARGIN = 0.001
"""nm by which clashing atoms are parted more than needed: half of it is lost by rounding in a file."""


class Covalent(NamedTuple):
    """Bonds of N atoms and how far they are from the input's lengths.

    Attributes
    ----------
    bonds
        How many.
    rms
        Root mean square change of length, nm.
    worst
        The largest change, nm, signed.
    worst_bond
        Its two atoms; None where there is no bond.
    """

    bonds: int
    rms: float
    worst: float
    worst_bond: tuple[int, int] | None


class Geometry:
    """Bonds of a structure as it came in, and what is measured by them.

    Parameters
    ----------
    start
        (N, 3) nm, the input.
    species
        (N,) atomic numbers.
    names
        (N,) names of the atoms.
    residue
        (N,) number of each atom's residue.
    staying
        (S, 3) nm, heavy atoms that never move. Those that clash in the input are taken to be bound to what they touch.

    Attributes
    ----------
    bonds : ndarray
        (B, 2) int64.
    """

    def __init__(
        self,
        start: NDArray[np.float64],
        species: NDArray[Any],
        names: list[str],
        residue: NDArray[np.int64],
        staying: NDArray[np.float64] | None = None,
    ):
        self.bonds = find_bonds(start, species, names, residue)
        self._held = np.concatenate([self.bonds, over_angles(len(start), self.bonds)])
        self._lengths = _between(start, self._held)
        self._near = set(map(tuple, self._held.tolist()))
        self._staying = None if staying is None or not len(staying) else cKDTree(staying)
        self._bound = set(self._touching(start))

    def covalent(self, positions: NDArray[np.float64]) -> Covalent:
        """Return how far bonds are from the lengths they came with.

        Parameters
        ----------
        positions
            (N, 3) nm.
        """
        if not len(self.bonds):
            return Covalent(0, 0.0, 0.0, None)
        change = _between(positions, self.bonds) - self._lengths[: len(self.bonds)]
        worst = int(np.abs(change).argmax())
        one, other = self.bonds[worst].tolist()
        return Covalent(len(self.bonds), float(np.sqrt((change**2).mean())), float(change[worst]), (one, other))

    def clashes(self, positions: NDArray[np.float64]) -> int:
        """Return how many pairs of atoms are nearer than `CLASH` and not bonded, nor bonded to the same atom.

        Parameters
        ----------
        positions
            (N, 3) nm.
        """
        return len(self._crowded(positions, CLASH)) + len(set(self._touching(positions)) - self._bound)

    def restored(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return positions near the given ones with the input's bonds and angles, and without new clashes.

        Solved are the linearised equations of all lengths at once, for the smallest sum of squared moves.

        Parameters
        ----------
        positions
            (N, 3) nm.

        References
        ----------
        Ryckaert, Ciccotti and Berendsen, J. Comput. Phys. 23, 327 (1977): SHAKE, which does it pair by pair.
        """
        for _ in range(ITERATIONS):
            crowded = self._crowded(positions, CLASH + _MARGIN)
            positions = _adjusted(
                positions,
                np.concatenate([self._held, crowded]),
                np.concatenate([self._lengths, np.full(len(crowded), CLASH + _MARGIN)]),
                np.repeat([_SOFT, _SOFT_CLASH], [len(self._held), len(crowded)]),
            )
        return positions

    def _crowded(self, positions: NDArray[np.float64], distance: float) -> NDArray[np.int64]:
        """Return (P, 2) pairs that are nearer than a distance and not held."""
        pairs = np.sort(cKDTree(positions).query_pairs(distance, output_type="ndarray"), axis=1)
        free = [pair for pair in pairs.tolist() if tuple(pair) not in self._near]
        return np.array(sorted(free), dtype=np.int64).reshape(-1, 2)

    def _touching(self, positions: NDArray[np.float64]) -> list[tuple[int, int]]:
        """Return pairs of an atom and one that stays that are nearer than `CLASH`."""
        if self._staying is None:
            return []
        near = self._staying.query_ball_point(positions, CLASH)
        return [(atom, other) for atom, others in enumerate(near) for other in others]


def find_bonds(
    positions: NDArray[np.float64], species: NDArray[Any], names: list[str], residue: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return (B, 2) pairs of atoms no farther apart than their covalent radii and `BOND_TOLERANCE` allow.

    Between residues only the atoms of `LINKS` are bonded: a candidate's clashes are no bonds.

    Parameters
    ----------
    positions
        (N, 3) nm.
    species
        (N,) atomic numbers.
    names
        (N,) names of the atoms.
    residue
        (N,) number of each atom's residue.
    """
    radii = np.array([gemmi.Element(int(number)).covalent_r for number in species]) * ANGSTROM
    longest = 2 * float(radii.max(initial=0.0)) + BOND_TOLERANCE
    pairs = cKDTree(positions).query_pairs(longest, output_type="ndarray")
    pairs = pairs[_between(positions, pairs) < radii[pairs].sum(axis=1) + BOND_TOLERANCE]
    joined = [
        (one, other)
        for one, other in pairs.tolist()
        if residue[one] == residue[other] or frozenset((names[one], names[other])) in LINKS
    ]
    return distinct(np.array(joined, dtype=np.int64))


def over_angles(n_atoms: int, bonds: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (A, 2) pairs of atoms that are bonded to the same atom and not to each other.

    Parameters
    ----------
    n_atoms
        N.
    bonds
        (B, 2) of `distinct`.
    """
    bonded = set(map(tuple, bonds.tolist()))
    ends = {pair for own in partners_of(n_atoms, bonds) for pair in combinations(sorted(own), 2)}
    return distinct(np.array(sorted(ends - bonded), dtype=np.int64))


def _adjusted(
    positions: NDArray[np.float64],
    pairs: NDArray[np.int64],
    lengths: NDArray[np.float64],
    soft: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Move atoms so that pairs get these lengths to first order: x + Jᵀ (J Jᵀ + diag(soft))⁻¹ (lengths - distances)."""
    if not len(pairs):
        return positions
    apart = positions[pairs[:, 0]] - positions[pairs[:, 1]]
    distances = np.maximum(np.linalg.norm(apart, axis=1), 1e-9)
    along = apart / distances[:, None]
    rows = np.repeat(np.arange(len(pairs)), 6)
    columns = (3 * pairs[:, :, None] + np.arange(3)).reshape(-1)
    slopes = np.concatenate([along, -along], axis=1).reshape(-1)
    jacobian = sparse.csr_matrix((slopes, (rows, columns)), shape=(len(pairs), positions.size))
    matrix = (jacobian @ jacobian.T + sparse.diags(soft)).tocsc()
    pushes = spsolve(matrix, lengths - distances)
    return np.asarray(positions + (jacobian.T @ pushes).reshape(-1, 3))


def _between(positions: NDArray[np.float64], pairs: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=1))
