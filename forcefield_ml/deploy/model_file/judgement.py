"""What evaluate and validate found of a model, made short for its card.

| key of the card | holds                                                                                           |
|-----------------|-------------------------------------------------------------------------------------------------|
| evaluation      | metrics with ``naive``, by ``elements`` and ``residues``, proteins' mean and standard error,    |
|                 | what it was evaluated on (`EVALUATION`)                                                         |
| verdict         | ``uses``: each with ``outcome`` and ``why``; the ``numbers`` behind them; what it was judged on |
|                 | (`VERDICT`)                                                                                     |

Either is taken only if it was made of the same weights: a file's own hash changes as its card grows, the fingerprint of
its weights does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forcefield_ml.errors import ConfigError
from forcefield_ml.training import evaluate
from forcefield_ml.training.metrics import KEYS

REPORT_FORMAT = "forcefield-ml-report"
"""Value of ``format`` in report.json of `forcefield-ml validate`."""

EVALUATION = (
    "made", *KEYS, "n_atoms", "naive", "units", "elements", "residues", "compared_with", "n_frames", "n_proteins",
    "split", "dataset",
)  # fmt: skip
"""What of the JSON of evaluate goes into the card as it is."""

BESIDES = ("network", "others", "ends", "tail")
"""The same, of those models that have it."""

VERDICT = ("uses", "numbers", "judged_on")
"""What of report.json's ``summary`` goes into the card."""


def judgements(weights: str, evaluation: Path | None, validation: Path | None) -> dict[str, Any]:
    """Return what a card gets of the files that evaluate and validate wrote.

    Parameters
    ----------
    weights
        Fingerprint of the model's weights.
    evaluation
        JSON of ``forcefield-ml evaluate --json``; None for none.
    validation
        report.json of ``forcefield-ml validate``; None for none.

    Returns
    -------
    dict
        ``evaluation`` and ``verdict``, those that were given.

    Raises
    ------
    ConfigError
        If a file is no such JSON, was made of other weights, or judges the model on what it was trained on.
    """
    found = {}
    if evaluation is not None:
        found["evaluation"] = _evaluation(evaluation, weights)
    if validation is not None:
        found["verdict"] = _verdict(validation, weights)
    return found


def _evaluation(path: Path, weights: str) -> dict[str, Any]:
    command = "forcefield-ml evaluate MODEL DATASET --json FILE"
    told = _read(path, evaluate.FORMAT, "--evaluation", command)
    _require_weights(told, weights, path, command)
    try:
        proteins, training = told["proteins"], told.get("training") or {}
        short = {
            **{key: told[key] for key in EVALUATION},
            **{key: told[key] for key in BESIDES if key in told},
            "proteins": {key: proteins[key] for key in ("mean", "standard_error")},
            "sequences_trained_on": training.get("sequences_trained_on", []),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error, command) from None
    _refuse_training(short["split"], path, "evaluation")
    return short


def _verdict(path: Path, weights: str) -> dict[str, Any]:
    command = "forcefield-ml validate MODEL INPUT -o DIR"
    told = _read(path, REPORT_FORMAT, "--validation", command)
    _require_weights(told, weights, path, command)
    try:
        short = {"made": told["made"], **{key: told["summary"][key] for key in VERDICT}}
        split = short["judged_on"]["split"]
    except (KeyError, TypeError) as error:
        raise _damaged(path, error, command) from None
    _refuse_training(split, path, "verdict")
    return short


def _read(path: Path, expected: str, option: str, command: str) -> dict[str, Any]:
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}. Make it with: {command}") from None
    except ValueError as error:  # no text, or no JSON
        raise ConfigError(f"{path} is no JSON ({error}). {option} takes what this writes: {command}") from None
    found = told.get("format") if isinstance(told, dict) else type(told).__name__
    if not isinstance(told, dict) or found != expected:
        raise ConfigError(
            f"{option} {path} has format {found!r}, expected {expected!r}. It takes what this version's command "
            f"writes: {command}"
        )
    return told


def _require_weights(told: Mapping[str, Any], weights: str, path: Path, command: str) -> None:
    found = told.get("weights_sha256")
    if found is None:
        raise ConfigError(
            f"{path} does not tell which weights it was made of: a former version wrote it. Run: {command}"
        )
    if found != weights:
        raise ConfigError(
            f"{path} was made of another model: of weights {str(found)[:16]}..., and this model's are "
            f"{weights[:16]}.... Run with this model: {command}"
        )


def _refuse_training(split: Any, path: Path, what: str) -> None:
    if split == "train":
        raise ConfigError(
            f"{path} is of the training split, whose frames the model has learnt: no {what} to trust. Run with "
            "--split test (or validation)"
        )


def _damaged(path: Path, error: Exception, command: str) -> ConfigError:
    return ConfigError(f"{path} is not whole ({type(error).__name__}: {error}). Write it again: {command}")
