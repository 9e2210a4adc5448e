"""Symmetry and Jacobian of a model with bonded terms: the terms turn and are renumbered with their atoms."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS
from molecule_files import AMIDE, WATER, chosen_table, openmm_forces, openmm_system, together, write_molecules

from forcefield_ml import models
from forcefield_ml.bonded.bound import BoundTerms, bound_terms
from forcefield_ml.data import ForceDataset, Sample
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.deploy.model_file.script import DeployableModel
from forcefield_ml.validation.symmetry import Probed, asymmetry, load_module, single

ROUNDING = 1e-5
"""Relative: float32."""


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """A frame of amides in water, each whole: without the box, too, bonds are short."""
    path = write_molecules(tmp_path_factory.mktemp("liquid") / "d.h5", {"1aaa": "test"}, n_frames=1, parts=True)
    return ForceDataset(path, "test")[0]


@pytest.fixture(scope="module")
def model() -> models.Model:
    """A network of small forces beside terms of amide and water."""
    torch.manual_seed(3)
    model = models.build(TINY_MODELS["fast"] | {"bonded": True, "cutoff": 0.35}).eval()
    assert model.bonded is not None
    model.bonded.set_table(chosen_table(together(AMIDE, WATER), seed=5), 10.0)
    model.set_scale(50.0)
    return model


@pytest.fixture(scope="module")
def path(model: models.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model's file."""
    return bundle.write(model, make_card(model), tmp_path_factory.mktemp("model") / "model.pt")


def test_symmetric_to_rounding(path: Path, sample: Sample) -> None:
    """Rotated, reflected and renumbered, an exported model gives the same forces."""
    found = single.symmetry(load_module(path), sample)
    assert found is not None
    assert found["rotation_error"] < ROUNDING and found["permutation_error"] < ROUNDING


def test_bonds_must_be_renumbered(path: Path, sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: terms of the former numbers on atoms in another order are no small error."""
    original: Any = bound_terms
    monkeypatch.setattr(
        single, "bound_terms", lambda module, species, bonds: original(module, species, sample.entry.bonds)
    )
    found = single.symmetry(load_module(path), sample)
    assert found is not None and found["permutation_error"] > 0.1


def test_probed_forces_are_the_whole_models(path: Path, model: models.Model, sample: Sample) -> None:
    """At the frame, the forces of the block are those of network and terms; OpenMM computes the terms."""
    probed = Probed(load_module(path), sample, most=20)
    table = model.bonded.table()
    species, box = sample.entry.species, sample.box
    system = openmm_system(table.parameters(species, sample.entry.bonds), species, box)
    terms = openmm_forces(system, sample.positions)[probed.block]
    module = load_module(path).double()
    targets = torch.from_numpy(np.isin(np.arange(len(species)), probed.block))
    with torch.no_grad():
        places = torch.from_numpy(sample.positions.astype(float))
        codes = torch.from_numpy(species.astype(np.int64))
        network = module(codes, places, torch.from_numpy(box.astype(float)), targets).forces.numpy()
        found = probed(probed.positions).numpy()
    assert np.linalg.norm(found - network - terms) < ROUNDING * np.linalg.norm(found)
    assert np.linalg.norm(found - network) > 0.5 * np.linalg.norm(found)


def test_terms_have_a_symmetric_jacobian(model: models.Model, sample: Sample) -> None:
    """Lambda of terms alone is rounding: they are the gradient of an energy; a network of random weights is not."""
    lambdas = []
    for scale in (0.0, 50.0):
        own = copy.deepcopy(model)
        own.set_scale(scale)
        probed = Probed(DeployableModel(own).eval(), sample, most=12)
        found = asymmetry(probed, probed.positions, 16)
        assert found["jacobian_norm"] > 1e4
        lambdas.append(found["lambda"])
    assert lambdas[0] < 1e-9 < 1e-6 < lambdas[1]


def test_jacobian_by_differences(path: Path, sample: Sample) -> None:
    """Derivatives through the terms are those of finite differences."""
    probed = Probed(load_module(path), sample, most=12)
    x = probed.positions
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    _, slope = torch.autograd.functional.jvp(probed, x, direction)
    with torch.no_grad():
        step = 1e-6
        expected = (probed(x + step * direction) - probed(x - step * direction)) / (2 * step)
    assert (slope - expected).norm() < 1e-4 * expected.norm()
    assert isinstance(probed._terms, BoundTerms) and probed._terms.n_terms > 0
