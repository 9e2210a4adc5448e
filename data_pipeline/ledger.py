"""One line for each entry and stage: what became of it, why, from what, how long it took.

The file is append-only JSON lines, written by the parent process alone and flushed to the disk line by line, so a
killed run loses at most the line that was being written. What is finished is known by key and hash, never by time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

STATUSES = OK, REJECTED, FAILED = "ok", "rejected", "failed"


@dataclass(frozen=True)
class Record:
    """What became of one entry at one stage.

    Parameters
    ----------
    entry
        The entry's id.
    stage
        select, prepare, sample or label.
    status
        ``ok``; ``rejected`` for a known reason (criterion, `EntryError`); ``failed`` for anything unforeseen.
    reason
        The message; empty when ok.
    error_class
        The criterion or the kind of `EntryError`, or the class of the exception; empty when ok.
    key
        Hash of the stage's settings and of its inputs: an output with the same key need not be made again.
    output
        Path relative to the run folder; empty where there is none.
    output_sha256
        Of the output.
    seconds
        Wall time.
    """

    entry: str
    stage: str
    status: str
    reason: str = ""
    error_class: str = ""
    key: str = ""
    output: str = ""
    output_sha256: str = ""
    seconds: float = 0.0


class Ledger:
    """The records of a run folder, the last one of each entry and stage counting.

    Parameters
    ----------
    path
        ledger.jsonl; created when missing. A torn last line, the mark of a killed run, is dropped; a damaged one
        counts for nothing, so that its entry is done again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[tuple[str, str], Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for line in whole.split(b"\n"):
            record = _parse(line)
            if record is not None:
                self._last[record.entry, record.stage] = record
        self._file = path.open("ab")
        self._file.truncate(len(whole))

    def add(self, record: Record) -> None:
        """Append a record; it is on the disk when this returns."""
        self._file.write(json.dumps(asdict(record), ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._last[record.entry, record.stage] = record

    def last(self, entry: str, stage: str) -> Record | None:
        """Return the last record of an entry at a stage."""
        return self._last.get((entry, stage))

    def finished(self, entry: str, stage: str, key: str, *, retry_failed: bool = False) -> Record | None:
        """Return the record that makes running a stage again needless, or None.

        That is an ok record with this key whose output is there, unchanged; or one that was rejected or failed with
        this key, unless `retry_failed`.
        """
        record = self.last(entry, stage)
        if record is None or record.key != key:
            return None
        if record.status != OK:
            return None if retry_failed else record
        output = self.path.parent / record.output
        return record if output.is_file() and sha256(output) == record.output_sha256 else None

    def __iter__(self) -> Iterator[Record]:
        return iter(self._last.values())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(line: bytes) -> Record | None:
    try:
        record = Record(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    texts = (v for name, v in vars(record).items() if name != "seconds")
    return record if all(isinstance(text, str) for text in texts) and record.status in STATUSES else None
