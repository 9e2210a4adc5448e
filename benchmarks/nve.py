"""Run a model at constant energy from a frame of a dataset, and tell how temperature and energy move.

Velocity Verlet by the network's forces alone, all atoms free: what a model conserves shows without thermostat or MM.

    python benchmarks/nve.py model.pt dataset.h5 --split test --steps 1000
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from openmm import app

import forcefield_ml
from forcefield_ml import units
from forcefield_ml.data import ForceDataset, Target

STEP = 0.0005
"""ps."""


def run(model_path: Path, dataset: Path, split: str, steps: int, temperature: float) -> dict[str, float]:
    """Run the smallest entry's first frame.

    Returns
    -------
    dict
        ``drift`` in meV/atom/ps and ``swing`` (standard deviation) in meV/atom of the kinetic energy plus the model's
        own, over the last three quarters of the run (nan without an energy); ``first`` and ``last`` temperature in K;
        ``seconds`` per step.
    """
    model = forcefield_ml.load(model_path)
    frames = ForceDataset(dataset, split, Target(model.card["predicts"], "all"))
    frames.encode(model.atom_types)
    sample = frames[min(range(len(frames)), key=lambda item: len(frames.index[item][0].species))]
    species = torch.from_numpy(sample.entry.species).long()
    evaluate = model.evaluator(torch.from_numpy(sample.entry.codes), bonds=sample.entry.bonds.tolist())
    box = None if sample.box is None else torch.from_numpy(sample.box.astype(float))
    masses = np.array([app.Element.getByAtomicNumber(int(z)).mass._value for z in species])[:, None]
    x, n_atoms = sample.positions.astype(float), len(species)
    v = np.random.default_rng(0).normal(size=x.shape) * np.sqrt(units.BOLTZMANN * temperature / masses)
    forces = evaluate(torch.from_numpy(x), box).forces.numpy()
    rows = []
    begun = time.perf_counter()
    for _ in range(steps):
        v += 0.5 * STEP * forces / masses
        x = x + STEP * v
        found = evaluate(torch.from_numpy(x), box)
        forces = found.forces.numpy().astype(float)
        v += 0.5 * STEP * forces / masses
        rows.append((0.5 * float((masses * v**2).sum()), np.nan if found.energy is None else float(found.energy)))
    seconds = (time.perf_counter() - begun) / steps
    kinetic, potential = np.array(rows).T
    total = (kinetic + potential)[steps // 4 :] * units.KJ_PER_MOL_IN_MEV / n_atoms
    kelvin = 2 * kinetic / (3 * n_atoms * units.BOLTZMANN)
    drift = float(np.polyfit(STEP * np.arange(len(total)), total, 1)[0]) if model.has_energy else float("nan")
    tenth = max(1, steps // 10)
    return {
        "n_atoms": n_atoms,
        "drift": drift,
        "swing": float(total.std()),
        "first": float(kelvin[:tenth].mean()),
        "last": float(kelvin[-tenth:].mean()),
        "seconds": seconds,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--split", default="test", choices=("train", "validation", "test"))
    parser.add_argument("--steps", type=int, default=1000, help=f"of {1000 * STEP:g} fs")
    parser.add_argument("--temperature", type=float, default=300.0, help="K, of the first velocities")
    options = parser.parse_args(arguments)
    found = run(options.model, options.dataset, options.split, options.steps, options.temperature)
    print(
        f"{options.model.name}: {found['n_atoms']} atoms, {options.steps} steps of {1000 * found['seconds']:.0f} ms; "
        f"{found['first']:.0f} K in the first tenth, {found['last']:.0f} K in the last; energy drifts by "
        f"{found['drift']:.3g} meV/atom/ps, swings by {found['swing']:.2g} meV/atom"
    )


if __name__ == "__main__":
    main()
