"""A model's card in words, for people: what it is, what it learnt from, how good it is and what it is fit for."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gemmi

from data_pipeline.schema import Paper
from forcefield_ml import pretrained
from forcefield_ml.data.joined import LONGEST_PEPTIDE
from forcefield_ml.data.target import quantity_of
from forcefield_ml.deploy.force.binding import some
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.system.modes import MEANING, modes_of
from forcefield_ml.errors import ModelFileError
from forcefield_ml.progress import duration
from forcefield_ml.training.metrics import KEYS, tail_in_words
from forcefield_ml.training.provenance import stages_of
from forcefield_ml.units import FORCE

LABEL = 14
"""Characters of the first column."""

WIDTH = 120
COLUMNS = 5
"""Elements or residues in a line."""

MOST_STAGES = 3

LONGEST_REASON = 200
"""Characters of why a model is or is not fit for a use: a guard's message goes on with advice to whoever runs it."""

DIGITS = {"angle": 1, "relative": 3, "pearson": 4}
"""Decimals of the metrics that are in no unit of what is predicted."""


def show(path: Path, as_json: bool = False) -> str:
    """Return the card of a model.pt, whose weights must be those that it names, as text.

    Parameters
    ----------
    path
        The file.
    as_json
        The whole card as JSON, instead of lines for people.

    Raises
    ------
    ModelFileError
        As `bundle.read`, `bundle.weights_of` and `describe`.
    """
    card, module, _ = bundle.read(path)
    card = {**card, "weights_sha256": bundle.weights_of(card, module, str(path))}
    if as_json:
        return json.dumps(card, indent=1, ensure_ascii=False)
    n_parameters = sum(values.numel() for values in module.parameters())
    ships = path.resolve().parent == pretrained.FOLDER
    licence = pretrained.licence(path.stem) if ships else "not in the file: as whoever gave it says"
    return describe(card, path.name, n_parameters, licence)


def describe(card: Mapping[str, Any], name: str, n_parameters: int, licence: str) -> str:
    """Return a card as lines, fewer than 40.

    Parameters
    ----------
    card
        Of `bundle.read`, with ``weights_sha256``.
    name
        Of the model.
    n_parameters
        Of its network.
    licence
        Under which it is given.

    Raises
    ------
    ModelFileError
        If what the card tells is not of the form in which this program writes it.
    """
    try:
        forces = quantity_of(card["predicts"]) is FORCE
        lines = [
            *_network(card, name, n_parameters),
            *_learnt(card["training"], forces),
            *_errors(card),
            *(_verdict(card) if forces else _row("use", "forcefield-ml refine MODEL STRUCTURE -o OUT")),
            *_row("licence", licence),
        ]
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ModelFileError(
            f"the card of {name} is of another form than this program writes ({type(error).__name__}: {error}); "
            "--json shows it as it is"
        ) from None
    # a card may be anybody's: nothing in it steers a terminal
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _row(label: str, text: str) -> list[str]:
    """Return a labelled paragraph."""
    indent = " " * LABEL
    return textwrap.wrap(text, WIDTH, initial_indent=f"{label:{LABEL}}", subsequent_indent=indent) or [label]


def _network(card: Mapping[str, Any], name: str, n_parameters: int) -> list[str]:
    near = card["neighbours"]
    sees = (
        f"{near['n_neighbours']} nearest atoms" if near["kind"] == "nearest" else f"atoms within {near['cutoff']:g} nm"
    )
    energy = "with an energy" if card["energy"] else "no energy"
    elements = " ".join(gemmi.Element(int(number)).name for number in card["species"])
    atoms = "all atoms" if card["target_atoms"] == "all" else "the atoms of the solute"
    return [
        *_row(
            "model",
            f"{name}: {card['architecture']} network, {n_parameters:,} parameters, {sees}, {near['n_layers']} layers",
        ),
        *_row("predicts", f"{MEANING[card['predicts']]}, on {atoms}; {energy}"),
        *_row("modes", f"{', '.join(modes_of(card)) or 'none'}; elements {elements}"),
        *_row("weights", f"sha256 {card['weights_sha256']}"),
    ]


def _learnt(training: Mapping[str, Any], forces: bool) -> list[str]:
    entries, stages = training.get("entries") or [], stages_of(training)
    if not entries:
        return _row("trained on", "the card does not tell")
    field = str(training.get("force_field", "an unknown force field"))
    peptides = {name for name, own in (training.get("sequences") or {}).items() if len(own) <= LONGEST_PEPTIDE}
    proteins = [name for name in entries if name not in peptides]
    parts = [f"{counted(len(proteins), 'protein')} ({some(proteins)})"] if proteins else []
    parts += [counted(len(peptides), "peptide")] if peptides else []
    told = f"{' and '.join(parts)}, forces of {field}"
    if not forces:
        told = f"{counted(len(entries), 'candidate structure')} ({some(entries)}) and their natives"
    lines = _row("trained on", told)
    hidden = len(stages) - MOST_STAGES
    if hidden > 0:
        lines += _row("", f"{counted(hidden, 'earlier stage')}: see --json")
    for number, stage in enumerate(stages[-MOST_STAGES:], max(hidden, 0) + 1):
        lines += _row(f"  stage {number}", _stage(stage))
    seconds = [stage["seconds"] for stage in stages]
    total = duration(sum(second for second in seconds if second is not None))
    known = "" if None not in seconds else ", earlier stages not counted"
    batches = sum(stage["n_batches"] or 0 for stage in stages)
    processes = int(training.get("processes", 1))
    beside = f" on {processes} processes" if processes > 1 else ""
    return [*lines, *_row("cost", f"{total} of training{beside}{known}; {batches:,} batches")]


def _stage(stage: Mapping[str, Any]) -> str:
    data, frames = stage["datasets"], [one["n_frames"] for one in stage["datasets"]]
    files = f"{len(data)} data sets" if len(data) > 1 else data[0]["name"] or "a data set" if data else ""
    count = f"{sum(frames):,} frames of " if None not in frames else ""
    told = [
        f"{count}{files}" if data else "",
        stage["protocol"] or "",
        f"data {stage['dataset_sha256'][:12]}" if stage["dataset_sha256"] else "",
        f"{stage['n_batches']:,} batches" if stage["n_batches"] is not None else "",
        duration(stage["seconds"]) if stage["seconds"] is not None else "",
        f"{stage['optimiser']} {stage['learning_rate']:g}" if stage["optimiser"] else "",
        f"seed {stage['seed']}" if stage["seed"] is not None else "",
        f"begun fresh: {', '.join(stage['fresh'])}" if stage["fresh"] else "",
    ]
    return ", ".join(part for part in told if part)


def _errors(card: Mapping[str, Any]) -> list[str]:
    found, quantity = card.get("evaluation"), quantity_of(card["predicts"])
    if found is None:
        metrics = card["metrics"]
        if not metrics:
            return _row("errors", "not evaluated")
        lines = _row("errors", "on the validation split alone, which chose these weights (no evaluation in the card)")
        return [*lines, *_table({"model": metrics, "naive": metrics["naive"]}, quantity)]
    data, proteins = found["dataset"], found["proteins"]
    one = "protein" if quantity is FORCE else "structure"
    seen = f"{counted(found['n_proteins'], one)}, {counted(found['n_frames'], 'frame')}"
    about = (
        f"{seen} of the {found['split']} split of {data['name']}, {data['protocol']} protocol, data "
        f"{data['content_sha256'][:12]}; by element and residue: tensor / naive"
    )
    return [
        *_row("errors", about),
        *_known(found["sequences_trained_on"]),
        *_table({"model": found, "naive": found["naive"]}, quantity, proteins),
        *_groups("by element", found["elements"], quantity),
        *_groups("by residue", found["residues"], quantity),
        *_groups("by end", found.get("ends", {}), quantity),
        *(_row("errors above", tail_in_words(found["tail"], quantity)) if found.get("tail") else []),
    ]


def _table(
    rows: Mapping[str, Mapping[str, Any]], quantity: Paper, proteins: Mapping[str, Mapping[str, Any]] | None = None
) -> list[str]:
    """Return metrics in columns; of proteins their mean with its standard error."""
    units = {"tensor": quantity.unit, "magnitude": quantity.unit, "angle": "°"}
    digits = {key: DIGITS.get(key, quantity.digits) for key in KEYS}
    table = {"": {key: f"{key} {units.get(key, '')}".strip() for key in KEYS}}
    for name, metrics in rows.items():
        table[name] = {key: _number(metrics[key], digits[key]) for key in KEYS}
    if proteins is not None:
        mean, error = proteins["mean"], proteins["standard_error"]
        table["by protein"] = {key: _plus_minus(mean[key], error[key], digits[key]) for key in KEYS}
    return [f"{name:{LABEL}}" + "".join(f"{row[key]:>18}" for key in KEYS) for name, row in table.items()]


def _groups(label: str, groups: Mapping[str, Mapping[str, Any]], quantity: Paper) -> list[str]:
    """Return the error of each group beside the naive predictor's, in columns."""
    key = "magnitude" if any(group["tensor"] is None for group in groups.values()) else "tensor"
    width = max((4, *(len(name) + 1 for name in groups)))
    cells = [
        f"{name:{width}}{quantity.text(group[key]):>6} / {quantity.text(group['naive'][key]):6}"
        for name, group in groups.items()
    ]
    rows = [cells[start : start + COLUMNS] for start in range(0, len(cells), COLUMNS)]
    return [f"{label if not number else '':{LABEL}}" + "  ".join(row).rstrip() for number, row in enumerate(rows)]


def _verdict(card: Mapping[str, Any]) -> list[str]:
    found = card.get("verdict")
    lines = []
    if found is None:
        lines += _row("verdict", "not judged: run forcefield-ml validate")
    else:
        on = found["judged_on"]
        where = on["structure"] or on["dataset"]["name"]
        lines += _row("verdict", f"judged on {where}, {counted(on['n_frames'], 'frame')}")
        lines += _known(on["sequences_trained_on"])
        for use in found["uses"]:
            link = "" if use["outcome"] == "fit" else "because "
            name = use["name"][:1].lower() + use["name"][1:] if use["name"][1:2].islower() else use["name"]
            why = textwrap.shorten("; ".join(use["why"]), LONGEST_REASON, placeholder=" ... (--json has all of it)")
            lines += _row("", f"{use['outcome']} for {name}: {link}{why}")
        lines += _measured(found["numbers"])
    if not card["energy"]:
        lines += _row("", "never for minimisers, barostats or free energies: it has no energy")
    return lines


def _measured(numbers: Mapping[str, Any]) -> list[str]:
    """Return the numbers behind a verdict, those that were measured."""
    told, found = [], numbers["lambda"]
    if found is not None:
        told.append(f"lambda {_plus_minus(found['lambda'], found['standard_error'], 4)}")
    for name, run in (numbers["drift"] or {}).items():
        if run is not None and run["slope"] is not None:
            told.append(
                f"drift by {name.replace('_', ' ')} {_plus_minus(run['slope'], run['standard_error'], 3)} meV/atom/ps"
            )
    warm = numbers["temperature"]
    if warm is not None and warm["elements"]:
        elements = ", ".join(
            f"{name} {_plus_minus(one['mean'], one['standard_error'], 0)}" for name, one in warm["elements"].items()
        )
        told.append(f"K at a set {warm['target']:g} in {warm['length']:.3g} ps: {elements}")
    return _row("", f"measured: {'; '.join(told)}") if told else []


def _plus_minus(value: float | None, error: float | None, digits: int) -> str:
    return _number(value, digits) + ("" if error is None else f" ± {_number(error, digits)}")


def _known(names: Sequence[str]) -> list[str]:
    return _row("", f"it was trained on {some(names)}: these numbers are too good") if names else []


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: 1 frame, 2 frames."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
