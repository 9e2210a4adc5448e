"""How far a run is: a bar on a terminal, one plain line for each entry elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from data_pipeline.ledger import OK, Record


class Lines:
    """Prints one line for each entry."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stage, self._total, self._done = "", 0, 0

    def begin(self, stage: str, total: int, reused: int) -> None:
        """Print what begins."""
        self._stage, self._total, self._done = stage, total, reused
        reuse = f", {reused} done before" if reused else ""
        self._print(f"{stage}: {total} entries{reuse}" if total else stage)

    def advance(self, record: Record) -> None:
        """Print what became of an entry."""
        self._done += 1
        if not record.stage.startswith("pack") and (record.stage != "select" or record.status != OK):
            why = "" if record.status == OK else f" {record.error_class}: {record.reason}"
            took = f" {record.seconds:.1f} s"
            self._print(f"  {record.stage} {self._done}/{self._total} {record.entry} {record.status}{why}{took}")

    def end(self) -> None:
        """Say nothing."""

    def _print(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)


class Bars:
    """Shows a bar for each stage, and a line for each entry that is lost."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None

    def begin(self, stage: str, total: int, reused: int) -> None:
        """Add a bar."""
        self._task = self._bars.add_task(stage, total=total or None, completed=reused)

    def advance(self, record: Record) -> None:
        """Move the bar."""
        if record.status != OK:
            text = f"{record.stage} {record.entry} {record.status}, {record.error_class}: {record.reason}"
            self._bars.console.print(escape(text), highlight=False)
        if self._task is not None:
            self._bars.advance(self._task)

    def end(self) -> None:
        """Stop the spinner."""
        if self._task is not None:
            total = self._bars.tasks[-1].total or 1
            self._bars.update(self._task, total=total, completed=total)


@contextmanager
def show_progress(console: Console) -> Iterator[Lines | Bars]:
    """Yield what shows a run's progress on this console."""
    if not console.is_terminal:
        yield Lines(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:>15}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield Bars(bars)
