"""Train orders 0, 1 and 2 of the paper's network and the fast network for the same time; write the table.

    data-pipeline run benchmarks/thermal28.yaml -o runs/thermal28
    python benchmarks/compare_orders.py runs/thermal28/dataset.h5 --minutes 6 -o runs/orders \
        --table docs/results/orders.md

Every model gets the same data, seed and time; the test split is evaluated once, at the end. Stop it and run the same
command again: it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from data_pipeline import __version__
from forcefield_ml.config import load_config
from forcefield_ml.models import build
from forcefield_ml.training.config import TrainingConfig
from forcefield_ml.training.evaluate import evaluate
from forcefield_ml.training.loop import train

MODELS: dict[str, dict[str, Any]] = {
    "order 0": {"architecture": "tfn", "order": 0},
    "order 1": {"architecture": "tfn", "order": 1},
    "order 2": {"architecture": "tfn", "order": 2},
    "fast": {"architecture": "fast"},
}

LEARNING_RATES = {"tfn": 0.05, "fast": 0.01}
"""Best of a few tried on validation proteins, 160 batches each (docs/decisions/0003-training.md)."""

PAPER = {  # table 1: minimised structures, 75,000 batches
    "naive": (79.9, 90.0, 81.5, None, None),
    "order 0": (77.8, None, None, None, None),
    "order 1": (23.0, 42.4, 28.3, None, None),
    "order 2": (15.6, 32.8, 20.7, 0.25, 0.98),
}

COLUMNS = ("magnitude", "angle", "tensor", "relative", "pearson")


def cell(value: float | None, error: float | None = None, digits: int = 1) -> str:
    """Return a number with its standard error, or a dash."""
    if value is None:
        return "-"
    return f"{value:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def row(name: str, result: dict[str, Any], training: dict[str, Any]) -> str:
    """Return one model's line of the table.

    Parameters
    ----------
    name
        Of the model.
    result
        What `evaluate` returned.
    training
        Batches, parameters and training seconds.
    """
    errors = result["proteins"]["standard_error"]
    cells = [
        cell(result[key], errors.get(key) if result[key] is not None else None, 3 if key in COLUMNS[3:] else 1)
        for key in COLUMNS
    ]
    return f"| {name} | {training['n_parameters']:,} | {training['n_batches']:,} | " + " | ".join(cells) + " |"


def table(results: dict[str, dict[str, Any]], minutes: float, command: str) -> str:
    """Return the Markdown page.

    Parameters
    ----------
    results
        By model: ``evaluation`` and ``training``.
    minutes
        Training time of each.
    command
        That made it.
    """
    first = next(iter(results.values()))["evaluation"]
    naive = first["naive"]
    lines = [
        "# Orders 0, 1, 2 and the fast network",
        "",
        f"Written by `{command}` (version {__version__}, {torch.get_num_threads()} thread(s)).",
        "",
        f"{minutes:g} minutes of training each, on `{first['dataset']['protocol']}` frames; test split:"
        f" {first['n_proteins']} proteins of clusters not trained on, {first['n_frames']} frames, {first['n_atoms']:,}"
        " target atoms. ± is the standard error over proteins. Dataset content"
        f" `{first['dataset']['content_sha256'][:16]}`.",
        "",
        "| | parameters | batches | magnitude (meV/Å) | angle (°) | tensor (meV/Å) | relative | Pearson |",
        "|---|---|---|---|---|---|---|---|",
        "| naive | - | - | " + " | ".join(cell(naive[key]) for key in COLUMNS[:3]) + " | 1.000 | - |",
        *(row(name, result["evaluation"], result["training"]) for name, result in results.items()),
        "",
        "The paper's table 1: minimised structures, so other forces; 75,000 batches each. Compare the ratios to naive.",
        "",
        "| | magnitude (meV/Å) | angle (°) | tensor (meV/Å) | relative | Pearson |",
        "|---|---|---|---|---|---|",
        *(
            f"| {name} | " + " | ".join(cell(v, digits=2 if i > 2 else 1) for i, v in enumerate(values)) + " |"
            for name, values in PAPER.items()
        ),
        "",
    ]
    return "\n".join(lines)


def main() -> int:
    """Train, evaluate, write; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="dataset.h5 of data-pipeline")
    parser.add_argument("--minutes", type=float, default=12.0, help="training time of each model (default: 12)")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/orders"), help="folder of the training runs")
    parser.add_argument("--table", type=Path, help="Markdown page to write (default: OUTPUT/orders.md)")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), help="which (default: all)")
    options = parser.parse_args()
    recipe = Path(__file__).with_name("compare_orders.yaml")
    results: dict[str, dict[str, Any]] = {}
    for name in options.models:
        folder = options.output / name.replace(" ", "-")
        settings = load_config(
            TrainingConfig,
            recipe,
            dataset=options.dataset,
            output=folder,
            model=MODELS[name],
            learning_rate=LEARNING_RATES[MODELS[name]["architecture"]],
            max_minutes=options.minutes,
        )
        print(f"{name}: {folder}", flush=True)
        trained = train(settings)
        if not trained.finished:
            print("stopped; the same command goes on", file=sys.stderr)
            return 130
        n_parameters = sum(parameter.numel() for parameter in build(MODELS[name]).parameters())
        results[name] = {
            "training": {"n_batches": trained.n_batches, "seconds": trained.seconds, "n_parameters": n_parameters},
            "evaluation": evaluate(trained.checkpoint, options.dataset),
        }
    (options.output / "orders.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    page = table(results, options.minutes, shlex.join(["python", *sys.argv]))
    (options.table or options.output / "orders.md").write_text(page, encoding="utf-8")
    print(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
