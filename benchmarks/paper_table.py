"""Reproduce the paper's tables with its network: 1 and figure 3 (forces), or 2 and figure 5 (structure refinement).

    data-pipeline run examples/regenerate_data.yaml -o runs/pdb
    python benchmarks/paper_table.py runs/pdb/minimized/dataset.h5 -o runs/paper --page docs/results/paper.md
    python benchmarks/paper_table.py examples/refine_rna.yaml -o runs/refinement --page docs/results/refinement.md

Which table it is, the dataset's task says; a configuration of data-pipeline is run first, below OUTPUT. What is trained
stands in paper_table.yaml and refinement_table.yaml. As in the paper, each order is trained three times with other
weights and batches; the table has the best by validation and, in parentheses, mean and standard error of the mean. The
test split is looked at once, after training. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import study

from data_pipeline.config import load_config
from data_pipeline.run import run as run_pipeline
from data_pipeline.schema import ENTRIES_GROUP, FORCES, PAPER, REFINEMENT, SPLITS, Paper, open_dataset, task_of
from forcefield_ml.validation import figures
from forcefield_ml.validation.paper import TABLE_1, TABLE_2, TABLE_2_MEANS

METRICS = ("magnitude", "angle", "tensor", "relative", "pearson")

PAPER_BATCHES = 75_000


class Table(NamedTuple):
    """A table of the paper.

    Attributes
    ----------
    study
        What is trained for it, beside this file.
    page
        Name of the page where none is given.
    figure
        Number of the figure that goes with it.
    values
        Row to metric to what the paper has for its best model.
    means
        The same to mean and standard error of its three.
    data
        What stands behind the number of entries of each split; of batches.
    """

    study: str
    page: str
    figure: int
    values: dict[str, dict[str, float | None]]
    means: dict[str, dict[str, tuple[float, float]]]
    data: str
    batches: str


TABLES = {
    FORCES: Table(
        "paper_table.yaml",
        "paper.md",
        3,
        {**TABLE_1, "order 2": {**TABLE_1["order 2"], "pearson": 0.98}},
        {},
        "{train} proteins to train on, {validation} to choose by, {test} to test, one of a cluster at 20 % identity "
        "(paper: 100, 50, 50).",
        f"(paper: {PAPER_BATCHES:,} of a whole one)",
    ),
    REFINEMENT: Table(
        "refinement_table.yaml",
        "refinement.md",
        5,
        TABLE_2,
        TABLE_2_MEANS,
        "{train} candidates to train on, {validation} to choose by, {test} to test, of {train_clusters}, "
        "{validation_clusters} and {test_clusters} molecules (paper: 13, 4, 4). The paper's candidates are others "
        "(FARFAR2): compare what is divided by the naive predictors, not Å.",
        "(paper: a whole one, how many is not told)",
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train what is missing and write the page; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="dataset.h5 of data-pipeline, or a configuration that makes it")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/paper"), help="folder of the training runs")
    parser.add_argument("--page", type=Path, help="Markdown page to write (default: in OUTPUT); pictures beside")
    parser.add_argument("--study", type=Path, help="what is trained (default: that of the dataset's task, beside this)")
    parser.add_argument("--replicates", type=int, help="trainings of each order (default: as the study says)")
    options = parser.parse_args(arguments)
    dataset = made(options.dataset, options.output)
    with open_dataset(dataset) as file:
        task = task_of(file)
    table, quantity = TABLES[task], PAPER[task]
    plan = study.read(options.study or Path(__file__).with_name(table.study))
    if options.replicates is not None:
        plan = plan.model_copy(update={"replicates": options.replicates})
    try:
        done = list(study.runs(plan, {"dataset": dataset}, options.output))
    except study.Stopped:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    page = options.page or options.output / table.page
    command = shlex.join(["python", "benchmarks/paper_table.py", *(sys.argv[1:] if arguments is None else arguments)])
    pictures = draw([run for run in done if run.row == list(plan.rows)[-1]], page, quantity)
    text = markdown(plan, done, describe(dataset), pictures, command, table, quantity)
    page.write_text(text, encoding="utf-8")
    print(text)
    return 0


def made(path: Path, folder: Path) -> Path:
    """Return a dataset, made first where a configuration of data-pipeline is given."""
    if path.suffix not in (".yaml", ".yml"):
        return path
    summary = run_pipeline(load_config(path), folder / "data")
    (found,) = summary["datasets"].values()
    return Path(found["dataset"])


def describe(dataset: Path) -> dict[str, int]:
    """Return the number of entries in each split, and under SPLIT_clusters that of clusters."""
    with open_dataset(dataset) as file:
        told = [(str(group.attrs["split"]), str(group.attrs["cluster"])) for group in file[ENTRIES_GROUP].values()]
    entries = {split: [cluster for one, cluster in told if one == split] for split in SPLITS}
    return {
        **{split: len(found) for split, found in entries.items()},
        **{f"{split}_clusters": len(set(found)) for split, found in entries.items()},
    }


def draw(runs: Sequence[study.Run], page: Path, quantity: Paper) -> dict[str, str]:
    """Write the panels of figure 3 or 5 for the best of some runs beside the page; return panel to file name."""
    with np.load(best(runs).per_atom, allow_pickle=False) as stored:
        panels = figures.figure_3(stored["target"], stored["predicted"], quantity)
    names = {panel: f"{page.stem}-{panel.replace('_', '-')}.svg" for panel in panels}
    for panel, name in names.items():
        page.with_name(name).write_text(figures.standalone(panels[panel]), encoding="utf-8")
    return names


def best(runs: Sequence[study.Run]) -> study.Run:
    """Return the run with the least validation error."""
    return min(runs, key=lambda run: _error(run.validation))


def _error(metrics: dict[str, Any]) -> float:
    return float(metrics["magnitude"] if metrics["tensor"] is None else metrics["tensor"])


def markdown(
    plan: study.Study,
    runs: Sequence[study.Run],
    entries: dict[str, int],
    pictures: dict[str, str],
    command: str,
    table: Table,
    quantity: Paper,
) -> str:
    """Return the page.

    Parameters
    ----------
    plan
        What was trained.
    runs
        All of them.
    entries
        Of `describe`.
    pictures
        Panel of the figure to file name.
    command
        That made it.
    table
        Of the paper.
    quantity
        What is predicted.
    """
    first = runs[0].evaluation
    naive, base, paper = first["naive"], plan.base, table.values["naive"]
    targets = f"{base['targets_per_batch']} atoms" if "targets_per_batch" in base else "all atoms"
    lines = [
        *study.head(plan, command),
        f"{table.data.format(**entries)} Predicting zero is wrong by {quantity.text(naive['tensor'])} {quantity.unit} "
        f"(paper {quantity.text(paper['tensor'])}), predicting the mean magnitude by "
        f"{quantity.text(naive['magnitude'])} (paper {quantity.text(paper['magnitude'])}). {base['max_batches']:,} "
        f"batches of {targets} of one molecule {table.batches}, optimiser {base.get('optimiser', 'adam')}. "
        f"{first['n_atoms']:,} target atoms in the test split. "
        f"Dataset content `{first['dataset']['content_sha256'][:16]}`.",
        "",
        f"The best of {plan.replicates} by validation (mean ± standard error of the mean of all {plan.replicates}); "
        "tensor/zero is the tensor error over that of predicting zero, the mark by which data sets can be compared.",
        "",
        f"| | minutes | magnitude ({quantity.unit}) | angle (°) | tensor ({quantity.unit}) | tensor/zero | Pearson |",
        "|---|---|---|---|---|---|---|",
        f"| naive | - | {quantity.text(naive['magnitude'])} | 90.0 | {quantity.text(naive['tensor'])} | 1 | - |",
    ]
    for row in plan.rows:
        lines.append(_row(row, [run for run in runs if run.row == row], quantity))
    lines += ["| *paper:* | | | | | | |", *(_paper_row(name, table, quantity) for name in table.values)]
    lines += ["", f"Figure {table.figure}, the best {list(plan.rows)[-1]}:", ""]
    lines += [f'<img src="{name}" width="32%" alt="{panel.replace("_", " ")}">' for panel, name in pictures.items()]
    return "\n".join([*lines, ""])


def _digits(key: str, quantity: Paper) -> int:
    return {"angle": 1, "relative": 3, "pearson": 3}.get(key, quantity.digits)


def _row(name: str, runs: Sequence[study.Run], quantity: Paper) -> str:
    chosen = best(runs).evaluation
    cells = [f"{study.minutes(runs):.0f}"]
    for key in METRICS:
        values, digits = [run.evaluation[key] for run in runs], _digits(key, quantity)
        if values[0] is None:
            cells.append("-")
            continue
        text = f"{chosen[key]:.{digits}f}"
        if len(values) > 1:
            text += f" ({study.mean(values, digits)})"
        cells.append(text)
    return f"| {name} | " + " | ".join(cells) + " |"


def _paper_row(name: str, table: Table, quantity: Paper) -> str:
    values, zero = table.values[name], table.values["naive"]["tensor"]
    assert zero is not None
    cells = []
    for key in METRICS[:3]:
        text = quantity.text(values[key], _digits(key, quantity))
        if key in table.means.get(name, {}):
            text += " ({:.{digits}f} ± {:.{digits}f})".format(*table.means[name][key], digits=_digits(key, quantity))
        cells.append(text)
    ratio = "-" if values["tensor"] is None else f"{values['tensor'] / zero:.3f}"
    pearson = "-" if values["pearson"] is None else f"{values['pearson']:.2f}"
    return f"| {name} | | " + " | ".join(cells) + f" | {ratio} | {pearson} |"


if __name__ == "__main__":
    sys.exit(main())
