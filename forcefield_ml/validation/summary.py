"""The verdict with its main numbers, short enough for a model's card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forcefield_ml.validation.dynamics.compare import ML
from forcefield_ml.validation.uses import Use

LAMBDA = ("lambda", "standard_error", "atoms", "probes")
DRIFT = ("slope", "standard_error", "over_kinetic_std", "length")
JUDGED_ON = ("n_atoms", "n_frames", "n_proteins", "split", "dataset")


def summary(
    uses: Sequence[Use],
    metrics: Mapping[str, Any],
    asymmetry: Mapping[str, Any] | None,
    dynamics: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return what report.json tells a card.

    Parameters
    ----------
    uses
        Of `uses.judge`.
    metrics
        Of `evaluate`.
    asymmetry
        Of `symmetry.asymmetry`, if lambda was measured.
    dynamics
        Of `dynamics.compare`, if it was run.

    Returns
    -------
    dict
        ``uses``: name, ``outcome`` and ``why`` of each. ``numbers``: ``relative``, ``lambda``, ``drift`` (meV/atom/ps,
        of the model's, AMBER14's and the multiple-time-stepping run) and ``temperature`` (K, by element, of the model's
        run); None what was not measured. ``judged_on``: the frames, and the sequences among them that were trained on.
    """
    known = (metrics.get("training") or {}).get("sequences_trained_on", [])
    return {
        "uses": [{"name": use.name, "outcome": use.outcome, "why": use.why} for use in uses],
        "numbers": {
            "relative": metrics["relative"],
            "lambda": None if asymmetry is None else {key: asymmetry[key] for key in LAMBDA},
            "drift": None if dynamics is None else {name: _drift(run) for name, run in dynamics["nve"].items()},
            "temperature": None if dynamics is None else _temperature(dynamics),
        },
        "judged_on": {
            **{key: metrics[key] for key in JUDGED_ON},
            "structure": None if dynamics is None else dynamics["structure"],
            "sequences_trained_on": known,
        },
    }


def _drift(run: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if run is None:
        return None
    found = {key: run["drift"][key] for key in DRIFT} if run["drift"] else dict.fromkeys(DRIFT)
    return {**found, "stopped": _stopped(run)}


def _temperature(dynamics: Mapping[str, Any]) -> dict[str, Any]:
    run = dynamics["nvt"][ML]
    elements = run["temperature"] or {}
    return {
        "target": dynamics["settings"]["temperature"],
        "mode": dynamics["mode"],
        "length": run.get("length"),
        "elements": {name: {key: found[key] for key in ("mean", "standard_error")} for name, found in elements.items()},
        "stopped": _stopped(run),
    }


def _stopped(run: Mapping[str, Any]) -> str | None:
    """Return why a guard stopped a run; None where none did."""
    return run["event"]["reason"] if run["event"] else None
