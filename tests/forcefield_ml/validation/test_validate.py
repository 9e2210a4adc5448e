"""`validate` from model and data to the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS
from typer.testing import CliRunner

from forcefield_ml import models, pretrained
from forcefield_ml.cli import app
from forcefield_ml.config import parse_config
from forcefield_ml.data import ForceDataset
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import ConfigError, ModelFileError
from forcefield_ml.training import checkpoint
from forcefield_ml.training.evaluate import evaluate
from forcefield_ml.validation.symmetry import load_module, symmetry
from forcefield_ml.validation.validate import ValidationConfig, validate

FRAGMENT = Path(__file__).parents[1] / "deploy" / "data" / "1aie_351_353.pdb"


def tiny(name: str) -> torch.nn.Module:
    """Return a small model with random weights."""
    torch.manual_seed(3)
    model = models.build(TINY_MODELS[name]).eval()
    model.set_scale(300.0)
    return model


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model.pt of the fast network."""
    model = tiny("fast")
    return bundle.write(model, make_card(model), tmp_path_factory.mktemp("model") / "model.pt")


@pytest.fixture(scope="module")
def order_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the paper's order 0."""
    model = tiny("tfn0")
    path = tmp_path_factory.mktemp("run") / "best.pt"
    checkpoint.save(path, checkpoint.Checkpoint(dict(model.config), model.state_dict(), {"n_batches": 5}))
    return path


def settings(model: Path, data: Path, output: Path, **changes: Any) -> ValidationConfig:
    """Return a configuration."""
    return parse_config(ValidationConfig, {"model": model, "input": data, "output": output, "probes": 0, **changes})


def quiet(line: str) -> None:
    """Take a message and say nothing."""


def test_report_holds_what_evaluate_says(exported: Path, order_0: Path, dataset_path: Path, tmp_path: Path) -> None:
    """Metrics are evaluate's, for the model and for those beside it; a second call gives the same without work."""
    config = settings(exported, dataset_path, tmp_path, also=(order_0,))
    html, plain = validate(config, quiet)
    found = json.loads(plain.read_text())
    expected = evaluate(exported, dataset_path, "test", quiet=True)
    assert found["metrics"]["tensor"] == pytest.approx(expected["tensor"])
    assert [row["tensor"] is None for row in found["also"]] == [False, True]
    assert found["also"][1]["n_batches"] == 5
    assert found["symmetry"]["rotation_error"] < 1e-4
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("evaluation-*")}
    assert len(kept) == 4
    validate(config, quiet)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("evaluation-*")} == kept
    assert html.read_text().startswith("<!doctype html>")


class Tilted(torch.nn.Module):
    """A network that breaks the symmetry: it adds the same vector everywhere."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Any:
        """Return the tilted prediction."""
        prediction = self.module(*arguments)
        return prediction._replace(forces=prediction.forces + 300.0)


def test_symmetry_sees_a_broken_network(exported: Path, order_0: Path, dataset_path: Path) -> None:
    """A constant added to the forces shows as rotation error and as net force; an order 0 has no vectors to turn."""
    sample = ForceDataset(dataset_path, "test")[0]
    module = load_module(exported)
    whole, tilted = symmetry(module, sample), symmetry(Tilted(module), sample)
    assert whole is not None and tilted is not None
    assert whole["rotation_error"] < 1e-4 and tilted["rotation_error"] > 0.1
    assert tilted["net_force"] > 0.5
    target = sample.forces[sample.entry.target_mask].astype(np.float64)
    expected = np.linalg.norm(target.sum(axis=0)) / np.linalg.norm(target, axis=1).sum()
    assert whole["reference_net_force"] == pytest.approx(expected)
    assert symmetry(load_module(order_0), sample) is None


class Numbered(torch.nn.Module):
    """A network whose forces depend on the numbers of atoms."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *arguments: Any) -> Any:
        """Return a prediction that grows from atom to atom."""
        prediction = self.module(*arguments)
        return prediction._replace(forces=prediction.forces * torch.arange(1, len(prediction.forces) + 1)[:, None])


class Twisted(torch.nn.Module):
    """A network that adds forces around an axis through the middle of the targets."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, species: Any, positions: Any, box: Any, targets: Any) -> Any:
        """Return a prediction with a torque of its own and no net force."""
        prediction = self.module(species, positions, box, targets)
        arms = positions[targets] - positions[targets].mean(dim=0)
        axis = torch.tensor([0.0, 0.0, 1e5], dtype=arms.dtype).expand_as(arms)
        return prediction._replace(forces=prediction.forces + torch.linalg.cross(axis, arms))


def test_symmetry_sees_numbers_and_torques(exported: Path, dataset_path: Path) -> None:
    """Renumbering is tested with the answers put back into order; a twist shows as torque and not as net force."""
    sample = ForceDataset(dataset_path, "test")[0]
    module = load_module(exported)
    whole, numbered, twisted = (symmetry(each, sample) for each in (module, Numbered(module), Twisted(module)))
    assert whole is not None and numbered is not None and twisted is not None
    assert whole["permutation_error"] < 1e-5 and numbered["permutation_error"] > 0.1
    assert numbered["rotation_error"] < 1e-4
    # all arms about z: the torque is what perfectly aligned forces give, but for sin^2 of the angle to the axis
    assert twisted["net_torque"] > 0.5 and twisted["net_force"] < 0.05


def test_entry_is_labelled_judged_and_simulated(
    shipped: tuple[Path, dict[str, Any]], exported: Path, tmp_path: Path
) -> None:
    """From a PDB file to a page: frames are labelled with AMBER14, kept, and a short run with its guards is shown.

    The frames here are those kept of another model that predicts the same.
    """
    shutil.copy2(shipped[0].parent / "input.h5", tmp_path)
    made = (tmp_path / "input.h5").stat().st_mtime_ns
    _, plain = validate(settings(exported, FRAGMENT, tmp_path, steps=10), quiet)
    found = json.loads(plain.read_text())
    assert found["metrics"]["dataset"]["force_field"].startswith("amber14-all.xml")
    # Thermal forces average 1,100 to 1,500 meV/Å: what predicting zero gets wrong.
    assert 900 < found["metrics"]["naive"]["tensor"] < 1700
    assert found["simulations"][0]["mode"] == "solute"
    assert "--steps 10" in found["commands"][-1]
    assert (tmp_path / "input.h5").stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("name", "changes", "told"),
    [
        ("run.dcd", {}, r"is a trajectory.*--topology FILE"),
        ("run.dcd", {"topology": Path("nowhere.pdb")}, "there is no topology"),
        ("data.h5", {"topology": Path("nowhere.pdb")}, "is for trajectories"),
        ("data.h5", {"dynamics": 50}, "--dynamics needs a structure"),
        ("missing.h5", {}, "there is no input"),
        ("notes.txt", {}, "Allowed endings"),
        ("data.h5", {"steps": 5}, "--steps needs a structure"),
        ("data.h5", {"simulations": (Path("nowhere"),)}, r"no readable result\.json"),
        ("data.h5", {"pipelines": (Path("nowhere"),)}, r"no readable summary\.json"),
    ],
)
def test_bad_input_is_told(name: str, changes: dict[str, Any], told: str, exported: Path, tmp_path: Path) -> None:
    """What cannot be used is refused before any work, with what to do instead."""
    path = tmp_path / name
    if "missing" not in name:
        path.write_bytes(b"")
    with pytest.raises(ConfigError, match=told):
        validate(settings(exported, path, tmp_path / "out", **changes), quiet)


@pytest.mark.parametrize("changes", [{"dynamics": 50}, {"steps": 5}])
def test_checkpoints_do_not_run(changes: dict[str, int], order_0: Path, tmp_path: Path) -> None:
    """A simulation needs a model.pt, which is said before anything is prepared."""
    with pytest.raises(ConfigError, match=r"needs a model\.pt.*forcefield-ml export"):
        validate(settings(order_0, FRAGMENT, tmp_path / "out", **changes), quiet)
    assert not (tmp_path / "out").exists()


def test_too_few_probes_are_told(exported: Path, dataset_path: Path, tmp_path: Path) -> None:
    """None at all, or enough for a standard error."""
    with pytest.raises(ConfigError, match="at least 16"):
        settings(exported, dataset_path, tmp_path, probes=15)


def test_missing_model_is_told(dataset_path: Path, tmp_path: Path) -> None:
    """A model that is not there is a model error."""
    with pytest.raises(ModelFileError, match=r"there is no model"):
        validate(settings(tmp_path / "no.pt", dataset_path, tmp_path), quiet)


def test_files_that_cannot_be_judged_are_told_first(exported: Path, tmp_path: Path) -> None:
    """A typo in --also, or a checkpoint of two models, does not wait for frames to be labelled."""
    pair = models.build_for_training(TINY_MODELS["fast"] | {"head": "both"})
    path = tmp_path / "best.pt"
    checkpoint.save(path, checkpoint.Checkpoint(dict(pair.config), pair.state_dict(), {"n_batches": 5}))
    for also, kind, told in ((tmp_path / "no.pt", ModelFileError, "there is no model"), (path, ConfigError, "--head")):
        with pytest.raises(kind, match=told):
            validate(settings(exported, FRAGMENT, tmp_path / "out", also=(also,)), quiet)
    assert not (tmp_path / "out").exists()


def test_command_prints_the_paths(exported: Path, dataset_path: Path, tmp_path: Path) -> None:
    """The command writes both files and prints where they are."""
    result = CliRunner().invoke(
        app, ["validate", str(exported), str(dataset_path), "-o", str(tmp_path), "--probes", "0"]
    )
    assert result.exit_code == 0, result.output
    assert str(tmp_path / "report.html") in result.output and (tmp_path / "report.json").is_file()


def test_page_of_a_shipped_model_goes_into_its_card(
    shipped: tuple[Path, dict[str, Any]], model_file: Path, tmp_path: Path
) -> None:
    """report.json and the metrics kept beside it name the model's weights; its card then holds the verdict."""
    html, report = shipped
    (kept,) = html.parent.glob("evaluation-*.json")
    card = bundle.amend(pretrained.path("amber14-fast"), tmp_path / "new.pt", kept, html.with_suffix(".json"))
    assert card["weights_sha256"] == report["weights_sha256"] == report["metrics"]["weights_sha256"]
    assert card["verdict"]["numbers"]["lambda"]["lambda"] == report["symmetry"]["lambda"]["lambda"]
    for told, use in zip(card["verdict"]["uses"], report["uses"], strict=True):
        assert told["outcome"] == use["outcome"]
        assert use["sentence"] == f"{told['name']}: {told['outcome']}, {'; '.join(told['why'])}."
    assert set(card["evaluation"]["residues"]) == {"LYS", "ASP", "ALA"}
    with pytest.raises(ConfigError, match="made of another model"):
        bundle.amend(model_file, tmp_path / "other.pt", kept)
