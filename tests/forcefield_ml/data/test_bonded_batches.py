"""Bonded terms in batches: several frames, patches of targets in any order, the same forces as whole systems."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS
from molecule_files import AMIDE, WATER, chosen_table, together, write_molecules

from forcefield_ml import models
from forcefield_ml.bonded.bound import bound_terms
from forcefield_ml.bonded.module import keys_of
from forcefield_ml.data import BatchSource, ForceDataset, JoinedDataset, Target
from forcefield_ml.graph import whole
from forcefield_ml.models.interface import Atoms

NETWORK = TINY_MODELS["fast"] | {"bonded": True, "cutoff": 0.3}
FORCE_TOLERANCE = 1e-5
"""L2 over the targets, relative."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return two entries of two frames."""
    splits = {"1aaa": "train", "2bbb": "train", "3ccc": "validation"}
    return write_molecules(tmp_path_factory.mktemp("liquids") / "dataset.h5", splits, n_frames=2)


@pytest.fixture(scope="module")
def model() -> models.Model:
    """A model with bonded terms of another table than the one that made the forces."""
    torch.manual_seed(0)
    model = models.build(NETWORK).eval()
    assert model.bonded is not None
    model.bonded.set_table(chosen_table(together(AMIDE, WATER), seed=9), 100.0)
    model.set_scale(300.0)
    return model


def on_whole_system(model: models.Model, dataset: ForceDataset, item: int) -> torch.Tensor:
    """Return the forces (N, 3) on every atom of a frame: no shells, no batch, terms of the whole system."""
    sample = dataset[item]
    positions, box = torch.from_numpy(sample.positions), torch.from_numpy(sample.box)
    neighbours = model.search()(positions, box)
    atoms = Atoms(torch.from_numpy(sample.entry.species).long())
    sizes = whole(len(positions), model.capabilities.n_layers)
    terms = bound_terms(model, sample.entry.species, sample.entry.bonds)
    return terms.complete(model(atoms, neighbours, sizes), positions, box, None).forces


@pytest.mark.parametrize("atoms", ["solute", "all"])
@pytest.mark.parametrize(("frames", "targets"), [(1, None), (2, None), (1, 10), (3, 30)])
def test_batch_equals_whole_system(
    path: Path, model: models.Model, atoms: str, frames: int, targets: int | None
) -> None:
    """Each target's force is that of its atom in the whole system; the true forces tell which atom a row is."""
    dataset = ForceDataset(path, "train", Target("total", atoms))
    dataset.encode(None, keys_of(model))
    source = BatchSource(dataset, model.search(), model.capabilities.n_layers, frames, targets, seed=5)
    for number in (0, 3):
        batch = source.batch(number)
        with torch.no_grad():
            network = model(batch.atoms, batch.neighbours, batch.layer_sizes)
            found = model.whole(network, batch.terms).forces
            items = [
                next(i for i, (e, f) in enumerate(dataset.index) if (e.name, f) == (entry, frame))
                for entry, frame in batch.frames
            ]
            pool = torch.cat([on_whole_system(model, dataset, item) for item in items])
        truth = torch.cat([torch.from_numpy(dataset[item].forces) for item in items])
        matches = (batch.targets[:, None] == truth[None]).all(-1)
        single = matches.sum(1) == 1  # a frame twice in a batch has each label twice
        assert single.float().mean() > 0.9 or len(set(batch.frames)) < len(batch.frames)
        expected = pool[matches.float().argmax(1)]
        assert len(found) == (targets or len(found)) // frames * frames if targets else len(found) > 100
        assert (found - expected).norm() < FORCE_TOLERANCE * expected.norm()
        assert (network.forces - expected).norm() > 0.1 * expected.norm(), "bonded terms are most of it"


def test_datasets_joined_have_terms(path: Path, model: models.Model, tmp_path: Path) -> None:
    """Frames of extra datasets bring theirs; without keys there are none."""
    extra = write_molecules(tmp_path / "extra.h5", {"1aaa": "train", "2bbb": "train"}, n_frames=1, seed=8)
    import h5py

    with h5py.File(extra, "r+") as file:
        file.attrs["content_sha256"] = "e" * 64
    joined = JoinedDataset(path, [extra])
    assert all(sample.entry.terms is None for sample in (joined[0], joined[len(joined) - 1]))
    joined.encode(None, keys_of(model))
    last = joined[len(joined) - 1]
    assert last.entry.source == str(extra) and last.entry.terms is not None
    assert np.array_equal(last.entry.terms.atoms["bond"].shape, joined[0].entry.terms.atoms["bond"].shape)
    source = BatchSource(joined, model.search(), model.capabilities.n_layers)
    batch = source.whole_frame(len(joined) - 1)
    with torch.no_grad():
        network = model(batch.atoms, batch.neighbours, batch.layer_sizes)
        found = model.whole(network, batch.terms).forces
        expected = on_whole_system(model, joined, len(joined) - 1)[torch.from_numpy(last.entry.target_mask)]
    assert (found - expected).norm() < FORCE_TOLERANCE * expected.norm()


def test_a_model_without_terms_takes_no_notice(path: Path) -> None:
    """Batches carry none, and the forces are the network's."""
    dataset = ForceDataset(path)
    dataset.encode(None, keys_of(models.build(TINY_MODELS["fast"])))
    source = BatchSource(dataset, models.build(TINY_MODELS["fast"] | {"cutoff": 0.3}).search(), 2)
    assert source.batch(0).terms is None
