"""Elements as numbers a network can use."""

from typing import List

import torch
from torch import Tensor, nn


class ElementOneHot(nn.Module):
    """One-hot of the element; elements in `silent` are known but carry no feature, as ions in the paper.

    Parameters
    ----------
    elements
        Atomic numbers that have a place in the vector.
    silent
        Atomic numbers that become the zero vector.

    Raises
    ------
    ValueError
        When called with an element that is in neither list.
    """

    known: Tensor
    table: Tensor

    def __init__(self, elements: List[int], silent: List[int]):
        super().__init__()
        self.n_features = len(elements)
        known = torch.zeros(119, dtype=torch.bool)
        known[elements + silent] = True
        table = torch.zeros(119, len(elements))
        table[elements, torch.arange(len(elements))] = 1.0
        self.register_buffer("known", known, persistent=False)
        self.register_buffer("table", table, persistent=False)

    def forward(self, species: Tensor) -> Tensor:
        """Return (n, n_features) for atomic numbers (n,)."""
        if not bool(self.known[species].all()):
            raise ValueError(
                "this model does not know the element with atomic number "
                + str(int(species[~self.known[species]][0]))
                + "; it was not in its training data"
            )
        return self.table[species]
