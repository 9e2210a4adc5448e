"""How far a run is: a bar on a terminal, one plain line for each entry elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from data_pipeline.ledger import OK, Record


class _Tally:
    """Counts what becomes of a stage's entries."""

    def __init__(self) -> None:
        self.stage, self.total, self.reused, self.kept, self.lost = "", 0, 0, 0, 0

    def begin(self, stage: str, total: int, reused: int) -> None:
        """Start a stage."""
        self.stage, self.total, self.reused, self.kept, self.lost = stage, total, reused, 0, 0

    def advance(self, record: Record) -> None:
        """Count an entry."""
        if record.status == OK:
            self.kept += 1
        else:
            self.lost += 1

    @property
    def done(self) -> int:
        return self.reused + self.kept + self.lost

    def __str__(self) -> str:
        counts = ((self.kept, "kept"), (self.lost, "lost"), (self.reused, "done before"))
        return ", ".join(f"{n} {what}" for n, what in counts if n)


class Lines:
    """Prints one line for each entry, and what came of a stage."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._tally = _Tally()

    def begin(self, stage: str, total: int, reused: int) -> None:
        """Print what begins."""
        self._tally.begin(stage, total, reused)
        reuse = f", {reused} done before" if reused else ""
        self._print(f"{stage}: {total} entries{reuse}" if total else stage)

    def advance(self, record: Record) -> None:
        """Print what became of an entry."""
        self._tally.advance(record)
        if not record.stage.startswith("pack") and (record.stage != "select" or record.status != OK):
            why = "" if record.status == OK else f" {record.error_class}: {record.reason}"
            took = f" {record.seconds:.1f} s"
            at = f"{self._tally.done}/{self._tally.total}"
            self._print(f"  {record.stage} {at} {record.entry} {record.status}{why}{took}")

    def end(self) -> None:
        """Print what came of the stage."""
        if str(self._tally):
            self._print(f"{self._tally.stage}: {self._tally}")

    def _print(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)


class Bars:
    """Shows a bar with counts for each stage, and a line for each entry that is lost."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._tally = _Tally()

    def begin(self, stage: str, total: int, reused: int) -> None:
        """Add a bar."""
        self._tally.begin(stage, total, reused)
        self._task = self._bars.add_task(stage, total=total or None, completed=reused, counts=str(self._tally))

    def advance(self, record: Record) -> None:
        """Move the bar."""
        self._tally.advance(record)
        if record.status != OK:
            text = f"{record.stage} {record.entry} {record.status}, {record.error_class}: {record.reason}"
            self._bars.console.print(escape(text), highlight=False)
        if self._task is not None:
            self._bars.update(self._task, advance=1, counts=str(self._tally))

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
        TextColumn("{task.fields[counts]}", markup=False),
    )
    with Progress(*columns, console=console) as bars:
        yield Bars(bars)
