"""Algorithm 1 of the paper: for each atom, superpose its native surroundings onto its own and see where it would lie.

| symbol  | here                                                                       |
|---------|----------------------------------------------------------------------------|
| p_c     | positions of the candidate                                                 |
| p_t     | native_positions                                                           |
| N(a)    | the K atoms of the candidate nearest to a, a itself the first of them      |
| T_a     | the rotation and translation that bring N(a)'s native atoms nearest to N(a) |
| v_a     | T_a(p_t) - p_c                                                             |

The paper's formula has the opposite sign, its words and figure 4 this one: v points to where the atom should move.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

NEIGHBOURS = 50
"""K: the network of the paper sees as many."""

UNIQUE = 1e-6
"""Least (s_2 +- s_3) / s_1 of the correlation's singular values; below it more than one rotation is the best."""

CHUNK = 2048
"""Atoms superposed at a time."""


class Vectors(NamedTuple):
    """What algorithm 1 gives for N atoms.

    Attributes
    ----------
    vectors
        (N, 3) float64, in the unit of the positions; zero where none is defined.
    defined
        (N,) bool, False for atoms without a partner and for those whose surroundings define no rotation.
    degenerate
        How many of the latter there are.
    """

    vectors: NDArray[np.float64]
    defined: NDArray[np.bool_]
    degenerate: int


def refinement_vectors(
    positions: NDArray[np.floating],
    native_positions: NDArray[np.floating],
    has_partner: NDArray[np.bool_],
    n_neighbours: int = NEIGHBOURS,
) -> Vectors:
    """Compute the refinement vector of each atom of a candidate.

    Atoms without a partner are nobody's neighbours here, as there is nothing to superpose them with.

    Parameters
    ----------
    positions
        (N, 3) of the candidate.
    native_positions
        (N, 3) of the partners, in the frame of the native; rows without a partner are not read.
    has_partner
        (N,) bool.
    n_neighbours
        K, the atom itself included; all atoms with a partner where they are fewer.

    Returns
    -------
    Vectors
        With fewer than three atoms, or atoms on a line, the rotation is not defined: such an atom gets no vector.
    """
    own = positions[has_partner].astype(np.float64)
    native = native_positions[has_partner].astype(np.float64)
    found = np.zeros((len(own), 3))
    unique = np.zeros(len(own), dtype=bool)
    if len(own) >= 3:
        nearest = nearest_atoms(own, min(n_neighbours, len(own)))
        for first in range(0, len(own), CHUNK):
            chunk = slice(first, first + CHUNK)
            rotation, unique[chunk] = best_rotations(native[nearest[chunk]], own[nearest[chunk]])
            centre, target = native[nearest[chunk]].mean(axis=1), own[nearest[chunk]].mean(axis=1)
            moved = np.einsum("aij,aj->ai", rotation, native[chunk] - centre) + target
            found[chunk] = moved - own[chunk]
    vectors, defined = np.zeros((len(positions), 3)), np.zeros(len(positions), dtype=bool)
    vectors[has_partner] = np.where(unique[:, None], found, 0.0)
    defined[has_partner] = unique
    return Vectors(vectors, defined, int((~unique).sum()))


def nearest_atoms(positions: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return (n, count) indices of the atoms nearest to each of n, itself among them, nearest first.

    Of atoms equally far away those with the lower index come first, so that the order does not depend on the search.
    """
    # a few more than asked for: ties at the edge must be there to be ordered
    distances, indices = cKDTree(positions).query(positions, k=min(count + 4, len(positions)))
    order = np.lexsort((indices, distances), axis=-1)
    return np.take_along_axis(indices, order, axis=-1)[:, :count].astype(np.int64)


def best_rotations(
    mobile: NDArray[np.float64], target: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the rotations that bring sets of points nearest to others once both are centred (Kabsch).

    Parameters
    ----------
    mobile, target
        (n, K, 3).

    Returns
    -------
    rotations : ndarray
        (n, 3, 3), proper ones: a mirror image stays one.
    unique : ndarray
        (n,) bool, False where another rotation would be as good.

    References
    ----------
    Kabsch, Acta Crystallographica A 34, 827 (1978); Umeyama, IEEE Transactions on Pattern Analysis 13, 376 (1991).
    """
    a, b = mobile - mobile.mean(axis=1, keepdims=True), target - target.mean(axis=1, keepdims=True)
    u, s, v = np.linalg.svd(np.einsum("nki,nkj->nij", b, a))
    sign = np.where(np.linalg.det(u) * np.linalg.det(v) < 0, -1.0, 1.0)
    u[:, :, 2] *= sign[:, None]
    unique = s[:, 1] + sign * s[:, 2] > UNIQUE * s[:, 0]
    return u @ v, unique
