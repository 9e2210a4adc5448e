"""Our form of the paper's network and plain e3nn's, with the same weights, give the same numbers and gradients."""

from __future__ import annotations

import copy
import importlib
import sys

import pytest
import torch
from torch import Tensor

import forcefield_ml.testing
from forcefield_ml.graph import NeighbourMatrix, whole
from forcefield_ml.models import Atoms, Model, build
from forcefield_ml.testing import PlainTensorFieldNetwork, edge_list, random_liquid, weights_of

N_ATOMS = 125
SINGLE, DOUBLE = 1e-5, 1e-10
"""Largest deviation relative to the largest component, by precision."""


@pytest.fixture(scope="module", params=[(0, "O3"), (1, "O3"), (1, "SO3"), (2, "O3"), (2, "SO3")], ids=str)
def originals(request: pytest.FixtureRequest) -> tuple[Model, PlainTensorFieldNetwork]:
    """Return each kind of the network, and its plain form: no weight and no statistic at its initial value."""
    order, parity = request.param
    torch.manual_seed(4)
    model = build(
        {"architecture": "tfn", "order": order, "parity": parity, "channels": (8, 6, 2), "n_neighbours": 12}
    ).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    species, positions, box = system(0)
    for _ in range(2):
        ours(model.train(), species, model.search()(positions, box))
    model.set_scale(700.0)
    return model.eval(), PlainTensorFieldNetwork.from_model(model)


@pytest.fixture
def model(originals: tuple[Model, PlainTensorFieldNetwork]) -> Model:
    """Return a copy of the network in double precision, evaluating."""
    return copy.deepcopy(originals[0])


@pytest.fixture
def plain(originals: tuple[Model, PlainTensorFieldNetwork]) -> PlainTensorFieldNetwork:
    """Return a copy of its plain form."""
    return copy.deepcopy(originals[1])


def system(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return a periodic, triclinic system with ions."""
    return random_liquid(N_ATOMS, seed=seed, elements=(1, 6, 7, 8, 11, 16, 17), triclinic=True)


def ours(model: Model, species: Tensor, neighbours: NeighbourMatrix) -> Tensor:
    """Return what our network predicts for a whole system."""
    prediction = model(Atoms(species), neighbours, whole(len(species), model.capabilities.n_layers))
    return prediction.forces if prediction.forces is not None else prediction.magnitude


def deviation(got: Tensor, expected: Tensor) -> float:
    """Return the largest deviation relative to the largest component."""
    assert got.shape == expected.shape and bool(expected.abs().max() > 0)
    return float((got - expected).detach().abs().max() / expected.detach().abs().max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, DOUBLE), (torch.float32, SINGLE)], ids=str)
def test_predictions_are_equal(
    model: Model, plain: PlainTensorFieldNetwork, dtype: torch.dtype, tolerance: float
) -> None:
    """Evaluating and training; so are the statistics that training leaves."""
    species, positions, box = system(1)
    model, plain = model.to(dtype), plain.to(dtype)
    neighbours = model.search()(positions.to(dtype), box.to(dtype))
    with torch.no_grad():
        evaluated = ours(model, species, neighbours)
        assert deviation(plain(species, *edge_list(neighbours)), evaluated) < tolerance
        trained = ours(model.train(), species, neighbours)
        assert deviation(trained, evaluated) > 100 * tolerance, "the batch's statistics are the running ones"
        assert deviation(plain.train()(species, *edge_list(neighbours)), trained) < tolerance
    for block, plain_block in zip(model.backbone.blocks, plain.blocks, strict=True):
        assert deviation(plain_block.norm.running_mean, block.norm.mean) < tolerance
        assert deviation(plain_block.norm.running_var, block.norm.variance.flatten()) < tolerance


def test_plain_form_follows_the_model() -> None:
    """Made of a model in single precision that trains, it has the same dtype, mode and predictions."""
    species, positions, box = system(5)
    model = build({"architecture": "tfn", "order": 1, "channels": (6, 1), "n_neighbours": 12}).train()
    plain = PlainTensorFieldNetwork.from_model(model)
    neighbours = model.search()(positions.float(), box.float())
    assert plain.training and all(parameter.dtype == torch.float32 for parameter in plain.parameters())
    assert deviation(plain(species, *edge_list(neighbours)), ours(model, species, neighbours)) < SINGLE


@pytest.mark.parametrize("training", [False, True])
def test_gradients_are_equal(model: Model, plain: PlainTensorFieldNetwork, training: bool) -> None:
    """The same loss has the same gradient in every weight, carried back to our shapes, and in the positions."""
    species, positions, box = system(2)
    model.train(training)
    plain.train(training)
    twin = copy.deepcopy(model)
    targets = torch.randn(ours(twin, species, model.search()(positions, box)).shape, dtype=torch.float64)
    slopes = []
    for predict in (
        lambda neighbours: ours(model, species, neighbours),
        lambda neighbours: plain(species, *edge_list(neighbours)),
    ):
        moving = positions.clone().requires_grad_()
        loss = loss_of(predict(model.search()(moving, box)), targets)
        loss.backward()
        slopes.append(moving.grad)
    assert deviation(slopes[1], slopes[0]) < DOUBLE
    weights = weights_of(twin)
    names = [name for name, _ in plain.named_parameters()]
    torch.autograd.backward([weights[name] for name in names], [plain.get_parameter(name).grad for name in names])
    expected = dict(model.named_parameters())
    for name, parameter in twin.named_parameters():
        assert parameter.grad is not None, f"{name} has no counterpart in the plain network"
        assert deviation(parameter.grad, expected[name].grad) < DOUBLE, name


def loss_of(prediction: Tensor, targets: Tensor) -> Tensor:
    """Return a loss that weighs all components differently."""
    return torch.nn.functional.huber_loss(prediction / 700.0, targets)


def test_every_weight_counts(model: Model, plain: PlainTensorFieldNetwork) -> None:
    """Negative control: one number changed in any of our parameters or statistics makes the forces differ."""
    species, positions, box = system(3)
    neighbours = model.search()(positions, box)
    with torch.no_grad():
        expected = plain(species, *edge_list(neighbours))
        tensors = dict(model.named_parameters())
        tensors |= {name: buffer for name, buffer in model.named_buffers() if name.endswith(("mean", "variance"))}
        for name, tensor in tensors.items():
            before = tensor.clone()
            tensor.view(-1)[tensor.numel() // 3] += 0.01  # of the radial basis: a function at a pair's distance
            assert deviation(ours(model, species, neighbours), expected) > 100 * DOUBLE, name
            tensor.copy_(before)
        assert deviation(ours(model, species, neighbours), expected) < DOUBLE


def test_atoms_without_neighbours(model: Model, plain: PlainTensorFieldNetwork) -> None:
    """Empty places make no edges: five atoms that want twelve neighbours, and one alone without any edge."""
    species, positions, _ = system(4)
    for count in (1, 5):
        neighbours = model.search()(positions[:count], None)
        expected = ours(model, species[:count], neighbours)
        edge_index, vectors = edge_list(neighbours)
        assert edge_index.shape == (2, count * (count - 1))
        assert torch.allclose(plain(species[:count], edge_index, vectors), expected, rtol=DOUBLE, atol=DOUBLE)


def test_another_architecture_is_refused() -> None:
    """Only the paper's network has a plain form."""
    with pytest.raises(ValueError, match="architecture 'fast'"):
        PlainTensorFieldNetwork.from_model(build({"architecture": "fast", "n_channels": 4}))


def test_e3nn_is_imported_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where e3nn cannot be imported, the package of assertions can, and only the plain network cannot be had."""
    monkeypatch.setattr(forcefield_ml, "testing", forcefield_ml.testing)  # the name is bound anew below: put it back
    for name in [name for name in sys.modules if name.startswith("forcefield_ml.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "e3nn", None)
    anew = importlib.import_module("forcefield_ml.testing")
    assert callable(anew.random_liquid)
    with pytest.raises(ImportError, match="e3nn"):
        anew.PlainTensorFieldNetwork  # noqa: B018  asking is the test
    with pytest.raises(AttributeError, match="no attribute 'plain'"):
        anew.plain  # noqa: B018
