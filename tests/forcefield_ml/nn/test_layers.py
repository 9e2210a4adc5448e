"""The layers against independent truths: e3nn, and sums over pairs written out."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3

from forcefield_ml.nn.convolution import DenseConvolution
from forcefield_ml.nn.linear import SelfInteraction
from forcefield_ml.nn.normalisation import EquivariantNorm
from forcefield_ml.nn.pairs import Pairs
from forcefield_ml.nn.radial import cosine_envelope
from forcefield_ml.nn.spherical import clebsch_gordan, coupling_paths, spherical_harmonics


@pytest.fixture(autouse=True)
def _double() -> object:
    """Compare in double precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_harmonics_are_e3nns() -> None:
    """Orders 0 to 2 equal e3nn's component-normalised harmonics."""
    directions = torch.nn.functional.normalize(torch.randn(50, 3), dim=-1)
    expected = o3.spherical_harmonics([0, 1, 2], directions, normalize=True, normalization="component")
    assert torch.allclose(spherical_harmonics(directions[:, None], 2)[:, :, 0], expected, atol=1e-12)


@pytest.mark.parametrize("parity", ["O3", "SO3"])
def test_convolution_is_the_sum_over_pairs(parity: str) -> None:
    """The two batched products equal the tensor product summed pair by pair, path by path, by einsum."""
    n, k, c, h = 7, 5, 3, 4
    layer = DenseConvolution(c, 2, 2, 2, 6, h, k, parity)
    features, basis = torch.randn(n, 9, c), torch.randn(n, 6, k)
    harmonics, indices = torch.randn(n, 9, k), torch.randint(n, (n, k))
    pairs = Pairs(indices, torch.zeros(n, k, 3), torch.ones(n, k) > 0, basis, torch.rand(n, k), harmonics, 0.0, False)
    units = layer.radial(pairs.basis, pairs.envelope)
    expected = torch.zeros(n, 9, c)
    paths = coupling_paths(2, 2, 2, parity)
    for p, (lf, li, lo) in enumerate(paths):
        into = sum(1 for path in paths if path[2] == lo)
        coupling = clebsch_gordan(lf, li, lo) / (into * h * k) ** 0.5
        for i in range(n):
            for slot in range(k):
                radial = units[i, :, slot] @ layer.weights[p]  # (c,)
                y = harmonics[i, lf * lf : (lf + 1) ** 2, slot]
                x = features[indices[i, slot], li * li : (li + 1) ** 2]
                product = torch.einsum("f,mc,fmo->oc", y, x, coupling)
                expected[i, lo * lo : (lo + 1) ** 2] += radial * product
    assert torch.allclose(layer(features, pairs), expected, atol=1e-10)


def test_paths_of_order_one() -> None:
    """Hand-counted: with parity, 000 011 101 110; without, the cross product 111 too."""
    assert set(coupling_paths(1, 1, 1, "O3")) == {(0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 0)}
    assert set(coupling_paths(1, 1, 1, "SO3")) - set(coupling_paths(1, 1, 1, "O3")) == {(1, 1, 1)}


def test_self_interaction_mixes_channels_only() -> None:
    """One matrix per order on all its components; the bias on scalars alone."""
    layer = SelfInteraction(3, 2, 2)
    torch.nn.init.normal_(layer.bias)
    x = torch.randn(4, 9, 3)
    y = layer(x)
    assert torch.allclose(y[:, 0], x[:, 0] @ layer.weights[0].T + layer.bias)
    for component in range(1, 9):
        order = 1 if component < 4 else 2
        assert torch.allclose(y[:, component], x[:, component] @ layer.weights[order].T)


def test_norm_uses_the_batch_then_the_running_mean() -> None:
    """After the first training batch, evaluation reproduces that batch's normalisation: unit variance."""
    layer = EquivariantNorm(3, 1)
    x = torch.randn(500, 4, 3) * torch.tensor([1.0, 5.0, 0.1]) + 0.3
    layer.train()
    trained = layer(x)
    layer.eval()
    assert torch.allclose(layer(x), trained)
    assert torch.allclose(trained[:, 0].mean(0), torch.zeros(3), atol=1e-9)
    assert torch.allclose(trained[:, 1:].square().mean((0, 1)), torch.ones(3), atol=1e-3)


def test_envelope_ends_smoothly() -> None:
    """Value and slope vanish at the cutoff, the value is one at zero."""
    r = torch.tensor([0.0, 0.5 - 1e-6, 0.5, 0.7], requires_grad=True)
    values = cosine_envelope(r, 0.5)
    (slope,) = torch.autograd.grad(values.sum(), r)
    values = values.detach()
    assert values[0] == 1 and float(values[1]) < 1e-10 and values[2] == 0 and values[3] == 0
    assert abs(float(slope[1])) < 1e-4
