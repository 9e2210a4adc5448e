"""A conservative model, and one with both heads, in the one training loop: learnt, resumed, exported, judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS

from forcefield_ml.config import parse_config
from forcefield_ml.data import BatchSource, ForceDataset, Target
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.errors import ConfigError
from forcefield_ml.models import build
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.evaluate import evaluate
from forcefield_ml.training.log import read_log
from forcefield_ml.training.loop import TrainingResult, train

NETWORK = TINY_MODELS["fast"] | {"cutoff": 0.35}


@pytest.fixture
def settings(dataset_path: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "dataset": dataset_path,
        "output": tmp_path / "run",
        "model": NETWORK | {"head": "energy"},
        "target_atoms": "all",
        "learning_rate": 0.02,
        "max_batches": 6,
        "validate_every": 3,
    }


def run(settings: dict[str, Any], **changes: Any) -> TrainingResult:
    return train(parse_config(TrainingConfig, settings | changes), quiet=True)


def test_learns_analytic_forces(settings: dict[str, Any]) -> None:
    """Forces of pairs, which have an energy, are learnt by one: far below the naive predictor on unseen frames."""
    result = run(settings, max_batches=60, validate_every=60)
    assert result.metrics["tensor"] < 0.5 * result.metrics["naive"]["tensor"]
    assert result.metrics["angle"] < 30


def test_resumed_run_is_the_run_that_never_stopped(settings: dict[str, Any], tmp_path: Path) -> None:
    """With both heads, and in patches, too: the same weights bit by bit after a stop."""
    torch.set_num_threads(1)
    settings |= {"schedule": "constant", "ema": 0.9, "model": NETWORK | {"head": "both"}, "targets_per_batch": 20}
    run(settings, output=tmp_path / "whole")
    assert run(settings, max_batches=2).n_batches == 2
    run(settings)
    expected, found = (files.load(folder / "last.pt").resume for folder in (tmp_path / "whole", settings["output"]))
    assert all(torch.equal(expected["state_dict"][key], found["state_dict"][key]) for key in expected["state_dict"])


def test_a_run_from_before_there_were_heads_goes_on(settings: dict[str, Any]) -> None:
    """A recipe that does not name the head is that of a direct one."""
    settings |= {"model": NETWORK}
    run(settings, max_batches=2)
    path = settings["output"] / "last.pt"
    former = files.load(path)
    del former.training["recipe"]["model"]["head"], former.model_config["head"]
    files.save(path, former)
    assert run(settings).n_batches == 6
    with pytest.raises(ConfigError, match="other settings: model"):
        run(settings, model=NETWORK | {"head": "energy"})


def test_patches_give_the_forces_of_whole_frames(dataset_path: Path) -> None:
    """In float64, what a batch of a few targets predicts is what the whole frame does for these atoms."""
    torch.manual_seed(0)
    model = build(NETWORK | {"head": "energy", "cutoff": 0.2}).double().eval()
    dataset = ForceDataset(dataset_path, "train", Target("total", "all"))
    source = BatchSource(dataset, model.search(), model.capabilities.n_layers, targets_per_batch=4)
    batch = source.batch(0)
    item = next(k for k, (entry, frame) in enumerate(dataset.index) if (entry.name, frame) == batch.frames[0])
    whole = source.whole_frame(item)
    found, expected = (
        model(b.atoms, b.neighbours._replace(vectors=b.neighbours.vectors.double()), b.layer_sizes).forces
        for b in (batch, whole)
    )
    assert len(found) == 4 < len(expected)
    place = [int(np.flatnonzero((whole.targets == target).all(1))[0]) for target in batch.targets]
    assert torch.allclose(found, expected[place], rtol=1e-9, atol=1e-12)


def test_both_heads_are_exported_apart(settings: dict[str, Any], dataset_path: Path, tmp_path: Path) -> None:
    """One checkpoint, two model files: each is judged as in the run, and its card says which it is."""
    result = run(settings, model=NETWORK | {"head": "both"})
    for work in (evaluate, lambda path, *_: bundle.export(path, tmp_path / "m.pt")):
        with pytest.raises(ConfigError, match=r"two models.*--head vector -o vector\.pt.*--head energy"):
            work(result.checkpoint, dataset_path)
    with pytest.raises(ConfigError, match="no head 'forces'"):
        bundle.export(result.checkpoint, tmp_path / "m.pt", "forces")
    found = {}
    for head in ("vector", "energy"):
        path = bundle.export(result.checkpoint, tmp_path / f"{head}.pt", head)
        card = bundle.read_card(path)
        assert card["energy"] == (head == "energy") and card["model_config"]["head"] == head
        judged = evaluate(path, ForceDataset(dataset_path, "validation", Target("total", "all")), quiet=True)
        assert judged["tensor"] == pytest.approx(card["metrics"]["tensor"], rel=1e-4)
        found[head] = judged["tensor"]
    assert found["vector"] == pytest.approx(result.metrics["tensor"], rel=1e-4)
    assert found["energy"] == pytest.approx(result.metrics["energy_head"]["tensor"], rel=1e-4)
    assert found["vector"] != pytest.approx(found["energy"], rel=1e-3)
    row = read_log(settings["output"] / "log.csv")[-1]
    assert row["validation_energy_head"] == pytest.approx(result.metrics["energy_head"]["tensor"], rel=1e-6)
    assert "by gradient" in result.summary()


def test_what_cannot_be_trained_is_said(settings: dict[str, Any]) -> None:
    """torch.compile has no second derivative; an energy of which only some atoms feel the slope is of no use."""
    with pytest.raises(ConfigError, match="cannot differentiate twice"):
        run(settings, compile=True)
    with pytest.warns(UserWarning, match="serves no simulation"):
        run(settings, target_atoms="solute", max_batches=1)
    with pytest.raises(ConfigError, match="nearest atoms by number"):
        run(settings, model=TINY_MODELS["tfn1"] | {"head": "energy"})
