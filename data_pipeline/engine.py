"""Map a stage over entries: in this process or in several, one thread each; an entry that fails fails alone."""

from __future__ import annotations

import errno
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import EntryError, PipelineError
from data_pipeline.ledger import FAILED, OK, REJECTED, Record, sha256

THREAD_VARIABLES = ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of the disk, not of an entry: they stop the run."""


@dataclass(frozen=True)
class Task:
    """One entry at one stage.

    Parameters
    ----------
    entry
        The entry's id.
    stage
        The stage's name.
    key
        The resume key, see `ledger.Record`.
    output
        The file that the function writes, relative to `folder`.
    folder
        The run folder.
    arguments
        Keyword arguments of the function besides ``out``; they are sent to a worker, so plain data only.
    """

    entry: str
    stage: str
    key: str
    output: str
    folder: str
    arguments: dict[str, Any]


def map_stage(function: Callable[..., None], tasks: Iterable[Task], workers: int = 1) -> Iterator[Record]:
    """Yield one record for each task, as they finish.

    Parameters
    ----------
    function
        Called as ``function(out=path, **task.arguments)``; writes its output completely or not at all. It must be
        importable by a fresh process when there are several workers.
    tasks
        What to do.
    workers
        Processes; 1 runs everything in this one.

    Raises
    ------
    PipelineError
        If the disk is full: going on would fail every entry.
    """
    for name in THREAD_VARIABLES:
        os.environ[name] = "1"  # inherited by the workers, where OpenMM reads it when it is loaded
    tasks = list(tasks)
    if workers <= 1 or len(tasks) <= 1:
        for task in tasks:
            yield run_task(function, task)
        return
    yield from _in_processes(function, tasks, workers)


def run_task(function: Callable[..., None], task: Task) -> Record:
    """Run one task; whatever it raises becomes its record, except that the disk is full."""
    started = time.monotonic()
    out = Path(task.folder) / task.output

    def record(status: str, error_class: str, reason: str) -> Record:
        seconds = round(time.monotonic() - started, 2)
        return Record(task.entry, task.stage, status, reason, error_class, task.key, "", "", seconds)

    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        function(out=out, **task.arguments)
        seconds = round(time.monotonic() - started, 2)
        return Record(task.entry, task.stage, OK, "", "", task.key, task.output, sha256(out), seconds)
    except EntryError as error:
        return record(REJECTED, error.kind, str(error))
    except Exception as error:
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            raise PipelineError(
                f"cannot write {out}: {error.strerror}. What was finished is safe: make room and run the same command "
                "again, it goes on from there"
            ) from error
        # Any other exception is this entry's own; the last line of the traceback says where.
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{error} ({Path(where.filename).name}:{where.lineno})"
        return record(FAILED, type(error).__name__, reason)


def _in_processes(function: Callable[..., None], tasks: list[Task], workers: int) -> Iterator[Record]:
    waiting = list(reversed(tasks))
    while waiting:
        # A worker that dies (out of memory, a crash in native code) breaks the whole pool: the tasks that were
        # running are tried again alone, one process each, so that only the guilty one is recorded as failed.
        suspects: list[Task] = []
        with _pool(min(workers, len(waiting))) as pool:
            running: dict[Future[Record], Task] = {}
            broken = False
            while (waiting and not broken) or running:
                while waiting and len(running) < workers and not broken:
                    task = waiting.pop()
                    try:
                        running[pool.submit(run_task, function, task)] = task
                    except BrokenProcessPool:
                        waiting.append(task)
                        broken = True
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    task = running.pop(future)
                    try:
                        yield future.result()
                    except BrokenProcessPool:
                        broken = True
                        suspects.append(task)
        for task in suspects:
            yield _alone(function, task)


def _alone(function: Callable[..., None], task: Task) -> Record:
    with _pool(1) as pool:
        try:
            return pool.submit(run_task, function, task).result()
        except BrokenProcessPool:
            reason = "the worker process died (out of memory, or a crash in native code); run again with more memory"
            return Record(task.entry, task.stage, FAILED, reason, "WorkerDied", task.key)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn: OpenMM's threads and CUDA contexts do not survive a fork.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_die_with_parent)


def _die_with_parent() -> None:
    """End this worker when its parent is killed: it would finish its task and then wait for ever."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
