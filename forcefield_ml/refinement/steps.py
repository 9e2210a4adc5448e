"""A structure moved along a field of vectors, step by step, until that no longer helps by any sign there is.

Without a native nobody knows whether a structure came nearer to it. What can be known is watched:

| stops when                                                                        | `Walk.stopped` |
|-----------------------------------------------------------------------------------|----------------|
| the vectors are shorter than `tolerance` on average                               | `converged`    |
| they are by more than `RISE` longer than they were at best                        | `rising`       |
| they have not become shorter than at best for `patience` steps                    | `no_progress`  |
| bonds are off by more than `BOND_LIMIT` (rms), or clashes more than in the input  | `geometry`     |
| all steps are done                                                                | `steps`        |

The steps are few by default: together they follow the vectors once, by (1 - fraction)^steps of their length. Further
steps rest on predictions for structures that the model made itself.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forcefield_ml.config import StrictConfig
from forcefield_ml.errors import UnstableError
from forcefield_ml.refinement.geometry import Geometry
from forcefield_ml.units import ANGSTROM

Vectors = NDArray[np.float64]
VectorField = Callable[[NDArray[np.float64]], Vectors]
"""From positions (N, 3) nm to the vectors (N, 3) nm that take each atom towards the native."""

RISE = 0.05
"""Share by which the mean length of the vectors may exceed the least so far."""

PROGRESS = 1e-3
"""Share by which the mean length must fall below the least so far to count as shorter."""

BOND_LIMIT = 0.005
"""nm, root mean square change of bond lengths that ends the walk; natives of the same resolution differ by less."""

CLASH_SHARE = 0.005
"""Clashes, as a share of the atoms, that there may be more than in the input."""

REASONS = {
    "converged": "the model sees nothing left to move",
    "rising": "the vectors became longer: by its own measure the model no longer helped",
    "no_progress": "the vectors no longer became shorter",
    "geometry": "bonds or clashes became worse than allowed; the structure before that was kept",
    "steps": "all steps were done",
}
"""`Walk.stopped` -> the same in words."""


class Settings(StrictConfig):
    """How to move; defaults as measured in docs/decisions/0033-refine.md."""

    steps: int = Field(default=10, ge=0, le=1000, description="Most steps.")
    fraction: float = Field(default=0.1, gt=0, le=1, description="Of each vector that a step goes.")
    max_step: float = Field(default=0.05, gt=0, le=0.2, description="nm that no atom moves farther in a step.")
    average: int = Field(default=1, ge=1, description="Last structures whose mean is the result.")
    patience: int = Field(default=5, ge=1, description="Steps without shorter vectors after which it stops.")
    tolerance: float = Field(default=0.001, ge=0, description="nm, mean length of vectors that is nothing.")
    keep_geometry: bool = Field(default=True, description="Put bonds, angles and clashes right after each step.")


class Step(NamedTuple):
    """A structure on the way, the input being number 0.

    Attributes
    ----------
    number
        Steps done before it.
    positions
        (N, 3) nm.
    predicted
        Mean length of the vectors there, nm; None where they were not asked for.
    moved
        Root mean square distance from the input, nm.
    bond_rms
        Root mean square change of bond lengths, nm.
    clashes
        Pairs.
    """

    number: int
    positions: NDArray[np.float64]
    predicted: float | None
    moved: float
    bond_rms: float
    clashes: int


@dataclass
class Walk:
    """What `walk` did.

    Attributes
    ----------
    positions : ndarray
        (N, 3) nm, the result.
    vectors : ndarray
        (N, 3) nm, predicted at the input.
    trace : list of Step
        From the input to the last structure, those taken back included.
    stopped : str
        One of `REASONS`.
    taken : list of int
        Numbers of the structures whose mean is the result.
    """

    positions: NDArray[np.float64]
    vectors: Vectors
    trace: list[Step] = field(default_factory=list)
    stopped: str = "steps"
    taken: list[int] = field(default_factory=list)


def walk(
    predict: VectorField,
    start: NDArray[np.float64],
    geometry: Geometry,
    settings: Settings,
    show: Callable[[Step], Any] = lambda step: None,
) -> Walk:
    """Move a structure along predicted vectors.

    Parameters
    ----------
    predict
        The model.
    start
        (N, 3) nm.
    geometry
        Of the input.
    settings
        How to move.
    show
        Called with each structure on the way.

    Returns
    -------
    Walk
        With the input as its result where no step was worth doing.

    Raises
    ------
    UnstableError
        If a vector is not finite.
    """
    done = Walk(start, np.zeros_like(start))
    allowed = geometry.clashes(start) + max(2, round(CLASH_SHARE * len(start)))
    positions, kept, best, best_at = start, 0, np.inf, 0
    for number in range(settings.steps + 1):
        bond_rms, clashes = geometry.covalent(positions).rms, geometry.clashes(positions)
        spoilt = number > 0 and (bond_rms > BOND_LIMIT or clashes > allowed)
        vectors = None if spoilt else _checked(predict, positions)
        length = None if vectors is None else float(np.linalg.norm(vectors, axis=1).mean())
        moved = float(np.sqrt(((positions - start) ** 2).sum(axis=1).mean()))
        done.trace.append(Step(number, positions, length, moved, bond_rms, clashes))
        show(done.trace[-1])
        if vectors is None or length is None:
            done.stopped = "geometry"
            break
        if number == 0:
            done.vectors = vectors
        if length > (1 + RISE) * best:
            done.stopped, kept = "rising", best_at
            break
        kept = number
        if length < (1 - PROGRESS) * best:
            best, best_at = length, number
        if length <= settings.tolerance:
            done.stopped = "converged"
            break
        if number - best_at >= settings.patience:
            done.stopped, kept = "no_progress", best_at
            break
        if number < settings.steps:
            positions = positions + _steps(vectors, settings)
            positions = geometry.restored(positions) if settings.keep_geometry else positions
    done.taken = list(range(max(min(1, kept), kept - settings.average + 1), kept + 1))
    done.positions = done.trace[kept].positions
    if len(done.taken) > 1:
        mean = np.mean([done.trace[number].positions for number in done.taken], axis=0)
        done.positions = geometry.restored(mean) if settings.keep_geometry else mean
    return done


def _checked(predict: VectorField, positions: NDArray[np.float64]) -> Vectors:
    vectors = np.asarray(predict(positions), dtype=np.float64)
    if vectors.shape != positions.shape:
        raise UnstableError(
            f"the model gave vectors of shape {vectors.shape} for {len(positions)} atoms; it must give one for each"
        )
    if not np.isfinite(vectors).all():
        bad = int((~np.isfinite(vectors).all(axis=1)).sum())
        raise UnstableError(
            f"the model gave {bad} vectors that are not finite; are atoms on top of each other, or is it damaged? "
            "Nothing was written"
        )
    return vectors


def _steps(vectors: Vectors, settings: Settings) -> Vectors:
    """Return the fraction of the vectors that is gone, none longer than allowed."""
    steps = settings.fraction * vectors
    lengths = np.linalg.norm(steps, axis=1, keepdims=True)
    return np.asarray(steps * np.minimum(1.0, settings.max_step / np.maximum(lengths, 1e-30)))


def in_words(step: Step) -> str:
    """Return a structure on the way in one line."""
    length = "" if step.predicted is None else f"predicted |v| {step.predicted / ANGSTROM:.2f} Å, "
    return f"{length}moved {step.moved / ANGSTROM:.2f} Å, {step.clashes} clashes"
