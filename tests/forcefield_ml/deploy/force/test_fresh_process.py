"""Laziness, plugins and the commands, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner

from forcefield_ml import models
from forcefield_ml.cli import app as cli
from forcefield_ml.training import checkpoint as checkpoints


def fresh(code: str, *arguments: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_without_the_repair_torchforce_fails() -> None:
    """Negative control: with openmm first and no repair the kernels are not there (else drop the repair)."""
    fresh("import openmm, torch\nassert any('OpenMMTorchRef' in m for m in openmm.Platform.getPluginLoadFailures())")


def test_importing_the_package_is_light() -> None:
    """`import forcefield_ml` and the help of its command bring neither torch nor openmm."""
    code = "import sys, forcefield_ml, forcefield_ml.cli\nprint([m for m in ('torch', 'openmm') if m in sys.modules])"
    assert fresh(code).strip() == "[]"


def test_export_command(tmp_path: Path) -> None:
    """`forcefield-ml export` writes a model and prints its card; a file that is no checkpoint ends in one message."""
    model = models.build({"architecture": "fast", "n_channels": 4, "n_layers": 2})
    checkpoints.save(tmp_path / "best.pt", checkpoints.Checkpoint(model.config, model.state_dict(), {"n_batches": 2}))
    out = tmp_path / "model.pt"
    result = CliRunner().invoke(cli, ["export", str(tmp_path / "best.pt"), "-o", str(out), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["training"]["n_batches"] == 2 and out.is_file()
    refused = subprocess.run(
        [sys.executable, "-c", "from forcefield_ml.cli import main; main()", "export", str(out)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (
        refused.returncode == 1 and refused.stderr.startswith("forcefield-ml: ") and "Traceback" not in refused.stderr
    )
