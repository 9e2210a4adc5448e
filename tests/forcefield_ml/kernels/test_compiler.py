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
from forcefield_ml.deploy.force.evaluator import Evaluator
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
    """A file cut short in the cache costs a compilation, nothing else; loading half of one would be a bus error."""
    cache.mkdir(parents=True, mode=0o700)
    result = run(cache.parent)
    for library in cache.glob("*.so"):
        content = library.read_bytes()
        library.write_bytes(content[: len(content) // 2])
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
    assert not list(cache.glob("probe-*"))
    assert not list(cache.glob("build-*"))


def test_without_a_compiler_the_plain_form_serves(tmp_path: Path) -> None:
    """Same forces, one line of warning that says what to install."""
    fast, plain = run(tmp_path / "one"), run(tmp_path / "two", CC="/no/such/compiler")
    assert [float(v) for v in fast.stdout.split()] == pytest.approx([float(v) for v in plain.stdout.split()], rel=2e-3)
    assert plain.stderr.count("no compiled kernels") == 1
    assert "apt install gcc" in plain.stderr
    assert not list((tmp_path / "two").glob("**/*.so"))


ONLY_THE_PROBE = """#!/bin/sh
case "$*" in *--version*) echo a compiler; exit;; esac
for word in "$@"; do
    case $word in *.c) grep -q NAME $word && { echo no space left >&2; exit 1; };; esac
done
exec cc "$@"
"""


@pytest.mark.parametrize("name", ["refresh_nearest", "read_row"])
def test_a_kernel_that_fails_later_is_done_without(tmp_path: Path, name: str) -> None:
    """What compiles at first need not later (a full disk): neighbours, or convolutions; forces come all the same."""
    compiler_script = tmp_path / "compiler"
    compiler_script.write_text(ONLY_THE_PROBE.replace("NAME", name))
    compiler_script.chmod(0o700)
    result = run(tmp_path / "cache", CC=str(compiler_script))
    assert len(result.stdout.split()) == 9
    assert result.stderr.count("the plain PyTorch form serves") == 1
    assert "no space left" in result.stderr


OPENMP_OF_ANOTHER = """#!/bin/sh
case "$*" in *--version*) echo a compiler; exit;; esac
echo "$*" >> LOG
case "$*" in *-fopenmp*) for word in "$@"; do
    case $word in *.c) echo 'int foreign_runtime(void); int needs(void) { return foreign_runtime(); }' >> $word;; esac
done;; esac
exec cc "$@"
"""


def test_without_a_common_openmp_one_thread_serves(tmp_path: Path) -> None:
    """Where OpenMP of the compiler does not load beside torch, kernels go without, and later starts know it."""
    log, compiler_script = tmp_path / "log", tmp_path / "compiler"
    compiler_script.write_text(OPENMP_OF_ANOTHER.replace("LOG", str(log)))
    compiler_script.chmod(0o700)
    first = run(tmp_path / "cache", CC=str(compiler_script))
    log.unlink()
    second = run(tmp_path / "cache", CC=str(compiler_script))
    assert first.stdout == second.stdout
    assert "OpenMP cannot be used here" in second.stderr
    assert "WARNING" not in first.stderr + second.stderr
    assert log.read_text().count("kernel.c") == 1  # the attempt, of a few lines


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user may have no home: no kernels then, and no other error."""

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("FORCEFIELD_ML_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(compiler.KernelError, match="set FORCEFIELD_ML_CACHE"):
        compiler.cache_folder()


def test_a_program_that_is_no_compiler_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says no version, and one that cannot be run."""
    for name, content in (("silent", "#!/bin/sh\n"), ("broken", "\x7fELF nonsense")):
        program = tmp_path / name
        program.write_text(content)
        program.chmod(0o700)
        monkeypatch.setenv("CC", str(program))
        with pytest.raises(compiler.KernelError, match="no C compiler that works"):
            compiler.find_compiler.__wrapped__()


def test_kernels_know_nothing_of_graphs_and_networks() -> None:
    """Layers: networks and graphs stand on kernels, not the other way round."""
    code = "import sys, forcefield_ml.kernels; print([n for n in sys.modules if n.startswith('forcefield_ml.')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "forcefield_ml.kernels.source" in loaded
    assert "forcefield_ml.nn" not in loaded
    assert "forcefield_ml.graph" not in loaded


def test_processes_may_compile_at_the_same_time(tmp_path: Path) -> None:
    """Three processes that start with an empty cache all get the force, and leave whole libraries."""
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
