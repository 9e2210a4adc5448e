"""One entry at one stage, and what a worker process does with it."""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipeline.errors import EntryError, PipelineError
from data_pipeline.ledger import FAILED, OK, REJECTED, Record, sha256

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
"""Errors of the disk, not of an entry: they stop the run."""

NOT_ALLOWED = (errno.EACCES, errno.EPERM)
"""Errors of the disk too where the file lies in the run folder; elsewhere the entry's own file cannot be read."""


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


@dataclass(frozen=True)
class Limits:
    """What one task may use.

    Parameters
    ----------
    timeout
        Seconds for each entry and stage.
    memory
        Bytes of resident memory of a worker process; None for no limit.
    platform
        OpenMM's platform, whose device is chosen.
    devices
        Indices of devices; the i-th worker computes on the i-th, counted round. None: OpenMM chooses.
    """

    timeout: float = 7200.0
    memory: int | None = None
    platform: str = "CPU"
    devices: tuple[str, ...] = ()


def run_task(function: Callable[..., None], task: Task) -> Record:
    """Run one task; whatever it raises becomes its record, except that the run folder cannot be written."""
    started = time.monotonic()
    out = Path(task.folder) / task.output
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        function(out=out, **task.arguments)
        seconds = round(time.monotonic() - started, 2)
        return Record(task.entry, task.stage, OK, "", "", task.key, task.output, sha256(out), seconds)
    except EntryError as error:
        return lost(task, started, REJECTED, error.kind, str(error))
    except Exception as error:
        if isinstance(error, OSError) and _is_of_the_disk(error, task.folder):
            raise PipelineError(
                f"cannot write {out}: {error.strerror}. What was finished is safe: make room and run the same command "
                "again, it goes on from there"
            ) from error
        # Any other exception is this entry's own; the last line of the traceback says where.
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{error} ({Path(where.filename).name}:{where.lineno})"
        return lost(task, started, FAILED, type(error).__name__, reason)


def lost(task: Task, started: float, status: str, error_class: str, reason: str) -> Record:
    """Return the record of an entry that did not get through.

    Parameters
    ----------
    task
        The entry and stage.
    started
        When it began, on `time.monotonic`'s clock.
    status, error_class, reason
        See `ledger.Record`.
    """
    seconds = round(time.monotonic() - started, 2)
    return Record(task.entry, task.stage, status, reason, error_class, task.key, seconds=seconds)


def _is_of_the_disk(error: OSError, folder: str) -> bool:
    if error.errno in NO_ROOM:
        return True
    inside = isinstance(error.filename, str | Path) and Path(error.filename).is_relative_to(folder)
    return error.errno in NOT_ALLOWED and inside
