"""benchmarks/nve.py, small: an energy is kept, and without one none is claimed."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card

FOLDERS = ("benchmarks", "tests/forcefield_ml", "tests/forcefield_ml/deploy")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The script, and what makes a dataset and models, which lie outside the packages."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / folder))
    yield [import_module(name) for name in ("nve", "dataset_files", "deploy_helpers")]


@pytest.mark.filterwarnings("ignore:this model has forces but no energy")
def test_what_it_prints(modules: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A conservative model's total energy hardly moves; the drift of a direct one is no number."""
    nve, dataset_files, deploy_helpers = modules
    dataset = dataset_files.write_dataset(tmp_path / "dataset.h5", {"1aaa": "test"})
    for name in ("energy", "fast"):
        model = deploy_helpers.make_model(name)
        path = bundle.write(model, make_card(model, target_atoms="all"), tmp_path / f"{name}.pt")
        nve.main([str(path), str(dataset), "--steps", "40"])
        told = capsys.readouterr().out
        assert "100 atoms, 40 steps" in told and ("drifts by nan" in told) == (name == "fast")
    found = nve.run(tmp_path / "energy.pt", dataset, "test", 40, 300.0)
    assert found["swing"] < 0.2 and found["first"] > 0
