"""The benchmark of the pipeline, run small, and what its numbers rest on."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import openmm
import pytest
import yaml
from openmm import unit

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "benchmarks/pipeline_speed.py"


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("pipeline_speed", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def busy(seconds: float) -> None:
    """Compute in Python for some time."""
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        sum(range(100))


def chain(n: int) -> openmm.Context:
    """A chain of springs, whose steps take their time in native code."""
    system, force = openmm.System(), openmm.HarmonicBondForce()
    for index in range(n):
        system.addParticle(1.0)
        if index:
            force.addBond(index - 1, index, 0.1, 1e4)
    system.addForce(force)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(1e-4), platform)
    context.setPositions([openmm.Vec3(0.1 * index, 0, 0) for index in range(n)] * unit.nanometer)
    return context


def test_sampler_finds_the_time_inside(speed: ModuleType) -> None:
    """Time in one long native call, in many short ones and in our own code is found as a stop-watch finds it."""
    context = chain(2000)
    integrator = context.getIntegrator()
    watch = {"long": 0.0, "short": 0.0, "own": 0.0}
    with speed.Sampler() as sampler:
        for _ in range(2):
            for kind, work in (
                ("long", lambda: integrator.step(10_000)),
                ("own", lambda: busy(0.3)),
                ("short", lambda: [integrator.step(2) for _ in range(5000)]),
            ):
                sampler.enter(kind)
                started = time.perf_counter()
                work()
                watch[kind] += time.perf_counter() - started
        sampler.enter("")
    for kind in ("long", "short"):
        assert watch[kind] > 0.1
        assert sampler.inside[kind, "openmm"] == pytest.approx(watch[kind], rel=0.1, abs=0.05), kind
        assert ("own", "openmm") not in sampler.inside
    own = sum(seconds for (kind, _), seconds in sampler.elsewhere.items() if kind == "own")
    assert own == pytest.approx(watch["own"], rel=0.1, abs=0.05)


def test_sampler_counts_calls_from_pdbfixer_as_its_own(speed: ModuleType) -> None:
    """Where PDBFixer calls OpenMM the time is PDBFixer's, whom our code called; our function is named elsewhere."""
    import data_pipeline

    folder = str(Path(data_pipeline.__file__).parent / "invented.py")
    source = "def ours(work):\n    work()\n"
    for file, stage in ((folder, "elsewhere"), (str(Path(speed.pdbfixer.__file__)), "inside")):
        space: dict[str, Any] = {}
        exec(compile(source, file, "exec"), space)
        with speed.Sampler() as sampler:
            sampler.enter("s")
            space["ours"](lambda: busy(0.1))
        if stage == "inside":
            assert sampler.inside["s", "pdbfixer"] > 0.08
        else:
            assert sampler.elsewhere["s", "invented.ours"] > 0.08 and not sampler.inside


def benchmark(recipe: dict[str, Any], folder: Path, environment: dict[str, str], *options: Any) -> dict[str, Any]:
    """Run the script and return its JSON; the table is beside it."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, SCRIPT, path, "--json", "--table", folder / "speed.md", *options]
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    results: dict[str, Any] = json.loads(done.stdout)
    return results


def test_benchmark(small_recipe: dict[str, Any], environment: dict[str, str], tmp_path: Path) -> None:
    """Every stage of the run has its row, the shares add up, most of the work is inside, memory is plausible."""
    (result,) = benchmark(small_recipe, tmp_path, environment, "--ids", "1crn")["runs"].values()
    assert result["ids"] == ["1crn"] and result["made"] == 1
    stages = result["stages"]
    assert sum(row["share"] for row in stages.values()) == pytest.approx(1)
    assert sum(row["seconds"] for row in stages.values()) == pytest.approx(result["seconds"])
    working = [name for name, row in stages.items() if row["entries"] and name != "select"]
    assert {"prepare"} < set(working) and any(name.startswith("label") for name in working)
    for name in working:
        row = stages[name]
        assert row["entries"] == 1 and row["failed"] == 0 and 60 < row["peak_mb"] < 1500
        assert 0.5 < row["inside"] <= 1, (name, row)
        assert sum(row["packages"].values()) + sum(row["elsewhere"].values()) <= 1.05 * row["seconds"] + 0.05
    assert stages["prepare"]["packages"]["pdbfixer"] > 0
    table = (tmp_path / "speed.md").read_text()
    assert "pipeline_speed.py" in table and all(f"\n| {name} | " in table for name in stages)


@pytest.mark.slow
def test_scaling(small_recipe: dict[str, Any], environment: dict[str, str], tmp_path: Path) -> None:
    """One and two workers and two processes apart are timed on the same entries, and the table says so."""
    results = benchmark(small_recipe, tmp_path, environment, "--limit", "2", "--scaling", "--repeats", "1")
    (result,) = results["runs"].values()
    (repeat,) = result["scaling"]
    assert repeat["ratio"] == pytest.approx(repeat["one"] / repeat["two"]) and 0.3 < repeat["ratio"] < 2.5
    assert 0.3 < repeat["machine"] < 2.5
    assert set(repeat["stages"]) == {name for name, row in result["stages"].items() if row["entries"]} - {"select"}
    assert "Two workers against one" in (tmp_path / "speed.md").read_text()
