"""The one training loop: Lightning runs the steps, `Supervisor` watches budget, averages, validation and files."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch

from data_pipeline.schema import REFINEMENT
from forcefield_ml import models, pretrained
from forcefield_ml.bonded.module import keys_of
from forcefield_ml.config import dump_config
from forcefield_ml.data import BatchSource, BatchStream, ForceDataset, JoinedDataset, Target
from forcefield_ml.data.target import quantity_of
from forcefield_ml.errors import ConfigError
from forcefield_ml.nn.embedding import set_types, types_of
from forcefield_ml.progress import ProgressLine, duration
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training import provenance
from forcefield_ml.training.config import RESUME_FREE, TrainingConfig
from forcefield_ml.training.module import ForceModule
from forcefield_ml.training.processes import Processes
from forcefield_ml.training.start import Begun, begin_with
from forcefield_ml.training.start import read as read_start
from forcefield_ml.training.supervisor import BEST, LAST, Supervisor, budget, former_signal_handlers, headline
from forcefield_ml.training.terms import fit_terms

CONFIG = "config.yaml"


@dataclass
class TrainingResult:
    """What `train` did.

    Parameters
    ----------
    checkpoint
        The file to evaluate and export: best.pt, by validation loss.
    n_batches
        Batches of the whole run, over all its resumptions.
    seconds
        Time of the whole run.
    finished
        False if it was interrupted before its budget was spent.
    waiting
        Share of that time in which the steps waited for batches.
    metrics
        Validation metrics of that checkpoint; empty without a validation split.
    target
        What was learnt, one of `data.target.TARGET_NAMES`.
    """

    checkpoint: Path
    n_batches: int
    seconds: float
    finished: bool
    waiting: float
    metrics: dict[str, Any]
    target: str = "total"

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return {**vars(self), "checkpoint": str(self.checkpoint)}

    def summary(self) -> str:
        """Return lines for the screen: how far it came, and what to type next."""
        state = "finished" if self.finished else "stopped (the same command goes on)"
        told = f", validation {headline(self.metrics, quantity_of(self.target))}" if self.metrics else ""
        return (
            f"{state} after {self.n_batches} batches, {duration(self.seconds)}{told}\n"
            f"waited for batches {100 * self.waiting:.2g} % of the time\n"
            f"next: forcefield-ml evaluate {self.checkpoint} DATASET\n"
            f"  or: forcefield-ml export {self.checkpoint} -o model.pt"
        )


def train(config: TrainingConfig, quiet: bool = False) -> TrainingResult:
    """Train a model, or go on with a run that stopped.

    Batches, their order, optimiser, averages and clock go on from the last checkpoint; what came after it (at most
    `save_every_seconds`) is done again, with the same batches. A run whose budget is spent returns at once.

    Under torchrun every process makes a batch of its own at each step, numbers step x processes + rank, and the
    gradients are those of all of them as one batch. Process 0 holds the clock and writes; all share validation.

    Parameters
    ----------
    config
        Settings of the run.
    quiet
        Show no progress.

    Returns
    -------
    TrainingResult
        Where the checkpoint is and how far the run came.

    Raises
    ------
    ConfigError
        If the output folder holds a run with other settings, other data or another number of processes, or no such
        model exists.
    DatasetError
        If the dataset does not serve.
    ModelFileError
        If a checkpoint cannot be read or written.
    UnstableError
        If the loss is no longer finite.
    ProcessError
        If another process of the same run has ended.
    """
    processes = Processes.here()
    cuda = config.device != "cpu" and _has_cuda(config)
    trainer_settings = processes.trainer_settings(cuda)
    model_config = models.parse_config(dict(config.model))
    config = config.model_copy(update={"model": model_config.model_dump(mode="json")})
    target = Target(config.target, config.target_atoms)
    training = JoinedDataset(config.dataset, config.extra_datasets, target)
    validation = ForceDataset(config.validation_dataset or config.dataset, "validation", target)
    training.require_frames()
    if config.validation_dataset is not None:
        training.require_judge(validation)
    torch.manual_seed(config.seed)
    model = models.build_for_training(model_config)
    _require_fit(config, model, target)
    for split in (training, validation):
        split.require_species(model.capabilities.elements)
    learnt_before: dict[str, Any] | None = None
    begun: Begun | None = None
    stages: list[dict[str, Any]] = []
    former = _former_run(config, training, validation, processes.size)
    if former is not None and former.resume is not None:
        if _is_finished(config, former.resume):
            return _result(config, former, finished=True)
        learnt_before = former.training.get("started_from")
        stages = provenance.stages_of(former.training)[:-1]
        model.load_state_dict(former.resume["state_dict"])
        torch.set_rng_state(former.resume["random"])
        scale = float(former.resume["scale"])
    elif config.start_from is not None:
        source = pretrained.resolve(config.start_from)
        start = read_start(source)
        _require_same_quantity(files.target_of(start.training), target, source)
        begun = begin_with(start, model, training, source)
        scale = float(start.training["scale"])
        learnt_before = {**provenance.learnt_before(start, source), **begun.record()}
        stages = provenance.stages_of(start.training)
    else:
        scale = fit_terms(model, training) if model.config.get("bonded") else training.rms_target_force()
        if not scale > 0:
            raise ConfigError(
                f"every target {target.quantity.name} in {config.dataset} is zero; there is nothing to learn"
            )
        model.set_scale(scale if model.predicts == "magnitude" else scale / math.sqrt(3))
        set_types(model, training.molecules())
    for split in (training, validation):
        split.encode(types_of(model), keys_of(model))
    if processes.first:
        _make_folder(config)
    module = ForceModule(model, config, scale, processes)
    sources = [
        BatchSource(
            split,
            model.search(),
            model.capabilities.n_layers,
            config.frames_per_batch,
            config.targets_per_batch,
            config.seed,
            cache_bytes=config.cache_mb << 20,
            pairs_per_batch=config.pairs_per_batch,
            marked_share=config.solute_share,
        )
        for split in (training, validation)
    ]
    title = f"train {config.model['architecture']}"
    done = int(former.resume["n_batches"]) if former is not None and former.resume is not None else 0
    stream = BatchStream(
        sources[0],
        start=done * processes.size + processes.rank,
        ahead=config.ahead,
        step=processes.size,
        n_threads=config.loader_threads,
        pin=cuda,
    )
    card = _card(config, training, validation, scale, processes.size, learnt_before, stages)
    quiet = quiet or not processes.first
    with closing(training), closing(validation), ProgressLine(title, quiet) as line, _quiet_lightning():
        if begun is not None:
            line.say(f"{config.start_from}: {begun.told()}")
        supervisor = Supervisor(module, sources[1], stream, card, line, former)
        trainer = lightning.Trainer(
            accelerator="cuda" if cuda else "cpu",
            precision="bf16-mixed" if config.precision == "bf16" else "32-true",
            max_epochs=-1,
            max_steps=-1 if config.max_batches is None else config.max_batches - supervisor.n_batches,
            gradient_clip_val=config.clip,
            callbacks=[supervisor],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            **trainer_settings,
        )
        with former_signal_handlers(), processes.in_step():
            trainer.fit(module, train_dataloaders=stream)
    return _result(config, files.load(config.output / LAST), supervisor.finished)


def _require_fit(config: TrainingConfig, model: models.Model | models.TwoHeads, target: Target) -> None:
    """Refuse what this model cannot be trained on; tell of an energy that no simulation will be able to use."""
    if model.predicts == "magnitude" and target.supplied is not None:
        raise ConfigError(
            f"target {config.target!r} is a vector to which another is added, but this model predicts magnitudes alone "
            "(order 0). Set target: total, or choose an order above 0"
        )
    if target.task == REFINEMENT and (config.model["bonded"] or "energy" in model.parts):
        setting = "bonded: true" if config.model["bonded"] else f"head: {config.model['head']}"
        raise ConfigError(
            f"model.{setting} brings forces that are the gradient of an energy, and no energy stands behind the "
            f"displacements of target {config.target!r}. Leave it out: the vector head predicts them directly"
        )
    if model.predicts == "magnitude" and model.config["bonded"]:
        raise ConfigError(
            "model.bonded: true adds the forces of bonded terms, which are vectors, but this model predicts magnitudes "
            "alone (order 0). Leave bonded out, or choose an order above 0"
        )
    if "energy" not in model.parts:
        return
    if config.compile:
        raise ConfigError(
            f"compile: true does not go with model.head {config.model['head']!r}: torch.compile cannot differentiate "
            "twice, as training on the gradient of an energy must. Leave compile out"
        )
    if target.atoms == "solute" and not target.alone:
        warnings.warn(
            f"the energy of a model of target {target.name!r} on solute atoms serves no simulation: it is conserved "
            "only where every atom it depends on feels its gradient. Set target_atoms: all, or target: solute_alone",
            stacklevel=3,
        )


def _require_same_quantity(former: Target, target: Target, path: Path) -> None:
    if former.quantity != target.quantity:
        raise ConfigError(
            f"start_from: {path} predicts {former.quantity.name}s ({former.name!r}), this run learns "
            f"{target.quantity.name}s ({target.name!r}): its scale means another unit. Leave start_from out"
        )


def _card(
    config: TrainingConfig,
    training: JoinedDataset,
    validation: ForceDataset,
    scale: float,
    n_processes: int,
    learnt_before: dict[str, Any] | None,
    stages: list[dict[str, Any]],
) -> dict[str, Any]:
    before = learnt_before or {"sequences": {}, "residues": []}
    sequences = {**before["sequences"], **training.sequences()}
    return {
        "entries": sorted(sequences),
        "sequences": sequences,
        "residues": sorted({*training.residue_names(), *before["residues"]}),
        "started_from": learnt_before,
        "stages": [*stages, provenance.new_stage(config, training, before)],
        "n_frames": len(training),
        "dataset_sha256": training.content_sha256,
        "validation_sha256": validation.content_sha256,
        "protocol": training.protocol,
        "force_field": training.force_field,
        "predicts": training.target.name,
        "target_atoms": training.target.atoms,
        "reciprocal": training.reciprocal(),
        "mm_force_field": training.mm_force_field(),
        "recipe": _recipe(config),
        "seed": config.seed,
        "scale": scale,
        "processes": n_processes,
    }


def _recipe(config: TrainingConfig) -> dict[str, Any]:
    paths = {
        "dataset": config.dataset.name,
        "extra_datasets": [path.name for path in config.extra_datasets],
        "validation_dataset": config.validation_dataset and config.validation_dataset.name,
        "start_from": config.start_from and config.start_from.name,
    }
    return {**config.model_dump(mode="json", exclude={"output"}), **paths}


def _former_run(
    config: TrainingConfig, training: ForceDataset, validation: ForceDataset, n_processes: int
) -> files.Checkpoint | None:
    path = config.output / LAST
    if not path.exists():
        return None
    former = files.load(path)
    recipe, wanted = former.training.get("recipe", {}), _recipe(config)
    # a setting that the program did not have yet when the run began had its default
    defaults = {key: field.default for key, field in TrainingConfig.model_fields.items()}
    recipe = {**defaults, **recipe}
    recipe["model"] = models.parse_config(dict(recipe["model"])).model_dump(mode="json")
    changed = [key for key in wanted if key not in RESUME_FREE and recipe[key] != wanted[key]]
    if former.training.get("dataset_sha256") != training.content_sha256:
        changed.append("dataset (its content)")
    if former.training.get("validation_sha256", validation.content_sha256) != validation.content_sha256:
        changed.append("validation_dataset (its content)")
    if changed:
        raise ConfigError(
            f"{config.output} holds a run with other settings: {', '.join(changed)}. Give another output, delete the "
            "folder to start anew, or take the former settings back to go on"
        )
    before = former.training.get("processes", 1)
    if before != n_processes:
        raise ConfigError(
            f"the run in {config.output} is one of {before} process(es), and a batch is that of all of them; this is "
            f"one of {n_processes}. Go on with torchrun --nproc-per-node {before} (on as many machines as before; "
            "for 1 process, without torchrun), or give another output"
        )
    return former


def _is_finished(config: TrainingConfig, resume: dict[str, Any]) -> bool:
    finished = resume.get("finished")
    if finished and finished == budget(config)[: len(finished)]:
        return True
    if config.max_batches is not None and resume["n_batches"] >= config.max_batches:
        return True
    return config.max_minutes is not None and resume["seconds"] >= 60.0 * config.max_minutes


def _result(config: TrainingConfig, last: files.Checkpoint, finished: bool) -> TrainingResult:
    path = config.output / BEST
    path = path if path.exists() else config.output / LAST
    best = files.load(path)
    about = last.training
    waiting = about.get("seconds_waited", 0.0) / max(about["seconds"], 1e-9)
    return TrainingResult(path, about["n_batches"], about["seconds"], finished, waiting, best.metrics, config.target)


def _make_folder(config: TrainingConfig) -> None:
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        dump_config(config, config.output / CONFIG)
    except OSError as error:
        raise ConfigError(f"cannot write to the output folder {config.output}: {error.strerror or error}") from None


def _has_cuda(config: TrainingConfig) -> bool:
    if torch.cuda.is_available():
        return True
    if config.device == "cuda":
        raise ConfigError("device is 'cuda', but torch finds no CUDA device here. Set device to 'auto' or 'cpu'")
    return False


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # about loaders with several workers, logging and checkpoints, all of which we do ourselves
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            logger.setLevel(level)
