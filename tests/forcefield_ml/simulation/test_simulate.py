from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import mdtraj
import numpy as np
import openmm
import pytest
import torch
from openmm import unit

import forcefield_ml
from data_pipeline.systems.prepare import Prepared, read_prepared
from forcefield_ml import models, pretrained
from forcefield_ml.config import parse_config
from forcefield_ml.deploy.force.openmm_force import ModelCallable
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import CARD_FILE, make_card
from forcefield_ml.errors import ConfigError, ForceModeError, ModelFileError, UnstableError
from forcefield_ml.simulation import build, record
from forcefield_ml.simulation.config import SimulationConfig
from forcefield_ml.simulation.run import simulate
from forcefield_ml.simulation.structure import structure_series
from forcefield_ml.simulation.trajectory import read_frames

SHORT = {"cutoff": 0.6, "timestep_fs": 0.5, "equilibration_ps": 0.05, "steps": 40, "checkpoint_every": 20, "threads": 1}
SHORT["torn_bonds"] = False  # random networks hold none


def settings(structure: Path, output: Path, **changes: Any) -> SimulationConfig:
    return parse_config(SimulationConfig, {"structure": structure, "output": output, **SHORT, **changes})


def quiet(line: str) -> None:
    """Take a message and say nothing."""


def make_model(rms_force: float) -> torch.nn.Module:
    torch.manual_seed(5)
    config = {"architecture": "fast", "n_channels": 6, "n_layers": 2, "n_basis": 8, "n_units": 4, "n_first_units": 6}
    model = models.build(config).eval()
    model.set_scale(rms_force)
    return model


def write_model(folder: Path, rms_force: float) -> Path:
    model = make_model(rms_force)
    return bundle.write(model, make_card(model), folder / "model.pt")


def with_card(model_file: Path, folder: Path, **card: Any) -> Path:
    """Return a copy with another card: compiling anew takes longer."""
    path = folder / "model.pt"
    text = json.dumps(make_card(make_model(200.0), **card))
    with zipfile.ZipFile(model_file) as old, zipfile.ZipFile(path, "w") as new:
        for item in old.infolist():
            new.writestr(item, text if item.filename.endswith(CARD_FILE) else old.read(item))
    return path


@pytest.fixture(scope="session")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fast network with random weights and small forces."""
    return write_model(tmp_path_factory.mktemp("model"), 200.0)


@pytest.fixture(scope="session")
def finished(peptide_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished MM run and its result."""
    folder = tmp_path_factory.mktemp("finished")
    return folder, simulate(settings(peptide_file, folder), message=quiet)


def test_writes_what_it_did(finished: tuple[Path, dict[str, Any]]) -> None:
    """The result is that of result.json; log, trajectory and series have the expected length and plausible values."""
    folder, result = finished
    assert result == json.loads((folder / "result.json").read_text())
    assert result["status"] == "finished"
    assert result["series"]["step"] == [0, 10, 20, 30, 40]
    assert result["structure"]["frames"] == 3
    assert result["structure"]["rmsd_nm"][0] == pytest.approx(0, abs=1e-4)
    assert 0.001 < result["structure"]["rmsd_nm"][2] < 0.2
    assert 150 < result["temperature"]["solvent"]["mean"] < 450
    assert result["ns_per_day"] > 0


def test_structure_series_follows_a_known_motion(peptide, tmp_path: Path) -> None:
    """A rotated and shifted copy has RMSD 0, a swollen one RMSD and Rg by its factor; a torn frame is left out."""
    recorder = record.Recorder(tmp_path, peptide.topology, 0.0005, 1, resume=False)
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    for positions in (peptide.positions, peptide.positions @ turn.T + 0.3, peptide.positions * 1.1):
        recorder.frame(record.Snapshot(0, positions, positions, peptide.box, 0.0))
    recorder.close()
    with open(tmp_path / "trajectory.dcd", "ab") as file:
        file.write(b"half a frame")
    solute = build.protein_mask(peptide.topology)
    series = structure_series(peptide.topology, tmp_path / "trajectory.dcd", solute, 0.5)
    assert series["frames"] == 3 and series["time_ps"] == [0.0, 0.5, 1.0]
    assert series["rmsd_nm"][1] == pytest.approx(0, abs=2e-4)
    backbone = [a.index for a in peptide.topology.atoms() if solute[a.index] and a.name in ("N", "CA", "C", "O")]
    spread = peptide.positions[backbone] - peptide.positions[backbone].mean(axis=0)
    assert series["rmsd_nm"][2] == pytest.approx(0.1 * np.sqrt((spread**2).sum(axis=1).mean()), rel=1e-3)
    assert series["rg_nm"][2] == pytest.approx(1.1 * series["rg_nm"][0], rel=1e-4)


def test_finished_run_is_reused_and_can_be_prolonged(finished, peptide_file: Path, tmp_path: Path) -> None:
    """The same command does nothing again; more steps go on from the end, appending to the same files."""
    folder, result = finished
    assert simulate(settings(peptide_file, folder), message=quiet) == result
    more = simulate(settings(peptide_file, folder, steps=60), message=quiet)
    assert more["series"]["step"] == [0, 10, 20, 30, 40, 50, 60]
    assert more["structure"]["frames"] == 4
    assert more["series"]["solute_K"][:5] == result["series"]["solute_K"]


def test_killed_run_loses_at_most_one_checkpoint_interval(peptide_file: Path, tmp_path: Path) -> None:
    """After SIGKILL in mid-run the next run goes on from a checkpoint, with no step twice and none missing."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[3]);"
        "from test_simulate import settings, quiet, simulate;"
        "simulate(settings(Path(sys.argv[1]), Path(sys.argv[2]), steps=100000), message=quiet)"
    )
    arguments = [sys.executable, "-c", code, str(peptide_file), str(tmp_path), str(Path(__file__).parent)]
    process = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        deadline = time.monotonic() + 60
        while _last_step(tmp_path) < 90:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    reached = _last_step(tmp_path)
    snapshot = record.read_checkpoint(tmp_path)
    assert snapshot is not None and reached - snapshot.step <= 20 + 10
    with open(tmp_path / "trajectory.dcd", "ab") as file:
        file.write(b"torn")
    target = snapshot.step + 40
    result = simulate(settings(peptide_file, tmp_path, steps=target), message=quiet)
    assert result["series"]["step"] == list(range(0, target + 1, 10))
    assert result["structure"]["frames"] == target // 20 + 1
    frames = read_frames(tmp_path / "trajectory.dcd", result["atoms"], True)
    count = np.frombuffer((tmp_path / "trajectory.dcd").read_bytes()[8:12], "<i4")[0]
    assert count == len(frames) == target // 20 + 1


def test_run_that_ended_between_two_looks_is_prolonged_in_step(peptide_file: Path, tmp_path: Path) -> None:
    """After 25 steps, looked at every 10, frames come at multiples of 20 again and no interval is lost."""
    simulate(settings(peptide_file, tmp_path, steps=25), message=quiet)
    more = simulate(settings(peptide_file, tmp_path, steps=60), message=quiet)
    assert more["series"]["step"] == [0, 10, 20, 25, 30, 40, 50, 60]
    assert more["structure"]["frames"] == 4


def test_interrupt_inside_the_model_is_no_instability(
    peptide_file: Path, model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C while the network computes ends the run in good order, and the same call goes on to the end."""
    original, calls = ModelCallable.__call__, 0

    def interrupted(self: ModelCallable, state: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            signal.raise_signal(signal.SIGINT)
        return original(self, state)

    monkeypatch.setattr(ModelCallable, "__call__", interrupted)
    config = settings(peptide_file, tmp_path, model=model_file, steps=20)
    with pytest.raises(KeyboardInterrupt):
        simulate(config, message=quiet)
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["event"], result["steps"]) == ("interrupted", None, 10)
    result = simulate(config, message=quiet)
    assert (result["status"], result["series"]["step"]) == ("finished", [0, 10, 20])


def test_deterministic_run_takes_the_same_path_after_a_kill(
    peptide_file: Path, model_file: Path, tmp_path: Path
) -> None:
    """40 steps are, bit for bit, 32 steps, kill -9 and the same command again; a Context not made anew differs.

    The trajectory is an XTC: frames after the checkpoint and a torn one are cut off, and the rest goes on.
    """
    common = {"model": str(model_file), "deterministic": True, "threads": None, "log_every": 4, "frame_every": 4}
    common |= {"trajectory": "xtc"}
    whole, killed, control = (tmp_path / name for name in ("whole", "killed", "control"))
    simulate(settings(peptide_file, whole, **common), message=quiet)
    code = (
        "import os, sys, json; from pathlib import Path; sys.path.insert(0, sys.argv[3]);"
        "from test_simulate import settings, quiet, simulate; from forcefield_ml.simulation import record;"
        "row = record.Recorder.row;"
        "record.Recorder.row = lambda self, v: (row(self, v), v['step'] == 32 and os.kill(os.getpid(), 9));"
        "simulate(settings(Path(sys.argv[1]), Path(sys.argv[2]), **json.loads(sys.argv[4])), message=quiet)"
    )
    arguments = [str(peptide_file), str(killed), str(Path(__file__).parent), json.dumps(common)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    assert subprocess.run([sys.executable, "-c", code, *arguments], env=environment).returncode == -signal.SIGKILL
    assert _last_step(killed) == 32
    with open(killed / "trajectory.xtc", "ab") as file:
        file.write(b"torn")
    simulate(settings(peptide_file, killed, **common), message=quiet)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("forcefield_ml.simulation.run._Run._checkpoint", lambda self, last, to: to.checkpoint(last))
        simulate(settings(peptide_file, control, **common), message=quiet)
    results = {}
    for folder in (whole, killed, control):
        results[folder.name] = state_of(folder)
    trajectories = [(folder / "trajectory.xtc").read_bytes() for folder in (whole, killed)]
    assert results["whole"] == results["killed"] and trajectories[0] == trajectories[1]
    assert all(one != other for one, other in zip(results["whole"], results["control"], strict=True))
    times = mdtraj.load(str(killed / "trajectory.xtc"), top=str(killed / record.TOPOLOGY)).time
    assert times == pytest.approx(np.arange(11) * 4 * 0.0005)


def state_of(folder: Path) -> list[bytes]:
    """Return positions and velocities of a run's checkpoint, and its log."""
    snapshot = record.read_checkpoint(folder)
    assert snapshot is not None
    return [snapshot.positions.tobytes(), snapshot.velocities.tobytes(), (folder / record.LOG).read_bytes()]


@pytest.mark.parametrize("mode", [pytest.param("solute", marks=pytest.mark.slow), "system"])
def test_deterministic_run_stops_where_it_can_go_on(
    mode: str, peptide_file: Path, model_file: Path, tmp_path: Path
) -> None:
    """The time limit waits for the next checkpoint, and from there the path is that of the run that went through.

    Here with multiple time steps, whose random numbers are another integrator's, in mode system with a reference beside
    the model.
    """
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    model = with_card(model_file, tmp_path, target_atoms="all") if mode == "system" else model_file
    common = {"model": model, "mode": mode, "deterministic": True, "mts": 4, "log_every": 4, "frame_every": 20}
    common |= {"threads": None, "timestep_fs": 0.05, "equilibration_ps": 0.02, "minimise_iterations": 30}
    assert simulate(settings(peptide_file, stopped, max_minutes=1e-6, **common), message=quiet)["steps"] == 20
    assert simulate(settings(peptide_file, stopped, **common), message=quiet)["steps"] == 40
    simulate(settings(peptide_file, whole, **common), message=quiet)
    assert state_of(whole) == state_of(stopped)


@pytest.mark.parametrize("mode", [pytest.param("solute", marks=pytest.mark.slow), "system"])
def test_multiple_time_steps(mode: str, peptide_file: Path, model_file: Path, tmp_path: Path) -> None:
    """Steps are the model's; the energy in the log is that of MM, also where the model moves every atom.

    There OpenMM supplies the reciprocal sum beside both.
    """
    reciprocal = {"alpha": 4.0, "force_field": ["amber14-all.xml", "amber14/tip3pfb.xml"], "tolerance": 1e-4}
    whole = {"target_atoms": "all", "predicts": "total_minus_reciprocal", "reciprocal": reciprocal}
    card: dict[str, Any] = whole if mode == "system" else {}
    model = with_card(model_file, tmp_path, **card)
    # a network with random weights is far from MM, so that the outer kicks are strong
    changes = {"mts": 8, "steps": 24, "checkpoint_every": None, "timestep_fs": 0.02}
    config = settings(peptide_file, tmp_path, model=model, mode=mode, **changes)
    assert (config.log_every, config.frame_every, config.checkpoint_every) == (16, 32, 112)
    result = simulate(config, message=quiet)
    assert (result["status"], result["series"]["step"], result["mts"]) == ("finished", [0, 16, 24], 8)
    assert result["time_ps"] == pytest.approx(24 * 2e-5) and result["net_force_removed"] is (mode == "system")
    prepared = read_prepared(tmp_path / record.TOPOLOGY)
    system = build.mm_system(prepared, config.force_field, 0.6)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"))
    snapshot = record.read_checkpoint(tmp_path)
    assert snapshot is not None
    context.setPositions(snapshot.positions)
    energy = context.getState(energy=True).getPotentialEnergy()._value
    assert result["series"]["potential_kJ_mol"][-1] == pytest.approx(energy, rel=1e-4)


def test_a_model_with_an_energy_kicks(peptide_file: Path, model_file: Path, tmp_path: Path) -> None:
    """The energy in the log is that model's; without an energy, or where MM stands in the system, it is refused."""
    torch.manual_seed(6)
    dear = models.build(make_model(1.0).config | {"head": "energy"}).eval()
    dear.set_scale(5.0)
    path = bundle.write(dear, make_card(dear, target_atoms="all"), tmp_path / "energy.pt")
    model = with_card(model_file, tmp_path, target_atoms="all")
    changes = {"mts": 8, "steps": 16, "checkpoint_every": None, "timestep_fs": 0.02, "model": model}
    config = settings(peptide_file, tmp_path / "run", mode="system", reference=path, **changes)
    result = simulate(config, message=quiet)
    prepared = read_prepared(tmp_path / "run" / record.TOPOLOGY)
    system = forcefield_ml.load(path).create_system(prepared.topology)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"))
    snapshot = record.read_checkpoint(tmp_path / "run")
    assert snapshot is not None
    context.setPositions(snapshot.positions)
    energy = context.getState(energy=True).getPotentialEnergy()._value
    assert result["series"]["potential_kJ_mol"][-1] == pytest.approx(energy, rel=1e-4)
    for one, told in ((path, True), (model, False)):
        mm = build.mm_system(prepared, config.force_field, 0.6)
        notes = build.add_model(mm, prepared.topology, one, None, "auto").warnings
        assert ("own energy" in " ".join(notes)) is told
    with pytest.raises(ConfigError, match="mode 'system' alone"):
        simulate(settings(peptide_file, tmp_path / "2", mode="solute", reference=path, **changes), message=quiet)
    with pytest.raises(ForceModeError, match="no energy"):
        simulate(settings(peptide_file, tmp_path / "3", mode="system", reference=model, **changes), message=quiet)
    with pytest.raises(ConfigError, match=r"settings \(reference_sha256"):
        simulate(settings(peptide_file, tmp_path / "run", mode="system", **changes), message=quiet)


@pytest.mark.parametrize(
    ("predicts", "told"), [("solute_alone", "different exclusions"), ("reference_minus_mm", "would take back")]
)
def test_modes_without_multiple_time_steps(
    predicts: str, told: str, peptide_file: Path, model_file: Path, tmp_path: Path
) -> None:
    """Where MM is no reference, or cannot stand beside the model, that is told before any work, and nothing is left."""
    config = settings(peptide_file, tmp_path, model=with_card(model_file, tmp_path, predicts=predicts), mts=5)
    with pytest.raises(ConfigError, match=told):
        simulate(config, message=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def _last_step(folder: Path) -> int:
    try:
        lines = (folder / record.LOG).read_text().split("\n")[1:-1]
    except OSError:
        return -1
    return int(lines[-1].split(",")[0]) if lines else -1


def test_restored_state_is_the_saved_one(finished) -> None:
    """The checkpoint holds the atoms of the last step, and their MM energy is the logged one."""
    folder, _ = finished
    snapshot = record.read_checkpoint(folder)
    assert snapshot is not None
    prepared = read_prepared(folder / record.TOPOLOGY)
    system = build.mm_system(prepared, ("amber14-all.xml", "amber14/tip3pfb.xml"), 0.6)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(snapshot.positions)
    energy = context.getState(energy=True).getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    assert energy == pytest.approx(record.read_log(folder)["potential_kJ_mol"][-1], rel=1e-3)


def test_other_settings_need_another_folder(finished, peptide_file: Path) -> None:
    """A folder is not mixed: the message names the setting that differs."""
    folder, _ = finished
    with pytest.raises(ConfigError, match=r"temperature was 300\.0, is 310\.0"):
        simulate(settings(peptide_file, folder, temperature=310.0), message=quiet)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"structure": Path("typo.pdb")}, "typo.pdb, which is not a file"),
        ({"mode": "system"}, "trained on the forces of all atoms"),
        ({"backend": "torchfroce"}, "Did you mean 'torchforce'"),
        ({"platform": "Cuda"}, "no platform 'Cuda'"),
    ],
)
def test_a_mistake_does_not_throw_a_run_away(
    changes: dict[str, Any], told: str, finished, peptide_file: Path, model_file: Path, tmp_path: Path
) -> None:
    """What can be known to fail is refused before --restart empties the folder, and before anything is prepared."""
    shutil.copytree(finished[0], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    lines: list[str] = []
    with pytest.raises((ConfigError, ForceModeError), match=told):
        values = {"structure": peptide_file, "model": model_file, **changes}
        simulate(settings(values.pop("structure"), tmp_path / "run", **values), restart=True, message=lines.append)
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before and not lines


def test_a_checkpoint_alone_is_not_gone_on_with(finished, peptide_file: Path, tmp_path: Path) -> None:
    """Without config.json nobody knows by which settings it came about."""
    shutil.copytree(finished[0], tmp_path / "run")
    (tmp_path / "run" / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"without its config\.json"):
        simulate(settings(peptide_file, tmp_path / "run", temperature=100.0, steps=60), message=quiet)


def test_runs_a_model_in_mode_solute(peptide_file: Path, model_file: Path, tmp_path: Path) -> None:
    """The card's mode is taken; from a minimised start FIRE lowers the largest force of the mixed system."""
    config = settings(peptide_file, tmp_path, model=model_file, start="minimised", fire_steps=10, steps=20)
    result = simulate(config, message=quiet)
    assert (result["mode"], result["model"]["architecture"]) == ("solute", "fast")
    assert result["fire"]["max_force"] <= result["fire"]["start_max_force"]
    assert any("action and reaction" in line for line in result["warnings"])
    assert result["status"] == "finished"


def test_unstable_run_stops_and_keeps_the_last_good_state(peptide_file: Path, tmp_path: Path) -> None:
    """A guard names the atoms; result.json and a finite state are written; running again tells it at once."""
    config = settings(peptide_file, tmp_path, model=write_model(tmp_path, 20000.0), max_temperature=600.0, steps=2000)
    with pytest.raises(UnstableError, match=r"temperature of the sol(ute|vent)|force on"):
        simulate(config, message=quiet)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["status"] == "unstable" and result["event"]["step"] == result["steps"] + 10
    assert all("(" in name for name in result["event"]["atoms"]) and result["event"]["atoms"]
    snapshot = record.read_checkpoint(tmp_path)
    assert snapshot is not None and snapshot.step == result["steps"] and np.isfinite(snapshot.positions).all()
    written = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with pytest.raises(UnstableError, match="former run"):
        simulate(config, message=quiet)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == written, "nothing is done again"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"timestep_fs": 3.0}, "at most 2 fs"),
        ({"timestep_fs": 3.5, "hydrogen_mass": 3.0}, "at most 3.2 fs"),
        ({"hydrogen_mass": 8.0}, "less than or equal to 4"),
        ({"frame_every": 15}, "multiple of log_every"),
        ({"mts": 8, "model": "m.pt", "log_every": 10}, "log_every is 10; it must be a multiple of mts, 8"),
        ({"mts": 8, "steps": 32, "checkpoint_every": None}, "there is no model"),
        ({"mts": 9, "steps": 36, "checkpoint_every": None, "model": "m.pt"}, "4.5 fs.*at 0.5 fs mts is at most 8"),
        ({"trajectory": "trr"}, "'dcd' or 'xtc'"),
        ({"model": "m.pt", "reference": "e.pt"}, "mts is 1. Set mts"),
        ({"deterministic": True, "threads": 2}, "deterministic runs have one"),
        ({"deterministic": True, "backend": "torchforce"}, "take pythonforce"),
        ({"tempature": 300}, "Did you mean 'temperature'"),
    ],
)
def test_refuses_bad_settings(changes: dict[str, Any], told: str, tmp_path: Path) -> None:
    """Steps without constraints above 2 fs, intervals that do not fit and unknown keys are refused, with advice."""
    with pytest.raises(ConfigError, match=told) as raised:
        settings(tmp_path / "x.pdb", tmp_path, **changes)
    assert "the whole" not in str(raised.value)


def test_warns_of_a_long_timestep(peptide_file: Path, tmp_path: Path) -> None:
    """A timestep above 1 fs is told aloud and stored."""
    told: list[str] = []
    result = simulate(settings(peptide_file, tmp_path, timestep_fs=1.5, steps=10), message=told.append)
    assert any("1.5 fs is long" in line for line in told) and "1.5 fs is long" in result["warnings"][0]


def test_a_torn_bond_stops_a_run(peptide_file: Path, tmp_path: Path) -> None:
    """The same model with the guard on: bonds tear before anything is hot, and result.json says which."""
    config = settings(peptide_file, tmp_path, model=write_model(tmp_path, 20000.0), torn_bonds=True, steps=2000)
    with pytest.raises(UnstableError, match=r"(1 bond is|bonds are) torn, the longest to 0\.\d+ nm"):
        simulate(config, message=quiet)
    assert json.loads((tmp_path / "result.json").read_text())["event"]["kind"] == "bond"


def test_heavy_hydrogens(peptide_file: Path, model_file: Path, tmp_path: Path) -> None:
    """They move slower by the masses' ratio, in MM and with a model on every atom; a step of 1.5 fs is then usual."""
    everything = with_card(model_file, tmp_path, target_atoms="all")
    told: list[str] = []
    for model, mode in ((None, None), (everything, "system")):
        config = settings(
            peptide_file, tmp_path / str(mode), model=model, mode=mode, hydrogen_mass=3.0, timestep_fs=1.5, steps=10
        )
        result = simulate(config, message=told.append)
        assert result["hydrogen_mass"] == 3.0
        prepared = read_prepared(tmp_path / str(mode) / record.TOPOLOGY)
        mm = build.mm_system(prepared, config.force_field, 0.6, 3.0)
        system = build.add_model(mm, prepared.topology, model, mode, "auto").system
        masses = {
            atom.element.symbol: system.getParticleMass(atom.index)._value
            for atom in prepared.topology.atoms()
            if atom.residue.name == "HOH"
        }
        assert masses == pytest.approx({"H": 3.0, "O": 15.99943 - 2 * (3 - 1.007947)}, abs=1e-4)
    assert not any("is long" in line for line in told)


def test_time_limit_counts_all_sessions(peptide_file: Path, tmp_path: Path) -> None:
    """A run that spent its minutes stops cleanly, and the same command does not go on."""
    config = settings(peptide_file, tmp_path, steps=10**6, max_minutes=0.005)
    result = simulate(config, message=quiet)
    assert result["status"] == "time_limit" and 0 < result["steps"] < 10**6
    assert simulate(config, message=quiet)["steps"] == result["steps"]


def test_tells_deposited_from_solvated(peptide, peptide_file: Path) -> None:
    """A prepared file is taken as it is; one without water or hydrogens is not."""
    assert build.is_solvated(peptide.topology)
    modeller = openmm.app.Modeller(peptide.topology, peptide.positions * unit.nanometer)
    modeller.delete([r for r in modeller.topology.residues() if r.name == "HOH"])
    assert not build.is_solvated(modeller.topology)
    modeller = openmm.app.Modeller(peptide.topology, peptide.positions * unit.nanometer)
    mask = build.protein_mask(peptide.topology)
    modeller.delete([a for a in modeller.topology.atoms() if mask[a.index] and a.element.symbol == "H"])
    assert not build.is_solvated(modeller.topology)


def test_a_run_begins_from_what_it_wrote(peptide: Prepared, tmp_path: Path) -> None:
    """A run killed before its first checkpoint goes on from topology.cif, and so must one that was not."""
    lines = io.StringIO()
    openmm.app.PDBxFile.writeFile(peptide.topology, peptide.positions * unit.nanometer, lines, keepIds=True)
    x = f"{10 * peptide.positions[0, 0]:10.4f}".strip()
    assert lines.getvalue().count(f" {x} ") >= 1
    path = tmp_path / "fine.cif"
    path.write_text(lines.getvalue().replace(f" {x} ", f" {x}37 ", 1))
    first, _ = build.solvated(path, tmp_path / "out.cif", ph=7.0, padding=0.8, seed=0)
    again = read_prepared(tmp_path / "out.cif")
    assert np.array_equal(first.positions, again.positions) and np.array_equal(first.box, again.box)


@pytest.mark.parametrize("content", ["", "HEADER  nothing\nEND\n", "<html>404</html>"])
def test_unreadable_structures_are_told(content: str, tmp_path: Path) -> None:
    """An empty, atomless or foreign file ends in one clear error."""
    path = tmp_path / "bad.pdb"
    path.write_text(content)
    with pytest.raises(ConfigError, match=r"bad\.pdb"):
        simulate(settings(path, tmp_path / "out"), message=quiet)


def test_models_that_ship_go_by_name(peptide_file: Path, tmp_path: Path) -> None:
    """A name without suffix is looked up among the models that ship; an unknown one is told with what there is."""
    with pytest.raises(ModelFileError, match=r"no model 'fsat-thermal' ships"):
        simulate(settings(peptide_file, tmp_path, model="fsat-thermal"), message=quiet)
    assert pretrained.resolve(tmp_path / "model.pt") == tmp_path / "model.pt"
    for name in pretrained.names():
        assert pretrained.resolve(name).is_file()
