from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from openmm import unit

from data_pipeline.errors import EntryError
from data_pipeline.systems.build import DEFAULT_FORCE_FIELD, build_system, force_field, protein_mask
from data_pipeline.systems.geometry import check_geometry
from data_pipeline.systems.prepare import Prepared, prepare, read_prepared, write_prepared
from data_pipeline.systems.repair import repair


def _bonds(topology) -> set[frozenset[int]]:
    return {frozenset((a.index, b.index)) for a, b in topology.bonds()}


def test_same_seed_gives_the_same_bytes(crambin_file: Path, mirror: Path, tmp_path: Path) -> None:
    """The same entry and seed give the same file; another seed gives other hydrogens or water."""
    for name, seed in (("again", 5), ("other", 6)):
        prepare(mirror / "1crn.pdb.gz", tmp_path / name, padding=0.7, box_shape="dodecahedron", seed=seed)
    assert (tmp_path / "again").read_bytes() == crambin_file.read_bytes()
    assert (tmp_path / "other").read_bytes() != crambin_file.read_bytes()


def test_written_system_reads_back_with_every_bond(mirror: Path, tmp_path: Path) -> None:
    """Atoms, names and bonds survive the file, crambin's three disulfides among them."""
    topology, positions = repair(mirror / "1crn.pdb.gz", seed=1)
    write_prepared(topology, positions, tmp_path / "x.cif")
    read = read_prepared(tmp_path / "x.cif")
    assert [(a.name, a.residue.name, a.element) for a in topology.atoms()] == [
        (a.name, a.residue.name, a.element) for a in read.topology.atoms()
    ]
    assert _bonds(topology) == _bonds(read.topology)
    np.testing.assert_allclose(read.positions, positions, atol=1e-5)
    sulphur = [{int(a.residue.id), int(b.residue.id)} for a, b in read.topology.bonds() if a.name == b.name == "SG"]
    assert sorted(sulphur, key=min) == [{3, 40}, {4, 32}, {16, 26}], "as in the entry's SSBOND records"


def test_disulfides_are_kept(crambin: Prepared) -> None:
    """After solvation crambin's three disulfides are bonds, no such cysteine has HG, and the force field sees CYX."""
    bonds = [(a, b) for a, b in crambin.topology.bonds() if a.name == b.name == "SG"]
    assert sorted(sorted(int(end.residue.id) for end in bond) for bond in bonds) == [[3, 40], [4, 32], [16, 26]]
    cysteines = {end.residue for bond in bonds for end in bond}
    assert not any(atom.name == "HG" for residue in cysteines for atom in residue.atoms())
    templates = force_field(DEFAULT_FORCE_FIELD).getMatchingTemplates(crambin.topology)
    assert {templates[residue.index].name for residue in cysteines} == {"CYX"}


def test_system_is_whole_neutral_and_periodic(crambin: Prepared) -> None:
    """Every heavy protein atom has its hydrogens, the charge is zero, the box is reduced and large enough."""
    from openmm import NonbondedForce

    system = build_system(crambin.topology)
    charge = sum(
        force.getParticleParameters(i)[0].value_in_unit(unit.elementary_charge)
        for force in system.getForces()
        if isinstance(force, NonbondedForce)
        for i in range(system.getNumParticles())
    )
    assert abs(charge) < 1e-4
    # 327 heavy atoms in 1crn's 46 residues with OXT; 642 atoms with hydrogens.
    mask = protein_mask(crambin.topology)
    elements = [atom.element.symbol for atom, inside in zip(crambin.topology.atoms(), mask, strict=True) if inside]
    assert (len(elements), sum(symbol != "H" for symbol in elements)) == (642, 327)
    assert {residue.name for residue in crambin.topology.residues()} >= {"HOH", "THR"}
    assert (np.triu(crambin.box, 1) == 0).all() and np.diag(crambin.box).min() > 1.8


def test_mmcif_and_pdb_of_an_entry_agree(mirror: Path) -> None:
    """Both formats of crambin lead to the same protein: names, bonds, heavy positions."""
    pdb, cif = (repair(mirror / name, seed=1) for name in ("1crn.pdb.gz", "1crn.cif.gz"))
    assert [a.name for a in pdb[0].atoms()] == [a.name for a in cif[0].atoms()]
    assert _bonds(pdb[0]) == _bonds(cif[0])
    heavy = np.array([a.element.symbol != "H" for a in pdb[0].atoms()])
    np.testing.assert_allclose(pdb[1][heavy], cif[1][heavy], atol=1e-3)


def test_selenomethionine_becomes_methionine(mirror: Path) -> None:
    """A modified residue takes its standard parent's name and atoms; nothing but the twenty is left."""
    topology, _ = repair(mirror / "1a8o.cif.gz", seed=1)
    names = [residue.name for residue in topology.residues()]
    assert "MSE" not in names and names.count("MET") == 4, "four MSE in its entity_poly_seq"
    assert not any(atom.element.symbol == "Se" for atom in topology.atoms())


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (b"not a structure\n", "unreadable"),
        (b"<html><body>404</body></html>", "html"),
    ],
)
def test_bad_file_is_an_entry_error(tmp_path: Path, content: bytes, kind: str) -> None:
    """A file that is no structure is refused with a kind, not with whatever the parser raises."""
    path = tmp_path / "1bad.pdb"
    path.write_bytes(content)
    with pytest.raises(EntryError) as caught:
        prepare(path, tmp_path / "out.cif")
    assert caught.value.kind == kind
    assert not (tmp_path / "out.cif").exists()


def _crambin_lines(mirror: Path) -> list[str]:
    return gzip.decompress((mirror / "1crn.pdb.gz").read_bytes()).decode().splitlines()


def _without(lines: list[str], first: int, last: int, *, seqres: bool) -> str:
    kept = [
        line
        for line in lines
        if not (line.startswith("ATOM") and first <= int(line[22:26]) <= last)
        and (seqres or not line.startswith(("SEQRES", "DBREF", "SEQADV", "SSBOND", "MASTER")))
    ]
    return "\n".join(kept) + "\n"


def test_gap_is_rebuilt_or_refused(mirror: Path, tmp_path: Path) -> None:
    """Residues that SEQRES names and the coordinates lack are built up to the limit; more reject the entry."""
    path = tmp_path / "gap.pdb"
    path.write_text(_without(_crambin_lines(mirror), 20, 22, seqres=True))
    topology, _ = repair(path, max_gap=3, seed=1)
    assert topology.getNumResidues() == 46
    with pytest.raises(EntryError, match=r"3 residues are missing inside the chain.*max_gap allows 2") as caught:
        repair(path, max_gap=2)
    assert caught.value.kind == "gap"


def test_hole_without_sequence_is_refused(mirror: Path, tmp_path: Path) -> None:
    """Without SEQRES a hole would become one long peptide bond; it is found and named."""
    path = tmp_path / "hole.pdb"
    path.write_text(_without(_crambin_lines(mirror), 20, 22, seqres=False))
    with pytest.raises(EntryError, match=r"PRO19:C and .*:N .* nm apart|:N and .*:C .* nm apart") as caught:
        prepare(path, tmp_path / "out.cif", seed=1)
    assert caught.value.kind == "chain_break"


def test_unknown_residue_is_refused(mirror: Path, tmp_path: Path) -> None:
    """UNK has no parent: refused, not dropped."""
    path = tmp_path / "unk.pdb"
    path.write_text("\n".join(_crambin_lines(mirror)).replace("VAL A   8", "UNK A   8") + "\n")
    with pytest.raises(EntryError, match="UNK") as caught:
        repair(path)
    assert caught.value.kind == "unknown_residue"


def test_clash_is_found_and_sound_geometry_is_not(mirror: Path) -> None:
    """check_geometry passes crambin and refuses it with one atom moved onto another."""
    topology, positions = repair(mirror / "1crn.pdb.gz", seed=1)
    check_geometry(topology, positions)
    moved = positions.copy()
    moved[300] = moved[10] + 0.01
    with pytest.raises(EntryError) as caught:
        check_geometry(topology, moved)
    assert caught.value.kind in ("clash", "chain_break")


def test_box_smaller_than_twice_the_cutoff_is_refused(crambin: Prepared) -> None:
    """The message names both lengths and what to change."""
    with pytest.raises(EntryError, match=r"less than twice the cutoff of 1.6 nm.*padding") as caught:
        build_system(crambin.topology, cutoff=1.6)
    assert caught.value.kind == "small_box"


def test_unknown_force_field_is_refused(crambin: Prepared) -> None:
    """A force field that OpenMM does not know gives the name and an example."""
    with pytest.raises(EntryError, match=r"amber99-nonsense\.xml.*amber14, amber19"):
        build_system(crambin.topology, ["amber99-nonsense.xml"])
