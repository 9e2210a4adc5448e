"""Losses against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from forcefield_ml.models.interface import Prediction
from forcefield_ml.training.loss import scalar_huber, tensor_huber
from forcefield_ml.training.module import huber
from forcefield_ml.units import MEV_PER_ANGSTROM


def test_tensor_huber_by_hand():
    """Errors of norm 5 and 25 with delta 10: 12.5, and (25 - 5) 10 = 200."""
    predicted = torch.tensor([[3.0, 4.0, 0.0], [0.0, 15.0, 20.0]])
    assert tensor_huber(predicted, torch.zeros(2, 3), 10.0).item() == pytest.approx((12.5 + 200) / 2)


def test_tensor_huber_is_of_the_norm_and_not_of_components():
    """Rotating both vectors leaves the loss; a component-wise Huber loss (the control) changes."""
    generator = torch.Generator().manual_seed(0)
    predicted, target = torch.randn(2, 40, 3, generator=generator, dtype=torch.float64) * 3
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    rotated = (predicted @ rotation, target @ rotation)
    assert tensor_huber(*rotated, 1.0) == pytest.approx(tensor_huber(predicted, target, 1.0).item(), rel=1e-12)
    component = torch.nn.functional.huber_loss
    assert component(*rotated, delta=1.0) != pytest.approx(component(predicted, target, delta=1.0).item(), rel=1e-3)


def test_scalar_huber_agrees_with_torch():
    """On numbers it is torch's own Huber loss."""
    predicted, target = torch.randn(2, 100, generator=torch.Generator().manual_seed(1)) * 2
    expected = torch.nn.functional.huber_loss(predicted, target, delta=1.5)
    assert scalar_huber(predicted, target, 1.5).item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradient():
    """The gradient is e inside and delta e / |e| outside, over n; zero, not NaN, at a perfect prediction."""
    predicted = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 6.0, 8.0]], requires_grad=True)
    tensor_huber(predicted, torch.zeros(3, 3), 2.0).backward()
    expected = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.2, 1.6]]) / 3
    torch.testing.assert_close(predicted.grad, expected)


def test_delta_is_in_mev_per_angstrom():
    """An error of 20 meV/Å with delta 10 costs (20 - 5) 10, for vectors and for order 0's magnitudes."""
    forces = torch.tensor([[0.0, 20.0, 0.0]]) / MEV_PER_ANGSTROM
    none = torch.zeros(1, 3)
    assert huber(Prediction(forces, None, None), none, 10.0).item() == pytest.approx(150, rel=1e-6)
    assert huber(Prediction(None, forces[:, 1], None), none, 10.0).item() == pytest.approx(150, rel=1e-6)


@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan")])
def test_delta_must_be_positive(delta):
    """A delta that makes no sense is refused."""
    with pytest.raises(ValueError, match="delta"):
        tensor_huber(torch.zeros(1, 3), torch.zeros(1, 3), delta)
