"""Train the rows of an ablation study and write the table: what changed, error on validation molecules, µs per atom.

    python benchmarks/ablations.py benchmarks/ablations.yaml thermal=runs/pdb/thermal/dataset.h5 -o runs/ablations \
        --page docs/results/ablations.md

Datasets, of forces or of refinement vectors, are given as NAME=PATH, by the names that the study uses. Test molecules
are not looked at. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import study
import torch

from data_pipeline.schema import FORCES, PAPER, REFINEMENT, Paper, open_dataset, task_of
from forcefield_ml.bonded.bound import bound_terms
from forcefield_ml.data import ForceDataset, Target
from forcefield_ml.deploy.force.evaluator import Evaluator
from forcefield_ml.nn.embedding import types_of
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training.metrics import KEYS

TARGETS = {FORCES: Target("total", "all"), REFINEMENT: Target("refinement")}
"""Task to what is timed."""

REPEATS = 7


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing, measure and write the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML file of the study")
    parser.add_argument("datasets", type=named, nargs="+", metavar="NAME=PATH", help="dataset.h5 files")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/ablations"), help="folder of the training runs")
    parser.add_argument("--page", type=Path, help="Markdown page to write (default: OUTPUT/STUDY.md)")
    options = parser.parse_args(arguments)
    plan, datasets = study.read(options.study), dict(options.datasets)
    try:
        done = list(study.runs(plan, datasets, options.output))
    except study.Stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    first = next(iter(datasets.values()))
    with open_dataset(first) as file:
        task = task_of(file)
    page = options.page or options.output / f"{options.study.stem}.md"
    command = shlex.join(["python", "benchmarks/ablations.py", *(sys.argv[1:] if arguments is None else arguments)])
    microseconds = costs({run.row: run.checkpoint for run in done}, first, TARGETS[task])
    page.write_text(markdown(plan, done, microseconds, command, PAPER[task]), encoding="utf-8")
    print(page.read_text(encoding="utf-8"))
    return 0


def named(text: str) -> tuple[str, Path]:
    """Read NAME=PATH."""
    name, found, path = text.partition("=")
    if not (name and found and path):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=PATH, such as thermal=runs/pdb/thermal/dataset.h5")
    return name, Path(path)


def costs(checkpoints: dict[str, Path], dataset: Path, target: Target) -> dict[str, float]:
    """Return by row the time of a vector on every atom of the first validation frame, µs per atom.

    The rows are measured in turn, as often as `REPEATS`, and the least of each is taken: a shared machine only adds.
    """
    frames = ForceDataset(dataset, "validation", target)
    calls = {}
    for row, path in checkpoints.items():
        model, _ = files.load_model(path)
        frames.encode(types_of(model))
        sample = frames[0]
        species, positions = torch.from_numpy(sample.entry.codes), torch.from_numpy(sample.positions).double()
        terms = bound_terms(model, sample.entry.species, sample.entry.bonds)
        box = None if sample.box is None else torch.from_numpy(sample.box).double()
        calls[row] = (Evaluator(model, species, terms=terms), positions, box)
    least = dict.fromkeys(calls, np.inf)
    for repeat in range(REPEATS + 1):
        for row, (evaluate, positions, box) in calls.items():
            begun = time.perf_counter()
            evaluate(positions, box)
            if repeat:  # the first one searches neighbours and compiles
                least[row] = min(least[row], time.perf_counter() - begun)
    return {row: 1e6 * seconds / len(calls[row][1]) for row, seconds in least.items()}


def markdown(
    plan: study.Study, runs: Sequence[study.Run], microseconds: dict[str, float], command: str, quantity: Paper
) -> str:
    """Return the page.

    Parameters
    ----------
    plan
        What was trained.
    runs
        All of them.
    microseconds
        Cost of each row, per atom.
    command
        That made it.
    quantity
        What is predicted.
    """
    unit = quantity.unit
    lines = [
        *study.head(plan, command),
        *([plan.about.strip(), ""] if plan.about else []),
        f"| row | what it changes | batches | minutes | parameters | tensor ({unit}) | of naive | magnitude ({unit}) "
        "| angle (°) | relative | Pearson | µs per atom |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in plan.rows:
        lines.append(_row(row, plan.rows[row], [run for run in runs if run.row == row], microseconds[row], quantity))
    judged = runs[0].evaluation
    lines += [
        "",
        f"Errors on {judged['n_frames']} {plan.split} frames of {judged['n_proteins']} molecules of other clusters; "
        f"dataset content `{judged['dataset']['content_sha256'][:16]}`. µs per atom: a {quantity.name} on every atom "
        f"of the first of them, {torch.get_num_threads()} thread(s), neighbours given, least of {REPEATS} calls.",
        "",
    ]
    return "\n".join(lines)


def _row(name: str, changes: dict[str, object], runs: Sequence[study.Run], microseconds: float, quantity: Paper) -> str:
    training = runs[0].training
    cells = [
        name,
        f"`{changes}`" if changes else "-",
        f"{training['n_batches']:,}",
        f"{study.minutes(runs):.1f}",
        f"{training['n_parameters']:,}",
    ]
    for key in KEYS:
        digits = {"angle": 2, "relative": 4, "pearson": 4}.get(key, quantity.digits)
        values = [run.evaluation[key] for run in runs]
        cells.append("-" if None in values else study.mean(values, digits))  # order 0 has magnitudes alone
        if key == "tensor":
            cells.append(quantity.text(runs[0].evaluation["naive"][key]))
    return "| " + " | ".join([*cells, f"{microseconds:.2f}"]) + " |"


if __name__ == "__main__":
    sys.exit(main())
