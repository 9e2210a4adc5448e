"""A model with bonded terms on real labels: fitted to AMBER's forces, exported, and driven as OpenMM drives it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest

import forcefield_ml
from data_pipeline import schema
from data_pipeline.config import PipelineConfig
from data_pipeline.dataset.check import check, read_entries
from data_pipeline.dataset.check_entry import relative_error
from data_pipeline.dataset.recompute import topology_of
from forcefield_ml.bonded import find_terms
from forcefield_ml.bonded.fit import fit
from forcefield_ml.bonded.module import table_of
from forcefield_ml.config import parse_config
from forcefield_ml.data import Target
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.simulation.explore import explore
from forcefield_ml.simulation.reference import Reference
from forcefield_ml.simulation.walk import ExploreConfig, Walk
from forcefield_ml.training import loop, terms
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.evaluate import evaluate

NETWORK = {"architecture": "fast", "n_channels": 4, "n_layers": 2, "n_basis": 4, "n_units": 4, "bonded": True}

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


@pytest.fixture(scope="module")
def data(regenerated: Path) -> Path:
    """The pipeline's dataset of three entries."""
    return regenerated / "dataset.h5"


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt of a few batches with bonded terms."""
    folder = tmp_path_factory.mktemp("bonded")
    run: dict[str, Any] = {"dataset": data, "output": folder / "run", "model": NETWORK, "max_batches": 3}
    with pytest.MonkeyPatch.context() as patch:  # of one small frame: most kinds are rare
        patch.setattr(terms, "fit", partial(fit, fewest=1))
        checkpoint = loop.train(parse_config(TrainingConfig, run | {"targets_per_batch": 50}), quiet=True).checkpoint
    return bundle.export(checkpoint, folder / "model.pt")


def test_terms_of_proteins_are_most_of_their_force(model: Path, data: Path) -> None:
    """From one thermal frame of each training protein: peptide bonds as stiff and as long as AMBER has them."""
    found = evaluate(model, data, "train", quiet=True)
    table = table_of(bundle.read(model)[1])
    with schema.open_dataset(data) as file:
        entry = next(one for one in read_entries(file) if one.attributes["split"] == "train")
    species, bonds = entry.fields["species"], entry.fields["bonds"]
    mask = entry.fields["target_mask"].astype(bool)
    terms = find_terms(species, bonds)["bond"]
    values = table.values_of("bond", terms)
    elements = np.sort(species[terms.atoms], axis=1)
    names = entry.fields["atom_names"]
    carbonyl = mask[terms.atoms].all(axis=1) & (elements == [6, 8]).all(axis=1)
    carbonyl &= np.isin(names[terms.atoms].astype(str), ["C", "O"]).all(axis=1)
    assert found["tensor"] < 0.4 * found["naive"]["tensor"] and carbonyl.sum() > 10
    stiffness, lengths = values[carbonyl, 0], values[carbonyl, 1] / values[carbonyl, 0]
    assert np.median(stiffness) == pytest.approx(476976.0, rel=0.05)
    assert np.median(lengths) == pytest.approx(0.1229, abs=0.001)


def test_it_is_driven_as_openmm_drives_it(model: Path, data: Path) -> None:
    """The force of the dynamics is that of the deployed model in mode `solute`: with terms, on solute atoms alone."""
    with schema.open_dataset(data) as file:
        label = PipelineConfig.model_validate_json(str(file.attrs["config"])).label
        entry = next(one for one in read_entries(file) if one.attributes["split"] == "train")
    config = parse_config(ExploreConfig, {"model": model, "dataset": data, "output": data, "steps": 2, "every": 1})
    card, module, _ = bundle.read(model)
    walk = Walk(
        config,
        entry,
        Reference(entry, label, "total", "CPU"),
        bundle.eager(card, module),
        Target("total", "solute"),
        label.max_force,
    )
    positions = entry.fields["positions"][0]
    acting = walk.at(0).acting(positions.astype(np.float64))
    topology = topology_of(entry.fields)
    system = forcefield_ml.load(model).add_to_system(
        label.reference.build(topology), topology, mode="solute", backend="pythonforce", mm_platform="CPU"
    )
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(positions)
    deployed = context.getState(forces=True).getForces(asNumpy=True)._value
    mask = entry.fields["target_mask"].astype(bool)
    assert relative_error(acting[mask], deployed[mask]) < 1e-4
    assert relative_error(acting[mask], entry.fields["forces"][0][mask]) > 0.01


@pytest.mark.slow
def test_it_explores(model: Path, data: Path, tmp_path: Path) -> None:
    """Frames that it visits are labelled as the pipeline labels."""
    values = {"model": model, "dataset": data, "output": tmp_path / "v.h5", "steps": 4, "every": 2, "error": 1e9}
    result = explore(parse_config(ExploreConfig, values), quiet=True)
    assert result["frames"] >= 2 and not check(tmp_path / "v.h5", recompute=1).problems
