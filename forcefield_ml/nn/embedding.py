"""Elements and atom types as numbers a network can use."""

from collections.abc import Iterable
from typing import Any, Final, List

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forcefield_ml.nn.atom_types import CODE_STEP, FEWEST, AtomTypes

FEWEST_NEW = 8
"""Atoms that must have a type that is added to those of a trained model: it begins as what its kin are."""


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
    code_step: Final[int] = CODE_STEP

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
        """Return (n, n_features) for atomic numbers (n,), or codes of atoms with a type."""
        species = species % self.code_step
        if not bool(self.known[species].all()):
            raise ValueError(
                "this model does not know the element with atomic number "
                + str(int(species[~self.known[species]][0]))
                + "; it was not in its training data"
            )
        return self.table[species]


class TypeEmbedding(nn.Module):
    """Learnt features of an atom's type: the sum of those of its surroundings at every depth.

    What only a few atoms have is told apart by a small addition to what many have; an unknown type is what is known of
    it at fewer bonds, and without any the features are zero.

    Parameters
    ----------
    depth
        Bonds that types go.
    room
        Most types.
    n_features
        Of each atom.
    """

    ancestry: Tensor
    hashes: Tensor
    depths: Tensor
    parents: Tensor
    code_step: Final[int] = CODE_STEP

    def __init__(self, depth: int, room: int, n_features: int):
        super().__init__()
        self.depth, self.room = depth, room
        self.weights = nn.Parameter(0.3 * torch.randn(room, n_features))
        self.register_buffer("ancestry", torch.zeros(room + 1, depth, dtype=torch.int64))
        for name in ("hashes", "depths", "parents"):
            self.register_buffer(name, torch.zeros(room, dtype=torch.int64))

    def forward(self, codes: Tensor) -> Tensor:
        """Return (n, n_features) for codes (n,)."""
        types = torch.div(codes, self.code_step, rounding_mode="floor")
        table = torch.cat([torch.zeros_like(self.weights[:1]), self.weights])
        found = table.index_select(0, self.ancestry[types].reshape(-1))
        return found.view(codes.shape[0], self.depth, -1).sum(1)

    @torch.jit.unused
    def set_types(self, types: AtomTypes) -> None:
        """Learn features of these types."""
        n_types = len(types.hashes)
        self.ancestry[: n_types + 1] = torch.from_numpy(types.ancestry(self.depth))
        for name in types._fields:
            self.get_buffer(name)[:n_types] = torch.from_numpy(getattr(types, name))


def set_types(network: nn.Module, molecules: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> None:
    """Let a network know the atom types of some molecules, where it wants any.

    Parameters
    ----------
    network
        With a `TypeEmbedding`, or without.
    molecules
        Species (N,) and bonds (B, 2) of each.
    """
    _grow(network, AtomTypes.none(), molecules, FEWEST)


def add_types(network: nn.Module, molecules: Iterable[tuple[NDArray[Any], NDArray[Any]]]) -> int:
    """Let a network know the types of some molecules besides those it knows; at first they add no features.

    So predictions stay as they are, bit for bit.

    Parameters
    ----------
    network, molecules
        As for `set_types`.

    Returns
    -------
    int
        Types that are new.
    """
    known = types_of(network)
    if known is None:
        return 0
    types = _grow(network, known, molecules, FEWEST_NEW)
    for part in network.modules():
        if isinstance(part, TypeEmbedding):
            part.weights.data[len(known.hashes) : len(types.hashes)] = 0.0
    return len(types.hashes) - len(known.hashes)


def _grow(
    network: nn.Module, known: AtomTypes, molecules: Iterable[tuple[NDArray[Any], NDArray[Any]]], fewest: int
) -> AtomTypes:
    parts = [part for part in network.modules() if isinstance(part, TypeEmbedding)]
    if parts:
        known = known.grown(molecules, parts[0].depth, parts[0].room, fewest)
    for part in parts:
        part.set_types(known)
    return known


def types_of(module: nn.Module) -> AtomTypes | None:
    """Return the atom types that a network knows, compiled or not; None where it knows elements alone."""
    buffers = dict(module.named_buffers())
    places = sorted(name[: -len("ancestry")] for name in buffers if name.endswith("types.ancestry"))
    if not places:
        return None
    n_types = int((buffers[places[0] + "depths"] > 0).sum())
    return AtomTypes(*(buffers[places[0] + name][:n_types].cpu().numpy() for name in AtomTypes._fields))
