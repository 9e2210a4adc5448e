"""Dynamics of one entry with a model's force, the reference computed beside it at every step."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import unit
from pydantic import Field

from data_pipeline.config import entry_seed
from data_pipeline.dataset.check_entry import relative_error
from data_pipeline.dataset.pack import PackedEntry
from data_pipeline.labels import ewald
from data_pipeline.systems.build import evaluate
from forcefield_ml.config import StrictConfig
from forcefield_ml.deploy.force.evaluator import Evaluator
from forcefield_ml.errors import DatasetError, UnstableError
from forcefield_ml.models.model import Model
from forcefield_ml.nn.embedding import types_of
from forcefield_ml.simulation.build import platform_named

AGREEMENT = 1e-4
"""Largest mean |dF| / mean |F| between the dataset's forces of a frame and the reference set up here."""


class ExploreConfig(StrictConfig):
    """Where to send a model, and what to keep."""

    model: Path
    dataset: Path
    output: Path
    entries: tuple[str, ...] = ()
    runs: int = Field(1, ge=1)
    steps: int = Field(800, ge=1)
    timestep_fs: float = Field(0.5, gt=0, le=2.0)
    temperature: float = Field(350.0, gt=0)
    friction_per_ps: float = Field(2.0, gt=0)
    every: int = Field(60, ge=1)
    error: float = Field(2500.0, gt=0)
    gap: int = Field(4, ge=1)
    platform: str = "CPU"
    seed: int = Field(0, ge=0, le=2**31 - 1)


class Visited(NamedTuple):
    """What one run visited.

    Attributes
    ----------
    positions
        (F, N, 3) float32, nm.
    box
        (3, 3) float32, nm.
    forces
        (F, N, 3) float32, of the reference, kJ/mol/nm.
    energy
        (F,) of the reference, kJ/mol.
    steps
        Steps done.
    ended
        Why the run ended: "steps", "torn" (a reference force beyond the pipeline's limit) or "not finite".
    """

    positions: NDArray[np.float32]
    box: NDArray[np.float32]
    forces: NDArray[np.float32]
    energy: NDArray[np.float64]
    steps: int
    ended: str


class Reference:
    """The reference forces of one entry, as its labels were made."""

    def __init__(self, entry: PackedEntry, system: openmm.System, platform: str) -> None:
        alpha, grid = float(entry.attributes["pme_alpha"]), np.asarray(entry.attributes["pme_grid"])
        if alpha:
            ewald.set_pme(system, alpha, grid)
        chosen = platform_named(platform)
        self.masses = [system.getParticleMass(i) for i in range(system.getNumParticles())]
        self._context = openmm.Context(system, openmm.VerletIntegrator(0.001), chosen)
        fields = entry.fields
        found, _ = self(fields["positions"][0], fields["box"][0])
        error = relative_error(found, fields["forces"][0])
        if not error <= AGREEMENT:
            raise DatasetError(
                f"{entry.name}: the forces of its first frame differ from those computed here by {error:.1e} (mean "
                f"|dF| / mean |F|, allowed {AGREEMENT:.0e}); its labels were made otherwise. Run data-pipeline check "
                "--recompute on the dataset, and use the version of OpenMM that made it"
            )

    def __call__(self, positions: NDArray[np.float32], box: NDArray[np.float32]) -> tuple[NDArray[np.float64], float]:
        """Return forces (N, 3) in kJ/mol/nm and energy in kJ/mol."""
        return evaluate(self._context, positions, box)


@dataclass
class _Both:
    """What the dynamics calls: the model's force on its targets, the reference's elsewhere; keeps what it saw."""

    reference: Reference
    evaluate: Evaluator
    targets: NDArray[np.bool_]
    box: NDArray[np.float32]
    positions: NDArray[np.float32] = field(init=False)
    forces: NDArray[np.float64] = field(init=False)
    energy: float = field(init=False, default=0.0)
    error: float = field(init=False, default=0.0)
    largest: float = field(init=False, default=0.0)
    failure: BaseException | None = field(init=False, default=None)

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        try:
            return self._forces(state.getPositions(asNumpy=True)._value)
        except BaseException as failure:  # on its way through OpenMM it loses its type, Ctrl-C its message, too
            self.failure = failure
            raise

    def _forces(self, positions: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        # rounded as the dataset holds them, so that positions and forces belong together
        self.positions = positions.astype(np.float32)
        if not np.isfinite(self.positions).all():
            raise UnstableError("positions are not finite")
        self.forces, self.energy = self.reference(self.positions, self.box)
        of_targets = self.forces[self.targets]
        box = torch.from_numpy(self.box.astype(np.float64)) if self.box.any() else None
        predicted = self.evaluate(torch.from_numpy(self.positions.astype(np.float64)), box).forces
        assert predicted is not None  # the card says so
        found = predicted.double().numpy()
        self.error = float(np.linalg.norm(found - of_targets, axis=1).max())
        self.largest = float(np.linalg.norm(of_targets, axis=1).max())
        acting = self.forces.copy()
        acting[self.targets] = found
        return 0.0, acting


class Walk:
    """Dynamics of one entry."""

    def __init__(
        self,
        config: ExploreConfig,
        entry: PackedEntry,
        reference: Reference,
        model: Model,
        every_atom: bool,
        max_force: float,
    ) -> None:
        self.config, self.entry, self.reference, self.max_force = config, entry, reference, max_force
        mask = entry.fields["target_mask"].astype(bool)
        self.targets = np.ones_like(mask) if every_atom else mask
        types, species = types_of(model), entry.fields["species"].astype(np.int64)
        codes = species if types is None else types.codes(species, entry.fields["bonds"])
        self.evaluator = Evaluator(model, torch.from_numpy(codes), torch.from_numpy(self.targets))

    def run(self, number: int) -> Visited:
        """Return what the run of this number visits; it starts from a frame drawn by the seed."""
        config, fields = self.config, self.entry.fields
        seed = entry_seed(config.seed + number, self.entry.name)
        start = int(np.random.default_rng(seed).integers(len(fields["positions"])))
        box = fields["box"][start]
        both = _Both(self.reference, self.evaluator, self.targets, box)
        # the integrator runs as long as its Context is held
        context = self._context(both, box, fields["positions"][start], seed)
        integrator = context.getIntegrator()
        kept: list[tuple[NDArray[np.float32], NDArray[np.float32], float]] = []
        last, step, ended = 0, 0, "steps"
        for step in range(1, config.steps + 1):
            try:
                integrator.step(1)
            except openmm.OpenMMException as error:
                if not isinstance(both.failure, UnstableError):
                    raise both.failure or error from None
                ended = "not finite"
                break
            if not np.isfinite(both.error):
                ended = "not finite"
                break
            if both.largest > self.max_force:
                ended = "torn"
                break
            if step - last >= config.every or (both.error > config.error and step - last >= config.gap):
                kept.append((both.positions, both.forces.astype(np.float32), both.energy))
                last = step
        shape = (len(kept), *fields["positions"].shape[1:])
        return Visited(
            np.array([one[0] for one in kept], dtype=np.float32).reshape(shape),
            box,
            np.array([one[1] for one in kept], dtype=np.float32).reshape(shape),
            np.array([one[2] for one in kept], dtype=np.float64),
            step,
            ended,
        )

    def _context(
        self, both: _Both, box: NDArray[np.float32], positions: NDArray[np.float32], seed: int
    ) -> openmm.Context:
        config = self.config
        system = openmm.System()
        for mass in self.reference.masses:
            system.addParticle(mass)
        force = openmm.PythonForce(both)
        force.setUsesPeriodicBoundaryConditions(bool(box.any()))
        system.addForce(force)
        system.addForce(openmm.CMMotionRemover())  # action and reaction differ between targets and the rest
        if box.any():
            system.setDefaultPeriodicBoxVectors(*box.astype(np.float64))
        integrator = openmm.LangevinMiddleIntegrator(
            config.temperature * unit.kelvin,
            config.friction_per_ps / unit.picosecond,
            config.timestep_fs * unit.femtosecond,
        )
        integrator.setRandomNumberSeed(seed % 2**30 + 1)
        # the integrator's own work is small; both forces run where they run best
        context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("CPU"))
        context.setPositions(positions.astype(np.float64))
        context.setVelocitiesToTemperature(config.temperature * unit.kelvin, seed % 2**30 + 1)
        return context
