"""Built peptides: every residue at every place, a protein's geometry, files that come back, chains that prepare."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from math import degrees

import gemmi
import numpy as np
import pytest
import yaml

from data_pipeline.config import load_config
from data_pipeline.entries.facts import inspect
from data_pipeline.entries.selection import select
from data_pipeline.errors import ConfigError, EntryError
from data_pipeline.sources import open_source
from data_pipeline.sources.peptides import RESIDUES, backbone, pdb_text, sequences
from data_pipeline.systems.geometry import check_geometry
from data_pipeline.systems.repair import repair


@pytest.mark.parametrize("length", [2, 3, 5])
def test_each_residue_stands_at_each_place_once_a_round(length):
    """Of three rounds three times; and no peptide of 20 rounds comes twice."""
    found = sequences(length, 3)
    for place in range(length):
        assert Counter(name[place] for name in found) == dict.fromkeys(RESIDUES, 3)
    assert len(set(sequences(length, 20))) == 400


def test_all_pairs_stand_at_all_joints():
    """After twenty rounds; and one round brings other pairs at one joint than at the next."""
    found = sequences(4, 20)
    for joint in range(3):
        assert len({name[joint : joint + 2] for name in found}) == 400
    pairs = [{name[joint : joint + 2] for name in sequences(4, 7)} for joint in range(3)]
    assert not pairs[0] & pairs[1] and not pairs[1] & pairs[2]


def test_the_backbone_is_that_of_a_protein():
    """Bonds, angles and dihedrals are what was asked for, told by another program."""
    asked = [(0.0, -43.0), (-63.0, -40.0), (-120.0, 130.0), (-70.0, 145.0), (60.0, 45.0)]
    atoms = backbone(asked)
    chain = atoms[:, :3].reshape(-1, 3)
    lengths = np.linalg.norm(np.diff(chain, axis=0), axis=1)
    np.testing.assert_allclose(lengths, np.tile([1.458, 1.525, 1.329], 5)[:-1], atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(atoms[:, 3] - atoms[:, 2], axis=1), 1.231)
    places = [[gemmi.Position(*place) for place in residue] for residue in atoms]
    for before, own in pairwise(places):
        assert degrees(gemmi.calculate_angle(before[1], before[2], own[0])) == pytest.approx(116.2)
        omega, oxygen = (gemmi.calculate_dihedral(before[k], before[2], own[0], own[1]) for k in (1, 3))
        assert abs(degrees(omega)) == pytest.approx(180) and degrees(oxygen) == pytest.approx(0, abs=1e-6)
    for (phi, psi), before, own, after in zip(asked[1:], places, places[1:], [*places[2:], None], strict=False):
        assert degrees(gemmi.calculate_dihedral(before[2], own[0], own[1], own[2])) == pytest.approx(phi)
        if after is not None:
            assert degrees(gemmi.calculate_dihedral(own[0], own[1], own[2], after[0])) == pytest.approx(psi)


def test_prolines_have_the_phi_of_their_ring():
    """Of 200 sequences none has a proline whose phi its ring would not allow, and others have all three kinds."""
    found = {"P": [], "A": []}
    for letter in found:
        for k in range(200):
            text = pdb_text("0000", f"G{letter}{RESIDUES[k % 20]}{RESIDUES[k // 20]}G")
            residues = list(gemmi.read_pdb_string(text)[0][0])
            found[letter].append(degrees(gemmi.calculate_phi_psi(residues[0], residues[1], residues[2])[0]))
    assert max(abs(phi + 66) for phi in found["P"]) < 45 and min(found["A"]) < -110


def test_files_are_entries_that_say_what_they_are(tmp_path):
    """Sequence, method and id are read back; nothing else decides the bytes than the sequence."""
    source = open_source("peptides", tmp_path / "files", length=4, rounds=2)
    assert source.ids() == [f"{k:04d}" for k in range(40)]
    facts = inspect(source.path("0021"))
    assert (facts.entry_id, facts.sequence, facts.method) == ("0021", sequences(4, 2)[21], "THEORETICAL MODEL")
    assert facts.n_observed == 4 and facts.resolution is None and not facts.modified
    again = open_source("peptides", tmp_path / "others", length=4, rounds=2)
    assert source.sha256("0021") == again.sha256("0021") != source.sha256("0022")


def test_a_damaged_file_is_written_again(tmp_path):
    """What lies there under the name counts for nothing unless it is right, as after another length."""
    source = open_source("peptides", tmp_path, length=3, rounds=1)
    right = source.sha256("0003")
    source.path("0003").write_text("ATOM")
    assert source.sha256("0003") == right
    assert open_source("peptides", tmp_path, length=2, rounds=1).sha256("0003") != right == source.sha256("0003")


def test_what_there_is_not_is_refused(tmp_path):
    """With what there is, and what to do."""
    source = open_source("peptides", tmp_path, length=3, rounds=1)
    with pytest.raises(EntryError, match=r"no peptide '0020'; there are 20, 0000 to 0019.*rounds"):
        source.path("0020")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be made"):
        open_source("peptides", tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"kind": "mirror", "rounds": 2}, "rounds without kind: peptides"),
        ({"kind": "rcsb", "length": 2}, "length without kind: peptides"),
        ({"kind": "peptides", "contact": "you@example.org"}, "contact without kind: rcsb"),
        ({"kind": "peptides", "length": 1}, "length"),
        ({"kind": "peptides", "rounds": 21}, "rounds"),
    ],
)
def test_options_belong_to_their_kind(tmp_path, source, message):
    """Options that would do nothing are errors."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"name": "x", "source": {"path": "files", **source}}))
    with pytest.raises(ConfigError, match=message):
        load_config(path)


def test_criteria_of_experiments_refuse_them_with_the_reason(tmp_path):
    """Unless they are lifted: nothing measured a built peptide."""
    source = open_source("peptides", tmp_path, length=3, rounds=1)
    config = tmp_path / "config.yaml"
    for wanted, kept in (({}, 0), ({"method": None, "max_resolution": None}, 20)):
        config.write_text(yaml.safe_dump({"name": "x", "source": {"path": "."}, "select": wanted}))
        records = []
        assert len(select(source, load_config(config).select, records.append).kept) == kept
        assert kept or all("THEORETICAL MODEL" in record.reason for record in records)


@pytest.mark.parametrize("sequence", ["PWP", "HCH", "IIT", "PG"])
@pytest.mark.parametrize("termini", ["charged", "capped"])
def test_they_can_be_repaired(tmp_path, sequence, termini):
    """Side chains, hydrogens, ends and caps are built, of the right hand and without clashes."""
    path = tmp_path / "0000.pdb"
    path.write_text(pdb_text("0000", sequence))
    topology, positions = repair(path, termini=termini)
    names = [residue.name for residue in topology.residues()]
    own = gemmi.expand_one_letter_sequence(sequence, gemmi.ResidueKind.AA)
    assert names == (own if termini == "charged" else ["ACE", *own, "NME"])
    check_geometry(topology, positions)
