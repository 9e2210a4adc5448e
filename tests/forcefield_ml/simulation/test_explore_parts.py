"""Models of a part of the force: driven as their mode drives them, and their frames carry the part, as labelled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import openmm
import pytest
import torch
import yaml
from typer.testing import CliRunner

import forcefield_ml
from data_pipeline import schema
from data_pipeline.config import LabelConfig, PipelineConfig
from data_pipeline.dataset.check import check, read_entries
from data_pipeline.dataset.check_entry import relative_error
from data_pipeline.dataset.pack import PackedEntry
from data_pipeline.dataset.recompute import topology_of
from forcefield_ml import models
from forcefield_ml.config import parse_config
from forcefield_ml.data import Target
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import DatasetError, ForceModeError
from forcefield_ml.simulation import walk
from forcefield_ml.simulation.explore import explore
from forcefield_ml.simulation.reference import Reference
from forcefield_ml.simulation.walk import ExploreConfig, Walk
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.loop import train

NETWORK = {"architecture": "fast", "n_channels": 4, "n_layers": 2, "n_basis": 4, "n_units": 4, "type_depth": 1}

LEARNT = [("total", "solute"), ("total_minus_reciprocal", "solute"), ("solute_alone", "solute")]


@pytest.fixture(scope="module")
def data(regenerated: Path, small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pipeline's dataset of three entries, labelled again with parts."""
    from data_pipeline.cli import app as pipeline

    folder = tmp_path_factory.mktemp("parts")
    shutil.copytree(regenerated, folder / "run")
    label = {**small_recipe.get("label", {}), "parts": ["reciprocal", "solute"], "reciprocal_alpha": 4.0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**small_recipe, "label": label}))
    words = ["run", str(folder / "recipe.yaml"), "-o", str(folder / "run")]
    result = CliRunner().invoke(pipeline, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "run" / "dataset.h5"


@pytest.fixture(scope="module")
def entry(data: Path) -> PackedEntry:
    """Its training entry."""
    with schema.open_dataset(data) as file:
        return next(one for one in read_entries(file) if one.attributes["split"] == "train")


@pytest.fixture(scope="module")
def label(data: Path) -> LabelConfig:
    """How it was labelled."""
    with h5py.File(data) as file:
        return PipelineConfig.model_validate_json(str(file.attrs["config"])).label


def model_of(folder: Path, entry: PackedEntry, predicts: str, atoms: str = "solute", alpha: float = 4.0) -> Path:
    """Return model.pt of a network with random weights, of forces that are felt but tear nothing."""
    torch.manual_seed(0)
    model = models.build(NETWORK)
    mask = entry.fields["target_mask"]
    species, bonds = entry.fields["species"], entry.fields["bonds"]
    forcefield_ml.nn.embedding.set_types(model, [(species, bonds)] * 10)  # what few atoms have is not learnt
    model.set_scale(300.0)
    files = ["amber14-all.xml", "amber14/tip3pfb.xml"]
    reciprocal = {"alpha": alpha, "force_field": files} if predicts == "total_minus_reciprocal" else None
    residues = np.unique(entry.fields["residue_names"] if atoms == "all" else entry.fields["residue_names"][mask])
    training = {"residues": [name.decode() for name in residues]}
    card = make_card(model.eval(), predicts=predicts, target_atoms=atoms, reciprocal=reciprocal, training=training)
    return bundle.write(model, card, folder / f"{predicts}.pt")


def settings(model: Path, data: Path, output: Path, **changed: Any) -> ExploreConfig:
    """Return settings of a short exploration."""
    values = {"model": model, "dataset": data, "output": output, "steps": 6, "every": 3, "error": 1e9, **changed}
    return parse_config(ExploreConfig, values)


@pytest.mark.parametrize(("predicts", "atoms"), [("total_minus_reciprocal", "all"), ("solute_alone", "solute")])
def test_visited_frames_carry_the_parts(
    data: Path, entry: PackedEntry, predicts: str, atoms: str, tmp_path: Path
) -> None:
    """`check` computes every part again; alpha and mesh are the dataset's; training takes the frames."""
    output = tmp_path / "visited.h5"
    result = explore(settings(model_of(tmp_path, entry, predicts, atoms), data, output), quiet=True)
    assert result["frames"] == 2
    report = check(output, recompute=1)
    assert not report.problems
    (recomputed,) = report.recomputed
    assert {"forces", "forces_reciprocal", "forces_solute", "energy_solute"} <= recomputed.errors.keys()
    assert max(recomputed.errors.values()) < 1e-4
    with h5py.File(output) as visited:
        group = visited["entries"][entry.name]
        assert group.attrs["reciprocal_alpha"] == entry.attributes["reciprocal_alpha"] == 4.0
        assert group.attrs["reciprocal_grid"].tolist() == list(entry.attributes["reciprocal_grid"])
        for name in ("forces_reciprocal", "forces_solute"):
            assert group[name].shape == group["positions"].shape
            assert not np.allclose(group[name][0], entry.fields[name][0], rtol=1e-4)
    run = {
        "dataset": data,
        "extra_datasets": (output,),
        "output": tmp_path / "run",
        "model": NETWORK,
        "target": predicts,
        "target_atoms": atoms,
        "targets_per_batch": 50,
        "learning_rate": 0.01,
        "max_batches": 2,
    }
    trained = train(parse_config(TrainingConfig, run), quiet=True)
    assert forcefield_ml.training.checkpoint.load(trained.checkpoint).training["n_frames"] == 1 + 2


@pytest.mark.parametrize(("predicts", "atoms"), LEARNT)
def test_it_is_driven_as_its_mode_drives_it(
    data: Path, entry: PackedEntry, label: LabelConfig, predicts: str, atoms: str, tmp_path: Path
) -> None:
    """The force of the dynamics is that of the deployed model in an MM system: mode `solute`, or `embedded`.

    In the latter the MM system cuts off the solute's Lennard-Jones forces on itself, which the label has whole, and the
    network sees the solute's images: 0.3 % in this narrow box.
    """
    path = model_of(tmp_path, entry, predicts, atoms)
    acting, positions = acting_force(path, entry, label, Target(predicts, atoms))
    topology = topology_of(entry.fields)
    mode = "embedded" if predicts == "solute_alone" else "solute"
    system = forcefield_ml.load(path).add_to_system(
        label.reference.build(topology), topology, mode=mode, backend="pythonforce", mm_platform="CPU"
    )
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(positions)
    deployed = context.getState(forces=True).getForces(asNumpy=True)._value
    mask = entry.fields["target_mask"].astype(bool)
    assert relative_error(acting[mask], deployed[mask]) < (1e-2 if mode == "embedded" else 1e-3)
    assert relative_error(acting[~mask], deployed[~mask]) < 1e-3
    without = entry.fields["forces"][0]  # the network is felt on its atoms, and there alone
    assert relative_error(acting[mask], without[mask]) > 0.1
    assert relative_error(acting[~mask], without[~mask]) < 1e-4


def acting_force(path: Path, entry: PackedEntry, label: LabelConfig, target: Target) -> tuple[np.ndarray, np.ndarray]:
    """Return the force (N, 3) of the dynamics on the first frame, and its positions."""
    card, module, _ = bundle.read(path)
    config = settings(path, path, path)
    reference = Reference(entry, label, target.name, "CPU")
    one = Walk(config, entry, reference, bundle.eager(card, module), target, label.max_force)
    return one.at(0).acting(entry.fields["positions"][0].astype(np.float64)), entry.fields["positions"][0]


@pytest.mark.parametrize(("predicts", "atoms"), LEARNT[1:])
def test_a_perfect_network_is_the_reference(
    entry: PackedEntry, label: LabelConfig, predicts: str, atoms: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network that predicts its label moves every atom as the reference does, with no error."""
    target = Target(predicts, atoms)
    mask = entry.fields["target_mask"].astype(bool)
    learnt = torch.from_numpy(target.read(entry.fields, 0).learnt[mask])
    perfect = forcefield_ml.models.interface.Prediction(learnt, None, None)
    monkeypatch.setattr(walk.Evaluator, "__call__", lambda *_: perfect)
    acting, _ = acting_force(model_of(tmp_path, entry, predicts, atoms), entry, label, target)
    assert relative_error(acting, entry.fields["forces"][0]) < 1e-5


@pytest.mark.parametrize(("predicts", "part"), [("total_minus_reciprocal", "reciprocal"), ("solute_alone", "solute")])
def test_a_dataset_without_the_part_is_refused(
    regenerated: Path, entry: PackedEntry, predicts: str, part: str, tmp_path: Path
) -> None:
    """With the line that makes it."""
    model = model_of(tmp_path, entry, predicts)
    with pytest.raises(DatasetError, match=rf"label: \{{parts: \[{part}\]\}}"):
        explore(settings(model, regenerated / "dataset.h5", tmp_path / "v.h5"), quiet=True)
    assert not list(tmp_path.glob("v.h5*"))


def test_another_reciprocal_sum_is_refused(data: Path, entry: PackedEntry, tmp_path: Path) -> None:
    """One would be added, the other left out."""
    model = model_of(tmp_path, entry, "total_minus_reciprocal", alpha=4.5)
    with pytest.raises(DatasetError, match=r"'alpha': 4\.0.*'alpha': 4\.5.*reciprocal_alpha: 4\.5"):
        explore(settings(model, data, tmp_path / "v.h5"), quiet=True)


@pytest.mark.parametrize(
    ("predicts", "name"), [("total_minus_reciprocal", "forces_reciprocal"), ("solute_alone", "forces_solute")]
)
def test_a_part_made_otherwise_is_noticed(entry: PackedEntry, label: LabelConfig, predicts: str, name: str) -> None:
    """Frames with another truth beside the dataset's would teach both."""
    fields = {**entry.fields, name: entry.fields[name] * np.float32(1.001)}
    with pytest.raises(DatasetError, match=f"the {name} of its first frame differ from those computed here by 1.0e-03"):
        Reference(PackedEntry(entry.name, fields, entry.attributes), label, predicts, "CPU")


def test_corrections_are_refused(data: Path, entry: PackedEntry, tmp_path: Path) -> None:
    """What they are added to is not driven here."""
    model = model_of(tmp_path, entry, "reference_minus_mm")
    with pytest.raises(ForceModeError, match=r"or 'solute_alone'; .* predicts 'reference_minus_mm'"):
        explore(settings(model, data, tmp_path / "v.h5"), quiet=True)
