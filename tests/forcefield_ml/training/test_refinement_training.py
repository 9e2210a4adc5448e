"""Refinement vectors are learnt, judged and exported by what learns forces, in Å; nobody takes them for forces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS, write_dataset, write_refinement_dataset
from openmm import app

import forcefield_ml
from forcefield_ml.config import parse_config
from forcefield_ml.data import ForceDataset, Target
from forcefield_ml.deploy.model_file.bundle import export, read_card
from forcefield_ml.deploy.model_file.describe import show
from forcefield_ml.deploy.system.modes import MODES, check_mode, modes_of
from forcefield_ml.errors import ConfigError, DatasetError, ForceModeError
from forcefield_ml.models.interface import Prediction
from forcefield_ml.training.config import PRESETS, TrainingConfig
from forcefield_ml.training.evaluate import evaluate, table
from forcefield_ml.training.log import read_log
from forcefield_ml.training.loop import train
from forcefield_ml.training.metrics import force_metrics, naive_metrics
from forcefield_ml.training.module import huber
from forcefield_ml.units import DISPLACEMENT, FORCE

SPLITS = {"a1": "train", "a2": "train", "b1": "validation", "c1": "test"}
ELEMENTS = {
    "fast": {"elements": (6, 7, 8, 15)},
    "tfn": {"elements": (6, 7, 8, 15), "silent_elements": ()},
}


def settings(folder: Path, dataset: Path, name: str = "fast", **changes: Any) -> TrainingConfig:
    tiny = TINY_MODELS[name]
    values = {
        "dataset": dataset,
        "output": folder / "run",
        "model": {**tiny, **ELEMENTS[tiny["architecture"]]},
        "target": "refinement",
        "learning_rate": 0.02,
        "max_batches": 40,
        "validate_every": 20,
        "log_every": 5,
        "warmup_batches": 0,
        "ahead": 0,
        "device": "cpu",
    }
    return parse_config(TrainingConfig, {**values, **changes}, "test")


@pytest.fixture(scope="module")
def dataset_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_refinement_dataset(tmp_path_factory.mktemp("refinement") / "dataset.h5", SPLITS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, dataset_path: Path) -> Path:
    """best.pt of a short run."""
    folder = tmp_path_factory.mktemp("trained")
    return train(settings(folder, dataset_path), quiet=True).checkpoint


@pytest.fixture(scope="module")
def model_file(trained: Path) -> Path:
    return export(trained, trained.with_name("model.pt"))


def test_dataset_is_read_in_nm_without_box(dataset_path: Path) -> None:
    """Targets are the atoms with a partner; all atoms are seen."""
    frames = ForceDataset(dataset_path, "train", Target("refinement"))
    sample = frames[0]
    assert sample.box is None and frames.force_field == "" and len(frames) == 2
    assert sample.entry.target_mask.sum() == 60 and len(sample.entry.species) == 80
    assert not sample.forces[~sample.entry.target_mask].any() and sample.forces.any()
    assert set(frames.described("a1")) >= {"species", "residue_names", "bonds"}


def test_tasks_are_not_mixed(dataset_path: Path, tmp_path: Path) -> None:
    """Forces are not looked for in refinement vectors, nor these in forces."""
    with pytest.raises(DatasetError, match=r"is a dataset of refinement, target 'total' needs one of forces\. Take"):
        ForceDataset(dataset_path)
    forces = write_dataset(tmp_path / "forces.h5", {"1aaa": "train"}, n_frames=1)
    with pytest.raises(DatasetError, match="is a dataset of forces, target 'refinement' needs one of refinement"):
        ForceDataset(forces, "train", Target("refinement"))
    with pytest.raises(ConfigError, match="no others, so target_atoms must be 'solute'"):
        Target("refinement", "all")


def test_units_of_loss_and_metrics() -> None:
    """0.2 nm is 2 Å: beyond delta = 1 Å the Huber loss is (2 - 1/2) 1 Å²; metrics are in Å, and forces as before."""
    target, given = np.zeros((1, 3)), np.array([[0.0, 0.2, 0.0]])
    loss = huber(Prediction(torch.tensor(given), None, None), torch.tensor(target), 1.0, DISPLACEMENT)
    assert float(loss) == pytest.approx(1.5)
    assert force_metrics(given, target, DISPLACEMENT)["tensor"] == pytest.approx(2.0)
    assert naive_metrics(given, DISPLACEMENT)["tensor"] == pytest.approx(2.0)
    assert naive_metrics(given)["tensor"] == pytest.approx(0.2 * FORCE.factor)
    assert (DISPLACEMENT.unit, DISPLACEMENT.factor, FORCE.unit) == ("Å", 10.0, "meV/Å")


def test_training_lowers_the_loss(trained: Path) -> None:
    """Of batches, and of a molecule that was not trained on below the naive predictor's."""
    rows = read_log(trained.with_name("log.csv"))
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    losses = [row["validation_tensor"] for row in rows if "validation_tensor" in row]
    assert losses[-1] < losses[0]


def test_evaluate_in_angstrom(trained: Path, model_file: Path, dataset_path: Path) -> None:
    """The numbers are those of the vectors in the file times ten, the same for checkpoint and model.pt."""
    found = evaluate(trained, dataset_path, "test", quiet=True)
    sample = ForceDataset(dataset_path, "test", Target("refinement"))[0]
    norms = 10 * np.linalg.norm(sample.forces[sample.entry.target_mask].astype(float), axis=1)
    assert found["naive"]["tensor"] == pytest.approx(norms.mean(), rel=1e-6)
    assert found["naive"]["magnitude"] == pytest.approx(np.abs(norms - norms.mean()).mean(), rel=1e-6)
    assert found["units"] == {"tensor": "Å", "magnitude": "Å", "angle": "degrees"}
    assert found["predicts"] == found["compared_with"] == "refinement" and found["tensor"] < found["naive"]["tensor"]
    assert set(found["elements"]) == {"C", "N", "O", "P"}
    text = table(found)
    assert "tensor (Å)" in text and "meV" not in text and f"{found['tensor']:.2f}" in text and "1 structures" in text
    assert evaluate(model_file, dataset_path, "test", quiet=True)["tensor"] == pytest.approx(found["tensor"], rel=1e-3)


@pytest.mark.parametrize("name", ["tfn0", "tfn2"])
def test_the_paper_network_learns_them_too(name: str, dataset_path: Path, tmp_path: Path) -> None:
    """Order 0 predicts lengths in Å, order 2 vectors; progress lines and results are in Å."""
    result = train(settings(tmp_path, dataset_path, name, max_batches=3, validate_every=3), quiet=True)
    assert " Å" in result.summary() and "meV" not in result.summary()
    found = evaluate(result.checkpoint, dataset_path, "test", quiet=True)
    assert (found["tensor"] is None) == (name == "tfn0") and 0 < found["magnitude"] < 10


def test_presets_and_what_is_refused(dataset_path: Path, trained: Path, tmp_path: Path) -> None:
    """A delta of 1 Å by itself; presets of forces, energies, bonded terms and starts from forces are refused."""
    plain = {"dataset": dataset_path, "output": tmp_path, "model": {"architecture": "tfn"}, "max_batches": 1}
    read = parse_config(TrainingConfig, {**plain, "target": "refinement"}, "test")
    assert (read.delta, read.learning_rate, read.preset) == (1.0, 0.1, "refinement")
    assert parse_config(TrainingConfig, plain, "test").preset == "thermal" and set(PRESETS) == {
        *("paper", "thermal", "refinement")
    }
    for changes in ({"target": "refinement", "preset": "paper"}, {"target": "total", "preset": "refinement"}):
        with pytest.raises(ConfigError, match=r"do not go together.*Leave preset out"):
            parse_config(TrainingConfig, {**plain, **changes}, "test")
    for changes in ({"bonded": True}, {"head": "energy"}, {"head": "both"}):
        model = {**TINY_MODELS["fast"], **ELEMENTS["fast"], **changes}
        with pytest.raises(ConfigError, match="no energy stands behind the displacements"):
            train(settings(tmp_path, dataset_path, model=model), quiet=True)
    forces = write_dataset(tmp_path / "forces.h5", {"1aaa": "train", "1bbb": "validation"}, n_frames=1)
    wanted = {"model": TINY_MODELS["fast"], "target": "total", "start_from": trained}
    with pytest.raises(ConfigError, match="predicts displacements"):
        train(settings(tmp_path, forces, **wanted), quiet=True)


def test_unknown_elements_tell_the_setting(dataset_path: Path, tmp_path: Path) -> None:
    """P is in no default."""
    with pytest.raises(DatasetError, match=r"atomic numbers \[15\].*model: \{elements"):
        train(settings(tmp_path, dataset_path, model=TINY_MODELS["fast"]), quiet=True)


def test_card(model_file: Path) -> None:
    """It says what is predicted, in which unit, and how it is used."""
    card = read_card(model_file)
    assert card["predicts"] == "refinement" and card["units"] == {"length": "nm", "displacement": "nm"}
    text = show(model_file)
    assert "forcefield-ml refine" in text and "meV" not in text and "tensor Å" in text and "minimisers" not in text


def topology() -> app.Topology:
    made = app.Topology()
    chain = made.addChain()
    residue = made.addResidue("G", chain)
    for element in ("C", "N", "O", "P"):
        made.addAtom(element, app.Element.getBySymbol(element), residue)
    return made


def test_no_force_is_made_of_it(model_file: Path, tmp_path: Path) -> None:
    """Every way to a force refuses the model and names the command that it is for."""
    import openmm

    from forcefield_ml.deploy.integrations.ase_calculator import ForcefieldMLCalculator
    from forcefield_ml.simulation.build import mode_for
    from forcefield_ml.simulation.explore import explore
    from forcefield_ml.simulation.walk import ExploreConfig
    from forcefield_ml.validation.validate import ValidationConfig, validate

    model, atoms = forcefield_ml.load(model_file), topology()
    system = openmm.System()
    for _ in range(4):
        system.addParticle(12.0)
    exploring = {"model": model_file, "dataset": tmp_path / "no.h5", "output": tmp_path / "out.h5"}
    ways = {
        "create_force": lambda: model.create_force(atoms),
        "create_system": lambda: model.create_system(atoms),
        "forces": lambda: model.forces(np.eye(4, 3), species=[6, 7, 8, 15]),
        "ase": lambda: ForcefieldMLCalculator(model_file),
        "explore": lambda: explore(parse_config(ExploreConfig, exploring, "test")),
        "simulate": lambda: mode_for(model.card, None),
        "validate": lambda: validate(
            parse_config(
                ValidationConfig,
                {
                    "model": model_file,
                    "input": write_dataset(tmp_path / "f.h5", {"1aaa": "test"}),
                    "output": tmp_path / "v",
                },
                "test",
            )
        ),
        **{f"add {mode}": lambda mode=mode: model.add_to_system(system, atoms, mode=mode) for mode in MODES},
        **{f"mode {mode}": lambda mode=mode: check_mode(model.card, mode) for mode in MODES},
    }
    for name, way in ways.items():
        with pytest.raises(ForceModeError, match="forcefield-ml refine"):
            way()
            pytest.fail(f"{name} took it")
    assert modes_of(model.card) == []


def test_openmmml_refuses_it(model_file: Path) -> None:
    """The plugin's potential, too."""
    openmmml = pytest.importorskip("openmmml")
    potential = openmmml.MLPotential("forcefield-ml", model=str(model_file))
    with pytest.raises(ForceModeError, match="forcefield-ml refine"):
        potential.createSystem(topology())
