"""Several datasets as one: every frame once, the first tells what the data are, nothing held back is learnt."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest
from dataset_files import write_dataset

from forcefield_ml.data import ForceDataset, JoinedDataset, Target
from forcefield_ml.data.joined import LONGEST_PEPTIDE
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
    with closing(JoinedDataset(first, [visited])) as joined, closing(ForceDataset(first)) as one:
        assert joined.rms_target_force() == one.rms_target_force()
        assert joined.protocol == one.protocol and joined.sequences() == one.sequences()
        with closing(JoinedDataset(first)) as alone, closing(JoinedDataset(first, [visited] * 2)) as twice:
            hashes = [alone.content_sha256, joined.content_sha256, twice.content_sha256]
            assert alone.content_sha256 == one.content_sha256 and len(set(hashes)) == 3


def test_other_proteins_are_refused(first: Path, visited: Path, tmp_path: Path) -> None:
    """Whether they are alike to those held back nobody has looked: neither by name nor by sequence do they come in."""
    for name, changes in (("other name", {}), ("other sequence", {"sequence": "ACDEFGHIX"})):
        path = tmp_path / f"{name}.h5"
        write_dataset(path, {"9zzz" if name == "other name" else "1aaa": "train"}, seed=2)
        with h5py.File(path, "r+") as file:
            for key, value in changes.items():
                file["entries/1aaa"].attrs[key] = value
        with pytest.raises(DatasetError, match=r"would train on (9zzz|1aaa), which is no training entry of .*first.h5"):
            JoinedDataset(first, [path])
    held = write_dataset(tmp_path / "held.h5", {"1aaa": "train", "2bbb": "train", "3ccc": "test"}, seed=3)
    with closing(JoinedDataset(first, [held])) as joined:
        assert {entry.name for entry, _ in joined.index} == {"1aaa", "2bbb"}


def test_peptides_may_be_learnt_besides(first: Path, tmp_path: Path) -> None:
    """A chain too short to be alike to any protein; sequences, residues and molecules are told with the others."""
    peptides = write_dataset(tmp_path / "peptides.h5", {"1aaa": "train", "0000": "train"}, seed=2)
    with h5py.File(peptides, "r+") as file:
        file["entries/0000"].attrs["sequence"] = "A" * LONGEST_PEPTIDE
        file["entries/0000/residue_names"][0] = b"ACE"
    with closing(JoinedDataset(first, [peptides, first.with_name("peptides.h5")])) as joined:
        assert joined.sequences() == {"0000": "A" * LONGEST_PEPTIDE, "1aaa": "ACDEFGHIK", "2bbb": "ACDEFGHIKL"}
        assert joined.residue_names() == ["ACE", "ALA"]
        assert len(list(joined.molecules())) == 4, "those that come twice are told once"
    with h5py.File(peptides, "r+") as file:
        file["entries/0000"].attrs["sequence"] = "A" * (LONGEST_PEPTIDE + 1)
    with pytest.raises(DatasetError, match="would train on 0000"):
        JoinedDataset(first, [peptides])


def test_the_dataset_itself_is_no_other(first: Path) -> None:
    """Given twice by mistake its frames would count twice."""
    with pytest.raises(DatasetError, match="is the dataset itself"):
        JoinedDataset(first, [first])


def test_parts_of_other_kinds_do_not_mix(tmp_path: Path) -> None:
    """What is left of the force depends on the Ewald splitting parameter."""
    one, other = (write_dataset(tmp_path / f"{seed}.h5", {"1aaa": "train"}, seed=seed, parts=True) for seed in (0, 1))
    target = Target("total_minus_reciprocal")
    with closing(JoinedDataset(one, [other], target)) as joined:
        assert len(joined) == 4
    with h5py.File(other, "r+") as file:
        file["entries/1aaa"].attrs["reciprocal_alpha"] = 3.0
    with pytest.raises(DatasetError, match=r"a reciprocal part of .*3\.0.*4\.5"):
        JoinedDataset(one, [other], target)


def test_one_truth(first: Path, visited: Path) -> None:
    """Forces of two force fields cannot both be learnt."""
    with h5py.File(visited, "r+") as file:
        file.attrs["force_field"] = "charmm36.xml"
    with pytest.raises(DatasetError, match=r"holds forces of charmm36.xml, .* forces of analytic"):
        JoinedDataset(first, [visited])
