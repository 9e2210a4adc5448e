from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_pipeline.engine import Task, map_stage, run_task
from data_pipeline.errors import EntryError, PipelineError
from data_pipeline.ledger import FAILED, OK, REJECTED, Ledger, Record, sha256


def work(out: Path, what: str) -> None:
    """A stage for workers: writes, raises, dies or sleeps as told."""
    if what == "reject":
        raise EntryError("clash", "two atoms at one place")
    if what == "fail":
        raise ZeroDivisionError("by zero")
    if what == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "sleep":
        out.with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(60)
    out.write_text(what)


def tasks(folder: Path, *what: str) -> list[Task]:
    return [Task(f"{n}xyz", "prepare", f"key{n}", f"out/{n}.txt", str(folder), {"what": w}) for n, w in enumerate(what)]


def test_a_bad_entry_fails_alone(tmp_path: Path) -> None:
    """Known reasons are rejections with their kind, unforeseen ones failures with place; the others are done."""
    records = {r.entry: r for r in map_stage(work, tasks(tmp_path, "a", "reject", "fail", "b"))}
    assert [records[f"{n}xyz"].status for n in range(4)] == [OK, REJECTED, FAILED, OK]
    assert (records["1xyz"].error_class, records["1xyz"].reason) == ("clash", "two atoms at one place")
    assert records["2xyz"].error_class == "ZeroDivisionError" and "test_ledger_engine.py:" in records["2xyz"].reason
    assert records["0xyz"].output_sha256 == sha256(tmp_path / "out" / "0.txt")


def test_a_worker_that_dies_takes_only_its_entry(tmp_path: Path) -> None:
    """A killed worker process breaks the pool; every other entry is still done and the guilty one is named."""
    records = {r.entry: r for r in map_stage(work, tasks(tmp_path, "a", "die", "b", "c"), workers=2)}
    assert {entry: record.status for entry, record in records.items()} == {
        "0xyz": OK, "1xyz": FAILED, "2xyz": OK, "3xyz": OK,
    }  # fmt: skip
    assert records["1xyz"].error_class == "WorkerDied"


def test_a_full_disk_stops_the_run(tmp_path: Path) -> None:
    """No space is no entry's fault: the run stops and says what to do."""
    with pytest.raises(PipelineError, match=r"No space left.*make room and run the same command"):
        run_task(work, tasks(tmp_path, "full")[0])


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """After kill -9 of the parent its workers do not live on."""
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "import test_ledger_engine as t\n"
        "from data_pipeline.engine import map_stage\n"
        "if __name__ == '__main__':\n"
        "    list(map_stage(t.work, t.tasks(Path(sys.argv[2]), 'sleep', 'sleep'), workers=2))\n"
    )
    file = tmp_path / "parent.py"
    file.write_text(script)
    parent = subprocess.Popen([sys.executable, str(file), str(Path(__file__).parent), str(tmp_path)])
    pids = [tmp_path / "out" / f"{n}.pid" for n in range(2)]
    _until(lambda: all(p.exists() and p.read_text() for p in pids), parent)
    parent.kill()
    parent.wait()
    workers = [int(p.read_text()) for p in pids]
    _until(lambda: not any(_alive(pid) for pid in workers))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _until(condition, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert process is None or process.poll() is None, "the process ended by itself"
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.05)


def test_ledger_survives_a_torn_line(tmp_path: Path) -> None:
    """A line cut in the middle, as kill -9 leaves it, is dropped; what is added next reads well."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for entry in ("1abc", "2abc"):
        ledger.add(Record(entry, "prepare", OK, key="k"))
    ledger.close()
    data = (tmp_path / "ledger.jsonl").read_bytes()
    (tmp_path / "ledger.jsonl").write_bytes(data[:-20])
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.last("1abc", "prepare") is not None and ledger.last("2abc", "prepare") is None
    ledger.add(Record("3abc", "prepare", OK, key="k"))
    ledger.close()
    assert [record.entry for record in Ledger(tmp_path / "ledger.jsonl")] == ["1abc", "3abc"]


def test_finished_needs_key_and_unchanged_output(tmp_path: Path) -> None:
    """An output counts as done for its own key only, and only while its bytes are those recorded."""
    ledger = Ledger(tmp_path / "ledger.jsonl")
    output = tmp_path / "x.cif"
    output.write_text("content")
    ledger.add(Record("1abc", "prepare", OK, key="k", output="x.cif", output_sha256=sha256(output)))
    ledger.add(Record("2abc", "prepare", REJECTED, "why", "clash", key="k"))
    assert ledger.finished("1abc", "prepare", "k") and ledger.finished("2abc", "prepare", "k")
    assert ledger.finished("1abc", "prepare", "other") is None
    assert ledger.finished("2abc", "prepare", "k", retry_failed=True) is None
    output.write_text("changed")
    assert ledger.finished("1abc", "prepare", "k") is None
    output.unlink()
    assert ledger.finished("1abc", "prepare", "k") is None
