"""The mirror: names, layouts, preference, and what it says of a folder that does not serve."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path

import pytest

from data_pipeline.config import load_config
from data_pipeline.entries.selection import select
from data_pipeline.errors import ConfigError, EntryError
from data_pipeline.sources import normalise_id, open_source
from data_pipeline.sources.ids import read_ids

DEMO = Path(__file__).parents[3] / "examples" / "demo" / "mirror"


def test_demo_mirror_holds_what_its_readme_lists():
    """The bundled mirror has one entry for each row of its README, within the agreed size."""
    source = open_source("mirror", DEMO)
    rows = [line.split("|")[1].strip() for line in (DEMO / "README.md").read_text().splitlines() if "| PDB |" in line]
    rows += [line.split("|")[1].strip() for line in (DEMO / "README.md").read_text().splitlines() if "| mmCIF" in line]
    assert source.ids() == sorted(rows)
    assert 16 <= len(rows) <= 24
    assert sum(path.stat().st_size for path in DEMO.iterdir()) <= 3_000_000


def test_mmcif_goes_before_pdb_and_sha256_is_of_the_file_as_it_lies():
    """Of two files the mmCIF one is given; its hash is that of the gzipped bytes."""
    source = open_source("mirror", DEMO)
    assert source.path("1crn").name == "1crn.cif.gz"
    assert source.sha256("1CRN") == hashlib.sha256((DEMO / "1crn.cif.gz").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "entry_id"),
    [
        ("1ABC.pdb", "1abc"),
        ("1abc.cif", "1abc"),
        ("pdb1abc.ent.gz", "1abc"),
        ("ab/pdb1abc.ent.gz", "1abc"),
        ("ab/1abc.cif.gz", "1abc"),
        ("pdb_00001abc.cif.gz", "1abc"),
        ("pdb_00001abc_xyz.cif.gz", "1abc"),
        ("pdb_10001abc.cif.gz", "pdb_10001abc"),
        ("1abc.ent", "1abc"),
        ("PDB_10001ABC.CIF.GZ", "pdb_10001abc"),
        ("AB/PDB1ABC.ENT.GZ", "1abc"),
        ("ab/pdb_00001abc/pdb_00001abc.cif.gz", "1abc"),
        ("ab/pdb_10001abc/pdb_10001abc.cif", "pdb_10001abc"),
        ("ab/pdb_10001abc/pdb_10001abc_xyz_v1-2.cif.gz", "pdb_10001abc"),
        ("AB/PDB_00001ABC/PDB_00001ABC.PDB.GZ", "1abc"),
    ],
)
def test_every_layout_gives_the_id(tmp_path, name, entry_id):
    """Flat and divided layouts and both forms of an id lead to the same entry."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_bytes(b"x")
    source = open_source("mirror", tmp_path)
    assert source.ids() == [entry_id]
    assert source.path(entry_id) == path
    assert source.path(entry_id.upper()) == path


def test_of_several_files_the_newest_and_fullest_is_given(tmp_path):
    """The current file goes before versions, a later version before an earlier, mmCIF before PDB; data are no entry."""
    folder = tmp_path / "ab" / "pdb_00001abc"
    folder.mkdir(parents=True)
    order = ["", "_xyz_v2-0", "_xyz_v1-10", "_xyz_v1-9"]
    names = [f"pdb_00001abc{version}.cif.gz" for version in order] + ["pdb_00001abc.pdb.gz"]
    for name in [*names, "pdb_00001abc-sf.cif.gz"]:
        (folder / name).write_bytes(b"x")
    for name in names:
        source = open_source("mirror", tmp_path)
        assert source.path("1abc").name == name
        assert source.ignored == ["pdb_00001abc-sf.cif.gz"]
        (folder / name).unlink()


def test_long_and_short_form_name_one_entry():
    """An id of either form and case becomes one, and a long id with no short form stays long."""
    assert {normalise_id(i) for i in ("1UBQ", "1ubq", "pdb_00001ubq", "PDB_00001UBQ")} == {"1ubq"}
    assert normalise_id("PDB_1000abcd") == "pdb_1000abcd"


def test_other_files_are_left_out_and_named(tmp_path):
    """Notes are no entries; a structure that is not named after an entry is reported, not lost silently."""
    for name in ("1abc.pdb", "README.md", "index.tsv", "1abc.pdb.bak", "my_protein.pdb", "2abc.txt"):
        (tmp_path / name).write_text("x")
    source = open_source("mirror", tmp_path)
    assert source.ids() == ["1abc"]
    assert source.ignored == ["my_protein.pdb"]


def test_a_folder_that_does_not_serve_is_an_error_that_helps(tmp_path):
    """A missing folder, an empty one, an unknown kind and an unknown id say what is wrong."""
    with pytest.raises(ConfigError, match="is not a folder"):
        open_source("mirror", tmp_path / "nowhere")
    (tmp_path / "entries").mkdir()
    (tmp_path / "entries" / "1abc.cif.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(ConfigError, match="Did you mean one of its folders: entries"):
        open_source("mirror", tmp_path)
    with pytest.raises(ConfigError, match="Allowed: mirror"):
        open_source("miror", tmp_path)
    with pytest.raises(EntryError, match=r"no entry '9xyz'.*9xyz\.cif\.gz") as caught:
        open_source("mirror", tmp_path / "entries").path("9xyz")
    assert caught.value.kind == "not_found"


def test_a_list_of_ids_takes_every_usual_form(tmp_path):
    """One or several a line, commas, remarks, both forms and cases; each entry once."""
    path = tmp_path / "ids.txt"
    path.write_text(
        "# a list\n1UBQ\n\n1crn, 1abc 2xyz,# and a remark\npdb_00001ubq\nPDB_1000abcd\n", encoding="utf-8-sig"
    )
    assert read_ids(path) == ["1abc", "1crn", "1ubq", "2xyz", "pdb_1000abcd"]


@pytest.mark.parametrize(
    ("text", "words"),
    [("1ubq\n1crn,abcd\n", "line 2: 'abcd' is no entry's id"), ("1ubqx", "line 1"), ("# nothing\n", "no id in")],
)
def test_a_list_that_does_not_serve_names_the_line(tmp_path, text, words):
    """A word that is no id, or a list without any, is an error with the place."""
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_ids(tmp_path / "ids.txt")
    with pytest.raises(ConfigError, match="cannot read the list"):
        read_ids(tmp_path / "none.txt")


def test_a_list_selects_from_a_mirror_and_records_what_is_missing(tmp_path):
    """`ids` and `ids_file` add up; an id that the mirror lacks is a recorded rejection, the others are selected."""
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "ids.txt").write_text("1CRN 9xyz")
    (tmp_path / "config.yaml").write_text(
        f"name: x\nsource: {{path: {DEMO}}}\nselect: {{ids: [pdb_00001ubq], ids_file: lists/ids.txt}}\n"
    )
    config = load_config(tmp_path / "config.yaml")
    records = []
    selection = select(open_source("mirror", DEMO), config.select, records.append)
    assert list(selection.kept) == ["1crn", "1ubq"] and selection.n_seen == 3
    assert [(r.entry, r.status, r.error_class) for r in records if r.status != "ok"] == [
        ("9xyz", "rejected", "not_found")
    ]
