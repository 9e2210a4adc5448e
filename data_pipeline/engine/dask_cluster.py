"""The same work on a Dask cluster that is there already, given by the address of its scheduler.

Dask's workers are couriers: each task runs in a child process of the Dask worker, by the same code as on one machine.
So time and memory have the same limits, a crash in native code costs no courier, and neither Dask's own use of Python's
global random numbers nor a second thread of the worker can reach the results.
"""

from __future__ import annotations

import multiprocessing
import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data_pipeline.engine.local import Local
from data_pipeline.engine.task import Limits, Task, lost
from data_pipeline.errors import ConfigError, EntryError, PipelineError
from data_pipeline.ledger import FAILED, Record
from data_pipeline.systems.build import single_thread_platform
from data_pipeline.versions import versions

PATIENCE = 30.0
"""Seconds to wait for the scheduler, for a first worker, and for a file to appear on another machine."""


@dataclass(frozen=True)
class _Shared:
    """What every worker must see and have.

    Parameters
    ----------
    folder
        The run folder.
    token
        Name and content of a file that lies there.
    reads
        Other files and folders that stages read.
    versions
        Of what makes the data.
    limits
        Of each task.
    """

    folder: str
    token: str
    reads: tuple[str, ...]
    versions: dict[str, str]
    limits: Limits

    @property
    def probe(self) -> Path:
        return Path(self.folder) / f".shared.{self.token}.tmp"


class DaskCluster:
    """A Dask cluster, used while it is there; its workers may come and go.

    Parameters
    ----------
    address
        Of the scheduler, such as tcp://host:8786.
    limits
        Of each task.
    folder, reads
        See `open_engine`.

    Raises
    ------
    ConfigError
        On entering: if dask.distributed is not installed, the scheduler does not answer, there is no worker, or a
        worker does not see the same files or has other versions.
    """

    def __init__(self, address: str, limits: Limits, folder: Path, reads: Iterable[Path]) -> None:
        self.address = address
        there = tuple(str(Path(path).resolve()) for path in reads)
        self._shared = _Shared(str(folder.resolve()), secrets.token_hex(8), there, versions(), limits)
        self._client: Any = None

    def __enter__(self) -> DaskCluster:
        try:
            from distributed import Client
        except ImportError as error:
            raise ConfigError(
                f"--dask needs dask.distributed ({error}); install it with `pip install 'forcefield-ml[cluster]'`"
            ) from error
        try:
            self._client = Client(self.address, timeout=PATIENCE / 3, set_as_default=False)
        except Exception as error:  # OSError, ValueError for an odd address, and Dask's own
            raise ConfigError(
                f"no Dask scheduler answers at {self.address!r}: {error}. Start one with `dask scheduler` and give the "
                "address that it prints, such as tcp://host:8786"
            ) from error
        try:
            self._check_workers()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self._shared.probe.unlink(missing_ok=True)
        with suppress(Exception):  # a cluster that is gone has nothing to let go
            self._client.run(_let_go, self._shared.folder)
        self._client.close()

    def map(self, function: Callable[..., None], tasks: Iterable[Task]) -> Iterator[Record]:
        """Yield one record for each task, as they finish; see `Engine.map`."""
        from distributed import as_completed

        waiting = list(reversed(list(tasks)))
        running: dict[Any, tuple[Task, float]] = {}
        finished = as_completed(loop=self._client.loop, raise_errors=False)
        try:
            while waiting or running:
                # No more at a time than threads: those queueing behind an entry would be blamed with it.
                room = max(1, sum(self._client.nthreads().values())) - len(running)
                for _ in range(min(room, len(waiting))):
                    task = waiting.pop()
                    name = f"{task.stage}-{task.entry}-{secrets.token_hex(4)}"
                    future = self._client.submit(_in_child, function, task, self._shared, key=name, pure=False)
                    running[future] = task, time.monotonic()
                    finished.add(future)
                future = next(finished)
                yield self._outcome(future, *running.pop(future))
        finally:
            with suppress(Exception):
                self._client.cancel(list(running))

    def _check_workers(self) -> None:
        try:
            self._client.wait_for_workers(1, timeout=PATIENCE)
        except TimeoutError as error:
            raise ConfigError(
                f"the Dask scheduler at {self.address} has no worker; start some with "
                f"`dask worker {self.address} --nthreads 2`, one thread for each core"
            ) from error
        self._shared.probe.write_text(self._shared.token, encoding="utf-8")
        try:
            self._client.run(_let_go, self._shared.folder)  # what a killed run may have left at work
            problems = self._client.run(_problem, self._shared)
        except Exception as error:
            raise ConfigError(
                f"the workers of {self.address} cannot import data_pipeline as this process does: {error}. Install "
                "the same environment on every machine and start the workers in it"
            ) from error
        for worker, problem in problems.items():
            if problem:
                raise ConfigError(f"Dask worker {worker}: {problem}")

    def _outcome(self, future: Any, task: Task, started: float) -> Record:
        from distributed import KilledWorker

        if future.status == "finished":
            return future.result()
        if future.status != "error":
            raise PipelineError(
                f"the Dask scheduler at {self.address} is gone ({task.stage} of {task.entry} was {future.status}). "
                "What was finished is safe: run the same command again, it goes on from there"
            )
        error = future.exception()
        if isinstance(error, PipelineError):
            raise error
        if isinstance(error, KilledWorker):
            reason = (
                f"{error.allowed_failures + 1} Dask workers died with it; look at their logs, and run again with "
                "--retry-failed"
            )
            return lost(task, started, FAILED, "WorkerDied", reason)
        raise PipelineError(f"a Dask worker could not run {task.stage} of {task.entry}: {error!r}") from error


@dataclass
class _Children:
    """The engines of one run in this Dask worker: as many as it has threads, each with one child process."""

    every: list[Local] = field(default_factory=list)
    idle: list[Local] = field(default_factory=list)


_children: dict[str, _Children] = {}
_lock = threading.Lock()


def _in_child(function: Callable[..., None], task: Task, shared: _Shared) -> Record:
    """Run a task in a child process of this Dask worker."""
    with _lock:
        known = shared.folder in _children
    if not known:  # this worker may have joined after the others were asked
        problem = _problem(shared)
        if problem:
            raise ConfigError(f"Dask worker on {socket.gethostname()}: {problem}")
    with _lock:
        children = _children.setdefault(shared.folder, _Children())
        if not children.idle:
            children.every.append(Local(1, _nth_device(shared.limits, len(children.every))))
            children.idle.append(children.every[-1])
            # Dask marks its workers as daemons, which may have no children; ours end with their parent.
            multiprocessing.current_process().daemon = False
        engine = children.idle.pop()
    try:
        (record,) = engine.map(function, [task])
        return record
    finally:
        with _lock:
            children.idle.append(engine)


def _nth_device(limits: Limits, index: int) -> Limits:
    if not limits.devices:
        return limits
    device = limits.devices[index % len(limits.devices)]
    return replace(limits, devices=(device,))


def _let_go(folder: str) -> None:
    """End the child processes of a run."""
    with _lock:
        children = _children.pop(folder, _Children())
    for engine in children.every:
        engine.__exit__()


def _problem(shared: _Shared, patience: float = PATIENCE / 3) -> str:
    """Return why this process cannot work for a run, empty if it can."""
    here = versions()
    other = [f"{name} {here[name]} instead of {v}" for name, v in shared.versions.items() if here[name] != v]
    if other:
        return (
            f"it has {', '.join(other)}, which may change the data; install the same environment on every machine "
            "and start the worker in it"
        )
    try:
        single_thread_platform(shared.limits.platform, *shared.limits.devices[:1])
    except EntryError as error:
        return str(error)
    advice = "run folder and source must lie on a file system that all machines share, under the same path"
    deadline = time.monotonic() + patience  # network file systems keep what they last saw for some seconds
    while not shared.probe.exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    try:
        if shared.probe.read_text(encoding="utf-8") != shared.token:
            return f"{shared.probe} has another content there; {advice}"
        with tempfile.NamedTemporaryFile(dir=shared.folder, prefix=".", suffix=".tmp"):
            pass
    except OSError as error:
        return f"it cannot read and write in the run folder {shared.folder} ({error}); {advice}"
    for path in shared.reads:
        if not os.access(path, os.R_OK):
            return f"it cannot read {path}; {advice}"
    return ""
