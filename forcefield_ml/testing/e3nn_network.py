"""The paper's network in plain e3nn, with the weights of ours: independent truth of its numbers, peer of its speed.

Pairs are a list of edges, messages are e3nn's tensor product with weights per edge, and a scatter adds them up.
e3nn's parts stand wherever they mean the same. Three do not, and a few lines replace them:

- `e3nn.nn.Gate` scales its activations to unit second moment; ours are the plain SiLU and sigmoid.
- `e3nn.nn.FullyConnectedNet` scales likewise and has no bias: the radial network is made of torch's layers.
- `e3nn.o3.Linear` mixes channels with each other; the atom's own term has one factor per channel, for all orders.

`e3nn.nn.BatchNorm` means the same but for its running statistics, which average the first batch in with the initial
values, where ours begin with the first batch.

Importing this module imports e3nn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from e3nn import o3
from e3nn.nn import BatchNorm
from torch import Tensor, nn

from forcefield_ml.graph import NeighbourMatrix
from forcefield_ml.models import Model, parse_config
from forcefield_ml.models.tfn import TensorFieldConfig
from forcefield_ml.nn.spherical import coupling_paths


def edge_list(neighbours: NeighbourMatrix) -> tuple[Tensor, Tensor]:
    """Return a neighbour matrix as edges, sorted by the receiving atom.

    Parameters
    ----------
    neighbours
        (N, K).

    Returns
    -------
    edge_index : Tensor
        (2, E): the neighbour j, which sends, and the atom i, which receives.
    vectors : Tensor
        (E, 3) nm, from i to j.
    """
    receivers = torch.nonzero(neighbours.mask)[:, 0]
    return torch.stack([neighbours.indices[neighbours.mask], receivers]), neighbours.vectors[neighbours.mask]


def _irreps(n_channels: int, order: int, parity: str) -> o3.Irreps:
    """Return `n_channels` of every order up to `order`; without reflections all count as even, so that all couple."""
    odd = -1 if parity == "O3" else 1
    return o3.Irreps([(n_channels, (degree, odd**degree)) for degree in range(order + 1)])


class _Gate(nn.Module):
    """Scalars through SiLU, every other irrep times the sigmoid of a linear mix of the scalars."""

    def __init__(self, irreps: o3.Irreps):
        super().__init__()
        self.n_scalars = irreps[0].mul
        self.gated = len(irreps) > 1
        if self.gated:
            irreps_gates = o3.Irreps([(irreps[1:].num_irreps, (0, 1))])
            self.gates = o3.Linear(irreps[:1], irreps_gates, biases=True)
            self.product = o3.ElementwiseTensorProduct(irreps[1:], irreps_gates)

    def forward(self, features: Tensor) -> Tensor:
        """Return features of the same irreps."""
        scalars = features[:, : self.n_scalars]
        outputs = [nn.functional.silu(scalars)]
        if self.gated:
            outputs.append(self.product(features[:, self.n_scalars :], torch.sigmoid(self.gates(scalars))))
        return torch.cat(outputs, dim=1)


class _Block(nn.Module):
    """Self-interaction (but for the first block), convolution, the atom's own term, norm, self-interaction, gate."""

    channel: Tensor

    def __init__(
        self, in_channels: int, out_channels: int, in_order: int, out_order: int, first: bool, config: TensorFieldConfig
    ):
        super().__init__()
        irreps_in = _irreps(in_channels, in_order, config.parity)
        irreps_filter = _irreps(1, config.order, config.parity)
        irreps_convolved = _irreps(in_channels, out_order, config.parity)
        irreps_out = _irreps(out_channels, out_order, config.parity)
        instructions = [
            (i, f, o, "uvu", True) for f, i, o in coupling_paths(config.order, in_order, out_order, config.parity)
        ]
        self.before = nn.Identity() if first else o3.Linear(irreps_in, irreps_in, biases=True)
        self.product = o3.TensorProduct(
            irreps_in, irreps_filter, irreps_convolved, instructions, shared_weights=False, internal_weights=False
        )
        self.radial = nn.Sequential(
            nn.Linear(config.n_basis, config.n_units),
            nn.SiLU(),
            nn.Linear(config.n_units, self.product.weight_numel, bias=False),
        )
        self.n_neighbours = config.n_neighbours
        self.out_size = irreps_convolved.dim
        self.own = nn.Parameter(torch.ones(in_channels))
        shared = irreps_in[: out_order + 1]
        # (shared.dim,): which channel a component belongs to
        channel = torch.cat([torch.arange(mul).repeat_interleave(irrep.dim) for mul, irrep in shared])
        self.register_buffer("channel", channel, persistent=False)
        self.norm = BatchNorm(irreps_convolved, eps=1e-6, affine=False)
        self.after = o3.Linear(irreps_convolved, irreps_out, biases=True)
        self.gate = _Gate(irreps_out)

    def forward(self, features: Tensor, basis: Tensor, harmonics: Tensor, edge_index: Tensor) -> Tensor:
        """Return (n, irreps_out) for features (n, irreps_in), basis (E, n_basis) and harmonics (E, (order + 1)^2)."""
        features = self.before(features)
        messages = self.product(features[edge_index[0]], harmonics, self.radial(basis))
        summed = messages.new_zeros(features.shape[0], self.out_size).index_add(0, edge_index[1], messages)
        own = features[:, : len(self.channel)] * self.own[self.channel]
        own = nn.functional.pad(own, [0, self.out_size - own.shape[1]])
        return self.gate(self.after(self.norm(summed / math.sqrt(self.n_neighbours) + own)))


class PlainTensorFieldNetwork(nn.Module):
    """`models.tfn.TensorFieldNetwork` with its head, for whole systems, in e3nn.

    Parameters
    ----------
    config
        The network's settings. `from_model` makes one with a model's weights.
    """

    centres: Tensor
    beta: Tensor
    decay: Tensor
    elements: Tensor
    scale: Tensor

    def __init__(self, config: TensorFieldConfig):
        super().__init__()
        self.order = config.order
        self.irreps_filter = _irreps(1, config.order, config.parity)
        self.register_buffer("elements", torch.tensor(config.elements), persistent=False)
        for name in ("beta", "decay", "scale"):
            self.register_buffer(name, torch.ones(()))
        self.register_buffer("centres", torch.zeros(config.n_basis))
        self.embed = o3.Linear(
            _irreps(len(config.elements), 0, config.parity), _irreps(config.channels[0], 0, config.parity), biases=True
        )
        blocks = []
        in_channels, in_order = config.channels[0], 0
        for layer, out_channels in enumerate(config.channels):
            out_order = min(config.order, 1) if layer == len(config.channels) - 1 else config.order
            blocks.append(_Block(in_channels, out_channels, in_order, out_order, layer == 0, config))
            in_channels, in_order = out_channels, out_order
        self.blocks = nn.ModuleList(blocks)
        irreps_last = _irreps(in_channels, in_order, config.parity)[-1:]
        self.head = o3.Linear(irreps_last, o3.Irreps([(1, irreps_last[0].ir)]), biases=True)

    @classmethod
    def from_model(cls, model: Model) -> PlainTensorFieldNetwork:
        """Return a network with copies of a model's weights and statistics, in its dtype, device and mode.

        Raises
        ------
        ValueError
            If the model is of another architecture than ``tfn``.
        """
        with _double():
            network = cls(_config(model))
        weight = next(model.parameters())
        network.to(weight.dtype).load_state_dict({**network.state_dict(), **weights_of(model)})
        return network.to(weight.device).train(model.training)

    def forward(self, species: Tensor, edge_index: Tensor, vectors: Tensor) -> Tensor:
        """Return forces (n, 3), or at order 0 magnitudes (n,), kJ/mol/nm.

        Parameters
        ----------
        species
            (n,) atomic numbers; one that is not among the config's `elements` becomes the zero vector.
        edge_index, vectors
            (2, E) and (E, 3) of `edge_list`.
        """
        one_hot = (species[:, None] == self.elements).to(vectors.dtype)
        distances = vectors.norm(dim=1)
        basis = torch.exp(-self.beta * (torch.exp(-self.decay * distances)[:, None] - self.centres).square())
        harmonics = o3.spherical_harmonics(self.irreps_filter, vectors, normalize=True, normalization="component")
        features = self.embed(one_hot)
        for block in self.blocks:
            features = block(features, basis, harmonics, edge_index)
        if self.order == 0:
            return nn.functional.softplus(self.head(features)[:, 0]) * self.scale
        return self.head(features[:, -self.head.irreps_in.dim :]) * self.scale


def weights_of(model: Model) -> dict[str, Tensor]:
    """Return the state that gives a `PlainTensorFieldNetwork` the numbers of a model.

    Every entry is a differentiable function of the model's parameters, so gradients in the plain network's parameters
    are carried back to the model's by ``torch.autograd.backward``.

    Parameters
    ----------
    model
        Of architecture ``tfn``.

    Returns
    -------
    dict of str to Tensor
        By the names of ``PlainTensorFieldNetwork.state_dict``, e3nn's constants apart.

    Raises
    ------
    ValueError
        If the model is of another architecture.
    """
    config = _config(model)
    state = model.state_dict(keep_vars=True)
    basis = model.backbone.geometry.basis
    weights = {
        "centres": basis.centres,
        "beta": torch.tensor(basis.beta, dtype=torch.float64),
        "decay": torch.tensor(basis.decay, dtype=torch.float64),
        "scale": state["head.scale"],
        **_linear("embed", state["backbone.embed.weights"], state["backbone.embed.bias"]),
    }
    in_order = 0
    for layer in range(len(config.channels)):
        ours, plain = f"backbone.blocks.{layer}", f"blocks.{layer}"
        out_order = min(config.order, 1) if layer == len(config.channels) - 1 else config.order
        if layer > 0:
            weights |= _linear(f"{plain}.before", state[f"{ours}.before.weights"], state[f"{ours}.before.bias"])
        weights[f"{plain}.radial.0.weight"] = state[f"{ours}.convolution.radial.hidden.weight"]
        weights[f"{plain}.radial.0.bias"] = state[f"{ours}.convolution.radial.hidden.bias"]
        # ours couples (filter, features), e3nn here (features, filter): an exchange gives Wigner's 3j a sign
        paths = coupling_paths(config.order, in_order, out_order, config.parity)
        factors = state[f"{ours}.convolution.weights"].new_tensor([(-1.0) ** sum(path) for path in paths])
        mixing = state[f"{ours}.convolution.weights"] * factors[:, None, None] / math.sqrt(config.n_units)
        weights[f"{plain}.radial.2.weight"] = mixing.transpose(1, 2).flatten(0, 1)  # (paths * C, units)
        weights[f"{plain}.own"] = state[f"{ours}.own"]
        weights[f"{plain}.norm.running_mean"] = state[f"{ours}.norm.mean"]
        weights[f"{plain}.norm.running_var"] = state[f"{ours}.norm.variance"].flatten()
        weights |= _linear(f"{plain}.after", state[f"{ours}.after.weights"], state[f"{ours}.after.bias"])
        if out_order > 0:
            gates = state[f"{ours}.gate.gates.weight"][None]
            weights |= _linear(f"{plain}.gate.gates", gates, state[f"{ours}.gate.gates.bias"])
        in_order = out_order
    if config.order == 0:
        weights |= _linear("head", state["head.linear.weight"][None], state["head.linear.bias"])
    else:
        weights |= _linear("head", state["head.weights"][None, None, :])
    return weights


def _linear(name: str, matrices: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
    """Return the state of an `o3.Linear`, which divides by sqrt(in), for matrices (irreps, out, in)."""
    state = {f"{name}.weight": (matrices.transpose(1, 2) * math.sqrt(matrices.shape[2])).flatten()}
    if bias is not None:
        state[f"{name}.bias"] = bias
    return state


def _config(model: Model) -> TensorFieldConfig:
    config = parse_config(model.config)
    if not isinstance(config, TensorFieldConfig):
        raise ValueError(f"a model of architecture {config.architecture!r} has no form in plain e3nn; only 'tfn' has")
    return config


@contextmanager
def _double() -> Iterator[None]:
    """Let e3nn make its constants in double precision, so that a later cast to float64 is exact."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
