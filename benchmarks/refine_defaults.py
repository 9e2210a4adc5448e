"""What the defaults of `forcefield-ml refine` were chosen by: a model's vectors, true ones, and true ones as blurred.

    python benchmarks/refine_defaults.py FOLDER... [--trials default,steps=20] [--candidates 2] [--model rna-refinement]

Each folder holds native.pdb.gz and candidates/, as RNA-Puzzles has them. Kinds of predictor:

| kind    | predicts                                                                                       |
|---------|------------------------------------------------------------------------------------------------|
| true    | the vectors of algorithm 1                                                                     |
| fresh   | these with noise that is another at every step, shrunk to the least squared error              |
| fixed   | the same noise at every step, each atom's its own                                              |
| smooth  | the same noise at every step, shared by atoms within about 3 Å                                 |
| model   | what the model given predicts                                                                  |

Noise grows with an atom's true vector, as the paper finds (section 4.4), so that the mean angle is `ANGLE`. A network's
errors are most like `smooth` and `fixed`: they depend on surroundings that a step hardly changes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from forcefield_ml.deploy.model import load
from forcefield_ml.refinement import Settings, refine
from forcefield_ml.refinement.scores import Native, find_native
from forcefield_ml.refinement.structure_file import read_structure_file

ANGLE = 69.0
"""Degrees between true and predicted vector on average: the paper's table 2, order 2."""

NOISE = 2.887
"""Length of the noise over that of the true vector (root mean square) that makes this angle."""

KINDS = ("true", "fresh", "fixed", "smooth")
SHOWN = ("rmsd", "local_rmsd", "lddt", "clashes", "bond_rms")


def predictor(
    kind: str, native: Native, start: NDArray[np.float64], seed: int
) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
    """Return a predictor of one of the module's kinds."""
    generator = np.random.default_rng(seed)
    size = np.linalg.norm(native.vectors(start), axis=1, keepdims=True) / np.sqrt(3)
    noise = generator.normal(size=start.shape)
    if kind == "smooth":
        distance, near = cKDTree(start).query(start, k=min(60, len(start)))
        noise = np.einsum("ak,akx->ax", np.exp(-(distance**2) / (2 * 0.3**2)), noise[near])
        noise /= noise.std()

    def predict(positions: NDArray[np.float64]) -> NDArray[np.float64]:
        true = native.vectors(positions)
        if kind == "true":
            return true
        now = generator.normal(size=start.shape) if kind == "fresh" else noise
        return np.asarray((true + NOISE * size * now) / (1 + NOISE**2))

    return predict


def trial(text: str) -> Settings:
    """Return the settings that ``default`` or ``steps=20+fraction=0.2`` names."""
    pairs = [] if text == "default" else [part.split("=") for part in text.split("+")]
    return Settings.model_validate(dict(pairs))


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each trial and kind: mean changes over all candidates, and how many became worse."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--trials", default="default", help="comma between trials, + between settings")
    parser.add_argument("--kinds", help="of the table above (default: model if one is given, else all others)")
    parser.add_argument("--model", help="model.pt that predicts refinement, or the name of one that ships")
    parser.add_argument("--candidates", type=int, default=2, help="of each folder, evenly spaced by name")
    options = parser.parse_args(arguments)
    kinds = (options.kinds or ("model" if options.model else ",".join(KINDS))).split(",")
    if unknown := set(kinds) - {*KINDS, "model"}:
        parser.error(f"no kind {', '.join(sorted(unknown))}; there are {', '.join(KINDS)} and, with --model, model")
    if ("model" in kinds) != (options.model is not None):
        parser.error(f"kinds are {', '.join(kinds)}; model is one of them if, and only if, --model is given")
    model = None if options.model is None else load(options.model)
    print(f"| trial | predictor | {' | '.join(SHOWN)} | worse lDDT | steps | stopped |")
    print("|---|---|" + "---|" * (len(SHOWN) + 3), flush=True)
    for text in options.trials.split(","):
        for kind in kinds:
            rows = []
            for folder in options.folders:
                files = sorted((folder / "candidates").iterdir())
                for file in files[:: max(1, len(files) // options.candidates)][: options.candidates]:
                    read = read_structure_file(file)
                    native, _ = find_native(read.structure, folder / "native.pdb.gz")
                    field = model if kind == "model" else predictor(kind, native, read.start, len(rows))
                    rows.append(refine(field, file, folder / "native.pdb.gz", trial(text)).report)
            change = [np.mean([row["after"][name] - row["before"][name] for row in rows]) for name in SHOWN]
            worse = sum(row["after"]["lddt"] < row["before"]["lddt"] for row in rows)
            ends = sorted({row["stopped"] for row in rows})
            numbers = " | ".join(f"{value:+.4f}" if abs(value) < 1 else f"{value:+.1f}" for value in change)
            steps = np.mean([row["taken"][-1] for row in rows])
            print(
                f"| {text} | {kind} | {numbers} | {worse}/{len(rows)} | {steps:.1f} | {', '.join(ends)} |", flush=True
            )


if __name__ == "__main__":
    main(sys.argv[1:])
