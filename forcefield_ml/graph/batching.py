"""Several systems as one: a block-diagonal neighbour matrix."""

from typing import List

import torch
from torch import nn

from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix


def concatenate(matrices: List[NeighbourMatrix]) -> NeighbourMatrix:
    """Return one neighbour matrix over all atoms of all systems; no system sees another.

    Parameters
    ----------
    matrices
        Each with as many rows as its system has atoms; rows may differ in length.
    """
    width = max([m.indices.shape[1] for m in matrices])
    indices, vectors, masks = [], [], []
    offset = 0
    for matrix in matrices:
        missing = width - matrix.indices.shape[1]
        mask = nn.functional.pad(matrix.mask, [0, missing])
        indices.append((nn.functional.pad(matrix.indices, [0, missing]) + offset) * mask)
        vectors.append(nn.functional.pad(matrix.vectors, [0, 0, 0, missing]))
        masks.append(mask)
        offset += matrix.indices.shape[0]
    return NeighbourMatrix(torch.cat(indices), torch.cat(vectors), torch.cat(masks))
