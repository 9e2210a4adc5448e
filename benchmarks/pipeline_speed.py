"""Measure the pipeline: entries per hour and core, each stage's share, and how much of it OpenMM and PDBFixer take.

    python benchmarks/pipeline_speed.py
    python benchmarks/pipeline_speed.py CONFIG --mirror FOLDER --ids 1ubq 1r69 --scaling \
        --table docs/results/pipeline_speed.md

A run in one process is sampled: every 2 ms, or when a call into native code returns, the time since the last look goes
to the outermost of OpenMM and PDBFixer on the stack, or to the innermost function of ours where neither is there.
With --scaling the same entries are made by one and by two workers of one thread, in turn; beside it stands what two
processes that share nothing reach, which is all that the machine has to give. Give it eight entries or more: at the end
of a stage one worker waits for the other.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from types import FrameType
from typing import Any
from unittest import mock

import openmm
import pdbfixer

import data_pipeline
from data_pipeline.config import PipelineConfig, load_config
from data_pipeline.engine import Task, run_task
from data_pipeline.engine.local import THREAD_VARIABLES
from data_pipeline.ledger import OK, Ledger, Record
from data_pipeline.run import run
from data_pipeline.versions import versions

ROOT = Path(__file__).parents[1]

PACKAGES = {
    str(Path(package.__file__).parent) + os.sep: package.__name__ for package in (openmm, pdbfixer, data_pipeline)
}
"""Folder of a package's modules -> its name."""

OURS = data_pipeline.__name__

INTERVAL = 0.002
"""Seconds between two looks at the stack."""

GOALS = {"inside": 0.9, "scaling": 1.8}


class Sampler:
    """Where the time goes, by looking at the stack from time to time.

    A look comes late while native code runs; the time since the last look then goes to whoever called that code,
    since Python handles the signal before that caller's next instruction.

    Attributes
    ----------
    inside
        (stage, package) -> seconds inside OpenMM or PDBFixer, whichever our code called.
    elsewhere
        (stage, function) -> seconds outside of both, by the innermost function of ours.
    """

    def __init__(self) -> None:
        self.stage = ""
        self.inside: Counter[tuple[str, str]] = Counter()
        self.elsewhere: Counter[tuple[str, str]] = Counter()
        self._owner: dict[str, str] = {}

    def __enter__(self) -> Sampler:
        self._last = time.perf_counter()
        self._before = signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, INTERVAL, INTERVAL)
        return self

    def __exit__(self, *exception: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def enter(self, stage: str) -> None:
        """Begin a stage; what has passed since the last look belongs to the one before.

        Parameters
        ----------
        stage
            Its name.
        """
        self._look(0, sys._getframe())
        self.stage = stage

    def _look(self, signum: int, frame: FrameType | None) -> None:
        now = time.perf_counter()
        elapsed, self._last = now - self._last, now
        package, function = "", ""
        while frame is not None:
            owner = self._owner_of(frame.f_code.co_filename)
            if owner == OURS:
                function = function or f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_qualname}"
            elif owner:
                package = owner  # the last one found is the outermost
            frame = frame.f_back
        if package:
            self.inside[self.stage, package] += elapsed
        else:
            self.elsewhere[self.stage, function or "other"] += elapsed

    def _owner_of(self, file: str) -> str:
        if file not in self._owner:
            self._owner[file] = next((name for folder, name in PACKAGES.items() if file.startswith(folder)), "")
        return self._owner[file]


class Here:
    """An engine that does the work in this process, where the sampler sees it."""

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def map(self, function: Callable[..., None], tasks: Iterable[Task]) -> Iterator[Record]:
        """Do one task after the other."""
        return (run_task(function, task) for task in tasks)


class Stages:
    """Listens to a run: tells the sampler which stage it is, keeps the peak memory of each."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.peak: dict[str, float] = {}

    def begin(self, stage: str, total: int, reused: int) -> None:
        """Take note of a stage's name; forget the memory that was used before."""
        self.sampler.enter(stage)
        Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM

    def advance(self, record: Record) -> None:
        """Ignore."""

    def end(self) -> None:
        """Take the peak of resident memory in MB; ru_maxrss would hold the parent's, too."""
        stage = self.sampler.stage
        self.sampler.enter("")
        status = Path("/proc/self/status").read_text()
        peak = int(status.split("VmHWM:")[1].split()[0]) / 1e3
        self.peak[stage] = max(peak, self.peak.get(stage, 0.0))


def measured(config: PipelineConfig, folder: Path) -> dict[str, Any]:
    """Run the pipeline in this process and say where its time went.

    Parameters
    ----------
    config
        What to run.
    folder
        An empty run folder.

    Returns
    -------
    ``seen``, ``made`` (entries in the data), ``seconds``, ``entries_per_hour`` (per core, selection left out, whose
    cost is that of the source) and ``stages``: name -> ``entries``, ``failed``, ``seconds``, ``share``, ``inside``
    (share of the stage in OpenMM and PDBFixer), ``packages``, ``elsewhere`` (seconds of our own functions) and
    ``peak_mb``; None where nothing was measured.
    """
    sampler = Sampler()
    stages = Stages(sampler)
    with sampler, mock.patch("data_pipeline.run.open_engine", lambda *_: Here()):
        summary = run(config, folder, progress=stages)
    records = entry_records(folder)
    seconds = {name: float(value) for name, value in summary["seconds"].items()}
    total = sum(seconds.values())
    rows: dict[str, dict[str, Any]] = {}
    for name, value in seconds.items():
        mine = [record for record in records if record.stage == name]
        packages = {p: s for (stage, p), s in sorted(sampler.inside.items()) if stage == name}
        rest = Counter({f: s for (stage, f), s in sampler.elsewhere.items() if stage == name})
        known = name in stages.peak and value > 0
        rows[name] = {
            "entries": len(mine) or None,
            "failed": sum(record.status != OK for record in mine),
            "seconds": value,
            "share": value / total if total else None,
            "inside": min(1.0, sum(packages.values()) / value) if known else None,
            "packages": packages,
            "elsewhere": dict(rest.most_common(5)),
            "peak_mb": stages.peak.get(name),
        }
    made = len({r.entry for r in records if r.status == OK and r.stage == last_stage(records)})
    working = total - seconds.get("select", 0.0)
    return {
        "seen": summary["seen"],
        "made": made,
        "seconds": total,
        "entries_per_hour": 3600 * made / working,
        "stages": rows,
    }


def entry_records(folder: Path) -> list[Record]:
    """Return what became of the entries of a run at each stage, without what is of the whole data set."""
    ledger = Ledger(folder / "ledger.jsonl")
    try:
        return [record for record in ledger if record.entry != "dataset"]
    finally:
        ledger.close()


def last_stage(records: list[Record]) -> str:
    """Return the last stage that entries went through."""
    return records[-1].stage if records else ""


def working_seconds(config: PipelineConfig, folder: Path, workers: int) -> dict[str, float]:
    """Run the pipeline and return the seconds of the stages whose work is done by entry in workers.

    Parameters
    ----------
    config
        What to run.
    folder
        An empty run folder.
    workers
        Processes of one thread.
    """
    summary = run(config.model_copy(update={"workers": workers}), folder)
    done = {record.stage for record in entry_records(folder)} - {"select"}
    return {name: float(value) for name, value in summary["seconds"].items() if name in done}


def scaling(config: PipelineConfig, scratch: Path, repeats: int) -> list[dict[str, Any]]:
    """Compare two workers with one on the same entries, and with two processes that share nothing.

    Parameters
    ----------
    config
        What to run.
    scratch
        Where run folders are made.
    repeats
        How often; the kinds take turns, so that a busy machine is busy for all.

    Returns
    -------
    For each repeat ``one``, ``two`` (seconds), ``apart`` (seconds until two single-worker runs at once are done),
    ``ratio`` (one / two), ``machine`` (2 one / apart) and ``stages`` (name -> one / two).
    """
    results = []
    for repeat in range(repeats):
        folders = {kind: scratch / f"scaling-{repeat}-{kind}" for kind in ("one", "two", "left", "right")}
        by_stage = {
            kind: _alone(working_seconds, (config, folders[kind], workers))[0]
            for kind, workers in (("one", 1), ("two", 2))
        }
        both = _alone(working_seconds, *[(config, folders[kind], 1) for kind in ("left", "right")])
        one, two = (sum(by_stage[kind].values()) for kind in ("one", "two"))
        apart = max(sum(seconds.values()) for seconds in both)
        results.append(
            {
                "one": one,
                "two": two,
                "apart": apart,
                "ratio": one / two,
                "machine": 2 * one / apart,
                "stages": {name: value / by_stage["two"][name] for name, value in by_stage["one"].items()},
            }
        )
    return results


def _alone(function: Any, *calls: tuple[Any, ...]) -> list[Any]:
    """Call a function in fresh processes, one for each set of arguments, at once."""
    with ProcessPoolExecutor(len(calls), mp_context=multiprocessing.get_context("spawn")) as pool:
        return [future.result() for future in [pool.submit(function, *arguments) for arguments in calls]]


def page(results: dict[str, Any], command: str) -> str:
    """Return the results as Markdown."""
    machine = results["machine"]
    lines = [
        "# Speed of the pipeline",
        "",
        f"Written by `{command}` on {machine['processor']}, {machine['cores']} cores, "
        f"load {machine['load']:.1f} before; "
        + ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        + ".",
    ]
    for name, result in results["runs"].items():
        stages = result["stages"]
        peak = max(row["peak_mb"] or 0 for row in stages.values())
        lines += [
            "",
            f"## {name}: {result['entries_per_hour']:.1f} entries per hour and core",
            "",
            f"{result['made']} entries of {result['seen']} seen ({', '.join(result['ids'])}), one worker and thread, "
            f"{result['seconds']:.0f} s, at most {peak:.0f} MB. The rate leaves selection out.",
            "",
            "| stage | entries | seconds | s per entry | share | in OpenMM, PDBFixer | peak MB | elsewhere, mostly |",
            "|---|---|---|---|---|---|---|---|",
            *(_row(stage, row) for stage, row in stages.items()),
        ]
        if "scaling" in result:
            lines += _scaling_lines(result["scaling"])
    return "\n".join(lines) + "\n"


def _row(stage: str, row: dict[str, Any]) -> str:
    entries, seconds = row["entries"], row["seconds"]
    per_entry = f"{seconds / entries:.2f}" if entries else "-"
    inside = "-" if row["inside"] is None else f"{row['inside']:.1%}"
    peak = "-" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"
    most = next(((f, s) for f, s in row["elsewhere"].items() if s >= 0.01 * seconds), None)
    elsewhere = f"`{most[0]}` {most[1] / seconds:.1%}" if most else "-"
    cells = (stage, str(entries or "-"), f"{seconds:.1f}", per_entry, f"{row['share']:.1%}", inside, peak, elsewhere)
    return f"| {' | '.join(cells)} |"


def _scaling_lines(repeats: list[dict[str, Any]]) -> list[str]:
    stages = {name: median(repeat["stages"][name] for repeat in repeats) for name in repeats[0]["stages"]}
    return [
        "",
        f"Two workers against one, the same entries, {len(repeats)} times in turn: "
        f"**{median(repeat['ratio'] for repeat in repeats):.2f}** times as fast (median); two processes that share "
        f"nothing: {median(repeat['machine'] for repeat in repeats):.2f}. By stage: "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in stages.items())
        + ".",
        "",
        "| repeat | one worker, s | two workers, s | ratio | two processes apart |",
        "|---|---|---|---|---|",
        *(
            f"| {k} | {r['one']:.1f} | {r['two']:.1f} | {r['ratio']:.2f} | {r['machine']:.2f} |"
            for k, r in enumerate(repeats, start=1)
        ),
    ]


def judged(results: dict[str, Any]) -> list[str]:
    """Return which goals are missed, in words."""
    missed = []
    for name, result in results["runs"].items():
        missed += [
            f"{name}: {stage} spends {row['inside']:.1%} in OpenMM and PDBFixer, the goal is {GOALS['inside']:.0%}"
            for stage, row in result["stages"].items()
            if row["inside"] is not None and row["entries"] and stage != "select" and row["inside"] < GOALS["inside"]
        ]
        if "scaling" in result:
            ratio = median(repeat["ratio"] for repeat in result["scaling"])
            if ratio < GOALS["scaling"]:
                missed.append(f"{name}: two workers are {ratio:.2f} times one, the goal is {GOALS['scaling']}")
    return missed


def read_config(path: Path, options: argparse.Namespace) -> PipelineConfig:
    """Return a configuration with the source, entries and limit of the command line, all in the training split."""
    config = load_config(path)
    select: dict[str, Any] = {}
    if options.ids:
        select |= {"ids": options.ids, "limit": None}
    if options.limit:
        select |= {"limit": options.limit}
    changes: dict[str, Any] = {"select": config.select.model_copy(update=select)}
    if options.mirror:
        changes["source"] = config.source.model_copy(update={"path": str(options.mirror.resolve())})
    everything = {"train": 1.0, "validation": 0.0, "test": 0.0}  # any number of entries fits, nothing is left out
    changes["split"] = config.split.model_copy(update=everything)
    return config.model_copy(update=changes)


def processor() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def main() -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    demo = ROOT / "examples/demo"
    parser.add_argument(
        "configs",
        nargs="*",
        type=Path,
        metavar="CONFIG",
        default=[demo / "data_thermal.yaml", demo / "data_minimized.yaml"],
        help="pipeline configurations (default: the demo's two)",
    )
    parser.add_argument("--mirror", type=Path, help="folder of entries (default: each configuration's)")
    parser.add_argument("--ids", nargs="+", help="only these entries (default: each configuration's)")
    parser.add_argument("--limit", type=int, help="only so many (default: each configuration's)")
    parser.add_argument("--scaling", action="store_true", help="compare two workers with one, too")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison (default: 3)")
    parser.add_argument("--table", type=Path, help="Markdown page to write")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the page")
    options = parser.parse_args()
    os.environ |= dict.fromkeys(
        THREAD_VARIABLES, "1"
    )  # every measurement is in a child, which reads them when it starts
    results: dict[str, Any] = {
        "machine": {"processor": processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "versions": versions(),
        "runs": {},
    }
    with tempfile.TemporaryDirectory() as scratch:
        for number, path in enumerate(options.configs):
            config = read_config(path, options)
            folder = Path(scratch) / str(number)
            folder.mkdir()
            (result,) = _alone(measured, (config, folder / "measured"))
            result["ids"] = sorted(json.loads((folder / "measured/split.json").read_text()))
            if options.scaling:
                result["scaling"] = scaling(config, folder, options.repeats)
            results["runs"][config.name] = result
    text = page(results, shlex.join(["python", *sys.argv]))
    if options.table:
        options.table.write_text(text, encoding="utf-8")
    print(json.dumps(results, indent=1) if options.json else text)
    for sentence in judged(results):
        print(f"goal missed: {sentence}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
