"""Compiled, scripted and eager networks are one network: values and training gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from forcefield_ml import kernels
from forcefield_ml.deploy.force.evaluator import Evaluator
from forcefield_ml.deploy.model_file.script import DeployableModel
from forcefield_ml.graph import NeighbourMatrix
from forcefield_ml.graph.search import whole
from forcefield_ml.models import Atoms, build
from forcefield_ml.models.model import Model

FLOAT32 = 1e-5
"""Largest difference between two float32 forms, relative to the largest value: rounding, and the radial table."""

NETWORKS: dict[str, dict[str, Any]] = {
    "tfn-0": {"architecture": "tfn", "order": 0},
    "tfn-1": {"architecture": "tfn", "order": 1},
    "tfn-2": {"architecture": "tfn", "order": 2},
    "tfn-2-SO3": {"architecture": "tfn", "order": 2, "parity": "SO3"},
    "tfn-odd": {"architecture": "tfn", "order": 2, "channels": (7, 5, 3)},
    "fast": {"architecture": "fast"},
    "fast-2": {"architecture": "fast", "filter_order": 2, "n_channels": 22},
}

TRICLINIC = torch.tensor([[2.4, 0.0, 0.0], [0.8, 2.3, 0.0], [-0.8, 0.9, 2.2]], dtype=torch.float64)
SYSTEMS: dict[str, tuple[int, Tensor | None]] = {
    "cubic": (400, torch.eye(3, dtype=torch.float64) * 1.9),
    "triclinic": (400, TRICLINIC),
    "open": (60, None),
    "three atoms": (3, None),
    "one atom": (1, None),
    "lonely": (5, torch.eye(3, dtype=torch.float64) * 40.0),
}
"""Atoms and box; the five of the last are 3 nm apart, so that a cutoff graph has no pair."""


def place(name: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return species, positions in nm and box of a system: a jittered lattice, nothing closer than a bond."""
    n_atoms, box = SYSTEMS[name]
    generator = torch.Generator().manual_seed(1)
    species = torch.tensor([1, 1, 8, 6, 7])[torch.arange(n_atoms) % 5]
    if name == "lonely":
        return species, torch.eye(3, dtype=torch.float64).repeat(2, 1)[:5] * 3.0 * torch.arange(1, 6)[:, None], box
    side = round(n_atoms ** (1 / 3) + 0.5)
    grid = torch.cartesian_prod(*[torch.arange(side, dtype=torch.float64)] * 3).view(-1, 3)[:n_atoms] / side
    cell = torch.eye(3, dtype=torch.float64) * 0.22 * side if box is None else box
    return species, grid @ cell + 0.05 * torch.rand(n_atoms, 3, generator=generator, dtype=torch.float64), box


def prediction(model: Model, species: Tensor, neighbours: NeighbourMatrix) -> Tensor:
    """Return forces, or magnitudes, on all atoms."""
    found = model(Atoms(species), neighbours, whole(len(species), model.capabilities.n_layers))
    value = found.forces if found.forces is not None else found.magnitude
    assert value is not None
    return value


def network(name: str) -> Model:
    """Return a network with statistics and biases that are not the initial ones."""
    torch.manual_seed(3)
    model = build(NETWORKS[name])
    species, positions, box = place("cubic")
    neighbours = model.search()(positions, box)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        prediction(model.train(), species, neighbours._replace(vectors=neighbours.vectors.float()))
    return model.eval()


def largest_difference(one: Tensor, other: Tensor) -> float:
    """Return the largest difference relative to the largest value."""
    assert one.shape == other.shape
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-9))


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("name", NETWORKS)
def test_forms_predict_the_same(name: str, system: str) -> None:
    """Compiled, plain and scripted float32 equal plain float64; the compiled one really is the compiled one."""
    model = network(name)
    species, positions, box = place(system)
    neighbours = model.search()(positions, box)
    single = neighbours._replace(vectors=neighbours.vectors.float())
    with torch.no_grad():
        twin = build(model.config).double().eval()
        twin.load_state_dict(model.state_dict())
        truth = prediction(twin, species, neighbours)
        assert kernels.serves(single.vectors)
        compiled = prediction(model, species, single)
        with kernels.plain_form():
            assert not kernels.serves(single.vectors)
            plain = prediction(model, species, single)
        if model.predicts == "forces":
            scripted = torch.jit.script(DeployableModel(model).eval())(species, positions, box).forces
            assert largest_difference(scripted, truth) < FLOAT32
            on_list = Evaluator(model, species)(positions, box).forces
            assert on_list is not None
            assert largest_difference(on_list, truth) < FLOAT32
    assert largest_difference(plain, truth) < FLOAT32
    assert largest_difference(compiled, truth) < FLOAT32


def gradients(model: Model, species: Tensor, neighbours: NeighbourMatrix, n_targets: int) -> dict[str, Tensor]:
    """Return the gradients of a loss on the first targets, in training mode, by parameter."""
    model.train().zero_grad()
    sizes = [len(species)] * (model.capabilities.n_layers - 1) + [n_targets]
    found = model(Atoms(species), neighbours, sizes)
    value = found.forces if found.forces is not None else found.magnitude
    assert value is not None
    (value * torch.cos(torch.arange(value.numel())).view_as(value)).sum().backward()
    return {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("system", ["cubic", "triclinic", "open", "three atoms", "lonely"])
@pytest.mark.parametrize("name", NETWORKS)
def test_forms_train_the_same(name: str, system: str) -> None:
    """Every parameter's gradient by hand-written C equals that by automatic differentiation in float64."""
    if name == "tfn-0" and system == "three atoms":
        pytest.skip("three equal magnitudes: normalisation divides rounding by rounding")
    species, positions, box = place(system)
    model = network(name)
    twin = build(model.config).double()
    twin.load_state_dict(model.state_dict())
    neighbours = model.search()(positions, box)
    n_targets = max(1, len(species) * 3 // 4)
    single = neighbours._replace(vectors=neighbours.vectors.float())
    assert kernels.serves(single.vectors)
    found = gradients(model, species, single, n_targets)
    expected = gradients(twin, species, neighbours, n_targets)
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    assert largest > 0 or (system == "lonely" and not name.startswith("tfn"))  # no pair, no vector, no gradient
    assert found.keys() == expected.keys()
    for key, gradient in expected.items():
        # a bias before a normalisation has no gradient but rounding: hence the second term
        allowed = 2e-4 * float(gradient.abs().max()) + 1e-5 * largest
        assert float((found[key] - gradient).abs().max()) <= allowed, key


def test_gradients_repeat_bit_by_bit() -> None:
    """Two backward passes give the same bits: shares of rows are fixed and summed in order."""
    model = network("fast")
    species, positions, box = place("cubic")
    neighbours = model.search()(positions, box)
    single = neighbours._replace(vectors=neighbours.vectors.float())
    one, other = (gradients(network("fast"), species, single, 300) for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_wrong_table_is_seen() -> None:
    """The negative control: with one radial weight changed behind the compiled form's back, the forms differ."""
    model = network("fast")
    species, positions, box = place("cubic")
    neighbours = model.search()(positions, box)
    single = neighbours._replace(vectors=neighbours.vectors.float())
    with torch.no_grad():
        before = prediction(model, species, single)
        model.backbone.layers[0].convolution.weights[0, 0, 0] += 0.1  # counted as a new version: the table follows
        after = prediction(model, species, single)
        with kernels.plain_form():
            plain = prediction(model, species, single)
    assert largest_difference(before, plain) > 10 * FLOAT32
    assert largest_difference(after, plain) < FLOAT32


def test_the_forward_pass_does_not_depend_on_threads() -> None:
    """Rows are whole pieces of work: one or more threads give the same bits."""
    model = network("tfn-2")
    species, positions, box = place("cubic")
    neighbours = model.search()(positions, box)
    single = neighbours._replace(vectors=neighbours.vectors.float())
    before, found = torch.get_num_threads(), []
    pairs = model.backbone.geometry(single)
    features = torch.randn(len(species), 9, 24)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            with torch.no_grad():
                found.append(model.backbone.blocks[1].convolution(features, pairs))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_positions_that_want_a_gradient_get_one() -> None:
    """The compiled form has no gradient in positions, so the plain one serves where it is asked for."""
    model = network("fast")
    species, positions, box = place("open")
    positions = positions.float().requires_grad_()
    neighbours = model.search()(positions, box)
    assert not kernels.serves(neighbours.vectors)
    (gradient,) = torch.autograd.grad(prediction(model, species, neighbours).square().sum(), positions)
    assert float(gradient.abs().max()) > 0


def test_nan_comes_out_as_nan() -> None:
    """A position that is NaN gives NaN forces, not a crash and not a number."""
    model = network("tfn-1")
    species, positions, box = place("open")
    neighbours = model.search()(positions, box)
    vectors = neighbours.vectors.float()
    vectors[3] = float("nan")
    with torch.no_grad():
        forces = prediction(model, species, neighbours._replace(vectors=vectors))
    assert bool(torch.isnan(forces[3]).all())


def single_precision(model: Model, system: str) -> tuple[Tensor, NeighbourMatrix]:
    """Return species and neighbours of a system as the compiled form takes them."""
    species, positions, box = place(system)
    neighbours = model.search()(positions, box)
    return species, neighbours._replace(vectors=neighbours.vectors.float())


def by_vector(model: Model) -> None:
    """Change all parameters by putting others in their place."""
    flat = torch.nn.utils.parameters_to_vector(model.parameters())
    torch.nn.utils.vector_to_parameters(0.9 * flat, model.parameters())


def by_data(model: Model) -> None:
    """Change all parameters behind the back of automatic differentiation."""
    for parameter in model.parameters():
        parameter.data.mul_(0.9)


def by_assignment(model: Model) -> None:
    """Load other parameters in place of the old ones."""
    scaled = {key: 0.9 * value if value.is_floating_point() else value for key, value in model.state_dict().items()}
    model.load_state_dict(scaled, assign=True)


@pytest.mark.parametrize("change", [by_vector, by_data, by_assignment])
def test_tables_follow_the_parameters(change: Callable[[Model], None]) -> None:
    """However parameters are changed, the next prediction is made with the new ones."""
    model = network("fast")
    species, neighbours = single_precision(model, "open")
    with torch.no_grad():
        before = prediction(model, species, neighbours)
        change(model)
        compiled = prediction(model, species, neighbours)
        with kernels.plain_form():
            plain = prediction(model, species, neighbours)
    assert largest_difference(before, plain) > 10 * FLOAT32
    assert largest_difference(compiled, plain) < 2 * FLOAT32


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_a_used_model_work(again: Callable[[Model], Model]) -> None:
    """A model whose tables are made can be copied and pickled; the copy makes its own."""
    model = network("fast")
    species, neighbours = single_precision(model, "open")
    with torch.no_grad():
        expected = prediction(model, species, neighbours)
        assert torch.equal(prediction(again(model), species, neighbours), expected)


def test_a_model_made_in_inference_mode_works() -> None:
    """Its parameters count no versions."""
    model = network("fast")
    species, neighbours = single_precision(model, "open")
    with torch.inference_mode():
        twin = build(model.config).eval()
        twin.load_state_dict(model.state_dict())
        assert torch.equal(prediction(twin, species, neighbours), prediction(model, species, neighbours))


@pytest.mark.parametrize("name", ["fast", "tfn-1"])
def test_a_matrix_not_made_by_a_search_serves(name: str) -> None:
    """Empty places inside rows, whatever stands in them, and neighbours beyond the cutoff mean the same to both."""
    model = network(name)
    species, neighbours = single_precision(model, "open")
    neighbours.vectors[::2, 0] *= 8.0 / (1.0 + neighbours.vectors[::2, 0].norm(dim=-1, keepdim=True))
    neighbours.mask[:, 1::3] = False
    foreign = torch.where(neighbours.mask, neighbours.indices, -7)
    with torch.no_grad():
        compiled = prediction(model, species, neighbours._replace(indices=foreign))
        with kernels.plain_form():
            plain = prediction(model, species, neighbours)
    assert largest_difference(compiled, plain) < 2 * FLOAT32


@pytest.mark.parametrize("index", [-1, 60, 2**32 + 1])
@pytest.mark.parametrize("name", ["fast", "tfn-1"])
def test_an_index_without_an_atom_is_refused(name: str, index: int) -> None:
    """What lies beside the features is never read."""
    model = network(name)
    species, neighbours = single_precision(model, "open")
    neighbours.indices[7, 0] = index
    with torch.no_grad(), pytest.raises(IndexError, match="1 rows of the neighbour matrix"):
        prediction(model, species, neighbours)


def test_indices_of_another_type_are_refused() -> None:
    """Compiled code would take two int32 for one index."""
    model = network("fast")
    species, neighbours = single_precision(model, "open")
    with torch.no_grad(), pytest.raises(TypeError, match="int64"):
        prediction(model, species, neighbours._replace(indices=neighbours.indices.int()))


def test_rows_too_long_for_the_stack_are_left_to_the_plain_form() -> None:
    """Tens of thousands of places would overflow it, which ends a process."""
    model = network("fast")
    _, neighbours = single_precision(model, "three atoms")
    for places, expected in ((kernels.MAX_PLACES, True), (kernels.MAX_PLACES + 1, False)):
        padding = [0, places - neighbours.mask.shape[1]]
        wide = [nn.functional.pad(part, [0] * 2 * (part.dim() - 2) + padding) for part in neighbours]
        assert model.backbone.geometry(NeighbourMatrix(*wide)).tabulated == expected


def test_transforms_and_recordings_take_the_plain_form() -> None:
    """torch.func and torch.jit.trace cannot look into compiled code."""
    model = network("fast")
    species, neighbours = single_precision(model, "open")

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        sizes = whole(len(species), model.capabilities.n_layers)
        found = torch.func.functional_call(model, parameters, (Atoms(species), neighbours, sizes))
        return found.forces.square().sum()

    found = torch.func.grad(loss)({key: value.detach() for key, value in model.named_parameters()})
    loss(dict(model.named_parameters())).backward()
    largest = max(float(value.grad.abs().max()) for value in model.parameters())
    for key, parameter in model.named_parameters():
        assert float((found[key] - parameter.grad).abs().max()) < 1e-4 * largest, key
