"""A table as weights of a model: the same forces as the terms of a system, trainable, and found again in a file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS
from molecule_files import AMIDE, WATER, Molecule, chosen_table, conformers, together

from forcefield_ml import models
from forcefield_ml.bonded import KINDS, BondedTable, find_terms
from forcefield_ml.bonded.batch import joined, looked_up, term_batch
from forcefield_ml.bonded.bound import BoundTerms, bound_terms
from forcefield_ml.bonded.geometry import N_FUNCTIONS, slopes
from forcefield_ml.bonded.module import FLOOR, ROOM, Bonded, keys_of, table_of
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.archive import replace_card
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import ConfigError, ModelFileError
from forcefield_ml.models.interface import Prediction

MOLECULE = together(AMIDE, WATER, WATER)
SLOPES = 1e-5
"""Of the forces: a batch has its slopes in single precision, and stiff terms nearly cancel."""


@pytest.fixture(scope="module")
def table() -> BondedTable:
    """A table of amide and water."""
    return chosen_table(MOLECULE, seed=3)


@pytest.fixture(scope="module")
def positions(table: BondedTable) -> torch.Tensor:
    """One frame (N, 3)."""
    return torch.from_numpy(conformers(MOLECULE, table, 1)[0])


def learnt(table: BondedTable, scale: float = 100.0) -> Bonded:
    """Return a module that has learnt something since the fit."""
    bonded = Bonded()
    bonded.set_table(table, scale)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in bonded.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    return bonded


def rows_of(targets: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the row of each atom among targets that come in some order; those that are none: beyond."""
    rows = np.full(len(targets), int(targets.sum()), dtype=np.int64)
    rows[np.flatnonzero(targets)[order]] = np.arange(int(targets.sum()))
    return rows


def frame_forces(table: BondedTable, molecule: Molecule, positions: torch.Tensor) -> torch.Tensor:
    return BoundTerms(table.parameters(*molecule))(positions)


@pytest.mark.parametrize("which", ["all", "some", "in another order"])
def test_forces_of_a_batch_are_those_of_the_system(table: BondedTable, positions: torch.Tensor, which: str) -> None:
    """For all atoms or some of them, of terms whose other atoms are no targets, in whatever order they come."""
    bonded = learnt(table)
    n = len(MOLECULE.species)
    targets = np.ones(n, dtype=bool) if which == "all" else np.arange(n) % 3 == 1
    order = np.arange(int(targets.sum()))
    if which == "in another order":
        order = np.random.default_rng(0).permutation(order)
    terms = looked_up(find_terms(*MOLECULE), table.keys)
    batch = term_batch(terms, positions.numpy(), None, rows_of(targets, order), len(order))
    found = bonded(batch, len(order))
    expected = frame_forces(bonded.table(), MOLECULE, positions)[targets][order]
    assert (found - expected).norm() < SLOPES * expected.norm()
    before = frame_forces(table, MOLECULE, positions)[targets][order]
    assert (found - before).norm() > 1e-2 * expected.norm(), "what was learnt matters"


def test_terms_that_move_no_target_are_left_out(table: BondedTable, positions: torch.Tensor) -> None:
    """One hydrogen's batch holds its own terms alone, in a box with molecules in pieces, too."""
    terms = looked_up(find_terms(*MOLECULE), table.keys)
    targets = np.arange(len(MOLECULE.species)) == 1
    box = 2.0 * np.eye(3)
    places = positions.numpy() + np.random.default_rng(1).integers(-1, 2, size=positions.shape) @ box
    batch = term_batch(terms, places, box, rows_of(targets, np.arange(1)), 1)
    # a bond, three angles, and the dihedrals to oxygen and nitrogen
    assert len(batch.rows) == 1 * 2 + 3 * 2 + 2 * 4
    expected = frame_forces(table, MOLECULE, positions)[targets]
    bonded = Bonded()
    bonded.set_table(table, 1.0)
    assert (bonded(batch, 1) - expected).norm() < SLOPES * expected.norm()


def test_two_frames_in_one_batch(table: BondedTable, positions: torch.Tensor) -> None:
    """Rows of the second frame follow those of the first, mixed in any order."""
    bonded = learnt(table)
    n = len(MOLECULE.species)
    other = positions + 0.003 * torch.randn(n, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    terms = looked_up(find_terms(*MOLECULE), table.keys)
    order = np.random.default_rng(3).permutation(2 * n)
    rows = np.argsort(order)
    parts = [term_batch(terms, p.numpy(), None, rows[k * n :][:n], 2 * n) for k, p in enumerate((positions, other))]
    found = bonded(joined(parts), 2 * n)
    expected = torch.cat([frame_forces(bonded.table(), MOLECULE, p) for p in (positions, other)])[order]
    assert (found - expected).norm() < SLOPES * expected.norm()


def test_keys_can_be_added(table: BondedTable, positions: torch.Tensor) -> None:
    """What was known keeps what it learnt, what is new begins with the values given; both are learnt at their rate."""
    amides = chosen_table(AMIDE, seed=3)
    known = {kind: np.isin(table.keys[kind], amides.keys[kind]) for kind in KINDS}
    fresh = BondedTable(*({kind: part[kind][~known[kind]] for kind in KINDS} for part in table))
    bonded = learnt(amides)
    before = bonded.table()
    bonded.add_table(fresh, 100.0)
    after = bonded.table()
    for kind in KINDS:
        assert np.array_equal(after.keys[kind], table.keys[kind])
        assert np.array_equal(after.values[kind][known[kind]], before.values[kind])
        assert np.array_equal(after.values[kind][~known[kind]], table.values[kind][~known[kind]])
    whole = Bonded()
    whole.set_table(table, 100.0)
    for kind in KINDS:
        assert torch.equal(bonded.get_buffer(f"transform_{kind}"), whole.get_buffer(f"transform_{kind}"))
    assert sum(map(len, fresh.keys.values())) > 0
    water = frame_forces(after, MOLECULE, positions)[12:]
    assert torch.equal(water, frame_forces(table, MOLECULE, positions)[12:])


def test_no_more_keys_are_added_than_there_is_room_for(table: BondedTable) -> None:
    """Refused, naming the kind."""
    bonded = Bonded()
    bonded.set_table(table, 1.0)
    keys = np.arange(ROOM["bond"], dtype=np.int64)
    many = BondedTable(
        {kind: keys if kind == "bond" else np.zeros(0, dtype=np.int64) for kind in KINDS},
        {kind: np.zeros((len(keys) if kind == "bond" else 0, N_FUNCTIONS[kind])) for kind in KINDS},
        {kind: np.tile(np.eye(N_FUNCTIONS[kind]), (len(keys) if kind == "bond" else 0, 1, 1)) for kind in KINDS},
    )
    assert len(keys) + len(table.keys["bond"]) > ROOM["bond"]
    with pytest.raises(ConfigError, match=f"kinds of bond terms, a model has room for {ROOM['bond']}"):
        bonded.add_table(many, 1.0)


def test_unknown_terms_pull_at_nothing(table: BondedTable, positions: torch.Tensor) -> None:
    """What has no key adds nothing: here the water of a table of amides."""
    amides = chosen_table(AMIDE, seed=3)
    bonded = Bonded()
    bonded.set_table(amides, 1.0)
    n = len(MOLECULE.species)
    batch = term_batch(looked_up(find_terms(*MOLECULE), amides.keys), positions.numpy(), None, np.arange(n), n)
    found = bonded(batch, n)
    assert not found[12:].any() and found[:12].norm(dim=1).min() > 1


def test_gradients_reach_what_is_learnt(table: BondedTable, positions: torch.Tensor) -> None:
    """Every key in use has a gradient, by finite differences the right one; rows without a key have none."""
    bonded = learnt(table)
    n = len(MOLECULE.species)
    batch = term_batch(looked_up(find_terms(*MOLECULE), table.keys), positions.numpy(), None, np.arange(n), n)
    weights = torch.randn(n, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    (bonded(batch, n) * weights).sum().backward()
    for kind in KINDS:
        parameter = bonded.get_parameter(f"learnt_{kind}")
        assert parameter.ndim == 1 and parameter.grad is not None
        used = len(table.keys[kind]) * N_FUNCTIONS[kind]
        assert parameter.grad[:used].all() and not parameter.grad[used:].any()
        at = int(parameter.grad.abs().argmax())
        with torch.no_grad():
            values = []
            for step in (0.5, -0.5):  # forces are linear in it
                parameter[at] += step
                values.append(float((bonded(batch, n) * weights).sum()))
                parameter[at] -= step
        assert values[0] - values[1] == pytest.approx(float(parameter.grad[at]), rel=1e-3)


def test_bfloat16_does_not_touch_parameters(table: BondedTable, positions: torch.Tensor) -> None:
    """A run with precision bf16 computes them as a file of it will: parts of stiff terms cancel to the last digits."""
    bonded = learnt(table)
    n = len(MOLECULE.species)
    batch = term_batch(looked_up(find_terms(*MOLECULE), table.keys), positions.numpy(), None, np.arange(n), n)
    with torch.autocast("cpu", torch.bfloat16):
        found = bonded(batch, n)
    expected = bonded(batch, n)
    assert (found - expected).norm() < SLOPES * expected.norm()


def test_bfloat16_does_not_touch_forces(table: BondedTable, positions: torch.Tensor) -> None:
    """Nor does a network whose own forces are in bfloat16 take their digits."""
    model = models.build({**TINY_MODELS["fast"], "bonded": True})
    model.bonded.load_state_dict(learnt(table).state_dict())
    n = len(MOLECULE.species)
    batch = term_batch(looked_up(find_terms(*MOLECULE), table.keys), positions.numpy(), None, np.arange(n), n)
    network = Prediction(torch.zeros(n, 3, dtype=torch.bfloat16), None, None)
    found = model.whole(network, batch).forces
    assert found is not None and found.dtype == torch.float32
    assert (found - model.bonded(batch, n)).norm() < SLOPES * found.norm()


@pytest.mark.parametrize("broken", ["order", "nan", "shape", "lacking", "gap"])
def test_tables_of_a_file_are_checked(table: BondedTable, broken: str) -> None:
    """Keys out of order, numbers that are none, other shapes: refused by name, not read as something else."""
    bonded = learnt(table)
    if broken == "order":
        bonded.keys_angle[:2] = bonded.keys_angle[:2].flip(0)
    elif broken == "nan":
        bonded.reference_angle[0, 0] = float("nan")
    elif broken == "shape":
        bonded.register_buffer("reference_angle", bonded.reference_angle[:-1])
    elif broken == "gap":
        bonded.keys_angle[0] = torch.iinfo(torch.int64).max
    else:
        del bonded.reference_angle
    with pytest.raises(ModelFileError, match="table of angle terms"):
        table_of(torch.nn.ModuleDict({"bonded": bonded}))
    assert table_of(torch.nn.ModuleDict({"bonded": learnt(table)})) is not None


def test_card_and_weights_have_to_agree(tmp_path: Path) -> None:
    """A file whose card tells of bonded terms that it does not hold would give a tenth of the force."""
    model = models.build(TINY_MODELS["fast"]).eval()
    card = make_card(model)
    path = bundle.write(model, card, tmp_path / "model.pt")
    card["model_config"]["bonded"] = True
    told = replace_card(path.read_bytes(), json.dumps(card), "model.pt")
    (tmp_path / "other.pt").write_bytes(told)
    with pytest.raises(ModelFileError, match="the card says bonded: true"):
        bundle.read(tmp_path / "other.pt")


def test_a_step_of_any_weight_moves_forces_alike(positions: torch.Tensor) -> None:
    """The whitening: stiffness and place, whose own functions nearly cancel, change the force by the scale each."""
    random = np.random.default_rng(0)
    products = random.normal(size=(1, 2, 2))
    gram = {kind: np.zeros((0, n, n)) for kind, n in N_FUNCTIONS.items()}
    one = BondedTable.empty()
    table = BondedTable({**one.keys, "bond": np.array([7])}, {**one.values, "bond": np.array([[3.0, 4.0]])}, gram)
    vectors = torch.tensor([[[0.1 + d, 0, 0]] for d in (-0.004, -0.002, 0.0, 0.002, 0.004)], dtype=torch.float64)
    each = slopes("bond", vectors).flatten(2)
    products = (each @ each.mT).mean(0, keepdim=True).numpy()
    bonded = Bonded()
    bonded.set_table(table._replace(gram={**gram, "bond": products}), 50.0)
    transform = bonded.transform_bond[0].double()
    moved = transform.T @ torch.from_numpy(products[0]) @ transform
    assert FLOOR["bond"] < 1e-3
    assert torch.allclose(moved, 2500 * torch.eye(2, dtype=torch.float64), rtol=0.02, atol=50)
    assert float(moved[0, 1].abs()) < 0.02 * 2500
    plain = products[0][0, 1] / np.sqrt(products[0][0, 0] * products[0][1, 1])
    assert abs(plain) > 0.99, "the control: unwhitened they are nearly one function"


def test_the_fit_comes_back(table: BondedTable) -> None:
    """Exactly, though it is put into a table with room; a second fit replaces the first."""
    bonded = learnt(chosen_table(AMIDE, 3))
    bonded.set_table(table, 10.0)
    found = bonded.table()
    for kind in KINDS:
        assert np.array_equal(found.keys[kind], table.keys[kind])
        assert np.array_equal(found.values[kind], table.values[kind])


def test_more_kinds_than_there_is_room_for() -> None:
    """Refused, with both numbers and what to do."""
    n = ROOM["angle"] + 1
    one = BondedTable.empty()
    gram = {kind: np.zeros((0, k, k)) for kind, k in N_FUNCTIONS.items()}
    table = BondedTable({**one.keys, "angle": np.arange(n)}, {**one.values, "angle": np.zeros((n, 2))}, gram)
    told = f"the data have {n} kinds of angle terms, a model has room for {n - 1}.*leave model.bonded out"
    with pytest.raises(ConfigError, match=told):
        Bonded().set_table(table, 1.0)
    fewer = BondedTable({**one.keys, "angle": np.arange(n - 1)}, {**one.values, "angle": np.zeros((n - 1, 2))}, gram)
    Bonded().set_table(fewer._replace(gram={**gram, "angle": np.tile(np.eye(2), (n - 1, 1, 1))}), 1.0)


@pytest.mark.parametrize("head", ["vector", pytest.param("both", marks=pytest.mark.slow)])
def test_table_is_found_in_any_model(head: str, table: BondedTable, tmp_path: Path) -> None:
    """Eager, scripted and exported, in float64, too; of two heads there is one table; without terms there is none."""
    config = TINY_MODELS["fast"] | {"head": head, "bonded": True}
    model = models.build_for_training(models.parse_config(config)).eval()
    parts = list(model.parts.values())
    assert parts[0].bonded is parts[-1].bonded
    parts[0].bonded.load_state_dict(learnt(table).state_dict())
    expected = learnt(table).table()
    path = bundle.write(parts[-1], make_card(parts[-1], target_atoms="all"), tmp_path / "model.pt")
    loaded = bundle.read(path)[1]
    for module in (model, loaded):
        found = table_of(module)
        assert found is not None
        for kind in KINDS:
            assert np.array_equal(keys_of(module)[kind], table.keys[kind])
            assert np.array_equal(found.keys[kind], table.keys[kind])
            assert np.allclose(found.values[kind], expected.values[kind], rtol=1e-12)
    cached = bundle.eager(bundle.read_card(path), loaded)
    assert cached is not None
    assert np.allclose(table_of(cached).values["bond"], expected.values["bond"], rtol=1e-6)
    doubled = table_of(loaded.double())
    assert np.allclose(doubled.values["bond"], expected.values["bond"], rtol=1e-6)
    bare = models.build(TINY_MODELS["fast"])
    assert table_of(bare) is None and keys_of(bare) is None and bare.bonded is None


@pytest.mark.parametrize("compiled", [False, True])
def test_a_network_is_completed(table: BondedTable, positions: torch.Tensor, compiled: bool) -> None:
    """Forces of the targets and the energy are added to a prediction's; nothing else changes."""
    bound = BoundTerms(table.parameters(*MOLECULE))
    module = torch.jit.script(bound) if compiled else bound
    n = len(MOLECULE.species)
    targets = torch.arange(n) % 4 != 0
    network = Prediction(torch.ones(int(targets.sum()), 3), None, torch.tensor(7.0))
    found = Prediction(*module.complete(network, positions, None, targets))
    torch.testing.assert_close(found.forces, 1 + bound(positions)[targets].float())
    assert float(found.energy) == pytest.approx(7.0 + float(bound.energy(positions)), rel=1e-9)
    everywhere = Prediction(*module.complete(Prediction(torch.zeros(n, 3), None, None), positions, None, None))
    torch.testing.assert_close(everywhere.forces, bound(positions).float())
    assert everywhere.energy is None
    magnitudes = Prediction(None, torch.ones(n), None)
    assert Prediction(*module.complete(magnitudes, positions, None, None)).forces is None


def test_no_terms_change_nothing(positions: torch.Tensor) -> None:
    """A model without bonded terms is completed by nothing."""
    network = Prediction(torch.rand(len(positions), 3), None, None)
    bound = bound_terms(models.build(TINY_MODELS["fast"]), *MOLECULE)
    assert bound.n_terms == 0 and torch.equal(bound.complete(network, positions, None, None).forces, network.forces)
