"""The command ``data-pipeline``: parse, configure, one call."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

os.environ.setdefault("OPENMM_CPU_THREADS", "1")  # before OpenMM is loaded; parallel work is over entries

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_pipeline.config import PipelineConfig, load_config
from data_pipeline.dataset.check import check as check_dataset
from data_pipeline.dataset.datasheet import datasheet, find_summary, read_summary, write_datasheet
from data_pipeline.entries.survey import Comparison, Survey, compare, is_criterion, survey
from data_pipeline.errors import ConfigError, PipelineError
from data_pipeline.files import write_json
from data_pipeline.progress import show_progress
from data_pipeline.run import run as run_pipeline
from data_pipeline.schema import FORCES, PAPER, REFINEMENT, SPLITS, SchemaError
from data_pipeline.sources import open_source

app = typer.Typer(
    help="From PDB entries to reference forces: select, cluster, split, prepare, sample, label, pack. Or from "
    "candidate structures and their natives to refinement vectors.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
errors = Console(stderr=True)

AGAIN = {FORCES: "on the Reference platform", REFINEMENT: "by quaternions"}
"""Task -> how `check --recompute` computes labels."""


@app.command("run")
def run_command(
    config: Annotated[Path, typer.Argument(help="A YAML file; see docs/dataset.md and examples/.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Run folder. Default: runs/NAME.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes of one thread each.")] = None,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, which then has the workers.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many, spread over splits and clusters.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again what failed before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
) -> None:
    """Make dataset.h5; run the same command again after an interruption and it goes on where it stopped."""
    settings = load_config(config)
    if workers is not None:
        settings = settings.model_copy(update={"workers": workers})
    if dask is not None:
        settings = settings.model_copy(update={"dask": dask})
    if limit is not None:
        limited: dict[str, Any] = {"limit": limit}
        if isinstance(settings, PipelineConfig):
            limited = {"select": settings.select.model_copy(update=limited)}
        settings = settings.model_copy(update=limited)
    folder = output or Path("runs") / settings.name
    with show_progress(errors if as_json else console) as progress:
        summary = run_pipeline(settings, folder, progress=progress, retry_failed=retry_failed)
    if as_json:
        print(json.dumps(summary, indent=1))
    else:
        _print_summary(summary)


@app.command("check")
def check_command(
    dataset: Annotated[Path, typer.Argument(help="A dataset.h5.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print report and datasheet as JSON.")] = False,
    leakage: Annotated[bool, typer.Option(help="Compare the sequences of different splits again.")] = True,
    recompute: Annotated[int, typer.Option(min=0, help="Label a frame of so many entries again.")] = 0,
) -> None:
    """Verify a dataset: schema, arrays, hash, split, leakage, labels. Exits with 1 when anything is wrong."""
    report = check_dataset(dataset, leakage=leakage, recompute=recompute)
    sheet = datasheet(dataset) if report.ok else None
    if as_json:
        print(json.dumps({**asdict(report), "ok": report.ok, "datasheet": sheet}, indent=1))
    else:
        for problem in report.problems:
            console.print(f"[red]problem[/red] {escape(problem)}", highlight=False, soft_wrap=True)
        if sheet is not None:
            console.print(_sheet_table(sheet))
            console.print(f"{report.leakage}: none found")
        if report.recomputed:
            worst, where = report.worst
            told = f"{len(report.recomputed)} entries labelled again {AGAIN[report.task]}: worst"
            console.print(
                f"{told} {PAPER[report.task].deviation} {worst:.1e} ({where})", soft_wrap=True, highlight=False
            )
        verdict = "[green]good[/green]" if report.ok else f"[red]{len(report.problems)} problems[/red]"
        console.print(f"{escape(str(dataset))}: {verdict}", highlight=False, soft_wrap=True)
    if not report.ok:
        raise typer.Exit(1)


@app.command("datasheet")
def datasheet_command(
    dataset: Annotated[Path, typer.Argument(help="A dataset.h5.")],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Folder. Default: the dataset's.")] = None,
    summary: Annotated[Path | None, typer.Option(help="The run's summary.json. Default: beside the dataset.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what datasheet.json holds.")] = False,
) -> None:
    """Describe a dataset: datasheet.html for people, datasheet.json for machines."""
    folder = output or dataset.parent
    sheet = write_datasheet(dataset, folder, read_summary(summary) if summary else find_summary(dataset))
    if as_json:
        print((folder / "datasheet.json").read_text(encoding="utf-8"), end="")
    else:
        console.print(_sheet_table(sheet))
        console.print(str(folder / "datasheet.html"), soft_wrap=True, highlight=False)


@app.command("select")
def select_command(
    config: Annotated[Path, typer.Argument(help="A YAML file; only its parts source and select are read.")],
    comparison: Annotated[
        Path | None, typer.Option("--compare", help="A table with columns id, qualifies (yes or no), and reason.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the JSON there too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print every verdict as JSON.")] = False,
) -> None:
    """Tell what the criteria keep of a source, without making anything. Exits with 1 when that is nothing."""
    settings = load_config(config)
    if not isinstance(settings, PipelineConfig):
        raise ConfigError(
            f"{config} is of task {settings.task}, whose table names its pairs: there is nothing to select. "
            "`data-pipeline run` tells what it takes of them"
        )
    options = settings.source.options(settings.select.criteria())
    result = survey(open_source(settings.source.kind, settings.source.path, **options), settings.select)
    compared = compare(result, comparison) if comparison else None
    report = {**result.as_json(), "comparison": asdict(compared) if compared else None}
    if output is not None:
        write_json(output, report)
    if as_json:
        print(json.dumps(report, indent=1))
    else:
        _print_survey(result, compared)
    if not result.facts:
        raise typer.Exit(1)


def _print_survey(result: Survey, compared: Comparison | None) -> None:
    table = Table(
        "entries", "first reason", title=f"{len(result.verdicts)} entries seen", title_justify="left", box=SIMPLE
    )
    table.add_row(str(len(result.facts)), "kept")
    for name, n in result.rejected().items():
        table.add_row(str(n), f"rejected by {name}" if is_criterion(name) else f"file: {name}")
    console.print(table)
    if compared is None:
        return
    agreed = f"{compared.both_keep} kept by both, {compared.both_reject} rejected by both"
    unknown = f"{len(compared.only_here)} ids only in the source, {len(compared.only_there)} only in the table"
    console.print(f"{agreed}, {len(compared.differences)} differences; {unknown}")
    for found in compared.differences:
        ours = "kept here" if found.keep else f"rejected here by {found.criterion} ({found.reason})"
        theirs = f"rejected there ({found.their_reason or 'no reason given'})" if found.keep else "qualifies there"
        console.print(f"{found.entry}: {escape(ours)}, {escape(theirs)}", highlight=False, soft_wrap=True)


def _print_summary(summary: dict[str, Any]) -> None:
    table = Table(title=f"{summary['name']}: from entries to data", title_justify="left", show_header=False)
    rows = [
        ("entries seen", summary["seen"]),
        ("used", f"{summary['kept']} ({summary['left_out']} not needed)"),
        *((name.replace("_", " "), f"{n:,}") for name, n in summary.get("counts", {}).items()),
        *((f"rejected, {reason}", n) for reason, n in summary["rejected"].items()),
        *((f"failed, {reason}", n) for reason, n in summary["failed"].items()),
        ("clusters", f"{summary['clusters']} ({summary['cluster_method']})"),
        ("seconds", ", ".join(f"{stage} {seconds:g}" for stage, seconds in summary["seconds"].items())),
    ]
    for name, value in rows:
        table.add_row(name, str(value))
    console.print(table)
    for made in summary["datasets"].values():
        console.print(_sheet_table(made["datasheet"]))
        console.print(made["dataset"], soft_wrap=True, highlight=False)


def _sheet_table(sheet: dict[str, Any]) -> Table:
    paper = PAPER[sheet["task"]]
    of = ", ".join(filter(None, (sheet["protocol"], sheet.get("force_field"))))
    title = f"{of}; mean {paper.symbol} and the mean-magnitude predictor's error in {paper.unit}"
    table = Table(title=title, title_justify="left", box=SIMPLE, padding=(0, 1, 0, 0))
    counts = ("entries", "clusters", "frames", "atoms", "targets")
    table.add_column("split", no_wrap=True)
    for name in (*counts, f"mean {paper.symbol}", "naive"):
        table.add_column(name, justify="right", no_wrap=True)
    for split in (*SPLITS, "all"):
        row = sheet["splits"][split]
        # The zero predictor's error is the mean itself.
        keys = (f"mean_{paper.name}", "mean_magnitude_predictor")
        numbers = ["-" if row[key] is None else f"{row[key]:.{paper.digits}f}" for key in keys]
        table.add_row(split, *(str(row[name]) for name in counts), *numbers)
    return table


def main() -> None:
    """Run the command; errors that are meant for the user come without a traceback."""
    try:
        app()
    except (PipelineError, SchemaError) as error:
        errors.print(f"[red]error[/red] {escape(str(error))}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
    except OSError as error:  # a disk that is full or a folder that cannot be written, wherever it strikes
        told = f"{error}. What was finished is safe: mend it and run the same command again, it goes on from there"
        errors.print(f"[red]error[/red] {escape(told)}", highlight=False, soft_wrap=True)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        errors.print("interrupted; run the same command again, it goes on from there")
        raise SystemExit(130) from None
