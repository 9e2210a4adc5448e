"""Measure the cost of a force evaluation and of a training step, ours beside others, and write the table.

    python benchmarks/speed.py --install-peers     # once: the peers' environments, about 15 GB
    python benchmarks/speed.py                     # all; writes docs/results/speed.md and runs/speed/speed.json
    python benchmarks/speed.py --quick --contenders fast paper --page /tmp/speed.md --json /tmp/speed.json

Run it on a machine that does nothing else. What is measured and how stands on the page itself.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import speed_limits
import speed_processes as processes
import torch
import workloads
from contenders import CONTENDERS
from contenders.measure import Job, Workload
from speed_page import page
from speed_summary import difference, summary

from data_pipeline.files import write_json, write_text
from forcefield_ml.models.fast import FastConfig

SIZES = (1_000, 10_000, 30_000, 100_000, 200_000)
SLOW = 45.0
"""Seconds of a contender's first process beyond which it gets no second."""

PAIRS = (("paper_e3nn", "paper"), ("fast_script", "fast"))
"""Two forms of one model, whose forces are compared."""

CARRIED = ("versions", "n_parameters", "cutoff", "n_layers", "config", "profile", "note")
"""What a row takes over from the process as it is."""


def run(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Measure everything.

    Parameters
    ----------
    options
        Of the command line.
    command
        What the page says wrote it.

    Returns
    -------
    dict
        What goes into the JSON and what `speed_page.page` reads.
    """
    begun = time.monotonic()
    load = os.getloadavg()[0]
    folder = options.folder / "workloads"
    folder.mkdir(parents=True, exist_ok=True)
    box = workloads.water(folder, 2.0 if options.quick else 10.0)
    system = box if options.quick else workloads.protein(folder)
    data = Workload(system, (1, 1, 1))
    noun = "Water" if options.quick else "BPTI in water"
    results: dict[str, Any] = {
        "command": command,
        "quick": options.quick,
        "device": options.device,
        "threads": options.threads,
        "machine": {**machine(), "load": load},
        "limits": speed_limits.machine(options.device, options.threads),
        "neighbours": _neighbours(data),
        "errors": _errors(options.errors),
        "system": {"title": f"{noun}, {len(data.species):,} atoms", "n_atoms": len(data.species)},
    }
    forces = {name: options.folder / f"forces_{name}.npy" for name in options.contenders}
    for path in forces.values():
        path.unlink(missing_ok=True)
    results["system"] |= _system(options, system, forces)
    results["same_forces"] = {
        f"{one}, {other}": difference(forces[one], forces[other])
        for one, other in PAIRS
        if one in forces and other in forces
    }
    results["sizes"] = _sizes(options, box, results["system"]["contenders"])
    results["seconds"] = time.monotonic() - begun
    return results


def _job(options: argparse.Namespace, name: str, workload: Path, **changes: Any) -> Job:
    values: dict[str, Any] = {
        "contender": name,
        "workload": str(workload.resolve()),
        "copies": (1, 1, 1),
        "device": options.device,
        "threads": options.threads,
        "started": 0.0,
        "n_steps": options.steps,
        "budget": options.budget,
        "min_steps": 1,
        "training_atoms": options.training_atoms,
        "training_budget": options.budget / 3,
        "profile": False,
        "forces": "",
    }
    return Job(**{**values, **changes})


def _caches(options: argparse.Namespace, name: str) -> Path:
    """Return where a contender's compilers keep what they make."""
    return Path(options.folder) / "caches" / name


def _system(options: argparse.Namespace, workload: Path, forces: dict[str, Path]) -> dict[str, Any]:
    """Measure all contenders on the solvated protein, in turn."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in options.contenders}
    if not options.keep_caches:
        for name in runs:
            shutil.rmtree(_caches(options, name), ignore_errors=True)
    for repeat in range(options.repeats):
        for name, before in runs.items():
            if repeat and ("reason" in before[0] or before[0]["seconds"] > SLOW):
                continue
            where = str(forces[name].resolve()) if repeat == 0 else ""
            job = _job(options, name, workload, profile=repeat == 0, forces=where)
            found = processes.measured(job, options.limit, options.memory, _caches(options, name), options.peers)
            before.append(found)
            _say(f"{name}, repeat {repeat + 1}", found)
    rows = {}
    for name, found in runs.items():
        about = {key: run[key] for run in found for key in CARRIED if key in run}
        rows[name] = {**about, **summary(found)}
    return {"contenders": rows, "runs": runs}


def _sizes(options: argparse.Namespace, box: Path, system: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Measure contenders on boxes of growing size, until one step more would take too long or too much."""
    one = len(Workload(box, (1, 1, 1)).species)
    found: dict[str, list[dict[str, Any]]] = {}
    for name in options.contenders:
        far = CONTENDERS[name].far
        allowed = options.limit if far else options.size_limit
        rows: list[dict[str, Any]] = []
        failed = system[name].get("reason", "")
        for size in sorted({workloads.copies(max(1, round(size / one))) for size in options.sizes}, key=np.prod):
            n_atoms = one * int(np.prod(size))
            reason = failed or _too_long(rows, n_atoms, allowed)
            if reason:
                rows.append({"n_atoms": n_atoms, "reason": reason})
                continue
            job = _job(options, name, box, copies=size, training_atoms=0, budget=min(2.0, options.budget))
            result = processes.measured(job, allowed, options.memory, _caches(options, name), options.peers)
            _say(f"{name}, {n_atoms:,} atoms", result)
            row = {"n_layers": result.get("n_layers"), **summary([result])}
            if "reason" in row and "stopped" in row["reason"]:
                failed = f"a smaller box ({n_atoms:,} atoms) was {row['reason']}"
            rows.append({"n_atoms": n_atoms, **row})
        found[name] = rows
    return found


def _too_long(rows: Sequence[dict[str, Any]], n_atoms: int, allowed: float) -> str:
    """Say if the next size would take longer than allowed, judged by the last, whose first step compiled and all."""
    last = next((row for row in reversed(rows) if "seconds" in row), None)
    if last is None:
        return ""
    growth = n_atoms / last["n_atoms"]
    step = last["step_s"][1]
    expected = last["seconds"] - (last["n_steps"] + 1) * step + 3 * growth * step
    if expected <= allowed:
        return ""
    return f"not run: about {expected:.0f} s expected, a size has {allowed:.0f} s"


def _neighbours(data: Workload) -> float:
    """Return the mean number of neighbours within the fast model's cutoff."""
    from forcefield_ml.graph import NeighbourSearch

    search = NeighbourSearch("cutoff", cutoff=FastConfig().cutoff)
    matrix = search(torch.from_numpy(data.frame(0)), torch.from_numpy(data.box))
    return float(matrix.mask.sum(1).double().mean())


def _errors(named: Sequence[str]) -> dict[str, float]:
    """Return relative errors from JSON files of ``forcefield-ml evaluate``, given as NAME=FILE."""
    errors = {}
    for text in named:
        name, _, file = text.partition("=")
        if name not in CONTENDERS or not file:
            raise SystemExit(f"--errors {text}: give NAME=FILE with a NAME of {', '.join(CONTENDERS)}")
        errors[name] = float(json.loads(Path(file).read_text(encoding="utf-8"))["relative"])
    return errors


def machine() -> dict[str, Any]:
    """Return what this machine is."""
    cpu = Path("/proc/cpuinfo").read_text().splitlines()
    total = Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]
    return {
        "processor": next((x.split(":", 1)[1].strip() for x in cpu if x.startswith("model name")), platform.machine()),
        "cores": os.cpu_count(),
        "memory_gb": int(total) * 1024 / 1e9,
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU",
    }


def _say(what: str, found: dict[str, Any]) -> None:
    """Print a line for one process."""
    steps = found.get("steps_s")
    text = f"{1e6 * np.median(steps) / found['n_atoms']:.1f} µs per atom and step" if steps else ""
    print(f"{what}: {' '.join(x for x in (text, found.get('reason', '')) if x)}", file=sys.stderr, flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the options, with what --quick changes filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--install-peers", action="store_true", help="make or update the peers' environments, and end")
    add("--quick", action="store_true", help="a box of water in place of the protein, few steps: to see that it works")
    add("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), metavar="NAME")
    add("--sizes", nargs="*", type=int, help=f"atoms of growing boxes, about (default: {SIZES}; quick: 1,000)")
    add("--repeats", type=int, help="processes of each contender on the protein (default: 3; quick: 1)")
    add("--steps", type=int, help="steps of a process (default: 40; quick: 3)")
    add("--budget", type=float, help="s after which a process begins no further step (default: 12; quick: 1)")
    add("--training-atoms", type=int, help="atoms of a training step, 0 for none (default: 1000; quick: 100)")
    add("--limit", type=float, default=120.0, help="s for a process before its training (default: 120)")
    add("--size-limit", type=float, default=30.0, help="the same for boxes, unless a mark needs them (default: 30)")
    add("--memory", type=float, default=24 * 2**30 / 1e9, help="GB a process may take (default: 24 GiB)")
    add("--threads", type=int, default=os.cpu_count(), help="of each contender (default: all cores)")
    add("--device", choices=("cpu", "cuda"), default="cpu")
    add("--errors", nargs="*", default=[], metavar="NAME=FILE", help="JSON of `forcefield-ml evaluate` of a contender")
    add("--folder", type=Path, default=Path("runs/speed"), help="workloads and intermediate files are kept here")
    add("--peers", type=Path, default=processes.PEERS, help="folder of the peers' environments")
    add("--keep-caches", action="store_true", help="keep what compilers made in former runs: no first force is cold")
    add("--page", type=Path, help="Markdown (default: docs/results/speed.md; quick: in --folder)")
    add("--json", type=Path, help="all numbers (default: speed.json in --folder)")
    options = parser.parse_args(arguments)
    quick = options.quick
    defaults = {
        "sizes": [1_000] if quick else list(SIZES),
        "repeats": 1 if quick else 3,
        "steps": 3 if quick else workloads.N_FRAMES,
        "budget": 1.0 if quick else 12.0,
        "training_atoms": 100 if quick else 1000,
        "page": options.folder / "speed.md" if quick else processes.ROOT / "docs/results/speed.md",
        "json": options.folder / "speed.json",
    }
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("repeats", "steps", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(options, name)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda, but torch finds no CUDA device here; see `forcefield-ml doctor`")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and write page and JSON."""
    options = parse(arguments)
    if options.install_peers:
        processes.install(options.peers)
        return 0
    words = [str(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    results = run(options, shlex.join(["python", "benchmarks/speed.py", *words]))
    for path in (options.page, options.json):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(options.json, results)
    write_text(options.page, page(results))
    print(f"wrote {options.page} and {options.json}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
