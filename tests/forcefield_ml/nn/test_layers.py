"""The layers against independent truths: e3nn, and sums over pairs written out."""

from __future__ import annotations

import pytest
import torch
from e3nn import o3
from torch import Tensor

from forcefield_ml import kernels
from forcefield_ml.graph import NeighbourMatrix
from forcefield_ml.nn.convolution import DenseConvolution, ElementConvolution
from forcefield_ml.nn.linear import SelfInteraction
from forcefield_ml.nn.normalisation import EquivariantNorm
from forcefield_ml.nn.pairs import CHUNK, PairGeometry, chunks
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


CONVOLUTIONS = [(2, 2, 2, "O3"), (2, 2, 2, "SO3"), (1, 1, 1, "O3"), (1, 1, 1, "SO3"), (2, 1, 1, "O3"), (2, 0, 2, "O3")]
"""Order of filter, input and output, and parity; scalars and vectors with parity have a form of their own."""


def geometry_and_features(in_size: int) -> tuple[NeighbourMatrix, Tensor]:
    """Return neighbours of 7 atoms, an empty place among them, and features with 3 channels."""
    n, k = 7, 5
    vectors = torch.nn.functional.normalize(torch.randn(n, k, 3), dim=-1) * (0.1 + 0.3 * torch.rand(n, k, 1))
    mask = torch.ones(n, k) > 0
    mask[2, 3:] = False
    return NeighbourMatrix(torch.randint(n, (n, k)), vectors * mask[:, :, None], mask), torch.randn(n, in_size, 3)


@pytest.mark.parametrize(("filter_order", "in_order", "out_order", "parity"), CONVOLUTIONS)
def test_convolution_is_the_sum_over_pairs(filter_order: int, in_order: int, out_order: int, parity: str) -> None:
    """The batched products equal the tensor product summed pair by pair, path by path, by einsum."""
    h, k = 4, 5
    layer = DenseConvolution(3, filter_order, in_order, out_order, 6, h, k, parity)
    neighbours, features = geometry_and_features((in_order + 1) ** 2)
    pairs = PairGeometry(6, 0.45, 0.45, 2)(neighbours)
    units = layer.radial(pairs.basis, pairs.envelope)
    expected = torch.zeros(7, (out_order + 1) ** 2, 3)
    paths = coupling_paths(filter_order, in_order, out_order, parity)
    for p, (lf, li, lo) in enumerate(paths):
        into = sum(1 for path in paths if path[2] == lo)
        coupling = clebsch_gordan(lf, li, lo) / (into * h * k) ** 0.5
        for i in range(7):
            for slot in range(k):
                radial = units[i, :, slot] @ layer.weights[p]  # (c,)
                y = pairs.harmonics[i, lf * lf : (lf + 1) ** 2, slot]
                x = features[neighbours.indices[i, slot], li * li : (li + 1) ** 2]
                product = torch.einsum("f,mc,fmo->oc", y, x, coupling)
                expected[i, lo * lo : (lo + 1) ** 2] += radial * product
    assert float(expected.detach().abs().max()) > 0.01
    assert torch.allclose(layer(features, pairs), expected, atol=1e-10)


@pytest.mark.parametrize(("filter_order", "in_order", "out_order", "parity"), CONVOLUTIONS)
def test_convolution_can_be_differentiated_twice(filter_order: int, in_order: int, out_order: int, parity: str) -> None:
    """First and second derivatives in vectors and features agree with finite differences."""
    layer = DenseConvolution(3, filter_order, in_order, out_order, 6, 4, 5, parity)
    geometry = PairGeometry(6, 0.45, 0.45, 2)
    neighbours, features = geometry_and_features((in_order + 1) ** 2)

    def convolve(vectors: Tensor, features: Tensor) -> Tensor:
        return layer(features, geometry(neighbours._replace(vectors=vectors))).square().sum()

    inputs = (neighbours.vectors[:3].requires_grad_(), features.requires_grad_())
    neighbours = NeighbourMatrix(neighbours.indices[:3], neighbours.vectors[:3], neighbours.mask[:3])
    assert torch.autograd.gradcheck(convolve, inputs)
    assert torch.autograd.gradgradcheck(convolve, inputs)


@pytest.mark.parametrize("cutoff", [0.45, 0.0])
def test_table_is_the_radial_network(cutoff: float) -> None:
    """Without gradients both convolutions look their weights up, to 1e-5; with them they evaluate the networks."""
    torch.set_default_dtype(torch.float32)
    dense, element = DenseConvolution(3, 2, 1, 1, 32, 4, 5), ElementConvolution(3, 32, 4, 3, 5.0)
    geometry = PairGeometry(32, 0.45, cutoff, 2)
    neighbours, features = geometry_and_features(4)
    kinds = (torch.arange(7) % 3).int()
    with kernels.plain_form():
        exact = geometry(neighbours)
        with torch.no_grad():
            looked_up = geometry(neighbours)
        assert looked_up.tabulated and not exact.tabulated and not looked_up.compiled
        for layer, seen in ((dense, (features,)), (element, (torch.eye(3)[kinds], kinds))):
            expected = layer(*seen, exact)
            difference = (layer(*seen, looked_up) - expected).abs().max() / expected.abs().max()
            assert 0 < float(difference.detach()) < 1e-5


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


@pytest.mark.parametrize("n_rows", [0, 1, 1023, 1029, 1535, 1537, 14_470])
def test_chunks_cover_all_rows_evenly(n_rows: int) -> None:
    """Every row in one chunk, none much smaller than the others; one chunk while training."""
    bounds = chunks(n_rows, training=False)
    assert [row for start, stop in bounds for row in range(start, stop)] == list(range(n_rows))
    sizes = [stop - start for start, stop in bounds]
    assert max(sizes) <= 1.5 * CHUNK and max(sizes) - min(sizes) <= 1
    assert chunks(n_rows, training=True) == [(0, n_rows)]
