from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from data_pipeline.config import PipelineConfig
from data_pipeline.engine import Limits, Local, Task, run_task
from data_pipeline.errors import EntryError, PipelineError
from data_pipeline.files import remove_temporaries, whole
from data_pipeline.ledger import FAILED, OK, REJECTED, Ledger, Record, sha256
from data_pipeline.systems.build import single_thread_platform


def work(out: Path, what: str) -> None:
    """A stage for workers: writes, raises, dies, eats or sleeps as told."""
    with out.with_suffix(".pids").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if what == "reject":
        raise EntryError("clash", "two atoms at one place")
    if what == "fail":
        raise ZeroDivisionError("by zero")
    if what == "full later":  # not before another is at work
        until = time.monotonic() + 60
        while len(list(out.parent.glob("*.pids"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        what = "full"
    if what in ("full", "denied", "unreadable"):
        code = errno.ENOSPC if what == "full" else errno.EACCES
        raise OSError(code, os.strerror(code), "/source/1abc.cif" if what == "unreadable" else str(out))
    if what == "die" or (what == "die once" and len(tried(out)) == 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == "eat":
        hold = bytearray(os.urandom(1)) * 600_000_000
        time.sleep(60 + len(hold) * 0)
    if what == "sleep":
        time.sleep(60)
    if what == "environment":
        what = " ".join(os.environ[name] for name in ("OPENMM_CPU_THREADS", "OMP_NUM_THREADS"))
    out.write_text(what)


def tried(out: Path) -> list[int]:
    """Return the process that worked on an output, one for each try."""
    file = out.with_suffix(".pids")
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def tasks(folder: Path, *what: str) -> list[Task]:
    return [Task(f"{n}xyz", "prepare", f"key{n}", f"out/{n}.txt", str(folder), {"what": w}) for n, w in enumerate(what)]


def run_tasks(folder: Path, *what: str, workers: int = 1, limits: Limits | None = None) -> list[Record]:
    with Local(workers, limits or Limits()) as engine:
        records = list(engine.map(work, tasks(folder, *what)))
    return sorted(records, key=lambda record: record.entry)


def statuses(records: list[Record]) -> list[str]:
    return [record.error_class or record.status for record in records]


def test_a_bad_entry_fails_alone(tmp_path: Path) -> None:
    """Known reasons are rejections with their kind, unforeseen ones failures with place; the others are done."""
    records = run_tasks(tmp_path, "a", "reject", "fail", "b", "unreadable")
    assert [record.status for record in records] == [OK, REJECTED, FAILED, OK, FAILED]
    assert (records[1].error_class, records[1].reason) == ("clash", "two atoms at one place")
    assert records[2].error_class == "ZeroDivisionError" and "test_engine.py:" in records[2].reason
    assert records[0].output_sha256 == sha256(tmp_path / "out" / "0.txt")
    assert records[4].error_class == "PermissionError"


def test_one_worker_is_a_process_of_its_own_with_one_thread(tmp_path: Path) -> None:
    """Nothing that this process has set reaches the results; the worker stays for the next task."""
    assert statuses(run_tasks(tmp_path, "environment", "b")) == [OK, OK]
    assert (tmp_path / "out" / "0.txt").read_text() == "1 1"
    (first,), (second,) = (tried(tmp_path / "out" / f"{n}.txt") for n in range(2))
    assert first == second != os.getpid()


def test_a_worker_that_dies_costs_its_entry_one_retry(tmp_path: Path) -> None:
    """An entry that kills its worker twice is named; one that does so once is done; the others are tried once."""
    records = run_tasks(tmp_path, "a", "die", "die once", "b", workers=2)
    assert statuses(records) == [OK, "WorkerDied", OK, OK]
    assert "SIGKILL" in records[1].reason
    assert [len(tried(tmp_path / "out" / f"{n}.txt")) for n in range(4)] == [1, 2, 2, 1]


def test_a_hang_is_ended_after_its_time(tmp_path: Path) -> None:
    """The entry that hangs is a failure of class Timeout after one try, its process is gone, the other is done."""
    began = time.monotonic()
    records = run_tasks(tmp_path, "sleep", "a", limits=Limits(timeout=2))
    assert statuses(records) == ["Timeout", OK] and time.monotonic() - began < 30
    assert records[0].seconds >= 2 and "--retry-failed" in records[0].reason
    (pid,) = tried(tmp_path / "out" / "0.txt")
    assert not alive(pid)


def test_too_much_memory_costs_the_entry_only(tmp_path: Path) -> None:
    """An entry over the limit is a failure of class MemoryLimit after one try, the other is done."""
    records = run_tasks(tmp_path, "eat", "a", limits=Limits(memory=400_000_000))
    assert statuses(records) == ["MemoryLimit", OK] and "0.4 GB" in records[0].reason
    assert len(tried(tmp_path / "out" / "0.txt")) == 1


@pytest.mark.parametrize("what", ["full", "denied"])
def test_a_disk_that_cannot_be_written_stops_the_run(tmp_path: Path, what: str) -> None:
    """No space or no right to write is no entry's fault: the run stops at once and says what to do."""
    with pytest.raises(PipelineError, match=r"cannot write .*0\.txt.*run the same command again"):
        (tmp_path / "out").mkdir()
        run_task(work, tasks(tmp_path, what)[0])
    began = time.monotonic()
    with pytest.raises(PipelineError, match=r"cannot write .*1\.txt"):
        run_tasks(tmp_path, "sleep", what, workers=2)
    assert time.monotonic() - began < 30


def test_workers_that_cannot_start_stop_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage that no fresh process can import is an error with advice, no endless row of new processes."""
    (tmp_path / "parents_only.py").write_text(
        "import multiprocessing\n"
        "assert multiprocessing.parent_process() is None, 'no workers, please'\n"
        "def work(out, what): out.write_text(what)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import parents_only

    with Local(2, Limits()) as engine, pytest.raises(PipelineError, match="end as soon as they start"):
        list(engine.map(parents_only.work, tasks(tmp_path, "a", "b")))


DEVICE_STAGE = """
import multiprocessing
import time

import data_pipeline.systems.build

chosen = []
if multiprocessing.parent_process() is not None:  # not in the process of the tests
    data_pipeline.systems.build.single_thread_platform = lambda *arguments: chosen.append(arguments)


def work(out, after):
    while after and not (out.parent / after).exists():
        time.sleep(0.02)
    out.write_text(repr(chosen[-1]))
"""


def test_each_worker_has_its_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks at a time are on two devices; a third gets the one that was freed."""
    (tmp_path / "device_stage.py").write_text(DEVICE_STAGE)
    monkeypatch.syspath_prepend(tmp_path)
    import device_stage

    todo = [
        Task(f"{n}", "label", "", f"{n}.txt", str(tmp_path), {"after": after})
        for n, after in enumerate(("2.txt", "", ""))
    ]
    with Local(2, Limits(platform="CUDA", devices=("3", "5"))) as engine:
        assert [record.status for record in engine.map(device_stage.work, todo)] == [OK] * 3
    assert [(tmp_path / f"{n}.txt").read_text() for n in range(3)] == [f"('CUDA', '{d}')" for d in "355"]


def test_the_device_becomes_a_property_of_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform with devices gets index, precision and deterministic forces; one without refuses an index."""

    class Platform:
        values: dict[str, str] = {}  # noqa: RUF012

        def getName(self) -> str:
            return "CUDA"

        def getPropertyNames(self) -> tuple[str, ...]:
            return ("DeviceIndex", "Precision", "DeterministicForces")

        def setPropertyDefaultValue(self, key: str, value: str) -> None:
            self.values[key] = value

    with pytest.raises(EntryError, match="no device '0' to choose; leave device out"):
        single_thread_platform("CPU", "0")
    fake = Platform()
    monkeypatch.setattr("data_pipeline.systems.build.openmm.Platform.getPlatform", lambda i: fake)
    monkeypatch.setattr("data_pipeline.systems.build.openmm.Platform.getPlatformByName", lambda name: fake)
    single_thread_platform("CUDA", "1")
    assert fake.values == {"DeviceIndex": "1", "Precision": "mixed", "DeterministicForces": "true"}
    single_thread_platform("CUDA")
    assert fake.values["DeviceIndex"] == "1", "as make_context asks, later in the same process"


@pytest.mark.parametrize(("given", "devices"), [("0", ("0",)), (1, ("1",)), ([0, "2"], ("0", "2")), (None, ())])
def test_devices_are_one_or_several(given: object, devices: tuple[str, ...]) -> None:
    """A number, a text, a list of either, or nothing."""
    config = PipelineConfig.model_validate({"name": "x", "source": {"path": "."}, "device": given})
    assert config.limits().devices == devices


PARENT = """
import signal, sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import test_engine as t
if __name__ == '__main__':
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would inherit "ignore"
    with t.Local(2, t.Limits()) as engine:
        list(engine.map(t.work, t.tasks(Path(sys.argv[2]), 'sleep', 'sleep')))
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[tuple[subprocess.Popen, list[int]]]:
    """A process whose two workers sleep, and their numbers."""
    file = tmp_path / "parent.py"
    file.write_text(PARENT)
    process = subprocess.Popen(
        [sys.executable, str(file), str(Path(__file__).parent), str(tmp_path)], stderr=subprocess.DEVNULL
    )
    outputs = [tmp_path / "out" / f"{n}.txt" for n in range(2)]
    _until(lambda: all(tried(out) for out in outputs), process)
    yield process, [pid for out in outputs for pid in tried(out)]
    process.kill()
    process.wait()


def test_workers_end_with_a_killed_parent(parent: tuple[subprocess.Popen, list[int]]) -> None:
    """After kill -9 of the parent its workers do not live on."""
    process, workers = parent
    assert all(alive(pid) for pid in workers)
    process.kill()
    process.wait()
    _until(lambda: not any(alive(pid) for pid in workers))


def test_an_interrupt_ends_promptly(parent: tuple[subprocess.Popen, list[int]]) -> None:
    """After Ctrl-C in the middle of two tasks neither the parent nor a worker is there for long."""
    process, workers = parent
    process.send_signal(signal.SIGINT)
    process.wait(timeout=30)
    _until(lambda: not any(alive(pid) for pid in workers))  # the kernel ends them when it has ended their parent


def alive(pid: int) -> bool:
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


def test_ledger_survives_damage_in_the_middle(tmp_path: Path) -> None:
    """Lines that are no record, whatever they hold, cost their own entry only, and nothing behind them."""
    damage = [b"\xff\x00\rjunk\r\r", b"[1]", b"{}", b'{"entry": [1], "stage": "prepare", "status": "ok"}']
    damage += [b'{"entry": "2abc", "stage": "prepare", "status": "perhaps"}', b"[" * 100_000]
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for entry in ("1abc", "2abc", "3abc"):
        ledger.add(Record(entry, "prepare", OK, key="k"))
    ledger.close()
    lines = (tmp_path / "ledger.jsonl").read_bytes().splitlines()
    (tmp_path / "ledger.jsonl").write_bytes(b"\n".join([lines[0], *damage, lines[2], b""]))
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert [record.entry for record in ledger] == ["1abc", "3abc"]
    ledger.add(Record("4abc", "prepare", OK, key="k"))
    ledger.close()
    assert [record.entry for record in Ledger(tmp_path / "ledger.jsonl")] == ["1abc", "3abc", "4abc"]


def test_temporary_files_of_the_killed_are_removed(tmp_path: Path) -> None:
    """What `whole` leaves when its process is killed goes, also in folders below; nothing else does."""
    (tmp_path / "prepared").mkdir()
    generator = whole(tmp_path / "prepared" / "1abc.cif")
    generator.__enter__().write_text("half")
    (tmp_path / "prepared" / "2abc.cif").write_text("whole")
    (tmp_path / "notes.tmp").write_text("the user's")
    left = list(tmp_path.rglob(".*"))
    remove_temporaries(tmp_path)
    assert len(left) == 1 and not left[0].exists()
    assert sorted(p.name for p in tmp_path.rglob("*.*")) == ["2abc.cif", "notes.tmp"]


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
