"""The speed benchmark, run small, and what its numbers rest on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openmm
import pytest
from openmm import unit

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def speed() -> Iterator[SimpleNamespace]:
    """The benchmark's modules, which lie beside its script."""
    names = ("workloads", "speed", "speed_processes", "speed_summary", "speed_limits", "contenders")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        modules = {name: import_module(name) for name in names}
        modules |= {name: import_module(f"contenders.{name}") for name in ("amber", "measure")}
        yield SimpleNamespace(**modules)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where workloads are made once."""
    return tmp_path_factory.mktemp("speed")


@pytest.fixture(scope="module")
def water(speed: SimpleNamespace, folder: Path) -> Path:
    """The workload that the quick form makes, too."""
    (folder / "workloads").mkdir()
    path: Path = speed.workloads.water(folder / "workloads", 2.0)
    return path


@pytest.fixture
def job(speed: SimpleNamespace, water: Path) -> Any:
    """Measure AMBER on one step."""
    return speed.measure.Job(
        contender="amber",
        workload=str(water),
        copies=(1, 1, 1),
        device="cpu",
        threads=1,
        started=0.0,
        n_steps=2,
        budget=1.0,
        min_steps=1,
        training_atoms=0,
        training_budget=0.0,
        profile=False,
        forces="",
    )


def test_quick(water: Path, folder: Path, environment: dict[str, str]) -> None:
    """One command measures ours and AMBER, says why a peer is missing, and writes page and JSON with all fields."""
    (folder / "error.json").write_text('{"relative": 0.123}')
    command = [sys.executable, ROOT / "benchmarks/speed.py", "--quick", "--threads", 1, "--folder", folder]
    command += ["--contenders", "fast", "shipped", "amber", "nequip", "--peers", folder / "no peers", "--steps", 2]
    command += ["--errors", f"fast={folder / 'error.json'}"]
    words = [str(word) for word in command]
    done = subprocess.run(words, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads((folder / "speed.json").read_text())
    rows, n_atoms = results["system"]["contenders"], results["system"]["n_atoms"]
    assert n_atoms == 1029 and set(rows) == {"fast", "shipped", "amber", "nequip"}
    for name in ("fast", "shipped", "amber"):
        row = rows[name]
        low, middle, high = row["us_per_atom"]
        assert 0 < low <= middle <= high and row["n_steps"] == 2 and "incomplete" not in row
        assert middle == pytest.approx(1e6 * row["step_s"][1] / n_atoms)
        assert row["first_force_s"][0] > row["first_step_s"][0] > 0
        assert row["peak_mb"] > row["baseline_mb"] > 10
        (run,) = results["system"]["runs"][name]
        assert row["step_s"][0] == min(run["steps_s"]) and run["threads"] == 1
        (box,) = results["sizes"][name]
        assert box["n_atoms"] == 1029 and box["us_per_atom"][0] > 0
    shipped, amber = (np.load(folder / f"forces_{name}.npy") for name in ("shipped", "amber"))
    assert np.linalg.norm(shipped - amber) < 0.1 * np.linalg.norm(amber)  # told its bonds, or it would be far off
    fast = rows["fast"]
    assert fast["n_parameters"] > 1000 and fast["training_atoms_per_s"][0] > 0 and "torch" in fast["versions"]
    assert fast["profile"]["parts"]["neighbours among candidates"] > 0
    assert sum(fast["profile"]["parts"].values()) == pytest.approx(1, abs=0.02)
    assert rows["amber"]["dynamics_us_per_atom"][1] > 0
    assert results["limits"]["gflops"] > 0.1 and results["limits"]["copy_gb_s"] > 0.1
    assert 30 < results["neighbours"] < 45
    page = (folder / "speed.md").read_text()
    assert "make bench-peers" in rows["nequip"]["reason"] and rows["nequip"]["reason"] in page
    assert results["machine"]["processor"] in page and "| 0.123 |" in page and "share of arithmetic" in page


def test_a_failing_contender_says_why(speed: SimpleNamespace, job: Any, water: Path, tmp_path: Path) -> None:
    """Too long, too much memory, or an error inside: each is a reason, with the stage; without, there is none."""

    def measured(job: Any, limit: float, memory: float) -> dict[str, Any]:
        found: dict[str, Any] = speed.speed_processes.measured(job, limit, memory, tmp_path / "caches")
        return found

    good = measured(job, 60, 8)
    assert "reason" not in good and good["stage"] == "done" and len(good["steps_s"]) == 2
    slow = measured(job, 0.02, 8)
    assert "the limit" in slow["reason"] and "during: " in slow["reason"]
    assert "0.01 GB" in measured(job, 60, 0.01)["reason"]
    data = dict(np.load(water))
    data["positions"][0, 5] = np.nan
    np.savez(tmp_path / "bad.npz", **data)
    (tmp_path / "bad.xml").write_text(water.with_suffix(".xml").read_text())
    bad = measured(replace(job, workload=str(tmp_path / "bad.npz")), 60, 8)
    assert "exit status 1" in bad["reason"] and "during: first force" in bad["reason"]
    row = speed.speed_summary.summary([bad])
    assert row == {"reason": bad["reason"]}


def test_frames_are_consecutive(speed: SimpleNamespace, water: Path) -> None:
    """Frames are warm, a step apart, also where they turn back; copies lie beside each other in the larger box."""
    one = speed.measure.Workload(water, (1, 1, 1))
    last = len(one.frames) - 1
    for step in (0, last - 1, last, 2 * last - 1, 2 * last):
        moved = np.linalg.norm(one.frame(step + 1) - one.frame(step), axis=1)
        assert 5e-4 < moved.mean() < 3e-3 and moved.max() < 0.02  # nm in 1 fs
    more = speed.measure.Workload(water, (1, 2, 3))
    assert more.frame(3).shape == (6 * 1029, 3) and len(more.species) == 6 * 1029
    assert np.diag(more.box) == pytest.approx(np.diag(one.box) * [1, 2, 3])
    apart = more.frame(3).reshape(6, -1, 3) - one.frame(3)
    shifts = apart.mean(axis=1) / np.diag(one.box)
    assert shifts == pytest.approx(np.array([[0, y, z] for y in range(2) for z in range(3)]), abs=1e-5)


def test_batch_holds_whole_molecules(speed: SimpleNamespace, water: Path) -> None:
    """A batch to train on is a ball of whole molecules around the first atom."""
    batch = speed.measure.Workload(water, (1, 1, 1)).batch(100)
    assert len(batch.species) == 99 and sorted(batch.species.tolist()) == [1] * 66 + [8] * 33
    assert np.linalg.norm(batch.positions - batch.positions[0], axis=1).max() < 1.5
    assert np.linalg.norm(batch.positions[1::3] - batch.positions[::3], axis=1) == pytest.approx(0.1, abs=0.03)


def test_sizes_are_compact(speed: SimpleNamespace) -> None:
    """A larger box has about the copies asked for and no long edge."""
    for wanted in (1, 10, 29, 97, 194, 972):
        edges = speed.workloads.copies(wanted)
        assert np.prod(edges) == pytest.approx(wanted, rel=0.15) and max(edges) <= 3 * min(edges)


def test_repeated_system_has_the_forces_of_one(speed: SimpleNamespace, water: Path) -> None:
    """AMBER on two copies gives each the forces of one, and the copies are in contact."""
    system = openmm.XmlSerializer.deserialize(water.with_suffix(".xml").read_text())
    forces = []
    for copies in ((1, 1, 1), (1, 1, 2)):
        workload = speed.measure.Workload(water, copies)
        larger = speed.amber.repeated(system, int(np.prod(copies)))
        larger.setDefaultPeriodicBoxVectors(*workload.box)
        (nonbonded,) = (force for force in larger.getForces() if isinstance(force, openmm.NonbondedForce))
        nonbonded.setEwaldErrorTolerance(1e-5)
        integrator = openmm.VerletIntegrator(0.001)
        context = openmm.Context(larger, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
        context.setPositions(workload.frame(0))
        values = context.getState(forces=True).getForces(asNumpy=True)
        forces.append(values.value_in_unit(unit.kilojoule_per_mole / unit.nanometer))
    for copy in forces[1].reshape(2, -1, 3):
        off = np.linalg.norm(copy - forces[0], axis=1).mean() / np.linalg.norm(forces[0], axis=1).mean()
        assert off < 1e-3
    constrained = openmm.System()
    constrained.addParticle(1)
    constrained.addParticle(1)
    constrained.addConstraint(0, 1, 0.1)
    with pytest.raises(ValueError, match="constraints"):
        speed.amber.repeated(constrained, 2)


def test_a_repeat_holds_searches(speed: SimpleNamespace) -> None:
    """Steps with a search are averaged with those without; of slow contenders each step is a repeat."""
    one, other = {"steps_s": [11.0, *[1.0] * 9]}, {"steps_s": [1.0] * 20 + [21.0]}
    few = {"steps_s": [7.0, 5.0]}
    assert speed.speed_summary.repeats([one, other, few, {"reason": "stopped"}]) == [2.0, 41 / 21]
    assert speed.speed_summary.repeats([{"steps_s": [11.0, *[1.0] * 9] * 3}]) == [2.0, 2.0, 2.0]
    assert speed.speed_summary.repeats([few, few]) == [7.0, 5.0, 7.0, 5.0]
    assert speed.speed_summary.spread([3.0, 1.0, 2.0]) == (1.0, 2.0, 3.0)
    assert speed.speed_summary.ratio((8, 10, 12), (1, 2, 4)) == (2, 5, 12)


def test_marks_are_judged(speed: SimpleNamespace) -> None:
    """A mark is reached, missed or not measured, from medians."""
    rows: dict[str, Any] = {name: {"us_per_atom": (value,) * 3} for name, value in (("fast", 20.0), ("amber", 2.5))}
    rows |= {"tensornet": {"us_per_atom": (1200.0,) * 3}, "mace": {"reason": "stopped"}}
    size = {"baseline_mb": 500.0, "n_layers": 3}
    boxes = [
        {**size, "n_atoms": 1000, "us_per_atom": (20.0,) * 3, "peak_mb": 550.0},
        {**size, "n_atoms": 200_000, "us_per_atom": (40.0,) * 3, "peak_mb": 2000.0},
        {"n_atoms": 400_000, "reason": "stopped"},
    ]
    mace = [{**size, "n_atoms": 1000, "us_per_atom": (1100.0,) * 3, "peak_mb": 900.0}]
    found = speed.speed_summary.marks(
        {
            "system": {"contenders": rows},
            "same_forces": {"paper_e3nn, paper": 2e-6},
            "sizes": {"fast": boxes, "mace": mace},
        }
    )
    judged = {mark.what: mark.reached for mark in found}
    assert judged["TensorNet's time over the fast model's"] is True
    assert judged["MACE's time over the fast model's"] is True  # on the box that both could do
    assert "on 1,000 atoms" in {mark.what: mark.value for mark in found}["MACE's time over the fast model's"]
    assert judged["TorchScript's time over the compiled form's, fast model"] is None
    assert judged["the fast model's time over AMBER14's"] is True
    assert judged["forces of plain e3nn against ours"] is True
    assert judged["fast: cost per atom over all sizes"] is False
    assert judged["fast: memory per atom and layer, largest box"] is True
    rows["fast"]["us_per_atom"] = (30.0,) * 3
    judged = {
        mark.what: mark.reached
        for mark in speed.speed_summary.marks({"system": {"contenders": rows}, "same_forces": {}, "sizes": {}})
    }
    assert judged["TensorNet's time over the fast model's"] is False
    assert judged["the fast model's time over AMBER14's"] is False


def test_arithmetic_counts_products(speed: SimpleNamespace) -> None:
    """The count of one layer is that written out by hand; that of the fast model grows with the neighbours."""
    counted = speed.speed_limits.arithmetic(
        {"architecture": "tfn", "order": 0, "channels": (4,), "n_neighbours": 10}, 38
    )
    pairs = 10 * 4 * (speed.speed_limits.INTERPOLATION + 2)  # neighbours x channels x (weight, times feature, sum)
    assert counted == {"layer 1": {"multiply_adds": pairs + 5 * 4 + 4 * 4, "bytes": 10 * (21 + 4 * 4)}}
    few, many = (
        sum(layer["multiply_adds"] for layer in speed.speed_limits.arithmetic({"architecture": "fast"}, n).values())
        for n in (20, 40)
    )
    assert 1.3 * few < many < 2 * few
