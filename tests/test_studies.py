"""benchmarks/study.py and its two pages, small: rows are trained once, judged, and told with their spread."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from forcefield_ml.errors import ConfigError

FOLDERS = ("benchmarks", "tests/forcefield_ml")
FAST = {"architecture": "fast", "n_channels": 6, "n_layers": 2, "n_basis": 8, "n_units": 4, "n_first_units": 6}
BASE = {
    "preset": "thermal",
    "max_batches": 4,
    "validate_every": 2,
    "targets_per_batch": 20,
    "learning_rate": 0.02,
    "seed": 3,
}


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The scripts, and what makes a dataset, which lie outside the packages."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / folder))
    yield {name: import_module(name) for name in ("study", "ablations", "paper_table", "dataset_files")}


@pytest.fixture
def dataset_path(modules: dict[str, Any], tmp_path: Path) -> Path:
    """A dataset of one training entry, one of validation and one of test."""
    splits = {"1aaa": "train", "1bbb": "validation", "1ccc": "test"}
    path: Path = modules["dataset_files"].write_dataset(tmp_path / "dataset.h5", splits)
    return path


def write(path: Path, **content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_ablations(
    modules: dict[str, Any], dataset_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each row and seed is a run; the page has its error, spread and cost; a second call trains nothing."""
    other = {"architecture": "tfn", "order": 0, "n_neighbours": 6}
    rows = {"plain": {}, "wider": {"model": {"n_channels": 8}}, "paper": {"model": other}}
    plan = write(tmp_path / "plan.yaml", title="T", base={**BASE, "model": FAST}, rows=rows, replicates=2)
    arguments = [str(plan), f"thermal={dataset_path}", "-o", str(tmp_path / "runs")]
    assert modules["ablations"].main(arguments) == 0
    page = (tmp_path / "runs/plan.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| wider |"))
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    study = modules["study"]
    found = [run for run in study.runs(study.read(plan), {"thermal": dataset_path}, tmp_path / "runs")]
    wider = [run.evaluation["tensor"] for run in found if run.row == "wider"]
    assert [(run.row, run.seed) for run in found][:3] == [("plain", 3), ("wider", 3), ("paper", 3)] and len(found) == 6
    assert cells[5] == f"{np.mean(wider):.1f} ± {abs(wider[0] - wider[1]) / 2:.1f}" and wider[0] != wider[1]
    assert cells[2] == "4" and float(cells[-1]) > 0
    monkeypatch.setattr(study, "evaluate", lambda *_, **__: pytest.fail("what is judged is judged again"))
    assert modules["ablations"].main(arguments) == 0


def test_paper_table(modules: dict[str, Any], dataset_path: Path, tmp_path: Path) -> None:
    """The best by validation, mean and standard error, the paper's numbers, and the pictures that the page names."""
    tiny = {"architecture": "tfn", "channels": [3, 2, 1], "n_neighbours": 6, "n_basis": 6, "n_units": 3}
    rows = {f"order {order}": {"model": {"order": order}} for order in (0, 1)}
    plan = write(tmp_path / "plan.yaml", title="T", base={**BASE, "model": tiny}, rows=rows, replicates=2, split="test")
    page = tmp_path / "page.md"
    paper = modules["paper_table"]
    assert paper.main([str(dataset_path), "-o", str(tmp_path / "runs"), "--study", str(plan), "--page", str(page)]) == 0
    text = page.read_text()
    study = modules["study"]
    found = list(study.runs(study.read(plan), {"dataset": dataset_path}, tmp_path / "runs"))
    first, second = (run for run in found if run.row == "order 1")
    chosen = min((first, second), key=lambda run: run.validation["tensor"]).evaluation["tensor"]
    both = [first.evaluation["tensor"], second.evaluation["tensor"]]
    assert f"{chosen:.1f} ({np.mean(both):.1f} ± {abs(both[0] - both[1]) / 2:.1f})" in text
    assert "1 proteins to train on, 1 to choose by, 1 to test" in text and "| order 2 | | 15.6 | 32.8 | 20.7 |" in text
    pictures = [line.split('"')[1] for line in text.splitlines() if line.startswith("<img")]
    assert len(pictures) == 3 and all((tmp_path / name).read_text().startswith("<svg") for name in pictures)


def test_refinement_table(modules: dict[str, Any], tmp_path: Path) -> None:
    """By the dataset's task: the paper's table 2 with its standard errors, in Å, and figure 5."""
    splits = {"a": "train", "b": "validation", "c": "test"}
    path = modules["dataset_files"].write_refinement_dataset(tmp_path / "dataset.h5", splits)
    paper, study = modules["paper_table"], modules["study"]
    full = study.read(Path(paper.__file__).with_name(paper.TABLES["refinement"].study))
    assert list(full.rows) == ["order 0", "order 1", "order 2"] and full.replicates == 3 and full.split == "test"
    read = study.settings(full, "order 2", 0, {"dataset": path}, tmp_path)
    assert (read.delta, read.target, read.preset) == (1.0, "refinement", "refinement")
    tiny = {**full.base["model"], "channels": [3, 2, 1], "n_neighbours": 6, "n_basis": 6, "n_units": 3}
    base = {**full.base, "model": tiny, "max_batches": 2, "validate_every": 1, "targets_per_batch": 20}
    plan = write(tmp_path / "plan.yaml", title="T", base=base, rows={"order 1": {"model": {"order": 1}}}, split="test")
    page = tmp_path / "page.md"
    assert paper.main([str(path), "-o", str(tmp_path / "runs"), "--study", str(plan), "--page", str(page)]) == 0
    text = page.read_text()
    (found,) = study.runs(study.read(plan), {"dataset": path}, tmp_path / "runs")
    assert f"| {found.evaluation['tensor']:.2f} | {found.evaluation['relative']:.3f} |" in text
    assert "magnitude (Å)" in text and "meV" not in text and "Figure 5, the best order 1" in text
    assert "| order 2 | | 0.95 (0.99 ± 0.02) | 68.8 (69.8 ± 0.5) | 1.45 (1.48 ± 0.02) | 0.906 | 0.66 |" in text
    assert "1 candidates to train on, 1 to choose by, 1 to test, of 1, 1 and 1 molecules" in text
    assert "(Å)" in (tmp_path / "page-magnitudes.svg").read_text() or (tmp_path / "page-angles.svg").is_file()


def test_ablations_of_refinement(modules: dict[str, Any], tmp_path: Path) -> None:
    """By the dataset's task: lengths in Å with its decimals, and the time of a displacement."""
    splits = {"a": "train", "b": "validation", "c": "test"}
    path = modules["dataset_files"].write_refinement_dataset(tmp_path / "dataset.h5", splits)
    tiny = {"architecture": "tfn", "elements": [6, 7, 8, 15], "silent_elements": [], "channels": [3, 2, 1]}
    base = {"target": "refinement", "max_batches": 2, "validate_every": 1, "targets_per_batch": 20, "model": tiny}
    plan = write(tmp_path / "plan.yaml", title="T", base=base, rows={"one": {}})
    assert modules["ablations"].main([str(plan), f"rna={path}", "-o", str(tmp_path / "runs")]) == 0
    page = (tmp_path / "runs/plan.md").read_text()
    (found,) = modules["study"].runs(modules["study"].read(plan), {"rna": path}, tmp_path / "runs")
    naive, tensor = found.evaluation["naive"]["tensor"], found.evaluation["tensor"]
    assert f"| {tensor:.2f} | {naive:.2f} |" in page and "tensor (Å)" in page and "meV" not in page
    assert "a displacement on every atom of the first of them" in page


def test_a_dataset_that_nobody_named(modules: dict[str, Any], dataset_path: Path, tmp_path: Path) -> None:
    """Told by name, with what was given and what to add."""
    study = modules["study"]
    plan = study.read(write(tmp_path / "p.yaml", title="T", base={**BASE, "model": FAST}, rows={"a": {"dataset": "b"}}))
    with pytest.raises(ConfigError, match=r"dataset named 'b'; given are thermal\. Add b=PATH"):
        study.settings(plan, "a", 0, {"thermal": dataset_path}, tmp_path)
