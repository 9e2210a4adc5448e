"""What a step minimises: every target counts alike, however many its batch has."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch
from dataset_files import TINY_MODELS

from forcefield_ml import models
from forcefield_ml.config import parse_config
from forcefield_ml.data import BatchSource, ForceDataset
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.module import ForceModule
from forcefield_ml.training.processes import Processes


def loss_of(dataset: Path, output: Path, asked: int | None) -> tuple[float, int]:
    """Return the loss of the first batch, patches of `asked` targets, and how many targets it has."""
    torch.manual_seed(0)
    network = models.build(TINY_MODELS["fast"])
    network.set_scale(100.0)
    settings = {"dataset": dataset, "output": output, "model": TINY_MODELS["fast"], "learning_rate": 0.01}
    config = parse_config(TrainingConfig, settings | {"max_batches": 1, "targets_per_batch": asked})
    module = ForceModule(network.eval(), config, 100.0, Processes.here())
    with closing(ForceDataset(dataset)) as frames:
        batch = BatchSource(frames, network.search(), network.capabilities.n_layers, 1, asked).batch(0)
        return module.training_step(batch, 0).item(), len(batch.targets)


def test_a_batch_with_fewer_targets_than_asked_for_counts_for_less(dataset_path: Path, tmp_path: Path) -> None:
    """By as much as it lacks: a small molecule's atoms weigh no more than those of a patch of a large one."""
    whole, count = loss_of(dataset_path, tmp_path, None)
    short, same = loss_of(dataset_path, tmp_path, 10 * count)
    assert count == same and short == pytest.approx(whole / 10, rel=1e-6)
    _, cut = loss_of(dataset_path, tmp_path, 5)
    assert cut == 5 < count
