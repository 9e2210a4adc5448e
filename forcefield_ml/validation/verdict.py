"""The numbers in plain words: what was learnt from what, how good it is, what it is fit for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from forcefield_ml.deploy.force.binding import some
from forcefield_ml.deploy.model_file.describe import counted
from forcefield_ml.validation.uses import Use, beaten

NEVER = (
    "Not fit for anything that needs an energy (minimisers that use one, barostats, free energies): it is a force "
    "without one."
)


def verdict(
    card: Mapping[str, Any],
    metrics: Mapping[str, Any],
    simulations: Sequence[Mapping[str, Any]],
    uses: Sequence[Use],
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
    uses
        Of `uses.judge`.

    Returns
    -------
    list of str
        What it is, how good, which of these proteins it has learnt, fit or not for each use, what a force without an
        energy is never fit for, and what was simulated.
    """
    sentences = [_what(card, metrics), _how_good(metrics), *_known(metrics), *(use.sentence for use in uses)]
    sentences += [] if _has_energy(card) else [NEVER]
    return [*sentences, *(simulated(result) for result in simulations)]


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


def _what(card: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    training = card.get("training", {})
    entries, batches = training.get("entries") or [], training.get("n_batches")
    learnt = f"{counted(len(entries), 'protein')} ({training.get('protocol', 'unknown')} frames)" if entries else "data"
    steps = f" in {batches:,} batches" if batches is not None else ""
    data = metrics["dataset"]
    proteins, frames = counted(metrics["n_proteins"], "protein"), counted(metrics["n_frames"], "frame")
    return (
        f"A {describe_model(card)} network, trained on {learnt}{steps}, judged on {proteins} of the "
        f"{metrics['split']} split: {metrics['n_atoms']:,} atoms in {frames}, protocol {data['protocol']}, "
        f"reference {data['force_field']}."
    )


def _has_energy(card: Mapping[str, Any]) -> bool:
    """Tell whether forces are the gradient of an energy; what a checkpoint holds says so by the model's head alone."""
    return bool(card.get("energy", card.get("model_config", {}).get("head") == "energy"))


def _known(metrics: Mapping[str, Any]) -> list[str]:
    """Return a sentence on the proteins that it was judged on and trained on, if there are any."""
    known = metrics.get("training", {}).get("sequences_trained_on") or []
    return [f"It was trained on {some(known)}, so these numbers are too good."] if known else []


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
