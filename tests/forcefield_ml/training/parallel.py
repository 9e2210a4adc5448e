"""Processes as torchrun starts them, forked from one that has imported the libraries: seconds instead of tens."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer

from forcefield_ml import models
from forcefield_ml.config import parse_config
from forcefield_ml.data import BatchSource, BatchStream, ForceDataset
from forcefield_ml.errors import ForcefieldMLError
from forcefield_ml.nn import normalisation, synchronise
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.loop import train
from forcefield_ml.training.module import ForceModule
from forcefield_ml.training.processes import Processes


def start(size: int, work: Callable[..., None], *arguments: Any) -> list[BaseProcess]:
    """Start `work` in some processes with the variables that torchrun would set."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning", "forcefield_ml.training.loop"])
    started = []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        variables = {name: str(value) for name, value in names.items()}
        variables |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test"}
        process = context.Process(target=_run, args=(variables if size > 1 else {}, work, *arguments), daemon=True)
        process.start()
        started.append(process)
    return started


def _run(variables: dict[str, str], work: Callable[..., None], *arguments: Any) -> None:
    os.environ.update(variables)
    torch.set_num_threads(1)
    work(*arguments)


def finish(processes: list[BaseProcess], seconds: float = 60.0) -> list[int | None]:
    """Wait for processes and return their exit codes; one that hangs is killed and has the code of that."""
    for process in processes:
        process.join(seconds)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def command(settings: dict[str, Any], told: Path) -> None:
    """Do what `forcefield-ml train` does; write the message or the result to told.RANK."""
    own = told.with_suffix(f".{os.environ.get('RANK', '0')}")
    try:
        result = train(parse_config(TrainingConfig, settings), quiet=True)
    except ForcefieldMLError as error:
        own.write_text(f"{type(error).__name__}: {error}")
        sys.exit(1)
    own.write_text(f"{result.n_batches} {result.finished}")
    sys.exit(0 if result.finished else 130)


class _Gradients(Callback):
    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        self.steps.append({name: value.grad.clone() for name, value in module.model.named_parameters()})


def two_steps(dataset: Path, model: dict[str, Any], frames: int, synchronised: bool, path: Path) -> None:
    """Train for two batches in float64 and write gradients, weights and buffers to path.RANK."""
    if not synchronised:
        normalisation.mean_over_atoms = lambda values: values.mean(0)
    processes = Processes.here()
    settings = {"dataset": dataset, "output": path, "model": model, "max_batches": 2, "learning_rate": 0.01}
    torch.manual_seed(0)
    network = models.build(model)
    network.set_scale(100.0)
    module = ForceModule(network, parse_config(TrainingConfig, settings), 100.0, processes)
    gradients = _Gradients()
    source = BatchSource(ForceDataset(dataset), network.search(), network.capabilities.n_layers, frames)
    trainer = Trainer(
        accelerator="cpu",
        precision="64-true",
        max_steps=2,
        max_epochs=-1,
        callbacks=[gradients],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **processes.trainer_settings(cuda=False),
    )
    with processes.in_step():
        trainer.fit(module, BatchStream(source, processes.rank, ahead=0, step=processes.size))
    torch.save({"gradients": gradients.steps, "state": network.state_dict()}, f"{path}.{processes.rank}")


assert synchronise.mean_over_atoms is normalisation.mean_over_atoms  # what the control above replaces is what is used
