from __future__ import annotations

import gzip
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from data_pipeline.config import load_config
from data_pipeline.errors import ConfigError
from data_pipeline.ledger import OK, Ledger, Record
from data_pipeline.run import run

CONFIG = """
name: killed
seed: 4
source: {{path: {mirror}}}
select: {{ids: [1crn, 1ajj, 1gua]}}
split: {{method: python, train: 0.5, validation: 0, test: 0.5}}
prepare: {{padding: 0.7}}
sample: {{n_frames: 2, equilibration: 0.008, interval: 0.008, flexible_time: 0.002, relax_tolerance: 500}}
workers: 2
"""

COMMAND = [sys.executable, "-c", "from data_pipeline.cli import main; main()", "run"]

OUTPUTS = (".cif", ".npz", ".h5")


@dataclass
class Undisturbed:
    """A run that nobody kills.

    Parameters
    ----------
    config
        The file that it was made with.
    outputs
        Path below the run folder -> bytes.
    seconds
        How long it took.
    """

    config: Path
    outputs: dict[str, bytes]
    seconds: float


def outputs(folder: Path) -> dict[str, bytes]:
    """Return what every stage wrote."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in OUTPUTS)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, mirror: Path) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    config = folder / "killed.yaml"
    config.write_text(CONFIG.format(mirror=mirror))
    began = time.monotonic()
    process = start(config, folder / "run")
    assert process.wait() == 0
    return Undisturbed(config, outputs(folder / "run"), time.monotonic() - began)


def start(config: Path, folder: Path, *words: str) -> subprocess.Popen:
    """Start the command in a process group of its own."""
    command = [*COMMAND, str(config), "-o", str(folder), *words]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)


def kill(process: subprocess.Popen, group: bool) -> None:
    """Kill -9 the command alone, or its workers with it."""
    (os.killpg if group else os.kill)(process.pid, signal.SIGKILL)
    process.wait()


def killed_in_packing(config: Path, folder: Path) -> bool:
    """Run until dataset.h5 is being written and kill then; false when it was written too fast to see."""
    process = start(config, folder)
    while process.poll() is None:
        if list(folder.glob(".dataset.h5.*")):
            kill(process, group=True)
            return True
    assert process.returncode == 0
    return False


def check_as_undisturbed(folder: Path, undisturbed: Undisturbed) -> None:
    """Compare with the undisturbed run every output, and look at what else is there."""
    found = outputs(folder)
    assert list(found) == list(undisturbed.outputs)
    assert [name for name in found if found[name] != undisturbed.outputs[name]] == []
    assert [path.name for path in folder.rglob(".*")] == [".lock"], "no temporary file is left"
    records = [Record(**json.loads(line)) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    done = Counter((r.entry, r.stage) for r in records if r.status == OK and r.stage != "select")
    assert max(done.values()) == 1, f"what was recorded as done was done again: {done}"


def kill_and_resume(undisturbed: Undisturbed, folder: Path, kills: int, seed: int) -> None:
    """Kill runs at random moments, each time going on, until there were so many kills; then let it end."""
    rng = random.Random(seed)
    round_ = 0
    while kills:
        process = start(undisturbed.config, folder / str(round_), "--workers", str(rng.choice((1, 2))))
        try:
            process.wait(rng.uniform(0.2, undisturbed.seconds))
        except subprocess.TimeoutExpired:
            kill(process, group=rng.random() < 0.5)
            kills -= 1
        else:  # it was faster than that
            assert process.returncode == 0
            check_as_undisturbed(folder / str(round_), undisturbed)
            round_ += 1
    assert start(undisturbed.config, folder / str(round_)).wait() == 0
    check_as_undisturbed(folder / str(round_), undisturbed)


def test_killed_runs_end_with_the_same_bytes(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Three kills -9 at random moments, of the command or with its workers: every file is the undisturbed run's."""
    kill_and_resume(undisturbed, tmp_path, kills=3, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_killed_runs_end_with_the_same_bytes_often(undisturbed: Undisturbed, tmp_path: Path, seed: int) -> None:
    """The same, twenty kills."""
    kill_and_resume(undisturbed, tmp_path, kills=20, seed=seed)


def test_killed_in_packing_or_damaged_the_bytes_are_the_same(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Kill -9 while dataset.h5 is written; between runs, files are damaged or lost: all is made again as it was."""
    shutil.copytree(undisturbed.config.parent / "run", tmp_path, dirs_exist_ok=True)
    for _ in range(10):
        (tmp_path / "dataset.h5").unlink()
        if killed_in_packing(undisturbed.config, tmp_path):
            break
    else:
        pytest.fail("packing was never seen")
    assert not (tmp_path / "dataset.h5").exists() and list(tmp_path.glob(".dataset.h5.*"))

    others = [name for name in undisturbed.outputs if name != "dataset.h5"]
    assert len(others) >= 6
    for index, name in enumerate(others):
        content = bytearray(undisturbed.outputs[name])
        content[len(content) // 2] ^= 1
        for damaged in ([content], [content[:-1]], [], [undisturbed.outputs[name]])[index % 4]:
            (tmp_path / name).write_bytes(damaged)
            break
        else:
            (tmp_path / name).unlink()
    ledger = tmp_path / "ledger.jsonl"
    torn = ledger.read_bytes().splitlines()
    torn[1] = torn[1][:30] + b"\r\xff" + torn[1][40:]
    ledger.write_bytes(b"\n".join([*torn, b'{"entry": "1crn", "sta']))
    assert start(undisturbed.config, tmp_path).wait() == 0
    assert outputs(tmp_path) == undisturbed.outputs
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock"]
    assert len(list(Ledger(ledger))) >= 3


def test_a_disk_that_fills_stops_the_run_which_goes_on_later(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """Without room for a prepared system, later for the dataset, the command says so; with room it ends as ever."""
    first, later = tmp_path / "first", tmp_path / "later"
    with_little_room(undisturbed, first, len(undisturbed.outputs["prepared/1crn.cif"]) // 2)
    assert not outputs(first) and not list((first / "prepared").iterdir())
    assert {record.status for record in Ledger(first / "ledger.jsonl") if record.stage != "select"} <= {OK}
    shutil.copytree(undisturbed.config.parent / "run", later)
    (later / "dataset.h5").unlink()
    with_little_room(undisturbed, later, len(undisturbed.outputs["dataset.h5"]) // 2)
    assert not (later / "dataset.h5").exists()
    assert start(undisturbed.config, later).wait() == 0
    assert outputs(later) == undisturbed.outputs


def with_little_room(undisturbed: Undisturbed, folder: Path, size: int) -> None:
    """Run where no file may grow larger than so many bytes."""
    process = subprocess.run(
        [*COMMAND, str(undisturbed.config), "-o", str(folder)],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
    )
    assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
    assert str(folder) in process.stderr and "run the same command again" in process.stderr, process.stderr


def test_a_folder_that_cannot_be_written(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """A read-only run folder is one clear line."""
    if os.geteuid() == 0:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(tmp_path)], capture_output=True)
        if mounted.returncode:
            pytest.skip("root writes everywhere, and may not mount here")
    else:
        tmp_path.chmod(0o555)
    try:
        process = subprocess.run(
            [*COMMAND, str(undisturbed.config), "-o", str(tmp_path / "run")], capture_output=True, text=True
        )
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", str(tmp_path)], check=True)
    assert process.returncode == 1 and "Traceback" not in process.stderr
    assert str(tmp_path) in process.stderr and "run the same command again" in process.stderr


def test_an_entry_depends_on_nothing_but_itself(undisturbed: Undisturbed, mirror: Path, tmp_path: Path) -> None:
    """Other entries, failing ones among them, another order and number of workers change no byte of an entry."""
    (tmp_path / "mirror").mkdir()
    for name in ("1crn.cif.gz", "1ajj.pdb.gz"):
        (tmp_path / "mirror" / name).write_bytes((mirror / name).read_bytes())
    lines = gzip.decompress((mirror / "1pga.pdb.gz").read_bytes()).decode().splitlines(keepends=True)
    with_gap = [
        line for line in lines if not (line[:6] == "MASTER" or (line[:4] == "ATOM" and 20 <= int(line[22:26]) < 40))
    ]
    (tmp_path / "mirror" / "1pga.pdb").write_text("".join(with_gap))
    text = CONFIG.format(mirror=tmp_path / "mirror").replace("1crn, 1ajj, 1gua", "1pga, 1ajj, 1crn")
    (tmp_path / "other.yaml").write_text(text.replace("workers: 2", "workers: 1"))
    summary = run(load_config(tmp_path / "other.yaml"), tmp_path / "run")
    assert [(r["entry"], r["stage"]) for r in summary["rejections"]] == [("1pga", "prepare")]
    found = outputs(tmp_path / "run")
    entries = [name for name in undisturbed.outputs if name != "dataset.h5"]
    assert len(entries) >= 6
    assert [name for name in entries if found.get(name) != undisturbed.outputs[name]] == []


def test_a_device_where_there_is_none(undisturbed: Undisturbed, tmp_path: Path) -> None:
    """A device on a platform that has none to choose is an error of the configuration."""
    config = load_config(undisturbed.config).model_copy(update={"device": ["0"]})
    with pytest.raises(ConfigError, match="platform CPU has no device '0'"):
        run(config, tmp_path / "run")
