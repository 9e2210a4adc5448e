"""Classes of atoms and the worst of them: by hand, on a made-up peptide in a box."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from dataset_files import write_dataset

from forcefield_ml.data import ForceDataset, Target
from forcefield_ml.training import predict
from forcefield_ml.units import MEV_PER_ANGSTROM
from forcefield_ml.validation.forces import groups
from forcefield_ml.validation.forces.groups import by_class, protein_atoms
from forcefield_ml.validation.forces.picture import seen_flat
from forcefield_ml.validation.forces.worst import worst_atoms

PEPTIDE = [  # name, residue, charge
    ("N", "LYS", 0.1), ("CA", "LYS", 0.0), ("C", "LYS", 0.5), ("O", "LYS", -0.5), ("NZ", "LYS", 0.9),
    ("N", "HIE", -0.4), ("CA", "HIE", 0.0), ("HA", "HIE", 0.1), ("C", "HIE", 0.6), ("O", "HIE", -0.5),
    ("CG", "HIE", 0.2), ("C", "NME", 0.0),
]  # fmt: skip


@pytest.fixture(scope="module")
def peptide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset whose target atoms, among others, are a lysine, a neutral histidine and a cap."""
    path = write_dataset(tmp_path_factory.mktemp("peptide") / "dataset.h5", {"1aaa": "test"}, n_atoms=36)
    with h5py.File(path, "r+") as file:
        group = file["entries/1aaa"]
        marked = np.flatnonzero(group["target_mask"][:])
        assert len(marked) == len(PEPTIDE) and marked[-1] > len(PEPTIDE), "marked atoms are not the leading ones"
        names, residues = group["atom_names"][:], group["residue_names"][:]
        index, charges = group["residue_index"][:] + 100, group["charges"][:]
        for atom, (name, residue, charge) in zip(marked, PEPTIDE, strict=True):
            names[atom], residues[atom], charges[atom] = name, residue, charge
            index[atom] = ["LYS", "HIE", "NME"].index(residue)
        for field, values in zip(
            ("atom_names", "residue_names", "residue_index", "charges"), (names, residues, index, charges), strict=True
        ):
            group[field][...] = values
        del group["bonds"]
        group["bonds"] = np.array([[marked[0], marked[1]], [marked[1], marked[2]], [marked[2], 0 if marked[0] else 1]])
    return path


def test_classes_by_hand(peptide: Path) -> None:
    """Protonation states are one residue, charges are those of whole residues, caps have no place."""
    found = protein_atoms(ForceDataset(peptide, "test"), "1aaa")
    assert found.classes["residue"].tolist() == ["LYS"] * 5 + ["HIS"] * 6 + ["NME"]
    side = [name for name, part in zip(found.name, found.classes["part"], strict=True) if part == "side chain"]
    assert side == ["NZ", "CG"]
    assert found.classes["charge"].tolist() == ["charged"] * 5 + ["neutral"] * 7
    assert found.classes["place"][-1] == "" and set(found.classes["place"][:-1]) <= {"buried", "exposed"}
    assert found.classes["end"].tolist() == ["first"] * 5 + ["inside"] * 6 + ["last"]
    assert found.label(4) == "LYS1:NZ" and found.label(7) == "HIS2:HA"
    assert found.bonds.tolist() == [[0, 1], [1, 2]], "bonds to other atoms are not the protein's"


def test_buried_means_surrounded() -> None:
    """A glycine in the middle of a shell of glycines has no area; those outside have, whatever their order."""
    directions = np.random.default_rng(0).normal(size=(250, 3))
    shell = 0.45 * directions / np.linalg.norm(directions, axis=1, keepdims=True)
    inside = np.array([[0.0, 0, 0], [0.05, 0, 0]])
    positions = np.concatenate([shell, inside]).astype(np.float32)
    residue = np.concatenate([np.arange(250), [250, 250]])
    places = groups._places(np.full(252, 6), residue, np.full(252, "GLY"), positions)
    assert places[-2:].tolist() == ["buried", "buried"]
    alone = groups._places(np.full(2, 6), np.zeros(2, int), np.full(2, "GLY"), inside.astype(np.float32))
    assert alone.tolist() == ["exposed", "exposed"]


def test_metrics_belong_to_their_class(peptide: Path) -> None:
    """An error put on one atom shows in its classes and in no other, and names that atom as the worst."""
    frames = ForceDataset(peptide, "test")
    sample = frames[0]
    described = {0: protein_atoms(frames, "1aaa")}
    target = np.tile(sample.forces[sample.entry.target_mask], (2, 1)).astype(np.float64)
    atom = np.tile(frames.target_atoms(sample.entry), 2)
    predicted = target.copy()
    predicted[4] += [30.0, 0, 0]  # lysine's NZ in the first frame; in the second it is right
    predicted[12 + 8] += [0, 20.0, 0]
    rows = (predicted, target, np.zeros(24, dtype=int), atom, described)
    found = by_class(*rows)
    assert found["residue"]["LYS"]["tensor"] == pytest.approx(30 / 10 * MEV_PER_ANGSTROM)
    assert found["residue"]["HIS"]["tensor"] == pytest.approx(20 / 12 * MEV_PER_ANGSTROM)
    assert found["residue"]["NME"]["tensor"] == 0 and found["residue"]["NME"]["n_atoms"] == 2
    assert found["part"]["side chain"]["tensor"] == pytest.approx(30 / 4 * MEV_PER_ANGSTROM)
    assert found["charge"]["neutral"]["tensor"] == pytest.approx(20 / 14 * MEV_PER_ANGSTROM)
    assert "" not in found["place"] and found["end"]["last"]["tensor"] == 0
    assert found["end"]["first"]["tensor"] == pytest.approx(30 / 10 * MEV_PER_ANGSTROM)
    worst = worst_atoms(*rows, ["1aaa"], count=3)
    assert [row["atom"] for row in worst[:2]] == ["LYS1:NZ", "HIS2:C"] and len(worst) == 3
    assert worst[0]["error"] == pytest.approx(15 * MEV_PER_ANGSTROM) and worst[0]["frames"] == 2
    magnitudes = worst_atoms(np.linalg.norm(predicted, axis=1), *rows[1:], ["1aaa"])
    gained = abs(np.linalg.norm(predicted[4]) - np.linalg.norm(target[4])) / 2
    found = next(row for row in magnitudes if row["atom"] == "LYS1:NZ")
    assert found["error"] == pytest.approx(gained * MEV_PER_ANGSTROM)


@pytest.mark.parametrize("target", [Target(), Target("solute_alone")])
def test_predictions_know_their_atoms(target: Target, tmp_path: Path) -> None:
    """Numbers of atoms are the file's, also for a network that sees the marked atoms alone."""
    path = write_dataset(tmp_path / "dataset.h5", {"1aaa": "test", "2bbb": "test"}, parts=True)
    frames = ForceDataset(path, "test", target)

    def truth(item: int) -> predict.Prediction:
        import torch

        sample = frames[item]
        return predict.Prediction(torch.from_numpy(sample.forces[sample.entry.target_mask]), None, None)

    found = predict.run(frames, truth)
    field = "forces_solute" if target.alone else "forces"
    with h5py.File(path) as file:
        for which, name in enumerate(found.entries):
            for row in np.flatnonzero(found.entry == which):
                expected = file["entries"][name][field][found.frame[row], found.atom[row]]
                np.testing.assert_array_equal(found.predicted[row], expected)
    assert set(found.frame.tolist()) == {0, 1}


@pytest.mark.parametrize("seed", range(6))  # the singular vectors of some are a mirror image
def test_view_is_a_rotation(seed: int) -> None:
    """Turned, not mirrored: distances and handedness stay; the depth is the thinnest direction."""
    positions = np.random.default_rng(seed).normal(size=(20, 3)) * [1.0, 5.0, 3.0]
    flat = seen_flat(positions)
    assert np.ptp(flat, axis=0).argmin() == 2

    def handed(x: np.ndarray) -> float:
        return float(np.linalg.det(x[1:4] - x[0]))

    assert handed(flat) == pytest.approx(handed(positions))
