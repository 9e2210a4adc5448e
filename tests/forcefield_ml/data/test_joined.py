"""Several datasets as one: every frame once, the first tells what the data are, nothing held back is learnt."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from dataset_files import write_dataset

from forcefield_ml.data import ForceDataset, JoinedDataset
from forcefield_ml.errors import DatasetError


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A dataset of two training entries and one of validation, of three sequences."""
    return write_dataset(tmp_path / "first.h5", {"1aaa": "train", "2bbb": "train", "3ccc": "validation"})


@pytest.fixture
def visited(tmp_path: Path) -> Path:
    """Other frames of the first training entry."""
    return write_dataset(tmp_path / "visited.h5", {"1aaa": "train"}, n_frames=3, seed=1)


def test_every_frame_once(first: Path, visited: Path) -> None:
    """Frames come in order of dataset, each read from its own file."""
    with (
        closing(JoinedDataset(first, [visited])) as joined,
        closing(ForceDataset(first)) as one,
        closing(ForceDataset(visited)) as other,
    ):
        assert len(joined) == len(one) + len(other) == 4 + 3
        expected = [part[item] for part in (one, other) for item in range(len(part))]
        for item, sample in enumerate(expected):
            assert (joined[item].entry.name, joined[item].frame) == (sample.entry.name, sample.frame)
            np.testing.assert_array_equal(joined[item].positions, sample.positions)
            np.testing.assert_array_equal(joined[item].forces, sample.forces)
        assert [entry.name for entry, _ in joined.index] == [sample.entry.name for sample in expected]


def test_the_first_tells_what_the_data_are(first: Path, visited: Path) -> None:
    """The scale of forces is the first's, however large those of the others are; the hash is of all, in order."""
    with h5py.File(visited, "r+") as file:
        file["entries/1aaa/forces"][...] *= 1000
        file["entries/1aaa/residue_names"][0] = b"CYX"
    with closing(JoinedDataset(first, [visited])) as joined, closing(ForceDataset(first)) as one:
        assert joined.rms_target_force() == one.rms_target_force()
        assert joined.protocol == one.protocol and joined.sequences() == one.sequences()
        assert joined.residue_names() == ["ALA", "CYX"]
        with closing(JoinedDataset(first)) as alone, closing(JoinedDataset(first, [visited, visited])) as twice:
            hashes = [alone.content_sha256, joined.content_sha256, twice.content_sha256]
            assert alone.content_sha256 == one.content_sha256 and len(set(hashes)) == 3


def test_what_is_held_back_is_not_learnt(first: Path, tmp_path: Path) -> None:
    """A sequence of the validation split may not come in through another dataset, under whatever name."""
    leak = write_dataset(tmp_path / "leak.h5", {"0xxx": "train", "1xxx": "train", "9zzz": "train"})
    with pytest.raises(DatasetError, match=r"would train on 9zzz, whose sequence .* keeps for validation"):
        JoinedDataset(first, [leak])
    held = write_dataset(tmp_path / "held.h5", {"1aaa": "train", "2bbb": "train", "3ccc": "test"})
    with closing(JoinedDataset(first, [held])) as joined:
        assert {entry.name for entry, _ in joined.index} == {"1aaa", "2bbb"}


def test_one_truth(first: Path, visited: Path) -> None:
    """Forces of two force fields cannot both be learnt."""
    with h5py.File(visited, "r+") as file:
        file.attrs["force_field"] = "charmm36.xml"
    with pytest.raises(DatasetError, match=r"holds forces of charmm36.xml, .* those of analytic"):
        JoinedDataset(first, [visited])


def test_elements_of_all(first: Path, visited: Path) -> None:
    """An element that only an extra frame holds is noticed."""
    with h5py.File(visited, "r+") as file:
        file["entries/1aaa/species"][0] = 34
    with closing(JoinedDataset(first, [visited])) as joined, pytest.raises(DatasetError, match=r"1aaa .* \[34\]"):
        joined.require_species((1, 6, 7, 8, 11, 17))
