"""Frames that a model visits: labelled right, of training entries only, resumable, and more where it is wrong."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from data_pipeline.dataset.check import check
from forcefield_ml.config import parse_config
from forcefield_ml.errors import ConfigError, DatasetError, UnstableError
from forcefield_ml.simulation import walk
from forcefield_ml.simulation.explore import explore
from forcefield_ml.simulation.walk import ExploreConfig


def settings(model: Path, data: Path, output: Path, **changed: Any) -> ExploreConfig:
    """Return settings of a short exploration."""
    values = {"model": model, "dataset": data, "output": output, "steps": 6, "every": 3, "error": 1e9, **changed}
    return parse_config(ExploreConfig, values)


@pytest.fixture(scope="module")
def data(regenerated: Path) -> Path:
    """The pipeline's dataset of three entries."""
    return regenerated / "dataset.h5"


@pytest.fixture(scope="module")
def training(data: Path) -> list[str]:
    """Names of its training entries."""
    with h5py.File(data) as file:
        return [name for name, group in file["entries"].items() if group.attrs["split"] == "train"]


def test_visited_frames_are_labelled_as_the_pipeline_labels(
    model_file: Path, data: Path, training: list[str], tmp_path: Path
) -> None:
    """`check` computes the labels again on another platform and another mesh; frames move on from the start."""
    output = tmp_path / "visited.h5"
    result = explore(settings(model_file, data, output), quiet=True)
    report = check(output, recompute=3)
    assert not report.problems and len(report.recomputed) == len(training)
    assert [row["steps"] for row in result["runs"]] == [6] * len(training) and result["frames"] == 2 * len(training)
    with h5py.File(output) as visited, h5py.File(data) as start:
        assert list(visited["entries"]) == training and visited.attrs["protocol"] == "visited"
        for name, group in visited["entries"].items():
            first = start["entries"][name]["positions"][0]
            moved = np.linalg.norm(group["positions"][:] - first, axis=2).mean(axis=1)
            # atoms of 1 to 16 u at 350 K travel about 0.3 to 0.1 pm in 0.5 fs
            assert 3e-4 < moved[0] < moved[1] < 5e-3
            assert len(group["positions"]) == 2 and "displacement" not in group
    assert not output.with_name("visited.h5.parts").exists()


def test_more_frames_where_it_is_wrong(model_file: Path, data: Path, training: list[str], tmp_path: Path) -> None:
    """A model of three batches is wrong everywhere: a low limit keeps a frame every `gap` steps, a high one none."""
    name = training[0]
    many, none = (
        explore(
            settings(model_file, data, tmp_path / f"{error}.h5", entries=(name,), error=error, every=6, gap=2),
            quiet=True,
        )
        for error in (1.0, 1e9)
    )
    assert (many["frames"], none["frames"]) == (3, 1)


@pytest.mark.parametrize(
    ("displacement", "expected"), [([0.01, 0, 0.02, 0], [1, 3]), (None, [0, 1, 2, 3]), ([0.01] * 4, [0, 1, 2, 3])]
)
def test_begins_with_frames_as_sampled(displacement: list[float] | None, expected: list[int]) -> None:
    """A displaced copy holds thousands of kelvin in some bonds: no start, unless there is nothing else."""
    fields = {name: np.zeros((4, 2, 3), dtype=np.float32) for name in ("positions", "forces")}
    if displacement is not None:
        fields["displacement"] = np.array(displacement, dtype=np.float32)
    assert walk.starts(fields).tolist() == expected


def test_only_training_entries(model_file: Path, data: Path, training: list[str], tmp_path: Path) -> None:
    """Frames of test entries must never be learnt."""
    with h5py.File(data) as file:
        other = next(name for name in file["entries"] if name not in training)
    with pytest.raises(ConfigError, match=f"'{other}' is no entry of the training split"):
        explore(settings(model_file, data, tmp_path / "v.h5", entries=(other,)), quiet=True)


def test_labels_made_otherwise_are_noticed(model_file: Path, data: Path, training: list[str], tmp_path: Path) -> None:
    """A dataset whose forces are not those of the reference set up here would be extended by a second truth."""
    changed = tmp_path / "changed.h5"
    shutil.copy(data, changed)
    with h5py.File(changed, "r+") as file:
        file["entries"][training[0]]["forces"][0] *= 1.001
    with pytest.raises(DatasetError, match=f"{training[0]}: the forces of its first frame differ"):
        explore(settings(model_file, changed, tmp_path / "v.h5"), quiet=True)


def test_a_killed_run_goes_on(
    model_file: Path, data: Path, training: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is done is not done again, unless settings differ; the result is as if nothing had happened."""
    walked: list[str] = []
    original = walk.Walk.run

    def run(self: walk.Walk, number: int) -> walk.Visited:
        if len(walked) == 1:
            walked.append("killed")
            raise KeyboardInterrupt
        walked.append(f"{self.entry.name}-{number}")
        return original(self, number)

    monkeypatch.setattr(walk.Walk, "run", run)
    output = tmp_path / "v.h5"
    with pytest.raises(KeyboardInterrupt):
        explore(settings(model_file, data, output, runs=2), quiet=True)
    assert not output.exists()
    result = explore(settings(model_file, data, output, runs=2), quiet=True)
    everything = [f"{name}-{run}" for name in training for run in range(2)]
    assert walked == [everything[0], "killed", *everything[1:]]
    assert result["frames"] == 2 * len(everything) and not check(output).problems


def test_nothing_is_overwritten(model_file: Path, data: Path, tmp_path: Path) -> None:
    """Least of all the dataset itself, which holds what the model is judged by."""
    copy = tmp_path / "dataset.h5"
    shutil.copy(data, copy)
    with pytest.raises(ConfigError, match="exists already and would be overwritten"):
        explore(settings(model_file, copy, copy), quiet=True)
    assert copy.read_bytes() == data.read_bytes()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, MemoryError], ids=lambda kind: kind.__name__)
def test_what_is_no_instability_ends_it(
    model_file: Path,
    data: Path,
    training: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: type[BaseException],
) -> None:
    """An error inside the forces keeps its type on the way through OpenMM, and no shortened run is kept."""
    calls = iter(range(100))
    original = walk.Evaluator.__call__

    def failing(self: Any, *arguments: Any) -> Any:
        if next(calls) == 3:
            raise failure
        return original(self, *arguments)

    monkeypatch.setattr(walk.Evaluator, "__call__", failing)
    output = tmp_path / "v.h5"
    with pytest.raises(failure):
        explore(settings(model_file, data, output, entries=(training[0],)), quiet=True)
    assert list(output.with_name("v.h5.parts").iterdir()) == []


def test_atoms_that_are_lost_end_the_run(
    model_file: Path, data: Path, training: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forces that are not finite send atoms nowhere: the run ends and says why, and nothing of it is kept."""
    original = walk.Evaluator.__call__

    def lost(self: Any, *arguments: Any) -> Any:
        found = original(self, *arguments)
        return found._replace(forces=found.forces * float("nan"))

    monkeypatch.setattr(walk.Evaluator, "__call__", lost)
    with pytest.raises(UnstableError, match=r"no frame was kept: .* \(not finite\)"):
        explore(settings(model_file, data, tmp_path / "v.h5", entries=(training[0],), every=1), quiet=True)


def test_other_settings_are_walked_anew(model_file: Path, data: Path, training: list[str], tmp_path: Path) -> None:
    """Parts of a run at another temperature do not serve."""
    from forcefield_ml.simulation.explore import _keep, _kept

    found = walk.Visited(np.zeros((0, 1, 3)), np.eye(3), np.zeros((0, 1, 3)), np.zeros(0), 5, "torn")
    _keep(tmp_path / "part.npz", "one", found)
    kept = _kept(tmp_path / "part.npz", "one")
    assert kept is not None and (kept.steps, kept.ended) == (5, "torn")
    assert _kept(tmp_path / "part.npz", "other") is None
    whole = (tmp_path / "part.npz").read_bytes()
    (tmp_path / "part.npz").write_bytes(whole[: len(whole) // 2])
    assert _kept(tmp_path / "part.npz", "one") is None


def test_a_torn_structure_ends_the_run(model_file: Path, data: Path, training: list[str], tmp_path: Path) -> None:
    """At 100,000 K bonds tear: the run ends early and says so, and no frame beyond the pipeline's limit is kept."""
    output = tmp_path / "v.h5"
    config = settings(model_file, data, output, entries=(training[0],), temperature=1e5, steps=200, every=2)
    (row,) = explore(config, quiet=True)["runs"]
    assert row["ended"] == "torn" and row["steps"] < 200
    assert not check(output).problems  # a force above label.max_force would be one


def test_command(model_file: Path, data: Path, training: list[str], tmp_path: Path) -> None:
    """The command says what it wrote."""
    from forcefield_ml.cli import app

    output = tmp_path / "visited.h5"
    words = ["explore", model_file, data, "-o", output, "--entry", training[0], "--steps", 2, "--every", 1]
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert f"{output}: 2 frames of 1 runs, which ended by: 1 steps" in result.output
