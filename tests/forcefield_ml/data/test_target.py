"""What is learnt, on which atoms, and what is added before it is judged."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS, write_dataset

from data_pipeline.schema import FORCES
from forcefield_ml import models
from forcefield_ml.data import BatchSource, ForceDataset, Target
from forcefield_ml.data.batch import ranking
from forcefield_ml.data.target import TARGET_NAMES
from forcefield_ml.errors import ConfigError, DatasetError


@pytest.fixture
def parts_path(tmp_path: Path) -> Path:
    """Return a dataset with every part."""
    return write_dataset(tmp_path / "parts.h5", {"1aaa": "train", "2bbb": "test"}, parts=True)


@pytest.mark.parametrize("name", [name for name in TARGET_NAMES if Target(name).task == FORCES])
def test_learnt_and_supplied_are_the_fields_of_the_file(parts_path, name):
    """Each target is its field or difference; with what is supplied it is the total, or the solute's own force."""
    dataset = ForceDataset(parts_path, "test", Target(name))
    sample = dataset[1]
    with h5py.File(parts_path) as file:
        group = file["entries/2bbb"]
        fields = {key: group[key][1] for key in group if key.startswith("forces")}
        mask = group["target_mask"][:]
    expected = {
        "total": (fields["forces"], None),
        "total_minus_reciprocal": (fields["forces"] - fields["forces_reciprocal"], fields["forces_reciprocal"]),
        "solute_alone": (fields["forces_solute"][mask], None),
        "reference_minus_mm": (fields["forces_minus_mm"], fields["forces"] - fields["forces_minus_mm"]),
    }[name]
    assert np.array_equal(sample.forces, expected[0])
    assert (sample.supplied is None) == (expected[1] is None)
    if expected[1] is not None:
        assert np.array_equal(sample.supplied, expected[1])
        assert np.allclose(sample.forces + sample.supplied, fields["forces"], rtol=1e-5, atol=1e-3)
    assert dataset.reciprocal() == (
        {"alpha": 4.5, "force_field": ["analytic"]} if name == "total_minus_reciprocal" else None
    )
    assert dataset.mm_force_field() == (["mm.xml"] if name == "reference_minus_mm" else None)


def test_a_solute_alone_has_no_water_around_it(parts_path):
    """Entry, positions and neighbours are of the marked atoms only, without a box; so are the forces."""
    dataset, whole = ForceDataset(parts_path, "test", Target("solute_alone")), ForceDataset(parts_path, "test")
    sample, full = dataset[0], whole[0]
    mask = full.entry.target_mask
    assert sample.box is None and full.box is not None
    assert np.array_equal(sample.positions, full.positions[mask])
    assert np.array_equal(sample.entry.species, full.entry.species[mask])
    assert sample.entry.target_mask.all() and sample.entry.marked.all() and len(sample.entry.marked) == mask.sum()
    torch.manual_seed(0)
    model = models.build(TINY_MODELS["fast"]).eval()
    source = BatchSource(dataset, model.search(), model.capabilities.n_layers)
    batch = source.whole_frame(0)
    assert len(batch.atoms.species) == mask.sum()
    atoms = models.Atoms(torch.from_numpy(full.entry.species[mask]).long())
    neighbours = model.search()(torch.from_numpy(full.positions[mask]), None)
    with torch.no_grad():
        expected = model(atoms, neighbours, [int(mask.sum())] * model.capabilities.n_layers).forces
        found = model(batch.atoms, batch.neighbours, batch.layer_sizes).forces
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    assert np.array_equal(batch.targets.numpy(), sample.forces)


def test_all_atoms(parts_path):
    """Every atom is a target; the marked ones stay known, and half of the patches have one at their centre."""
    dataset = ForceDataset(parts_path, "train", Target("total", "all"))
    sample = dataset[0]
    assert sample.entry.target_mask.all() and 0.2 < sample.entry.marked.mean() < 0.4
    assert dataset.rms_target_force() == pytest.approx(
        np.sqrt((np.stack([dataset[i].forces for i in range(2)]).astype(float) ** 2).sum(-1).mean()), rel=1e-6
    )
    for share, low, high in ((0.5, 0.4, 0.6), (1.0, 1, 1), (0.0, 0, 0)):
        random = np.random.default_rng(0)
        centres = [ranking(sample, random, share)[0] for _ in range(400)]
        assert low <= sample.entry.marked[centres].mean() <= high
    assert len(set(centres)) > 30


def test_a_part_that_is_missing_is_named_with_the_setting_that_makes_it(dataset_path, parts_path):
    """Without the part there is nothing to learn; the message holds what to write into the pipeline's configuration."""
    for name, part in (
        ("total_minus_reciprocal", "reciprocal"),
        ("solute_alone", "solute"),
        ("reference_minus_mm", "minus_mm"),
    ):
        with pytest.raises(DatasetError, match=rf"target '{name}' needs.*label: {{parts: \[{part}\]}}"):
            ForceDataset(dataset_path, "train", Target(name))
    with h5py.File(parts_path, "a") as file:
        del file["entries/1aaa"].attrs["reciprocal_alpha"]
    with pytest.raises(DatasetError, match=r"1aaa .* lacks reciprocal_alpha"):
        ForceDataset(parts_path, "train", Target("total_minus_reciprocal"))


def test_entries_that_differ_in_alpha_are_refused(tmp_path):
    """One model cannot complete two different sums."""
    path = write_dataset(tmp_path / "parts.h5", {"1aaa": "train", "2bbb": "train"}, parts=True)
    with h5py.File(path, "a") as file:
        file["entries/2bbb"].attrs["reciprocal_alpha"] = 3.0
    with pytest.raises(DatasetError, match=r"3\.0, 4\.5 /nm"):
        ForceDataset(path, "train", Target("total_minus_reciprocal")).reciprocal()


def test_targets_that_no_dataset_holds_are_refused():
    """Names are closed; the solute's own force has no meaning on other atoms."""
    with pytest.raises(ConfigError, match="Did you mean 'solute_alone'"):
        Target("solute_alon")
    with pytest.raises(ConfigError, match="Allowed: all, solute"):
        Target("total", "water")
    with pytest.raises(ConfigError, match="target_atoms must be 'solute'"):
        Target("solute_alone", "all")
