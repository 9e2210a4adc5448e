"""From the target in the configuration to the card, and what such a model is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS, write_dataset

from forcefield_ml import models
from forcefield_ml.config import parse_config
from forcefield_ml.data import ForceDataset, Target
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.errors import ConfigError, DatasetError, ForceModeError
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.evaluate import evaluate, table
from forcefield_ml.training.loop import train
from forcefield_ml.training.metrics import force_metrics
from forcefield_ml.training.predict import run

TARGETS = [
    Target("total", "all"),
    Target("total_minus_reciprocal", "solute"),
    Target("total_minus_reciprocal", "all"),
    Target("solute_alone", "solute"),
    Target("reference_minus_mm", "solute"),
]


@pytest.fixture(scope="module")
def parts_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a dataset with every part."""
    splits = {"1aaa": "train", "2bbb": "validation", "3ccc": "test", "4ddd": "test"}
    return write_dataset(tmp_path_factory.mktemp("parts") / "dataset.h5", splits, parts=True)


def settings(dataset: Path, output: Path, target: Target, **changes: Any) -> TrainingConfig:
    values = {
        "dataset": dataset,
        "output": output,
        "model": TINY_MODELS["fast"],
        "target": target.name,
        "target_atoms": target.atoms,
        "max_batches": 4,
        "targets_per_batch": 20,
    }
    return parse_config(TrainingConfig, values | changes)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.name}-{target.atoms}")
def test_from_training_to_evaluation(target, parts_path, tmp_path):
    """The checkpoint and the card tell the target; both files are judged alike, on what the card decides."""
    checkpoint = train(settings(parts_path, tmp_path / "run", target), quiet=True).checkpoint
    path = bundle.export(checkpoint, tmp_path / "model.pt")
    card = bundle.read_card(path)
    assert (card["predicts"], card["target_atoms"]) == (target.name, target.atoms)
    if target.name == "total_minus_reciprocal":
        assert card["reciprocal"]["alpha"] == 4.5 and card["reciprocal"]["force_field"] == ["analytic"]
    else:
        assert "reciprocal" not in card
    assert card["training"]["mm_force_field"] == (["mm.xml"] if target.name == "reference_minus_mm" else None)
    found = evaluate(path, parts_path, per_atom=tmp_path / "atoms.npz", quiet=True)
    eager = evaluate(checkpoint, parts_path, quiet=True)
    assert found["tensor"] == pytest.approx(eager["tensor"], rel=1e-4)
    judge = ForceDataset(parts_path, "test", Target("solute_alone") if target.alone else Target())
    true = np.concatenate([judge[i].forces[judge[i].entry.target_mask] for i in range(len(judge))])
    with np.load(tmp_path / "atoms.npz") as atoms:
        assert np.allclose(atoms["target"], true, rtol=1e-5, atol=1e-2)
        pooled = force_metrics(atoms["predicted"], true)
    assert {key: found[key] for key in pooled} == pytest.approx(pooled, rel=1e-4)
    assert found["n_atoms"] == len(true), "judged by the marked atoms, whatever was learnt"
    assert found["predicts"] == target.name
    assert found["compared_with"] == ("solute_alone" if target.alone else "total")
    assert ("others" in found) == (target.atoms == "all")
    assert ("network" in found) == (target.supplied is not None)
    if target.supplied is not None:
        learnt = ForceDataset(parts_path, "test", Target(target.name))
        own = [np.linalg.norm(learnt[i].forces[learnt[i].entry.marked], axis=1) for i in range(len(learnt))]
        assert found["network"]["naive"]["tensor"] == pytest.approx(np.concatenate(own).mean() * 1.0364, rel=1e-3)
        assert found["network"]["tensor"] == pytest.approx(found["tensor"], rel=1e-3)
        assert "network predicts itself" in table(found)


def test_what_openmm_supplies_is_added_before_judging(parts_path):
    """A network that is right about its part makes no error in the total; one that learnt the total does."""
    part, total = (ForceDataset(parts_path, "test", Target(n)) for n in ("total_minus_reciprocal", "total"))

    def oracle(dataset: ForceDataset) -> Any:
        def predict(item: int) -> models.Prediction:
            sample = dataset[item]
            return models.Prediction(torch.from_numpy(sample.forces[sample.entry.target_mask]), None, None)

        return predict

    atoms = run(part, oracle(part))
    assert force_metrics(atoms.predicted, atoms.target)["tensor"] == 0
    assert np.allclose(atoms.target, run(total, oracle(total)).target, rtol=1e-5, atol=1e-3)
    atoms = run(part, oracle(total))
    twice = np.linalg.norm(atoms.predicted - atoms.target, axis=1)
    assert np.allclose(twice, np.linalg.norm(atoms.supplied, axis=1), rtol=1e-3, atol=1e-2) and twice.min() > 1


def test_a_run_keeps_its_target(parts_path, tmp_path):
    """Going on with another target, or other atoms, is refused; a run from before there were targets was for total."""
    train(settings(parts_path, tmp_path, Target()), quiet=True)
    for other, named in ((Target("total_minus_reciprocal"), "target"), (Target("total", "all"), "target_atoms")):
        with pytest.raises(ConfigError, match=rf"other settings: {named}\."):
            train(settings(parts_path, tmp_path, other, max_batches=6), quiet=True)
    assert train(settings(parts_path, tmp_path, Target(), max_batches=6), quiet=True).n_batches == 6


def test_what_cannot_be_learnt_is_refused(parts_path, dataset_path, tmp_path):
    """A part that the dataset lacks, a pair that does not go, magnitudes to which vectors would be added."""
    with pytest.raises(DatasetError, match=r"label: {parts: \[solute\]}"):
        train(settings(dataset_path, tmp_path, Target("solute_alone")), quiet=True)
    with pytest.raises(ConfigError, match="target_atoms must be 'solute'"):
        settings(parts_path, tmp_path, Target("solute_alone"), target_atoms="all")
    with pytest.raises(ConfigError, match="target is 'totl'"):
        parse_config(TrainingConfig, settings(parts_path, tmp_path, Target()).model_dump() | {"target": "totl"})
    with pytest.raises(ConfigError, match="order 0"):
        train(settings(parts_path, tmp_path, Target("total_minus_reciprocal"), model=TINY_MODELS["tfn0"]), quiet=True)


def test_an_open_dataset_of_another_target_is_refused(parts_path, dataset_path, tmp_path):
    """What a file predicts must be what the frames hold; a dataset without the part names the pipeline's setting."""
    checkpoint = train(settings(parts_path, tmp_path, Target("solute_alone")), quiet=True).checkpoint
    with pytest.raises(ForceModeError, match=r"predicts 'solute_alone'.*target 'total'"):
        evaluate(checkpoint, ForceDataset(parts_path, "test"), quiet=True)
    with pytest.raises(DatasetError, match=r"label: {parts: \[solute\]}"):
        evaluate(checkpoint, dataset_path, quiet=True)
