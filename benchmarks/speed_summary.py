"""From what the processes of the speed benchmark measured to numbers per atom, ratios and marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

import numpy as np

Found = Mapping[str, Any]

MANY = 10
"""Steps over which a neighbour list is searched at least once in dynamics at 300 K."""


class Spread(NamedTuple):
    """Minimum, median and maximum of some repeats."""

    low: float
    middle: float
    high: float


def spread(values: Iterable[float]) -> Spread:
    """Return the spread of one value or more."""
    numbers = sorted(values)
    return Spread(numbers[0], median(numbers), numbers[-1])


def repeats(runs: Sequence[Found]) -> list[float]:
    """Return the seconds of a step in each repeat.

    A neighbour list that lasts for some steps costs what it costs on average: a repeat is the mean over the steps of a
    process that made at least `MANY`, or over as many steps where there is one such process only. Of contenders too
    slow for that, which search at every step, each step is a repeat.

    Parameters
    ----------
    runs
        Of one contender, one for each process.
    """
    passes = [run["steps_s"] for run in runs if run.get("steps_s")]
    long = [steps for steps in passes if len(steps) >= MANY]
    if len(long) > 1:
        return [mean(steps) for steps in long]
    if long:
        n_parts = len(long[0]) // MANY
        return [float(part.mean()) for part in np.array_split(np.array(long[0]), n_parts)]
    return [step for steps in passes for step in steps]


def summary(runs: Sequence[Found]) -> dict[str, Any]:
    """Return the numbers of one contender on one workload.

    Parameters
    ----------
    runs
        One for each process.

    Returns
    -------
    dict
        ``reason`` where there is no step at all. Else ``n_atoms``, ``n_steps``, ``repeats``, ``step_s`` and
        ``us_per_atom`` (spreads), ``peak_mb``, ``baseline_mb``, of the first and second process ``first_force_s``
        (from its start) and ``first_step_s`` (from where the model was ready), and, where there is training,
        ``training_us_per_atom`` and ``training_atoms_per_s``; ``incomplete`` says what is missing.
    """
    seconds = repeats(runs)
    reasons = [run["reason"] for run in runs if "reason" in run]
    if not seconds:
        return {"reason": reasons[0] if reasons else "no step was made"}
    good = [run for run in runs if run.get("steps_s")]
    n_atoms = good[0]["n_atoms"]
    step = spread(seconds)
    found: dict[str, Any] = {
        "n_atoms": n_atoms,
        "n_steps": sum(len(run["steps_s"]) for run in good),
        "repeats": len(seconds),
        "step_s": step,
        "us_per_atom": Spread(*(1e6 * value / n_atoms for value in step)),
        "peak_mb": max(run["peak_mb"] for run in good if "peak_mb" in run),
        "baseline_mb": min(run["baseline_mb"] for run in good),
        "first_force_s": [run["first_force_s"] for run in good[:2]],
        "first_step_s": [run["first_step_s"] for run in good[:2]],
        "seconds": sum(run["seconds"] for run in runs),
    }
    device = [run["device_peak_mb"] for run in good if "device_peak_mb" in run]
    if device:
        found["device_peak_mb"] = max(device)
    trained = [run for run in good if run.get("training_s")]
    if trained:
        each = spread([1e6 * s / run["training_atoms"] for run in trained for s in run["training_s"]])
        found["training_us_per_atom"] = each
        found["training_atoms_per_s"] = Spread(*(1e6 / value for value in reversed(each)))
    dynamics = [run["dynamics_step_s"] for run in good if "dynamics_step_s" in run]
    if dynamics:
        found["dynamics_us_per_atom"] = spread(1e6 * value / n_atoms for value in dynamics)
    if reasons:
        found["incomplete"] = reasons[0]
    return found


def ratio(one: Sequence[float], other: Sequence[float]) -> Spread:
    """Return how many times `one` is as large as `other`: medians, and the least and largest that repeats allow."""
    return Spread(one[0] / other[2], one[1] / other[1], one[2] / other[0])


def difference(one: Path, other: Path) -> float | None:
    """Return mean |F - F'| / mean |F'| of forces that two contenders left, None where one left none."""
    if not (one.exists() and other.exists()):
        return None
    first, second = np.load(one).astype(np.float64), np.load(other).astype(np.float64)
    return float(np.linalg.norm(first - second, axis=1).mean() / np.linalg.norm(second, axis=1).mean())


class Mark(NamedTuple):
    """A goal and what was measured.

    Attributes
    ----------
    what
        In words.
    goal
        In words.
    value
        As measured, a ratio or a number with its unit in `goal`; None where it was not measured.
    reached
        None where it was not measured.
    """

    what: str
    goal: str
    value: str | None
    reached: bool | None


def marks(results: Mapping[str, Any]) -> list[Mark]:
    """Return the goals of the engine, each against this run.

    Where a contender could not do the solvated protein, the largest box that both could do stands in.

    Parameters
    ----------
    results
        Of `speed.run`.
    """
    rows = results["system"]["contenders"]
    steps = {name: row["us_per_atom"] for name, row in rows.items() if "us_per_atom" in row}
    boxes = {
        name: {row["n_atoms"]: row["us_per_atom"] for row in found if "us_per_atom" in row}
        for name, found in results["sizes"].items()
    }
    training = {name: row["training_us_per_atom"] for name, row in rows.items() if "training_us_per_atom" in row}

    def times(what: str, of: str, than: str, goal: float, more: bool, values: Mapping[str, Any] = steps) -> Mark:
        words = f"at least {goal:g} times" if more else f"at most {goal:g} times"
        one, other, where = values.get(of), values.get(than), ""
        both = boxes.get(of, {}).keys() & boxes.get(than, {}).keys()
        if values is steps and (one is None or other is None) and both:
            one, other, where = boxes[of][max(both)], boxes[than][max(both)], f", on {max(both):,} atoms"
        if one is None or other is None:
            return Mark(what, words, None, None)
        found = ratio(one, other)
        reached = found.middle >= goal if more else found.middle <= goal
        return Mark(what, words, f"{found.middle:.3g} ({found.low:.3g} to {found.high:.3g}){where}", reached)

    found = [
        times("TensorNet's time over the fast model's", "tensornet", "fast", 50, True),
        times("MACE's time over the fast model's", "mace", "fast", 50, True),
        times("plain e3nn's time over the paper's network by our engine", "paper_e3nn", "paper", 15, True),
        times("the fast model's time over AMBER14's", "fast", "amber", 10, False),
        times("a training step in plain e3nn over one by our engine", "paper_e3nn", "paper", 10, True, training),
        times("TorchScript's time over the compiled form's, fast model", "fast_script", "fast", 5, False),
    ]
    same = results["same_forces"].get("paper_e3nn, paper")
    known = None if same is None else f"{same:.1e}"
    found.append(
        Mark("forces of plain e3nn against ours", "1e-5 (relative)", known, None if same is None else same <= 1e-5)
    )
    for name in ("fast", "paper"):
        found += _growth(name, results["sizes"].get(name, []))
    return found


def _growth(name: str, rows: Sequence[Found]) -> list[Mark]:
    """Return the goals on growing boxes: constant cost per atom, little memory."""
    good = [row for row in rows if "us_per_atom" in row]
    cost, small = f"{name}: cost per atom over all sizes", f"{name}: memory per atom and layer, largest box"
    if len(good) < 2:
        return [Mark(cost, "within 25 % of constant", None, None), Mark(small, "under 4 kB", None, None)]
    costs = [row["us_per_atom"][1] for row in good]
    middle = (max(costs) + min(costs)) / 2
    off = max(costs) / middle - 1
    kilobytes = kilobytes_per_atom(good[-1]) / good[-1]["n_layers"]
    sizes = f"{good[0]['n_atoms']:,} to {good[-1]['n_atoms']:,} atoms"
    return [
        Mark(cost, "within 25 % of constant", f"±{off:.0%}, {sizes}", off <= 0.25),
        Mark(small, "under 4 kB", f"{kilobytes:.2f} kB", kilobytes < 4),
    ]


def kilobytes_per_atom(row: Found) -> float:
    """Return the peak of memory above what imports took, in kB (1,000 bytes) per atom."""
    return (row["peak_mb"] - row["baseline_mb"]) * 2**20 / 1e3 / float(row["n_atoms"])
