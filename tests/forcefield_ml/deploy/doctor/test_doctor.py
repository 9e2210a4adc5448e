"""The doctor tells the truth: here, where packages are absent or broken, and of pairs that are known to fail."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from forcefield_ml.cli import app as cli
from forcefield_ml.deploy.doctor import diagnose as doctor
from forcefield_ml.deploy.doctor import findings, trial
from forcefield_ml.deploy.force import plugin_repair
from forcefield_ml.kernels.compiler import find_compiler

BLOCKER = '''
import builtins, importlib.metadata, os, sys
ABSENT, FAILING = os.environ.get("ABSENT", "").split(), os.environ.get("FAILING", "").split()

class Hiding:
    """A finder that does not find what is absent, and fails at what is broken."""

    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            return None
        if name in FAILING:
            raise OSError("libbroken.so.1: cannot open shared object file")
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Hiding(finder) for finder in sys.meta_path]
original = importlib.metadata.Distribution.from_name.__func__

def from_name(cls, name):
    if name.replace("-", "_").lower() in ABSENT:
        raise importlib.metadata.PackageNotFoundError(name)
    return original(cls, name)

importlib.metadata.Distribution.from_name = classmethod(from_name)
'''
"""As sitecustomize.py it makes packages absent or broken, in the doctor's own child processes too."""


def run_doctor(folder: Path, **emulated: str) -> tuple[int, dict[str, Any]]:
    """Return exit status and diagnosis of `forcefield-ml doctor --json` where packages are absent or broken."""
    (folder / "sitecustomize.py").write_text(BLOCKER)
    root = Path(__file__).parents[4]
    environment = {**os.environ, **emulated, "PYTHONPATH": os.pathsep.join([str(folder), str(root)])}
    command = [sys.executable, "-m", "forcefield_ml.cli", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, cwd=folder)
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.returncode, json.loads(done.stdout)


def by_name(diagnosis: dict[str, Any]) -> dict[str, dict[str, str]]:
    """Return the findings by what was looked at."""
    return {finding["name"]: finding for finding in diagnosis["findings"]}


def test_here() -> None:
    """Both backends are tried on each platform, the choice has its reason, and the JSON is one object."""
    result = CliRunner().invoke(cli, ["doctor", "--json"])
    diagnosis = json.loads(result.stdout)
    assert result.exit_code == 0 and diagnosis["healthy"], diagnosis
    found = by_name(diagnosis)
    for name in ("packages", "pythonforce", "torchforce", "kernels"):
        assert found[name]["status"] == "ok", found[name]
    assert {"Reference", "CPU"} <= set(diagnosis["platforms"])
    assert diagnosis["backend"]["name"] == "pythonforce" and "PythonForce" in diagnosis["backend"]["reason"]
    text = doctor.report(diagnosis)
    assert text.endswith("all that is needed works") and "backend    pythonforce: OpenMM" in text
    assert all(f"not loaded {m.rpartition('/plugins/')[2]}" in text for m in diagnosis["plugin_failures"])


@pytest.mark.slow
def test_without_openmmtorch_and_friends(tmp_path: Path) -> None:
    """Without openmmtorch, openmm-ml and ASE all is well, and each is offered with its command."""
    status, diagnosis = run_doctor(tmp_path, ABSENT="openmmtorch _openmmtorch openmmml ase")
    found = by_name(diagnosis)
    assert status == 0 and diagnosis["healthy"] and diagnosis["backend"]["name"] == "pythonforce"
    assert found["pythonforce"]["status"] == "ok"
    assert not {"openmmtorch", "openmmml", "ase"} & set(diagnosis["versions"])
    for name, mend in (
        ("torchforce", plugin_repair.INSTALL),
        ("openmm-ml", 'pip install "openmmml>=1.8"'),
        ("ase", 'pip install "ase>=3.25"'),
    ):
        assert (found[name]["status"], found[name]["mend"]) == ("optional", mend)


@pytest.mark.parametrize(
    ("emulated", "name", "told", "mend"),
    [
        ({"ABSENT": "torch"}, "import torch", "No module named 'torch'", "torch"),
        ({"FAILING": "openmm"}, "import openmm", "libbroken.so.1", "openmm"),
    ],
)
def test_what_nothing_goes_without(emulated: dict[str, str], name: str, told: str, mend: str, tmp_path: Path) -> None:
    """Without torch or OpenMM, or with a broken one, the doctor still answers, and says no."""
    status, diagnosis = run_doctor(tmp_path, **emulated)
    found = by_name(diagnosis)
    assert status == 1 and not diagnosis["healthy"] and not diagnosis["backend"]["name"]
    assert found[name]["status"] == "broken" and told in found[name]["detail"]
    assert found[name]["mend"].startswith("pip install") and found[name]["mend"].endswith(mend)
    if "ABSENT" in emulated:
        assert re.search(r'pip install "torch', found["packages"]["mend"])


def versions(monkeypatch: pytest.MonkeyPatch, **changed: str) -> None:
    """Let packages have other versions; an empty one is not installed."""
    true = metadata.version

    def version(name: str) -> str:
        name = name.replace("-", "_").lower()
        if changed.get(name) == "":
            raise metadata.PackageNotFoundError(name)
        return changed.get(name) or true(name)

    monkeypatch.setattr(metadata, "version", version)


def test_packages_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing or older than asked for is named in one command."""
    versions(monkeypatch, openmm="8.4.0", gemmi="")
    found = findings.look_at_requirements()
    assert found.status == "broken" and "8.4.0 is too old" in found.detail and "gemmi" in found.detail
    assert '"openmm>=8.6.1"' in found.mend and '"gemmi>=' in found.mend and "numpy" not in found.mend


@pytest.mark.parametrize(
    ("openmm", "torch_cuda", "sees", "platforms", "kernel", "status", "told", "mend"),
    [
        ("8.6.1", None, False, ["CPU"], "", "optional", "built for the CPU alone", "torch===2.9.1"),
        ("8.6.1", "12.8", False, ["CPU"], "", "optional", "sees no device", ""),
        ("8.6.1", "12.8", True, ["CPU"], "", "optional", "no CUDA platform", "openmm[cuda12]>=8.6.1"),
        ("8.6.1", "13.0", True, ["CPU"], "", "optional", "no CUDA platform", "openmm[cuda13]>=8.6.1"),
        ("8.5.0", "12.8", True, ["CPU", "CUDA"], "1.5", "broken", "NaN coordinates", "openmm[cuda12]>=8.6.1"),
        ("8.6.1", "12.8", True, ["CPU", "CUDA"], "", "optional", "TorchForce has no CUDA", "openmmtorch[cuda12]"),
        ("8.6.1", "12.8", True, ["CPU", "CUDA"], "1.5", "ok", "both", ""),
    ],
)
def test_gpu(
    openmm: str, torch_cuda: str | None, sees: bool, platforms: list[str], kernel: str, status: str, told: str,
    mend: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Whichever half lacks the GPU is named, with the package that brings it; OpenMM before 8.6.1 is refused there."""
    versions(monkeypatch, openmm=openmm, openmmtorch="1.5", openmm_torch_cuda_12=kernel)
    monkeypatch.setattr(findings.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: sees)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    found = findings.look_at_gpu(platforms)
    assert found.status == status and told in found.detail and mend in found.mend
    assert bool(mend) == bool(found.mend)


def test_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong forces, crashes and errors are told by backend and platform; only PythonForce on the CPU is needed."""
    answers: dict[tuple[str, str], dict[str, Any]] = {
        ("pythonforce", "Reference"): {"Reference": 1e-7, "CPU": 1e-7},
        ("pythonforce", "OpenCL"): {"error": "the process that tried it crashed (signal 11)"},
        ("pythonforce", "CUDA"): {"CUDA": 0.5},
        ("torchforce", "Reference"): {"error": "ForcefieldMLError: no kernels"},
    }
    monkeypatch.setattr(trial, "run_apart", lambda backend, tried: answers[backend, tried[0]])
    versions(monkeypatch, openmmtorch="1.5", torch="2.13.0+cpu")
    found = findings.look_at_backend("pythonforce", ["Reference", "CPU", "OpenCL", "CUDA"])
    assert [(f.name, f.status) for f in found] == [
        ("pythonforce", "ok"),
        ("pythonforce on OpenCL", "optional"),
        ("pythonforce on CUDA", "optional"),
    ]
    assert "signal 11" in found[1].detail and "getPlatformByName('CPU')" in found[1].mend
    assert "wrong forces: CUDA 5e-01" in found[2].detail
    (torchforce,) = findings.look_at_backend("torchforce", ["Reference", "CPU", "OpenCL"])
    assert torchforce.status == "optional" and "needs torch 2.9, this is 2.13.0+cpu" in torchforce.detail
    versions(monkeypatch, openmmtorch="1.5", torch="2.9.1+cpu")
    (torchforce,) = findings.look_at_backend("torchforce", ["Reference", "CPU"])
    assert "libraries that torch 2.9.1+cpu lacks" in torchforce.detail and torchforce.mend == plugin_repair.INSTALL
    answers["pythonforce", "Reference"] = {"Reference": 1e-7, "CPU": float("nan")}
    assert findings.look_at_backend("pythonforce", ["Reference", "CPU"])[0].status == "broken"


def test_a_crash_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that kills its process, one that raises and one that hangs end in one line each."""
    monkeypatch.setattr(trial.sys, "executable", "/bin/sh")
    run = subprocess.run

    def instead(script: str) -> str:
        monkeypatch.setattr(subprocess, "run", lambda command, **options: run(["/bin/sh", "-c", script], **options))
        return trial.run_apart("pythonforce", ["CPU"])["error"]

    assert "crashed (signal 11)" in instead("kill -11 $$")
    assert instead("echo first >&2; echo last words >&2; exit 1") == "last words"
    monkeypatch.setattr(trial, "SECONDS", 0.1)
    assert "no answer" in instead("sleep 5")


def test_plugins_that_do_not_load() -> None:
    """Failures are summed up by kind; OpenCL's matter to nobody else, CUDA's depend on what is missing."""
    base = "Error loading library /x/plugins/libOpenMM"
    found = findings.look_at_plugins(
        [
            f"{base}OpenCL.so: libOpenCL.so.1: cannot open shared object file",
            f"{base}DrudeOpenCL.so: libOpenCL.so.1: cannot open shared object file",
            f"{base}CUDA.so: libcuda.so.1: cannot open shared object file",
            f"{base}TorchReference.so: libnvrtc.so.12: cannot open shared object file",
        ]
    )
    assert [f.name for f in found] == ["OpenCL plugins", "CUDA plugins"]
    assert found[0].detail.startswith("2 do not load: libOpenCL.so.1") and not found[0].mend
    assert "driver" in found[1].mend


def test_openmmml(monkeypatch: pytest.MonkeyPatch) -> None:
    """openmm-ml that finds this package, that does not, and that is absent, are three findings."""
    entry = metadata.EntryPoint("forcefield-ml", "forcefield_ml.errors:ForcefieldMLError", "openmmml.potentials")
    announced: list[metadata.EntryPoint] = [entry]
    monkeypatch.setattr(metadata, "entry_points", lambda **options: announced)
    versions(monkeypatch, openmmml="1.8")
    assert findings.look_at_openmmml().status == "ok"
    announced[:] = [metadata.EntryPoint("forcefield-ml", "forcefield_ml.nowhere:Nothing", "openmmml.potentials")]
    assert "does not load: ModuleNotFoundError" in findings.look_at_openmmml().detail
    announced.clear()
    assert "without its entry point" in findings.look_at_openmmml().detail
    versions(monkeypatch, openmmml="")
    assert findings.look_at_openmmml().mend == 'pip install "openmmml>=1.8"'


def test_programs_and_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No compiler, no aligner, and a cache that others may write to, are told apart."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels").chmod(0o777)
    monkeypatch.setenv("FORCEFIELD_ML_CACHE", str(tmp_path))
    kernels = findings.look_at_kernels()
    assert (
        kernels.status == "optional" and "FORCEFIELD_ML_CACHE" in kernels.mend and "others may write" in kernels.detail
    )
    monkeypatch.delenv("FORCEFIELD_ML_CACHE")
    monkeypatch.setattr(findings.shutil, "which", lambda name: None)
    find_compiler.cache_clear()
    assert findings.look_at_kernels().mend == "apt-get install gcc libc6-dev"
    find_compiler.cache_clear()
    assert findings.look_at_aligner().mend.startswith("apt-get install ncbi-blast+")
