"""Algorithm 1 against a case worked out by hand, its symmetries, and scipy's superposition atom by atom."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data_pipeline.refinement.match import match
from data_pipeline.refinement.structure import read_structure
from data_pipeline.refinement.vectors import best_rotations, nearest_atoms, refinement_vectors


def vectors(positions: np.ndarray, native: np.ndarray, k: int = 50) -> np.ndarray:
    found = refinement_vectors(positions, native, np.ones(len(positions), dtype=bool), k)
    assert found.defined.all() and found.degenerate == 0
    return found.vectors


def test_by_hand() -> None:
    """A cross of arms 1 and 2 whose native has arms 2 and 2: nothing turns, and each tip moves outwards by 1 or 0.

    All four points are each other's neighbours; both centroids are the centre, and the correlation is diagonal
    (4, 8, 0), so the best rotation is none, and T moves by the difference of the centroids, -(5, 0, 0), alone.
    """
    candidate = np.array([[1, 0, 0], [-1, 0, 0], [0, 2, 0], [0, -2, 0]], dtype=float)
    native = np.array([[7, 0, 0], [3, 0, 0], [5, 2, 0], [5, -2, 0]], dtype=float)
    expected = [[1, 0, 0], [-1, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert vectors(candidate, native) == pytest.approx(np.array(expected, dtype=float), abs=1e-12)


def test_sign_points_to_the_native() -> None:
    """Of a rigid cloud with one atom pulled away, that atom's vector points back."""
    native = np.random.default_rng(0).normal(size=(40, 3))
    candidate = native.copy()
    candidate[7] += [0.5, 0, 0]
    found = vectors(candidate, native)[7]
    assert found[0] < -0.4 and np.linalg.norm(found[1:]) < 0.1


@pytest.mark.parametrize("seed", range(3))
def test_rigid_motion_is_nothing_and_rotation_turns_the_vectors(seed: int) -> None:
    """A moved copy has zero vectors; moving candidate or native leaves or turns those of another."""
    random = np.random.default_rng(seed)
    native = random.normal(size=(120, 3))
    turn = Rotation.random(random_state=seed)
    assert np.abs(vectors(turn.apply(native) + 3, native, 20)).max() < 1e-12
    candidate = native + random.normal(scale=0.3, size=native.shape)
    found = vectors(candidate, native, 20)
    assert np.linalg.norm(found, axis=1).mean() > 0.2
    assert vectors(turn.apply(candidate) - 2, native, 20) == pytest.approx(turn.apply(found), abs=1e-10)
    assert vectors(candidate, turn.apply(native) + 9, 20) == pytest.approx(found, abs=1e-10)


def test_a_mirror_image_stays_one() -> None:
    """A reflection is no rotation: a mirrored cloud is not superposed, and rotations are proper."""
    native = np.random.default_rng(1).normal(size=(30, 3))
    mirrored = native * [-1, 1, 1]
    assert np.linalg.norm(vectors(mirrored, native), axis=1).min() > 0.01
    rotations, unique = best_rotations(native[None], mirrored[None])
    assert np.linalg.det(rotations[0]) == pytest.approx(1) and unique.all()


def test_against_scipy_on_a_protein(mirror: Path, tmp_path: Path) -> None:
    """Crambin bent, and a residue of it cut out of the native, by brute force: all distances, one atom at a time."""
    text = gzip.decompress((mirror / "1crn.pdb.gz").read_bytes()).decode()
    (tmp_path / "native.pdb").write_text("".join(line + "\n" for line in text.splitlines() if line[22:26] != "  20"))
    native, candidate = read_structure(tmp_path / "native.pdb"), read_structure(mirror / "1crn.pdb.gz")
    random = np.random.default_rng(2)
    bent = candidate.positions + 0.1 * np.sin(3 * candidate.positions[:, [1, 2, 0]])
    bent = (bent + random.normal(scale=0.02, size=bent.shape)).astype(np.float32)
    pairs = match(candidate, native)
    there = pairs.has_partner
    assert len(pairs.missing) == 1 and 0 < (~there).sum() < 15
    found = refinement_vectors(bent, native.positions[pairs.partner], there)
    own, target = bent[there].astype(float), native.positions[pairs.partner[there]].astype(float)
    for atom in range(len(own)):
        near = np.argsort(np.linalg.norm(own - own[atom], axis=1))[:50]
        assert near[0] == atom
        turn, _ = Rotation.align_vectors(own[near] - own[near].mean(0), target[near] - target[near].mean(0))
        expected = turn.apply(target[atom] - target[near].mean(0)) + own[near].mean(0) - own[atom]
        assert found.vectors[there][atom] == pytest.approx(expected, abs=1e-6)
    assert not found.vectors[~there].any() and (found.defined == there).all()


def test_what_defines_no_rotation_has_no_vector() -> None:
    """Two atoms, atoms on a line, and a far pair whose three nearest are on a line: none, and counted."""
    two = np.array([[0, 0, 0], [1, 0, 0.0]])
    assert refinement_vectors(two, two + 1, np.ones(2, bool)).degenerate == 2
    line = np.outer(np.arange(6.0), [1, 2, 3])
    found = refinement_vectors(line, 1.1 * line, np.ones(6, bool))
    assert found.degenerate == 6 and not found.defined.any() and not found.vectors.any()
    cloud = np.concatenate([np.random.default_rng(3).normal(size=(10, 3)), [[50, 0, 0], [51, 0, 0], [52, 0, 0]]])
    mixed = refinement_vectors(cloud, cloud + 0.1, np.ones(13, bool), 3)
    assert mixed.degenerate == 3 and mixed.defined[:10].all()
    assert refinement_vectors(cloud, cloud, np.zeros(13, bool)).degenerate == 0


def test_nearest_counts_the_atom_itself() -> None:
    """Against all distances."""
    places = np.random.default_rng(4).normal(size=(60, 3))
    expected = np.argsort(np.linalg.norm(places[:, None] - places[None], axis=-1), axis=1)[:, :7]
    assert (nearest_atoms(places, 7) == expected).all()
