"""A small network of scalars and vectors with a smooth cutoff: the first fast architecture.

The first layer sums the elements of the neighbours over a rich radial basis (cheap: one-hot inputs); later layers
exchange scalars and vectors by the same dense convolution as the paper's network and update each atom by a gated
perceptron, as in PaiNN (Schütt et al., arXiv:2102.03150, section 3.2), with all messages linear in the radial units.
"""

import math
from typing import Final, List, Literal, Tuple

import torch
from pydantic import Field
from torch import Tensor, nn

from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.graph.search import LIQUID_DENSITY
from forcefield_ml.models.heads import HeadConfig
from forcefield_ml.models.interface import Atoms, Capabilities, Features
from forcefield_ml.nn.convolution import DenseConvolution, ElementConvolution, kernels_of
from forcefield_ml.nn.embedding import ElementOneHot, TypeEmbedding
from forcefield_ml.nn.linear import by_order
from forcefield_ml.nn.normalisation import EquivariantNorm
from forcefield_ml.nn.pairs import PairGeometry, Pairs, chunks, rows


class FastConfig(HeadConfig):
    """Settings of the scalar-and-vector network."""

    architecture: Literal["fast"] = "fast"
    cutoff: float = Field(0.45, gt=0, description="nm; the graph's smooth edge")
    n_channels: int = Field(32, ge=1, description="scalars, and vectors, on each atom")
    n_layers: int = Field(3, ge=1, description="message passing layers, the first included")
    n_basis: int = Field(32, ge=2, description="radial basis functions")
    n_units: int = Field(12, ge=1, description="radial units of the later layers")
    n_first_units: int = Field(24, ge=1, description="radial units of the first layer")
    filter_order: Literal[1, 2] = Field(2, description="largest harmonic in the messages")
    elements: Tuple[int, ...] = Field((1, 6, 7, 8, 11, 16, 17), description="atomic numbers the model knows")
    type_depth: int = Field(
        0, ge=0, le=4, description="bonds up to which an atom's bonded surroundings are told; 0: its element alone"
    )
    bound: float = Field(
        0.0,
        ge=0,
        description="length that no feature exceeds, reached smoothly, so that no geometry has forces without limit; "
        "30 is three times what is usual; 0: none",
    )
    n_types: int = Field(512, ge=1, description="room for atom types, the most frequent ones; see nn.atom_types")


class FirstLayer(nn.Module):
    """Element-wise densities around each atom, mixed into channels and gated by the scalars and by what the atom is."""

    typed: Final[bool]

    def __init__(self, config: FastConfig, n_neighbours: float):
        super().__init__()
        n_elements, n_channels = len(config.elements), config.n_channels
        self.bound = config.bound
        self.convolution = ElementConvolution(
            n_elements, config.n_basis, config.n_first_units, n_channels, n_neighbours
        )
        self.norm = EquivariantNorm(n_channels, 1)
        self.own = nn.Linear(n_elements, n_channels)
        self.typed = config.type_depth > 0
        if self.typed:
            self.types = TypeEmbedding(config.type_depth, config.n_types, n_channels)
        self.update = nn.Sequential(
            nn.Linear(3 * n_channels, 2 * n_channels), nn.SiLU(), nn.Linear(2 * n_channels, 2 * n_channels)
        )

    def forward(self, codes: Tensor, one_hot: Tensor, pairs: Pairs) -> Tensor:
        """Return (n_out, 4, C) for the atoms that have a row in `pairs`."""
        kinds = one_hot.argmax(1).to(torch.int32)
        own = self.own(one_hot[: pairs.indices.shape[0]])
        if self.typed:
            own = own + self.types(codes[: pairs.indices.shape[0]])
        parts: List[Tensor] = []
        for start, stop in chunks(pairs.indices.shape[0], self.training):
            parts.append(self._some(own[start:stop], one_hot, kinds, rows(pairs, start, stop)))
        return torch.cat(parts)

    def _some(self, own: Tensor, one_hot: Tensor, kinds: Tensor, pairs: Pairs) -> Tensor:
        mixed = self.norm(self.convolution(one_hot, kinds, pairs))
        inner, vectors = by_order(mixed, 1)
        norms = (vectors.square().sum(1) + 1e-6).sqrt()
        scalars, gates = self.update(torch.cat([inner[:, 0], norms, own], dim=1)).chunk(2, dim=1)
        return bounded(scalars + own, vectors * gates[:, None], self.bound)


def bounded(scalars: Tensor, vectors: Tensor, bound: float) -> Tensor:
    """Return features (n, 4, C) of scalars (n, C) and vectors (n, 3, C), none longer than `bound`; 0: as they are.

    A feature x becomes x / sqrt(1 + |x|^2 / bound^2), smooth and equivariant. Products of features double their degree
    with every layer, so that without this a geometry unlike any in training has forces a million times too large.
    """
    if bound > 0.0:
        scalars = scalars * (1.0 + (scalars / bound).square()).rsqrt()
        vectors = vectors * (1.0 + (vectors / bound).square().sum(1, keepdim=True)).rsqrt()
    return torch.cat([scalars[:, None], vectors], dim=1)


class InteractionLayer(nn.Module):
    """Messages of scalars and vectors, then a gated update of each atom."""

    def __init__(self, config: FastConfig, n_neighbours: float):
        super().__init__()
        n_channels = config.n_channels
        self.bound = config.bound
        self.convolution = DenseConvolution(
            n_channels, config.filter_order, 1, 1, config.n_basis, config.n_units, max(1, round(n_neighbours))
        )
        self.norm = EquivariantNorm(n_channels, 1)
        self.mix = nn.Parameter(torch.randn(2 * n_channels, 2 * n_channels) * (2 * n_channels) ** -0.5)
        self.update = nn.Sequential(
            nn.Linear(4 * n_channels, 2 * n_channels), nn.SiLU(), nn.Linear(2 * n_channels, 2 * n_channels)
        )

    def forward(self, features: Tensor, pairs: Pairs) -> Tensor:
        """Return (n_out, 4, C) for the atoms that have a row in `pairs`."""
        parts: List[Tensor] = []
        for start, stop in chunks(pairs.indices.shape[0], self.training):
            parts.append(self._some(features, rows(pairs, start, stop), start, stop))
        return torch.cat(parts)

    def _some(self, features: Tensor, pairs: Pairs, start: int, stop: int) -> Tensor:
        messages, arrows = by_order(self.norm(self.convolution(features, pairs)), 1)
        old, old_vectors = by_order(features[start:stop], 1)
        mixed = nn.functional.linear(torch.cat([old_vectors, arrows], dim=2), self.mix)
        first, second = mixed.chunk(2, dim=2)
        norms = (first.square().sum(1) + 1e-6).sqrt()
        products = (first * second).sum(1)
        scalars, gates = self.update(torch.cat([old[:, 0], messages[:, 0], norms, products], dim=1)).chunk(2, dim=1)
        return bounded(old[:, 0] + scalars, old_vectors + second * gates[:, None], self.bound)


class FastNetwork(nn.Module):
    """Scalars and vectors on a smooth cutoff graph."""

    Config = FastConfig

    def __init__(self, config: FastConfig):
        super().__init__()
        self.one_hot = ElementOneHot(list(config.elements), [])
        n_neighbours = LIQUID_DENSITY * 4.0 / 3.0 * math.pi * config.cutoff**3
        self.first = FirstLayer(config, n_neighbours)
        self.layers = nn.ModuleList([InteractionLayer(config, n_neighbours) for _ in range(config.n_layers - 1)])
        self.geometry = PairGeometry(
            config.n_basis, config.cutoff, config.cutoff, config.filter_order, kernels_of(self)
        )
        self.n_scalars = config.n_channels
        self.n_vectors = config.n_channels

    @staticmethod
    def capabilities(config: FastConfig) -> Capabilities:
        """Return what tests and guards may expect of this configuration."""
        return Capabilities(
            neighbours="cutoff",
            n_layers=config.n_layers,
            n_neighbours=0,
            cutoff=config.cutoff,
            parity="O3",
            smooth=True,
            max_order=max(1, config.filter_order),
            elements=tuple(sorted(config.elements)),
        )

    def forward(self, atoms: Atoms, neighbours: NeighbourMatrix, layer_sizes: List[int]) -> Features:
        """Return scalars (n, C) and vectors (n, 3, C) on the first n = ``layer_sizes[-1]`` atoms."""
        pairs = self.geometry(neighbours)
        one_hot = self.one_hot(atoms.species).to(neighbours.vectors.dtype)
        features = self.first(atoms.species, one_hot, rows(pairs, 0, layer_sizes[0]))
        for layer, interaction in enumerate(self.layers):
            features = interaction(features, rows(pairs, 0, layer_sizes[layer + 1]))
        return Features(features[:, 0], features[:, 1:])
