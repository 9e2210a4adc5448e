"""RMSD, local RMSD and lDDT against hand-made cases, SciPy's superposition and a brute force."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from rna_files import atom_line, bent, helix, turn, write_pdb
from scipy.spatial.transform import Rotation

from data_pipeline.refinement.structure import read_structure
from forcefield_ml.errors import TopologyError
from forcefield_ml.refinement.scores import DistanceTest, Native, find_native, in_angstrom, local_rmsd, rmsd


def superposed_rmsd(one: np.ndarray, other: np.ndarray) -> float:
    """Return the RMSD by SciPy's superposition."""
    a, b = one - one.mean(axis=0), other - other.mean(axis=0)
    return float(Rotation.align_vectors(a, b)[1] / np.sqrt(len(a)))


def brute_lddt(positions: np.ndarray, native: np.ndarray, residue: np.ndarray) -> float:
    """Return lDDT by its definition, pair by pair."""
    kept = np.zeros(4)
    pairs = 0
    for i, j in combinations(range(len(native)), 2):
        true = np.linalg.norm(native[i] - native[j])
        if residue[i] != residue[j] and true <= 1.5:
            pairs += 1
            kept += abs(np.linalg.norm(positions[i] - positions[j]) - true) < np.array([0.05, 0.1, 0.2, 0.4])
    return float(kept.mean() / pairs)


def test_rmsd_of_a_stretched_pair():
    """Two atoms 1 nm apart that should be 1.2 nm apart are each 0.1 nm off; where and how they lie does not matter."""
    one, other = np.array([[0, 0, 0], [1.0, 0, 0], [0.5, 0, 0]]), np.array([[3, 3, 3.0], [3, 4.2, 3], [3, 3.6, 3]])
    assert rmsd(one, other) == pytest.approx(0.1 * np.sqrt(2 / 3), abs=1e-12)


def test_rmsd_agrees_with_scipy():
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 40, 3))
    assert rmsd(one, other) == pytest.approx(superposed_rmsd(one, other), abs=1e-9)


def test_rmsd_does_not_mirror():
    """A mirror image is another molecule."""
    one = helix(3) / 10
    assert rmsd(one, one * [1, 1, -1]) == pytest.approx(superposed_rmsd(one, one * [1, 1, -1]), abs=1e-9)
    assert rmsd(one, one * [1, 1, -1]) > 0.1


def test_local_rmsd_agrees_with_scipy_atom_by_atom():
    native = helix(4) / 10
    positions = bent(helix(4)) / 10
    found = local_rmsd(positions, native, 12)
    for atom in range(0, len(native), 7):
        near = np.argsort(np.linalg.norm(positions - positions[atom], axis=1))[:12]
        assert found[atom] == pytest.approx(superposed_rmsd(positions[near], native[near]), abs=1e-9)


def test_lddt_by_hand():
    """Of distances 0.5, 1 and 0.5 nm the last two are off by 0.12: kept at 0.2 and 0.4 nm alone."""
    native = np.array([[0, 0, 0], [0.5, 0, 0], [1.0, 0, 0]])
    moved = np.array([[0, 0, 0], [0.5, 0, 0], [1.12, 0, 0]])
    each = np.arange(3)
    assert DistanceTest(native, each).score(moved) == pytest.approx((1 / 3 + 1 / 3 + 1 + 1) / 4)
    # with the first two in one residue, and the third 1.6 nm from the first, the second pair alone counts
    far = np.array([[0, 0, 0], [1.0, 0, 0], [1.6, 0, 0]])
    assert DistanceTest(far, np.array([0, 0, 1])).score(
        np.array([[0, 0, 0], [1.0, 0, 0], [1.9, 0, 0]])
    ) == pytest.approx(0.25)
    assert DistanceTest(native, np.zeros(3)).score(moved) is None


def test_lddt_agrees_with_brute_force():
    rng = np.random.default_rng(1)
    native = rng.uniform(0, 3, size=(60, 3))
    moved = native + rng.normal(scale=0.1, size=native.shape)
    residue = np.arange(60) // 4
    assert DistanceTest(native, residue).score(moved) == pytest.approx(brute_lddt(moved, native, residue), abs=1e-12)
    assert DistanceTest(native, residue).score(native) == 1.0


def test_a_rigid_copy_scores_perfectly():
    """Where a structure lies in space plays no part, and the native laid over it falls on it."""
    positions = helix(4) / 10
    moved = positions @ turn().T + [3.0, -2.0, 1.0]
    native = Native(moved, np.ones(len(moved), dtype=bool), np.arange(len(moved)) // 20)
    found = native.scores(positions)
    assert found["lddt"] == 1.0
    assert max(found[name] for name in ("rmsd", "local_rmsd", "to_go")) < 1e-6
    assert np.abs(native.onto(positions) - positions).max() < 1e-6
    assert in_angstrom({"rmsd": 0.1, "lddt": 0.5}) == {"rmsd": pytest.approx(1.0), "lddt": 0.5}


def test_atoms_without_a_partner_are_left_out(tmp_path: Path):
    """A native that lacks a residue and has another one mutated: the rest is compared."""
    lines = write_pdb(tmp_path / "whole.pdb", helix(5)).read_text().splitlines()
    kept = [line for line in lines if line[22:26].strip() != "2"]
    kept = [line[:19] + "U" + line[20:] if line[22:26].strip() == "4" else line for line in kept]
    (tmp_path / "native.pdb").write_text("\n".join(kept))
    structure = read_structure(tmp_path / "whole.pdb")
    native, counts = find_native(structure, tmp_path / "native.pdb")
    assert counts == {"atoms": 100, "matched": 60, "renamed": 1, "missing": 1}
    found = native.scores(structure.positions.astype(float))
    assert found["lddt"] == 1.0 and found["rmsd"] < 1e-6


def test_a_native_of_something_else_is_refused(tmp_path: Path):
    structure = read_structure(write_pdb(tmp_path / "strand.pdb", helix(2)))
    other = [atom_line(1, "CA", "GLY", "A", 1, np.zeros(3)), atom_line(2, "C", "GLY", "A", 1, np.ones(3))]
    (tmp_path / "other.pdb").write_text("\n".join(other))
    with pytest.raises(TopologyError, match=r"0 of 40 atoms of strand.pdb have a partner in other.pdb; at least 3"):
        find_native(structure, tmp_path / "other.pdb")
    with pytest.raises(TopologyError, match=r"native cannot be used: nothing.pdb: cannot be read"):
        find_native(structure, tmp_path / "nothing.pdb")
