"""One progress bar in a terminal; elsewhere one plain line every few seconds."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Column

PLAIN_SECONDS = 10.0
"""Between two lines where the output is no terminal."""


class ProgressLine:
    """Show how far a piece of long work is.

    Parameters
    ----------
    title
        What is done.
    quiet
        Show nothing.
    """

    def __init__(self, title: str, quiet: bool = False):
        self._title, self._quiet = title, quiet
        self._console = Console(stderr=True)
        self._last = -PLAIN_SECONDS
        self._bar: Progress | None = None
        if self._console.is_terminal and not quiet:
            # the text alone may be cut in a narrow terminal
            whole = (Column(no_wrap=True, min_width=len(title)), Column(min_width=12), Column(min_width=4))
            self._bar = Progress(
                TextColumn("{task.description}", table_column=whole[0]),
                BarColumn(bar_width=12, table_column=whole[1]),
                TaskProgressColumn(table_column=whole[2]),
                TextColumn("{task.fields[text]}", table_column=Column(no_wrap=True)),
                console=self._console,
            )
            self._task = self._bar.add_task(title, total=1.0, text="")

    def __enter__(self) -> ProgressLine:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def say(self, text: str) -> None:
        """Print a line of its own, above the bar where there is one."""
        if not self._quiet:
            self._console.print(f"{self._title}: {text}", highlight=False, soft_wrap=True)

    def show(self, part: float, text: str, last: bool = False) -> None:
        """Show progress.

        Parameters
        ----------
        part
            0 to 1.
        text
            What to say beside it.
        last
            Print the plain line even if it is not yet time for one.
        """
        if self._bar:
            self._bar.update(self._task, completed=min(part, 1.0), text=text)
        elif not self._quiet and (last or time.monotonic() - self._last >= PLAIN_SECONDS):
            self._last = time.monotonic()
            self._console.print(f"{self._title} {100 * min(part, 1.0):.0f}% {text}", highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Return a length of time as 45 s, 3:20 min or 1:05 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds / 60)
    return f"{minutes}:{int(seconds) % 60:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
