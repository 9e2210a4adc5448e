"""The evaluator refuses what it cannot do, in words."""

from __future__ import annotations

import pytest
import torch

import forcefield_ml
from forcefield_ml import testing
from forcefield_ml.deploy.force.device import choose_device
from forcefield_ml.deploy.force.evaluator import Evaluator
from forcefield_ml.errors import ConfigError
from forcefield_ml.models import Model, build


@pytest.fixture
def model() -> Model:
    """Return a small network."""
    torch.manual_seed(0)
    return build({"architecture": "fast", "n_channels": 4, "n_layers": 2}).eval()


def test_positions_that_are_not_finite(model: Model) -> None:
    """NaN at the first step and at a later one."""
    species, positions, box = testing.random_liquid(200, spacing=0.25)
    evaluator = Evaluator(model, species)
    broken = positions.clone()
    broken[17, 1] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        evaluator(broken, box)
    evaluator(positions, box)
    with pytest.raises(ValueError, match="not finite"):
        evaluator(broken, box)
    assert bool(torch.isfinite(evaluator(positions, box).forces).all())


def test_a_box_that_is_too_small(model: Model) -> None:
    """Lower than twice the cutoff of 0.45 nm."""
    species, positions, box = testing.random_liquid(27, spacing=0.25)
    with pytest.raises(ValueError, match="lower than twice the cutoff"):
        Evaluator(model, species)(positions, box)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_half_precision(model: Model, dtype: torch.dtype) -> None:
    """Forces would be zero or coarse without a word."""
    with pytest.raises(ConfigError, match=f"weights are {dtype}"):
        Evaluator(model.to(dtype), torch.tensor([1, 8, 1]))


def test_a_model_in_training_mode(model: Model) -> None:
    """Its normalisation would take the system for a batch, and learn from it."""
    with pytest.raises(ConfigError, match=r"call model\.eval"):
        Evaluator(model.train(), torch.tensor([1, 8, 1]))


def test_positions_of_another_number_of_atoms(model: Model) -> None:
    """More atoms than species, and fewer."""
    for n_atoms in (2, 4):
        with pytest.raises(ValueError, match=f"positions of {n_atoms} atoms, but the species of 3"):
            Evaluator(model, torch.tensor([1, 8, 1]))(0.1 * torch.eye(4, 3)[:n_atoms])


@pytest.mark.parametrize("device", ["mps", "banana", "cuda:99"])
def test_a_device_that_is_not_there(device: str) -> None:
    """The message says which there are; a model file is not blamed."""
    with pytest.raises(ConfigError, match=f"no device '{device}'. Allowed: auto, cpu"):
        forcefield_ml.load("amber14-fast", device=device)
    assert choose_device("cpu") == "cpu"


def test_an_overflowing_row_gives_the_same_forces(model: Model) -> None:
    """A row that outgrows the matrix is never cut: forces are those of a fresh search."""
    species, positions, box = testing.random_liquid(400, spacing=0.3)
    evaluator = Evaluator(model, species)
    evaluator(positions, box)
    middle = positions.mean(0)
    crowded = middle + (positions - middle) * (0.35 + 0.65 * ((positions - middle).norm(dim=1) > 0.7)[:, None])
    width = evaluator.neighbour_list._width
    found = evaluator(crowded, box).forces
    assert evaluator.neighbour_list._width > width
    assert torch.allclose(found, Evaluator(model, species)(crowded, box).forces, rtol=1e-4, atol=1e-6)
