"""The numbers in plain words: what was learnt from what, how good it is, what it is fit for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

FOLLOWS, CLOSE = 0.6, 0.15
"""Relative errors below which a model has learnt most of the force, and is close to it."""


def verdict(card: Mapping[str, Any], metrics: Mapping[str, Any], simulations: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences for the head of the page.

    Parameters
    ----------
    card
        Of the model, or what a checkpoint holds.
    metrics
        Of `evaluate`.
    simulations
        result.json of each simulation shown.

    Returns
    -------
    list of str
        What it is, how good, fit for, not fit for, and what was simulated.
    """
    sentences = [_what(card, metrics), _how_good(metrics), _fit(metrics)]
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


def _fit(metrics: Mapping[str, Any]) -> str:
    relative = metrics["relative"]
    if relative is None:
        return "Fit for: comparing architectures. Not fit for: forces in a simulation, since it has no direction."
    if relative >= FOLLOWS:
        return "Fit for: checking that the whole chain runs. Not fit for: any conclusion about a protein."
    if relative >= CLOSE:
        return (
            "Fit for: showing that the chain from structures to dynamics works, and short thermostatted runs under "
            "guards. Not fit for: conclusions about a protein's structure, stability or dynamics, or anything "
            "that needs an energy (minimisers that use one, barostats, free energies)."
        )
    return (
        "Fit for: thermostatted dynamics under guards of proteins like those it was tested on. Not fit for: anything "
        "that needs an energy (barostats, free energies, constant energy), or conclusions without a comparison "
        "with the reference force field."
    )


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
