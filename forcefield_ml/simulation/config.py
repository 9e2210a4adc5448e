"""Settings of a simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from data_pipeline.systems.build import DEFAULT_FORCE_FIELD
from forcefield_ml.config import StrictConfig
from forcefield_ml.deploy.guards import stability, steps
from forcefield_ml.deploy.system import masses
from forcefield_ml.simulation.mts import LONGEST_OUTER
from forcefield_ml.simulation.trajectory import Kind

INTERVALS = ("log_every", "frame_every", "checkpoint_every")


class SimulationConfig(StrictConfig):
    """What to simulate and how.

    Steps are steps of the dynamics with the model, with `mts` above 1 the inner ones; times are in the units that the
    names say. Intervals that are left out are 10, 20 and 100, rounded up to a multiple of `mts`.
    """

    structure: Path
    model: Path | None = None
    output: Path
    steps: int = Field(2000, ge=1)
    timestep_fs: float = Field(1.0, gt=0)
    hydrogen_mass: float | None = Field(None, ge=masses.LIGHTEST, le=masses.HEAVIEST)
    temperature: float = Field(300.0, gt=0)
    friction_per_ps: float = Field(1.0, gt=0)
    mode: Literal["system", "solute", "embedded", "correction"] | None = None
    backend: str = "auto"
    mts: int = Field(1, ge=1)
    reference: Path | None = None
    remove_net_force: bool = True
    deterministic: bool = False
    start: Literal["thermal", "minimised"] = "thermal"
    equilibration_ps: float = Field(1.0, ge=0)
    minimise_iterations: int = Field(200, ge=1)
    fire_steps: int = Field(200, ge=0)
    fire_tolerance: float = Field(500.0, gt=0)
    log_every: int = Field(10, ge=1)
    frame_every: int = Field(20, ge=1)
    checkpoint_every: int = Field(100, ge=1)
    trajectory: Kind = "dcd"
    max_minutes: float | None = Field(None, gt=0)
    max_force: float = Field(stability.MAX_FORCE, gt=0, le=stability.MAX_FORCE)
    max_temperature: float = Field(stability.MAX_TEMPERATURE, gt=0)
    torn_bonds: bool = Field(True, description="stop where a bond is torn")
    platform: str = "CPU"
    threads: int | None = Field(None, ge=1)
    force_field: tuple[str, ...] = DEFAULT_FORCE_FIELD
    cutoff: float = Field(0.9, gt=0)
    ph: float = 7.0
    padding: float = Field(0.8, gt=0)
    box_shape: Literal["dodecahedron", "octahedron", "cube"] = "dodecahedron"
    seed: int = Field(0, ge=0, le=2**31 - 2**20)

    @model_validator(mode="before")
    @classmethod
    def _intervals(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        mts = values.get("mts", 1)
        if not isinstance(mts, int) or mts < 1:  # told later
            return values
        values = {key: value for key, value in values.items() if value is not None or key not in INTERVALS}
        every = -(-values.get("log_every", cls.model_fields["log_every"].default) // mts) * mts
        for name in INTERVALS:
            multiple = mts if name == "log_every" else every
            values.setdefault(name, -(-cls.model_fields[name].default // multiple) * multiple)
        return values

    @model_validator(mode="after")
    def _consistent(self) -> SimulationConfig:
        for name in ("steps", "log_every"):
            if getattr(self, name) % self.mts:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a multiple of mts, {self.mts}.")
        for name in ("frame_every", "checkpoint_every"):
            if getattr(self, name) % self.log_every:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a multiple of log_every.")
        if self.mts > 1 and self.model is None:
            raise ValueError(f"mts is {self.mts}, but there is no model; MM alone runs with mts 1.")
        if self.reference is not None and self.mts == 1:
            raise ValueError(
                f"reference is {self.reference}, which is for multiple time stepping, but mts is 1. Set mts, such as 4 "
                "steps of 0.5 or 1 fs, or leave reference out."
            )
        if self.mts > 1 and self.mts * self.timestep_fs > LONGEST_OUTER * (1 + 1e-6):
            raise ValueError(
                f"mts x timestep_fs is {self.mts * self.timestep_fs:g} fs; kicks more than {LONGEST_OUTER:g} fs apart "
                f"pump energy into bonds with hydrogen: at {self.timestep_fs:g} fs mts is at most "
                f"{int(LONGEST_OUTER / self.timestep_fs * (1 + 1e-6))}."
            )
        if self.deterministic and self.threads not in (None, 1):
            raise ValueError(f"threads is {self.threads}; deterministic runs have one.")
        if self.deterministic and self.backend == "torchforce":
            raise ValueError("backend is torchforce, whose last digits change after first use; take pythonforce.")
        if self.timestep_fs > steps.LONGEST_STEP * self.stretch * (1 + 1e-6):
            raise ValueError(
                f"timestep_fs is {self.timestep_fs:g}; without constraints at most "
                f"{steps.LONGEST_STEP * self.stretch:.2g} fs is allowed and "
                f"{steps.WARN_STEP * self.stretch / 2:.2g} fs is safe."
            )
        return self

    @property
    def stretch(self) -> float:
        """By how much slower bonds with hydrogen swing than with the element's mass."""
        return steps.FreeAtoms(self.hydrogen_mass or steps.HYDROGEN, -1).stretch
