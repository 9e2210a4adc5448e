"""Several processes: the gradients of one, one log, one clock; they end together and go on together."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import parallel
import pytest
import torch
import yaml
from dataset_files import TINY_MODELS

from forcefield_ml.config import parse_config
from forcefield_ml.errors import ConfigError
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.log import read_log
from forcefield_ml.training.loop import train

GRADIENT_TOLERANCE = 1e-10
"""Of float64, over all parameters, relative."""

STATE_TOLERANCE = 1e-8
"""Of the weights after two steps: Adam makes small steps of the mere rounding in the gradient of a bias that the
normalisation takes away again."""


@pytest.fixture
def settings(dataset_path, tmp_path) -> dict[str, Any]:
    return {
        "dataset": dataset_path,
        "output": tmp_path / "run",
        "model": TINY_MODELS["fast"],
        "learning_rate": 0.02,
        "schedule": "constant",
        "ema": 0.9,
        "max_batches": 40,
        "validate_every": 10,
        "targets_per_batch": 20,
        "log_every": 1,
        "save_every_seconds": 0.0,
    }


def flat(values: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().reshape(-1) for value in values.values()])


def after_two_steps(path: Path, size: int, *arguments: Any, synchronised: bool = True) -> list[dict[str, Any]]:
    codes = parallel.finish(parallel.start(size, parallel.two_steps, *arguments, synchronised, path))
    assert codes == [0] * size
    return [torch.load(f"{path}.{rank}") for rank in range(size)]


@pytest.mark.parametrize("name", ["fast", "tfn0", "tfn2"])
def test_two_processes_have_the_gradients_of_one(dataset_path, tmp_path, name):
    """Gradients, weights and running statistics of two steps are those of one process with both batches.

    The batches differ in number of atoms and of targets. Control: with each process's own statistics they differ.
    """
    model = TINY_MODELS[name]
    (one,) = after_two_steps(tmp_path / "one", 1, dataset_path, model, 2)
    both = after_two_steps(tmp_path / "two", 2, dataset_path, model, 1)
    for found in both:
        for step in range(2):
            expected = flat(one["gradients"][step])
            difference = (flat(found["gradients"][step]) - expected).norm() / expected.norm()
            assert expected.norm() > 0 and difference < GRADIENT_TOLERANCE
        expected = flat(one["state"])
        assert (flat(found["state"]) - expected).norm() / expected.norm() < STATE_TOLERANCE
    if name == "fast":
        apart = after_two_steps(tmp_path / "apart", 2, dataset_path, model, 1, synchronised=False)
        expected = flat(one["gradients"][0])
        assert (flat(apart[0]["gradients"][0]) - expected).norm() / expected.norm() > 1e7 * GRADIENT_TOLERANCE


def reach(processes: list[Any], log: Path, batch: int) -> None:
    """Wait until the log of a run has come to a batch."""
    ends = time.monotonic() + 60
    while time.monotonic() < ends and any(process.is_alive() for process in processes):
        if log.exists() and any(row["batch"] >= batch for row in read_log(log)):
            return
        time.sleep(0.01)
    parallel.finish(processes, 0)
    raise AssertionError(f"the processes never came to batch {batch}")


def test_when_one_is_killed_the_others_end_and_all_go_on_as_if_nothing_was(settings, tmp_path):
    """The others end by themselves with a message; the same command gives the weights of a run never stopped.

    One process alone does not go on with it: a batch would be another.
    """
    log = settings["output"] / "log.csv"
    endless = settings | {"max_batches": 100_000}
    started = parallel.start(2, parallel.command, endless, tmp_path / "told")
    reach(started, log, 12)
    started[1].kill()
    began = time.monotonic()
    assert parallel.finish(started) == [1, -signal.SIGKILL] and time.monotonic() - began < 20
    assert "ProcessError: process 0 of 2 lost the others" in (tmp_path / "told.0").read_text()
    reached = files.load(settings["output"] / "last.pt").training["n_batches"]
    assert 12 <= reached
    with pytest.raises(ConfigError, match=r"2 process\(es\).*torchrun --nproc-per-node 2"):
        train(parse_config(TrainingConfig, settings), quiet=True)
    whole = settings | {"output": tmp_path / "whole", "max_batches": reached + 5}
    started = [
        process
        for run in (whole, settings | {"max_batches": reached + 5})
        for process in parallel.start(2, parallel.command, run, tmp_path / "told")
    ]
    assert parallel.finish(started) == [0] * 4
    first, second = (files.load(folder / "last.pt") for folder in (whole["output"], settings["output"]))
    assert first.training["n_batches"] == second.training["n_batches"] == reached + 5
    assert all(torch.equal(first.state_dict[key], second.state_dict[key]) for key in first.state_dict)
    rows = [row["batch"] for row in read_log(log)]
    assert rows == list(range(1, reached + 6))


def test_they_stop_together(settings, tmp_path):
    """A budget of time ends all after the same batch; so does a signal that one of them gets alone."""
    timed = settings | {"max_batches": None, "max_minutes": 0.03, "validation_frames": 1}
    assert parallel.finish(parallel.start(2, parallel.command, timed, tmp_path / "timed")) == [0, 0]
    told = [(tmp_path / f"timed.{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1] and told[0].endswith("True")
    signalled = settings | {"max_batches": 100_000, "output": tmp_path / "signalled"}
    started = parallel.start(2, parallel.command, signalled, tmp_path / "told")
    reach(started, tmp_path / "signalled" / "log.csv", 5)
    os.kill(started[1].pid, signal.SIGTERM)
    assert parallel.finish(started) == [130, 130]
    told = [(tmp_path / f"told.{rank}").read_text() for rank in range(2)]
    assert told[0] == told[1] and told[0].endswith("False")
    rows = read_log(tmp_path / "signalled" / "log.csv")
    assert files.load(tmp_path / "signalled" / "last.pt").training["n_batches"] == rows[-1]["batch"]


def test_torchrun(settings, tmp_path):
    """The documented command runs: one result, one row a batch, the number of processes in the checkpoint."""
    path = tmp_path / "train.yaml"
    changes = {"max_batches": 3, "validate_every": 3}
    path.write_text(yaml.safe_dump({k: str(v) if isinstance(v, Path) else v for k, v in (settings | changes).items()}))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    result = subprocess.run(
        [*torchrun, "-m", "forcefield_ml.cli", "train", str(path)],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=180,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("finished after 3 batches") == 1
    assert [row["batch"] for row in read_log(settings["output"] / "log.csv")] == [1, 2, 3]
    assert files.load(settings["output"] / "last.pt").training["processes"] == 2
