"""Measure what a neighbour list costs by the width of its skin, along real dynamics, and print the table.

    python benchmarks/neighbour_skins.py                # the solvated protein of the speed benchmark
    python benchmarks/neighbour_skins.py --water        # a small box of water, to see that it works

Dynamics at 300 K and 1 fs with AMBER14, unconstrained; every list sees the same frames. Times are the least of all
steps with and without a search, on one thread: what other work on the machine adds is left out.
docs/decisions/0013-neighbour-list.md holds the table that the default skins were read from.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openmm
import torch
import workloads
from openmm import unit
from torch import Tensor

from data_pipeline.systems.build import make_context
from forcefield_ml.graph import NeighbourList

SKINS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.125, 0.15)
"""nm."""

LISTS: dict[str, dict[str, Any]] = {
    "cutoff 0.45 nm": {"kind": "cutoff", "cutoff": 0.45},
    "nearest 50": {"kind": "nearest", "n_neighbours": 50},
}
LAYERS = 3
EQUILIBRATION = 50
"""Steps after new velocities, before frames are kept."""


class Cost(NamedTuple):
    """Of one list along a trajectory.

    Attributes
    ----------
    interval
        Steps from one search to the next.
    candidates
        Per row.
    rebuild, refresh, step
        µs per atom of the system: a step with a search less one without, a step without, and the mean step that
        follows from them and the interval.
    sizes
        Atoms of layer 1, 2, ..., and before them all whose features matter.
    """

    interval: float
    candidates: float
    rebuild: float
    refresh: float
    step: float
    sizes: list[int]


def frames_of(path: Path, n_frames: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Continue a workload's dynamics; return frames 1 fs apart (N, 3), the box, and which atoms are no water."""
    with np.load(path) as data:
        start, box, residues = data["positions"][-1].astype(np.float64), data["box"], data["residues"]
    system = openmm.XmlSerializer.deserialize(path.with_suffix(".xml").read_text())
    integrator = openmm.LangevinMiddleIntegrator(workloads.TEMPERATURE, 1.0, 0.001)
    integrator.setRandomNumberSeed(2)
    context = make_context(system, integrator)
    context.setPositions(start)
    context.setVelocitiesToTemperature(workloads.TEMPERATURE, 2)
    integrator.step(EQUILIBRATION)
    frames = []
    for _ in range(n_frames):
        integrator.step(1)
        positions = context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        frames.append(torch.from_numpy(np.array(positions)))
    sizes = np.bincount(residues)
    return frames, torch.from_numpy(np.array(box, dtype=np.float64)), torch.from_numpy(sizes[residues] > 3)


def measure(frames: Sequence[Tensor], box: Tensor, skin: float, options: dict[str, Any]) -> Cost:
    """Return the cost of a list with this skin along these frames."""
    neighbours = NeighbourList(**options, n_layers=LAYERS, skin=skin)
    with_search, without = [], []
    for frame in frames:
        before = neighbours.statistics.rebuilds
        begin = time.perf_counter()
        found = neighbours(frame, box)
        seconds = time.perf_counter() - begin
        (with_search if neighbours.statistics.rebuilds > before else without).append(seconds)
    per_atom = 1e6 / len(frames[0])
    refresh = per_atom * min(without or with_search)
    rebuild = per_atom * min(with_search[1:] or with_search) - refresh  # the first compiles and allocates
    interval = len(frames) / len(with_search)
    build = neighbours._build
    candidates = len(build.candidates.partners) / found.layer_sizes[0] if build is not None else 0.0
    sizes = [len(found.order), *found.layer_sizes]
    return Cost(interval, candidates, rebuild, refresh, refresh + rebuild / interval, sizes)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--water", action="store_true", help="1,029 atoms of water instead of the protein")
    parser.add_argument("--frames", type=int, default=200, help="fs of dynamics (default: 200)")
    parser.add_argument("--folder", type=Path, default=Path("runs/speed"), help="where workloads are kept")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    path = workloads.water(options.folder, equilibration=2.0) if options.water else workloads.protein(options.folder)
    frames, box, solute = frames_of(path, options.frames)
    print(f"{len(frames[0]):,} atoms, {options.frames} frames; µs per atom of the system\n")
    targets = {"all atoms": None} if options.water else {"all atoms": None, "the protein's atoms": solute}
    for where, mask in targets.items():
        for name, kind in LISTS.items():
            print(
                f"{name}, {where}\n\n| skin, nm | steps per search | candidates | rebuild | refresh | a step | atoms |"
            )
            print("|---|---|---|---|---|---|---|")
            for skin in SKINS:
                cost = measure(frames, box, skin, {**kind, "targets": mask})
                layers = " ".join(f"{size:,}" for size in dict.fromkeys(cost.sizes))
                print(
                    f"| {skin:g} | {cost.interval:.1f} | {cost.candidates:.0f} | {cost.rebuild:.2f} | "
                    f"{cost.refresh:.2f} | {cost.step:.2f} | {layers} |",
                    flush=True,
                )
            print()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
