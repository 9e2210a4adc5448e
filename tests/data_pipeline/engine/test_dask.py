from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_engine import alive, statuses, tasks, tried, work

from data_pipeline.config import PipelineConfig
from data_pipeline.engine import Engine, Limits, open_engine
from data_pipeline.engine import dask_cluster as module
from data_pipeline.errors import ConfigError, PipelineError
from data_pipeline.ledger import OK, Record, sha256
from data_pipeline.run import run

distributed = pytest.importorskip("distributed")


def work_on_a_mark(out: Path, what: str) -> None:
    """Write, or wait for a file that is never there, leaving a mark of who waits: this process and its Dask worker."""
    with out.with_suffix(".marks").open("a") as file:
        file.write(f"{os.getpid()} {os.getppid()}\n")
    if what == "wait" and len(marks(out)) == 1:
        time.sleep(60)
    out.write_text("done")


def marks(out: Path) -> list[list[int]]:
    file = out.with_suffix(".marks")
    return [[int(n) for n in line.split()] for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two Dask workers of one thread in processes of their own, as `dask worker` makes them."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        yield cluster


def engine(cluster: Any, folder: Path, **limits: Any) -> Engine:
    return open_engine(cluster.scheduler_address, 1, Limits(**limits), folder, [])


def test_a_run_on_dask_gives_the_same_file(cluster: Any, tmp_path: Path, mirror: Path) -> None:
    """The dataset is the local run's, byte for byte; bad entries are recorded in the same words."""
    settings = {
        "name": "tiny",
        "source": {"path": str(mirror)},
        "select": {"ids": ["1crn", "1ajj", "1gua"]},
        "split": {"method": "python", "train": 0.5, "validation": 0, "test": 0.5},
        "prepare": {"padding": 0.7},
        "sample": {
            "n_frames": 1,
            "equilibration": 0.008,
            "interval": 0.008,
            "flexible_time": 0.002,
            "relax_tolerance": 500,
        },
    }
    config = PipelineConfig.model_validate(settings)
    here = run(config, tmp_path / "here")
    there = run(config.model_copy(update={"dask": cluster.scheduler_address}), tmp_path / "there")
    assert sha256(tmp_path / "here" / "dataset.h5") == sha256(tmp_path / "there" / "dataset.h5")
    assert here["rejections"] == there["rejections"] and len(here["rejections"]) == 1
    assert not [path for path in (tmp_path / "there").rglob(".*") if path.name != ".lock"]


def test_a_bad_entry_fails_alone_there_too(cluster: Any, tmp_path: Path) -> None:
    """Rejections, failures, hangs and deaths have the same classes as on one machine, and no worker is lost."""
    with engine(cluster, tmp_path, timeout=2.0) as dask:
        records = list(dask.map(work, tasks(tmp_path, "a", "reject", "die", "sleep", "b")))
        records.sort(key=lambda record: record.entry)
    assert statuses(records) == [OK, "clash", "WorkerDied", "Timeout", OK]
    assert all(pid not in cluster_pids(cluster) for n in range(5) for pid in tried(tmp_path / "out" / f"{n}.txt"))


def test_a_full_disk_stops_the_run_there_too(cluster: Any, tmp_path: Path) -> None:
    """No space is no entry's fault: the run stops at once, and what was at work is let go."""
    with engine(cluster, tmp_path) as dask, pytest.raises(PipelineError, match=r"cannot write .*1\.txt"):
        list(dask.map(work, tasks(tmp_path, "sleep", "full later", "a")))
    (pid,) = tried(tmp_path / "out" / "0.txt")
    _until(lambda: not alive(pid))


@pytest.mark.parametrize("who", ["the process at work", "its Dask worker"])
def test_a_killed_worker_costs_its_entry_one_retry(cluster: Any, tmp_path: Path, who: str) -> None:
    """Kill -9 in mid-entry: this entry is begun once more and done, the others are done once."""
    waiting = tmp_path / "out" / "0.txt"
    found: list[Record] = []
    with engine(cluster, tmp_path) as dask:
        todo = tasks(tmp_path, "wait", "a", "b", "c")
        thread = threading.Thread(target=lambda: found.extend(dask.map(work_on_a_mark, todo)))
        thread.start()
        _until(lambda: len(marks(waiting)) == 1 and (tmp_path / "out" / "1.txt").exists())
        os.kill(marks(waiting)[0][who == "its Dask worker"], signal.SIGKILL)
        thread.join(60)
    assert [record.status for record in found] == [OK] * 4
    assert [len(marks(tmp_path / "out" / f"{n}.txt")) for n in range(4)] == [2, 1, 1, 1]
    _until(lambda: not alive(marks(waiting)[0][0]))


@pytest.mark.slow
def test_a_worker_that_dies_with_an_entry_every_time(cluster: Any, tmp_path: Path) -> None:
    """An entry with which Dask workers die again and again is recorded; the other is done."""
    with engine(cluster, tmp_path) as dask:
        todo = [replace(task, arguments={}) for task in tasks(tmp_path, "", "")]
        todo[1] = replace(todo[1], arguments={"spare": True})
        records = sorted(dask.map(kill_dask_worker, todo), key=lambda record: record.entry)
    assert statuses(records) == ["WorkerDied", OK]
    assert "Dask workers died" in records[0].reason


def kill_dask_worker(out: Path, spare: bool = False) -> None:
    if not spare:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)
    out.write_text("done")


def test_a_second_thread_cannot_reach_the_first(tmp_path: Path) -> None:
    """A Dask worker of two threads gives each its own process, whose global generators nobody else draws from."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=2, processes=True, dashboard_address=":0", silence_logs=50
    ) as cluster:
        with engine(cluster, tmp_path) as dask:
            records = list(dask.map(meet, [replace(task, arguments={}) for task in tasks(tmp_path, "", "")]))
    assert [record.status for record in records] == [OK, OK]
    pids = {(tmp_path / "out" / f"{n}.txt").read_text() for n in range(2)}
    assert len(pids) == 2


def meet(out: Path) -> None:
    """Say who works, and end only when both tasks are at work at the same time."""
    out.with_suffix(".here").touch()
    _until(lambda: len(list(out.parent.glob("*.here"))) == 2)
    out.write_text(str(os.getpid()))


def test_an_address_where_nobody_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable scheduler and a malformed address are errors of the configuration that say what to start."""
    monkeypatch.setattr(module, "PATIENCE", 1.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        for address in (f"tcp://127.0.0.1:{free.getsockname()[1]}", "nonsense://"):
            with pytest.raises(ConfigError, match=r"no Dask scheduler answers at .*dask scheduler"):
                open_engine(address, 1, Limits(), tmp_path, []).__enter__()


def test_without_dask_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where dask.distributed is not installed the message names the extra."""
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"forcefield-ml\[cluster\]"):
        open_engine("tcp://127.0.0.1:1", 1, Limits(), tmp_path, []).__enter__()


def test_workers_that_differ_are_refused(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other versions, a folder that is not shared, an unreadable source and an unknown platform are named at once."""
    address = cluster.scheduler_address
    with pytest.raises(ConfigError, match=r"cannot read /nowhere/mirror; .*all machines share"):
        open_engine(address, 1, Limits(), tmp_path, [Path("/nowhere/mirror")]).__enter__()
    with pytest.raises(ConfigError, match="no platform 'GPU' here"):
        open_engine(address, 1, Limits(platform="GPU"), tmp_path, []).__enter__()
    assert not list(tmp_path.iterdir()), "the refused leave nothing behind"

    monkeypatch.setattr(module, "versions", lambda: {**_versions(), "openmm": "7.7"})
    with pytest.raises(ConfigError, match=r"openmm 8\.\S+ instead of 7\.7"):
        open_engine(address, 1, Limits(), tmp_path, []).__enter__()


_versions: Callable[[], dict[str, str]] = module.versions


def test_a_folder_that_is_not_shared(cluster: Any, tmp_path: Path) -> None:
    """A worker that does not see the run folder, or sees another one under its name, says so."""
    (tmp_path / "run").mkdir()
    dask: Any = open_engine(cluster.scheduler_address, 1, Limits(), tmp_path / "run", [])
    shared = dask._shared
    assert "cannot read and write in the run folder" in module._problem(replace(shared, folder="/nowhere"), 0.1)
    (tmp_path / "run" / shared.probe.name).write_text("another run's")
    assert "another content" in module._problem(shared, 0.1)


def test_threads_of_a_worker_ask_at_once(tmp_path: Path) -> None:
    """Threads that look at the same time whether the folder is shared do not disturb each other, and leave nothing."""
    dask: Any = open_engine("tcp://127.0.0.1:1", 1, Limits(), tmp_path, [])
    shared = dask._shared
    shared.probe.write_text(shared.token)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(module._problem, [shared] * 400)) == {""}
    assert list(tmp_path.iterdir()) == [shared.probe]


@pytest.mark.slow
def test_a_scheduler_that_goes_away(tmp_path: Path) -> None:
    """When the scheduler is lost in the middle, the run ends with advice and does not wait for ever."""
    cluster = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address=":0", silence_logs=50
    )
    with engine(cluster, tmp_path) as dask:
        todo = dask.map(work_on_a_mark, tasks(tmp_path, "wait"))
        threading.Thread(
            target=lambda: (_until(lambda: bool(marks(tmp_path / "out" / "0.txt"))), cluster.close()), daemon=True
        ).start()
        with pytest.raises(PipelineError, match=r"is gone.*run the same command again"):
            list(todo)


def cluster_pids(cluster: Any) -> set[int]:
    return {nanny.pid for nanny in cluster.workers.values()}


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited for a minute"
        time.sleep(0.05)
