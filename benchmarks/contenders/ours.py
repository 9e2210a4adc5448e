"""Models of this project: what their contenders share."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import forcefield_ml
from contenders.interface import Batch, Contender, Setting, count
from forcefield_ml.deploy.force.evaluator import Evaluator
from forcefield_ml.graph.search import whole
from forcefield_ml.models import Atoms, build
from forcefield_ml.models.model import Model
from forcefield_ml.training.loss import tensor_huber

SEED = 0
"""Of the weights, so that two forms of one model are the same model."""

DELTA = 500.0
"""kJ/mol/nm, of the loss; it costs the same whatever it is."""


def network(config: dict[str, Any]) -> Model:
    """Return a model with the weights that every form of it has here."""
    torch.manual_seed(SEED)
    return build(config)


def about(model: nn.Module, config: dict[str, Any], capabilities: Any) -> dict[str, Any]:
    """Return what the table says of one of our models."""
    graph = f"{capabilities.cutoff} nm" if capabilities.cutoff else f"{capabilities.n_neighbours} nearest"
    return {
        "versions": {"forcefield-ml": forcefield_ml.__version__, "torch": torch.__version__},
        "n_parameters": count(model.parameters()),
        "cutoff": graph,
        "n_layers": capabilities.n_layers,
        "config": config,
    }


def train_step(model: nn.Module, predict: Callable[[], Tensor], targets: Tensor) -> Callable[[], None]:
    """Return a training step: forward, Huber loss, backward, Adam.

    Parameters
    ----------
    model
        Its parameters are trained.
    predict
        The forces (n, 3) of the batch.
    targets
        (n, 3) kJ/mol/nm.
    """
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        tensor_huber(predict(), targets, DELTA).backward()
        optimiser.step()
        if targets.is_cuda:
            torch.cuda.synchronize()

    return step


class Ours(Contender):
    """A model of `models.build` in the `Evaluator` that OpenMM calls.

    Parameters
    ----------
    config
        Of the model.
    setting
        What it is built for.
    """

    def __init__(self, config: dict[str, Any], setting: Setting):
        torch.set_num_threads(setting.threads)
        self.device = torch.device(setting.device)
        self.model = network(config).eval().to(self.device)
        self.wants = self.model.capabilities
        species = torch.from_numpy(setting.species).long().to(self.device)
        self.evaluator = Evaluator(self.model, species)
        self.box = torch.from_numpy(setting.box).to(self.device)
        self.about = about(self.model, self.model.config, self.wants)

    def evaluate(self, positions: np.ndarray) -> np.ndarray:
        """Return forces as a simulation gets them: neighbours from a list with a skin, and forward pass."""
        forces = self.evaluator(torch.from_numpy(positions).to(self.device), self.box).forces
        return forces.cpu().numpy()

    def trainer(self, batch: Batch) -> Callable[[], None]:
        """Return a training step; neighbours are found beforehand, as the data loader does."""
        species = Atoms(torch.from_numpy(batch.species).long().to(self.device))
        neighbours = self.model.search()(torch.from_numpy(batch.positions).to(self.device), None)
        sizes = whole(len(batch.species), self.wants.n_layers)
        self.model.train()
        targets = torch.from_numpy(batch.forces).to(self.device)
        return train_step(self.model, lambda: self.model(species, neighbours, sizes).forces, targets)

    def profile(self, frames: list[np.ndarray], budget: float) -> dict[str, Any]:
        """Return the share of each part of a step, and the operations that take longest."""
        self.model.eval()
        self.evaluate(frames[0])
        backbone = self.model.backbone
        parts: dict[str, nn.Module] = {"backbone": backbone, "head": self.model.head}
        for name, child in backbone.named_children():
            pieces = list(child) if isinstance(child, nn.ModuleList) else [child]
            parts |= {f"{name} {i}" if len(pieces) > 1 else name: piece for i, piece in enumerate(pieces)}
        spent: dict[str, float] = defaultdict(float)
        handles = [handle for name, part in parts.items() for handle in _clock(part, name, spent)]
        before = replace(self.evaluator.neighbour_list.statistics)
        begun = time.perf_counter()
        n_steps = 0
        for frame in frames:
            self.evaluate(frame)
            n_steps += 1
            if time.perf_counter() - begun > budget:
                break
        total = time.perf_counter() - begun
        for handle in handles:
            handle.remove()
        inner = sum(seconds for name, seconds in spent.items() if name not in ("backbone", "head"))
        spent["the rest of the backbone"] = spent["backbone"] - inner
        now = self.evaluator.neighbour_list.statistics
        spent["search for candidates"] = now.search_seconds - before.search_seconds
        spent["neighbours among candidates"] = now.refresh_seconds - before.refresh_seconds
        listed = spent["search for candidates"] + spent["neighbours among candidates"]
        spent["transfer, order and the rest"] = total - listed - spent.pop("backbone") - spent["head"]
        with torch.profiler.profile() as profiler:
            self.evaluate(frames[-1])
        operations = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
        whole_time = sum(event.self_cpu_time_total for event in operations)
        return {
            "steps": n_steps,
            "searches": now.rebuilds - before.rebuilds,
            "parts": {name: seconds / total for name, seconds in spent.items()},
            "operations": {event.key: event.self_cpu_time_total / whole_time for event in operations[:8]},
        }


def _clock(part: nn.Module, name: str, spent: dict[str, float]) -> list[Any]:
    """Add the seconds of each call of a module to `spent`; return the hooks."""
    begun: list[float] = []

    def now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def start(*_: Any) -> None:
        begun.append(now())

    def stop(*_: Any) -> None:
        spent[name] += now() - begun.pop()

    return [part.register_forward_pre_hook(start), part.register_forward_hook(stop)]
