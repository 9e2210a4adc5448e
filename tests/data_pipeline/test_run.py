from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_pipeline.config import PipelineConfig, load_config
from data_pipeline.dataset.check import check
from data_pipeline.errors import ConfigError, PipelineError
from data_pipeline.run import _only_one, run

CONFIG = """
name: tiny
seed: 4
source: {{path: {mirror}}}
select: {{ids: [1crn, 1ajj, 1gua, 1r69]}}
split: {{method: python, train: 0.5, validation: 0, test: 0.5}}
prepare: {{padding: 0.7}}
sample: {{n_frames: 2, equilibration: 0.008, interval: 0.008, flexible_time: 0.002, relax_tolerance: 500}}
workers: {workers}
"""


def _config(folder: Path, mirror: Path, workers: int) -> Path:
    path = folder / f"tiny{workers}.yaml"
    path.write_text(CONFIG.format(mirror=mirror, workers=workers))
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, mirror: Path) -> tuple[PipelineConfig, Path, dict]:
    """A run of two good and two bad entries."""
    folder = tmp_path_factory.mktemp("run")
    config = load_config(_config(folder, mirror, 1))
    return config, folder / "tiny", run(config, folder / "tiny")


def _data_pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from data_pipeline.cli import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_run_ends_with_a_good_dataset_and_every_rejection(done: tuple[PipelineConfig, Path, dict]) -> None:
    """Two entries are packed and pass the check; the two chains and the cut file are recorded with their reasons."""
    _, folder, summary = done
    report = check(folder / "dataset.h5")
    assert report.ok, report.problems
    assert (report.entries, report.frames) == ({"train": 1, "validation": 0, "test": 1}, 4)
    assert {r["entry"]: r["class"] for r in summary["rejections"]} == {"1gua": "single_chain", "1r69": "truncated"}
    assert all(r["reason"] for r in summary["rejections"])
    assert json.loads((folder / "summary.json").read_text()) == summary


def test_second_run_does_nothing_again(done: tuple[PipelineConfig, Path, dict]) -> None:
    """Finished stages are neither run nor written again."""
    config, folder, summary = done
    files = [p for p in folder.rglob("*") if p.suffix in (".cif", ".npz", ".h5")]
    before = {p: p.stat().st_mtime_ns for p in files}
    again = run(config, folder)
    assert {p: p.stat().st_mtime_ns for p in files} == before and len(files) == 9
    assert (
        again["datasets"]["thermal"]["datasheet"] == summary["datasets"]["thermal"]["datasheet"]
        and again["rejections"] == summary["rejections"]
    )


def test_changed_settings_redo_only_what_depends_on_them(done: tuple[PipelineConfig, Path, dict]) -> None:
    """Another Ewald tolerance and displaced copies make new labels from the same frames, and another hash."""
    config, folder, summary = done
    frames = {p: p.stat().st_mtime_ns for p in folder.glob("thermal/frames/*.npz")}
    label = config.label.model_copy(update={"ewald_tolerance": 1e-4, "displaced_copies": 2})
    changed = run(config.model_copy(update={"label": label}), folder)
    assert {p: p.stat().st_mtime_ns for p in folder.glob("thermal/frames/*.npz")} == frames and len(frames) == 2
    assert (
        changed["datasets"]["thermal"]["datasheet"]["content_sha256"]
        != summary["datasets"]["thermal"]["datasheet"]["content_sha256"]
    )
    before, after = (
        summary["datasets"]["thermal"]["datasheet"]["splits"]["all"],
        changed["datasets"]["thermal"]["datasheet"]["splits"]["all"],
    )
    assert after["frames"] == before["frames"] and after["displaced"] == 2 * before["frames"]
    assert check(folder / "dataset.h5").ok
    back = run(config, folder)
    assert (
        back["datasets"]["thermal"]["datasheet"]["content_sha256"]
        == summary["datasets"]["thermal"]["datasheet"]["content_sha256"]
    )


def test_command_check_tells_good_from_bad(done: tuple[PipelineConfig, Path, dict], tmp_path: Path) -> None:
    """Exit code 0 and a datasheet for a good file; 1 and one clear line for a bad one."""
    good = _data_pipeline("check", str(done[1] / "dataset.h5"), "--json")
    assert good.returncode == 0 and json.loads(good.stdout)["ok"]
    (tmp_path / "bad.h5").write_text("no")
    bad = _data_pipeline("check", str(tmp_path / "bad.h5"))
    assert bad.returncode == 1 and "no HDF5 file" in bad.stderr and "Traceback" not in bad.stderr


def test_nothing_produced_is_an_error(mirror: Path, tmp_path: Path) -> None:
    """When every entry is rejected the command fails and names the reasons."""
    text = CONFIG.format(mirror=mirror, workers=1).replace("1crn, 1ajj, ", "")
    (tmp_path / "none.yaml").write_text(text)
    with pytest.raises(PipelineError, match=r"no entry could be selected: .*select: single_chain.*select: truncated"):
        run(load_config(tmp_path / "none.yaml"), tmp_path / "none")


def test_two_runs_cannot_share_a_folder(mirror: Path, tmp_path: Path) -> None:
    """A second run in a folder where one is at work is refused."""
    config = load_config(_config(tmp_path, mirror, 1))
    (tmp_path / "busy").mkdir()
    with _only_one(tmp_path / "busy"), pytest.raises(ConfigError, match="another run is at work"):
        run(config, tmp_path / "busy")


@pytest.mark.parametrize("wrong", [{"platform": "CPUs"}, {"force_field": ["amber99.xml"]}])
def test_what_would_fail_everywhere_is_refused_at_once(
    done: tuple[PipelineConfig, Path, dict], tmp_path: Path, wrong: dict
) -> None:
    """A platform or force field that OpenMM lacks is an error of the configuration, no failure of every entry."""
    config, _, _ = done
    if "platform" in wrong:
        config = config.model_copy(update=wrong)
    else:
        config = config.model_copy(update={"label": config.label.model_copy(update=wrong)})
    with pytest.raises(ConfigError, match=r"CPUs|amber99"):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "prepared").exists()


def test_both_protocols_and_a_replacement(mirror: Path, tmp_path: Path) -> None:
    """One run makes two data sets of the same proteins; who cannot be prepared is replaced from the same split.

    Lysozyme's box passes the limit, so its split takes the next entry, and the numbers asked for are reached.
    """
    text = f"""
name: both
seed: 6
source: {{path: {mirror}}}
select: {{ids: [1aki, 1ajj, 1crn, 4gwt]}}
split: {{method: python, train: 1, validation: 0, test: 1, draw: even}}
prepare: {{padding: 0.6, max_atoms: 4000}}
sample: {{protocol: [minimized, thermal], n_frames: 1, equilibration: 0.008, flexible_time: 0.002, relax_tolerance: 500,
          damping_time: 0.004}}
"""
    (tmp_path / "both.yaml").write_text(text)
    summary = run(load_config(tmp_path / "both.yaml"), tmp_path / "run")
    assert list(summary["datasets"]) == ["minimized", "thermal"]
    assert summary["rejected"] == {"prepare: too_large": 1} and summary["rejections"][0]["entry"] == "1aki"
    for protocol, made in summary["datasets"].items():
        path = tmp_path / "run" / protocol / "dataset.h5"
        assert made["dataset"] == str(path) and check(path).ok
        splits = made["datasheet"]["splits"]
        assert [splits[name]["entries"] for name in ("train", "validation", "test")] == [1, 0, 1]
    assert json.loads((tmp_path / "run" / "split.json").read_text()) == {"1crn": "test", "4gwt": "train"}
