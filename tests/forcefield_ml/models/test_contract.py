"""The contract of every architecture, read from its capabilities. A new one is added to CONFIGS and inherits all."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import pytest
import torch
from torch import Tensor

from forcefield_ml import testing
from forcefield_ml.errors import ConfigError
from forcefield_ml.graph import concatenate, shells, whole
from forcefield_ml.models import Atoms, Model, build, parse_config

CONFIGS = {
    "tfn-0": {"architecture": "tfn", "order": 0, "n_neighbours": 12},
    "tfn-1": {"architecture": "tfn", "order": 1, "n_neighbours": 12},
    "tfn-2": {"architecture": "tfn", "order": 2, "n_neighbours": 12},
    "tfn-2-so3": {"architecture": "tfn", "order": 2, "n_neighbours": 12, "parity": "SO3"},
    "fast": {"architecture": "fast", "n_channels": 8, "cutoff": 0.3},
    "fast-2": {"architecture": "fast", "n_channels": 6, "cutoff": 0.3, "filter_order": 2, "n_layers": 2, "bound": 4.0},
    "fast-energy": {"architecture": "fast", "n_channels": 6, "cutoff": 0.3, "n_layers": 2, "head": "energy"},
}


class Predictor:
    """Species, positions, box -> what the model predicts, the whole system computed."""

    def __init__(self, model: Model, dtype: torch.dtype = torch.float64):
        self.model = model.to(dtype)
        self.search = model.search()

    def __call__(self, species: Tensor, positions: Tensor, box: Tensor | None) -> Tensor:
        """Return forces (N, 3) or magnitudes (N,)."""
        neighbours = self.search(positions, box)
        layers = self.model.capabilities.n_layers
        with torch.no_grad():
            prediction = self.model(Atoms(species), neighbours, whole(len(species), layers))
        return prediction.forces if prediction.forces is not None else prediction.magnitude


@pytest.fixture(params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Model:
    """Return each architecture with random weights and statistics that are not the initial ones."""
    torch.manual_seed(1)
    model = build(CONFIGS[request.param])
    species, positions, box = testing.random_liquid(216, dtype=torch.float32)
    model.train()
    for _ in range(2):
        model(Atoms(species), model.search()(positions, box), whole(216, model.capabilities.n_layers))
    model.set_scale(700.0)
    return model.eval()


@pytest.fixture
def liquid() -> tuple[Tensor, Tensor, Tensor]:
    """Return a periodic, triclinic system."""
    return testing.random_liquid(216, triclinic=True, seed=2)


def test_no_geometry_makes_forces_without_limit() -> None:
    """With a bound a force cannot exceed what the head makes of features of that length; without one it does."""
    torch.manual_seed(0)
    species, positions, _ = testing.random_liquid(216, seed=2)
    largest = {}
    for bound in (0.0, 4.0):
        torch.manual_seed(1)
        model = build(CONFIGS["fast"] | {"bound": bound}).eval()
        for layer in model.backbone.layers:
            layer.mix.data *= 1000.0  # as if these atoms were like none in training
        largest[bound] = float(Predictor(model)(species, 0.4 * positions, None).norm(dim=1).max())
        limit = 4.0 * float(model.head.weights.detach().abs().sum())
    assert largest[4.0] <= limit < 0.01 * largest[0.0]


@pytest.mark.parametrize("periodic", [False, True])
def test_rotation(model: Model, liquid: tuple[Tensor, Tensor, Tensor], periodic: bool) -> None:
    """Predictions turn with the system."""
    species, positions, box = liquid
    testing.assert_equivariant(Predictor(model), species, positions, box if periodic else None)


def test_reflection_as_claimed(model: Model, liquid: tuple[Tensor, Tensor, Tensor]) -> None:
    """A model that claims O(3) respects a reflection; one that claims SO(3) only must break it (the control)."""
    species, positions, box = liquid
    if model.capabilities.parity == "O3":
        testing.assert_equivariant(Predictor(model), species, positions, box, reflect=True)
    else:
        with pytest.raises(AssertionError, match="reflection"):
            testing.assert_equivariant(Predictor(model), species, positions, box, reflect=True)


def test_translation_permutation_lattice(model: Model, liquid: tuple[Tensor, Tensor, Tensor]) -> None:
    """Where the origin is, what atoms are called and which image is meant does not matter."""
    species, positions, box = liquid
    predict = Predictor(model)
    testing.assert_translation_invariant(predict, species, positions, box)
    testing.assert_permutation_equivariant(predict, species, positions, box)
    testing.assert_lattice_invariant(predict, species, positions, box)


def test_additivity_and_smoothness_of_cutoff_graphs(model: Model, liquid: tuple[Tensor, Tensor, Tensor]) -> None:
    """Far copies do not feel each other, and nothing jumps at the cutoff."""
    if model.capabilities.neighbours != "cutoff":
        pytest.skip("a nearest-K graph is neither additive nor smooth")
    species, positions, _ = liquid
    testing.assert_additive(Predictor(model), species, positions, distance=10.0)
    testing.assert_smooth_at_cutoff(Predictor(model), model.capabilities.cutoff)


def test_one_atom_alone(model: Model) -> None:
    """A single atom, without neighbours, feels a finite force; by symmetry it is zero."""
    prediction = Predictor(model)(torch.tensor([6]), torch.zeros(1, 3, dtype=torch.float64), None)
    assert bool(torch.isfinite(prediction).all())
    if model.predicts != "magnitude":
        assert float(prediction.abs().max()) == 0.0


def test_gradients_are_finite(model: Model) -> None:
    """Empty places and lonely atoms give no NaN in training or in Jacobians."""
    model = model.double().train()
    species, positions, _ = testing.random_liquid(20, seed=3)
    positions[0] += 5.0
    positions.requires_grad_()
    neighbours = model.search()(positions, None)
    prediction = model(Atoms(species), neighbours, whole(20, model.capabilities.n_layers))
    output = prediction.forces if prediction.forces is not None else prediction.magnitude
    output.square().sum().backward()
    assert bool(torch.isfinite(positions.grad).all())
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} has no part in the prediction"
        assert bool(torch.isfinite(parameter.grad).all()), name


def test_float32_agrees_with_float64(model: Model, liquid: tuple[Tensor, Tensor, Tensor]) -> None:
    """Single precision loses no more than round-off."""
    species, positions, box = liquid
    double = Predictor(copy.deepcopy(model))(species, positions, box)
    single = Predictor(model, torch.float32)(species, positions.float(), box.float())
    assert single.dtype == torch.float32
    assert float((single - double).norm() / double.norm()) < 1e-4


def test_scripted_and_saved_equal_eager(model: Model, liquid: tuple[Tensor, Tensor, Tensor], tmp_path: Path) -> None:
    """TorchScript, saved and loaded again, gives the eager numbers; so does a rebuilt model with the same weights."""
    species, positions, box = liquid
    model = model.double()
    neighbours = model.search()(positions, box)
    sizes = whole(len(species), model.capabilities.n_layers)
    expected = model(Atoms(species), neighbours, sizes)
    torch.jit.save(torch.jit.script(model), str(tmp_path / "m.pt"))
    scripted = torch.jit.load(str(tmp_path / "m.pt"))(Atoms(species), neighbours, sizes)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    rebuilt = build(model.config).double().eval()
    rebuilt.load_state_dict(torch.load(buffer, weights_only=True))
    again = rebuilt(Atoms(species), neighbours, sizes)
    for a, b, c in zip(expected, scripted, again, strict=True):
        if a is not None:
            assert torch.allclose(a, b, rtol=1e-9, atol=1e-9) and torch.equal(a, c)


def test_shells_and_batches_change_nothing(model: Model, liquid: tuple[Tensor, Tensor, Tensor]) -> None:
    """Targets of two systems in one batch, computed by shells, equal each whole system's prediction."""
    model = model.double()
    predict, search = Predictor(model), model.search()
    species, positions, box = liquid
    other_species, other, other_box = testing.random_liquid(343, seed=9)
    both = concatenate([search(positions, box), search(other, other_box)])
    targets = torch.zeros(216 + 343, dtype=torch.bool)
    targets[[0, 5, 100, 216, 400, 558]] = True
    order, reduced, sizes = shells(both, targets, model.capabilities.n_layers)
    prediction = model(Atoms(torch.cat([species, other_species])[order]), reduced, sizes)
    output = prediction.forces if prediction.forces is not None else prediction.magnitude
    expected = torch.cat([predict(species, positions, box), predict(other_species, other, other_box)])[targets]
    assert torch.allclose(output, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


def test_unknown_element_is_named(model: Model) -> None:
    """Iron was never in the training data: the model says so instead of guessing."""
    with pytest.raises(ValueError, match="atomic number 26"):
        Predictor(model)(torch.tensor([26, 6]), torch.eye(3, dtype=torch.float64)[:2] * 0.1, None)


def test_ions_are_silent_in_the_papers_input() -> None:
    """Na and Cl are accepted; as inputs they are the same zero vector."""
    model = build({"architecture": "tfn", "order": 1, "n_neighbours": 4}).eval()
    _, positions, _ = testing.random_liquid(8, seed=4)
    sodium = Predictor(model)(torch.tensor([11, 6, 6, 6, 1, 1, 8, 7]), positions, None)
    chlorine = Predictor(model)(torch.tensor([17, 6, 6, 6, 1, 1, 8, 7]), positions, None)
    carbon = Predictor(model)(torch.tensor([6, 6, 6, 6, 1, 1, 8, 7]), positions, None)
    assert torch.equal(sodium, chlorine) and not torch.allclose(sodium, carbon)


def test_checkers_catch_a_broken_model(liquid: tuple[Tensor, Tensor, Tensor]) -> None:
    """Negative control: a function that favours an axis, the first atom or an image fails the assertions."""
    species, positions, box = liquid

    def axis(species: Tensor, positions: Tensor, box: Tensor | None) -> Tensor:
        return positions - positions.mean(0) + torch.tensor([0.0, 0.0, 1.0])

    def image(species: Tensor, positions: Tensor, box: Tensor | None) -> Tensor:
        return positions - positions[0]

    with pytest.raises(AssertionError, match="rotation"):
        testing.assert_equivariant(axis, species, positions, box)
    with pytest.raises(AssertionError, match="permutation"):
        testing.assert_permutation_equivariant(image, species, positions, box)
    with pytest.raises(AssertionError, match="lattice"):
        testing.assert_lattice_invariant(image, species, positions, box)
    with pytest.raises(AssertionError, match="translation"):
        testing.assert_translation_invariant(lambda s, p, b: p, species, positions, box)
    with pytest.raises(AssertionError, match="additivity"):
        testing.assert_additive(image, species, positions, 10.0)
    with pytest.raises(AssertionError, match="crossing"):
        testing.assert_smooth_at_cutoff(
            lambda s, p, b: torch.ones_like(p) + (torch.cdist(p, p) < 0.3).double().sum(1, keepdim=True), 0.3
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "tfm"}, "Did you mean 'tfn'"),
        ({"architecture": "tfn", "ordr": 1}, "Did you mean 'order'"),
        ({"architecture": "tfn", "order": 3}, "model.order = 3"),
        ({"architecture": "fast", "cutoff": -1.0}, "model.cutoff = -1.0"),
    ],
)
def test_bad_settings_are_explained(config: dict[str, object], message: str) -> None:
    """A wrong name or value is answered with the key, the value and what is allowed."""
    with pytest.raises(ConfigError, match=message):
        parse_config(config)
