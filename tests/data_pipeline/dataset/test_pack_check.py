from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_pipeline.config import entry_seed
from data_pipeline.dataset import pack as pack_module
from data_pipeline.dataset.check import check, open_dataset, read_entries
from data_pipeline.dataset.datasheet import datasheet
from data_pipeline.dataset.describe import markdown
from data_pipeline.dataset.pack import COMPRESSIONS, PackedEntry, digest_header, pack
from data_pipeline.errors import PipelineError
from data_pipeline.schema import ENTRY_FIELDS, MEV_PER_ANGSTROM, SCHEMA_VERSION, SchemaError
from data_pipeline.versions import versions

SEQUENCES = {"1aaa": "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "2bbb": "GSSGSSGWCPDNYTHEVCQMMLFRADGKPWNCE"}
FILE_VALUES = {
    "protocol": "thermal",
    "force_field": "amber14-all.xml,amber14/tip3pfb.xml",
    "config": json.dumps(
        {"name": "t", "source": {"path": "x"}, "split": {"method": "python"}, "label": {"displaced_copies": 1}}
    ),
    "versions": json.dumps(versions()),
}


def mutated(sequence: str) -> str:
    """Every fourth residue becomes another one."""
    return "".join("A" if index % 4 == 1 else letter for index, letter in enumerate(sequence))


def entry(name: str, part: str, **changes: Any) -> PackedEntry:
    """Three atoms of a protein, one of water, a frame and its displaced copy; the forces cancel."""
    generator = np.random.default_rng(len(name) + ord(name[0]))
    forces = generator.normal(size=(2, 4, 3))
    places = np.array([[0, 0, 0], [0.15, 0, 0], [0.2, 0.12, 0], [1.5, 1, 1]])
    fields = {
        "species": np.array([7, 6, 8, 8], "u1"),
        "atom_names": np.array([b"N", b"CA", b"O", b"O"], "S4"),
        "residue_names": np.array([b"GLY", b"GLY", b"GLY", b"HOH"], "S4"),
        "residue_index": np.array([0, 0, 0, 1], "i4"),
        "charges": np.array([-0.5, 0.25, 0.25, 0.0], "f4"),
        "bonds": np.array([[0, 1], [1, 2]], "i4"),
        "target_mask": np.array([True, True, True, False]),
        "positions": (places + 0.01 * generator.normal(size=(2, 4, 3))).astype("f4"),
        "box": np.repeat(3 * np.eye(3, dtype="f4")[None], 2, axis=0),
        "forces": (forces - forces.mean(axis=1, keepdims=True)).astype("f4"),
        "energy": np.array([-1.0, -2.0]),
        "temperature": np.array([300.0, 300.0], "f4"),
        "kinetic_temperature": np.array([290.0, 312.0], "f4"),
        "displacement": np.array([0.0, 0.004], "f4"),
    }
    attributes = {
        "split": part,
        "cluster": name,
        "sequence": SEQUENCES[name],
        "source_file": f"{name}.cif.gz",
        "source_sha256": "0" * 64,
        "seed": entry_seed(0, name),
        "pme_alpha": 3.6548257,
        "pme_grid": np.array([75, 75, 75], "i4"),
    }
    for key, value in changes.items():
        (fields if key in fields else attributes)[key] = value
    return PackedEntry(name, fields, attributes)


def two(**changes: Any) -> list[PackedEntry]:
    return [entry("1aaa", "train"), entry("2bbb", "test", **changes)]


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    path = tmp_path / "dataset.h5"
    pack(two(), path, FILE_VALUES)
    return path


def test_packed_entries_read_back_exactly(dataset: Path) -> None:
    """Every field comes back with its bytes and declared type, and the check finds nothing."""
    with open_dataset(dataset) as file:
        read = list(read_entries(file))
    for before, after in zip(two(), read, strict=True):
        assert before.name == after.name and set(after.fields) == set(before.fields)
        for declared in (field for field in ENTRY_FIELDS if field.name in before.fields):
            assert after.fields[declared.name].dtype == np.dtype(declared.dtype)
            assert after.fields[declared.name].tobytes() == before.fields[declared.name].tobytes()
    report = check(dataset)
    assert report.ok, report.problems
    assert (report.entries, report.frames, report.targets) == ({"train": 1, "validation": 0, "test": 1}, 4, 6)


def test_same_entries_same_bytes(tmp_path: Path) -> None:
    """Packing again, a second later, gives the same file to the byte: no timestamp is kept."""
    files = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path in files:
        pack(two(), path, FILE_VALUES)
        time.sleep(1.1)
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_one_frame_is_read_alone(tmp_path: Path, compression: str) -> None:
    """Arrays over frames and atoms have a chunk for each frame, others one for all, each with a checksum."""
    pack(two(), tmp_path / "a.h5", FILE_VALUES, compression=compression)
    with h5py.File(tmp_path / "a.h5") as file:
        group = file["entries/1aaa"]
        for name in group:
            whole = name not in ("positions", "forces")
            assert group[name].chunks == (group[name].shape if whole else (1, 4, 3)), name
            assert group[name].fletcher32 and group[name].shuffle == (compression != "none")


PACK_MUCH = """
import sys
import numpy as np
from data_pipeline.dataset.pack import PackedEntry, pack

FRAMES, ATOMS, ENTRIES = 4, 10_000, 50

def entries():
    generator = np.random.default_rng(0)
    for index in range(ENTRIES):
        positions, forces = generator.normal(size=(2, FRAMES, ATOMS, 3)).astype("f4")
        fields = {
            "species": np.ones(ATOMS, "u1"), "atom_names": np.full(ATOMS, b"H", "S4"),
            "residue_names": np.full(ATOMS, b"GLY", "S4"), "residue_index": np.zeros(ATOMS, "i4"),
            "charges": np.zeros(ATOMS, "f4"), "bonds": np.zeros((0, 2), "i4"), "target_mask": np.ones(ATOMS, bool),
            "positions": positions, "forces": forces, "box": np.zeros((FRAMES, 3, 3), "f4"),
            "energy": np.zeros(FRAMES),
        }
        yield PackedEntry(f"{index:04d}", fields, {
            "split": "train", "cluster": "c", "sequence": "G", "source_file": "f", "source_sha256": "0", "seed": 0,
            "pme_alpha": 0.0, "pme_grid": np.zeros(3, "i4")})

def peak():  # kB; of this program, where getrusage counts what its parent held too
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])

values = dict.fromkeys(("protocol", "force_field", "config", "versions"), "{}")
pack([next(entries())], sys.argv[1] + ".first", values, compression="lzf")  # what the library takes once
before = peak()
given = list(entries()) if sys.argv[2] == "list" else entries()
pack(given, sys.argv[1], values, compression="lzf")
print((peak() - before) / 1e3)
"""


def test_packing_streams(tmp_path: Path) -> None:
    """Memory grows by a few entries and HDF5's own caches, not by the 48 MB of all; kept in a list, those are seen."""
    grown = {}
    for kind in ("stream", "list"):
        command = [sys.executable, "-c", PACK_MUCH, str(tmp_path / "much.h5"), kind]
        done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=True)
        grown[kind] = float(done.stdout)
    assert grown["stream"] < 30 < 50 < grown["list"], grown  # MB; 18 and 71 as measured


def test_killed_pack_leaves_no_dataset(tmp_path: Path) -> None:
    """Killed while it writes, a pack leaves no dataset.h5 and does no harm to the one that was there."""
    path = tmp_path / "much.h5"
    for before in (None, b"the former one"):
        if before is not None:
            path.write_bytes(before)
        packing = subprocess.Popen(
            [sys.executable, "-c", PACK_MUCH, str(path), "stream"], cwd=Path(__file__).parents[3]
        )
        while not (begun := [p for p in tmp_path.glob(".*.tmp") if p.stat().st_size > 10_000_000]):
            assert packing.poll() is None, "packed before it could be killed"
            time.sleep(0.005)
        packing.kill()
        packing.wait()
        assert (path.read_bytes() == before) if before is not None else not path.exists()
        begun[0].unlink()


def test_hash_covers_content_and_not_storage(tmp_path: Path) -> None:
    """Compression does not change the hash; one bit of one array, a name or an attribute does."""
    hashes = [pack(two(), tmp_path / "a.h5", FILE_VALUES, compression=c) for c in ("gzip", "lzf", "none")]
    assert len(set(hashes)) == 1
    energy = np.array([-1.0, np.nextafter(-2.0, 0)])
    for change in ({"energy": energy}, {"seed": 4}, {"split": "validation"}, {"source_file": "x"}):
        assert pack(two(**change), tmp_path / "b.h5", FILE_VALUES) != hashes[0], change


def _set(path: str, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        file[path][...] = value

    return change


def _replace(path: str, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        del file[path]
        if value is not None:
            file[path] = value

    return change


def _extra(file: h5py.File) -> None:
    file["entries/1aaa/velocities"] = np.zeros(2)


def _attribute(owner: str, name: str, value: Any) -> Any:
    def change(file: h5py.File) -> None:
        if value is None:
            del file[owner].attrs[name]
        else:
            file[owner].attrs[name] = value

    return change


def _config(**changes: Any) -> Any:
    """Return a change of the config that the file says was there when it was packed."""

    def change(file: h5py.File) -> None:
        file.attrs["config"] = json.dumps(json.loads(FILE_VALUES["config"]) | changes)
        file.attrs["header_sha256"] = digest_header(dict(file.attrs))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("entries/1aaa/forces", 1.0), "SHA-256"),
        (_set("entries/1aaa/positions", np.nan), "positions holds values that are not finite"),
        (_replace("entries/1aaa/charges", None), "charges is missing"),
        (_replace("entries/1aaa/energy", np.zeros(2, "f4")), "energy is float32, not float64"),
        (_replace("entries/1aaa/box", np.zeros((1, 3, 3), "f4")), "box has shape .*where F is 2"),
        (_extra, "velocities is no field"),
        (_set("entries/1aaa/bonds", 9), "bonds name atoms outside"),
        (_set("entries/1aaa/target_mask", True), "target_mask differs from the protein's atoms at 1"),
        (_set("entries/1aaa/target_mask", False), "no atom is a target"),
        (_set("entries/1aaa/box", 1.0), "reduced form"),
        (_attribute("entries/1aaa", "split", "holdout"), "split is 'holdout'"),
        (_attribute("entries/1aaa", "cluster", "2bbb"), "cluster 2bbb lies in several splits: test, train"),
        (_attribute("entries/1aaa", "sequence", SEQUENCES["2bbb"]), "100% identical"),
        (
            _attribute("entries/1aaa", "sequence", mutated(SEQUENCES["2bbb"])),
            r"1aaa \(train\) and 2bbb \(test\) are 7\d% id",
        ),
        (_attribute("entries/1aaa", "seed", None), "attribute seed is missing"),
        (_attribute("/", "versions", None), "attribute versions is missing"),
        (_attribute("/", "versions", "{}"), "versions lack data-pipeline, gemmi, h5py"),
        (_attribute("/", "versions", "none"), "versions are no JSON"),
        (_attribute("/", "config", "{}"), "config is not valid: name: Field required"),
        (_attribute("/", "config", FILE_VALUES["config"].replace('"t"', '"u"')), "header_sha256 differs"),
        (_config(sed=1), "config is not valid: sed: Extra inputs"),
        (_config(seed=1), "1aaa: seed is .*, the config's seed 1 gives another"),
        (_config(label={"cutoff": 0.8, "displaced_copies": 1}), "pme_alpha is 3.6548 /nm, where .* give 4.11"),
        (_config(label={"ewald_tolerance": 1e-4, "displaced_copies": 1}), "pme_alpha is 3.6548 /nm"),
        (
            _config(label={"force_field": "amber19", "displaced_copies": 1}),
            "force_field is amber14.*config has amber19",
        ),
        (_config(label={"displaced_copies": 2}), "2 frames, where 1 as sampled make 3"),
        (_config(label={"displaced_copies": 1, "displacement": 0.003}), "displacement exceeds"),
        (_config(label={"displaced_copies": 1, "max_force": 0.1}), "force of .* exceeds label.max_force = 0.1"),
        (_config(label={"displaced_copies": 1, "parts": ["solute"]}), "the fields of solute are missing"),
        (_config(sample={"protocol": "minimized"}), "protocol is 'thermal', the config has minimized"),
        (_config(sample={"temperature": 310}), r"temperature holds \[300.\], the config has \[310.\]"),
        (_attribute("entries/1aaa", "dropped_copies", 1), "2 frames, where 1 as sampled make 1"),
        (_attribute("entries/1aaa/forces", "unit", "eV/A"), "forces is in eV/A, not kJ/mol/nm"),
        (_attribute("entries/1aaa/positions", "unit", None), "positions is in no unit, not nm"),
        (_attribute("entries/1aaa", "pme_grid", np.array([75, 75, 60], "i4")), r"pme_grid is \[75, 75, 60\]"),
        (_attribute("entries/1aaa", "pme_alpha", 3.0), "pme_alpha is 3.0"),
        (_attribute("entries/1aaa", "sequence", "MKTAYIAKQRQISFVK"), "residue 1 of 1, G, does not follow"),
        (_set("entries/1aaa/box", 1.7 * np.eye(3)), "1.700 nm wide, less than twice label.cutoff"),
        (_set("entries/1aaa/species", [6, 7, 8, 8]), "species has C for an atom named N"),
        (_set("entries/1aaa/positions", np.arange(24).reshape(2, 4, 3)), "2 bonds are not 0.05 to 0.3 nm long"),
        (_set("entries/1aaa/positions", [[[0, 0, 0], [0.1, 0, 0], [0.2, 0, 0], [1, 0, 0]]]), "hold 1 different"),
        (_set("entries/1aaa/charges", [0.5, 0.25, 0.25, 0]), "charges sum to 1.000 e"),
        (_set("entries/1aaa/forces", 1.0), r"forces of a frame do not cancel: \|sum F\| / sum \|F\| is 1.0e"),
    ],
)
def test_check_finds_what_is_wrong(dataset: Path, change: Any, message: str) -> None:
    """Each kind of damage to a good file is found and named."""
    import re

    with h5py.File(dataset, "r+") as file:
        change(file)
    problems = check(dataset).problems
    assert any(re.search(message, problem) for problem in problems), problems


def test_foreign_and_damaged_files_are_schema_errors(dataset: Path, tmp_path: Path) -> None:
    """What is no dataset of this schema is refused in words: missing, text, cut, foreign HDF5, other version."""
    data = dataset.read_bytes()
    text, cut, foreign = tmp_path / "text.h5", tmp_path / "cut.h5", tmp_path / "foreign.h5"
    text.write_text("hello")
    cut.write_bytes(data[: len(data) // 2])
    with h5py.File(foreign, "w") as file:
        file["x"] = 1
    for path, words in (
        (tmp_path / "none.h5", "no dataset at"),
        (text, "no HDF5 file"),
        (cut, "damaged"),
        (foreign, "format is None"),
    ):
        with pytest.raises(SchemaError, match=words):
            check(path)
    with h5py.File(dataset, "r+") as file:
        file.attrs["schema_version"] = SCHEMA_VERSION + 1
    with pytest.raises(SchemaError, match=f"version {SCHEMA_VERSION + 1}.*install a newer"):
        check(dataset)


def test_flipped_bytes_are_noticed(dataset: Path, tmp_path: Path) -> None:
    """Bytes changed on the disk inside an array are found by its checksum or by the hash."""
    good = h5py.File(dataset, "r")
    offset = good["entries/1aaa/forces"].id.get_chunk_info(0).byte_offset
    good.close()
    data = bytearray(dataset.read_bytes())
    data[offset + 2] ^= 0xFF
    bad = tmp_path / "bad.h5"
    bad.write_bytes(data)
    try:
        problems = check(bad).problems
    except SchemaError as error:
        problems = [str(error)]
    assert problems


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"forces": np.zeros((2, 4, 3))}, "forces is float64"),
        ({"forces": np.full((2, 4, 3), np.nan, "f4")}, "not finite"),
        ({"species": np.zeros(3, "u1")}, "where N is"),
        ({"pme_grid": np.zeros(2, "i4")}, "pme_grid"),
    ],
)
def test_writer_refuses_what_the_schema_does_not_allow(tmp_path: Path, change: Any, message: str) -> None:
    """A wrong array never reaches a file."""
    with pytest.raises(SchemaError, match=message):
        pack(two(**change), tmp_path / "x.h5", FILE_VALUES)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_keeps_the_old_file_and_says_so(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the disk is full the message says so, the former dataset stays, nothing temporary is left."""
    before = dataset.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pack_module, "_write_entry", full)
    with pytest.raises(PipelineError, match=r"no space left.*run the\s+same command again"):
        pack(two(), dataset, FILE_VALUES)
    assert dataset.read_bytes() == before and [p.name for p in dataset.parent.iterdir()] == ["dataset.h5"]


LITTLE_ROOM = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from test_pack_check import FILE_VALUES, PipelineError, pack, two
path = Path(sys.argv[2])
size = len(path.read_bytes())
path.unlink()
for limit in range(1, size, size // 40):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        pack(two(), path, FILE_VALUES)
    except PipelineError as error:
        assert "run the same command again" in str(error), error
        assert not list(path.parent.iterdir())
    else:
        raise AssertionError(f"{size} bytes were written where {limit} are allowed")
resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
pack(two(), path, FILE_VALUES)
"""


def test_disk_that_fills_anywhere_in_the_file(dataset: Path) -> None:
    """Wherever writing fails, the process lives and says so (HDF5 itself crashes); with just enough room it is made."""
    before = dataset.read_bytes()
    command = [sys.executable, "-c", LITTLE_ROOM, str(Path(__file__).parent), str(dataset)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert dataset.read_bytes() == before


def test_datasheet_equals_hand_counts(dataset: Path) -> None:
    """Mean force and naive errors equal those computed here from the frames as sampled; displaced ones are counted."""
    forces = np.concatenate([e.fields["forces"][:1, :3].reshape(-1, 3) for e in two()])
    magnitude = np.linalg.norm(forces, axis=1) * MEV_PER_ANGSTROM
    sheet = datasheet(dataset)["splits"]
    assert sheet["all"]["zero_predictor"] == pytest.approx(magnitude.mean(), rel=1e-6)
    assert sheet["all"]["mean_magnitude_predictor"] == pytest.approx(
        np.abs(magnitude - magnitude.mean()).mean(), rel=1e-6
    )
    assert (sheet["all"]["targets"], sheet["train"]["frames"], sheet["all"]["clusters"]) == (6, 1, 2)
    assert sheet["all"]["displaced"] == 2
    assert sheet["validation"]["mean_force"] is None


def test_unit_agrees_with_the_learning_side() -> None:
    """The one constant that both packages hold is the same."""
    from forcefield_ml import units

    assert MEV_PER_ANGSTROM == pytest.approx(units.MEV_PER_ANGSTROM, rel=1e-9)


def test_documentation_holds_the_schema() -> None:
    """docs/dataset.md has the tables that the schema prints."""
    text = (Path(__file__).parents[3] / "docs" / "dataset.md").read_text(encoding="utf-8")
    assert markdown() in text
