"""Which atoms a prediction on some atoms depends on, layer by layer. Compiles to TorchScript."""

from typing import List, Tuple

import torch
from torch import Tensor

from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix


def shells(neighbours: NeighbourMatrix, targets: Tensor, n_layers: int) -> Tuple[Tensor, NeighbourMatrix, List[int]]:
    """Reorder atoms so that each layer runs on leading atoms only.

    A target's output of the last layer needs its neighbours' output of the layer before, and so on: atoms are
    sorted by their number of hops from a target, and layer l of L is computed for those within L - l hops.

    Parameters
    ----------
    neighbours
        Of the whole system, N atoms.
    targets
        (N,) bool, atoms whose prediction is wanted.
    n_layers
        L, message passing layers of the model.

    Returns
    -------
    order : Tensor
        (n,) int64, the atoms the prediction depends on; the targets first, ascending.
    neighbours : NeighbourMatrix
        Rows of the first ``layer_sizes[0]`` of these atoms; indices count along `order`.
    layer_sizes : list of int
        Atoms that layer 1, 2, ... L is computed for; the last entry is the number of targets.
    """
    n_atoms = targets.shape[0]
    hops = torch.full((n_atoms,), n_layers + 1, dtype=torch.int64, device=targets.device)
    reached = targets
    hops[reached] = 0
    for hop in range(1, n_layers + 1):
        seen = neighbours.indices[reached][neighbours.mask[reached]]
        found = torch.zeros_like(targets)
        found[seen] = True
        found = found & (hops > n_layers)
        hops[found] = hop
        reached = found
    sizes: List[int] = []
    for layer in range(1, n_layers + 1):
        sizes.append(int((hops <= n_layers - layer).sum()))
    order = torch.argsort(hops, stable=True)[: int((hops <= n_layers).sum())]
    place = torch.zeros(n_atoms, dtype=torch.int64, device=targets.device)
    place[order] = torch.arange(order.shape[0], device=targets.device)
    rows = order[: sizes[0]]
    mask = neighbours.mask[rows]
    indices = place[neighbours.indices[rows]] * mask
    return order, NeighbourMatrix(indices, neighbours.vectors[rows], mask), sizes
