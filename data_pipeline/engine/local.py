"""Worker processes of this machine, one thread each: a limit of time and memory costs the entry that passes it only."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

from pebble import ProcessExpired, ProcessPool

from data_pipeline.engine.task import Limits, Task, lost, run_task
from data_pipeline.errors import ConfigError, PipelineError
from data_pipeline.ledger import FAILED, Record

THREAD_VARIABLES = ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")

TRIES = 2
"""How often an entry whose worker dies is tried: it may have been the innocent one when memory ran out."""

OVER_MEMORY = 77
"""Exit code of a worker that has passed its limit of memory."""

CHECK = 5.0
"""Seconds after which to look whether the pool itself still works."""

STATM = Path("/proc/self/statm")
"""Linux: the memory of this process in pages; the second number is what is resident."""


@dataclass
class _Attempt:
    task: Task
    tries: int = 0
    slot: int = 0
    started: float = 0.0


class Local:
    """Processes of this machine.

    They start with the first task and last until the end, whatever the stage: a fresh process each would cost a
    second. Even one worker is a process of its own, so that no flag or global seed that a program has set before
    reaches the results.

    Parameters
    ----------
    workers
        Number of processes.
    limits
        Of each task.

    Raises
    ------
    ConfigError
        If memory cannot be limited here.
    """

    def __init__(self, workers: int, limits: Limits) -> None:
        if limits.memory is not None and not STATM.exists():
            raise ConfigError(f"memory_limit needs {STATM}, which only Linux has; leave it out here")
        self.workers, self.limits = workers, limits
        self._pool: ProcessPool | None = None
        self._ended = False

    def __enter__(self) -> Local:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended = True
        self._stop()

    def map(self, function: Callable[..., None], tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield one record for each task, as they finish; see `Engine.map`."""
        waiting = deque(_Attempt(task) for task in tasks)
        free = list(reversed(range(self.workers)))
        running: dict[Future[Record], _Attempt] = {}
        try:
            while waiting or running:
                while waiting and free:
                    attempt = waiting.popleft()
                    attempt.slot = free.pop()
                    running[self._start(function, attempt)] = attempt
                done, _ = wait(running, timeout=CHECK, return_when=FIRST_COMPLETED)
                pool = self._pool
                if not done and (pool is None or not pool.active):
                    done = set(running)
                for future in done:
                    attempt = running.pop(future)
                    free.append(attempt.slot)
                    record = self._outcome(future, attempt)
                    if record is None:
                        waiting.appendleft(attempt)
                    else:
                        yield record
        finally:
            if running:  # left early: interrupted, or the disk is full
                self._stop()

    def _start(self, function: Callable[..., None], attempt: _Attempt) -> Future[Record]:
        if self._ended:
            raise PipelineError("the run has ended")
        if self._pool is None or not self._pool.active:
            self._stop()
            self._pool = self._new_pool(function.__module__)
        attempt.tries += 1
        attempt.started = time.monotonic()
        devices = self.limits.devices
        device = devices[attempt.slot % len(devices)] if devices else None
        arguments = (function, attempt.task, self.limits.platform, device)
        return self._pool.schedule(_perform, args=arguments, timeout=self.limits.timeout)

    def _outcome(self, future: Future[Record], attempt: _Attempt) -> Record | None:
        """Return what became of a task, or None if it is to be tried again."""
        error = future.exception() if future.done() else BrokenProcessPool()
        if error is None:
            return future.result()
        if isinstance(error, TimeoutError):
            if time.monotonic() - attempt.started < self.limits.timeout:
                attempt.tries -= 1  # the machine was asleep: Pebble goes by the clock on the wall
                return None
            reason = (
                f"not done after {self.limits.timeout / 60:g} minutes and ended; raise timeout in the configuration "
                "and run again with --retry-failed, or look at the entry"
            )
            return lost(attempt.task, attempt.started, FAILED, "Timeout", reason)
        if isinstance(error, ProcessExpired):
            if error.exitcode == OVER_MEMORY and self.limits.memory is not None:
                reason = (
                    f"the worker needed more than memory_limit, {self.limits.memory / 1e9:g} GB; raise it and run "
                    "again with --retry-failed"
                )
                return lost(attempt.task, attempt.started, FAILED, "MemoryLimit", reason)
            if attempt.tries < TRIES:
                return None
            reason = (
                f"the worker process died {TRIES} times ({_death(error.exitcode)}): out of memory, or a crash in "
                "native code; run again with --retry-failed, with fewer workers or more memory"
            )
            return lost(attempt.task, attempt.started, FAILED, "WorkerDied", reason)
        if isinstance(error, BrokenProcessPool):  # a worker ended while it had no task, or they do not even start
            self._stop()
            if attempt.tries < TRIES:
                return None
            raise PipelineError(
                "the worker processes end as soon as they start; the lines above may say why. A program of your own "
                'that calls data_pipeline.run must do so below `if __name__ == "__main__":`, since its workers import '
                "it"
            )
        raise error

    def _new_pool(self, module: str) -> ProcessPool:
        for name in THREAD_VARIABLES:
            os.environ[name] = "1"  # inherited by the workers, where OpenMM reads it when it is loaded
        return ProcessPool(
            self.workers,
            initializer=_begin,
            initargs=(module, self.limits.memory),
            # OpenMM's threads and CUDA contexts do not survive a fork.
            context=multiprocessing.get_context("spawn"),
        )

    def _stop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.stop()
            pool.join()


def _perform(function: Callable[..., None], task: Task, platform: str, device: str | None) -> Record:
    if device is not None:
        from data_pipeline.systems.build import single_thread_platform

        single_thread_platform(platform, device)
    return run_task(function, task)


def _begin(module: str, memory: int | None) -> None:
    """Make a worker end at once when it is told to, when its parent is killed, and when it is over its memory."""
    # Pebble's own handler waits for native code to return, which takes until its patience ends.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    if memory is not None:
        threading.Thread(target=_watch_memory, args=(memory,), daemon=True).start()
    importlib.import_module(module)  # before the first task: fetching one, a worker keeps the others waiting


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _watch_memory(limit: int) -> None:
    # No resource limit serves: address space is many times what is used, and CUDA maps all there is.
    page = os.sysconf("SC_PAGE_SIZE")
    while int(STATM.read_text().split()[1]) * page <= limit:
        time.sleep(0.2)
    os._exit(OVER_MEMORY)


def _death(exitcode: int) -> str:
    try:
        return f"signal {signal.Signals(-exitcode).name}"
    except ValueError:
        return f"exit code {exitcode}"
