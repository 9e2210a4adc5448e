"""The compiled gradient by vectors, and the gradients of parameters through it, are those of the plain form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from forcefield_ml import kernels, testing
from forcefield_ml.graph import NeighbourMatrix, whole
from forcefield_ml.models import Atoms, Model, Prediction, build

FLOAT32 = 2e-4
"""Largest relative difference (L2): a table's slope is its differences, known to 5e-5, where its values are to 1e-5."""

NETWORKS: dict[str, dict[str, Any]] = {
    "default": {"architecture": "fast", "head": "energy"},
    "odd": {"architecture": "fast", "head": "energy", "n_channels": 6, "n_layers": 2},
    "order 1": {"architecture": "fast", "head": "energy", "n_channels": 8, "filter_order": 1},
}


def network(name: str, **changes: Any) -> Model:
    torch.manual_seed(3)
    model = build(NETWORKS[name] | changes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def double(model: Model) -> Model:
    twin = build(model.config).double().train(model.training)
    twin.load_state_dict(model.state_dict())
    return twin


def system(model: Model, periodic: bool = True) -> tuple[Tensor, NeighbourMatrix, NeighbourMatrix]:
    """Return species and neighbours in both precisions."""
    species, positions, box = testing.random_liquid(216, triclinic=True, seed=2)
    positions[0] += 5.0  # alone where there is no box
    exact = model.search()(positions, box if periodic else None)
    return species, exact._replace(vectors=exact.vectors.float()), exact


def predict(model: Model, species: Tensor, neighbours: NeighbourMatrix) -> Prediction:
    return model(Atoms(species), neighbours, whole(len(species), model.capabilities.n_layers))


def difference(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other).norm() / other.norm())


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_forces_by_kernels(name: str, periodic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy and forces equal plain float64; the kernels really ran."""
    model = network(name).eval()
    species, single, exact = system(model, periodic)
    ran: list[int] = []
    library = kernels.Convolution.slope_library
    monkeypatch.setattr(kernels.Convolution, "slope_library", lambda *a: ran.append(1) or library(*a))
    with torch.no_grad():
        found, expected = predict(model, species, single), predict(double(model), species, exact)
    assert ran
    assert difference(found.forces, expected.forces) < FLOAT32
    assert float(found.energy) == pytest.approx(float(expected.energy), rel=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_on_forces_by_kernels(name: str) -> None:
    """Every parameter's gradient of a loss on forces, in training mode, equals automatic differentiation in float64."""
    model = network(name).train()
    twin = double(model)
    species, single, exact = system(model)
    for trained, neighbours in ((model, single), (twin, exact)):
        forces = predict(trained, species, neighbours).forces[:150]
        (forces * torch.cos(torch.arange(forces.numel())).view_as(forces)).sum().backward()
    for (key, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad is not None, f"{key} has no part in the forces"
        assert difference(parameter.grad, other.grad) < 5 * FLOAT32, key


def test_gradients_repeat_bit_by_bit() -> None:
    """Two passes give the same bits: shares of rows are fixed and summed in order."""
    found = []
    for _ in range(2):
        model = network("odd").train()
        species, single, _ = system(model)
        predict(model, species, single).forces.square().sum().backward()
        found.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_second_derivatives_by_positions_take_the_plain_form() -> None:
    """The kernels have none; asked for by the caller's own gradient, they come out right."""
    model = network("odd").eval()
    species, single, exact = system(model)
    weights = torch.cos(torch.arange(648.0)).view(216, 3)
    found = []
    for part, neighbours in ((model, single), (double(model), exact)):
        vectors = neighbours.vectors.clone().requires_grad_()
        forces = predict(part, species, neighbours._replace(vectors=vectors)).forces
        found.append(torch.autograd.grad((forces * weights).sum(), vectors)[0])
    assert difference(found[0], found[1]) < FLOAT32


def test_the_energy_alone_can_be_trained_on() -> None:
    """The gradients of the energy by the parameters come through the kernels, too."""
    model = network("odd").train()
    twin = double(model)
    species, single, exact = system(model)
    for trained, neighbours in ((model, single), (twin, exact)):
        predict(trained, species, neighbours).energy.backward()
    for (key, parameter), other in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        if other[1].grad is not None and float(other[1].grad.norm()) > 0:
            assert difference(parameter.grad, other[1].grad) < 5 * FLOAT32, key
