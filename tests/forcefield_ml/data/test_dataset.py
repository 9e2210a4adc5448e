"""Reading dataset.h5: what is in it, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from forcefield_ml.data import ForceDataset
from forcefield_ml.errors import DatasetError


def test_splits_hold_their_own_entries(dataset_path):
    """Each split gives its entries' frames, in order of name, as written."""
    dataset = ForceDataset(dataset_path, "test")
    assert [(entry.name, frame) for entry, frame in dataset.index] == [
        (name, frame) for name in ("5eee", "6fff") for frame in (0, 1)
    ]
    with h5py.File(dataset_path) as file:
        group = file["entries/6fff"]
        sample = dataset[3]
        assert np.array_equal(sample.positions, group["positions"][1])
        assert np.array_equal(sample.forces, group["forces"][1])
        assert sample.entry.sequence == group.attrs["sequence"]
        assert np.array_equal(sample.entry.target_mask, group["target_mask"][:])
    assert sample.box is not None and sample.box.dtype == np.float32


def test_residue_names_of_a_split(dataset_path, tmp_path):
    """The residues of all entries of the split, and of no other, water included."""
    copy = tmp_path / "copy.h5"
    shutil.copy(dataset_path, copy)
    with h5py.File(copy, "r+") as file:
        for name, residue in (("1aaa", b"HOH"), ("2bbb", b"LYS"), ("5eee", b"TRP")):
            file[f"entries/{name}/residue_names"][0] = residue
    assert ForceDataset(copy).residue_names() == ["ALA", "HOH", "LYS"]
    assert ForceDataset(copy, "test").residue_names() == ["ALA", "TRP"]
    with h5py.File(copy, "r+") as file:
        del file["entries/1aaa/residue_names"]
    with pytest.raises(DatasetError, match="damaged"):
        ForceDataset(copy).residue_names()


def test_scale_is_the_root_mean_square_of_target_forces(dataset_path):
    """Solvent does not count, and each target atom counts once."""
    squares = []
    with h5py.File(dataset_path) as file:
        for group in file["entries"].values():
            if group.attrs["split"] == "train":
                squares.append((group["forces"][:].astype(float)[:, group["target_mask"][:]] ** 2).sum(-1).ravel())
    expected = np.sqrt(np.concatenate(squares).mean())
    assert ForceDataset(dataset_path).rms_target_force() == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def copy(dataset_path, tmp_path: Path) -> Path:
    return Path(shutil.copy(dataset_path, tmp_path / "dataset.h5"))


def test_other_files_are_refused(copy, tmp_path):
    """Missing, damaged, foreign, another schema version, no such split: each has its message."""
    with pytest.raises(DatasetError, match="Did you mean 'train'"):
        ForceDataset(copy, "trian")
    with pytest.raises(DatasetError, match="data-pipeline run"):
        ForceDataset(tmp_path / "none.h5")
    with h5py.File(copy, "r+") as file:
        file.attrs["schema_version"] = 99
    with pytest.raises(DatasetError, match="schema version 99"):
        ForceDataset(copy)
    with h5py.File(copy, "r+") as file:
        file.attrs["format"] = "other"
    with pytest.raises(DatasetError, match="'other'"):
        ForceDataset(copy)
    copy.write_bytes(copy.read_bytes()[:3000])
    with pytest.raises(DatasetError, match="damaged"):
        ForceDataset(copy)


def test_missing_fields_and_empty_splits_are_named(copy):
    """A field that is not there, targets that are not marked, a split without frames."""
    with h5py.File(copy, "r+") as file:
        file["entries/4ddd"].attrs["split"] = "test"
    with pytest.raises(DatasetError, match="'validation'; it has some in test, train"):
        ForceDataset(copy, "validation").require_frames()
    with h5py.File(copy, "r+") as file:
        del file["entries/1aaa/forces"]
    with pytest.raises(DatasetError, match="damaged"):
        ForceDataset(copy)[0]
    with h5py.File(copy, "r+") as file:
        file["entries/1aaa/target_mask"][:] = False
    with pytest.raises(DatasetError, match=r"1aaa .* no target atoms"):
        ForceDataset(copy)


def test_unknown_elements_are_named(dataset_path):
    """An element that the model lacks is named with the entry, before anything runs."""
    dataset = ForceDataset(dataset_path)
    dataset.require_species([1, 6, 7, 8, 11, 16, 17])
    with pytest.raises(DatasetError, match=r"1aaa .*\[11, 17\]"):
        dataset.require_species([1, 6, 7, 8])


def test_displaced_frames_train_but_do_not_judge(copy):
    """All frames of the training split serve, elsewhere those as sampled; a file without the field is as sampled."""

    def frames(split: str) -> list[int]:
        dataset = ForceDataset(copy, split)
        dataset.close()
        return [frame for _, frame in dataset.index]

    n_train, n_test = len(frames("train")) // 2, len(frames("test")) // 2
    with h5py.File(copy, "a") as file:
        for group in file["entries"].values():
            group["displacement"][:] = [0.0, 0.005]
    assert frames("train") == [0, 1] * n_train
    assert frames("test") == [0] * n_test
    with h5py.File(copy, "a") as file:
        for group in file["entries"].values():
            del group["displacement"]
    assert frames("test") == [0, 1] * n_test
