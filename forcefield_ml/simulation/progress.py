"""How far a simulation is: a bar in a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

INTERVAL = 10.0
"""Seconds between plain lines."""


class Progress:
    """Show steps done, ns/day and the time left.

    Parameters
    ----------
    total
        Steps in all.
    done
        Steps that a former run did.
    timestep_fs
        Length of a step.
    """

    def __init__(self, total: int, done: int, timestep_fs: float) -> None:
        self.total, self.first, self.timestep_fs = total, done, timestep_fs
        self.started = self.told = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            self._bar = Bar(
                TextColumn("simulate"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f} steps  {task.description}  left"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=total, completed=done)

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int) -> None:
        """Show that a step was reached.

        Parameters
        ----------
        step
            Steps done in all.
        """
        now = time.monotonic()
        seconds = max(now - self.started, 1e-9)
        speed = (step - self.first) * self.timestep_fs * 1e-6 / seconds * 86400
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"{speed:.3g} ns/day")
        elif now - self.told > INTERVAL or step == self.total:
            self.told = now
            left = (self.total - step) * seconds / max(step - self.first, 1)
            print(f"simulate: {step}/{self.total} steps, {speed:.3g} ns/day, {left:.0f} s left", file=sys.stderr)
