"""One command from a table of pairs to dataset.h5: what is packed, what is refused, resumed, and found by the check."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from pairs_files import SEQUENCES, chain, shaken, write, write_puzzles
from typer.testing import CliRunner

from data_pipeline.cli import app
from data_pipeline.config import load_config
from data_pipeline.dataset.check import check
from data_pipeline.errors import ConfigError, PipelineError
from data_pipeline.refinement.config import PairsConfig, RefinementConfig
from data_pipeline.refinement.pairs import read_pairs, shared_chains
from data_pipeline.refinement.structure import read_structure
from data_pipeline.refinement.vectors import refinement_vectors
from data_pipeline.run import run
from data_pipeline.schema import SPLITS

CONFIG = "task: refinement\nname: tiny\nsource: {path: puzzles.tsv}\nworkers: 1\n"


def configured(folder: Path, text: str = CONFIG) -> Path:
    path = folder / "refine.yaml"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run of three molecules with two good candidates each, and five that cannot be used."""
    folder = tmp_path_factory.mktemp("refinement")
    write_puzzles(folder)
    bad = folder / "one" / "candidates"
    native = chain(SEQUENCES["one"])
    (bad / "damaged.pdb.gz").write_bytes((bad / "0_try.pdb.gz").read_bytes()[:300])
    write(bad / "other.pdb", chain("AAUUGAUCGA"))
    write(bad / "half.pdb", native[:65])
    write(bad / "overlap.pdb", [*native, native[0]._replace(name="O3X", place=native[0].place + 0.05)])
    (bad / "gone.pdb").symlink_to(folder / "nowhere.pdb")
    return folder, run(load_config(configured(folder)), folder / "run")


def test_pairs_become_a_good_dataset(done: tuple[Path, dict[str, Any]]) -> None:
    """Six candidates in the table's splits; each of the bad ones has its class and reason; nothing of forces."""
    folder, summary = done
    report = check(folder / "run/dataset.h5", recompute=3)
    assert report.ok, report.problems
    assert report.entries == {"train": 2, "validation": 2, "test": 2} and report.frames == 6
    assert len(report.recomputed) == 3 and report.worst[0] < 1e-6
    assert {row["entry"]: row["class"] for row in summary["rejections"]} == {
        "one-damaged": "truncated",
        "one-other": "no_native",
        "one-half": "incomplete",
        "one-overlap": "overlap",
        "one-gone": "not_found",
    }
    assert all(row["reason"] for row in summary["rejections"]) and summary["rows_left_out"] == 1
    assert summary["counts"]["atoms"] == summary["counts"]["targets"] == 2 * 13 * sum(map(len, SEQUENCES.values()))
    with h5py.File(folder / "run/dataset.h5") as file:
        assert file.attrs["task"] == "refinement" and "force_field" not in file.attrs
        group = file["entries/two-1_try"]
        assert {"forces", "box", "energy", "charges"}.isdisjoint(group) and group["positions"].attrs["unit"] == "nm"
        assert (group.attrs["cluster"], group.attrs["split"], group.attrs["native_file"]) == (
            "two",
            "validation",
            "native.pdb.gz",
        )
        one, native = (read_structure(folder / "two" / name) for name in ("candidates/1_try.pdb.gz", "native.pdb.gz"))
        expected = refinement_vectors(one.positions, native.positions, np.ones(len(one.species), bool)).vectors
        assert group["refinement"][0] == pytest.approx(expected, abs=1e-7) and np.abs(expected).max() > 0.02


def test_datasheet_tells_displacements(done: tuple[Path, dict[str, Any]]) -> None:
    """In Å, with what was left out; the page says nothing of forces or water."""
    folder, summary = done
    sheet = summary["datasets"]["refinement"]["datasheet"]
    with h5py.File(folder / "run/dataset.h5") as file:
        groups = [group for group in file["entries"].values() if group.attrs["split"] == "test"]
        norms = 10 * np.concatenate([np.linalg.norm(group["refinement"][0], axis=1) for group in groups])
    row = sheet["splits"]["test"]
    assert row["mean_displacement"] == row["zero_predictor"] == pytest.approx(norms.mean(), rel=1e-6)
    assert row["mean_magnitude_predictor"] == pytest.approx(np.abs(norms - norms.mean()).mean(), rel=1e-6)
    page = re.sub(r"base64,[^\"]+", "", (folder / "run/datasheet.html").read_text())
    assert "candidate structures" in page and "no_native" in page and "Å" in page
    assert "meV" not in page and "water and ions." not in page.split("<h2>Limits</h2>")[0]


def test_a_second_run_does_nothing_again(done: tuple[Path, dict[str, Any]]) -> None:
    """No file is written again; other neighbours make other vectors."""
    folder, summary = done
    files = [path for path in (folder / "run").rglob("*") if path.suffix in (".npz", ".h5")]
    before = {path: path.stat().st_mtime_ns for path in files}
    again = run(load_config(configured(folder)), folder / "run")
    assert {path: path.stat().st_mtime_ns for path in files} == before and len(files) == 7
    assert again["rejections"] == summary["rejections"]
    other = run(load_config(configured(folder, CONFIG + "vectors: {n_neighbours: 9}\n")), folder / "other")
    first, second = (each["datasets"]["refinement"]["datasheet"]["splits"]["all"] for each in (summary, other))
    assert first["mean_displacement"] > second["mean_displacement"]  # smaller surroundings fit better


def test_a_killed_run_goes_on(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Killed once something is labelled, the same command ends with the same bytes and labels the rest alone."""
    folder, _ = done
    command = [sys.executable, "-c", "from data_pipeline.cli import main; main()", "run", str(configured(folder))]
    command += ["-o", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 240
    while not list(tmp_path.glob("run/labelled/*.npz")) and time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    first = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("run/labelled/*.npz")}
    assert first and not (tmp_path / "run/dataset.h5").exists()
    run(load_config(configured(folder)), tmp_path / "run")
    for name in ("dataset.h5", *(f"labelled/{path.name}" for path in (folder / "run/labelled").iterdir())):
        assert (tmp_path / "run" / name).read_bytes() == (folder / "run" / name).read_bytes()
    kept = [name for name, when in first.items() if (tmp_path / "run/labelled" / name).stat().st_mtime_ns == when]
    assert len(kept) >= len(first) - 1  # the last may not have been in the ledger yet


@pytest.mark.parametrize("field", ["refinement", "native_positions", "target_mask", "has_partner"])
def test_check_finds_what_was_changed(done: tuple[Path, dict[str, Any]], tmp_path: Path, field: str) -> None:
    """By the hash; with hashes made anew, by the vectors computed again or by the masks."""
    from data_pipeline.dataset.check import read_entries
    from data_pipeline.dataset.pack import PackedEntry, pack

    folder, _ = done
    with h5py.File(folder / "run/dataset.h5") as file:
        attributes = {name: file.attrs[name] for name in ("task", "protocol", "config", "versions")}
        entries = list(read_entries(file))
    values = np.array(entries[0].fields[field])
    if values.dtype == bool:
        values[3] = False
    else:
        values[0, 3] += 0.02
    broken = PackedEntry(entries[0].name, {**entries[0].fields, field: values}, entries[0].attributes)
    pack([broken, *entries[1:]], tmp_path / "dataset.h5", attributes)
    report = check(tmp_path / "dataset.h5", recompute=len(entries))
    assert report.problems and all(entries[0].name in problem for problem in report.problems)
    shutil.copy(folder / "run/dataset.h5", tmp_path / "hashed.h5")
    with h5py.File(tmp_path / "hashed.h5", "r+") as file:
        file[f"entries/{entries[0].name}/{field}"][...] = values
    assert any("SHA-256" in problem for problem in check(tmp_path / "hashed.h5").problems)


def test_commands(done: tuple[Path, dict[str, Any]]) -> None:
    """`run` prints counts, `check` units and its method, `select` says that there is nothing to select."""
    folder, _ = done
    config = str(configured(folder))
    shown = CliRunner().invoke(app, ["run", config, "-o", str(folder / "run")], env={"COLUMNS": "200"})
    assert shown.exit_code == 0 and "atoms without partner" in shown.output and "mean |v|" in shown.output
    again = CliRunner().invoke(
        app, ["check", str(folder / "run/dataset.h5"), "--recompute", "1"], env={"COLUMNS": "200"}
    )
    assert (
        again.exit_code == 0 and "by quaternions: worst mean |dv| / mean |v| " in again.output and "Å" in again.output
    )
    refused = CliRunner().invoke(app, ["select", config])
    assert isinstance(refused.exception, ConfigError) and "nothing to select" in str(refused.exception)
    limited = CliRunner().invoke(app, ["run", config, "-o", str(folder / "limited"), "--limit", "3", "--json"])
    assert json.loads(limited.stdout)["kept"] == 3


def test_a_molecule_in_two_splits_stops_the_run(tmp_path: Path) -> None:
    """The same sequence under two names, or one that holds the other, is leakage; a short primer is none."""
    write_puzzles(tmp_path, n_candidates=1)
    write(tmp_path / "again/native.pdb", chain("GA" + SEQUENCES["three"]))
    write(tmp_path / "again/candidates/a.pdb", shaken(chain("GA" + SEQUENCES["three"])))
    table = tmp_path / "puzzles.tsv"
    table.write_text(table.read_text() + "5\tagain\ttrain\n")
    with pytest.raises(PipelineError, match=r"again-a \(train\) and three-0_try \(test\) share a chain of 12 residues"):
        run(load_config(configured(tmp_path)), tmp_path / "run")
    assert not shared_chains({"a": "GGCC/AUAUAUAUAU", "b": "GGCC"}, {"a": "train", "b": "test"})
    assert not shared_chains({"a": "AUAUAUAUAU", "b": "AUAUAUAUAU"}, {"a": "test", "b": "test"})


def test_tables(tmp_path: Path) -> None:
    """Plain pairs in YAML or CSV, ids made of names, and what is wrong with a table told with its row."""
    rows = "- {split: train, candidate: a/x.pdb.gz, native: n.cif}\n"
    rows += "- {split: train, candidate: b/x y.pdb, native: n.cif}\n"
    (tmp_path / "pairs.yaml").write_text(rows)
    found, left_out = read_pairs(PairsConfig(path=str(tmp_path / "pairs.yaml")))
    assert [(pair.entry, pair.cluster) for pair in found] == [("n-x", "n"), ("n-x_y", "n")] and left_out == 0
    assert found[0].candidate == tmp_path / "a/x.pdb.gz"
    (tmp_path / "pairs.csv").write_text("entry,cluster,split,candidate,native\ne1,c,test,a.pdb,n.pdb\n")
    assert read_pairs(PairsConfig(path=str(tmp_path / "pairs.csv")))[0][0].entry == "e1"
    for text, words in (
        (rows + rows, "row 3: n-x is there already"),
        (rows + "- {split: test, candidate: c.pdb, native: n.cif}\n", "n is in train and in test"),
        ("- {candidate: a, native: b}\n", "row 1 has no split"),
        ("- {split: train, candidate: a}\n", "names a candidate"),
        ("- {split: train, puzzle: nowhere}\n", "0 files native"),
        ("- {split: dev, candidate: a, native: b}\n", "it has dev"),
        ("a: b\n", "no table of pairs"),
    ):
        (tmp_path / "pairs.yaml").write_text(text)
        with pytest.raises(ConfigError, match=words):
            read_pairs(PairsConfig(path=str(tmp_path / "pairs.yaml")))


def test_the_example_reads_the_folders(tmp_path: Path) -> None:
    """examples/refine_rna.yaml, its path aside: every puzzle of its splits, the defaults written out."""
    table = write_puzzles(tmp_path)
    example = (Path(__file__).parents[3] / "examples/refine_rna.yaml").read_text()
    config = load_config(configured(tmp_path, example.replace("/some/rna_refinement/puzzles.tsv", str(table))))
    assert isinstance(config, RefinementConfig)
    pairs, left_out = read_pairs(config.source)
    assert len(pairs) == 6 and left_out == 1 and {pair.split for pair in pairs} == set(SPLITS)
    plain = RefinementConfig(task="refinement", name="rna", source=config.source)
    assert config == plain
    extra = PairsConfig(path=str(table), splits={"extra": "test"})
    with pytest.raises(ConfigError, match="0 files native"):  # its folder is not there
        read_pairs(extra)


def test_configuration(tmp_path: Path) -> None:
    """Unknown tasks and keys, also those of the other task, are told with what is allowed."""
    for text, words in (
        ("task: refine\nname: a", "no task 'refine'. Did you mean 'refinement'"),
        (CONFIG + "sample: {}\n", "sample: no such key"),
        (CONFIG + "match: {min_match: 1}\n", "Did you mean 'min_matched'"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_config(configured(tmp_path, text))
    assert load_config(configured(tmp_path, "task: forces\nname: a\nsource: {path: m}\n")).task == "forces"
