"""What is read of a file, which atoms pair, and every kind of bad file told apart."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from pairs_files import chain, pdb, shaken, write

from data_pipeline.errors import EntryError
from data_pipeline.refinement.match import match
from data_pipeline.refinement.stages import label
from data_pipeline.refinement.structure import read_structure

LIMITS = {"min_matched": 0.5, "min_covered": 0.9, "n_neighbours": 50}


def refused(path: Path) -> str:
    with pytest.raises(EntryError) as error:
        read_structure(path)
    assert path.name in str(error.value)
    return error.value.kind


def test_reads_what_a_network_sees(tmp_path: Path) -> None:
    """Heavy atoms of the polymer in nm, names of today, bonds within and between residues and not over a gap."""
    atoms = chain("GAC") + chain("UU", "B", first=7)
    atoms = [atom for atom in atoms if (atom.chain, atom.number) != ("A", 2)]
    old = [atom._replace(name={"OP1": "O1P", "C5'": "C5*"}.get(atom.name, atom.name)) for atom in atoms]
    water = atoms[0]._replace(name="O", residue="HOH", number=90, place=atoms[0].place + 20)
    hydrogen = atoms[0]._replace(name="H5'", place=atoms[0].place + 0.9)
    found = read_structure(write(tmp_path / "a.pdb", [*old[:1], hydrogen, *old[1:], water]))
    assert found.atom_names[1] == b"OP1" and b"C5'" in found.atom_names.tolist()
    assert found.positions == pytest.approx(0.1 * np.array([atom.place for atom in atoms]), abs=1e-4)
    assert found.sequence == "GC/UU" and found.left_out["hydrogens"] == 1 and found.left_out["other_residues"] == 1
    assert found.species[0] == 15 and found.residue_index[-1] == 3 and found.chain_index[-1] == 1
    named = {(found.label(i), found.label(j)) for i, j in found.bonds.tolist()}
    assert ("A:G1:P", "A:G1:OP1") in named and ("B:U7:O3'", "B:U8:P") in named
    assert not any(one.startswith("A:G1") and other.startswith("A:C3") for one, other in named)


def test_alternative_locations_the_likeliest_is_taken(tmp_path: Path) -> None:
    """One conformer of a residue as a whole, and the number of atoms left out."""
    atoms = chain("GAC")
    two = []
    for atom in atoms:
        if atom.number == 2:
            two.append(atom._replace(altloc="A", occupancy=0.4))
            two.append(atom._replace(altloc="B", occupancy=0.6, place=atom.place + 0.7))
        else:
            two.append(atom)
    found = read_structure(write(tmp_path / "a.pdb", two))
    expected = [atom.place + (0.7 if atom.number == 2 else 0.0) for atom in atoms]
    assert found.positions == pytest.approx(0.1 * np.array(expected), abs=1e-4)
    assert found.left_out["alternatives"] == 13


def test_pairs_by_order_of_chain_number_and_name(tmp_path: Path) -> None:
    """Chains of other names pair; a mutated residue, a missing one and a missing atom do not, and are told."""
    native = chain("GGCAUC") + chain("AUUCG", "B")
    candidate = [atom._replace(chain={"A": "U", "B": "V"}[atom.chain]) for atom in shaken(native)]
    native = [atom for atom in native if (atom.chain, atom.number) != ("A", 3)]
    native = [atom._replace(residue="A") if (atom.chain, atom.number) == ("B", 2) else atom for atom in native]
    native = [atom for atom in native if (atom.chain, atom.number, atom.name) != ("B", 5, "O2'")]
    one, other = read_structure(write(tmp_path / "c.pdb", candidate)), read_structure(write(tmp_path / "n.pdb", native))
    found = match(one, other)
    assert found.missing == ("U:C3",) and found.renamed == ("V:U2 is A",)
    assert int((~found.has_partner).sum()) == 13 + 13 + 1
    for atom in np.flatnonzero(found.has_partner):
        assert one.label(atom)[1:] == other.label(found.partner[atom])[1:]
    with pytest.raises(EntryError, match="116 of the 129 atoms"):  # 89.9 %
        label(one, other, **LIMITS)
    fields = label(one, other, **{**LIMITS, "min_covered": 0.8})
    assert fields["missing_residues"] == fields["renamed_residues"] == 1
    assert (fields["target_mask"] == found.has_partner).all() and fields["native_atoms"] == len(other.species)


@pytest.mark.parametrize("wrong", ["another molecule", "other numbers", "cut off"])
def test_a_candidate_that_matches_no_native(tmp_path: Path, wrong: str) -> None:
    """Refused with what differs: names, numbers, or how much of the native is missing."""
    native = chain("GGCAUCGAUC")
    candidate = {
        "another molecule": chain("AAUUGAUCGA"),
        "other numbers": chain("GGCAUCGAUC", first=101),
        "cut off": native[: 13 * 8],
    }[wrong]
    one, other = read_structure(write(tmp_path / "c.pdb", candidate)), read_structure(write(tmp_path / "n.pdb", native))
    with pytest.raises(EntryError) as error:
        label(one, other, **LIMITS)
    kind, words = {
        "another molecule": ("no_native", "residues with other names"),
        "other numbers": ("no_native", "10 residues with no counterpart (A:G101"),
        "cut off": ("incomplete", "104 of the 130 atoms"),
    }[wrong]
    assert error.value.kind == kind and words in str(error.value)


def test_atoms_on_a_line_make_no_vectors(tmp_path: Path) -> None:
    """A pair in which no surroundings define a rotation is refused as degenerate."""
    atoms = [atom._replace(place=np.array([2.0 * k, 0, 0])) for k, atom in enumerate(chain("GA"))]
    one = read_structure(write(tmp_path / "line.pdb", atoms))
    with pytest.raises(EntryError) as error:
        label(one, one, **LIMITS)
    assert error.value.kind == "degenerate"


def test_bad_files(tmp_path: Path) -> None:
    """Each kind of damage has its class."""
    atoms = chain("GGCAUC")
    good = pdb(atoms)
    packed = gzip.compress(good.encode())
    on_top = [*atoms, atoms[5]._replace(name="O3X", place=atoms[5].place + 0.1)]
    files = {
        "overlap": pdb(on_top).encode(),
        "duplicate": pdb([*atoms[:4], atoms[3]._replace(place=atoms[3].place + 1), *atoms[4:]]).encode(),
        "truncated": packed[: len(packed) // 2],
        "empty": pdb([atoms[0]._replace(residue="HOH", name="O")]).encode(),
        "html": b"<html><body>404</body></html>",
        "unreadable": good.replace(f"{atoms[0].place[0]:8.3f}", "     nan", 1).encode() + b"END\n",
    }
    for kind, data in files.items():
        path = tmp_path / f"{kind}.pdb"
        path.write_bytes(data)
        assert refused(path) == kind
    damaged = bytearray(packed)
    damaged[len(damaged) // 2] ^= 0xFF
    (tmp_path / "damaged.pdb.gz").write_bytes(damaged)
    assert refused(tmp_path / "damaged.pdb.gz") in ("unreadable", "truncated")
    (tmp_path / "cut.pdb").write_text(good[:200])  # in the middle of a line
    assert refused(tmp_path / "cut.pdb") == "truncated"
    (tmp_path / "twice.pdb").write_text(good + pdb(shaken(atoms)))  # two models without MODEL
    assert refused(tmp_path / "twice.pdb") == "duplicate"


def test_a_wrong_element_column_is_told_by_the_name(tmp_path: Path) -> None:
    """Some candidates have O in the element's column of N4: the atom's name decides."""
    text = pdb(chain("C"))
    wrong = text.replace("           N\n", "           O\n")
    assert wrong != text
    (tmp_path / "a.pdb").write_text(wrong)
    found = read_structure(tmp_path / "a.pdb")
    assert found.species[found.atom_names == b"N1"].tolist() == [7] and (found.species == 8).sum() == 6


def test_scores_behind_the_atoms_are_let_pass(tmp_path: Path) -> None:
    """Rosetta writes a header, no END, and its scores in records of its own."""
    text = "HEADER    MODEL\n" + pdb(chain("GGC")) + "TER\nscore -120.9\nrms 3.91\n"
    (tmp_path / "a.pdb").write_text(text)
    assert len(read_structure(tmp_path / "a.pdb").species) == 39
