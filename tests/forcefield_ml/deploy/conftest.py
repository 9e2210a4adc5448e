"""A tripeptide in water with ions, models of both architectures with random weights, and their model.pt files."""

from __future__ import annotations

import os

import openmm
import pytest
import torch
from deploy_helpers import AMBER14, CONFIGS, FRAGMENT, Deployed, Molecules, make_model, molecules, solvated
from openmm import app
from pdbfixer import PDBFixer

from data_pipeline.systems.repair import seed_generators
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card

torch.set_num_threads(1)  # the systems are small: threads would only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start


@pytest.fixture(scope="session")
def forcefield() -> app.ForceField:
    """AMBER14 with TIP3P-FB."""
    return app.ForceField(*AMBER14)


@pytest.fixture(scope="session")
def dry(forcefield: app.ForceField) -> Molecules:
    """The tripeptide in vacuum, with hydrogens."""
    platform = openmm.Platform.getPlatformByName("Reference")
    seed_generators(1)  # PDBFixer and Modeller draw from the global ones
    fixer = PDBFixer(str(FRAGMENT), platform=platform)
    fixer.findMissingResidues()
    fixer.findMissingAtoms()
    fixer.addMissingAtoms(seed=1)
    modeller = app.Modeller(fixer.topology, fixer.positions)
    modeller.topology.setPeriodicBoxVectors(None)
    modeller.addHydrogens(forcefield, platform=platform)
    return molecules(modeller.topology, modeller.positions, None)


@pytest.fixture(scope="session")
def wet(dry: Molecules, forcefield: app.ForceField) -> Molecules:
    """The tripeptide in a cubic box of water."""
    return solvated(dry, forcefield, "cube", 1.7)


@pytest.fixture(scope="session")
def triclinic(dry: Molecules, forcefield: app.ForceField) -> Molecules:
    """The tripeptide in a rhombic dodecahedron of water."""
    return solvated(dry, forcefield, "dodecahedron", 1.9)


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Deployed]:
    """Both architectures as model.pt, trained on solute atoms by their card."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name in CONFIGS:
        model = make_model(name)
        made[name] = Deployed(model, bundle.write(model, make_card(model), folder / f"{name}.pt"))
    return made
