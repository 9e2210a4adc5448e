"""The paper's network: a tensor field network over each atom's nearest neighbours.

Townshend et al., "Geometric Prediction: Moving Beyond Scalars" (arXiv:2006.14163), section 4.1 and figure 2. What the
paper leaves open, and what was decided, stands in docs/decisions/0002-paper-network.md.
"""

from typing import List, Literal, Tuple

import torch
from pydantic import Field
from torch import Tensor, nn

from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.models.heads import HeadConfig
from forcefield_ml.models.interface import Atoms, Capabilities, Features
from forcefield_ml.nn.convolution import DenseConvolution, kernels_of
from forcefield_ml.nn.embedding import ElementOneHot
from forcefield_ml.nn.linear import SelfInteraction
from forcefield_ml.nn.nonlinearity import Gate
from forcefield_ml.nn.normalisation import EquivariantNorm
from forcefield_ml.nn.pairs import PairGeometry, Pairs, chunks, rows


class TensorFieldConfig(HeadConfig):
    """Settings of the paper's network."""

    architecture: Literal["tfn"] = "tfn"
    order: Literal[0, 1, 2] = Field(2, description="largest tensor order inside; 0 predicts magnitudes only")
    channels: Tuple[int, ...] = Field((24, 12, 1), description="filters of each convolution layer")
    n_neighbours: int = Field(50, ge=1, description="nearest neighbours of each atom")
    n_basis: int = Field(32, ge=2, description="radial basis functions")
    n_units: int = Field(8, ge=1, description="hidden units of each radial network")
    parity: Literal["O3", "SO3"] = Field("O3", description="O3 respects reflections; SO3 admits cross products")
    elements: Tuple[int, ...] = Field((1, 6, 7, 8, 16), description="atomic numbers in the one-hot input")
    silent_elements: Tuple[int, ...] = Field((11, 17), description="ions: present, but the zero vector as input")


class TensorFieldBlock(nn.Module):
    """Self-interaction, convolution, normalisation, self-interaction, gate.

    Parameters
    ----------
    in_channels, out_channels
        Filters before and after.
    in_order, out_order
        Largest order before and after.
    config
        The network's settings.
    """

    def __init__(self, in_channels: int, out_channels: int, in_order: int, out_order: int, config: TensorFieldConfig):
        super().__init__()
        self.shared_size = (min(in_order, out_order) + 1) ** 2
        self.out_size = (out_order + 1) ** 2
        self.before = SelfInteraction(in_channels, in_channels, in_order)
        self.convolution = DenseConvolution(
            in_channels,
            config.order,
            in_order,
            out_order,
            config.n_basis,
            config.n_units,
            config.n_neighbours,
            config.parity,
        )
        self.own = nn.Parameter(torch.ones(in_channels))
        self.norm = EquivariantNorm(in_channels, out_order)
        self.after = SelfInteraction(in_channels, out_channels, out_order)
        self.gate = Gate(out_channels, out_order)

    def forward(self, features: Tensor, pairs: Pairs) -> Tensor:
        """Return (n_out, out_size, out_channels) for the atoms that have a row in `pairs`."""
        features = self.before(features)
        n_out = pairs.indices.shape[0]
        parts: List[Tensor] = []
        for start, stop in chunks(n_out, self.training):
            parts.append(self._some(features, rows(pairs, start, stop), start, stop))
        return torch.cat(parts)

    def _some(self, features: Tensor, pairs: Pairs, start: int, stop: int) -> Tensor:
        messages = self.convolution(features, pairs)
        # the atom itself: a tensor field network's sum over points runs over j = i too, where Y is a constant
        own = self.own * features[start:stop, : self.shared_size]
        own = nn.functional.pad(own, [0, 0, 0, self.out_size - self.shared_size])
        return self.gate(self.after(self.norm(messages + own)))


class TensorFieldNetwork(nn.Module):
    """Three equivariant convolutions with 24, 12 and 1 filters and six self-interactions."""

    Config = TensorFieldConfig

    def __init__(self, config: TensorFieldConfig):
        super().__init__()
        self.order = config.order
        self.one_hot = ElementOneHot(list(config.elements), list(config.silent_elements))
        self.embed = SelfInteraction(self.one_hot.n_features, config.channels[0], 0)
        blocks = []
        in_channels, in_order = config.channels[0], 0
        for layer, out_channels in enumerate(config.channels):
            last = layer == len(config.channels) - 1
            out_order = min(config.order, 1) if last else config.order
            blocks.append(TensorFieldBlock(in_channels, out_channels, in_order, out_order, config))
            in_channels, in_order = out_channels, out_order
        # the first block mixes the one-hot itself: its leading self-interaction is the embedding
        blocks[0].before = nn.Identity()  # type: ignore[assignment]
        self.blocks = nn.ModuleList(blocks)
        self.geometry = PairGeometry(config.n_basis, 0.8, 0.0, config.order, kernels_of(self))
        self.n_scalars = config.channels[-1]
        self.n_vectors = config.channels[-1] if config.order > 0 else 0

    @staticmethod
    def capabilities(config: TensorFieldConfig) -> Capabilities:
        """Return what tests and guards may expect of this configuration."""
        return Capabilities(
            neighbours="nearest",
            n_layers=len(config.channels),
            n_neighbours=config.n_neighbours,
            cutoff=0.0,
            parity=config.parity,
            smooth=False,
            max_order=config.order,
            elements=tuple(sorted(config.elements + config.silent_elements)),
        )

    def forward(self, atoms: Atoms, neighbours: NeighbourMatrix, layer_sizes: List[int]) -> Features:
        """Return one scalar and one vector (none for order 0) on the first ``layer_sizes[-1]`` atoms."""
        pairs = self.geometry(neighbours)
        features = self.embed(self.one_hot(atoms.species).to(neighbours.vectors.dtype)[:, None, :])
        for layer, block in enumerate(self.blocks):
            features = block(features, rows(pairs, 0, layer_sizes[layer]))
        return Features(features[:, 0], features[:, 1:4])
