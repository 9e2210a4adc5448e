"""A new run takes what a checkpoint of another head, or without atom types, has in common with it."""

from __future__ import annotations

import hashlib
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from dataset_files import TINY_MODELS

from forcefield_ml import models, pretrained
from forcefield_ml.config import parse_config
from forcefield_ml.data import BatchSource, ForceDataset, JoinedDataset, Target
from forcefield_ml.deploy.model_file.bundle import export, read_card
from forcefield_ml.errors import ConfigError, ModelFileError
from forcefield_ml.models.fingerprint import weights_sha256
from forcefield_ml.models.interface import Prediction
from forcefield_ml.nn.embedding import types_of
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.loop import TrainingResult, train
from forcefield_ml.training.start import begin_with, read

NETWORK = TINY_MODELS["fast"] | {"cutoff": 0.35}

ALLOWED = [("vector", "both"), ("vector", "energy"), ("energy", "both"), ("both", "vector"), ("both", "energy")]


@pytest.fixture(scope="module")
def trained(dataset_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Short runs: head -> checkpoint."""
    folder = tmp_path_factory.mktemp("trained")
    return {
        head: run(settings_of(dataset_path, folder / head), model=NETWORK | {"head": head}, max_batches=25).checkpoint
        for head in ("vector", "energy", "both")
    }


def settings_of(data: Path, output: Path) -> dict[str, Any]:
    return {
        "dataset": data,
        "output": output,
        "model": NETWORK,
        "target_atoms": "all",
        "learning_rate": 0.02,
        "max_batches": 1,
        "validate_every": 1000,
    }


@pytest.fixture
def settings(dataset_path: Path, tmp_path: Path) -> dict[str, Any]:
    return settings_of(dataset_path, tmp_path / "run")


def run(settings: dict[str, Any], quiet: bool = True, **changes: Any) -> TrainingResult:
    return train(parse_config(TrainingConfig, settings | changes), quiet=quiet)


def begin(path: Path, data: Path, seed: int = 3, **changes: Any) -> tuple[Any, Any]:
    """Return a fresh network that began with a checkpoint, and what it took."""
    torch.manual_seed(seed)
    model = models.build_for_training(NETWORK | changes)
    with closing(JoinedDataset(data, target=Target("total", "all"))) as training:
        begun = begin_with(files.load(path), model, training, path)
    return model.eval(), begun


def predicted(model: models.Model, data: Path) -> Prediction:
    """Return what a model predicts of a frame of the validation split."""
    with closing(ForceDataset(data, "validation", Target("total", "all"))) as frames:
        frames.encode(types_of(model))
        batch = BatchSource(frames, model.search(), model.capabilities.n_layers).whole_frame(0)
    with torch.no_grad():
        return model(batch.atoms, batch.neighbours, batch.layer_sizes)


def rms(forces: torch.Tensor | None) -> float:
    assert forces is not None
    return float(forces.double().square().mean().sqrt())


@pytest.mark.parametrize(("before", "after"), ALLOWED)
def test_what_both_have_is_taken(trained: dict[str, Path], dataset_path: Path, before: str, after: str) -> None:
    """A head of both predicts what it did, bit for bit; a fresh one differs from seed to seed, on the same backbone."""
    model, begun = begin(trained[before], dataset_path, head=after)
    other, _ = begin(trained[before], dataset_path, seed=4, head=after)
    common = {"both": {"vector", "energy"}}
    old, new = (common.get(head, {head}) for head in (before, after))
    assert begun.taken == ("backbone", *(f"{name} head" for name in ("vector", "energy") if name in old & new))
    assert begun.fresh == tuple(f"{name} head" for name in ("vector", "energy") if name in new - old)
    for name, part in model.parts.items():
        here, there = predicted(part, dataset_path), predicted(other.parts[name], dataset_path)
        if name in old:
            was = predicted(files.load_model(trained[before], name)[0], dataset_path)
            assert torch.equal(was.forces, here.forces)
            assert was.energy is None or torch.equal(was.energy, here.energy)
        else:
            assert not torch.allclose(here.forces, there.forces, rtol=0.1)
        known = files.rebuild(files.load(trained[before]), head=min(old)).backbone.state_dict()
        assert all(torch.equal(value, part.backbone.state_dict()[key]) for key, value in known.items())


@pytest.mark.parametrize("after", ["energy", "both"])
def test_a_fresh_energy_is_small_beside_direct_forces(trained: dict[str, Path], dataset_path: Path, after: str) -> None:
    """In the unit of the direct forces, not zero, and far below them: it is noise on what the backbone knows."""
    model, _ = begin(trained["vector"], dataset_path, head=after)
    direct = rms(predicted(files.load_model(trained["vector"])[0], dataset_path).forces)
    assert 0.001 * direct < rms(predicted(model.parts["energy"], dataset_path).forces) < 0.3 * direct
    scale = float(files.load(trained["vector"]).state_dict["head.scale"])
    assert float(model.parts["energy"].head.scale) == pytest.approx(scale, rel=1e-6)


def test_new_types_add_nothing_at_first(trained: dict[str, Path], dataset_path: Path) -> None:
    """The first forces of a typed network are the old ones, bit for bit, and its types are those of the data."""
    model, begun = begin(trained["vector"], dataset_path, type_depth=2, n_types=64)
    known = types_of(model)
    assert known is not None and len(known.hashes) and begun.fresh == ("atom types",)
    was = predicted(files.load_model(trained["vector"])[0], dataset_path).forces
    assert torch.equal(was, predicted(model, dataset_path).forces)
    both, begun = begin(trained["vector"], dataset_path, type_depth=2, head="both")
    assert torch.equal(was, predicted(both.parts["vector"], dataset_path).forces)
    assert begun.fresh == ("energy head", "atom types")


def test_types_are_learnt_from_there(settings: dict[str, Any], trained: dict[str, Path]) -> None:
    """The table leaves zero with the first batches, and the next run takes it as it is."""
    typed = NETWORK | {"type_depth": 2}
    first = run(settings, model=typed, start_from=trained["vector"], max_batches=3, schedule="constant")
    table = files.load(first.checkpoint).state_dict["backbone.first.types.weights"]
    assert float(table.abs().max()) > 1e-4
    second = files.load(first.checkpoint)
    model = models.build_for_training(typed)
    with closing(JoinedDataset(settings["dataset"])) as training:
        begun = begin_with(second, model, training, first.checkpoint)
    assert begun.fresh == () and torch.equal(model.state_dict()["backbone.first.types.weights"], table)


def test_started_from_a_direct_model_it_is_ahead(settings: dict[str, Any], trained: dict[str, Path]) -> None:
    """After few batches a conservative model on a trained backbone is better than one from nothing."""
    settings |= {"model": NETWORK | {"head": "energy"}, "max_batches": 12, "validate_every": 12}
    nothing = run(settings, output=settings["output"].with_name("nothing"))
    started = run(settings, start_from=trained["vector"])
    assert started.metrics["tensor"] < 0.9 * nothing.metrics["tensor"]


def test_there_and_back(settings: dict[str, Any], trained: dict[str, Path]) -> None:
    """Direct, both, direct: with next to no learning rate the last run's direct head is the first's."""
    still = {"learning_rate": 1e-12, "schedule": "constant", "ema": 0.0}
    both = run(settings, model=NETWORK | {"head": "both"}, start_from=trained["vector"], **still)
    back = run(settings, output=settings["output"].with_name("back"), start_from=both.checkpoint, **still)
    before, after = files.load(trained["vector"]).state_dict, files.load(back.checkpoint).state_dict
    learnt = [name for name, _ in models.build(NETWORK).named_parameters()]  # the norms' averages move on
    assert all(torch.allclose(before[key], after[key], rtol=1e-5, atol=1e-9) for key in (*learnt, "head.scale"))


def test_it_is_told_once(
    settings: dict[str, Any], trained: dict[str, Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The first line and the checkpoint say what was taken; a run that goes on begins with nothing again."""
    copy = tmp_path / "direct.pt"
    copy.write_bytes(trained["vector"].read_bytes())
    settings |= {"model": NETWORK | {"head": "both"}, "start_from": copy, "schedule": "constant"}
    run(settings, quiet=False, max_batches=2)
    first = capsys.readouterr().err.splitlines()[0]
    assert first.endswith("direct.pt: taken: backbone, vector head; begins fresh: energy head")
    copy.unlink()
    whole = run(settings, quiet=False, max_batches=4)
    assert "taken" not in capsys.readouterr().err
    told = files.load(whole.checkpoint).training
    assert told["started_from"]["taken"] == ["backbone", "vector head"]
    assert told["started_from"]["fresh"] == ["energy head"] and told["n_batches"] == 4


def test_a_killed_run_is_the_run_that_never_stopped(
    settings: dict[str, Any], trained: dict[str, Path], tmp_path: Path
) -> None:
    """Also where a head began fresh: the same weights, bit for bit."""
    torch.set_num_threads(1)
    settings |= {"model": NETWORK | {"head": "energy"}, "start_from": trained["vector"], "schedule": "constant"}
    run(settings, output=tmp_path / "whole", max_batches=4)
    run(settings, max_batches=2)
    run(settings, max_batches=4)
    expected, found = (files.load(folder / "last.pt").resume for folder in (tmp_path / "whole", settings["output"]))
    assert all(torch.equal(expected["state_dict"][key], found["state_dict"][key]) for key in expected["state_dict"])


@pytest.mark.parametrize(
    ("before", "changes", "named"),
    [
        ("energy", {"head": "vector"}, "head was 'energy', is 'vector'"),
        ("vector", {"head": "both", "n_channels": 7}, "n_channels was 6, is 7"),
        ("vector", {"head": "energy", "cutoff": 0.3}, "cutoff was 0.35, is 0.3"),
        ("vector", {"n_layers": 3}, "n_layers was 2, is 3"),
    ],
)
def test_another_network_is_refused(
    trained: dict[str, Path], dataset_path: Path, before: str, changes: dict[str, Any], named: str
) -> None:
    """The settings that differ are named, those that may differ are not."""
    with pytest.raises(ConfigError, match="another network") as error:
        begin(trained[before], dataset_path, **changes)
    assert named in str(error.value) and ("head" not in str(error.value) or before == "energy")


def test_a_bound_may_be_set_and_not_be_taken_off(
    settings: dict[str, Any], trained: dict[str, Path], dataset_path: Path
) -> None:
    """A network without a bound may get one; the other way what it learnt means something else."""
    bounded = run(settings, model=NETWORK | {"bound": 30.0}, start_from=trained["vector"]).checkpoint
    with pytest.raises(ConfigError, match=r"bound was 30\.0, is 0\.0"):
        begin(bounded, dataset_path)


def test_other_types_are_refused(settings: dict[str, Any], trained: dict[str, Path], dataset_path: Path) -> None:
    """What a table of types has learnt means nothing at another depth, or without one."""
    typed = run(settings, model=NETWORK | {"type_depth": 2}, start_from=trained["vector"]).checkpoint
    for changes, named in (
        ({"type_depth": 3}, "type_depth was 2, is 3"),
        ({"type_depth": 0}, "type_depth was 2, is 0"),
        ({"type_depth": 2, "n_types": 100}, "n_types was 512, is 100"),
    ):
        with pytest.raises(ConfigError, match=named):
            begin(typed, dataset_path, **changes)


@pytest.mark.parametrize("changes", [{"type_depth": 2}, {"bonded": True}])
def test_an_exported_model_serves_as_its_checkpoint(
    settings: dict[str, Any], dataset_path: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """From a model.pt a run begins with the weights, scale, stages and bonded terms of the checkpoint."""
    settings |= {"model": NETWORK | changes, "max_batches": 3}
    first = run(settings).checkpoint
    exported = export(first, tmp_path / "model.pt")
    still = {"learning_rate": 1e-12, "schedule": "constant", "ema": 0.0, "max_batches": 1}
    one = run(settings, output=tmp_path / "one", start_from=first, **still)
    other = run(settings, output=tmp_path / "other", start_from=exported, **still)
    assert one.metrics == other.metrics
    ours, theirs = files.load(one.checkpoint), files.load(other.checkpoint)
    assert all(torch.equal(ours.state_dict[name], value) for name, value in theirs.state_dict.items())
    assert ours.training["scale"] == theirs.training["scale"] and len(theirs.training["stages"]) == 2
    assert theirs.training["stages"][0] == ours.training["stages"][0]
    began = hashlib.sha256(exported.read_bytes()).hexdigest()
    assert theirs.training["started_from"]["sha256"] == theirs.training["stages"][1]["started_from"] == began


def test_a_model_that_ships_is_meant_by_its_name() -> None:
    """Its checkpoint has the weights that the card's fingerprint is of."""
    path = pretrained.path("amber14-fast")
    assert weights_sha256(read(path).state_dict) == read_card(path)["weights_sha256"]


def test_an_unknown_name_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelFileError, match=r"no model 'amber14-fst' ships.*Did you mean 'amber14-fast'"):
        run(settings, start_from="amber14-fst")
    with pytest.raises(ModelFileError, match="there is no checkpoint"):
        run(settings, start_from="gone.pt")
