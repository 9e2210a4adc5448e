"""The dense neighbour matrix: who sees whom, and along which vector."""

from typing import NamedTuple

from torch import Tensor


class NeighbourMatrix(NamedTuple):
    """Neighbours of each atom, in rows of equal length.

    Row i lists the neighbours j of atom i; empty places have ``mask`` False, ``indices`` 0 and ``vectors`` 0.
    The layout is dense so that gather, multiply and sum run as batched products, without scatter.

    Attributes
    ----------
    indices
        (N, K) int64, the neighbour's index j.
    vectors
        (N, K, 3), r_j + shift - r_i in nm.
    mask
        (N, K) bool, True where there is a neighbour.
    """

    indices: Tensor
    vectors: Tensor
    mask: Tensor
