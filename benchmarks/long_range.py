"""Tell how much of a model's error is a long-range electrostatic field that it cannot see.

What is wrong by a field E(r) that hardly changes within a few atoms is q E on each of them. So from the errors f of an
atom's neighbours E is estimated, by least squares of f = q E without the atom itself, and q E with the atom's own
charge is compared with its error. A model that sees all there is has errors that its neighbours do not tell.

    python benchmarks/long_range.py runs/pdb-parts/dataset.h5 amber14-fast amber14-accurate \
        --page docs/results/long_range.md
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import vesin_torch
from numpy.typing import NDArray

import forcefield_ml
from data_pipeline import __version__
from forcefield_ml import pretrained
from forcefield_ml.data import ForceDataset, Target
from forcefield_ml.units import MEV_PER_ANGSTROM

RADIUS = 0.4
"""nm; which neighbours tell of the field."""

HEAD = """# The share of the errors that is a long-range field

Written by `{command}` (version {version}).

From the errors of the atoms within {radius} nm the electric field that would cause them is estimated, and from that the
error of the atom between them; *field* is the share of the squared error that this explains (how:
`benchmarks/long_range.py`). {frames} validation frames of {proteins} proteins, one each; dataset content `{content}`.

| model | learnt | atoms | error (meV/Å) | field |
|---|---|---|---|---|"""


class Errors(NamedTuple):
    """What a model is wrong by on one class of atoms.

    Attributes
    ----------
    tensor
        Mean norm of the error, meV/Å.
    field
        Share of the squared error that the field of the neighbours' errors explains; zero or less: none of it.
    """

    tensor: float
    field: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the page, return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="dataset.h5; with the parts of the labels that the models learnt")
    parser.add_argument("models", nargs="+", help="model.pt files, or names of models that ship; trained on all atoms")
    parser.add_argument("--proteins", type=int, default=8, help="of the validation split, one frame each")
    parser.add_argument("--page", type=Path, help="Markdown page to write")
    options = parser.parse_args(arguments)
    lines = []
    for name in options.models:
        model = forcefield_ml.load(pretrained.resolve(name))
        frames = ForceDataset(options.dataset, "validation", Target(model.card["predicts"], "all"))
        frames.require_frames()
        found = measure(model, frames, options.proteins)
        told = f"{Path(name).stem} | {model.card['predicts'].replace('_', ' ')}"
        lines += [
            f"| {told} | {atoms} | {one.tensor:.1f} | {round(one.field, 2) + 0.0:.0%} |" for atoms, one in found.items()
        ]
    command = shlex.join(["python", "benchmarks/long_range.py", *(sys.argv[1:] if arguments is None else arguments)])
    n_proteins = min(options.proteins, len(frames.entries))
    about = {"command": command, "version": __version__, "radius": RADIUS, "frames": n_proteins, "proteins": n_proteins}
    page = "\n".join([HEAD.format(content=frames.content_sha256[:16], **about), *lines, ""])
    if options.page:
        options.page.write_text(page, encoding="utf-8")
    print(page)
    return 0


def measure(model: forcefield_ml.DeployedModel, frames: ForceDataset, n_proteins: int) -> dict[str, Errors]:
    """Return the errors of protein and of water, over the first frame of some entries.

    Parameters
    ----------
    model
        Of all atoms.
    frames
        Opened with what it learnt; told here of its atom types.
    n_proteins
        At most so many entries.
    """
    frames.encode(model.atom_types)
    first = {entry.name: item for item, (entry, _) in reversed(list(enumerate(frames.index)))}
    errors, explained, marked = [], [], []
    for name in sorted(first)[:n_proteins]:
        sample = frames[first[name]]
        bonds = sample.entry.bonds.tolist() if model.needs_bonds else None
        evaluate = model.evaluator(torch.from_numpy(sample.entry.codes), bonds=bonds)
        positions = torch.from_numpy(sample.positions).double()
        box = torch.zeros(3, 3).double() if sample.box is None else torch.from_numpy(sample.box).double()
        forces = evaluate(positions, None if sample.box is None else box).forces
        assert forces is not None
        error = (forces.detach().numpy() - sample.forces).astype(float) * MEV_PER_ANGSTROM
        charges = frames.described(name)["charges"].astype(float)
        errors.append(error)
        explained.append(charges[:, None] * field_of_neighbours(positions, box, charges, error, RADIUS))
        marked.append(sample.entry.marked)
    error, told, mask = np.concatenate(errors), np.concatenate(explained), np.concatenate(marked)
    return {atoms: _errors(error[rows], told[rows]) for atoms, rows in (("protein", mask), ("water", ~mask))}


def field_of_neighbours(
    positions: torch.Tensor, box: torch.Tensor, charges: NDArray[np.float64], errors: NDArray[np.float64], radius: float
) -> NDArray[np.float64]:
    """Return the field (N, 3) that best explains the errors (N, 3) of each atom's neighbours as charge times field.

    Parameters
    ----------
    positions
        (N, 3) float64, nm.
    box
        (3, 3), vectors as rows; zeros where there is no periodicity.
    charges
        (N,), e.
    errors
        Of the forces.
    radius
        nm; atoms so near are neighbours. Of none, or of neighbours without charge, the field is zero.
    """
    search = vesin_torch.NeighborList(cutoff=radius, full_list=True)
    first, second = search.compute(points=positions, box=box, periodic=bool(box.any()), quantities="ij")
    moment, weight = np.zeros_like(errors), np.zeros(len(errors))
    i, j = first.numpy(), second.numpy()
    np.add.at(moment, i, charges[j, None] * errors[j])
    np.add.at(weight, i, charges[j] ** 2)
    return np.where(weight[:, None] > 0, moment / np.maximum(weight, 1e-30)[:, None], 0.0)


def _errors(error: NDArray[np.float64], told: NDArray[np.float64]) -> Errors:
    left = ((error - told) ** 2).sum() / (error**2).sum()
    return Errors(float(np.linalg.norm(error, axis=1).mean()), float(1.0 - left))


if __name__ == "__main__":
    sys.exit(main())
