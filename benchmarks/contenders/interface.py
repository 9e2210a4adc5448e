"""What every contender offers, and what it is given."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CUTOFF = 4.5
"""Å, of all peers with a cutoff: that of MACE-OFF-small, of TensorNet's publication and of our fast model."""

SPECIES = (1, 6, 7, 8, 11, 16, 17)
"""Atomic numbers in solvated proteins."""

NEIGHBOURS = 38.0
"""Atoms within `CUTOFF` of one in water, by which sums over neighbours are scaled."""


@dataclass(frozen=True)
class Setting:
    """What a contender is built for.

    Parameters
    ----------
    species
        (N,) atomic numbers.
    box
        (3, 3) nm, vectors as rows.
    system
        XML of the OpenMM System of one copy.
    n_copies
        How many copies of that System lie in the box, one after the other.
    device
        ``"cpu"`` or ``"cuda"``.
    threads
        Threads a CPU contender may use.
    """

    species: np.ndarray
    box: np.ndarray
    system: Path
    n_copies: int
    device: str
    threads: int


@dataclass(frozen=True)
class Batch:
    """Atoms to train on, without periodicity.

    Parameters
    ----------
    species
        (n,) atomic numbers.
    positions
        (n, 3) nm.
    forces
        (n, 3) kJ/mol/nm.
    """

    species: np.ndarray
    positions: np.ndarray
    forces: np.ndarray


class Contender(ABC):
    """One way to get forces. The module defines ``make(setting)``, which returns it ready for the first step.

    Attributes
    ----------
    about : dict
        ``versions``, ``n_parameters``, ``cutoff`` (in words), and ``note`` where a reader must know more.
    warmup : int
        Evaluations, the first included, that are not counted; TorchScript recompiles what it saw at the second.
    """

    about: dict[str, Any]
    warmup: int = 1

    @abstractmethod
    def evaluate(self, positions: np.ndarray) -> np.ndarray:
        """Return forces (N, 3) for positions (N, 3) float32 in nm, neighbours found on the way."""

    def trainer(self, batch: Batch) -> Callable[[], None] | None:
        """Return a training step on the batch, from graph to new weights; None where nothing is trained."""
        return None

    def extra(self, budget: float) -> dict[str, Any]:
        """Return further measurements, made after all others, in about `budget` seconds."""
        return {}

    def profile(self, frames: list[np.ndarray], budget: float) -> dict[str, Any] | None:
        """Return where the time of a step goes, from the frames that `budget` seconds allow; None: not known."""
        return None


def count(parameters: Any) -> int:
    """Return how many numbers torch parameters hold."""
    return sum(parameter.numel() for parameter in parameters)
