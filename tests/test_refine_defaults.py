"""benchmarks/refine_defaults.py, small: its noise has the paper's angle, its table a row for each trial and kind."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forcefield_ml.refinement import Settings, refine
from forcefield_ml.refinement.scores import find_native
from forcefield_ml.refinement.structure_file import read_structure_file


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The script, and what makes strands, which lie outside the packages."""
    for folder in ("benchmarks", "tests/forcefield_ml/refinement"):
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / folder))
    yield [import_module(name) for name in ("refine_defaults", "rna_files")]


@pytest.fixture
def puzzle(modules: list[Any], tmp_path: Path) -> Path:
    """Return a folder with a native and one candidate."""
    rna_files = modules[1]
    (tmp_path / "candidates").mkdir()
    rna_files.write_pdb(tmp_path / "candidates/one.pdb", rna_files.bent(rna_files.helix(6)))
    native = rna_files.write_pdb(tmp_path / "native.pdb", rna_files.helix(6))
    (tmp_path / "native.pdb.gz").write_bytes(gzip.compress(native.read_bytes()))
    return tmp_path


def test_its_table(modules: list[Any], puzzle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """True vectors gain, and each trial has its row."""
    modules[0].main([str(puzzle), "--candidates", "1", "--trials", "default,steps=1+fraction=0.2", "--kinds", "true"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| default", "| steps=1+fraction=0.2"]
    assert [row[8] for row in rows] == ["10.0", "1.0"]
    assert all(float(row[2]) < 0 < float(row[4]) for row in rows)


def test_with_a_model(modules: list[Any], puzzle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model alone where no kinds are named, beside others where they are; either without the other is refused."""
    common = [str(puzzle), "--candidates", "1", "--trials", "steps=1"]
    modules[0].main([*common, "--model", "rna-refinement", "--kinds", "model,true"])
    both = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    modules[0].main([*common, "--model", "rna-refinement"])
    alone = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [row[1] for row in both] == ["model", "true"] and alone == both[:1] and both[0][2:] != both[1][2:]
    files = [puzzle / "candidates/one.pdb", puzzle / "native.pdb.gz"]
    report = refine("rna-refinement", *files, settings=Settings(steps=1)).report
    assert alone[0][2] == f"{report['after']['rmsd'] - report['before']['rmsd']:+.4f}"
    for wrong, told in (
        (["--model", "rna-refinement", "--kinds", "true"], "only if, --model is given"),
        (["--kinds", "model"], "only if, --model is given"),
        (["--kinds", "true,tru"], "no kind tru; there are true, fresh, fixed, smooth and, with --model, model"),
    ):
        with pytest.raises(SystemExit):
            modules[0].main([*common, *wrong])
        assert told in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["fresh", "fixed", "smooth"])
def test_its_noise(modules: list[Any], puzzle: Path, kind: str) -> None:
    """The angle between true and blurred vectors is the paper's; without noise it would be zero."""
    read = read_structure_file(puzzle / "candidates/one.pdb")
    native, _ = find_native(read.structure, puzzle / "native.pdb.gz")
    true = native.vectors(read.start)
    angles = []
    for seed in range(10):
        found = modules[0].predictor(kind, native, read.start, seed)(read.start)
        cosine = (true * found).sum(axis=1) / (np.linalg.norm(true, axis=1) * np.linalg.norm(found, axis=1))
        angles.append(np.degrees(np.arccos(cosine)).mean())
    assert np.mean(angles) == pytest.approx(modules[0].ANGLE, abs=4.0)
