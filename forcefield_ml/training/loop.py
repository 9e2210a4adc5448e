"""The one training loop: Lightning runs the steps, `Supervisor` watches budget, averages, validation and files."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch

from forcefield_ml import models
from forcefield_ml.config import dump_config
from forcefield_ml.data import BatchSource, BatchStream, ForceDataset
from forcefield_ml.errors import ConfigError, UnstableError
from forcefield_ml.models.interface import Prediction
from forcefield_ml.progress import ProgressLine, duration
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training import predict
from forcefield_ml.training.average import WeightAverage
from forcefield_ml.training.config import RESUME_FREE, TrainingConfig
from forcefield_ml.training.log import CsvLog
from forcefield_ml.training.metrics import with_naive
from forcefield_ml.training.module import ForceModule, huber, learning_rate

LAST, BEST, LOG, CONFIG = "last.pt", "best.pt", "log.csv", "config.yaml"


SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass
class TrainingResult:
    """What `train` did.

    Parameters
    ----------
    checkpoint
        The file to evaluate and export: best.pt, by validation loss.
    n_batches
        Batches of the whole run, over all its resumptions.
    seconds
        Time of the whole run.
    finished
        False if it was interrupted before its budget was spent.
    metrics
        Validation metrics of that checkpoint; empty without a validation split.
    """

    checkpoint: Path
    n_batches: int
    seconds: float
    finished: bool
    metrics: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**vars(self), "checkpoint": str(self.checkpoint)}

    def summary(self) -> str:
        """Return lines for the screen: how far it came, and what to type next."""
        state = "finished" if self.finished else "stopped (the same command goes on)"
        told = f", validation {_headline(self.metrics)}" if self.metrics else ""
        return (
            f"{state} after {self.n_batches} batches, {duration(self.seconds)}{told}\n"
            f"next: forcefield-ml evaluate {self.checkpoint} DATASET\n"
            f"  or: forcefield-ml export {self.checkpoint} -o model.pt"
        )


def train(config: TrainingConfig, quiet: bool = False) -> TrainingResult:
    """Train a model, or go on with a run that stopped.

    Batches, their order, optimiser, averages and clock go on from the last checkpoint; what came after it (at most
    `save_every_seconds`) is done again, with the same batches. A run whose budget is spent returns at once.

    Parameters
    ----------
    config
        Settings of the run.
    quiet
        Show no progress.

    Returns
    -------
    TrainingResult
        Where the checkpoint is and how far the run came.

    Raises
    ------
    ConfigError
        If the output folder holds a run with other settings or other data, or no such model exists.
    DatasetError
        If the dataset does not serve.
    ModelFileError
        If a checkpoint cannot be read or written.
    UnstableError
        If the loss is no longer finite.
    """
    model_config = models.parse_config(dict(config.model))
    config = config.model_copy(update={"model": model_config.model_dump(mode="json")})
    training = ForceDataset(config.dataset, "train")
    validation = ForceDataset(config.dataset, "validation")
    training.require_frames()
    torch.manual_seed(config.seed)
    model = models.build(model_config)
    for split in (training, validation):
        split.require_species(model.capabilities.elements)
    former = _former_run(config, training)
    if former is not None and former.resume is not None:
        if _is_finished(config, former.resume):
            return _result(config, former, finished=True)
        model.load_state_dict(former.resume["state_dict"])
        torch.set_rng_state(former.resume["random"])
        scale = float(former.resume["scale"])
    else:
        scale = training.rms_target_force()
        if not scale > 0:
            raise ConfigError(f"every target force in {config.dataset} is zero; there is nothing to learn")
        model.set_scale(scale / math.sqrt(3) if model.predicts == "forces" else scale)
    _make_folder(config)
    module = ForceModule(model, config, scale)
    sources = [
        BatchSource(
            split,
            model.search(),
            model.capabilities.n_layers,
            config.frames_per_batch,
            config.targets_per_batch,
            config.seed,
            cache_bytes=config.cache_mb << 20,
        )
        for split in (training, validation)
    ]
    title = f"train {config.model['architecture']}"
    with closing(training), closing(validation), ProgressLine(title, quiet) as line, _quiet_lightning():
        supervisor = Supervisor(config, module, sources[1], _card(config, training, scale), line, former)
        trainer = lightning.Trainer(
            accelerator="cuda" if config.device != "cpu" and _has_cuda(config) else "cpu",
            devices=1,
            max_epochs=-1,
            max_steps=-1 if config.max_batches is None else config.max_batches - supervisor.n_batches,
            gradient_clip_val=config.clip,
            callbacks=[supervisor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        with _former_signal_handlers():
            trainer.fit(module, train_dataloaders=BatchStream(sources[0], supervisor.n_batches, config.ahead))
    return _result(config, files.load(config.output / LAST), supervisor.finished)


class Supervisor(lightning.Callback):
    """After every batch: clock, averages, log, validation, checkpoints, and whether to stop.

    Parameters
    ----------
    config, module
        Of the run.
    validation
        Frames to validate on; may have none.
    card
        What the checkpoint tells of the training, but for the number of batches.
    line
        Where progress is shown.
    former
        Last checkpoint of the run, if it goes on.
    """

    def __init__(
        self,
        config: TrainingConfig,
        module: ForceModule,
        validation: BatchSource,
        card: dict[str, Any],
        line: ProgressLine,
        former: files.Checkpoint | None,
    ):
        self.config, self.module, self.validation, self.card, self.line = config, module, validation, card, line
        resume: dict[str, Any] = (former.resume if former else None) or {}
        self.n_batches = int(resume.get("n_batches", 0))
        self.seconds_before = float(resume.get("seconds", 0.0))
        self.best = float(resume.get("best", math.inf))
        self.metrics: dict[str, Any] = former.metrics if former else {}
        self.optimiser_state = resume.get("optimiser")
        self.average = WeightAverage(module.model, config.ema)
        if former is not None and resume:
            self.average.load(former.state_dict)
        self.csv = CsvLog(config.output / LOG, self.n_batches)
        self.finished = False
        self.interrupted = False
        self.validated_at = -1
        self.validation_seconds = 0.0
        self.losses: list[float] = []
        self.shown_loss = math.nan

    @property
    def seconds(self) -> float:
        """Time spent on the run so far, former parts included."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def progress(self) -> float:
        """Part of the budget that is spent: of batches or time, whichever is further."""
        parts = [0.0]
        if self.config.max_batches is not None:
            parts.append(self.n_batches / self.config.max_batches)
        if self.config.max_minutes is not None:
            # the last validation must fit in
            parts.append((self.seconds + self.validation_seconds) / (60.0 * self.config.max_minutes))
        return max(parts)

    def on_train_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        """Start the clock; put the optimiser where it was; let Ctrl-C and SIGTERM end the run in good order."""
        self.started = self.saved = self.logged = time.monotonic()
        self.logged_batches = self.n_batches
        if self.optimiser_state is not None:
            trainer.optimizers[0].load_state_dict(self.optimiser_state)
        device = next(self.module.model.parameters()).device
        self.average.values = {name: value.to(device) for name, value in self.average.values.items()}
        if threading.current_thread() is threading.main_thread():
            # only now: Lightning's own handler for SIGTERM, set just before, would end the run without a checkpoint
            for number in SIGNALS:
                signal.signal(number, self._stop)

    def on_train_batch_start(self, trainer: lightning.Trainer, *_: Any) -> None:
        """Set the learning rate."""
        self.rate = learning_rate(self.config, self.n_batches, self.progress)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = self.rate

    def on_train_batch_end(
        self, trainer: lightning.Trainer, _: lightning.LightningModule, outputs: Any, *__: Any
    ) -> None:
        """Count the batch and do what is due."""
        loss = float(outputs["loss"]) * self.module.unit / self.config.delta
        if not math.isfinite(loss):
            raise UnstableError(
                f"the loss of batch {self.n_batches + 1} is {loss}; the last good weights are in "
                f"{self.config.output / LAST if self.n_batches else 'no file yet'}. Lower learning_rate "
                f"(now {self.config.learning_rate}) or set clip, and give another output folder"
            )
        self.n_batches += 1
        self.losses.append(loss)
        self.average.update(self.module.model, self.n_batches)
        self.finished = self.progress >= 1.0
        stop = self.finished or self.interrupted
        due = self.n_batches % self.config.validate_every == 0
        validated = self._validate() if due or self.finished else {}
        if validated or stop or self.n_batches % self.config.log_every == 0:
            self._log(validated)
        self._show(stop)
        if validated or stop or time.monotonic() - self.saved >= self.config.save_every_seconds:
            self._save(trainer)
        trainer.should_stop = stop

    def on_train_end(self, *_: Any) -> None:
        """Close the log."""
        self.csv.close()

    def _stop(self, *_: Any) -> None:
        """Ask for an end after the batch in hand; a second signal ends the run at once."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True

    def _validate(self) -> dict[str, float | None]:
        dataset = self.validation.dataset
        if not len(dataset) or self.validated_at == self.n_batches:
            return {}
        began = time.monotonic()
        count = min(self.config.validation_frames or len(dataset), len(dataset))
        items = np.unique(np.linspace(0, len(dataset) - 1, count).round().astype(int)).tolist()
        model = self.module.model
        with self.average.applied(model):
            result = predict.run(dataset, predict.model_predictor(model, self.validation), items)
        given = torch.from_numpy(result.predicted)
        vectors = given.ndim == 2
        prediction = Prediction(given if vectors else None, None if vectors else given, None)
        loss = float(huber(prediction, torch.from_numpy(result.target), self.config.delta)) / self.config.delta
        if not math.isfinite(loss):
            raise UnstableError(
                f"the validation loss after {self.n_batches} batches is {loss}. Lower learning_rate "
                f"(now {self.config.learning_rate}) and give another output folder"
            )
        metrics = with_naive(result.predicted, result.target)
        self.metrics = {
            **metrics,
            "split": "validation",
            "loss": loss,
            "n_frames": len(items),
            "n_batches": self.n_batches,
        }
        self.validated_at, self.validation_seconds = self.n_batches, time.monotonic() - began
        keys = ("tensor", "magnitude", "angle", "relative")
        return {"validation_loss": loss, **{f"validation_{key}": metrics[key] for key in keys}}

    def _log(self, validated: dict[str, float | None]) -> None:
        now = time.monotonic()
        if self.losses:
            self.shown_loss = float(np.mean(self.losses))
        self.speed = (self.n_batches - self.logged_batches) / max(now - self.logged, 1e-9)
        self.csv.add(
            batch=self.n_batches,
            seconds=self.seconds,
            loss=self.shown_loss,
            learning_rate=self.rate,
            batches_per_second=self.speed,
            **validated,
        )
        self.losses, self.logged, self.logged_batches = [], now, self.n_batches

    def _show(self, last: bool) -> None:
        part = self.progress
        left = self.seconds * (1 - part) / part if part > 0 else math.nan
        loss = self.shown_loss if math.isfinite(self.shown_loss) else float(np.mean(self.losses))
        self.line.show(
            part,
            f"{duration(max(left, 0.0))} left · batch {self.n_batches} · {self.n_batches_per_second():.2g}/s · "
            f"loss {loss:.0f} · validation {_headline(self.metrics)}",
            last,
        )

    def n_batches_per_second(self) -> float:
        """Return the speed since the last row of the log, or of the first batches."""
        now = time.monotonic()
        if self.n_batches > self.logged_batches:
            return (self.n_batches - self.logged_batches) / max(now - self.logged, 1e-9)
        return self.speed

    def _save(self, trainer: lightning.Trainer) -> None:
        weights = {name: value.cpu().clone() for name, value in self.average.values.items()}
        model = self.module.model
        if not all(bool(torch.isfinite(value).all()) for value in (*weights.values(), *model.state_dict().values())):
            return  # the next loss ends the run; what is on disk stays good
        checkpoint = files.Checkpoint(
            model_config=self.config.model,
            state_dict=weights,
            training={**self.card, "n_batches": self.n_batches, "seconds": self.seconds},
            metrics=self.metrics,
        )
        loss = self.metrics.get("loss", math.inf)
        if self.validated_at == self.n_batches and loss < self.best:
            self.best = loss
            files.save(self.config.output / BEST, checkpoint)
        elif not len(self.validation.dataset) and self.finished:
            files.save(self.config.output / BEST, checkpoint)
        checkpoint.resume = {
            "state_dict": {name: value.cpu() for name, value in model.state_dict().items()},
            "optimiser": trainer.optimizers[0].state_dict(),
            "random": torch.get_rng_state(),
            "n_batches": self.n_batches,
            "seconds": self.seconds,
            "scale": float(self.card["scale"]),
            "best": self.best,
            "finished": [self.config.max_batches, self.config.max_minutes] if self.finished else None,
        }
        files.save(self.config.output / LAST, checkpoint)
        self.saved = time.monotonic()


def _headline(metrics: dict[str, Any]) -> str:
    if not metrics:
        return "to come"
    key = "tensor" if metrics["tensor"] is not None else "magnitude"
    named = "" if key == "tensor" else f"{key} "
    return f"{named}{metrics[key]:.0f} (naive {metrics['naive'][key]:.0f}) meV/Å"


def _card(config: TrainingConfig, training: ForceDataset, scale: float) -> dict[str, Any]:
    return {
        "entries": [entry.name for entry in training.entries],
        "sequences": {entry.name: entry.sequence for entry in training.entries},
        "n_frames": len(training),
        "dataset_sha256": training.content_sha256,
        "protocol": training.protocol,
        "force_field": training.force_field,
        "recipe": _recipe(config),
        "seed": config.seed,
        "scale": scale,
    }


def _recipe(config: TrainingConfig) -> dict[str, Any]:
    return {**config.model_dump(mode="json", exclude={"output"}), "dataset": config.dataset.name}


def _former_run(config: TrainingConfig, training: ForceDataset) -> files.Checkpoint | None:
    path = config.output / LAST
    if not path.exists():
        return None
    former = files.load(path)
    recipe, wanted = former.training.get("recipe", {}), _recipe(config)
    changed = [key for key in wanted if key not in RESUME_FREE and recipe.get(key) != wanted[key]]
    if former.training.get("dataset_sha256") != training.content_sha256:
        changed.append("dataset (its content)")
    if changed:
        raise ConfigError(
            f"{config.output} holds a run with other settings: {', '.join(changed)}. Give another output, delete the "
            "folder to start anew, or take the former settings back to go on"
        )
    return former


def _is_finished(config: TrainingConfig, resume: dict[str, Any]) -> bool:
    if resume.get("finished") == [config.max_batches, config.max_minutes]:
        return True
    if config.max_batches is not None and resume["n_batches"] >= config.max_batches:
        return True
    return config.max_minutes is not None and resume["seconds"] >= 60.0 * config.max_minutes


def _result(config: TrainingConfig, last: files.Checkpoint, finished: bool) -> TrainingResult:
    path = config.output / BEST
    path = path if path.exists() else config.output / LAST
    best = files.load(path)
    return TrainingResult(path, last.training["n_batches"], last.training["seconds"], finished, best.metrics)


def _make_folder(config: TrainingConfig) -> None:
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        dump_config(config, config.output / CONFIG)
    except OSError as error:
        raise ConfigError(f"cannot write to the output folder {config.output}: {error.strerror or error}") from None


def _has_cuda(config: TrainingConfig) -> bool:
    if torch.cuda.is_available():
        return True
    if config.device == "cuda":
        raise ConfigError("device is 'cuda', but torch finds no CUDA device here. Set device to 'auto' or 'cpu'")
    return False


@contextmanager
def _former_signal_handlers() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # about loaders with several workers, logging and checkpoints, all of which we do ourselves
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            logger.setLevel(level)
