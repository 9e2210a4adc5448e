"""benchmarks/models_page.py: a row for each evaluation, with what it found."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import pytest

from forcefield_ml import models
from forcefield_ml.training.evaluate import evaluate


def test_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (
        "benchmarks",
        "tests/forcefield_ml",
    ):  # the script, and what makes a dataset, lie outside the packages
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / folder))
    made = import_module("dataset_files")
    dataset = made.write_dataset(tmp_path / "dataset.h5", {"1aaa": "test", "1bbb": "test"})
    found = evaluate(models.build(made.TINY_MODELS["fast"]), dataset, "test", quiet=True) | {"model": "tiny.pt"}
    (tmp_path / "tiny.json").write_text(json.dumps(found))
    page = tmp_path / "page.md"
    assert import_module("models_page").main([str(tmp_path / "tiny.json"), "-o", str(page), "--note", "Noted."]) == 0
    (line,) = (line for line in page.read_text().splitlines() if line.startswith("| tiny |"))
    error = found["proteins"]["standard_error"]["tensor"]
    assert f"| {found['tensor']:.1f} ± {error:.1f} of {found['naive']['tensor']:.0f} |" in line and "| 2 (" in line
    assert line.endswith(f"| {found['tail']['largest']:.0f} |")
    assert page.read_text().endswith("\nNoted.\n") and "--note ..." in page.read_text()
