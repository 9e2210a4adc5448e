"""One training step: the model, its loss and its optimiser, as Lightning wants them."""

from __future__ import annotations

import math
from collections.abc import Callable

import lightning
import torch
from pytorch_optimizer.optimizer.soap import SOAP
from torch import Tensor

from data_pipeline.schema import Paper
from forcefield_ml.data import Batch, Target
from forcefield_ml.models.interface import Prediction
from forcefield_ml.models.model import Model, TwoHeads
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.loss import magnitude, scalar_huber, tensor_huber
from forcefield_ml.training.processes import Processes
from forcefield_ml.units import FORCE


def huber(prediction: Prediction, targets: Tensor, delta: float, quantity: Paper = FORCE) -> Tensor:
    """Return the paper's loss of whatever is predicted: of the vectors, or at order 0 of their norms.

    Parameters
    ----------
    prediction
        Of n atoms.
    targets
        (n, 3) true vectors, in their unit inside.
    delta
        In the unit on paper.
    quantity
        What the vectors are.

    Returns
    -------
    Tensor
        (), the square of the unit on paper.
    """
    targets = targets * quantity.factor
    if prediction.forces is not None:
        return tensor_huber(prediction.forces.to(targets.dtype) * quantity.factor, targets, delta)
    assert prediction.magnitude is not None
    return scalar_huber(prediction.magnitude.to(targets.dtype) * quantity.factor, magnitude(targets), delta)


class ForceModule(lightning.LightningModule):
    """Train a model on batches.

    What is minimised is loss / (delta x scale): without unit and near the relative error, so that `clip` means the
    same for every dataset; Adam's steps do not depend on it.

    Parameters
    ----------
    model
        The model; of two on one backbone each has half of the loss.
    config
        Settings of the run.
    scale
        Root mean square norm of the target vectors, in their unit inside.
    processes
        Those that train together; each target has the same weight, whichever process holds it.
    """

    def __init__(self, model: Model | TwoHeads, config: TrainingConfig, scale: float, processes: Processes):
        super().__init__()
        self.model = model
        self.config = config
        self.processes = processes
        self.quantity = Target(config.target, config.target_atoms).quantity
        self.unit = config.delta * scale * self.quantity.factor
        # in a list: a compiled wrapper must not become a second submodule
        self._runs: list[Callable[..., Prediction]] = [
            torch.compile(part, dynamic=True) if config.compile else part for part in model.parts.values()
        ]

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of one batch, without unit.

        Every target has the same weight: a batch with fewer of them than were asked for counts for less, and the mean
        over the processes is that of all their targets.
        """
        predictions = [
            part.whole(run(batch.atoms, batch.neighbours, batch.layer_sizes), batch.terms)
            for run, part in zip(self._runs, self.model.parts.values(), strict=True)
        ]
        losses = [huber(prediction, batch.targets, self.config.delta, self.quantity) for prediction in predictions]
        loss = torch.stack(losses).mean() / self.unit
        if self.config.targets_per_batch is not None:
            return loss * (len(batch.targets) / self.config.targets_per_batch)
        if self.processes.size == 1:
            return loss
        count = torch.tensor(float(len(batch.targets)), device=loss.device)
        return loss * (count / self.processes.mean(count))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimiser; the learning rate is set before every batch."""
        make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "soap": SOAP}[self.config.optimiser]
        decay = {} if self.config.optimiser == "adam" else {"weight_decay": self.config.weight_decay}
        return make(self.model.parameters(), lr=self.config.learning_rate, **decay)


def learning_rate(config: TrainingConfig, n_batches: int, progress: float) -> float:
    """Return the learning rate of the next batch.

    Parameters
    ----------
    config
        Settings of the run.
    n_batches
        Batches done.
    progress
        Part of the budget that is spent, 0 to 1.

    Returns
    -------
    float
        Rising over `warmup_batches`, then following the schedule down to the final part.
    """
    progress, last = min(max(progress, 0.0), 1.0), config.final_learning_rate
    part = {
        "constant": 1.0,
        "linear": 1.0 - (1.0 - last) * progress,
        "cosine": last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * progress)),
    }[config.schedule]
    warm = min(1.0, (n_batches + 1) / config.warmup_batches) if config.warmup_batches else 1.0
    return config.learning_rate * part * warm
