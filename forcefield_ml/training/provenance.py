"""What a model has learnt from, stage by stage: every training whose weights the next one began with.

A stage, as ``training["stages"]`` of checkpoints and cards holds it, oldest first, the last being the training itself:

| key            | meaning                                                                                      |
|----------------|----------------------------------------------------------------------------------------------|
| datasets       | list of ``name``, ``content_sha256``, ``n_frames``: the dataset, then the extra ones          |
| dataset_sha256 | over all of them (that of the dataset where it is alone)                                     |
| started_from   | SHA-256 of the checkpoint that it began with; None where it began with fresh weights          |
| fresh          | parts of the network that were not that checkpoint's, such as a head                         |
| protocol       | of the dataset                                                                               |
| optimiser, learning_rate, seed | as the configuration has them                                                |
| n_batches, seconds | that its weights have seen                                                               |

What a checkpoint of a former version does not tell is None.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from forcefield_ml.data import JoinedDataset
from forcefield_ml.training.checkpoint import Checkpoint
from forcefield_ml.training.config import TrainingConfig

STAGE_KEYS = (
    "datasets",
    "dataset_sha256",
    "started_from",
    "fresh",
    "protocol",
    "optimiser",
    "learning_rate",
    "seed",
    "n_batches",
    "seconds",
)


def learnt_before(start: Checkpoint, path: Path) -> dict[str, Any]:
    """Return what a new run's card must tell of the run that it begins with: what was learnt stays learnt.

    Parameters
    ----------
    start
        The checkpoint.
    path
        Of its file.
    """
    about = start.training
    earlier = about.get("started_from") or {}
    return {
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "dataset_sha256": about.get("dataset_sha256"),
        "n_batches": about.get("n_batches", 0) + earlier.get("n_batches", 0),
        "sequences": {**earlier.get("sequences", {}), **about.get("sequences", {})},
        "residues": sorted({*earlier.get("residues", []), *about.get("residues", [])}),
    }


def new_stage(config: TrainingConfig, training: JoinedDataset, before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the stage that a run is; batches and seconds are put in as it goes (`with_progress`).

    Parameters
    ----------
    config
        Of the run.
    training
        Its frames.
    before
        ``training["started_from"]`` of the run; of one with fresh weights without ``sha256``.
    """
    return {
        "datasets": training.contents,
        "dataset_sha256": training.content_sha256,
        "started_from": before.get("sha256"),
        "fresh": before.get("fresh"),
        "protocol": training.protocol,
        "optimiser": config.optimiser,
        "learning_rate": config.learning_rate,
        "seed": config.seed,
        "n_batches": 0,
        "seconds": 0.0,
    }


def with_progress(training: Mapping[str, Any], n_batches: int, seconds: float) -> dict[str, Any]:
    """Return what a card tells of a training, with how far it has come, also in its last stage.

    Parameters
    ----------
    training
        With ``stages``.
    n_batches, seconds
        Of the run, all its parts together.
    """
    *earlier, own = training["stages"]
    progress = {"n_batches": n_batches, "seconds": seconds}
    return {**training, **progress, "stages": [*earlier, {**own, **progress}]}


def stages_of(training: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the stages of a checkpoint or card; of a former version's as much as it tells.

    Parameters
    ----------
    training
        As checkpoint and card hold it.

    Returns
    -------
    list of dict
        With all `STAGE_KEYS`, oldest first; empty where nothing is told.
    """
    if "stages" in training:
        return [dict(stage) for stage in training["stages"]]
    if not training:
        return []
    before = training.get("started_from") or {}
    recipe = training.get("recipe") or {}
    extra = recipe.get("extra_datasets") or []
    digest = training.get("dataset_sha256")
    first = {"content_sha256": None if extra else digest, "n_frames": None if extra else training.get("n_frames")}
    own = {
        "datasets": [
            {"name": recipe.get("dataset"), **first},
            *({"name": name, "content_sha256": None, "n_frames": None} for name in extra),
        ],
        "dataset_sha256": digest,
        "started_from": before.get("sha256"),
        "fresh": before.get("fresh"),
        **{key: training.get(key) for key in ("protocol", "seed", "n_batches", "seconds")},
        **{key: recipe.get(key) for key in ("optimiser", "learning_rate")},
    }
    # of all that came before such a training, the card tells one sum of batches
    told = {key: before.get(key) for key in ("dataset_sha256", "n_batches")}
    earlier: list[dict[str, Any]] = [{**dict.fromkeys(STAGE_KEYS), "datasets": [], **told}] if before else []
    return [*earlier, own]
