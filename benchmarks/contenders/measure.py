"""The process of one contender: read a job, measure, print a line of JSON after each part that is done.

    python -m contenders.measure '{"contender": "fast", "workload": "protein.npz", ...}'

It runs under the interpreter of the contender, so that only NumPy and the contender's module may be imported here.
The last line holds all that is known; where the process is stopped, the lines before it still count.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from contenders.interface import Batch, Contender, Setting

TOLD = 1.0
"""Seconds of a step from which on each is reported at once, since the process may be stopped before the next."""

SLOW = 60.0
"""Seconds of the first evaluation beyond which it is the only one that is not counted."""


@dataclass(frozen=True)
class Job:
    """What to measure.

    Parameters
    ----------
    contender
        Name of its module.
    workload
        The .npz.
    copies
        Copies of it along each axis.
    device, threads
        Where it runs.
    started
        `time.monotonic` of the moment before this process was started.
    n_steps, budget
        Evaluations to time, and seconds after which no further one begins; at least `min_steps` are made.
    min_steps
        See `budget`.
    training_atoms
        Atoms of a training step; 0 for no training.
    training_budget
        Seconds after which no further training step begins; also for other measurements.
    profile
        Whether to look where the time goes.
    forces
        Where to leave the forces of the first frame, empty for nowhere.
    """

    contender: str
    workload: str
    copies: tuple[int, int, int]
    device: str
    threads: int
    started: float
    n_steps: int
    budget: float
    min_steps: int
    training_atoms: int
    training_budget: float
    profile: bool
    forces: str


class Workload:
    """Frames of a workload, repeated along the box vectors.

    Parameters
    ----------
    path
        The .npz.
    copies
        Along each axis.
    """

    def __init__(self, path: Path, copies: tuple[int, int, int]):
        with np.load(path) as data:
            box = data["box"]
            self.one_species, self.frames = data["species"], data["positions"]
            self.residues, self.forces = data["residues"], data["forces"]
        grid = np.stack(np.meshgrid(*[np.arange(n) for n in copies], indexing="ij"), axis=-1).reshape(-1, 3)
        self.shifts = (grid @ box).astype(np.float32)
        self.box = box * np.array(copies)[:, None]
        self.species = np.tile(self.one_species, len(self.shifts))

    def frame(self, step: int) -> np.ndarray:
        """Return positions (N, 3) in nm of a step; frames run forth and back, so that steps are always 1 fs apart."""
        last = len(self.frames) - 1
        place = step % (2 * last) if last else 0
        one = self.frames[min(place, 2 * last - place)]
        return np.ascontiguousarray((self.shifts[:, None] + one).reshape(-1, 3))

    def batch(self, n_atoms: int) -> Batch:
        """Return the whole residues nearest the first atom, `n_atoms` or a few less, of one copy without periodicity.

        Protein and water lie around the first atom of a protein, at its surface.
        """
        away = np.linalg.norm(self.frames[0] - self.frames[0][0], axis=1)
        nearest = np.full(self.residues.max() + 1, np.inf)
        np.minimum.at(nearest, self.residues, away)
        sizes = np.bincount(self.residues)
        order = np.argsort(nearest)
        taken = order[np.cumsum(sizes[order]) <= n_atoms]
        chosen = np.isin(self.residues, taken)
        return Batch(self.one_species[chosen], self.frames[0][chosen], self.forces[chosen])


def memory(field: str) -> float:
    """Return a field of /proc/self/status in MB: VmRSS is what is resident now, VmHWM the most there was."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def measure(job: Job, out: TextIO) -> None:
    """Measure a contender and print what is found as it comes.

    Parameters
    ----------
    job
        What to measure.
    out
        Where the lines of JSON go.
    """
    found: dict[str, Any] = {"contender": job.contender, "threads": job.threads, "device": job.device}

    def tell(stage: str) -> None:
        found["stage"] = stage
        print(json.dumps(found), file=out, flush=True)

    tell("imports")
    module = importlib.import_module(f"contenders.{job.contender}")
    workload = Workload(Path(job.workload), job.copies)
    found["n_atoms"] = len(workload.species)
    Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: VmHWM starts anew
    found["baseline_mb"] = memory("VmRSS")
    tell("building")
    xml = Path(job.workload).with_suffix(".xml")
    setting = Setting(workload.species, workload.box, xml, len(workload.shifts), job.device, job.threads)
    contender: Contender = module.make(setting)
    found |= contender.about
    found["ready_s"] = time.monotonic() - job.started
    tell("first force")
    forces = contender.evaluate(workload.frame(0))
    found["first_force_s"] = time.monotonic() - job.started
    found["first_step_s"] = found["first_force_s"] - found["ready_s"]
    if not np.isfinite(forces).all():
        raise FloatingPointError(f"{int((~np.isfinite(forces)).any(1).sum())} atoms have forces that are not finite")
    if job.forces:
        np.save(job.forces, forces)
    found["peak_mb"] = memory("VmHWM")
    tell("steps")
    for seconds in _steps(job, workload, contender, found["first_step_s"]):
        found["steps_s"], found["peak_mb"] = seconds, memory("VmHWM")
        if seconds[-1] > TOLD:
            tell("steps")
    if job.device == "cuda" and "torch" in sys.modules:
        found["device_peak_mb"] = sys.modules["torch"].cuda.max_memory_allocated() / 2**20
    tell("training")
    if job.training_atoms:
        _training(job, workload.batch(job.training_atoms), contender, found)
    tell("profile")
    found |= contender.extra(job.training_budget)
    if job.profile:
        frames = [workload.frame(step) for step in range(len(workload.frames))]
        found["profile"] = contender.profile(frames, job.training_budget)
    tell("done")


def _steps(job: Job, workload: Workload, contender: Contender, first: float) -> Iterator[list[float]]:
    """Time evaluations on consecutive frames; yield the seconds of all so far after each."""
    seconds: list[float] = []
    warm = 0 if first > SLOW else contender.warmup - 1  # the first force was one
    begun = time.perf_counter()
    step = 1
    while len(seconds) < job.n_steps:
        if len(seconds) >= job.min_steps and time.perf_counter() - begun > job.budget:
            break
        positions = workload.frame(step)
        start = time.perf_counter()
        contender.evaluate(positions)
        if step > warm:
            seconds.append(time.perf_counter() - start)
            yield seconds
        else:
            begun = time.perf_counter()
        step += 1


def _training(job: Job, batch: Batch, contender: Contender, found: dict[str, Any]) -> None:
    """Time training steps on one batch."""
    step = contender.trainer(batch)
    if step is None:
        return
    for _ in range(contender.warmup):
        step()
    seconds: list[float] = []
    begun = time.perf_counter()
    while len(seconds) < 2 or (len(seconds) < job.n_steps and time.perf_counter() - begun < job.training_budget):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    found["training_s"] = seconds
    found["training_atoms"] = len(batch.species)


def main() -> None:
    """Run the job of the command line."""
    values = json.loads(sys.argv[1])
    job = Job(**{**values, "copies": tuple(values["copies"])})
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print; what they print is no result
    measure(job, out)


if __name__ == "__main__":
    main()
