"""Structures, models and contexts that the tests of deploy share."""

from __future__ import annotations

import io
import json
import zipfile
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import openmm
import torch
from openmm import app, unit

from data_pipeline.systems.repair import seed_generators
from forcefield_ml import models
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import CARD_FILE, make_card

FRAGMENT = Path(__file__).parent / "data" / "1aie_351_353.pdb"
AMBER14 = ["amber14-all.xml", "amber14/tip3pfb.xml"]
FORCE_RMS = 500.0  # kJ/mol/nm

CONFIGS: dict[str, dict[str, Any]] = {
    "fast": {"architecture": "fast", "n_channels": 6, "n_layers": 2, "n_basis": 8, "n_units": 4, "n_first_units": 6},
    "tfn": {"architecture": "tfn", "order": 1, "channels": (6, 4, 1), "n_neighbours": 20, "n_basis": 8, "n_units": 4},
}

ENERGY = {**CONFIGS["fast"], "head": "energy"}
"""As fast, but conservative."""


class Molecules(NamedTuple):
    """A structure as OpenMM reads it."""

    topology: app.Topology
    positions: np.ndarray  # (N, 3) nm, exactly representable in float32
    box: np.ndarray | None
    solute: list[int]


class Deployed(NamedTuple):
    """An eager model and its model.pt."""

    eager: torch.nn.Module
    path: Path


def molecules(topology: app.Topology, positions: Any, box: Any) -> Molecules:
    rounded = np.array(positions.value_in_unit(unit.nanometer), dtype=np.float32).astype(float)
    solute = [a.index for a in topology.atoms() if a.residue.name in ("LYS", "ASP", "ALA")]
    return Molecules(topology, rounded, box, solute)


def solvated(dry: Molecules, forcefield: app.ForceField, shape: str, size: float) -> Molecules:
    """Return the tripeptide in water and salt."""
    modeller = app.Modeller(dry.topology, dry.positions * unit.nanometer)
    vectors = np.array(
        {
            "cube": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
            "dodecahedron": [[1, 0, 0], [0, 1, 0], [0.5, 0.5, 0.5**0.5]],
        }[shape]
    )
    box = (size * vectors).astype(np.float32).astype(float)
    seed_generators(1)  # which waters become ions
    modeller.addSolvent(
        forcefield, boxVectors=[openmm.Vec3(*row) for row in box] * unit.nanometer, ionicStrength=0.4 * unit.molar
    )
    return molecules(modeller.topology, modeller.positions, box)


def make_model(name: str) -> torch.nn.Module:
    """Return an eager model with seeded random weights, scaled to forces of a molecule's size."""
    torch.manual_seed(5)
    model = models.build({**CONFIGS, "energy": ENERGY}[name]).eval()
    positions = torch.rand(100, 3, generator=torch.Generator().manual_seed(0))  # nm, the density of water
    with torch.no_grad():
        neighbours = model.search()(positions, None)
        species = torch.tensor([1, 1, 8, 6, 7] * 20)
        forces = model(models.Atoms(species), neighbours, [100] * model.capabilities.n_layers).forces
    model.set_scale(FORCE_RMS / float(forces.square().mean().sqrt()))
    return model


@lru_cache(maxsize=1)
def fast_file() -> bytes:
    """Return the fast model as model.pt."""
    with TemporaryDirectory() as folder:
        model = make_model("fast")
        return bundle.write(model, make_card(model), Path(folder) / "model.pt").read_bytes()


def write_model(folder: Path, **card: Any) -> Path:
    """Write the fast model with another card, which is put in place of the first: compiling anew takes longer."""
    path = folder / "model.pt"
    with zipfile.ZipFile(io.BytesIO(fast_file())) as old, zipfile.ZipFile(path, "w") as new:
        text = json.dumps(make_card(make_model("fast"), **card)).encode()
        for item in old.infolist():
            new.writestr(item, text if item.filename.endswith(CARD_FILE) else old.read(item))
    return path


def eager_forces(model: torch.nn.Module, molecules: Molecules) -> np.ndarray:
    """Return the eager float32 model's forces on every atom, by its own search on float32 positions."""
    species = torch.tensor([a.element.atomic_number for a in molecules.topology.atoms()])
    positions = torch.tensor(molecules.positions, dtype=torch.float32)
    box = None if molecules.box is None else torch.tensor(molecules.box, dtype=torch.float32)
    with torch.no_grad():
        neighbours = model.search()(positions, box)
        layers = [len(species)] * model.capabilities.n_layers
        return model(models.Atoms(species), neighbours, layers).forces.double().numpy()


def context_of(system: openmm.System, molecules: Molecules, platform: str) -> openmm.Context:
    """Return a Context at the molecules' positions."""
    properties = {"Threads": "1"} if platform == "CPU" else {}
    context = openmm.Context(
        system, openmm.VerletIntegrator(0.0005), openmm.Platform.getPlatformByName(platform), properties
    )
    context.setPositions(molecules.positions)
    return context


def forces_of(context: openmm.Context, **options: Any) -> np.ndarray:
    """Return all forces, (N, 3) kJ/mol/nm."""
    return context.getState(forces=True, **options).getForces(asNumpy=True)._value


def bare_system(molecules: Molecules) -> openmm.System:
    """Return a System of these particles without forces."""
    system = openmm.System()
    for atom in molecules.topology.atoms():
        system.addParticle(atom.element.mass)
    if molecules.box is not None:
        system.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in molecules.box))
    return system


def mm_system(molecules: Molecules, forcefield: app.ForceField, **options: Any) -> openmm.System:
    """Return AMBER14 with PME in a box, without a cutoff in vacuum; flexible unless asked otherwise."""
    method = {"nonbondedMethod": app.NoCutoff}
    if molecules.box is not None:
        method = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.8 * unit.nanometer}
    flexible = {"constraints": None, "rigidWater": False, "removeCMMotion": False}
    return forcefield.createSystem(molecules.topology, **{**method, **flexible, **options})


def per_atom(found: np.ndarray, expected: np.ndarray, scale: float) -> float:
    """Return the largest |found - expected| of an atom over a scale."""
    return float(np.linalg.norm(found - expected, axis=1).max() / scale)
