"""`explore`: dynamics with a model's force, and the frames it visits, labelled for training.

Errors on thermal frames do not tell where dynamics lead a model: a stretched bond or a close contact that no frame
holds, and no restoring force there. So the model itself is sent out from the training frames, the reference force is
computed beside its own at every step, and frames are kept: some at regular times, more where the model is wrong, all
of them with the reference forces. Trained on those as well, the model has seen its own mistakes; some rounds of this
are what keeps dynamics whole (dataset aggregation: Ross, Gordon and Bagnell, arXiv:1011.0686, algorithm 3.1).

The frames carry every part of the labels that the dataset has, so that whatever was learnt of it can be learnt of them.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline import schema
from data_pipeline.config import LabelConfig, PipelineConfig
from data_pipeline.dataset.check import read_entries
from data_pipeline.dataset.pack import PackedEntry, pack
from data_pipeline.errors import PipelineError
from forcefield_ml import pretrained
from forcefield_ml.data import Target
from forcefield_ml.data.target import charges_of
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.system.modes import require_forces
from forcefield_ml.errors import ConfigError, DatasetError, ForceModeError, UnstableError, closest
from forcefield_ml.files import write_whole
from forcefield_ml.progress import ProgressLine
from forcefield_ml.simulation.reference import SERVED, Reference, parts_of
from forcefield_ml.simulation.walk import ExploreConfig, Visited, Walk

_FREE = {"model", "dataset", "output", "entries", "runs"}
"""Settings that leave a run with its number as it is; model and dataset are compared by content."""


def explore(config: ExploreConfig, quiet: bool = False) -> dict[str, Any]:
    """Let a model drive the training entries of a dataset and write the frames that it visits, labelled.

    A killed run goes on where it stopped: finished dynamics are kept beside the output until it is packed.

    Parameters
    ----------
    config
        Model, dataset, output and settings.
    quiet
        Show no progress.

    Returns
    -------
    dict
        ``output``, ``frames``, ``content_sha256`` and, by run, ``entry``, ``run``, ``steps``, ``frames``, ``ended``.

    Raises
    ------
    DatasetError
        If the dataset cannot be read, has no training entries, lacks the part of the labels that the model learnt, or
        its forces are not those computed here.
    ForceModeError
        If the model predicts what dynamics beside the reference have no use for.
    ModelFileError
        If it cannot be read.
    UnstableError
        If no run came so far that a frame was kept.
    ConfigError
        If an entry is unknown, or the output exists already or cannot be written.
    """
    if config.output.exists():
        raise ConfigError(
            f"{config.output} exists already and would be overwritten; give another output, or delete it to go anew"
        )
    card, module, sha256 = bundle.read(pretrained.resolve(config.model))
    require_forces(card)
    if card["predicts"] not in SERVED:
        raise ForceModeError(
            f"explore needs a model that predicts {', '.join(map(repr, SERVED[:-1]))} or {SERVED[-1]!r}; by its card "
            f"this one predicts {card['predicts']!r}"
        )
    target = Target(card["predicts"], card["target_atoms"])
    model = bundle.eager(card, module)
    if model is None:
        raise ForceModeError(f"{config.model} was made by another version; train it again with this one")
    try:
        with schema.open_dataset(config.dataset) as file:
            target.require_task(schema.task_of(file), str(config.dataset))
            header = {name: file.attrs[name] for name in ("protocol", "force_field", "config", "versions")}
            header["config"] = str(header["config"])
            names = _chosen(file, config.entries)
            label = PipelineConfig.model_validate_json(header["config"]).label
            _require_part(file, names, target, card.get("reciprocal", {}))
            parts = config.output.with_name(config.output.name + ".parts")
            parts.mkdir(parents=True, exist_ok=True)
            key = json.dumps([sha256, str(file.attrs["content_sha256"]), config.model_dump(mode="json", exclude=_FREE)])
            report: list[dict[str, Any]] = []
            with ProgressLine("explore", quiet) as line:
                for entry in read_entries(file, only=names):
                    reference = Reference(entry, label, target.name, config.platform)
                    for run in range(config.runs):
                        path = parts / f"{entry.name}-{run}.npz"
                        found = _kept(path, key)
                        if found is None:
                            walk = Walk(config, entry, reference, model, target, label.max_force)
                            found = walk.run(run)
                            _keep(path, key, found)
                        report.append(_row(entry.name, run, found))
                        line.show(
                            len(report) / (len(names) * config.runs),
                            f"{entry.name}: {found.steps} steps, {len(found.energy)} frames",
                        )
            if not any(row["frames"] for row in report):
                ends = ", ".join(sorted({row["ended"] for row in report}))
                raise UnstableError(
                    f"no frame was kept: the {len(report)} runs ended before step {config.every} ({ends}). Keep frames "
                    "more often (--every), or begin with a model that is trained longer"
                )
            visited = (_packed(entry, label, config, parts, key) for entry in read_entries(file, only=names))
            attributes = {**header, "protocol": schema.VISITED, "origin": _origin(card, sha256, config)}
            digest = pack((entry for entry in visited if entry is not None), config.output, attributes)
    except (schema.SchemaError, KeyError) as error:
        raise DatasetError(f"{error}. Look at the dataset with: data-pipeline check {config.dataset}") from None
    except PipelineError as error:
        raise ConfigError(f"nothing was written: {error}") from error
    for path in parts.iterdir():
        path.unlink()
    parts.rmdir()
    frames = sum(row["frames"] for row in report)
    return {"output": str(config.output), "frames": frames, "content_sha256": digest, "runs": report}


def _chosen(file: Any, wanted: Sequence[str]) -> list[str]:
    """Return the training entries to walk, or those named; frames of other splits must never be learnt."""
    training = sorted(name for name, group in file[schema.ENTRIES_GROUP].items() if group.attrs["split"] == "train")
    for name in wanted:
        if name not in training:
            raise ConfigError(f"{name!r} is no entry of the training split.{closest(name, training)}")
    if not training:
        raise DatasetError(f"{file.filename} has no entry in the training split; there is nothing to explore")
    return sorted(set(wanted)) or training


def _require_part(file: Any, names: Sequence[str], target: Target, left_out: dict[str, Any]) -> None:
    """Refuse a dataset without the part of the labels that the model learnt, or with another reciprocal sum."""
    for name in names:
        group = file[schema.ENTRIES_GROUP][name]
        target.require(group, f"{name} in {file.filename}")
        if target.supplied != "reciprocal":
            continue
        files = charges_of(str(file.attrs["force_field"]), str(file.attrs["config"]))
        held = {"alpha": float(group.attrs["reciprocal_alpha"]), "force_field": files}
        wanted = {key: left_out[key] for key in held}
        if held != wanted:
            raise DatasetError(
                f"the reciprocal sum of {name} in {file.filename} is of {held}, that which the model leaves out of "
                f"{wanted}. Give the configuration of data-pipeline run label: {{parts: [reciprocal], "
                f"reciprocal_alpha: {wanted['alpha']:g}, force_field: [{', '.join(wanted['force_field'])}]}} and run "
                "it again, or explore with a model that was trained on such a dataset"
            )


def _keep(path: Path, key: str, found: Visited) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, key=np.array(key), **found._asdict())
    write_whole(path, buffer.getvalue())


def _kept(path: Path, key: str) -> Visited | None:
    """Return a former run's frames if they are of the same model, data and settings."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            if str(stored["key"]) != key:
                return None
            values = {name: stored[name] for name in Visited._fields}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return Visited(**{**values, "steps": int(values["steps"]), "ended": str(values["ended"])})


def _row(entry: str, run: int, found: Visited) -> dict[str, Any]:
    return {"entry": entry, "run": run, "steps": found.steps, "frames": len(found.energy), "ended": found.ended}


def _packed(entry: PackedEntry, label: LabelConfig, config: ExploreConfig, parts: Path, key: str) -> PackedEntry | None:
    """Return an entry with the frames of all its runs in place of its own, and the same parts; None without any."""
    found = [one for run in range(config.runs) if (one := _kept(parts / f"{entry.name}-{run}.npz", key)) is not None]
    found = [one for one in found if len(one.energy)]
    if not found:
        return None
    by_frame = {declared.name for declared in schema.ENTRY_FIELDS if "F" in declared.shape}
    fields = {name: values for name, values in entry.fields.items() if name not in by_frame}
    fields["positions"] = np.concatenate([one.positions for one in found])
    fields["box"] = np.concatenate([np.tile(one.box, (len(one.energy), 1, 1)) for one in found])
    fields["forces"] = np.concatenate([one.forces for one in found])
    fields["energy"] = np.concatenate([one.energy for one in found])
    made = parts_of(entry, label, fields["positions"], fields["box"], fields["forces"], config.platform)
    attributes = {name: value for name, value in entry.attributes.items() if name != "dropped_copies"}
    of_frames = {declared.name for declared in schema.ENTRY_FIELDS}
    for name, value in made.items():
        (fields if name in of_frames else attributes)[name] = value
    return PackedEntry(entry.name, fields, attributes)


def _origin(card: dict[str, Any], sha256: str, config: ExploreConfig) -> str:
    settings = config.model_dump(mode="json", exclude={"model", "dataset", "output"})
    about = {
        "program": "forcefield-ml explore",
        "model_sha256": sha256,
        "architecture": card["architecture"],
        "n_batches": card["training"].get("n_batches"),
        "settings": settings,
    }
    return json.dumps(about)
