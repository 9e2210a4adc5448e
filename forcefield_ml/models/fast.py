"""A small network of scalars and vectors with a smooth cutoff: the first fast architecture.

The first layer sums the elements of the neighbours over a rich radial basis (cheap: one-hot inputs); later layers
exchange scalars and vectors by the same dense convolution as the paper's network and update each atom by a gated
perceptron, as in PaiNN (Schütt et al., arXiv:2102.03150, section 3.2), with all messages linear in the radial units.
"""

import math
from typing import List, Literal, Tuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.graph.search import LIQUID_DENSITY
from forcefield_ml.models.interface import Atoms, Capabilities, Features
from forcefield_ml.nn.convolution import DenseConvolution
from forcefield_ml.nn.edges import edges
from forcefield_ml.nn.embedding import ElementOneHot
from forcefield_ml.nn.linear import SelfInteraction
from forcefield_ml.nn.normalisation import EquivariantNorm
from forcefield_ml.nn.radial import ExponentialNormalBasis, RadialNetwork
from forcefield_ml.nn.spherical import spherical_harmonics


class FastConfig(BaseModel):
    """Settings of the scalar-and-vector network."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    architecture: Literal["fast"] = "fast"
    cutoff: float = Field(0.45, gt=0, description="nm; the graph's smooth edge")
    n_channels: int = Field(32, ge=1, description="scalars, and vectors, on each atom")
    n_layers: int = Field(3, ge=1, description="message passing layers, the first included")
    n_basis: int = Field(32, ge=2, description="radial basis functions")
    n_units: int = Field(12, ge=1, description="radial units of the later layers")
    n_first_units: int = Field(24, ge=1, description="radial units of the first layer")
    filter_order: Literal[1, 2] = Field(1, description="largest harmonic in the messages")
    elements: Tuple[int, ...] = Field((1, 6, 7, 8, 11, 16, 17), description="atomic numbers the model knows")


class FirstLayer(nn.Module):
    """Element-wise densities around each atom, mixed into channels.

    A_i,h,z^l = sum_j H_h(r_ij) Y^l(r_ij) [z_j = z]; scalars and vectors are linear in A^0 and A^1, gated by what the
    scalars and the atom's own element say.
    """

    def __init__(self, config: FastConfig, n_neighbours: float):
        super().__init__()
        n_elements, n_channels = len(config.elements), config.n_channels
        self.n_channels = n_channels
        self.radial = RadialNetwork(config.n_basis, config.n_first_units)
        self.mix = SelfInteraction(config.n_first_units * n_elements, n_channels, 1)
        self.norm = EquivariantNorm(n_channels, 1)
        self.scale = n_neighbours**-0.5
        self.own = nn.Linear(n_elements, n_channels)
        self.update = nn.Sequential(
            nn.Linear(3 * n_channels, 2 * n_channels), nn.SiLU(), nn.Linear(2 * n_channels, 2 * n_channels)
        )

    def forward(self, one_hot: Tensor, basis: Tensor, envelope: Tensor, harmonics: Tensor, indices: Tensor) -> Tensor:
        """Return (n_out, C, 4) for the atoms of `indices` (n_out, K)."""
        n_out, n_neighbours = indices.shape
        units = self.radial(basis, envelope) * self.scale
        filters = (units[:, :, None, :] * harmonics[:, None, :4, :]).view(n_out, -1, n_neighbours)
        seen = one_hot.index_select(0, indices.reshape(-1)).view(n_out, n_neighbours, -1)
        density = torch.bmm(filters, seen).view(n_out, -1, 4, seen.shape[2]).transpose(2, 3).reshape(n_out, -1, 4)
        mixed = self.norm(self.mix(density))
        vectors = mixed[:, :, 1:]
        norms = (vectors.square().sum(-1) + 1e-6).sqrt()
        own = self.own(one_hot[:n_out])
        scalars, gates = self.update(torch.cat([mixed[:, :, 0], norms, own], dim=1)).chunk(2, dim=1)
        return torch.cat([(scalars + own)[:, :, None], vectors * gates[:, :, None]], dim=2)


class InteractionLayer(nn.Module):
    """Messages of scalars and vectors, then a gated update of each atom."""

    def __init__(self, config: FastConfig, n_neighbours: float):
        super().__init__()
        n_channels = config.n_channels
        self.radial = RadialNetwork(config.n_basis, config.n_units)
        self.convolution = DenseConvolution(
            n_channels, config.filter_order, 1, 1, config.n_units, max(1, round(n_neighbours))
        )
        self.norm = EquivariantNorm(n_channels, 1)
        self.mix = nn.Parameter(torch.randn(2 * n_channels, 2 * n_channels) * (2 * n_channels) ** -0.5)
        self.update = nn.Sequential(
            nn.Linear(4 * n_channels, 2 * n_channels), nn.SiLU(), nn.Linear(2 * n_channels, 2 * n_channels)
        )

    def forward(self, features: Tensor, basis: Tensor, envelope: Tensor, harmonics: Tensor, indices: Tensor) -> Tensor:
        """Return (n_out, C, 4) for the atoms of `indices` (n_out, K)."""
        n_out = indices.shape[0]
        units = self.radial(basis[:n_out], envelope[:n_out])
        messages = self.norm(self.convolution(features, units, harmonics[:n_out], indices))
        old = features[:n_out]
        pairs = torch.matmul(self.mix, torch.cat([old[:, :, 1:], messages[:, :, 1:]], dim=1))
        first, second = pairs.chunk(2, dim=1)
        norms = (first.square().sum(-1) + 1e-6).sqrt()
        products = (first * second).sum(-1)
        scalars, gates = self.update(torch.cat([old[:, :, 0], messages[:, :, 0], norms, products], dim=1)).chunk(
            2, dim=1
        )
        return old + torch.cat([scalars[:, :, None], second * gates[:, :, None]], dim=2)


class FastNetwork(nn.Module):
    """Scalars and vectors on a smooth cutoff graph."""

    Config = FastConfig

    def __init__(self, config: FastConfig):
        super().__init__()
        self.cutoff = config.cutoff
        self.filter_order = config.filter_order
        self.one_hot = ElementOneHot(list(config.elements), [])
        self.basis = ExponentialNormalBasis(config.n_basis, r_max=config.cutoff)
        n_neighbours = LIQUID_DENSITY * 4.0 / 3.0 * math.pi * config.cutoff**3
        self.first = FirstLayer(config, n_neighbours)
        self.layers = nn.ModuleList([InteractionLayer(config, n_neighbours) for _ in range(config.n_layers - 1)])
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
        """Return scalars (n, C) and vectors (n, C, 3) on the first n = ``layer_sizes[-1]`` atoms."""
        pairs = edges(neighbours, self.cutoff)
        basis = self.basis(pairs.distances)
        harmonics = spherical_harmonics(pairs.directions, self.filter_order)
        one_hot = self.one_hot(atoms.species).to(neighbours.vectors.dtype)
        indices = neighbours.indices[: layer_sizes[0]]
        features = self.first(one_hot, basis, pairs.envelope, harmonics, indices)
        for layer, interaction in enumerate(self.layers):
            indices = neighbours.indices[: layer_sizes[layer + 1]]
            features = interaction(features, basis, pairs.envelope, harmonics, indices)
        return Features(features[:, :, 0], features[:, :, 1:])
