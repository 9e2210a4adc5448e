"""Bonded terms in the one training loop: fitted, trained, resumed, exported and judged with the network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS
from molecule_files import AMIDE, WATER, together, write_molecules

from data_pipeline import schema
from forcefield_ml.bonded import find_terms
from forcefield_ml.bonded.module import keys_of, table_of
from forcefield_ml.config import parse_config
from forcefield_ml.data import ForceDataset, Target
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.errors import ConfigError
from forcefield_ml.nn.embedding import types_of
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.evaluate import evaluate
from forcefield_ml.training.loop import TrainingResult, train
from forcefield_ml.units import MEV_PER_ANGSTROM

NETWORK = TINY_MODELS["fast"] | {"bonded": True, "cutoff": 0.3}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return liquids of amides in water."""
    splits = {"1aaa": "train", "2bbb": "train", "3ccc": "validation", "4ddd": "test"}
    return write_molecules(tmp_path_factory.mktemp("liquids") / "dataset.h5", splits, n_frames=3, parts=True)


@pytest.fixture
def settings(path: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "dataset": path,
        "output": tmp_path / "run",
        "model": NETWORK,
        "learning_rate": 0.01,
        "max_batches": 4,
        "validate_every": 2,
        "targets_per_batch": 40,
        "log_every": 1,
    }


def run(settings: dict[str, Any], **changes: Any) -> TrainingResult:
    return train(parse_config(TrainingConfig, settings | changes), quiet=True)


def naive(path: Path, target: Target | None = None) -> float:
    """Return the root mean square norm of the forces to learn, meV/Å."""
    return ForceDataset(path, "train", target).rms_target_force() * MEV_PER_ANGSTROM


def test_begins_with_what_the_fit_leaves(settings: dict[str, Any], path: Path) -> None:
    """Before a batch has taught it anything, the model's error is a small part of the forces; untouched keys stay."""
    result = run(settings, learning_rate=1e-12, max_batches=1, ema=0.0)
    assert result.metrics["tensor"] < 0.25 * result.metrics["naive"]["tensor"]
    without = run(settings, model=TINY_MODELS["fast"], output=settings["output"].with_name("bare"), max_batches=1)
    assert without.metrics["tensor"] > 0.6 * without.metrics["naive"]["tensor"]
    model, stored = files.load_model(result.checkpoint)
    assert 0 < stored.training["scale"] * MEV_PER_ANGSTROM < 0.25 * naive(path)
    # keys: of the amide alone and of no other surroundings, since water is no target
    expected = find_terms(*AMIDE)
    found = keys_of(model)
    for kind in ("bond", "angle", "proper", "improper"):
        assert set(found[kind].tolist()) == set(np.unique(expected[kind].keys).tolist())
    table = table_of(model)
    stiff = table.parameters(*AMIDE).values["bond"]
    assert np.all(stiff[:, 0] > 1e5) and np.all((stiff[:, 1] / stiff[:, 0] > 0.07) & (stiff[:, 1] < 0.25 * stiff[:, 0]))


def test_terms_of_new_molecules_are_added(settings: dict[str, Any], path: Path) -> None:
    """A model that learnt amides alone keeps what it knows of them, and has at once the bonds of their water."""
    first = run(settings, max_batches=30)
    settings |= {"target_atoms": "all", "start_from": first.checkpoint, "schedule": "constant", "ema": 0.0}
    wider = run(settings, output=settings["output"].with_name("all"), learning_rate=1e-12, max_batches=1)
    fresh = files.load(wider.checkpoint).training["started_from"]["fresh"]
    assert len(fresh) == 1 and fresh[0].endswith(" more kinds of bonded terms")
    before, after = (table_of(files.load_model(result.checkpoint)[0]) for result in (first, wider))
    water = find_terms(*WATER)
    for kind, keys in after.keys.items():
        new = set(keys.tolist()) - set(before.keys[kind].tolist())
        assert new == set(np.unique(water[kind].keys).tolist()) - set(before.keys[kind].tolist())
        old = np.isin(keys, before.keys[kind])
        np.testing.assert_allclose(after.values[kind][old], before.values[kind], rtol=1e-9)
    assert "bond" in {kind for kind, keys in after.keys.items() if len(keys) > len(before.keys[kind])}
    assert fresh[0].split()[0] == str(sum(len(after.keys[kind]) - len(before.keys[kind]) for kind in before.keys))
    stiff, place = after.parameters(*WATER).values["bond"][0]
    assert stiff > 5e4 and 0.07 < place / stiff < 0.14
    losses = []
    for n, rate in ((2, 1e-12), (60, 0.01)):
        changes = {"max_batches": n, "validate_every": n, "learning_rate": rate}
        losses.append(run(settings, output=settings["output"].with_name(str(n)), **changes).metrics["loss"])
    assert losses[1] < 0.8 * losses[0]


def test_parameters_are_trained(settings: dict[str, Any]) -> None:
    """They move with the network's weights, and both together learn on unseen frames what the fit left."""
    begun = run(settings, learning_rate=1e-12, max_batches=1, ema=0.0, output=settings["output"].with_name("begun"))
    result = run(settings, max_batches=40, validate_every=40, targets_per_batch=None, learning_rate=0.03)
    assert result.metrics["tensor"] < 0.7 * begun.metrics["tensor"]
    before, after = (table_of(files.load_model(one.checkpoint)[0]).values for one in (begun, result))
    assert all(not np.allclose(before[kind], after[kind], rtol=1e-6) for kind in before)


@pytest.mark.parametrize("head", ["vector", pytest.param("both", marks=pytest.mark.slow)])
def test_resumed_run_is_the_run_that_never_stopped(settings: dict[str, Any], tmp_path: Path, head: str) -> None:
    """The same weights bit by bit after a stop; the fit is not made again."""
    torch.set_num_threads(1)
    settings |= {"schedule": "constant", "ema": 0.9, "model": NETWORK | {"head": head}, "target_atoms": "all"}
    run(settings, output=tmp_path / "whole")
    assert run(settings, max_batches=2).n_batches == 2
    run(settings)
    expected, found = (files.load(folder / "last.pt").resume for folder in (tmp_path / "whole", settings["output"]))
    assert all(torch.equal(expected["state_dict"][key], found["state_dict"][key]) for key in expected["state_dict"])
    assert any("learnt_bond" in key and value.any() for key, value in found["state_dict"].items())


@pytest.mark.parametrize(
    ("model", "target"),
    [
        ({}, Target("total", "solute")),
        ({"type_depth": 2, "n_types": 32}, Target("total", "all")),
        ({"head": "energy"}, Target("total", "all")),
        pytest.param({}, Target("total_minus_reciprocal", "solute"), marks=pytest.mark.slow),
        pytest.param({}, Target("solute_alone", "solute"), marks=pytest.mark.slow),
    ],
    ids=["elements", "types", "energy", "reciprocal", "solute_alone"],
)
def test_checkpoint_and_file_are_judged_alike(
    settings: dict[str, Any], path: Path, tmp_path: Path, model: dict[str, Any], target: Target
) -> None:
    """What the loader's batches give, `model.pt` gives with terms of its own; with other targets and networks, too."""
    settings |= {"model": NETWORK | model, "target": target.name, "target_atoms": target.atoms, "max_batches": 3}
    checkpoint = run(settings).checkpoint
    eager = evaluate(checkpoint, path, quiet=True)
    exported = evaluate(bundle.export(checkpoint, tmp_path / "model.pt"), path, quiet=True)
    for key in ("tensor", "magnitude", "angle", "pearson"):
        assert exported[key] == pytest.approx(eager[key], rel=1e-4)
    assert exported["weights_sha256"] == eager["weights_sha256"]
    assert (types_of(files.load_model(checkpoint)[0]) is not None) == ("type_depth" in model)
    assert eager["tensor"] < 0.3 * eager["naive"]["tensor"]


def test_a_run_begins_with_the_terms_of_another(settings: dict[str, Any], tmp_path: Path) -> None:
    """Fit, and what was learnt since, are taken with the network; a checkpoint without terms is another network."""
    first = run(settings, output=tmp_path / "first")
    second = run(settings, start_from=first.checkpoint, learning_rate=1e-12, ema=0.0, max_batches=1)
    one, other = (table_of(files.load_model(result.checkpoint)[0]) for result in (first, second))
    for kind in one.keys:
        assert np.array_equal(one.keys[kind], other.keys[kind])
        assert np.allclose(one.values[kind], other.values[kind], rtol=1e-6)
    bare = run(settings, model=NETWORK | {"bonded": False}, output=tmp_path / "bare", max_batches=1)
    with pytest.raises(ConfigError, match=r"another network .*bonded was False, is True"):
        run(settings, start_from=bare.checkpoint, output=tmp_path / "third")


def test_a_run_from_before_there_were_terms_goes_on(settings: dict[str, Any]) -> None:
    """A recipe that does not name them is that of a network alone."""
    settings |= {"model": NETWORK | {"bonded": False}}
    run(settings, max_batches=2)
    path = settings["output"] / "last.pt"
    former = files.load(path)
    del former.training["recipe"]["model"]["bonded"], former.model_config["bonded"]
    files.save(path, former)
    assert run(settings).n_batches == 4
    with pytest.raises(ConfigError, match="other settings: model"):
        run(settings, model=NETWORK)


def test_magnitudes_have_no_terms(settings: dict[str, Any]) -> None:
    """A model of magnitudes cannot add a vector: refused before anything is made."""
    with pytest.raises(ConfigError, match="bonded"):
        run(settings, model=TINY_MODELS["tfn0"] | {"bonded": True})
    assert not settings["output"].exists()


def test_visited_frames_alone(settings: dict[str, Any], path: Path, tmp_path: Path) -> None:
    """A dataset of frames that a model visited, and no others, serves the fit as well."""
    visited = write_molecules(tmp_path / "visited.h5", {"1aaa": "train", "3ccc": "validation"}, n_frames=3)
    with h5py.File(visited, "r+") as file:
        file.attrs["protocol"] = schema.VISITED
    result = run(settings, dataset=visited, max_batches=1)
    assert result.metrics["tensor"] < 0.3 * result.metrics["naive"]["tensor"]


def test_water_is_learnt_where_it_is_a_target(settings: dict[str, Any]) -> None:
    """With forces on all atoms its terms have keys, too."""
    model = files.load_model(run(settings, target_atoms="all", max_batches=1).checkpoint)[0]
    expected = find_terms(*together(AMIDE, WATER))
    assert all(set(np.unique(expected[kind].keys)) == set(keys_of(model)[kind]) for kind in expected)
