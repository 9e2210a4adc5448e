"""What the examples and the README run on: three bundled entries made into data, and a network trained on them."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def small_recipe() -> dict[str, Any]:
    """Return examples/regenerate_data.yaml with the bundled mirror, three entries, and a few steps in little water."""
    recipe = yaml.safe_load((ROOT / "examples/regenerate_data.yaml").read_text())
    recipe["source"]["path"] = str(ROOT / "examples/demo/mirror")
    recipe["select"] |= {"limit": 3, "prefer": "smallest"}
    recipe["split"] |= {"train": 0.5, "validation": 0.25, "test": 0.25}
    recipe["prepare"]["padding"] = 0.4
    recipe["sample"] |= {"protocol": "thermal", "n_frames": 1, "equilibration": 0.02, "relax_tolerance": 300}
    recipe["workers"] = 1
    if shutil.which(recipe["split"]["method"]) is None:
        recipe["split"]["method"] = "auto"
    return recipe


@pytest.fixture(scope="session")
def regenerated(small_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run folder of `data-pipeline run` on the small recipe."""
    from data_pipeline.cli import app

    folder = tmp_path_factory.mktemp("regenerated")
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(small_recipe))
    result = CliRunner().invoke(app, ["run", str(path), "-o", str(folder / "run")], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture(scope="session")
def model_file(regenerated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return model.pt of a tiny fast network, trained on a few batches of the regenerated data."""
    from forcefield_ml.cli import app

    folder = tmp_path_factory.mktemp("model")
    recipe = {
        "dataset": str(regenerated / "dataset.h5"),
        "output": str(folder / "run"),
        "model": {"architecture": "fast", "n_channels": 6, "n_layers": 2, "n_basis": 8, "n_units": 4},
        "max_batches": 3,
        "targets_per_batch": 100,
        "device": "cpu",
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    model = folder / "model.pt"
    for command in (["train", folder / "recipe.yaml"], ["export", folder / "run/best.pt", "-o", model]):
        result = CliRunner().invoke(app, [str(word) for word in command], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    return model


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Return the variables for a child process: this environment's commands first, one thread."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "OPENMM_CPU_THREADS": "1"}
