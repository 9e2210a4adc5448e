"""Bent copies: the field's size and reach, where copies go in a run, and what the check says of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from pairs_files import write_puzzles

from data_pipeline.config import load_config
from data_pipeline.dataset.check import check
from data_pipeline.refinement.augment import bend
from data_pipeline.refinement.stages import label
from data_pipeline.refinement.structure import read_structure
from data_pipeline.refinement.vectors import refinement_vectors
from data_pipeline.run import run
from forcefield_ml.data import ForceDataset, Target

CONFIG = """
task: refinement
name: tiny
source: {path: puzzles.tsv}
augment: {copies: 3, displacement: 0.05, correlation: 0.8}
workers: 1
"""


def test_field() -> None:
    """Displacements have the deviation asked for; at one correlation length they correlate by exp(-1/2)."""
    positions = np.array([[0.0, 0.0, 0.0], [0.6, 0.0, 0.0], [0.0, 12.0, 0.0]])
    moved = bend(positions, 4000, 0.05, 0.6, seed=1).astype(np.float64) - positions
    assert moved.std(axis=0) == pytest.approx(np.full((3, 3), 0.05), rel=0.06)
    assert np.abs(moved.mean(axis=0)).max() < 0.004
    near = (moved[:, 0] * moved[:, 1]).mean() / 0.05**2
    far = (moved[:, 0] * moved[:, 2]).mean() / 0.05**2
    assert near == pytest.approx(np.exp(-0.5), abs=0.05) and abs(far) < 0.05
    assert np.array_equal(bend(positions, 2, 0.05, 0.6, 7), bend(positions, 2, 0.05, 0.6, 7))
    assert not np.allclose(bend(positions, 2, 0.05, 0.6, 7), bend(positions, 2, 0.05, 0.6, 8))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with three copies of each candidate in training."""
    folder = tmp_path_factory.mktemp("bent")
    write_puzzles(folder)
    (folder / "refine.yaml").write_text(CONFIG)
    run(load_config(folder / "refine.yaml"), folder / "run")
    return folder / "run/dataset.h5"


def test_copies_are_for_training(made: Path) -> None:
    """Candidates in training have four frames, each with algorithm 1's vectors on it; all others one."""
    report = check(made, recompute=6)
    assert report.ok, report.problems
    assert {one.frame for one in report.recomputed} == {0, 3} and report.worst[0] < 1e-6
    with h5py.File(made) as file:
        for group in file["entries"].values():
            frames = 4 if group.attrs["split"] == "train" else 1
            assert group["positions"].shape[0] == group["refinement"].shape[0] == frames
            assert ("displacement" in group) == (frames == 4)
        group = next(group for group in file["entries"].values() if group.attrs["split"] == "train")
        assert group["displacement"][:].tolist() == pytest.approx([0, 0.05, 0.05, 0.05])
        for frame in range(4):
            places, native = group["positions"][frame], group["native_positions"][frame]
            expected = refinement_vectors(places, native, group["has_partner"][:]).vectors
            assert group["refinement"][frame] == pytest.approx(expected, abs=1e-6)
        assert np.abs(group["positions"][1] - group["positions"][0]).max() > 0.02
    assert len(ForceDataset(made, "train", Target("refinement"))) == 8
    assert len(ForceDataset(made, "validation", Target("refinement"))) == 2


def test_sheet_counts_candidates_alone(made: Path) -> None:
    """Copies are counted, but no part of the naive predictors."""
    sheet = json.loads((made.parent / "datasheet.json").read_text())["splits"]
    with h5py.File(made) as file:
        groups = [group for group in file["entries"].values() if group.attrs["split"] == "train"]
        norms = 10 * np.concatenate([np.linalg.norm(group["refinement"][0], axis=1) for group in groups])
    assert (sheet["train"]["frames"], sheet["train"]["displaced"], sheet["test"]["displaced"]) == (2, 6, 0)
    assert sheet["train"]["zero_predictor"] == pytest.approx(norms.mean(), rel=1e-6)


def test_copies_with_atoms_on_top_of_each_other_are_left_out(made: Path) -> None:
    """And counted: a field that is rough over a bond's length brings atoms together."""
    folder = made.parents[1] / "one"
    moving, native = (read_structure(folder / name) for name in ("candidates/0_try.pdb.gz", "native.pdb.gz"))
    augment = {"copies": 60, "displacement": 0.3, "correlation": 0.05, "seed": 0}
    bent = bend(moving.positions, **augment).astype(np.float64)
    distances = np.linalg.norm(bent[:, :, None] - bent[:, None], axis=-1) + 9 * np.eye(len(moving.species))
    near = int((distances.min(axis=(1, 2)) < 0.04).sum())
    found = label(moving, native, min_matched=0.5, min_covered=0.9, n_neighbours=50, augment=augment)
    assert found["dropped_copies"] == near and 0 < near < 60
    assert len(found["positions"]) == len(found["displacement"]) == len(found["refinement"]) == 61 - near


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda group: group["native_positions"].__setitem__((1, 0, 0), 9.0), "native_positions differ between frames"),
        (lambda group: group.attrs.__setitem__("dropped_copies", 1), "4 frames, where augment.copies = 3 make 3"),
        (lambda group: group["refinement"].__setitem__((3, 0, 0), 9.0), "refinement of frame 3 differ"),
    ],
)
def test_damage_is_found(made: Path, tmp_path: Path, change: object, told: str) -> None:
    """In a copy of a candidate as in a candidate."""
    damaged = shutil.copy(made, tmp_path / "dataset.h5")
    with h5py.File(damaged, "r+") as file:
        for group in file["entries"].values():
            if group.attrs["split"] == "train":
                change(group)  # type: ignore[operator]
    report = check(damaged, recompute=6)
    assert any(told in problem for problem in report.problems), report.problems
