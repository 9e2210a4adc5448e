"""`validate`: judge a model on a dataset or on one PDB entry, gather what else is known, write the page."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from forcefield_ml import pretrained
from forcefield_ml.config import StrictConfig, parse_config
from forcefield_ml.data.target import Target
from forcefield_ml.errors import ConfigError, UnstableError
from forcefield_ml.files import write_whole
from forcefield_ml.validation.report import Judged, ReportInputs, write_report

DATASETS, STRUCTURES = (".h5", ".hdf5"), (".pdb", ".ent", ".cif", ".mmcif")
TRAJECTORIES = (".dcd", ".xtc", ".trr", ".nc", ".xyz")

Message = Callable[[str], None]


class ValidationConfig(StrictConfig):
    """What to judge, on what, and what to show beside it."""

    model: Path
    input: Path
    output: Path
    split: Literal["train", "validation", "test"] = "test"
    also: tuple[Path, ...] = ()
    pipelines: tuple[Path, ...] = ()
    simulations: tuple[Path, ...] = ()
    steps: int | None = Field(None, ge=1)
    frames: int = Field(2, ge=1)
    seed: int = Field(0, ge=0, le=2**31 - 2**20)


def validate(config: ValidationConfig, message: Message = print) -> tuple[Path, Path]:
    """Evaluate the models, read the runs, and write report.html and report.json.

    Metrics are kept in the output folder and used again while model and data stay the same.

    Parameters
    ----------
    config
        What to judge and show.
    message
        Called with lines for the user.

    Returns
    -------
    html, json
        The files.

    Raises
    ------
    ConfigError
        If the input is of a kind that cannot be used, or a run's folder lacks its result.
    DatasetError, ModelFileError, ForceModeError
        If data or model cannot be read, or do not suit each other.
    """
    from forcefield_ml.data import ForceDataset
    from forcefield_ml.validation.symmetry import load_module, symmetry

    also = tuple(pretrained.resolve(path) for path in config.also)
    config = config.model_copy(update={"model": pretrained.resolve(config.model), "also": also})
    kind = input_kind(config.input)
    if config.steps is not None and kind == "dataset":
        raise ConfigError(
            "--steps needs a structure to simulate, and a dataset has none in whole. Give a PDB entry as INPUT, or "
            "run `forcefield-ml simulate PDB --model MODEL -o DIR` and name its folder with --simulation."
        )
    simulations = [_read_json(folder, "result.json", "forcefield-ml simulate") for folder in config.simulations]
    pipelines = [_read_json(folder, "summary.json", "data-pipeline run") for folder in config.pipelines]
    config.output.mkdir(parents=True, exist_ok=True)
    dataset, split = config.input, str(config.split)
    if kind == "structure":
        dataset, split = label_structure(config, message), "test"
    judged = [_judge(path, dataset, split, config.output) for path in (config.model, *config.also)]
    if config.steps is not None:
        simulations.append(_short_simulation(config, message))
    frames = ForceDataset(dataset, split, _target(config.model))
    found = symmetry(load_module(config.model), frames[0], config.seed)
    per_atom = _stem(config.model, dataset, split, config.output).with_suffix(".npz")
    commands = _commands(config, simulations)
    inputs = ReportInputs(judged[0], per_atom, judged[1:], found, pipelines, simulations, commands)
    return write_report(config.output, inputs)


def input_kind(path: Path) -> str:
    """Tell a dataset from a structure by the file's name.

    Parameters
    ----------
    path
        What the user gave.

    Returns
    -------
    str
        "dataset" or "structure".

    Raises
    ------
    ConfigError
        If it is neither, or there is no such file.
    """
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(TRAJECTORIES):
        raise ConfigError(
            f"{path} is a trajectory, which validate does not read yet. Give a dataset.h5 of data-pipeline or a PDB "
            "entry; for the RMSD and temperature of a run of `forcefield-ml simulate`, name its folder: --simulation."
        )
    if not path.is_file():
        raise ConfigError(f"there is no input {path}. Give a dataset.h5 of data-pipeline, or a PDB or mmCIF file.")
    if name.endswith(DATASETS):
        return "dataset"
    if name.endswith(STRUCTURES):
        return "structure"
    allowed = ", ".join((*DATASETS, *STRUCTURES))
    raise ConfigError(f"{path} is of no kind that validate reads. Allowed endings: {allowed}, structures also .gz.")


def label_structure(config: ValidationConfig, message: Message) -> Path:
    """Make a dataset of thermal frames of one structure, labelled with AMBER14; one that is there already is kept.

    Parameters
    ----------
    config
        Of the validation; read are input, output, frames and seed.
    message
        Called with lines for the user.

    Returns
    -------
    Path
        The dataset, all of it in the split "test".

    Raises
    ------
    ConfigError
        If the structure cannot be prepared, sampled or labelled.
    """
    from importlib import metadata

    import h5py

    from data_pipeline.dataset.pack import PackedEntry, pack
    from data_pipeline.errors import PipelineError
    from data_pipeline.labels.label import describe, label
    from data_pipeline.schema import ENTRY_FIELDS
    from data_pipeline.systems.build import DEFAULT_FORCE_FIELD, protein_mask
    from data_pipeline.systems.sample import relax, sample_thermal
    from forcefield_ml.simulation.build import solvated

    source = hashlib.sha256(config.input.read_bytes()).hexdigest()
    target = _target(config.model)
    if target.name == "reference_minus_mm":
        raise ConfigError(
            f"{config.model} predicts a reference minus an MM force field, and validate labels structures with AMBER14 "
            "alone. Give a dataset.h5 with that reference: label: {parts: [minus_mm]} in data-pipeline run"
        )
    about_frames = {"input": source, "frames": config.frames, "seed": config.seed, "parts": target.parts}
    settings = json.dumps(about_frames, sort_keys=True)
    path = config.output / "input.h5"
    if path.is_file():
        with h5py.File(path) as file:
            if file.attrs.get("config") == settings:
                return path
    message(f"preparing, sampling and labelling {config.frames} frames of {config.input.name}")
    prepared, left_out = solvated(config.input, config.output / "input.cif", ph=7.0, padding=0.8, seed=config.seed)
    if left_out:
        message(f"note: {left_out}")
    mask = protein_mask(prepared.topology)
    residues = list(dict.fromkeys(a.residue for a in prepared.topology.atoms() if mask[a.index]))
    try:
        frames = sample_thermal(prepared, relax(prepared), n_frames=config.frames, seed=config.seed)
        labels = label(prepared.topology, frames.positions, frames.box, wanted=target.parts)
        parts = {field.name: labels.parts[field.name] for field in ENTRY_FIELDS if field.name in labels.parts}
        fields = {
            **describe(prepared.topology),
            "charges": labels.charges,
            "positions": frames.positions,
            "box": frames.box,
            "forces": labels.forces,
            "energy": labels.energy,
            **parts,
        }
        attributes = {
            **{name: value for name, value in labels.parts.items() if name not in parts},
            "split": "test",
            "cluster": "input",
            "sequence": _sequence(config.input, [residue.name for residue in residues]),
            "source_file": config.input.name,
            "source_sha256": source,
            "seed": config.seed,
            "pme_alpha": labels.pme_alpha,
            "pme_grid": labels.pme_grid,
        }
        name = config.input.name.split(".")[0].lower()
        about = {
            "protocol": "thermal",
            "force_field": ",".join(DEFAULT_FORCE_FIELD),
            "config": settings,
            "versions": json.dumps({package: metadata.version(package) for package in ("openmm", "pdbfixer")}),
        }
        pack([PackedEntry(name, fields, attributes)], path, about)
    except PipelineError as error:
        raise ConfigError(f"{config.input.name} cannot be labelled: {error}") from error
    return path


def _sequence(path: Path, names: list[str]) -> str:
    """Return the sequence as deposited, which is what a model's card holds, or else that of the residues prepared."""
    import gemmi

    from data_pipeline.entries.facts import inspect
    from data_pipeline.errors import EntryError

    try:
        facts = inspect(path)
    except EntryError:
        return gemmi.one_letter_code(names)
    return facts.sequence if facts.n_protein_chains == 1 else gemmi.one_letter_code(names)


def _judge(model: Path, dataset: Path, split: str, folder: Path) -> Judged:
    """Evaluate, or read what a former evaluation of the same model on the same data found."""
    from forcefield_ml.training.checkpoint import is_torchscript
    from forcefield_ml.training.evaluate import evaluate

    stem = _stem(model, dataset, split, folder)
    kept, arrays = stem.with_suffix(".json"), stem.with_suffix(".npz")
    metrics = None
    if kept.is_file() and arrays.is_file():
        try:
            metrics = json.loads(kept.read_text(encoding="utf-8"))
        except ValueError:
            metrics = None
    if metrics is None:
        metrics = evaluate(model, dataset, split, per_atom=arrays)
        write_whole(kept, json.dumps(metrics, indent=1, ensure_ascii=False).encode())
    # every run calls its checkpoint best.pt: the folder tells which
    name = model.name if is_torchscript(model) else f"{model.resolve().parent.name}/{model.name}"
    return Judged(name, _card(model), metrics, hashlib.sha256(model.read_bytes()).hexdigest())


def _stem(model: Path, dataset: Path, split: str, folder: Path) -> Path:
    import h5py

    from forcefield_ml.errors import DatasetError, ModelFileError

    if not model.is_file():
        raise ModelFileError(f"there is no model {model}. Give a model.pt or a checkpoint of forcefield-ml train.")
    try:
        with h5py.File(dataset) as file:
            content = str(file.attrs["content_sha256"])
    except (OSError, KeyError):
        raise DatasetError(f"{dataset} is no dataset of data-pipeline, or damaged. Make it again.") from None
    key = hashlib.sha256(model.read_bytes() + content.encode() + split.encode()).hexdigest()[:12]
    return folder / f"evaluation-{key}"


def _card(model: Path) -> dict[str, Any]:
    from forcefield_ml.deploy.model_file import bundle
    from forcefield_ml.training import checkpoint as files

    if files.is_torchscript(model):
        return bundle.read_card(model)
    return files.as_dict(files.load(model))


def _target(model: Path) -> Target:
    from forcefield_ml.training.checkpoint import target_of

    card = _card(model)
    return target_of(card if "predicts" in card else card["training"])


def _short_simulation(config: ValidationConfig, message: Message) -> dict[str, Any]:
    from forcefield_ml.simulation.run import SimulationConfig, simulate

    folder = config.output / "simulation"
    values = {
        "structure": config.input,
        "model": config.model,
        "output": folder,
        "steps": config.steps,
        "seed": config.seed,
    }
    settings = parse_config(SimulationConfig, values, source="validate --steps")
    try:
        return simulate(settings, message=message)
    except UnstableError as error:
        message(f"the simulation was stopped: {error}")
        return _read_json(folder, "result.json", "forcefield-ml simulate")


def _read_json(folder: Path, name: str, command: str) -> dict[str, Any]:
    path = folder / name
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{folder} holds no readable {name} ({error}). Give the folder of a `{command}` that has ended."
        ) from None


def _commands(config: ValidationConfig, simulations: list[dict[str, Any]]) -> list[str]:
    lines = [shlex.join(["data-pipeline", "run", str(p / "config.yaml"), "-o", str(p)]) for p in config.pipelines]
    for model in (config.model, *config.also):
        recipe = model.parent / "config.yaml"
        if recipe.is_file():
            lines.append(shlex.join(["forcefield-ml", "train", str(recipe)]))
    lines += [_simulate_command(result["config"]) for result in simulations]
    parts = ["forcefield-ml", "validate", str(config.model), str(config.input), "-o", str(config.output)]
    for option, paths in (
        ("--also", config.also),
        ("--pipeline", config.pipelines),
        ("--simulation", config.simulations),
    ):
        for path in paths:
            parts += [option, str(path)]
    if config.split != "test":
        parts += ["--split", config.split]
    if config.steps is not None:
        parts += ["--steps", str(config.steps)]
    return [*lines, shlex.join(parts)]


def _simulate_command(settings: dict[str, Any]) -> str:
    parts = ["forcefield-ml", "simulate", settings["structure"], "-o", settings["output"]]
    for option, key in (
        ("--model", "model"),
        ("--steps", "steps"),
        ("--timestep", "timestep_fs"),
        ("--temperature", "temperature"),
        ("--start", "start"),
        ("--equilibration", "equilibration_ps"),
        ("--padding", "padding"),
        ("--seed", "seed"),
    ):
        if settings[key] is not None:
            parts += [option, str(settings[key])]
    return shlex.join(parts)
