"""Run each contender of the speed benchmark in a process of its own, within a time and a memory; install the peers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from contenders import CONTENDERS
from contenders.measure import Job

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PEERS = ROOT / ".venv-peers"

CACHES = ("FORCEFIELD_ML_CACHE", "WARP_CACHE_PATH", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
"""Variables that tell our compiler and those of the peers where to keep what they make."""

LOOK = 0.1
"""Seconds between two looks at a process's memory."""

TRAINING_SHARE = 0.5
"""Time for training and what follows, in units of the time for everything before it."""


def environments() -> list[str]:
    """Return the names of the peers' environments."""
    return sorted({entry.environment for entry in CONTENDERS.values()} - {""})


def interpreter(contender: str, peers: Path = PEERS) -> Path:
    """Return the Python of a contender.

    Parameters
    ----------
    contender
        Its name.
    peers
        Folder of the peers' environments.
    """
    environment = CONTENDERS[contender].environment
    return peers / environment / "bin/python" if environment else Path(sys.executable)


def install(peers: Path = PEERS) -> None:
    """Make the peers' environments, each from its list in envs/; what is there already is only brought up to date.

    Parameters
    ----------
    peers
        Where they are made.
    """
    for name in environments():
        folder = peers / name
        if not (folder / "bin/python").exists():
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        wanted = ROOT / f"envs/peers-{name}.txt"
        command = [folder / "bin/python", "-m", "pip", "install", "--disable-pip-version-check", "-r", wanted]
        subprocess.run([str(word) for word in command], check=True)


def measured(job: Job, limit: float, memory: float, caches: Path, peers: Path = PEERS) -> dict[str, Any]:
    """Run a job in a fresh process and return what it found.

    Parameters
    ----------
    job
        What to measure; ``started`` is set here.
    limit
        Seconds until its evaluations must be done; training and the rest have half of that again.
    memory
        GB of resident memory at which it is stopped.
    caches
        Where the contender's compilers keep what they make.
    peers
        Folder of the peers' environments.

    Returns
    -------
    dict
        What `contenders.measure` printed last, with ``seconds`` of the whole process; where it did not come to its
        end, ``reason`` says why, and what was found until then is there.
    """
    python = interpreter(job.contender, peers)
    if not python.exists():
        where = f"{CONTENDERS[job.contender].environment} in {peers}"
        return {"reason": f"its environment is not installed ({where}); run `make bench-peers`"}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENMM_CPU_THREADS"), str(job.threads))
    environment = {**os.environ, **threads, "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT)])}
    environment |= dict.fromkeys(CACHES, str(caches.resolve()))
    caches.mkdir(mode=0o700, parents=True, exist_ok=True)
    started = time.monotonic()
    values = json.dumps({**asdict(job), "started": started})
    lines: list[str] = []
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [str(python), "-m", "contenders.measure", values],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
            cwd=HERE,
        )
        assert child.stdout is not None
        reader = threading.Thread(target=lines.extend, args=(child.stdout,))
        reader.start()
        reason = _watch(child, lines, started, limit, memory)
        reader.join()
        found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        stage = found.get("stage", "start")
        if not reason and child.returncode:
            errors.seek(0)
            last = next((line for line in reversed(errors.read().splitlines()) if line.strip()), "no message")
            reason = f"exit status {child.returncode}: {last.strip()[:300]}"
    if reason:
        found["reason"] = f"{reason} (during: {stage})"
    found["seconds"] = time.monotonic() - started
    return found


def _watch(child: subprocess.Popen[str], lines: list[str], started: float, limit: float, memory: float) -> str:
    """Wait for a process and stop it where it takes too much; return why, empty where it ended by itself."""
    deadline = started + limit
    training = False
    while child.poll() is None:
        with suppress(subprocess.TimeoutExpired):
            child.wait(LOOK)
        if not training and lines and json.loads(lines[-1])["stage"] in ("training", "profile", "done"):
            training, deadline = True, time.monotonic() + TRAINING_SHARE * limit
        used = _resident(child.pid)
        reason = ""
        if used > memory:
            reason = f"stopped: it needed more than {memory:.3g} GB of memory"
        elif time.monotonic() > deadline:
            reason = f"stopped after {time.monotonic() - started:.0f} s, the limit"
        if reason and child.poll() is None:
            child.kill()
            child.wait()
            return reason
    return ""


def _resident(pid: int) -> float:
    """Return the resident memory of a process in GB, 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    return int(status.split("VmRSS:")[1].split()[0]) * 1024 / 1e9 if "VmRSS:" in status else 0.0
