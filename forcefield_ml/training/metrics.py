"""How far predicted vectors are from the true ones: pure functions on arrays, in float64.

| key       | meaning over the pooled atoms                                                              |
|-----------|--------------------------------------------------------------------------------------------|
| tensor    | mean of the norm of F_p - F_t, meV/Å (of displacements Å)                                  |
| magnitude | mean of the absolute difference of the norms, meV/Å (of displacements Å)                   |
| angle     | mean angle between F_p and F_t in degrees, over atoms with a true norm above 1e-3 of these |
| relative  | tensor over the mean true norm                                                             |
| pearson   | Pearson correlation of the norms                                                           |

Every atom has weight one. What a model does not predict (all but magnitude and pearson at order 0), or what has
no value (a correlation with a constant), is None. Arrays come in the unit inside (kJ/mol/nm; displacements nm),
the results are in that on paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data_pipeline.schema import Paper
from forcefield_ml.errors import UnstableError
from forcefield_ml.units import FORCE

KEYS = ("tensor", "magnitude", "angle", "relative", "pearson")

ANGLE_FLOOR = 1e-3
"""Below this true norm (in the unit on paper) a direction means nothing and the atom is left out of the angle."""

TAIL = (100, 1_000, 10_000)
"""One atom in so many has an error above what `tail` tells."""

Metrics = dict[str, float | None]


def force_metrics(predicted: ArrayLike, target: ArrayLike, quantity: Paper = FORCE) -> Metrics:
    """Return the five metrics of `KEYS` over all atoms given.

    A prediction of exactly zero has no direction; it counts as 90 degrees, the mean of a random one.

    Parameters
    ----------
    predicted
        (n, 3) vectors, or (n,) magnitudes of a model of order 0, in their unit inside.
    target
        (n, 3) true vectors.
    quantity
        What they are.

    Returns
    -------
    dict
        `KEYS` to values in the unit on paper, degrees or without unit.

    Raises
    ------
    UnstableError
        If a prediction is not finite.
    ValueError
        If the shapes differ or there is no atom.
    """
    truth, given = _checked(target, quantity), np.asarray(predicted, dtype=np.float64) * quantity.factor
    if given.shape not in (truth.shape, truth.shape[:1]):
        raise ValueError(f"predicted has shape {given.shape}; {truth.shape} or {truth.shape[:1]} is expected")
    bad = np.flatnonzero(~np.isfinite(given.reshape(len(truth), -1)).all(axis=1))
    if len(bad):
        raise UnstableError(
            f"{len(bad)} of {len(truth)} predicted {quantity.name}s are not finite, first at row {bad[0]}. The "
            "training probably diverged: lower the learning rate or set clip."
        )
    norm_true = np.linalg.norm(truth, axis=1)
    if given.ndim == 1:
        return _of_magnitudes(given, norm_true)
    norm_given = np.linalg.norm(given, axis=1)
    tensor = float(np.linalg.norm(given - truth, axis=1).mean())
    mean_norm = float(norm_true.mean())
    return _of_magnitudes(norm_given, norm_true) | {
        "tensor": tensor,
        "angle": _angle(given, truth, norm_given, norm_true),
        "relative": tensor / mean_norm if mean_norm > 0 else None,
    }


def naive_metrics(target: ArrayLike, quantity: Paper = FORCE) -> Metrics:
    """Return the metrics of the naive predictors on the same atoms.

    Zero for tensor (and relative), the mean magnitude of these atoms for magnitude, a random direction for angle.

    Parameters
    ----------
    target
        (n, 3) true vectors, in their unit inside.
    quantity
        What they are.

    Returns
    -------
    dict
        As `force_metrics`; pearson is None.

    Raises
    ------
    ValueError
        If there is no atom.
    """
    norm = np.linalg.norm(_checked(target, quantity), axis=1)
    return {
        "tensor": float(norm.mean()),
        "magnitude": float(np.abs(norm - norm.mean()).mean()),
        "angle": 90.0,
        "relative": 1.0,
        "pearson": None,
    }


def tail(predicted: ArrayLike, target: ArrayLike, quantity: Paper = FORCE) -> dict[str, float] | None:
    """Return how far off the worst predictions are: a mean hides the one force that tears a molecule.

    Parameters
    ----------
    predicted
        As in `force_metrics`.
    target
        (n, 3) true vectors.
    quantity
        What they are.

    Returns
    -------
    dict or None
        ``1 in 100`` and so on for each of `TAIL` that n atoms can tell, and ``largest``: norms of F_p - F_t in the
        unit on paper. None for a model of magnitudes.
    """
    truth, given = _checked(target, quantity), np.asarray(predicted, dtype=np.float64) * quantity.factor
    if given.ndim == 1:
        return None
    error = np.linalg.norm(given - truth, axis=1)
    found = {f"1 in {rare}": float(np.quantile(error, 1 - 1 / rare)) for rare in TAIL if rare <= len(error)}
    return {**found, "largest": float(error.max())}


def tail_in_words(worst: Mapping[str, float], quantity: Paper) -> str:
    """Return what `tail` told as one line, with its unit."""
    told = ", ".join(f"{name} {quantity.text(value)}" for name, value in worst.items())
    return f"{told} {quantity.unit}"


def grouped(
    predicted: ArrayLike, target: ArrayLike, group: ArrayLike, names: Sequence[str], quantity: Paper = FORCE
) -> dict[str, Any]:
    """Return the metrics of each group of atoms, such as one protein or one element.

    Parameters
    ----------
    predicted
        As in `force_metrics`.
    target
        (n, 3) true vectors.
    group
        (n,) integers, index into `names`.
    names
        Names of the groups; one without atoms is left out.
    quantity
        What the vectors are.

    Returns
    -------
    dict
        Name to its metrics, with ``n_atoms`` and ``naive``.
    """
    given, truth, index = np.asarray(predicted), np.asarray(target), np.asarray(group)
    result: dict[str, Any] = {}
    for number, name in enumerate(names):
        member = index == number
        if member.any():
            result[name] = with_naive(given[member], truth[member], quantity)
    return result


def with_naive(predicted: ArrayLike, target: ArrayLike, quantity: Paper = FORCE) -> dict[str, Any]:
    """Return `force_metrics` with the number of atoms and, under ``naive``, `naive_metrics`."""
    return {
        **force_metrics(predicted, target, quantity),
        "n_atoms": len(np.asarray(target)),
        "naive": naive_metrics(target, quantity),
    }


def mean_and_error(each: Mapping[str, Mapping[str, Any]]) -> dict[str, Metrics]:
    """Return mean and standard error over groups, each group with weight one.

    Parameters
    ----------
    each
        Metrics by name, as `grouped` returns them.

    Returns
    -------
    dict
        ``mean`` and ``standard_error`` (standard deviation with n - 1, over the root of n; None for one group).
    """
    mean: Metrics = {}
    error: Metrics = {}
    for key in KEYS:
        values = np.array([row[key] for row in each.values() if row[key] is not None], dtype=np.float64)
        mean[key] = float(values.mean()) if len(values) else None
        error[key] = float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else None
    return {"mean": mean, "standard_error": error}


def _checked(target: ArrayLike, quantity: Paper) -> NDArray[np.float64]:
    truth = np.asarray(target, dtype=np.float64) * quantity.factor
    if truth.ndim != 2 or truth.shape[1] != 3 or not len(truth):
        raise ValueError(f"target has shape {truth.shape}; (n, 3) with at least one atom is expected")
    if not np.isfinite(truth).all():
        raise ValueError(f"the true {quantity.name}s are not all finite; run data-pipeline check on the dataset")
    return truth


def _of_magnitudes(given: NDArray[np.float64], truth: NDArray[np.float64]) -> Metrics:
    result: Metrics = dict.fromkeys(KEYS)
    result["magnitude"] = float(np.abs(given - truth).mean())
    a, b = given - given.mean(), truth - truth.mean()
    scale = math.sqrt(float(a @ a) * float(b @ b))
    # A constant leaves rounding noise after its mean is taken off: no correlation rather than a random one.
    noise = 1e-10 * (np.abs(given).max() * np.abs(truth).max() + np.finfo(np.float64).tiny) * len(truth)
    result["pearson"] = float(np.clip(a @ b / scale, -1.0, 1.0)) if scale > noise else None
    return result


def _angle(
    given: NDArray[np.float64],
    truth: NDArray[np.float64],
    norm_given: NDArray[np.float64],
    norm_true: NDArray[np.float64],
) -> float | None:
    directed = norm_true > ANGLE_FLOOR
    if not directed.any():
        return None
    product = norm_given[directed] * norm_true[directed]
    dot = np.einsum("ij,ij->i", given[directed], truth[directed])
    cosine = np.divide(dot, product, out=np.zeros_like(dot), where=product > 0)
    return float(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))).mean())
