"""benchmarks/long_range.py: a field in the errors is found, errors of their own are not."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card

FOLDERS = ("benchmarks", "tests/forcefield_ml", "tests/forcefield_ml/deploy")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The script, and what makes a dataset and models, which lie outside the packages."""
    for folder in FOLDERS:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / folder))
    yield [import_module(name) for name in ("long_range", "dataset_files", "deploy_helpers")]


def test_field_of_neighbours(modules: list[Any]) -> None:
    """Errors of a uniform field give that field, across the boundary, too; noise gives next to nothing of itself."""
    random = np.random.default_rng(0)
    positions = torch.from_numpy(random.uniform(0, 1.5, (400, 3)))
    box, charges = 1.5 * torch.eye(3).double(), random.normal(size=400)
    field = modules[0].field_of_neighbours
    found = field(positions, box, charges, charges[:, None] * np.array([1.0, -2.0, 3.0]), 0.4)
    np.testing.assert_allclose(found, np.tile([1.0, -2.0, 3.0], (400, 1)), rtol=1e-12)
    noise = random.normal(size=(400, 3))
    told = charges[:, None] * field(positions, box, charges, noise, 0.4)
    assert abs((noise * told).sum()) < 0.1 * np.sqrt((noise**2).sum() * (told**2).sum())
    alone = field(
        torch.tensor([[0.0, 0, 0], [9, 9, 9]]).double(), torch.zeros(3, 3).double(), charges[:2], noise[:2], 0.4
    )
    assert not alone.any()


def test_page(modules: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row for protein and one for water of each model, with the mean error that the model has."""
    long_range, dataset_files, deploy_helpers = modules
    dataset = dataset_files.write_dataset(tmp_path / "dataset.h5", {"1aaa": "validation", "1bbb": "validation"})
    model = deploy_helpers.make_model("fast")
    path = bundle.write(model, make_card(model, target_atoms="all"), tmp_path / "tiny.pt")
    page = tmp_path / "page.md"
    assert long_range.main([str(dataset), str(path), "--proteins", "1", "--page", str(page)]) == 0
    text = page.read_text()
    assert capsys.readouterr().out == f"{text}\n" and "of 1 proteins" in text
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| tiny |")]
    assert [row[2].strip() for row in rows] == ["protein", "water"] and all(float(row[3]) > 0 for row in rows)
