"""The checkpoint: a plain dict of tensors, numbers and strings, read with ``weights_only=True``.

This file alone knows the layout. ``state_dict`` holds the weights to use (the averaged ones where there are any);
``resume`` is present in a run's last checkpoint and is what the training loop needs to go on.
"""

from __future__ import annotations

import io
import pickle
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

import forcefield_ml
from forcefield_ml.data.target import Target
from forcefield_ml.errors import ConfigError, ModelFileError, closest
from forcefield_ml.files import write_whole

FORMAT = "forcefield-ml-checkpoint"
FORMAT_VERSION = 1


def _versions() -> dict[str, str]:
    return {
        "forcefield_ml": forcefield_ml.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


@dataclass
class Checkpoint:
    """What a checkpoint holds.

    Parameters
    ----------
    model_config
        Plain dict that `models.build` rebuilds the model from.
    state_dict
        The weights and buffers to use.
    training
        What the card tells of the training: entries (list), sequences (entry to sequence), residues (names),
        dataset_sha256, protocol, force_field, n_batches, recipe (the resolved training configuration), seed; predicts
        and target_atoms (as `data.Target` names them), reciprocal (as `data.ForceDataset.reciprocal`); stages (see
        `training.provenance`).
    metrics
        Of the validation split, as `metrics.with_naive`; empty where there is none.
    versions
        Of the packages that trained it.
    resume
        State of optimiser, averages, clock and random numbers; None where training is not to go on from here.
    """

    model_config: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    training: dict[str, Any]
    metrics: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=_versions)
    resume: dict[str, Any] | None = None


def save(path: Path | str, checkpoint: Checkpoint) -> None:
    """Write a checkpoint: the whole file or, if anything fails, the former one untouched.

    Parameters
    ----------
    path
        The file to write.
    checkpoint
        What to write.

    Raises
    ------
    ModelFileError
        If the file cannot be written (no such folder, disk full, no permission).
    """
    values = {item.name: getattr(checkpoint, item.name) for item in fields(checkpoint)}
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "format_version": FORMAT_VERSION, **values}, buffer)
    write_whole(Path(path), buffer.getvalue(), ModelFileError)


def load(path: Path | str) -> Checkpoint:
    """Read a checkpoint; nothing in the file is run.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Checkpoint
        Its content, tensors on the CPU.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, no checkpoint of ours, or of a newer format.
    """
    if not Path(path).is_file():
        raise ModelFileError(f"there is no checkpoint {path}. Train one with: forcefield-ml train CONFIG")
    if is_torchscript(path):
        raise ModelFileError(
            f"{path} is a TorchScript file (an exported model.pt?) and no checkpoint; forcefield_ml.load reads it."
        )
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelFileError(f"cannot read {path}: {error.strerror or error}.") from None
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ModelFileError(
            f"{path} is damaged or no checkpoint of this program ({str(error)[:80]!r}). Take another, or "
            "train again with: forcefield-ml train CONFIG"
        ) from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise ModelFileError(f"{path} is not a checkpoint of this program: format {found!r}, expected {FORMAT!r}.")
    if values.get("format_version") != FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has checkpoint format {values.get('format_version')}, this program reads {FORMAT_VERSION}. "
            "Use the version of forcefield-ml that wrote it, or train again."
        )
    expected = {item.name for item in fields(Checkpoint)}
    missing = sorted(expected - values.keys())
    if missing or not isinstance(values["state_dict"], dict) or not isinstance(values["model_config"], dict):
        raise ModelFileError(f"{path} is damaged: it lacks {', '.join(missing) or 'weights'}. Train again.")
    return Checkpoint(**{name: values[name] for name in expected})


def is_torchscript(path: Path | str) -> bool:
    """Tell a TorchScript file from a checkpoint: both are zip files, but only the former holds code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any("/code/" in name for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def load_model(path: Path | str, head: str | None = None) -> tuple[torch.nn.Module, Checkpoint]:
    """Read a checkpoint and rebuild its model, in eval mode.

    Parameters
    ----------
    path
        The file.
    head
        Of two that were trained together, the one to take; None takes the only one.

    Returns
    -------
    model
        The model with the checkpoint's weights.
    checkpoint
        The whole content.

    Raises
    ------
    ModelFileError
        As `load`, or if the weights do not fit the model they name.
    ConfigError
        If there is no such head, or there are two to choose from.
    """
    checkpoint = load(path)
    return rebuild(checkpoint, str(path), head), checkpoint


def rebuild(checkpoint: Checkpoint, source: str = "the checkpoint", head: str | None = None) -> torch.nn.Module:
    """Return the checkpoint's model in eval mode.

    Parameters
    ----------
    checkpoint
        What `load` returned.
    source
        Its name for the message.
    head
        As for `load_model`.

    Raises
    ------
    ModelFileError
        If the weights do not fit the model they name.
    ConfigError
        If there is no such head, or there are two to choose from.
    """
    from forcefield_ml import models

    model = models.build_for_training(checkpoint.model_config)
    try:
        model.load_state_dict(checkpoint.state_dict)
    except RuntimeError as error:
        raise ModelFileError(
            f"the weights in {source} do not fit their model ({str(error).splitlines()[0]}). Use the version of "
            f"forcefield-ml that wrote it: {checkpoint.versions.get('forcefield_ml')}."
        ) from None
    parts = model.parts
    if head is None and len(parts) > 1:
        commands = " and ".join(f"forcefield-ml export {source} --head {name} -o {name}.pt" for name in parts)
        raise ConfigError(
            f"{source} holds two models on one backbone, which are used apart. Export each, then take these files: "
            f"{commands}"
        )
    if head is not None and head not in parts:
        raise ConfigError(f"{source} has no head {head!r}.{closest(head, parts)}")
    return (model if head is None else parts[head]).eval()


def target_of(training: Mapping[str, Any]) -> Target:
    """Return what was learnt; a checkpoint that does not tell is of a version that knew the total force alone.

    Parameters
    ----------
    training
        Of a checkpoint.
    """
    return Target(training.get("predicts", "total"), training.get("target_atoms", "solute"))


def as_dict(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what a card tells of a checkpoint: everything but weights and resume state."""
    names = [item.name for item in fields(checkpoint) if item.name not in ("state_dict", "resume")]
    return {name: getattr(checkpoint, name) for name in names}
