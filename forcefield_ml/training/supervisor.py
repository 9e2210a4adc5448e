"""What happens beside the steps of a run: clock, averages, log, validation, checkpoints, interruption."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from data_pipeline.schema import Paper
from forcefield_ml.data import BatchSource, BatchStream
from forcefield_ml.errors import UnstableError
from forcefield_ml.models.interface import Prediction
from forcefield_ml.progress import ProgressLine, duration
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training import predict, provenance
from forcefield_ml.training.average import WeightAverage
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.log import RunLog
from forcefield_ml.training.metrics import with_naive
from forcefield_ml.training.module import ForceModule, huber, learning_rate

LAST, BEST, LOG = "last.pt", "best.pt", "log.csv"

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Supervisor(lightning.Callback):
    """After every batch: clock, averages, log, validation, checkpoints, and whether to stop.

    Where several processes train together they decide as one: after every batch they learn the mean loss, process
    0's clock, and whether any of them was interrupted. Only process 0 writes.

    Parameters
    ----------
    module
        Of the run.
    validation
        Frames to validate on; may have none.
    stream
        Of the training batches; it knows how long it was waited for.
    card
        What the checkpoint tells of the training, but for batches and seconds.
    line
        Where progress is shown.
    former
        Last checkpoint of the run, if it goes on.
    """

    def __init__(
        self,
        module: ForceModule,
        validation: BatchSource,
        stream: BatchStream,
        card: dict[str, Any],
        line: ProgressLine,
        former: files.Checkpoint | None,
    ):
        self.config, self.processes = module.config, module.processes
        self.module, self.validation, self.stream, self.card, self.line = module, validation, stream, card, line
        resume: dict[str, Any] = (former.resume if former else None) or {}
        self.n_batches = int(resume.get("n_batches", 0))
        self.seconds_before = float(resume.get("seconds", 0.0))
        self.waited_before = float(former.training.get("seconds_waited", 0.0)) if former else 0.0
        self.best = float(resume.get("best", math.inf))
        self.stale = int(resume.get("stale", 0))
        self.metrics: dict[str, Any] = former.metrics if former else {}
        self.optimiser_state = resume.get("optimiser")
        self.average = WeightAverage(module.model, self.config.ema)
        if former is not None and resume:
            self.average.load(former.state_dict)
        if self.processes.first:
            self.record = RunLog(self.config.output / LOG, self.n_batches)
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
    def waited(self) -> float:
        """Time for which the steps of the run have waited for batches so far."""
        return self.waited_before + self.stream.waited - self.waited_at_start

    def _progress(self) -> float:
        """Return the part of the budget that is spent: of batches or time, whichever is further."""
        parts = [0.0]
        if self.config.max_batches is not None:
            parts.append(self.n_batches / self.config.max_batches)
        if self.config.max_minutes is not None:
            # the last validation must fit in
            parts.append((self.seconds + self.validation_seconds) / (60.0 * self.config.max_minutes))
        return max(parts)

    def _agree(self, loss: Tensor) -> tuple[float, float, bool]:
        """Return the loss of all processes, process 0's progress, and whether any was asked to stop."""
        if self.processes.size == 1:
            return float(loss), self._progress(), self.interrupted
        progress = self._progress() * self.processes.size if self.processes.first else 0.0
        own = torch.tensor([float(loss), progress, float(self.interrupted)], dtype=torch.float64, device=loss.device)
        loss_of_all, progress, interrupted = self.processes.mean(own).tolist()
        return loss_of_all, progress, interrupted > 0

    def on_train_start(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        """Start the clock; put the optimiser where it was; let Ctrl-C and SIGTERM end the run in good order."""
        self.started = self.saved = self.logged = time.monotonic()
        self.logged_batches = self.n_batches
        self.waited_at_start, self.logged_waited = self.stream.waited, self.waited_before
        self.progress = self._agree(torch.zeros((), device=self.module.device))[1]
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
        self.n_batches += 1
        loss, self.progress, interrupted = self._agree(outputs["loss"])
        loss *= self.module.unit / self.config.delta
        if not math.isfinite(loss):
            raise UnstableError(
                f"the loss of batch {self.n_batches} is {loss}; the last good weights are in "
                f"{self.config.output / LAST if self.n_batches > 1 else 'no file yet'}. Lower learning_rate "
                f"(now {self.config.learning_rate}) or set clip, and give another output folder"
            )
        self.losses.append(loss)
        self.average.update(self.module.model, self.n_batches)
        self.finished = self.progress >= 1.0
        stop = self.finished or interrupted
        due = self.n_batches % self.config.validate_every == 0
        validated = self._validate() if due or self.finished else {}
        if validated and self.config.patience is not None and self.stale >= self.config.patience:
            self.finished = stop = True
        if self.processes.first:
            if validated or stop or self.n_batches % self.config.log_every == 0:
                self._log(validated)
            self._show(stop)
            if validated or stop or time.monotonic() - self.saved >= self.config.save_every_seconds:
                self._save(trainer)
        trainer.should_stop = stop

    def on_train_end(self, trainer: lightning.Trainer, _: lightning.LightningModule) -> None:
        """Close the log; let every process wait for what process 0 wrote."""
        if self.processes.first:
            self.record.close()
        trainer.strategy.barrier()

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
        share = items[self.processes.rank :: self.processes.size]
        losses, judged = [], {}
        for name, part in model.parts.items():
            with self.average.applied(model):
                own = predict.run(dataset, predict.model_predictor(part, self.validation), share) if share else None
            kept = (own.target, own.predicted, own.marked) if own else None
            shares = [found for found in self.processes.gather(kept) if found]
            target, predicted, marked = (np.concatenate(arrays) for arrays in zip(*shares, strict=True))
            given = torch.from_numpy(predicted)
            vectors = given.ndim == 2
            prediction = Prediction(given if vectors else None, None if vectors else given, None)
            loss_of_part = huber(prediction, torch.from_numpy(target), self.config.delta, self.module.quantity)
            losses.append(float(loss_of_part) / self.config.delta)
            judged[name] = with_naive(predicted[marked], target[marked], self.module.quantity)
        loss = float(np.mean(losses))
        if not math.isfinite(loss):
            raise UnstableError(
                f"the validation loss after {self.n_batches} batches is {loss}. Lower learning_rate "
                f"(now {self.config.learning_rate}) and give another output folder"
            )
        self.stale = 0 if loss < self.best else self.stale + 1
        self.best = min(self.best, loss)
        metrics, *others = judged.values()
        self.metrics = {
            **metrics,
            **({"energy_head": others[0]} if others else {}),
            "split": "validation",
            "loss": loss,
            "n_frames": len(items),
            "n_batches": self.n_batches,
        }
        self.validated_at, self.validation_seconds = self.n_batches, time.monotonic() - began
        keys = ("tensor", "magnitude", "angle", "relative")
        told = {"validation_loss": loss, **{f"validation_{key}": metrics[key] for key in keys}}
        if others:
            told["validation_energy_head"] = others[0]["tensor"]
        return told

    def _log(self, validated: dict[str, float | None]) -> None:
        now = time.monotonic()
        if self.losses:
            self.shown_loss = float(np.mean(self.losses))
        self.speed = (self.n_batches - self.logged_batches) / max(now - self.logged, 1e-9)
        self.record.add(
            batch=self.n_batches,
            seconds=self.seconds,
            loss=self.shown_loss,
            learning_rate=self.rate,
            batches_per_second=self.speed,
            waiting=min(1.0, (self.waited - self.logged_waited) / max(now - self.logged, 1e-9)),
            **validated,
        )
        self.losses, self.logged, self.logged_batches, self.logged_waited = [], now, self.n_batches, self.waited

    def _show(self, last: bool) -> None:
        part = self.progress
        left = self.seconds * (1 - part) / part if part > 0 else math.nan
        loss = self.shown_loss if math.isfinite(self.shown_loss) else float(np.mean(self.losses))
        self.line.show(
            part,
            f"{duration(max(left, 0.0))} left · batch {self.n_batches} · {self.n_batches_per_second():.2g}/s · "
            f"loss {brief(loss, self.module.quantity)} · validation {headline(self.metrics, self.module.quantity)}",
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
            training={
                **provenance.with_progress(self.card, self.n_batches, self.seconds),
                "seconds_waited": self.waited,
            },
            metrics=self.metrics,
        )
        if self.validated_at == self.n_batches and self.stale == 0:
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
            "stale": self.stale,
            "finished": budget(self.config) if self.finished else None,
        }
        files.save(self.config.output / LAST, checkpoint)
        self.saved = time.monotonic()


def budget(config: TrainingConfig) -> list[float | None]:
    """Return what ends a run; one that was finished within it is finished."""
    return [config.max_batches, config.max_minutes, config.patience]


def brief(value: float, quantity: Paper) -> str:
    """Return a value in the unit on paper, a digit shorter than in a table."""
    return quantity.text(value, quantity.digits - 1)


def headline(metrics: dict[str, Any], quantity: Paper) -> str:
    """Return the error of the validation in a few words."""
    if not metrics:
        return "to come"
    key = "tensor" if metrics["tensor"] is not None else "magnitude"
    named = "" if key == "tensor" else f"{key} "
    gradient = f", by gradient {brief(metrics['energy_head'][key], quantity)}" if "energy_head" in metrics else ""
    naive = brief(metrics["naive"][key], quantity)
    return f"{named}{brief(metrics[key], quantity)}{gradient} (naive {naive}) {quantity.unit}"


@contextmanager
def former_signal_handlers() -> Iterator[None]:
    """Put the handlers of `SIGNALS` back at the end of a with block."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
