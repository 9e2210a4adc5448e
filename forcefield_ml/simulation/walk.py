"""Dynamics of one entry with a model's force, the reference computed beside it at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openmm
import torch
from numpy.typing import NDArray
from openmm import unit
from pydantic import Field
from torch import Tensor

from data_pipeline.config import entry_seed
from data_pipeline.dataset.pack import PackedEntry
from data_pipeline.dataset.tally import as_sampled
from forcefield_ml.bonded.bound import bound_terms
from forcefield_ml.config import StrictConfig
from forcefield_ml.data import Target
from forcefield_ml.deploy.force.evaluator import Evaluator
from forcefield_ml.errors import UnstableError
from forcefield_ml.models.model import Model
from forcefield_ml.nn.atom_types import bonds_among
from forcefield_ml.nn.embedding import types_of
from forcefield_ml.simulation.reference import Reference, Truth


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
        Why the run ended: "steps", "torn" (a reference force, or the part of it that is learnt, beyond the pipeline's
        limit) or "not finite".
    """

    positions: NDArray[np.float32]
    box: NDArray[np.float32]
    forces: NDArray[np.float32]
    energy: NDArray[np.float64]
    steps: int
    ended: str


@dataclass
class Both:
    """What the dynamics calls: the model's force on its targets, the reference's elsewhere; keeps what it saw.

    Parameters
    ----------
    reference
        Of the entry.
    evaluate
        The network, on the n atoms that it sees.
    seen, targets
        (N,) bool, the atoms that the network sees, and those that get its force.
    box
        (3, 3) nm, of the whole system.
    network_box
        (3, 3) nm, of what the network sees; None for a vacuum.
    """

    reference: Reference
    evaluate: Evaluator
    seen: NDArray[np.bool_]
    targets: NDArray[np.bool_]
    box: NDArray[np.float32]
    network_box: Tensor | None
    positions: NDArray[np.float32] = field(init=False)
    truth: Truth = field(init=False)
    error: float = field(init=False, default=0.0)
    largest: float = field(init=False, default=0.0)
    failure: BaseException | None = field(init=False, default=None)

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        """Return no energy, and the forces (N, 3), as PythonForce wants them."""
        try:
            return 0.0, self.acting(state.getPositions(asNumpy=True)._value)
        except BaseException as failure:  # on its way through OpenMM it loses its type, Ctrl-C its message, too
            self.failure = failure
            raise

    def acting(self, positions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the forces (N, 3) that act at positions (N, 3), nm and kJ/mol/nm."""
        # rounded as the dataset holds them, so that positions and forces belong together
        self.positions = positions.astype(np.float32)
        if not np.isfinite(self.positions).all():
            raise UnstableError("positions are not finite")
        self.truth = self.reference(self.positions, self.box)
        total, supplied = self.truth.forces[self.targets], self.truth.supplied[self.targets]
        seen = torch.from_numpy(self.positions[self.seen].astype(np.float64))
        predicted = self.evaluate(seen, self.network_box).forces
        assert predicted is not None  # the card says so
        acting = self.truth.forces.copy()
        acting[self.targets] = predicted.double().numpy() + supplied
        self.error = float(np.linalg.norm(acting[self.targets] - total, axis=1).max())
        self.largest = float(max(np.linalg.norm(one, axis=1).max() for one in (total, total - supplied)))
        return acting


def starts(fields: Mapping[str, NDArray[Any]]) -> NDArray[np.intp]:
    """Return the frames of an entry from which a run may begin.

    Those as sampled, for a displaced copy would begin with thousands of kelvin in some bonds; all, where there is
    nothing else.

    Parameters
    ----------
    fields
        Of the entry, as the dataset has them.
    """
    sampled = np.flatnonzero(as_sampled(fields))
    return sampled if len(sampled) else np.arange(len(fields["positions"]))


class Walk:
    """Dynamics of one entry."""

    def __init__(
        self,
        config: ExploreConfig,
        entry: PackedEntry,
        reference: Reference,
        model: Model,
        target: Target,
        max_force: float,
    ) -> None:
        self.config, self.entry, self.reference, self.max_force = config, entry, reference, max_force
        mask = entry.fields["target_mask"].astype(bool)
        self.targets = np.ones_like(mask) if target.atoms == "all" else mask
        self.alone = target.alone
        self.seen = mask if target.alone else np.ones_like(mask)
        types, species = types_of(model), entry.fields["species"][self.seen].astype(np.int64)
        bonds = bonds_among(entry.fields["bonds"], self.seen)
        codes = species if types is None else types.codes(species, bonds)
        self.evaluator = Evaluator(
            model,
            torch.from_numpy(codes),
            torch.from_numpy(self.targets[self.seen]),
            terms=bound_terms(model, species, bonds, self.targets[self.seen]),
        )

    def run(self, number: int) -> Visited:
        """Return what the run of this number visits; it starts from a frame drawn by the seed."""
        config, fields = self.config, self.entry.fields
        seed = entry_seed(config.seed + number, self.entry.name)
        start = int(np.random.default_rng(seed).choice(starts(fields)))
        both = self.at(start)
        box = both.box
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
                kept.append((both.positions, both.truth.forces.astype(np.float32), both.truth.energy))
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

    def at(self, frame: int) -> Both:
        """Return what gives the forces of dynamics in the box of a frame."""
        box = self.entry.fields["box"][frame]
        # a solute alone is in a vacuum, as in training
        network_box = torch.from_numpy(box.astype(np.float64)) if box.any() and not self.alone else None
        return Both(self.reference, self.evaluator, self.seen, self.targets, box, network_box)

    def _context(
        self, both: Both, box: NDArray[np.float32], positions: NDArray[np.float32], seed: int
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
