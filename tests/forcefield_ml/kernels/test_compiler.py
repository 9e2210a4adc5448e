"""Compiling, caching and loading kernels, and what happens where that cannot be done."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forcefield_ml.kernels import compiler

SOURCE = "int twice(int n) { return 2 * n; }\n"

FORCE = """
import logging, sys, time
logging.basicConfig(level=logging.INFO)
import torch
from forcefield_ml.deploy.evaluator import Evaluator
from forcefield_ml.models import build
torch.manual_seed(0)
evaluator = Evaluator(build({"architecture": "fast", "n_channels": 8}).eval(), torch.tensor([1, 8, 1]))
forces = evaluator(torch.tensor([[0.0, 0, 0], [0.1, 0, 0], [0.13, 0.09, 0]], dtype=torch.float64)).forces
print(" ".join(f"{value:.4g}" for value in forces.flatten().tolist()))
"""


def run(cache: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Compute a force in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", FORCE],
        env={**os.environ, "FORCEFIELD_ML_CACHE": str(cache), **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache of this test's own."""
    monkeypatch.setenv("FORCEFIELD_ML_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "kernels"


def test_second_load_does_not_compile(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One library per source; it is found again, and another source makes another one."""
    assert compiler.load(SOURCE, "probe").twice(21) == 42
    (made,) = cache.glob("probe-*.so")
    monkeypatch.setattr(compiler, "_compile", lambda *_: pytest.fail("compiled again"))
    assert compiler.load(SOURCE, "probe").twice(4) == 8
    monkeypatch.undo()
    monkeypatch.setenv("FORCEFIELD_ML_CACHE", str(cache.parent))
    assert compiler.load(SOURCE.replace("2 *", "3 *"), "probe").twice(4) == 12
    assert len(list(cache.glob("probe-*.so"))) == 2
    assert made.exists()
    assert not list(cache.glob("build-*"))


def test_a_damaged_library_is_made_again(cache: Path) -> None:
    """A file cut short in the cache costs a compilation, nothing else."""
    cache.mkdir(parents=True, mode=0o700)
    result = run(cache.parent)
    for library in cache.glob("*.so"):
        library.write_bytes(library.read_bytes()[:100])
    again = run(cache.parent)
    assert again.stdout == result.stdout
    assert "does not load" in again.stderr


def test_a_cache_that_others_can_write_to_is_refused(cache: Path) -> None:
    """A library from such a folder could be anybody's."""
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(compiler.KernelError, match="others may write"):
        compiler.load(SOURCE, "probe")


def test_a_compiler_error_is_told(cache: Path) -> None:
    """The message has the compiler's own words."""
    with pytest.raises(compiler.KernelError, match=r"kernel probe: .*failed"):
        compiler.load("int twice(int n) { return 2 * m; }\n", "probe")
    assert not list(cache.glob("*"))


def test_without_a_compiler_the_plain_form_serves(tmp_path: Path) -> None:
    """Same forces, one line of warning that says what to install."""
    fast, plain = run(tmp_path / "one"), run(tmp_path / "two", CC="/no/such/compiler")
    assert [float(v) for v in fast.stdout.split()] == pytest.approx([float(v) for v in plain.stdout.split()], rel=2e-3)
    assert plain.stderr.count("no compiled kernels") == 1
    assert "apt install gcc" in plain.stderr
    assert not list((tmp_path / "two").glob("**/*.so"))


def test_processes_may_compile_at_the_same_time(tmp_path: Path) -> None:
    """Four processes that start with an empty cache all get the force, and leave whole libraries."""
    command = [sys.executable, "-c", FORCE]
    environment = {**os.environ, "FORCEFIELD_ML_CACHE": str(tmp_path / "cache")}
    running = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        for _ in range(3)
    ]
    answers = {process.communicate(timeout=300)[0] for process in running}
    assert len(answers) == 1
    assert all(process.returncode == 0 for process in running)
    begin = time.perf_counter()
    assert "compiled by" not in run(tmp_path / "cache").stderr
    assert time.perf_counter() - begin < 60
