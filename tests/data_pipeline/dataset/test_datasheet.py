"""The datasheet: its numbers are the file's, its page needs nothing else and trusts no text from outside."""

from __future__ import annotations

import base64
import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from data_pipeline.cli import app
from data_pipeline.dataset import datasheet as datasheet_module
from data_pipeline.dataset.check import open_dataset, read_entries
from data_pipeline.dataset.datasheet import datasheet, entry_link, find_summary, limits, write_datasheet
from data_pipeline.dataset.pack import PackedEntry, pack
from data_pipeline.dataset.tally import histogram, superposed_rmsd
from data_pipeline.errors import ConfigError
from data_pipeline.schema import MEV_PER_ANGSTROM, SPLITS, SchemaError

FRAMES, TARGETS, WATERS = 3, 8, 5
HOSTILE = "<script>alert(1)</script>"


def entry(index: int, split: str, **attributes: Any) -> PackedEntry:
    """A chain of two residues of four atoms each in five waters, three frames and a displaced one."""
    generator = np.random.default_rng(index)
    n = TARGETS + 3 * WATERS
    residue_index = np.concatenate([np.repeat([0, 1], 4), np.repeat(np.arange(2, 2 + WATERS), 3)])
    fields = {
        "species": np.array([7, 6, 6, 8] * 2 + [8, 1, 1] * WATERS, "u1"),
        "atom_names": np.array([b"N", b"CA", b"C", b"O"] * 2 + [b"O", b"H1", b"H2"] * WATERS, "S4"),
        "residue_names": np.array([b"GLY"] * 4 + [b"ALA"] * 4 + [b"HOH"] * 3 * WATERS, "S4"),
        "residue_index": residue_index.astype("i4"),
        "charges": np.zeros(n, "f4"),
        "bonds": np.array([[0, 1]], "i4"),
        "target_mask": np.arange(n) < TARGETS,
        "positions": generator.normal(size=(FRAMES + 1, n, 3)).astype("f4"),
        "box": np.repeat(3 * np.eye(3, dtype="f4")[None], FRAMES + 1, axis=0),
        "forces": (1000 * generator.normal(size=(FRAMES + 1, n, 3))).astype("f4"),
        "energy": np.zeros(FRAMES + 1),
        "displacement": np.array([0.0] * FRAMES + [0.005], "f4"),
    }
    values = {
        "split": split,
        "cluster": f"c{index // 2}",
        "sequence": "GA",
        "source_file": f"{index}abc.cif.gz",
        "source_sha256": f"{index:064x}",
        "seed": index,
        "pme_alpha": 3.65,
        "pme_grid": np.array([40, 40, 40], "i4"),
    }
    return PackedEntry(f"{index}abc", fields, values | attributes)


def write(path: Path, entries: list[PackedEntry], **attributes: str) -> Path:
    config = {
        "name": "tiny",
        "select": {"max_residues": 200, "ids": ["1abc"], "limit": None},
        "sample": {"protocol": "thermal", "temperature": 300.0, "damping_time": 30.0},
    }
    values = {
        "protocol": "thermal",
        "force_field": "amber14-all.xml,amber14/tip3pfb.xml",
        "config": json.dumps(config),
        "versions": json.dumps({"openmm": "8.6.1"}),
    }
    pack(entries, path, values | attributes)
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(tmp_path / "dataset.h5", [entry(1, "train"), entry(2, "train"), entry(3, "train"), entry(4, "test")])


def summary_of(dataset: Path, **changes: Any) -> dict[str, Any]:
    lost = [
        {"entry": "9xyz", "stage": "select", "status": "rejected", "class": "resolution", "reason": f"2.9 Å {HOSTILE}"},
        {"entry": "8xyz", "stage": "prepare", "status": "failed", "class": "KeyError", "reason": "XYZ"},
    ]
    return {
        "seen": 6,
        "kept": 4,
        "left_out": 0,
        "rejected": {"select: resolution": 1},
        "failed": {"prepare: KeyError": 1},
        "rejections": lost,
        "datasheet": datasheet(dataset),
    } | changes


def described(dataset: Path) -> dict[str, Any]:
    write_datasheet(dataset)
    content: dict[str, Any] = json.loads((dataset.parent / "datasheet.json").read_text(encoding="utf-8"))
    return content


def test_numbers_are_the_files(dataset: Path) -> None:
    """Counts, means by group and histograms equal sums over the arrays, without the displaced frame."""
    content = described(dataset)
    with open_dataset(dataset) as file:
        entries = list(read_entries(file))
    magnitudes = {
        split: np.concatenate(
            [
                np.linalg.norm(e.fields["forces"][:FRAMES, :TARGETS].astype(float), axis=-1).ravel()
                for e in entries
                if e.attributes["split"] == split
            ]
            or [np.zeros(0)]
        )
        * MEV_PER_ANGSTROM
        for split in SPLITS
    }
    everything = np.concatenate(list(magnitudes.values()))
    for split, values in {**magnitudes, "all": everything}.items():
        row = content["splits"][split]
        if not len(values):
            assert row["mean_force"] is row["mean_magnitude_predictor"] is row["max_force"] is None
            continue
        assert row["mean_force"] == row["zero_predictor"] == pytest.approx(values.mean())
        assert row["rms_force"] == pytest.approx(np.sqrt((values**2).mean()))
        assert row["max_force"] == pytest.approx(values.max())
        assert row["mean_magnitude_predictor"] == pytest.approx(np.abs(values - values.mean()).mean())
    shown = content["distributions"]["force"]
    for split in SPLITS:
        assert shown["counts"][split] == np.histogram(magnitudes[split], shown["edges"])[0].tolist()
    assert sum(map(sum, shown["counts"].values())) == 4 * FRAMES * TARGETS
    all_forces = np.stack([e.fields["forces"][:FRAMES, :TARGETS] for e in entries]).astype(float)
    lengths = np.linalg.norm(all_forces, axis=-1) * MEV_PER_ANGSTROM
    glycine, alanine = lengths[..., :4].mean(), lengths[..., 4:].mean()
    assert content["distributions"]["force_by_residue"] == pytest.approx({"GLY": glycine, "ALA": alanine})
    assert content["distributions"]["force_by_element"]["N"] == pytest.approx(lengths[..., [0, 4]].mean())
    assert content["composition"]["protein_atoms"] == {"C": 16, "N": 8, "O": 8}
    assert content["composition"]["all_atoms"] == {"H": 40, "C": 16, "N": 8, "O": 28}
    assert content["composition"]["protein_residues"] == {"GLY": 4, "ALA": 4}
    assert content["composition"]["other_residues"] == {"HOH": 20}
    train = content["splits"]["train"]
    assert (train["entries"], train["clusters"], train["residues"], train["frames"]) == (3, 2, 6, 9)
    assert (train["displaced"], train["atoms"], train["targets"]) == (3, 69, 24)
    assert sum(sum(c) for c in content["distributions"]["rmsd"]["counts"].values()) == 4 * (FRAMES - 1)
    sizes = {cluster["name"]: cluster["entries"] for cluster in content["distributions"]["clusters"]}
    assert sizes == {"c0": 1, "c1": 2, "c2": 1}


def test_copied_snapshots_are_told(tmp_path: Path) -> None:
    """Turning and moving a frame makes no new one: its RMSD is nought and the page says so; real ones are praised."""
    honest, copied = entry(1, "train"), entry(2, "train")
    first = copied.fields["positions"][0].astype(float)
    turns = Rotation.random(FRAMES + 1, random_state=0).as_matrix()
    moved = np.stack([first @ turn.T + shift for shift, turn in enumerate(turns)]).astype("f4")
    copies = PackedEntry(copied.name, {**copied.fields, "positions": moved}, copied.attributes)
    for entries, words in (
        ([honest], "no snapshot is a copy"),
        ([honest, copies], "some snapshots are all but copies"),
    ):
        content = described(write(tmp_path / "dataset.h5", entries))
        assert words in (tmp_path / "datasheet.html").read_text(encoding="utf-8")
    assert content["entries"][1]["rmsd"] < 1e-5 < 0.1 < content["entries"][0]["rmsd"]


def test_superposed_rmsd_equals_scipys() -> None:
    """The RMSD after superposition is that of another implementation of the best rotation."""
    a, b = np.random.default_rng(0).normal(size=(2, 30, 3))
    _, distance = Rotation.align_vectors(a - a.mean(axis=0), b - b.mean(axis=0))
    assert superposed_rmsd(a, b) == pytest.approx(distance / np.sqrt(30), rel=1e-6)


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [1, 2, 3], [3900, 14470, 8000], [0.0721, 0.0733, 0.0757]])
def test_histogram_holds_every_value(values: list[float]) -> None:
    """Bins cover all values, a few dozen at most, and are evenly spaced."""
    made = histogram({"a": values, "b": values[:1]})
    assert made is not None
    assert sum(made["counts"]["a"]) == len(values) and sum(made["counts"]["b"]) == 1
    widths = np.diff(made["edges"])
    assert 1 <= len(widths) <= 45 and np.allclose(widths, widths[0]) and widths[0] > 0
    assert histogram({"a": []}) is None


class Page(HTMLParser):
    """Collects tags, addresses and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep the tag and its addresses."""
        self.tags.append(tag)
        values = dict(attributes)
        self.sources += [value for key in ("src", "data") if (value := values.get(key))]
        self.links += [value for key in ("href", "xlink:href") if (value := values.get(key))]

    def handle_data(self, data: str) -> None:
        """Keep the text."""
        self.text += data


def test_page_needs_no_other_file(dataset: Path, tmp_path: Path) -> None:
    """Nothing is loaded from elsewhere: pictures are SVG inside the page, links only lead on."""
    write_datasheet(dataset, tmp_path / "sheet", summary_of(dataset))
    page = Page(tmp_path / "sheet/datasheet.html")
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert len(page.sources) == 8  # every picture but that of temperatures, which this file does not hold
    for source in page.sources:
        assert source.startswith("data:image/svg+xml;base64,")
        ElementTree.fromstring(base64.b64decode(source.split(",")[1]))
    assert {link for link in page.links if "rcsb" in link} == {
        f"https://www.rcsb.org/structure/{n}ABC" for n in range(1, 5)
    }
    text = (tmp_path / "sheet/datasheet.html").read_text(encoding="utf-8")
    assert not re.findall(r"url\(|@import", text)
    for words in ("CC0 1.0", "select.max_residues", "resolution", "KeyError", f"{1:064x}"[:16], "tiny"):
        assert words in page.text
    assert "sample.temperature" in page.text and "sample.damping_time" not in page.text
    assert "select.ids" not in page.text and "select.limit" not in page.text


def test_text_from_outside_stays_text(tmp_path: Path) -> None:
    """Names, configuration and reasons with HTML in them reach the page as text."""
    config = json.dumps({"name": HOSTILE, "select": {HOSTILE: HOSTILE}})
    path = write(
        tmp_path / "dataset.h5",
        [entry(1, "train", source_file=HOSTILE, cluster=HOSTILE)],
        config=config,
        force_field=HOSTILE,
        versions=json.dumps({HOSTILE: HOSTILE}),
    )
    write_datasheet(path, None, summary_of(path))
    page = Page(tmp_path / "datasheet.html")
    assert "script" not in page.tags and page.text.count(HOSTILE) >= 8


def test_built_peptides_are_nobodys_entries(tmp_path: Path) -> None:
    """Their page does not send a reader to those who deposited structures."""
    words = {"mirror": "asks to cite", "peptides": "peptides were built"}
    for kind, told in words.items():
        config = json.dumps({"name": "x", "source": {"kind": kind}})
        write_datasheet(write(tmp_path / f"{kind}.h5", [entry(1, "train")], config=config), tmp_path / kind)
        text = Page(tmp_path / kind / "datasheet.html").text
        assert [other for other in words.values() if other in text] == [told]


def test_links_go_to_pdb_entries_only() -> None:
    """Four characters or pdb_ and eight are PDB ids; anything else is not linked."""
    assert entry_link("1ubq").endswith("/1UBQ") and entry_link("pdb_00001ubq").endswith("/PDB_00001UBQ")
    assert [entry_link(name) for name in ("mine", "1ubq/../x", "1ubq\n", "", "11ubq", "0001")] == [""] * 6


def test_same_data_same_bytes(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both files are byte-identical when written again at another time."""
    write_datasheet(dataset, tmp_path / "a")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 1e8)
    write_datasheet(dataset, tmp_path / "b")
    for name in ("datasheet.html", "datasheet.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_one_entry_in_memory(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When an entry is read, the arrays of the one before are gone."""
    import gc
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []

    def watched(*arguments: Any) -> Any:
        for one in read_entries(*arguments):
            gc.collect()
            assert not [array for array in alive[:-1] if array() is not None]
            alive.append(weakref.ref(one.fields["forces"]))
            yield one

    monkeypatch.setattr(datasheet_module, "read_entries", watched)
    datasheet(dataset)
    assert len(alive) == 8


def test_temperatures_by_thermostat(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames with temperatures are grouped by their thermostat; displaced ones and those at rest do not count."""

    def warmed(*arguments: Any) -> Any:
        for one in read_entries(*arguments):
            given = {"temperature": [0, 300, 350, 300], "kinetic_temperature": [0, 290, 355, 999]}
            fields = {**one.fields, **{name: np.array(values, "f4") for name, values in given.items()}}
            yield PackedEntry(one.name, fields, one.attributes)

    monkeypatch.setattr(datasheet_module, "read_entries", warmed)
    content = described(dataset)
    assert content["spread"]["temperature"]["300"] == {"n": 4, "least": 290.0, "mean": 290.0, "largest": 290.0}
    assert content["spread"]["temperature"]["350"]["mean"] == 355.0
    assert len(Page(tmp_path / "datasheet.html").sources) == 9


def test_limits_follow_the_settings() -> None:
    """What the data do not hold depends on how they were made, and is told for a bare configuration too."""
    config = {"prepare": {"keep_water": True, "ph": 5.5}}
    told = " ".join(limits(config, "thermal", "x.xml,y.xml"))
    assert "pH of 5.5" in told and "x.xml, y.xml" in told and "set anew" not in told and "minimised" not in told
    told = " ".join(limits({}, "minimized", "x.xml"))
    assert "minimised structure" in told and "set anew" in told


def test_summary_is_found_and_must_fit(dataset: Path, tmp_path: Path) -> None:
    """A summary beside or above the data is used when it is theirs; another one, or none, is refused when given."""
    assert find_summary(dataset) is None
    summary = summary_of(dataset)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    assert find_summary(dataset) == summary
    other = json.loads(json.dumps(summary).replace(summary["datasheet"]["content_sha256"], "0" * 64))
    (tmp_path / "summary.json").write_text(json.dumps(other))
    assert find_summary(dataset) is None
    with pytest.raises(ConfigError, match="other data"):
        write_datasheet(dataset, None, other)
    with pytest.raises(ConfigError, match="none of a run"):
        write_datasheet(dataset, None, {"seen": 3})
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot read the summary"):
        find_summary(dataset)
    assert not (tmp_path / "datasheet.html").exists()


def test_unsound_dataset_is_refused(dataset: Path) -> None:
    """A file with a field or attribute missing is a schema error that names the check."""
    import h5py

    with h5py.File(dataset, "r+") as file:
        del file["entries/1abc/charges"]  # not read
        del file["entries/1abc/forces"]
    with pytest.raises(SchemaError, match="data-pipeline check"):
        datasheet(dataset)


def test_command(dataset: Path, tmp_path: Path) -> None:
    """The command writes both files and prints the same JSON; a wrong path is one clear line."""
    (tmp_path / "summary.json").write_text(json.dumps(summary_of(dataset)))
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["datasheet", str(dataset), "-o", str(out), "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    content = json.loads(done.stdout)
    assert content == json.loads((out / "datasheet.json").read_text(encoding="utf-8"))
    assert content["losses"]["classes"][0]["class"] in ("resolution", "KeyError")
    assert {path.name for path in out.iterdir()} == {"datasheet.html", "datasheet.json"}
    done = CliRunner().invoke(app, ["datasheet", str(dataset)], catch_exceptions=False)
    assert done.exit_code == 0 and (tmp_path / "datasheet.html").exists()
    with pytest.raises(SchemaError, match="no dataset at"):
        CliRunner().invoke(app, ["datasheet", str(tmp_path / "none.h5")], catch_exceptions=False)
