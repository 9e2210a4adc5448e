"""Bonds, clashes, and what puts them right."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from rna_files import geometry_of, helix, turn, write_pdb

from data_pipeline.refinement.structure import read_structure
from forcefield_ml.nn.atom_types import distinct
from forcefield_ml.refinement.geometry import CLASH, Geometry, find_bonds, over_angles


def test_bonds_are_those_of_the_templates(tmp_path: Path):
    """By distance the same bonds are found as OpenMM's templates have, O3' to P included."""
    read = read_structure(write_pdb(tmp_path / "strand.pdb", helix(4)))
    names = [name.decode() for name in read.atom_names]
    found = find_bonds(read.positions.astype(float), read.species, names, read.residue_index)
    assert np.array_equal(found, distinct(read.bonds))


def test_a_clash_between_residues_is_no_bond():
    """Two atoms 0.15 nm apart are bonded inside a residue, and clash in two."""
    positions = np.array([[0, 0, 0], [0.15, 0, 0]])
    for residue, bonds, clashes in (([0, 0], 1, 0), ([0, 1], 0, 1)):
        geometry = Geometry(positions, [6, 6], ["C1", "C2"], np.array(residue))
        assert len(geometry.bonds) == bonds
        assert geometry.clashes(positions) == clashes


def test_atoms_over_an_angle_do_not_clash():
    """In a chain of four the ends alone are neither bonded nor bonded to the same atom."""
    bonds = np.array([[0, 1], [1, 2], [2, 3]])
    assert over_angles(4, bonds).tolist() == [[0, 2], [1, 3]]
    chain = np.array([[0, 0, 0], [0.15, 0, 0], [0.15, 0.15, 0], [0, 0.15, 0]])
    straight = np.array([[0, 0, 0], [0.15, 0, 0], [0.3, 0, 0], [0.45, 0, 0]])
    geometry = Geometry(straight, [6] * 4, ["C1", "C2", "C3", "C4"], np.zeros(4))
    assert geometry.clashes(straight) == 0
    assert geometry.clashes(chain) == 1  # the ends, 0.15 apart


def test_covalent_names_the_bond_that_changed_most():
    start = helix(2) / 10
    moved = start.copy()
    moved[2] += 0.03 * (moved[2] - moved[0]) / np.linalg.norm(moved[2] - moved[0])  # OP2 away from P
    found = geometry_of(start).covalent(moved)
    assert found.worst == pytest.approx(0.03, abs=1e-9)
    assert found.worst_bond == (0, 2)
    assert found.rms == pytest.approx(0.03 / np.sqrt(found.bonds), abs=1e-9)
    assert found.bonds == 2 * 21 + 1


def test_restored_gives_bonds_and_angles_back():
    """After random moves lengths are the input's again; atoms stay where they were pushed, but for what bonds undo."""
    start = helix(6) / 10
    geometry = geometry_of(start)
    pushed = start + np.random.default_rng(0).normal(scale=0.005, size=start.shape) + [0.1, 0, 0]
    assert geometry.covalent(pushed).rms > 0.005
    restored = geometry.restored(pushed)
    assert geometry.covalent(restored).rms < 1e-4
    held = over_angles(len(start), geometry.bonds)

    def lengths(at: np.ndarray) -> np.ndarray:
        return np.linalg.norm(at[held[:, 0]] - at[held[:, 1]], axis=1)

    assert np.abs(lengths(restored) - lengths(start)).max() < 1e-3
    assert np.abs(restored - pushed).max() < 0.03
    assert np.allclose(geometry.restored(start), start, atol=1e-6)


def test_restored_turns_with_the_structure():
    start = helix(4) / 10
    pushed = start + np.random.default_rng(0).normal(scale=0.01, size=start.shape)
    rotation = turn(3)
    turned = geometry_of(start @ rotation.T).restored(pushed @ rotation.T)
    assert np.allclose(turned, geometry_of(start).restored(pushed) @ rotation.T, atol=1e-8)


def test_restored_parts_what_clashes():
    """Two atoms of different residues are pushed apart to `CLASH`, each as far as the other."""
    start = np.array([[0, 0, 0], [0.5, 0, 0]])
    geometry = Geometry(start, [6, 6], ["C1", "C1"], np.arange(2))
    near = np.array([[0.15, 0, 0], [0.35, 0, 0]])
    assert geometry.clashes(near) == 1
    parted = geometry.restored(near)
    assert geometry.clashes(parted) == 0
    assert CLASH <= parted[1, 0] - parted[0, 0] < CLASH + 0.005
    assert parted.mean(axis=0) == pytest.approx(near.mean(axis=0))


def test_atoms_that_stay_are_run_into():
    """A move onto an ion is a clash; an ion that was bound in the input is none."""
    start = np.array([[0, 0, 0], [1.0, 0, 0]])
    geometry = Geometry(start, [8, 8], ["O1", "O2"], np.arange(2), np.array([[0.2, 0, 0], [2.0, 0, 0]]))
    assert geometry.clashes(start) == 0
    assert geometry.clashes(np.array([[0, 0, 0], [1.9, 0, 0]])) == 1
