"""The walk: what it gains by true vectors, and what ends it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from rna_files import bent, geometry_of, helix, turn

from forcefield_ml.config import parse_config
from forcefield_ml.errors import ConfigError, UnstableError
from forcefield_ml.refinement.scores import Native
from forcefield_ml.refinement.steps import REASONS, Settings, Step, Walk, walk

N_RESIDUES = 6


@pytest.fixture(scope="module")
def candidate() -> np.ndarray:
    """Return a bent strand, (N, 3) nm."""
    return bent(helix(N_RESIDUES)) / 10


@pytest.fixture(scope="module")
def native() -> Native:
    """Return the straight one, lying elsewhere."""
    positions = helix(N_RESIDUES) / 10 @ turn(1).T + [1.0, 2.0, 3.0]
    return Native(positions, np.ones(len(positions), dtype=bool), np.arange(len(positions)) // 20)


def run(predict: Callable[[np.ndarray], np.ndarray], start: np.ndarray, **settings: object) -> Walk:
    """Return a walk from a structure."""
    return walk(predict, start, geometry_of(start), Settings(**settings))


def test_true_vectors_bring_it_nearer(candidate: np.ndarray, native: Native):
    """By the vectors of algorithm 1 every score becomes strictly better, at every step, with bonds as they were."""
    done = run(native.vectors, candidate, steps=6, fraction=0.3)
    scores = [native.scores(step.positions) for step in done.trace]
    for before, after in pairwise(scores):
        assert all(after[name] < before[name] for name in ("rmsd", "local_rmsd", "to_go"))
    assert scores[-1]["lddt"] > scores[0]["lddt"] + 0.02
    assert scores[-1]["rmsd"] < 0.85 * scores[0]["rmsd"]
    assert done.stopped == "steps" and done.taken == [6]
    assert geometry_of(candidate).covalent(done.positions).rms < 1e-4


def test_true_vectors_end_by_themselves(candidate: np.ndarray, native: Native):
    """With many steps to spend it stops where nothing is to be gained, bonds and angles being the input's."""
    done = run(native.vectors, candidate, steps=200, fraction=0.5)
    assert done.stopped in ("no_progress", "converged")
    assert len(done.trace) < 100
    assert native.scores(done.positions)["rmsd"] < 0.5 * native.scores(candidate)["rmsd"]


def test_no_vectors_no_move(candidate: np.ndarray):
    done = run(np.zeros_like, candidate)
    assert done.stopped == "converged"
    assert done.taken == [0] and len(done.trace) == 1
    assert np.array_equal(done.positions, candidate)


def test_vectors_that_grow_are_not_followed(candidate: np.ndarray, native: Native):
    """A model of the wrong sign predicts more and more to move: the input is kept."""
    done = run(lambda positions: -native.vectors(positions), candidate)
    assert done.stopped == "rising"
    assert np.array_equal(done.positions, candidate)
    assert len(done.trace) < 8
    assert native.scores(done.trace[-1].positions)["rmsd"] > native.scores(candidate)["rmsd"]


def test_no_shorter_vectors_no_further_step(candidate: np.ndarray):
    """A model that always says the same makes no progress by its own measure."""
    drift = np.full_like(candidate, 0.05)
    done = run(lambda positions: drift, candidate, patience=3)
    assert done.stopped == "no_progress"
    assert len(done.trace) == 4
    assert np.array_equal(done.positions, candidate)


def test_broken_bonds_end_it(candidate: np.ndarray):
    """Without anything to hold bonds, moves that tear them end the walk, and the structure before is the result."""
    away = np.random.default_rng(0).normal(scale=0.05, size=candidate.shape)

    def fading(positions: np.ndarray, calls: list[int] = []) -> np.ndarray:  # noqa: B006
        calls.append(1)
        return away * 0.98 ** len(calls)

    done = run(fading, candidate, keep_geometry=False, steps=20)
    assert done.stopped == "geometry"
    assert done.trace[-1].bond_rms > 0.005 >= done.trace[-2].bond_rms
    assert done.trace[-1].predicted is None
    assert np.array_equal(done.positions, done.trace[-2].positions)
    held = run(lambda positions: fading(positions, [1]), candidate, steps=5)
    assert max(step.bond_rms for step in held.trace) < 1e-3


def test_clashes_end_it():
    """Two strands that are driven into each other go no farther than clashes allow."""
    strand = helix(2) / 10
    start = np.concatenate([strand, strand + np.array([2.2, 0, 0])])
    sign = np.where(np.arange(len(start)) < len(strand), 1.0, -1.0)[:, None]
    gap = [2.0]

    def together(positions: np.ndarray) -> np.ndarray:
        gap[0] *= 0.99
        return sign * [gap[0], 0.0, 0.0]

    done = run(together, start, keep_geometry=False, steps=100, max_step=0.05)
    assert done.stopped == "geometry"
    assert done.trace[-1].clashes > done.trace[0].clashes + 2 >= done.trace[-2].clashes
    assert len(done.trace) > 3


def test_a_step_has_a_longest_length(candidate: np.ndarray):
    done = run(lambda positions: np.full_like(positions, 1.0), candidate, steps=1, keep_geometry=False)
    lengths = np.linalg.norm(done.trace[1].positions - candidate, axis=1)
    assert lengths == pytest.approx(0.05)


def test_the_mean_of_the_last_structures(candidate: np.ndarray, native: Native):
    """The result is their mean, bonds put right."""
    done = run(native.vectors, candidate, steps=5, average=3)
    assert done.taken == [3, 4, 5]
    mean = np.mean([done.trace[number].positions for number in (3, 4, 5)], axis=0)
    assert np.allclose(done.positions, geometry_of(candidate).restored(mean))
    assert np.abs(done.positions - mean).max() < 0.01


def test_the_whole_turns_with_the_input(candidate: np.ndarray, native: Native):
    """A rotated and shifted input gives the same result, rotated and shifted."""
    rotation, shift = turn(2), np.array([4.0, -5.0, 6.0])
    done = run(native.vectors, candidate, steps=4)
    turned = run(native.vectors, candidate @ rotation.T + shift, steps=4)
    assert np.allclose(turned.positions, done.positions @ rotation.T + shift, atol=1e-7)
    assert np.abs(done.positions - candidate).max() > 0.01


def test_vectors_that_are_no_numbers_are_refused(candidate: np.ndarray):
    def broken(positions: np.ndarray) -> np.ndarray:
        return np.where(np.arange(len(positions))[:, None] == 3, np.nan, positions)

    with pytest.raises(UnstableError, match="1 vectors that are not finite"):
        run(broken, candidate)
    with pytest.raises(UnstableError, match=r"shape \(5, 3\) for 120 atoms"):
        run(lambda positions: positions[:5], candidate)


def test_every_end_is_told_in_words(candidate: np.ndarray, native: Native):
    shown: list[Step] = []
    done = walk(native.vectors, candidate, geometry_of(candidate), Settings(steps=2), shown.append)
    assert shown == done.trace
    assert done.stopped in REASONS
    assert np.allclose(done.vectors, native.vectors(candidate))


@pytest.mark.parametrize(("name", "value"), [("fraction", 0), ("fraction", 1.5), ("max_step", 5), ("average", 0)])
def test_settings_out_of_range_are_refused(name: str, value: float):
    with pytest.raises(ConfigError, match=f"{name} is {value}"):
        parse_config(Settings, {name: value})
