"""Files: what moves, what stays, and that nothing else changes."""

from __future__ import annotations

import gzip
from pathlib import Path

import gemmi
import numpy as np
import pytest
from rna_files import atom_line, helix, pdb_lines, write_cif, write_pdb

from forcefield_ml.errors import ConfigError, TopologyError
from forcefield_ml.refinement.structure_file import STAYS, read_structure_file

SHIFT = np.array([0.1, -0.02, 0.003])  # nm


def without_coordinates(line: str) -> str:
    """Return a line of a PDB file without the columns of its coordinates, if it has any."""
    return line[:30] + line[54:] if line[:6].strip() in ("ATOM", "HETATM") else line


def coordinates(line: str) -> list[float]:
    """Return the three numbers of an atom's line in Å."""
    return [float(line[start : start + 8]) for start in (30, 38, 46)]


def odd_pdb(path: Path) -> Path:
    """Write a strand with a remark, hydrogens, an alternative location, water, an ion and a second model."""
    strand = helix(2)
    lines = pdb_lines(strand)
    phosphate = lines[0]
    lines[0] = phosphate[:16] + "A" + phosphate[17:54] + "  0.70" + phosphate[60:]
    lines.insert(1, atom_line(900, "P", "C", "A", 1, strand[0] + [0.5, 0, 0], altloc="B", occupancy="  0.30"))
    lines.insert(3, atom_line(901, "H5'", "C", "A", 1, strand[4] + [1.09, 0, 0], element="H"))
    lines.append("TER     902        C A   2")
    lines.append(atom_line(903, "MG", "MG", "A", 101, strand[0] + [0, 0, 9], element="MG", record="HETATM"))
    lines.append(atom_line(904, "O", "HOH", "A", 102, strand[0] + [0, 9, 9], record="HETATM"))
    head = ["REMARK 250 made for a test", "CRYST1   50.000   50.000   50.000  90.00  90.00  90.00 P 1           1"]
    models = ["MODEL        1", *lines, "ENDMDL", "MODEL        2", *pdb_lines(strand + 5), "ENDMDL"]
    path.write_text("\n".join([*head, *models, "CONECT    1    2", "END", ""]))
    return path


def test_a_pdb_file_keeps_all_but_coordinates(tmp_path: Path):
    source = write_pdb(tmp_path / "strand.pdb", helix(3))
    read = read_structure_file(source)
    read.write(tmp_path / "out.pdb", np.zeros_like(read.start))
    assert (tmp_path / "out.pdb").read_bytes() == source.read_bytes()
    read.write(tmp_path / "out.pdb", np.tile(SHIFT, (60, 1)))
    before, after = (path.read_text().splitlines() for path in (source, tmp_path / "out.pdb"))
    assert list(map(without_coordinates, after)) == list(map(without_coordinates, before))
    for one, other in zip(before[:60], after[:60], strict=True):
        assert coordinates(other) == pytest.approx(np.add(coordinates(one), 10 * SHIFT), abs=0.00051)


def test_each_atom_gets_its_own_move(tmp_path: Path):
    """Chains are read one after the other; lines keep the order of the file."""
    lines = pdb_lines(helix(2))
    mixed = [*lines[:20], *pdb_lines(helix(2) + 30, chain="B")[:20], *lines[20:]]
    (tmp_path / "mixed.pdb").write_text("\n".join([*mixed, "END", ""]))
    read = read_structure_file(tmp_path / "mixed.pdb")
    moves = np.random.default_rng(0).normal(scale=0.1, size=read.start.shape)
    read.write(tmp_path / "out.pdb", moves)
    again = read_structure_file(tmp_path / "out.pdb")
    assert again.start == pytest.approx(read.start + moves, abs=0.00006)
    assert np.array_equal(again.structure.chain_names, read.structure.chain_names)


def test_what_the_model_does_not_see(tmp_path: Path):
    """Hydrogens and other locations ride, ions and water stay, further models are left out and told."""
    source = odd_pdb(tmp_path / "odd.pdb")
    read = read_structure_file(source)
    assert len(read.start) == 40
    moves = np.zeros((40, 3))
    moves[0], moves[4] = SHIFT, -SHIFT  # P and C5'
    read.write(tmp_path / "out.pdb", moves)
    before, after = (path.read_text().splitlines() for path in (source, tmp_path / "out.pdb"))
    at = next(number for number, line in enumerate(before) if line == "MODEL        2")
    until = next(number for number, line in enumerate(before) if line.startswith("CONECT"))
    assert list(map(without_coordinates, after)) == list(map(without_coordinates, before[:at] + before[until:]))
    changed = {
        one[12:17].strip(): np.subtract(coordinates(other), coordinates(one))
        for one, other in zip(before[:at], after, strict=False)
        if one != other
    }
    assert sorted(changed) == ["C5'", "H5'", "P  A", "P  B"]
    assert changed["H5'"] == pytest.approx(-10 * SHIFT, abs=0.0011)
    assert changed["P  B"] == pytest.approx(10 * SHIFT, abs=0.0011)
    assert np.count_nonzero(read.carrier == STAYS) == 2
    assert len(read.staying) == 2
    told = " ".join(read.notes())
    assert "2 atoms that the model does not see (hydrogens, alternative locations) move" in told
    assert "2 atoms of 2 waters, ions or ligands stay" in told
    assert "The file has 2 models" in told


def test_an_mmcif_file_keeps_all_but_coordinates(tmp_path: Path):
    source = write_cif(tmp_path / "strand.cif", helix(3))
    packed = tmp_path / "strand.cif.gz"
    packed.write_bytes(gzip.compress(source.read_bytes()))
    read = read_structure_file(packed)
    assert read.suffix == ".cif"
    read.write(tmp_path / "out.cif", np.tile(SHIFT, (60, 1)))
    before, after = (gemmi.cif.read_file(str(path))[0] for path in (source, tmp_path / "out.cif"))
    assert after.find_value("_mine.note") == before.find_value("_mine.note")
    tags = before.find_loop("_atom_site.id").get_loop().tags
    for tag in tags:
        one, other = list(before.find_loop(tag)), list(after.find_loop(tag))
        if "Cartn" in tag:
            moved = np.array(other, dtype=float) - np.array(one, dtype=float)
            assert moved == pytest.approx(10 * SHIFT["xyz".index(tag[-1])], abs=0.00051)
        else:
            assert one == other


def test_further_models_of_an_mmcif_file_are_left_out(tmp_path: Path):
    source = write_cif(tmp_path / "strand.cif", helix(2))
    text = source.read_text()
    rows = [line[:-1] + "2" for line in text.splitlines() if line.startswith("ATOM")]
    source.write_text(text.rstrip().removesuffix("#") + "\n".join([*rows, "#", ""]))
    read = read_structure_file(source)
    assert "2 models" in read.notes()[-1]
    read.write(tmp_path / "out.cif", np.zeros((40, 3)))
    assert len(gemmi.read_structure(str(tmp_path / "out.cif"))) == 1


def test_coordinates_that_do_not_fit_are_refused(tmp_path: Path):
    read = read_structure_file(write_pdb(tmp_path / "strand.pdb", helix(1)))
    with pytest.raises(ConfigError, match=r"does not fit the 8 columns of a PDB file; .* mmCIF"):
        read.write(tmp_path / "out.pdb", np.full((20, 3), 1000.0))
    assert not (tmp_path / "out.pdb").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is empty"),
        ("<html>not found</html>", "a web page"),
        (atom_line(1, "O", "HOH", "A", 1, np.zeros(3)), "no protein or nucleic acid"),
        ("\n".join(pdb_lines(np.zeros((20, 3)))), "on top of each other"),
        ("\n".join(pdb_lines(np.full((20, 3), np.nan))), "no three coordinates"),
    ],
)
def test_files_that_are_no_structure_are_refused(tmp_path: Path, text: str, told: str):
    (tmp_path / "bad.pdb").write_text(text)
    with pytest.raises(TopologyError, match=told):
        read_structure_file(tmp_path / "bad.pdb")
