"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Average weights and running statistics over the batches.

    a <- d a + (1 - d) w with d = min(decay, (1 + n) / (10 + n)) after n batches, so that the first, random weights
    are soon forgotten. With decay 0 the average is the model itself.

    Parameters
    ----------
    model
        Its present weights begin the average.
    decay
        d above.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, n_batches: int) -> None:
        """Take the model's weights, after `n_batches` batches in all, into the average."""
        share = 1.0 - min(self.decay, (1 + n_batches) / (10 + n_batches)) if self.decay > 0 else 1.0
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, share)
            else:
                self.values[name].copy_(value)

    def load(self, values: dict[str, Tensor]) -> None:
        """Go on from saved values."""
        for name, value in values.items():
            self.values[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Put the average into the model, in eval mode, for the length of a with block."""
        training = model.training
        own = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.values)
        model.eval()
        try:
            yield
        finally:
            model.load_state_dict(own)
            model.train(training)
