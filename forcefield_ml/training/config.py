"""Settings of a training run: one YAML file, strict, every key documented here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from data_pipeline.schema import REFINEMENT
from forcefield_ml.config import StrictConfig
from forcefield_ml.data.target import Target, TargetAtoms, TargetName
from forcefield_ml.errors import ConfigError, closest

PRESETS: dict[str, dict[str, Any]] = {
    # Section 4.3 of the paper: delta and learning rate as printed, one macromolecule a batch, 75,000 batches. The
    # optimiser is not named there; the code of the paper's predecessors used Adam.
    "paper": {"delta": 10.0, "learning_rate": 0.1, "schedule": "constant", "ema": 0.0, "clip": None},
    # Forces at 300 K are ten times larger than those of minimised structures.
    # Section 4.4: delta and learning rate as printed, again one macromolecule a batch.
    "refinement": {"delta": 1.0, "learning_rate": 0.1, "schedule": "constant", "ema": 0.0, "clip": None},
    "thermal": {"delta": 500.0, "learning_rate": 0.01, "schedule": "cosine", "ema": 0.99, "clip": 1.0},
}
"""Values that a preset puts in place of the defaults; a key given beside the preset wins."""


class TrainingConfig(StrictConfig):
    """What `train` reads. A key that is not listed here is an error."""

    dataset: Path = Field(description="dataset.h5")
    extra_datasets: tuple[Path, ...] = Field(
        (), description="others whose training frames are learnt, too, such as those of forcefield-ml explore"
    )
    validation_dataset: Path | None = Field(
        None, description="dataset.h5 whose validation frames judge the run, of no protein trained on; none: dataset"
    )
    start_from: Path | None = Field(
        None,
        description="checkpoint, model.pt or name of a model that ships: a new run begins with its weights and scale; "
        "of the same network, but its head may be another (not energy where vector is wanted), type_depth and bound "
        "may rise from 0: what it lacks begins fresh",
    )
    output: Path = Field(description="folder of the run: checkpoints, log, resolved configuration")
    model: dict[str, Any] = Field(description="architecture and the settings that differ from its defaults")
    target: TargetName = Field(
        "total", description="what is learnt; decides which modes the model serves, see data.target and docs/targets.md"
    )
    target_atoms: TargetAtoms = Field("solute", description="whose forces count: the atoms that are marked, or all")
    solute_share: float = Field(
        0.5, ge=0, le=1, description="of patches with a marked atom at their centre, where target_atoms is all"
    )
    preset: Literal["paper", "thermal", "refinement"] = Field(
        "thermal", description="where defaults come from; see PRESETS; of target refinement: refinement, no other"
    )
    optimiser: Literal["adam", "adamw", "soap"] = Field(
        "adam", description="soap: Adam in the eigenbasis of Shampoo's preconditioner, fewer batches for the same error"
    )
    weight_decay: float = Field(0.0, ge=0, description="of adamw and soap")
    learning_rate: float = Field(gt=0, description="at its highest")
    schedule: Literal["constant", "cosine", "linear"] = Field(description="decay over the budget, time included")
    final_learning_rate: float = Field(0.01, ge=0, le=1, description="at the end, as a part of the highest")
    warmup_batches: int = Field(20, ge=0, description="batches over which the learning rate rises from zero")
    delta: float = Field(gt=0, description="where the Huber loss turns linear: meV/Å, of target refinement Å")
    clip: float | None = Field(gt=0, description="largest norm of the gradient of loss / (delta x scale)")
    ema: float = Field(ge=0, lt=1, description="decay of the averaged weights; 0 for none")
    max_batches: int | None = Field(None, ge=1, description="budget of batches")
    max_minutes: float | None = Field(None, gt=0, description="budget of time, all parts of a resumed run together")
    frames_per_batch: int = Field(1, ge=1, description="not beside pairs_per_batch")
    targets_per_batch: int | None = Field(None, ge=1, description="a compact patch of targets; none: all targets")
    pairs_per_batch: int | None = Field(
        None,
        ge=1,
        description="budget of pairs over all layers, instead of targets_per_batch: as many frames, or of a large "
        "frame as many targets, as fit; none: by frames and targets",
    )
    precision: Annotated[Literal["32", "bf16"], BeforeValidator(str)] = Field(
        "32", description="bf16: matrix products in bfloat16, weights, statistics, loss and averages in float32"
    )
    seed: int = Field(0, ge=0)
    validate_every: int = Field(200, ge=1, description="batches")
    patience: int | None = Field(
        None, ge=1, description="validations in a row without a lower loss after which training ends early; none: never"
    )
    validation_frames: int | None = Field(None, ge=1, description="at most so many, spread over the entries; none: all")
    save_every_seconds: float = Field(30.0, ge=0)
    log_every: int = Field(10, ge=1, description="batches")
    cache_mb: int = Field(
        1024, ge=0, description="memory for neighbours of frames seen before; as much again for validation"
    )
    ahead: int = Field(4, ge=0, description="batches made ahead in background threads; 0: none, no thread")
    loader_threads: int = Field(2, ge=1, description="background threads; more do not help unless ahead is as large")
    compile: bool = Field(False, description="torch.compile the model: minutes of compiling, no gain measured yet")
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        refines = values.get("target") == REFINEMENT
        preset = values.get("preset", REFINEMENT if refines else "thermal")
        if preset not in PRESETS:
            raise ValueError(f"no preset {preset!r}.{closest(str(preset), PRESETS)}")
        if refines != (preset == REFINEMENT):
            raise ValueError(
                f"preset {preset!r} and target {values.get('target', 'total')!r} do not go together: delta is in "
                f"{'Å' if preset == REFINEMENT else 'meV/Å'} there. Leave preset out"
            )
        return {**PRESETS[preset], **values, "preset": preset}

    @model_validator(mode="after")
    def _require_a_target(self) -> TrainingConfig:
        try:
            Target(self.target, self.target_atoms)
        except ConfigError as error:
            raise ValueError(str(error)) from None
        return self

    @model_validator(mode="after")
    def _require_a_budget(self) -> TrainingConfig:
        if self.max_batches is None and self.max_minutes is None:
            raise ValueError("no budget: set max_batches, max_minutes or both (whichever ends first)")
        if self.pairs_per_batch is not None:
            beside = [key for key in ("targets_per_batch", "frames_per_batch") if self._is_set(key)]
            if beside:
                raise ValueError(
                    f"pairs_per_batch = {self.pairs_per_batch} says how large a batch is; {' and '.join(beside)} "
                    "beside it would say it twice. Leave out one or the other"
                )
        if self.targets_per_batch is not None and self.targets_per_batch < self.frames_per_batch:
            raise ValueError(
                f"targets_per_batch = {self.targets_per_batch} gives less than one to each of the "
                f"{self.frames_per_batch} frames_per_batch"
            )
        return self

    def _is_set(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


RESUME_FREE = frozenset(
    {
        "dataset",  # its content is compared by hash instead
        "extra_datasets",
        "validation_dataset",
        "start_from",  # read by a new run alone
        "output",
        "max_batches",
        "max_minutes",
        "validate_every",
        "patience",
        "validation_frames",
        "save_every_seconds",
        "log_every",
        "cache_mb",
        "ahead",
        "loader_threads",
        "compile",
        "device",
    }
)
"""Settings that may change when a run goes on: they alter neither the batches nor what the weights mean."""
