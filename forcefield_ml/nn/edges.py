"""What every layer needs of the pairs: distances, directions, and how far a pair counts."""

from typing import NamedTuple

import torch
from torch import Tensor

from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.nn.radial import cosine_envelope


class Edges(NamedTuple):
    """Geometry of the neighbour matrix.

    Attributes
    ----------
    distances
        (n, K) nm, 1 where there is no neighbour, so that gradients stay finite.
    directions
        (n, K, 3), unit vectors from an atom to its neighbour, zero where there is none.
    envelope
        (n, K): 1 for a neighbour, 0 for an empty place; falling smoothly to 0 at the cutoff if the graph has one.
    """

    distances: Tensor
    directions: Tensor
    envelope: Tensor


def edges(neighbours: NeighbourMatrix, cutoff: float) -> Edges:
    """Return the geometry of the pairs.

    Parameters
    ----------
    neighbours
        (n, K).
    cutoff
        nm; 0 for a nearest-K graph, which has no smooth edge.
    """
    squared = neighbours.vectors.square().sum(-1)
    distances = torch.where(neighbours.mask, squared, torch.ones_like(squared)).sqrt()
    directions = neighbours.vectors / distances[:, :, None]
    envelope = neighbours.mask.to(distances.dtype)
    if cutoff > 0.0:
        envelope = envelope * cosine_envelope(distances, cutoff)
    return Edges(distances, directions, envelope)
