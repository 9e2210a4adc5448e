"""Map a stage over entries: in processes of this machine, or on a Dask cluster; an entry that fails fails alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Protocol

from data_pipeline.engine.local import Local
from data_pipeline.engine.task import Limits, Task, run_task
from data_pipeline.ledger import Record

__all__ = ["Engine", "Limits", "Local", "Task", "open_engine", "run_task"]


class Engine(Protocol):
    """Who does the work; a context manager that lets its workers go at the end."""

    def __enter__(self) -> Engine:
        """Make ready."""
        ...

    def __exit__(self, *exception: object) -> None:
        """Let the workers go, whatever they are doing."""
        ...

    def map(self, function: Callable[..., None], tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield one record for each task, as they finish.

        Parameters
        ----------
        function
            Called in a worker as ``function(out=path, **task.arguments)``; writes its output completely or not at all.
            A fresh process must be able to import it.
        tasks
            What to do.

        Raises
        ------
        PipelineError
            If the disk is full or the workers cannot work: going on would fail every entry.
        """
        ...


def open_engine(dask: str | None, workers: int, limits: Limits, folder: Path, reads: Iterable[Path]) -> Engine:
    """Return who does the work of a run.

    Parameters
    ----------
    dask
        Address of a Dask scheduler, or None for processes of this machine.
    workers
        How many of them.
    limits
        Of each task.
    folder, reads
        The run folder, and other files and folders that stages read: the workers of a cluster must see the same.
    """
    if dask is None:
        return Local(workers, limits)
    from data_pipeline.engine.dask_cluster import DaskCluster

    return DaskCluster(dask, limits, folder, reads)
