"""Evaluation: pooled atoms, by protein and element, for eager, checkpoint and exported models alike."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS, write_dataset
from typer.testing import CliRunner

from forcefield_ml import models
from forcefield_ml.cli import app
from forcefield_ml.config import parse_config
from forcefield_ml.data import ForceDataset
from forcefield_ml.errors import DatasetError, ModelFileError
from forcefield_ml.models.fingerprint import weights_sha256
from forcefield_ml.training import checkpoint as checkpoints
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.evaluate import evaluate, table
from forcefield_ml.training.loop import train
from forcefield_ml.training.metrics import force_metrics
from forcefield_ml.training.predict import run
from forcefield_ml.units import MEV_PER_ANGSTROM


@pytest.fixture(scope="module")
def checkpoint(dataset_path, tmp_path_factory) -> Path:
    """Return a fast model after some batches."""
    values = {
        "dataset": dataset_path,
        "output": tmp_path_factory.mktemp("run"),
        "model": TINY_MODELS["fast"],
        "learning_rate": 0.02,
        "max_batches": 25,
    }
    return train(parse_config(TrainingConfig, values), quiet=True).checkpoint


def test_numbers_are_those_of_the_pooled_atoms(checkpoint, dataset_path, tmp_path):
    """Every target atom of the split has weight one; proteins and elements partition them."""
    found = evaluate(checkpoint, dataset_path, "test", per_atom=tmp_path / "atoms.npz", quiet=True)
    with np.load(tmp_path / "atoms.npz", allow_pickle=False) as arrays:
        atoms = dict(arrays)
    dataset = ForceDataset(dataset_path, "test")
    true = np.concatenate([dataset[item].forces[dataset[item].entry.target_mask] for item in range(len(dataset))])
    assert np.array_equal(atoms["target"], true) and found["n_atoms"] == len(true)
    pooled = force_metrics(atoms["predicted"], true)
    assert {key: found[key] for key in pooled} == pytest.approx(pooled)
    each = found["proteins"]["each"]
    assert list(each) == ["5eee", "6fff"]
    for groups in (each, found["elements"]):
        assert sum(group["n_atoms"] for group in groups.values()) == len(true)
        assert sum(group["n_atoms"] * group["tensor"] for group in groups.values()) == pytest.approx(
            len(true) * found["tensor"]
        )
    assert found["proteins"]["mean"]["tensor"] == pytest.approx(np.mean([p["tensor"] for p in each.values()]))
    assert set(found["elements"]) <= {"H", "C", "N", "O"}
    assert found["training"]["n_batches"] == 25


def test_residues_are_those_of_the_marked_atoms(checkpoint, dataset_path, tmp_path):
    """Each name's metrics are those of its atoms, found one by one in the file; water and ions are not among them."""
    path = tmp_path / "named.h5"
    shutil.copy(dataset_path, path)
    with h5py.File(path, "r+") as file:
        for number, group in enumerate(file["entries"].values()):
            marked = group["target_mask"][:]
            names = np.array([b"ALA", b"HIE", b"GLY"])[(np.arange(len(marked)) + number) % 3]
            group["residue_names"][:] = np.where(marked, names, b"HOH")
    found = evaluate(checkpoint, path, "test", per_atom=tmp_path / "atoms.npz", quiet=True)
    with np.load(tmp_path / "atoms.npz", allow_pickle=False) as arrays, h5py.File(path) as file:
        atoms = dict(arrays)
        names = [
            file["entries"][atoms["entries"][entry]]["residue_names"][atom].decode()
            for entry, atom in zip(atoms["entry"], atoms["atom"], strict=True)
        ]
    assert list(found["residues"]) == ["ALA", "GLY", "HIE"]
    for name, metrics in found["residues"].items():
        rows = np.array([other == name for other in names])
        expected = force_metrics(atoms["predicted"][rows], atoms["target"][rows])
        assert {key: metrics[key] for key in expected} == pytest.approx(expected) and metrics["n_atoms"] == rows.sum()
        assert metrics["naive"]["tensor"] > 0


def test_ends_are_those_of_the_chain(checkpoint, dataset_path, tmp_path):
    """First and last residue of each entry's marked atoms, found one by one in the file, and all between."""
    path = tmp_path / "numbered.h5"
    shutil.copy(dataset_path, path)
    with h5py.File(path, "r+") as file:
        for shift, group in enumerate(file["entries"].values()):
            marked = group["target_mask"][:]
            rank = np.cumsum(marked) - 1
            group["residue_index"][:] = np.where(marked, 2 + shift + rank // (5 + shift), 0)  # water before the chain
    found = evaluate(checkpoint, path, "test", per_atom=tmp_path / "atoms.npz", quiet=True)
    with np.load(tmp_path / "atoms.npz", allow_pickle=False) as arrays, h5py.File(path) as file:
        atoms = dict(arrays)
        ends = []
        for entry, atom in zip(atoms["entry"], atoms["atom"], strict=True):
            group = file["entries"][atoms["entries"][entry]]
            numbers = group["residue_index"][:]
            own = numbers[group["target_mask"][:].astype(bool)]
            ends.append({own[0]: "first", own[-1]: "last"}.get(numbers[atom], "inside"))
    worst = np.linalg.norm(atoms["predicted"] - atoms["target"], axis=1).max() * MEV_PER_ANGSTROM
    assert found["tail"]["largest"] == pytest.approx(worst) and f"largest {worst:.1f} meV/Å" in table(found)
    assert list(found["ends"]) == ["first", "inside", "last"] and set(ends) == set(found["ends"])
    for name, metrics in found["ends"].items():
        rows = np.array([other == name for other in ends])
        expected = force_metrics(atoms["predicted"][rows], atoms["target"][rows])
        assert {key: metrics[key] for key in expected} == pytest.approx(expected) and metrics["n_atoms"] == rows.sum()


def test_oracle_and_zero(dataset_path):
    """Controls: a model that returns the truth has no error, one that returns zero has the naive one."""
    dataset = ForceDataset(dataset_path, "test")

    def oracle(item: int) -> models.Prediction:
        sample = dataset[item]
        return models.Prediction(torch.from_numpy(sample.forces[sample.entry.target_mask]), None, None)

    def zero(item: int) -> models.Prediction:
        return models.Prediction(torch.zeros(int(dataset[item].entry.target_mask.sum()), 3), None, None)

    atoms = run(dataset, oracle)
    assert force_metrics(atoms.predicted, atoms.target)["tensor"] == 0
    atoms = run(dataset, zero)
    assert force_metrics(atoms.predicted, atoms.target)["relative"] == pytest.approx(1)


def test_exported_model_has_the_same_metrics(checkpoint, dataset_path, tmp_path):
    """model.pt and its checkpoint give the same numbers, though one searches neighbours itself."""
    bundle = pytest.importorskip("forcefield_ml.deploy.model_file.bundle")
    bundle.export(checkpoint, tmp_path / "model.pt")
    exported = evaluate(tmp_path / "model.pt", dataset_path, quiet=True)
    eager = evaluate(checkpoint, dataset_path, quiet=True)
    for key in ("tensor", "magnitude", "angle", "pearson"):
        assert exported[key] == pytest.approx(eager[key], rel=1e-4)
    assert exported["training"] == eager["training"]
    loaded = checkpoints.load_model(checkpoint)[0]
    assert exported["weights_sha256"] == eager["weights_sha256"] == weights_sha256(loaded.state_dict())
    assert evaluate(loaded, dataset_path, quiet=True)["weights_sha256"] == eager["weights_sha256"]


def test_command_writes_json_and_prints_a_table(checkpoint, dataset_path, tmp_path):
    """`forcefield-ml evaluate` writes JSON that any reader takes, and shows the naive numbers beside."""
    out = tmp_path / "metrics.json"
    result = CliRunner().invoke(app, ["evaluate", str(checkpoint), str(dataset_path), "--json", str(out)])
    assert result.exit_code == 0, result.output
    metrics = json.loads(out.read_text())
    assert metrics["split"] == "test" and metrics["naive"]["angle"] == 90.0
    assert f"{metrics['tensor']:.1f}" in result.stdout and "naive" in result.stdout


def test_training_command_takes_the_shipped_examples(tmp_path):
    """The configurations of the demo are valid; a batch of each runs from the command line."""
    dataset_path = write_dataset(tmp_path / "dataset.h5", {"1aaa": "train"}, n_atoms=250)
    examples = Path(__file__).parents[3] / "examples" / "demo"
    for name in ("train_fast", "train_tfn"):
        command = ["train", str(examples / f"{name}.yaml"), "--dataset", str(dataset_path), "--max-batches", "1"]
        result = CliRunner().invoke(app, [*command, "-o", str(tmp_path / name), "--json"])
        assert result.exit_code == 0 and json.loads(result.stdout)["n_batches"] == 1, result.output


def test_what_cannot_be_evaluated_is_refused(checkpoint, dataset_path, tmp_path):
    """A split without frames, a model that does not know an element, a file that is no model."""
    alone = write_dataset(tmp_path / "train.h5", {"1aaa": "train"})
    with pytest.raises(DatasetError, match="'test'; it has some in train"):
        evaluate(checkpoint, alone, quiet=True)
    model = models.build(TINY_MODELS["fast"] | {"elements": (1, 6, 7, 8)})
    with pytest.raises(DatasetError, match="atomic numbers"):
        evaluate(model, dataset_path, quiet=True)
    (tmp_path / "model.pt").write_text("nothing")
    with pytest.raises(ModelFileError, match=r"model\.pt"):
        evaluate(tmp_path / "model.pt", dataset_path, quiet=True)
