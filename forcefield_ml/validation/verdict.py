"""The numbers in plain words: what was learnt from what, how good it is, what it is fit for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FOLLOWS, CLOSE = 0.6, 0.15
"""Relative errors below which a model has learnt most of the force, and is close to it."""

HELD = 0.15
"""Largest departure of the solute's mean temperature from the thermostat's, as a share of it, in a run that held."""


def verdict(
    card: Mapping[str, Any],
    metrics: Mapping[str, Any],
    simulations: Sequence[Mapping[str, Any]],
    sha256: str | None = None,
) -> list[str]:
    """Return sentences for the head of the page.

    Parameters
    ----------
    card
        Of the model, or what a checkpoint holds.
    metrics
        Of `evaluate`.
    simulations
        result.json of each simulation shown.
    sha256
        Of the model's file: tells which of the simulations it drove.

    Returns
    -------
    list of str
        What it is, how good, fit for, not fit for, and what was simulated.
    """
    own = [result for result in simulations if sha256 is not None and result["model"]["sha256"] == sha256]
    sentences = [_what(card, metrics), _how_good(metrics), _fit(metrics, own)]
    sentences += [simulated(result) for result in simulations]
    return sentences


def describe_model(card: Mapping[str, Any]) -> str:
    """Return architecture and, where it has one, order: "tfn, order 2".

    Parameters
    ----------
    card
        Of the model, or what a checkpoint holds.
    """
    config = card.get("model_config", {})
    name = str(card.get("architecture") or config.get("architecture", "unknown"))
    return f"{name}, order {config['order']}" if "order" in config else name


def beaten(metrics: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return which of tensor, magnitude and angle beat the naive predictors, and which do not.

    Parameters
    ----------
    metrics
        With ``naive``; a metric that is None belongs to neither.
    """
    known = [key for key in ("tensor", "magnitude", "angle") if metrics[key] is not None]
    won = [key for key in known if metrics[key] < metrics["naive"][key]]
    return won, [key for key in known if key not in won]


def _what(card: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    training = card.get("training", {})
    entries, batches = training.get("entries") or [], training.get("n_batches")
    learnt = f"{_count(len(entries), 'protein')} ({training.get('protocol', 'unknown')} frames)" if entries else "data"
    steps = f" in {batches:,} batches" if batches is not None else ""
    data = metrics["dataset"]
    proteins, frames = _count(metrics["n_proteins"], "protein"), _count(metrics["n_frames"], "frame")
    return (
        f"A {describe_model(card)} network, trained on {learnt}{steps}, judged on {proteins} of the "
        f"{metrics['split']} split: {metrics['n_atoms']:,} atoms in {frames}, protocol {data['protocol']}, "
        f"reference {data['force_field']}."
    )


def _how_good(metrics: Mapping[str, Any]) -> str:
    naive = metrics["naive"]
    if metrics["tensor"] is None:
        won = metrics["magnitude"] < naive["magnitude"]
        return (
            f"It predicts magnitudes only, {metrics['magnitude']:.0f} meV/Å off on average, "
            f"{'less' if won else 'no less'} than the {naive['magnitude']:.0f} of predicting the mean."
        )
    won, lost = beaten(metrics)
    versus = (
        "It beats the naive predictors in tensor, magnitude and angle."
        if not lost
        else f"It beats the naive predictors in {' and '.join(won)} but not in {' and '.join(lost)}."
        if won
        else "It beats the naive predictors in no metric."
    )
    return (
        f"Its force on an atom is off by {metrics['tensor']:.0f} meV/Å on average, where the forces themselves average "
        f"{naive['tensor']:.0f} (relative error {metrics['relative']:.2f}), and points {metrics['angle']:.0f}° away "
        f"from the true one. {versus}"
    )


def _fit(metrics: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> str:
    """Say what the force errors allow, and claim dynamics only where a run of this very model has shown it."""
    relative = metrics["relative"]
    if relative is None:
        return "Fit for: comparing architectures. Not fit for: forces in a simulation, since it has no direction."
    if relative >= FOLLOWS:
        return "Fit for: checking that the whole chain runs. Not fit for: any conclusion about a protein."
    never = "anything that needs an energy (minimisers that use one, barostats, free energies)"
    caution = "conclusions about a protein without a comparison with the reference force field"
    if relative >= CLOSE:
        caution = "conclusions about a protein's structure, stability or dynamics"
    if not own:
        return (
            f"Fit for: predicting forces of proteins like those tested. Not shown here: whether its dynamics are "
            f"stable. Not fit for: {caution}, or {never}."
        )
    if all(_held(result) for result in own):
        return f"Fit for: short thermostatted runs under guards, as below. Not fit for: {caution}, or {never}."
    return (
        f"Fit for: predicting forces of proteins like those tested. Not fit for: dynamics (below, it did not hold its "
        f"temperature or was stopped), {caution}, or {never}."
    )


def _held(result: Mapping[str, Any]) -> bool:
    """Tell whether a run went on to its end with the solute near the temperature that was set."""
    second = result["temperature"]["second_half"].get("solute")
    target = result["temperature"]["target"]
    return result["status"] == "finished" and second is not None and abs(second["mean"] - target) < HELD * target


def simulated(result: Mapping[str, Any]) -> str:
    """Return what a simulation did, and which model drove it.

    Parameters
    ----------
    result
        result.json of a simulation.
    """
    model = result["model"]
    batches = f", {model['n_batches']:,} batches" if model["n_batches"] is not None else ""
    who = f"{model['file']} ({model['architecture']}{batches})" if model["file"] else "the MM force field alone"
    run = (
        f"{result['structure_file']} with {who}, mode {result['mode']}: {result['time_ps']:.3g} ps at a set "
        f"{result['temperature']['target']:g} K"
    )
    second = result["temperature"]["second_half"].get("solute")
    warm = f"; the solute was at {second['mean']:.0f} K over the second half" if second else ""
    if result["event"] is not None:
        event = result["event"]
        return f"Simulated {run}{warm}. A guard stopped it at step {event['step']}: {event['reason']}."
    return f"Simulated {run}{warm}. No guard stopped it."


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
