"""`validate`: judge a model on a dataset, one PDB entry or a trajectory, gather what else is known, write the page."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from forcefield_ml import pretrained
from forcefield_ml.config import StrictConfig, parse_config
from forcefield_ml.data.target import Target
from forcefield_ml.errors import ConfigError, ForceModeError, ModelFileError, UnstableError
from forcefield_ml.files import write_whole
from forcefield_ml.units import FORCE
from forcefield_ml.validation.commands import commands
from forcefield_ml.validation.inputs import input_kind, labelled
from forcefield_ml.validation.report import Judged, ReportInputs, write_report
from forcefield_ml.validation.symmetry.besides import reciprocal_of
from forcefield_ml.validation.symmetry.jacobian import LEAST_PROBES

if TYPE_CHECKING:
    from forcefield_ml.data import ForceDataset

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
    topology: Path | None = None
    dynamics: int | None = Field(None, ge=40)
    padding: float = Field(0.8, gt=0)
    probes: int = Field(LEAST_PROBES, ge=0)
    probed_atoms: int = Field(300, ge=2)
    frames: int = Field(2, ge=1)
    seed: int = Field(0, ge=0, le=2**31 - 2**20)

    @model_validator(mode="after")
    def _enough_probes(self) -> ValidationConfig:
        if 0 < self.probes < LEAST_PROBES:
            raise ValueError(f"probes is {self.probes}; allowed: 0 (no lambda), or at least {LEAST_PROBES}")
        return self


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

    also = tuple(pretrained.resolve(path) for path in config.also)
    config = config.model_copy(update={"model": pretrained.resolve(config.model), "also": also})
    kind = input_kind(config.input, config.topology)
    _refuse_models((config.model, *config.also))
    _refuse_runs(config, kind)
    simulations = [_read_json(folder, "result.json", "forcefield-ml simulate") for folder in config.simulations]
    pipelines = [_read_json(folder, "summary.json", "data-pipeline run") for folder in config.pipelines]
    config.output.mkdir(parents=True, exist_ok=True)
    dataset, split = config.input, str(config.split)
    if kind != "dataset":
        dataset, split = labelled(config, kind, _target(config.model), message), "test"
    judged = [_judge(path, dataset, split, config.output) for path in (config.model, *config.also)]
    if config.steps is not None:
        simulations.append(_short_simulation(config, message))
    frames = ForceDataset(dataset, split, _target(config.model))
    per_atom = _stem(config.model, dataset, split, config.output).with_suffix(".npz")
    inputs = ReportInputs(
        judged[0],
        per_atom,
        judged[1:],
        _symmetry(config, frames, message),
        pipelines,
        simulations,
        commands(config, simulations),
        frames=frames,
        dynamics=_dynamics(config, message),
    )
    return write_report(config.output, inputs)


def _refuse_runs(config: ValidationConfig, kind: str) -> None:
    """Refuse simulations that cannot be, before frames are labelled and models evaluated."""
    from forcefield_ml.training.checkpoint import is_torchscript

    for option, value in (("--steps", config.steps), ("--dynamics", config.dynamics)):
        if value is None:
            continue
        if kind != "structure":
            raise ConfigError(
                f"{option} needs a structure to simulate: give a PDB entry as INPUT. A run made before by "
                "`forcefield-ml simulate PDB --model MODEL -o DIR` is shown by --simulation DIR."
            )
        if not is_torchscript(config.model):
            raise ConfigError(
                f"{option} needs a model.pt, and {config.model} is a checkpoint. Run: forcefield-ml export "
                f"{config.model} -o model.pt"
            )


def _refuse_models(models: tuple[Path, ...]) -> None:
    """Refuse files that are missing, damaged or hold two models, before frames are labelled."""
    from forcefield_ml.training import checkpoint as files

    for path in models:
        if not path.is_file():
            raise ModelFileError(f"there is no model {path}. Give a model.pt or a checkpoint of forcefield-ml train.")
        if not files.is_torchscript(path):
            files.load_model(path)
        target = _target(path)
        if target.quantity is not FORCE:
            raise ForceModeError(
                f"{path} predicts {target.name!r}, {target.quantity.name}s and no forces, and validate judges forces. "
                f"Judge it with `forcefield-ml evaluate {path} DATASET`, use it with `forcefield-ml refine`"
            )


def _symmetry(config: ValidationConfig, frames: ForceDataset, message: Message) -> dict[str, Any] | None:
    """Return what the first frame tells of symmetry, lambda and work around loops; None without vectors."""
    import torch

    from forcefield_ml.nn.embedding import types_of
    from forcefield_ml.validation.symmetry import Probed, asymmetry, load_module, loop_work, symmetry

    module = load_module(config.model)
    frames.encode(types_of(module))
    sample = frames[0]
    found = symmetry(module, sample, config.seed)
    if found is None or config.probes == 0:
        return found
    probed = Probed(load_module(config.model), sample, config.probed_atoms)
    message(f"lambda of {len(probed.block)} atoms of {sample.entry.name} by {config.probes} probes; closed loops")
    besides = reciprocal_of(frames, sample, probed.block)

    def force(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        with torch.no_grad():
            return probed(torch.from_numpy(positions)).numpy()

    start = probed.positions.numpy()
    return {
        **found,
        "lambda": asymmetry(probed, probed.positions, config.probes, config.seed, besides, quiet=False),
        "loops": loop_work(force, start, seed=config.seed, quiet=False),
    }


def _dynamics(config: ValidationConfig, message: Message) -> dict[str, Any] | None:
    if config.dynamics is None:
        return None
    from forcefield_ml.validation.dynamics import DynamicsSettings, compare

    # what is trained on all atoms is judged for what only it can do
    mode = "system" if _target(config.model).atoms == "all" else None
    values = {"steps": config.dynamics, "mode": mode, "seed": config.seed, "padding": config.padding}
    settings = parse_config(DynamicsSettings, values, source="validate --dynamics")
    contents = [path.read_bytes() for path in (config.model, config.input)]
    key = hashlib.sha256(b"".join([*contents, settings.model_dump_json().encode(), _DYNAMICS])).hexdigest()[:12]
    kept = config.output / f"dynamics-{key}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    found = compare(config.input, config.model, config.output, settings, message)
    write_whole(kept, json.dumps(found, ensure_ascii=False).encode())
    return found


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
    return Judged(name, _card(model), metrics)


_EVALUATION = b"3"
"""Raised when the metrics or the arrays per atom change, so that those kept by a former version are made anew."""

_DYNAMICS = b"3"
"""The same for `_dynamics`."""


def _stem(model: Path, dataset: Path, split: str, folder: Path) -> Path:
    import h5py

    from forcefield_ml.errors import DatasetError

    try:
        with h5py.File(dataset) as file:
            content = str(file.attrs["content_sha256"])
    except (OSError, KeyError):
        raise DatasetError(f"{dataset} is no dataset of data-pipeline, or damaged. Make it again.") from None
    key = hashlib.sha256(model.read_bytes() + content.encode() + split.encode() + _EVALUATION).hexdigest()[:12]
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
    from forcefield_ml.simulation.config import SimulationConfig
    from forcefield_ml.simulation.run import simulate

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
