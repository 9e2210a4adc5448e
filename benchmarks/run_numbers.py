"""Write the numbers of a pipeline run as a Markdown page.

python benchmarks/run_numbers.py runs/pdb -o docs/results/pdb.md
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.config import load_config
from data_pipeline.ledger import FAILED, OK, REJECTED, Ledger, Record
from data_pipeline.schema import SPLITS

PAPER = {"zero_predictor": 81.5, "mean_magnitude_predictor": 79.9}
"""meV/Å on the paper's test proteins; table 1 of arXiv:2006.14163."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="run folder of `data-pipeline run`")
    parser.add_argument("-o", "--output", type=Path, help="Markdown file; printed where none is named")
    parser.add_argument("--note", default="", help="what a reader must know about the run, under its times")
    options = parser.parse_args(arguments)
    given = [str(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    page = markdown(options.run, options.note, shlex.join(["python", "benchmarks/run_numbers.py", *given]))
    if options.output is None:
        print(page, end="")
    else:
        options.output.write_text(page, encoding="utf-8")
    return 0


def markdown(folder: Path, note: str, command: str) -> str:
    """Return the page.

    Parameters
    ----------
    folder
        A finished run.
    note
        What stands under the times.
    command
        What wrote it, for the page's head.
    """
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    config = load_config(folder / "config.yaml")
    ledger = Ledger(folder / "ledger.jsonl")
    records = list(ledger)
    ledger.close()
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    split = json.loads((folder / "split.json").read_text(encoding="utf-8"))
    made = {record.entry for record in records if record.stage.startswith("label") and record.status == OK}
    limit = f", limit {config.select.limit}" if config.select.limit else ""
    parts = [
        f"# {summary['name']}: a run of the pipeline in numbers",
        f"Written by `{command}`. {versions}.",
        f"{summary['seen']} entries seen, {summary['seen'] - _n(records, 'select', REJECTED)} meet the criteria, "
        f"{summary['clusters']} clusters at {config.split.identity:.0%} identity by {summary['cluster_method']}; "
        f"{summary['kept']} entries used{limit}, seed {config.seed}.",
        "## Rejected and failed",
        _table(("stage: reason", "entries"), [*summary["rejected"].items(), *summary["failed"].items()]),
        "## Data sets",
        *(_dataset(protocol, one["datasheet"]) for protocol, one in summary["datasets"].items()),
        "## Time",
        _seconds(records, made),
        *([note] if note else []),
        "## Entries",
        *(f"**{name}**: {' '.join(e for e in split if split[e] == name and e in made)}" for name in SPLITS),
    ]
    return "\n\n".join(parts) + "\n"


def _n(records: Iterable[Record], stage: str, status: str) -> int:
    return sum(record.stage == stage and record.status == status for record in records)


def _dataset(protocol: str, sheet: Mapping[str, Any]) -> str:
    keys = ("entries", "clusters", "residues", "frames", "atoms", "targets")
    rows = []
    for name in (*SPLITS, "all"):
        row = sheet["splits"][name]
        zero, mean = row["zero_predictor"], row["mean_magnitude_predictor"]
        numbers = [f"{value:.1f}" if value is not None else "-" for value in (zero, mean, row["max_force"])]
        rows.append((name, *(f"{row[key]:,}" for key in keys), *numbers, f"{mean / zero:.2f}" if zero else "-"))
    if protocol == "minimized":
        zero, mean = PAPER["zero_predictor"], PAPER["mean_magnitude_predictor"]
        rows.append(("paper, test", 50, *[""] * 5, zero, mean, "", f"{mean / zero:.2f}"))
    head = ("split", *keys, "mean F, zero predictor", "mean-magnitude predictor", "largest F", "ratio")
    text = (
        f"### {protocol}\n\n{sheet['force_field']}; forces on protein atoms in meV/Å; targets are atoms in one frame."
    )
    return f"{text} Content SHA-256 `{sheet['content_sha256']}`.\n\n{_table(head, rows)}"


def _seconds(records: Iterable[Record], made: set[str]) -> str:
    """Return a table of the worker seconds of each stage, from the ledger, and the rate."""
    spent: dict[str, list[float]] = {}
    for record in records:
        if record.stage != "select" and record.status in (OK, REJECTED, FAILED):
            spent.setdefault(record.stage, []).append(record.seconds)
    whole = sum(map(sum, spent.values()))
    rows = [
        (
            stage,
            len(seconds),
            f"{sum(seconds):,.0f}",
            f"{sum(seconds) / len(seconds):.1f}",
            f"{sum(seconds) / whole:.0%}",
        )
        for stage, seconds in spent.items()
    ]
    table = _table(("stage", "entries", "seconds of workers", "seconds each", "share"), rows)
    rate = 3600 * len(made) / whole
    return f"{table}\n\n{len(made)} entries: {rate:.0f} an hour and core, selection and clustering left out."


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
