"""Train the rows of a study, each with as many seeds as it asks for, and keep what every run measured.

A study is a YAML file: `base`, settings of `forcefield-ml train`, and `rows`, what each row changes of them. Stopped,
the same study goes on; a run that is finished is neither trained nor evaluated again. `paper_table.py` and
`ablations.py` write the pages.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from data_pipeline import __version__
from data_pipeline.files import write_json
from forcefield_ml.config import StrictConfig, load_config, parse_config
from forcefield_ml.errors import ConfigError
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.evaluate import evaluate
from forcefield_ml.training.loop import train


class Study(StrictConfig):
    """What the YAML file of a study holds."""

    title: str = Field(description="of the page")
    about: str = Field("", description="what the reader must know before the table")
    base: dict[str, Any] = Field(description="settings of training that all rows share; dataset and output are given")
    rows: dict[str, dict[str, Any]] = Field(
        description="what each changes; `model` is merged key by key, unless the row has another architecture"
    )
    replicates: int = Field(1, ge=1, description="seeds of each row: that of base, the next one, and so on")
    split: Literal["validation", "test"] = "validation"
    judge: str | None = Field(None, description="name of the dataset by which every row is judged; none: the row's own")


class Run(NamedTuple):
    """One training of one row, finished.

    Attributes
    ----------
    row
        Its name in the study.
    seed
        Of weights and batches.
    checkpoint
        best.pt, by validation.
    training
        ``n_batches``, ``seconds`` and ``n_parameters``.
    validation
        Metrics by which the checkpoint was chosen.
    evaluation
        What `forcefield_ml.training.evaluate` says of the study's split.
    per_atom
        .npz with true and predicted forces.
    """

    row: str
    seed: int
    checkpoint: Path
    training: dict[str, Any]
    validation: dict[str, Any]
    evaluation: dict[str, Any]
    per_atom: Path


class Stopped(Exception):
    """A run was interrupted before its budget was spent."""


def read(path: Path) -> Study:
    """Return a study; raise ConfigError if the file is none."""
    return load_config(Study, path)


def settings(study: Study, row: str, seed: int, datasets: dict[str, Path], folder: Path) -> TrainingConfig:
    """Return the settings of one run.

    Parameters
    ----------
    study, row, seed
        Which.
    datasets
        Name to path: what ``dataset``, ``extra_datasets`` and ``validation_dataset`` name. The first one serves where
        no dataset is named.
    folder
        Of the study's runs.

    Raises
    ------
    ConfigError
        If a name has no path, or the settings are not those of a training.
    """
    merged = {**study.base, **study.rows[row]}
    model, changes = study.base.get("model", {}), study.rows[row].get("model", {})
    same = changes.get("architecture", model.get("architecture")) == model.get("architecture")
    merged["model"] = {**model, **changes} if same else changes
    merged["dataset"] = path_of(merged.get("dataset", next(iter(datasets))), datasets)
    merged["extra_datasets"] = [path_of(name, datasets) for name in merged.get("extra_datasets", ())]
    if "validation_dataset" in merged:
        merged["validation_dataset"] = path_of(merged["validation_dataset"], datasets)
    merged["output"] = folder / f"{slug(row)}-{seed}"
    merged["seed"] = seed
    return parse_config(TrainingConfig, merged, f"row {row!r}")


def path_of(name: str, datasets: dict[str, Path]) -> Path:
    """Return the dataset of a name."""
    if name not in datasets:
        raise ConfigError(f"the study needs a dataset named {name!r}; given are {', '.join(datasets)}. Add {name}=PATH")
    return datasets[name]


def slug(name: str) -> str:
    """Return a name as part of a path."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def runs(study: Study, datasets: dict[str, Path], folder: Path) -> Iterator[Run]:
    """Train and evaluate what is not done yet, one replicate of every row after the other.

    Parameters
    ----------
    study
        Which rows.
    datasets
        As in `settings`.
    folder
        Where runs go.

    Raises
    ------
    Stopped
        If a training was interrupted.
    """
    first = int(study.base.get("seed", 0))
    for seed in range(first, first + study.replicates):
        for row in study.rows:
            config = settings(study, row, seed, datasets, folder)
            print(f"{row}, seed {seed}: {config.output}", flush=True)
            trained = train(config)
            if not trained.finished:
                raise Stopped
            judge = config.dataset if study.judge is None else path_of(study.judge, datasets)
            yield _judged(row, seed, trained, judge, study.split)


def _judged(row: str, seed: int, trained: Any, dataset: Path, split: str) -> Run:
    """Return the run with its evaluation, taken from its folder if that is of the same weights and data."""
    folder = trained.checkpoint.parent
    kept, per_atom = folder / f"{split}.json", folder / f"{split}.npz"
    key = {"checkpoint": hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest(), "dataset": str(dataset.resolve())}
    if kept.is_file() and per_atom.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
        if found["of"] == key:
            return Run(row, seed, trained.checkpoint, **found["run"], per_atom=per_atom)
    model, _ = files.load_model(trained.checkpoint)
    run = {
        "training": {
            "n_batches": trained.n_batches,
            "seconds": trained.seconds,
            "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "validation": trained.metrics,
        "evaluation": evaluate(trained.checkpoint, dataset, split, per_atom=per_atom),
    }
    write_json(kept, {"of": key, "run": run})
    return Run(row, seed, trained.checkpoint, **run, per_atom=per_atom)


def head(study: Study, command: str) -> list[str]:
    """Return the first lines of a page: its title, and the command that wrote it."""
    threads = torch.get_num_threads()
    return [f"# {study.title}", "", f"Written by `{command}` (version {__version__}, {threads} thread(s)).", ""]


def mean(values: Sequence[float], digits: int) -> str:
    """Return the mean over replicates, with its standard error where there are several."""
    text = f"{np.mean(values):.{digits}f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1) / len(values) ** 0.5:.{digits}f}"


def minutes(runs: Sequence[Run]) -> float:
    """Return the mean time of training."""
    return float(np.mean([run.training["seconds"] for run in runs])) / 60
