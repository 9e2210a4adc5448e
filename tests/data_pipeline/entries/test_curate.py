"""The facts of real entries, the criteria at their limits, and files that are no entries."""

from __future__ import annotations

import dataclasses
import gzip
import re
from pathlib import Path

import gemmi
import pytest

from data_pipeline.config import SelectConfig
from data_pipeline.entries.curate import CRITERIA, Criteria, judge
from data_pipeline.entries.facts import EntryFacts, inspect
from data_pipeline.errors import EntryError
from data_pipeline.sources import open_source

DEMO = Path(__file__).parents[3] / "examples" / "demo" / "mirror"

# As published: UniProt P0CG48 (ubiquitin), and the chain of hen egg-white lysozyme (P00698 without its signal).
UBIQUITIN = "MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRLRGG"
LYSOZYME = (
    "KVFGRCELAAAMKRHGLDNYRGYSLGNWVCAAKFESNFNTQATNRNTDGSTDYGILQINSRWWCNDGRTPGSRNLCNIPCSALLSSDITASVNCAKKIVSDGN"
    "GMNAWVAWRNRCKGTDVQAWIRGCRL"
)

REJECTED = {
    "1a1p": "method",
    "1gua": "single_chain",
    "1mqe": "length",
    "1qys": "resolution",
    "1p2p": "resolution",
    "1f27": "protein",
    "1zaa": "single_chain",
    "4urd": "method",
    "6rsa": "method",
}

GOOD = EntryFacts("1abc", "pdb", "X-RAY DIFFRACTION", 2.49, 1, 0, 0, "A", "A" * 199, 199, 0, (), (), 0, 1, False, False)


def facts(entry: str) -> EntryFacts:
    return inspect(open_source("mirror", DEMO).path(entry))


@pytest.mark.parametrize(("entry", "sequence"), [("1ubq", UBIQUITIN), ("1aki", LYSOZYME)])
def test_sequence_is_the_published_one(entry, sequence):
    """The sequence read equals the one known from elsewhere."""
    assert facts(entry).sequence == sequence


def test_pdb_and_mmcif_of_an_entry_give_the_same_facts():
    """Nothing but the format differs between the two files of crambin."""
    pdb, mmcif = inspect(DEMO / "1crn.pdb.gz"), inspect(DEMO / "1crn.cif.gz")
    assert (pdb.format, mmcif.format) == ("pdb", "mmcif")
    assert dataclasses.replace(pdb, format="") == dataclasses.replace(mmcif, format="")
    assert (mmcif.n_residues, mmcif.resolution, mmcif.chain_id) == (46, 1.5, "A")


def test_facts_of_a_pdb_file_agree_with_its_own_records():
    """SEQRES and REMARK 2, read here by column, say the same as the facts."""
    for entry in ("1a1p", "1gua", "1mqe", "1p2p", "1pga", "1zaa", "6rsa"):
        lines = gzip.open(DEMO / f"{entry}.pdb.gz", "rt").read().splitlines()
        length = {line[11]: int(line[13:17]) for line in lines if line.startswith("SEQRES")}
        found = facts(entry)
        assert found.n_chains == len(length)
        assert found.n_residues == length[found.chain_id]
        resolution = re.search(r"^REMARK   2 RESOLUTION\. +([\d.]+) ANG", "\n".join(lines), re.MULTILINE)
        assert found.resolution == (float(resolution.group(1)) if resolution else None)


def test_modified_residues_ligands_and_missing_ends_are_recorded():
    """MSE keeps its parent's letter; ligands are named; unseen ends count as unobserved, not as gaps."""
    assert facts("1a8o").modified == ("MSE",)
    assert facts("1a8o").sequence.startswith("MDIRQGPKEPFRDYVDRFYKTLRAEQASQE")
    assert facts("1ajj").ligands == ("CA", "SO4")
    spectrin = facts("1shg")
    assert (spectrin.n_residues, spectrin.n_observed, spectrin.n_internal_missing) == (62, 57, 0)


@pytest.mark.parametrize("format_name", ["pdb", "cif"])
def test_residues_taken_out_of_the_chain_are_counted(tmp_path, format_name):
    """Deleting three residues from the middle gives three internal ones missing, in both formats."""
    structure = gemmi.read_structure(str(DEMO / "1ubq.cif.gz"))
    for _ in range(3):
        del structure[0]["A"][29]
    path = tmp_path / f"1ubq.{format_name}"
    if format_name == "cif":
        structure.make_mmcif_document().write_file(str(path))
    else:
        structure.write_pdb(str(path))
    found = inspect(path)
    assert (found.n_residues, found.n_observed, found.n_internal_missing, found.longest_gap) == (76, 73, 3, 3)


def crambin_with(tmp_path: Path, *changes: tuple[str, str]) -> EntryFacts:
    """Return the facts of crambin's PDB file after replacing every occurrence of some texts."""
    text = gzip.decompress((DEMO / "1crn.pdb.gz").read_bytes()).decode()
    for old, new in changes:
        assert old in text and len(old) == len(new)
        text = text.replace(old, new)
    (tmp_path / "1crn.pdb").write_text(text)
    return inspect(tmp_path / "1crn.pdb")


def test_gaps_are_measured_one_by_one(tmp_path):
    """Two gaps of two and one residues: three missing, the longest has two."""
    structure = gemmi.read_structure(str(DEMO / "1ubq.cif.gz"))
    for number in (50, 30, 29):
        del structure[0]["A"][number]
    structure.make_mmcif_document().write_file(str(tmp_path / "1ubq.cif"))
    found = inspect(tmp_path / "1ubq.cif")
    assert (found.n_internal_missing, found.longest_gap, found.fraction_observed) == (3, 2, 73 / 76)


def test_disulfides_date_and_r_free_are_read():
    """As the headers say: SSBOND and struct_conn, HEADER's date, REMARK 3."""
    assert [facts(entry).n_disulfides for entry in ("1crn", "1ajj", "1fas", "1a8o", "1ubq")] == [3, 3, 4, 1, 0]
    assert (facts("1crn").deposited, facts("1crn").r_free) == ("1981-04-30", None)
    assert (facts("1a8o").deposited, facts("1a8o").r_free) == ("1998-03-27", 0.253)


def test_insertion_codes_are_counted(tmp_path):
    """Residues 22 and 23 renumbered to 21A and 21B, as old numbering does."""
    assert facts("1crn").n_insertion_codes == 0
    found = crambin_with(tmp_path, ("PRO A  22 ", "PRO A  21A"), ("GLU A  23 ", "GLU A  21B"))
    assert (found.n_insertion_codes, found.n_observed) == (2, 46)


def test_modified_residues_are_repaired_where_a_parent_is_known(tmp_path):
    """A name that PDBFixer does not know can be repaired only if MODRES names its parent, or where it is cut off."""
    text = gzip.decompress((DEMO / "1crn.pdb.gz").read_bytes()).decode()
    line = next(line for line in text.split("\n") if line.startswith("SEQRES   2"))
    unknown = crambin_with(tmp_path, ("LEU A  18", "M3L A  18"), (line, line.replace("LEU", "M3L", 1)))
    assert (unknown.modified, unknown.irreparable) == (("M3L",), ("M3L",))
    verdict = judge(unknown)
    assert verdict.criterion == "modified" and "M3L; no standard parent" in verdict.reason
    path = tmp_path / "1crn.pdb"
    path.write_text(path.read_text().replace("\nHELIX ", "\nMODRES 1CRN M3L A   18  LYS  TRIMETHYLLYSINE\nHELIX ", 1))
    known = inspect(path)
    assert (known.modified, known.irreparable) == (("M3L",), ())
    assert judge(known).keep
    assert not judge(known, Criteria(modified="reject")).keep


def test_sequence_has_the_letter_of_the_parent_that_is_built(tmp_path):
    """Pyroglutamate is a glutamate to the table; where MODRES says glutamine, that is built (as in 4he7)."""
    text = gzip.decompress((DEMO / "1crn.pdb.gz").read_bytes()).decode()
    line = next(line for line in text.split("\n") if line.startswith("SEQRES   2"))
    found = crambin_with(tmp_path, ("LEU A  18", "PCA A  18"), (line, line.replace("LEU", "PCA", 1)))
    assert found.sequence[17] == "E"
    path = tmp_path / "1crn.pdb"
    path.write_text(path.read_text().replace("\nHELIX ", "\nMODRES 1CRN PCA A   18  GLN  PYROGLUTAMIC ACID\nHELIX ", 1))
    assert inspect(path).sequence == found.sequence[:17] + "Q" + found.sequence[18:]


def test_every_bundled_entry_is_judged_as_its_readme_says():
    """Each entry is kept, or rejected first by the criterion that the README names; one is damaged."""
    source = open_source("mirror", DEMO)
    kept, rejected = [], {}
    for entry in source.ids():
        try:
            verdict = judge(inspect(source.path(entry)))
        except EntryError as error:
            assert (entry, error.kind) == ("1r69", "truncated")
            continue
        if verdict.keep:
            assert not verdict.reason and not verdict.criterion
            kept.append(entry)
        else:
            rejected[entry] = verdict.criterion
    assert rejected == REJECTED
    assert len(kept) == 14
    readme = (DEMO / "README.md").read_text()
    for entry, criterion in rejected.items():
        assert re.search(rf"^\| {entry} \| \w+ \| {criterion} \|", readme, re.MULTILINE)


def test_just_within_every_limit_is_kept():
    """199 residues at 2.49 Å in one protein chain by X-ray: the control for the next test."""
    assert judge(GOOD).keep


@pytest.mark.parametrize(
    ("change", "criterion", "found", "allowed"),
    [
        ({"n_protein_chains": 0, "n_nucleic_chains": 1}, "protein", "nucleic acid", "must contain protein"),
        ({"n_protein_chains": 2}, "single_chain", "2 chains", "exactly 1"),
        ({"n_nucleic_chains": 1}, "single_chain", "1 protein, 1 nucleic acid", "exactly 1"),
        ({"sequence": "A" * 200}, "length", "200 residues", "fewer than 200"),
        ({"resolution": 2.5}, "resolution", "2.5 Å", "better than 2.5 Å"),
        ({"resolution": None}, "resolution", "no resolution", "better than 2.5 Å"),
        ({"method": "SOLUTION NMR"}, "method", "SOLUTION NMR", "X-RAY DIFFRACTION"),
        ({"method": "X-RAY DIFFRACTION; NEUTRON DIFFRACTION"}, "method", "NEUTRON", "only X-RAY DIFFRACTION"),
        ({"n_models": 2}, "one_model", "2 models", "at most 1"),
        ({"ca_only": True}, "all_atoms", "Cα atoms only", "side chains"),
        ({"obsolete": True}, "current", "withdrawn", "current entries"),
        ({"modified": ("M3L",), "irreparable": ("M3L",)}, "modified", "M3L", "no standard parent"),
    ],
)
def test_one_step_over_a_limit_is_rejected_by_that_criterion_alone(change, criterion, found, allowed):
    """A rejection names the criterion, what was found and what is allowed, and nothing else."""
    verdict = judge(dataclasses.replace(GOOD, **change))
    assert not verdict.keep
    assert verdict.criterion == criterion
    assert found in verdict.reason and allowed in verdict.reason
    assert "; and " not in verdict.reason


RICH = dataclasses.replace(
    GOOD,
    n_observed=150,
    n_internal_missing=7,
    longest_gap=4,
    modified=("CSO", "MSE"),
    ligands=("CA", "SO4"),
    n_altloc=3,
    n_insertion_codes=2,
    n_disulfides=1,
)
"""What the paper's criteria do not ask about."""


@pytest.mark.parametrize(
    ("within", "over", "criterion", "words"),
    [
        ({"max_internal_missing": 7}, {"max_internal_missing": 6}, "internal_missing", ("7 residues", "at most 6")),
        ({"max_gap": 4}, {"max_gap": 3}, "gap", ("gap of 4", "at most 3")),
        ({"min_observed": 150 / 199}, {"min_observed": 0.76}, "observed", ("150 of 199", "at least 0.76")),
        (
            {"modified": "repair"},
            {"modified": "reject"},
            "modified",
            ("CSO, MSE (selenomethionine)", "only the twenty"),
        ),
        ({"ligands": "keep"}, {"ligands": "reject"}, "ligands", ("CA, SO4", "allowed: none")),
        ({"ligands": ("SO4", "CA")}, {"ligands": ("CA",)}, "ligands", ("ligands SO4;", "allowed: CA")),
        ({"disulfides": "required"}, {"disulfides": "none"}, "disulfides", ("1 disulfide", "none is allowed")),
        ({"altlocs": "keep"}, {"altlocs": "reject"}, "altlocs", ("3 residues", "none is allowed")),
        ({"insertion_codes": "keep"}, {"insertion_codes": "reject"}, "insertion_codes", ("2 residues", "none is")),
    ],
)
def test_further_criteria_are_off_unless_asked_for(within, over, criterion, words):
    """The defaults keep the entry; each criterion keeps it at its limit and rejects it one step over, by name."""
    assert judge(RICH).keep and judge(RICH, Criteria(**within)).keep
    verdict = judge(RICH, Criteria(**over))
    assert verdict.criterion == criterion
    assert all(word in verdict.reason for word in words) and "; and " not in verdict.reason
    assert SelectConfig(**{k: list(v) if isinstance(v, tuple) else v for k, v in over.items()}).criteria() == Criteria(
        **over
    )


def test_required_disulfides_are_missed():
    """The other side of the criterion."""
    verdict = judge(GOOD, Criteria(disulfides="required"))
    assert (verdict.criterion, verdict.reason) == ("disulfides", "no disulfide bond; at least one is required")


def test_names_of_ligands_are_read_in_any_case():
    """A list in the configuration may be written in small letters."""
    assert SelectConfig(ligands=["so4", "Ca"]).criteria().ligands == ("SO4", "CA")


def test_limits_are_data():
    """Each limit can be moved or lifted; the lower one on length is off unless asked for."""
    long = dataclasses.replace(GOOD, sequence="A" * 300, resolution=3.0, method="ELECTRON MICROSCOPY")
    assert judge(long, Criteria(max_residues=None, max_resolution=None, method=None)).keep
    peptide = dataclasses.replace(GOOD, sequence="AAA")
    assert judge(peptide).keep
    assert judge(peptide, Criteria(min_residues=30)).reason == "3 residues; at least 30 are needed"
    assert set(REJECTED.values()) <= set(CRITERIA)


def test_several_failures_are_all_told():
    """The reason lists every unmet criterion, the name is the first's."""
    verdict = judge(dataclasses.replace(GOOD, n_protein_chains=2, sequence="A" * 250))
    assert verdict.criterion == "single_chain"
    assert "2 chains" in verdict.reason and "250 residues" in verdict.reason


WHOLE_PDB = gzip.open(DEMO / "1pga.pdb.gz").read()
WHOLE_CIF = gzip.open(DEMO / "1ubq.cif.gz").read()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (gzip.compress(b""), "empty"),
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "html"),
        (b"\n<html>busy</html>", "html"),
        (gzip.compress(WHOLE_CIF)[:-9], "truncated"),
        (gzip.compress(WHOLE_PDB)[:2000], "truncated"),
        (gzip.compress(WHOLE_PDB)[:500] + b"\0\0\0\0" + gzip.compress(WHOLE_PDB)[504:], "unreadable"),
        (WHOLE_PDB[: len(WHOLE_PDB) // 2], "truncated"),
        (WHOLE_PDB[: WHOLE_PDB.index(b"\nATOM    200") + 1], "truncated"),
        (WHOLE_CIF[: len(WHOLE_CIF) // 2], "truncated"),
        (WHOLE_CIF[: WHOLE_CIF.index(b"\nATOM   200 ") + 1], "truncated"),
        (b"\x00\x01\x02 not a structure at all", "unreadable"),
        (b"HEADER    NOTHING IN IT\nEND\n", "empty"),
        (b"data_1abc\n_entry.id 1ABC\n#\n", "empty"),
        (
            WHOLE_CIF.replace(b"loop_\n_atom_site.group_PDB", b"loop_\n_atom_site.more\n_atom_site.group_PDB"),
            "unreadable",
        ),
    ],
)
def test_a_bad_file_is_an_error_of_its_kind(tmp_path, content, kind):
    """Whatever is wrong with a file, the error has the right kind and names the file."""
    path = tmp_path / "1abc.pdb"
    path.write_bytes(content)
    with pytest.raises(EntryError, match=r"1abc\.pdb") as caught:
        inspect(path)
    assert caught.value.kind == kind


def _edited(old: bytes, new: bytes, data: bytes = WHOLE_PDB) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


ATOM_5 = next(line for line in WHOLE_PDB.split(b"\n") if line.startswith(b"ATOM      5 "))


@pytest.mark.parametrize(
    ("content", "kind", "words"),
    [
        (
            _edited(ATOM_5, ATOM_5[:30] + b"   nan  " + ATOM_5[38:]),
            "unreadable",
            "no three coordinates",
        ),
        (_edited(ATOM_5, ATOM_5[:30] + b" 500.000" + ATOM_5[38:]), "coordinates", "Å apart"),
        (_edited(ATOM_5, ATOM_5 + b"\n" + ATOM_5), "duplicate", "only"),
        (_edited(ATOM_5, b"QTOM  " + ATOM_5[6:]), "unreadable", "no known record"),
        (_edited(ATOM_5 + b"\n", b""), "altered", "as the file says"),
        (_edited(b" MET THR TYR", b" MET TYR TYR"), "sequence", "THR in the coordinates and TYR in the declared"),
        (_edited(ATOM_5, ATOM_5[:21] + b"B" + ATOM_5[22:]), "sequence", "is not declared"),
        (WHOLE_PDB + WHOLE_PDB, "unreadable", "after END"),
        (_edited(b"MQIFVKTLTGK", b"MQIFVKTLTGR", WHOLE_CIF), "sequence", "in letters"),
        (WHOLE_CIF.replace(b"_pdbx_poly_seq_scheme", b"_something_else"), "altered", "list of residues"),
        (WHOLE_CIF + WHOLE_CIF.replace(b"data_1UBQ", b"data_1UBR"), "unreadable", "2 data blocks"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, content, kind, words):
    """What the parsers would take, and the file's own redundancy refutes, has its class and says what is wrong."""
    path = tmp_path / "1abc.pdb"
    path.write_bytes(content)
    with pytest.raises(EntryError, match=words) as caught:
        inspect(path)
    assert caught.value.kind == kind


def test_whole_files_are_not_taken_for_bad_ones(tmp_path):
    """The control for the test above: unpacked, under a foreign name, or ended differently by hand, they read."""
    for number, content in enumerate((WHOLE_PDB, WHOLE_CIF, gzip.compress(WHOLE_CIF), WHOLE_PDB + b"\n\n")):
        path = tmp_path / f"{number}.anything"
        path.write_bytes(content)
        assert inspect(path).n_residues in (56, 76)


def test_a_file_without_header_is_read_from_its_coordinates(tmp_path):
    """Bare ATOM records, as programs write them, still give chain and sequence; the method is then missing."""
    path = tmp_path / "1pga.pdb"
    path.write_bytes(b"".join(line + b"\n" for line in WHOLE_PDB.split(b"\n") if line.startswith(b"ATOM")))
    found = inspect(path)
    assert found.sequence == facts("1pga").sequence
    assert judge(found).criterion == "method"


def test_a_missing_file_is_an_entry_error(tmp_path):
    """A file that vanished is one bad entry, not the end of the run."""
    with pytest.raises(EntryError, match="cannot be read"):
        inspect(tmp_path / "1abc.cif.gz")
