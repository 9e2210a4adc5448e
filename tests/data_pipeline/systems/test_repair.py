"""Repair of a chain against what the files say in their own columns, and against textbook chemistry."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from openmm import NonbondedForce, app, unit

from data_pipeline.errors import EntryError
from data_pipeline.systems.build import build_system
from data_pipeline.systems.geometry import check_geometry, pierced_rings
from data_pipeline.systems.repair import repair


def _lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode("latin-1").splitlines()


def _write(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def _place(x: float, y: float, z: float) -> str:
    return f"{x:8.3f}{y:8.3f}{z:8.3f}"


def _heavy_of_file(lines: list[str], chain: str = "A") -> dict[tuple[str, str], np.ndarray]:
    """(number with insertion code, atom name) -> position in nm of the protein, read from the columns."""
    return {
        (line[22:27].strip(), line[12:16].strip()): np.array([float(line[k : k + 8]) / 10 for k in (30, 38, 46)])
        for line in lines
        if line.startswith("ATOM") and line[21] in (chain, " ") and line[16] in " A"
        if line[76:78].strip() not in ("H", "D") and line[12:16].strip().lstrip("123")[0] not in "HD"
    }


def _heavy(topology: app.Topology, positions: np.ndarray) -> dict[tuple[str, str], np.ndarray]:
    return {(a.residue.id, a.name): positions[a.index] for a in topology.atoms() if a.element.symbol != "H"}


def _charge(topology: app.Topology) -> float:
    system = build_system(topology)
    nonbonded = next(f for f in system.getForces() if isinstance(f, NonbondedForce))
    charges = (nonbonded.getParticleParameters(i)[0] for i in range(nonbonded.getNumParticles()))
    return sum(charge.value_in_unit(unit.elementary_charge) for charge in charges)


def _names(topology: app.Topology) -> list[tuple[str, set[str]]]:
    return [(residue.name, {atom.name for atom in residue.atoms()}) for residue in topology.residues()]


@pytest.mark.parametrize(
    ("ph", "expected", "charge"),
    [
        (2.0, {"ASP": {"HD2"}, "GLU": {"HE2"}, "HIS": {"HD1", "HE2"}, "LYS": {"HZ1", "HZ2", "HZ3"}, "CYS": {"HG"}}, 1),
        (7.0, {"ASP": set(), "GLU": set(), "LYS": {"HZ1", "HZ2", "HZ3"}, "CYS": {"HG"}}, 0),
        (12.0, {"ASP": set(), "GLU": set(), "LYS": {"HZ1", "HZ2"}, "CYS": set()}, -1),
    ],
)
def test_protonation_follows_ph(mirror: Path, ph: float, expected: dict[str, set[str]], charge: int) -> None:
    """Acids, bases and cysteine have the hydrogens of their state, and the force field's charge is their sum."""
    topology, _ = repair(mirror / "1gv5.pdb.gz", ph=ph, seed=1)
    acid = {"ASP": "HD2", "GLU": "HE2"}
    labile = {"HIS": {"HD1", "HE2"}, "LYS": {"HZ1", "HZ2", "HZ3"}, "CYS": {"HG"}, **{k: {v} for k, v in acid.items()}}
    residues = _names(topology)
    total = 0
    for i, (name, atoms) in enumerate(residues):
        at_end = i == len(residues) - 1  # GLU 141: AMBER's template with COO- has it charged only
        if name in expected and not at_end:
            assert atoms & labile[name] == expected[name], (name, i)
        if name == "HIS" and ph > 6.5:
            assert len(atoms & labile["HIS"]) == 1
        if name == "TYR":
            assert "HH" in atoms, "AMBER has no tyrosinate"
        has = atoms & labile.get(name, set())
        total += {"ARG": 1, "LYS": len(has) - 2, "HIS": len(has) - 1, "CYS": len(has) - 1}.get(name, 0)
        total -= name in acid and not has
    assert {name for name, _ in residues} >= {"ASP", "GLU", "HIS", "LYS", "CYS", "TYR"}
    assert _charge(topology) == pytest.approx(total, abs=1e-3)
    assert np.sign(total) == charge or charge == 0


def test_ends_are_charged_or_capped(mirror: Path) -> None:
    """1shg lacks its first five residues: charged, capped at both ends, or capped there only; AMBER knows each."""
    charges = {}
    for termini, first, last in (("charged", "LYS", "ASP"), ("capped", "ACE", "NME"), ("capped_if_cut", "ACE", "ASP")):
        topology, positions = repair(mirror / "1shg.pdb.gz", termini=termini, seed=1)  # type: ignore[arg-type]
        residues = list(topology.residues())
        assert (residues[0].name, residues[-1].name) == (first, last)
        assert ("OXT" in {a.name for a in residues[-1].atoms()}) == (last == "ASP")
        assert ("H3" in {a.name for a in residues[0].atoms()}) == (first in ("LYS", "ACE"))
        charges[termini] = _charge(topology)
        for a, b in topology.bonds():
            if {a.name, b.name} == {"C", "N"} and {a.residue.name, b.residue.name} & {"ACE", "NME"}:
                if a.residue is b.residue:
                    continue
                assert np.linalg.norm(positions[a.index] - positions[b.index]) == pytest.approx(0.134, abs=0.01)
    assert charges["capped"] == pytest.approx(charges["charged"], abs=1e-3), "one charge less at either end"
    assert charges["capped_if_cut"] == pytest.approx(charges["charged"] - 1, abs=1e-3)


def test_sulphurs_that_are_apart_are_thiols(mirror: Path, tmp_path: Path) -> None:
    """Crambin with one SG 1.5 Å further off has two disulfides and two thiols in place of three."""
    lines = _lines(mirror / "1crn.pdb.gz")
    at = _heavy_of_file(lines)
    away = at["3", "SG"] + 0.15 * (at["3", "SG"] - at["40", "SG"]) / np.linalg.norm(at["3", "SG"] - at["40", "SG"])
    lines = [
        line[:30] + _place(*away * 10) + line[54:]
        if line.startswith("ATOM") and line[12:26] == " SG  CYS A   3"
        else line
        for line in lines
    ]
    topology, _ = repair(_write(tmp_path / "apart.pdb", lines), seed=1)
    bridges = [{a.residue.id, b.residue.id} for a, b in topology.bonds() if a.name == b.name == "SG"]
    assert sorted(bridges, key=min) == [{"16", "26"}, {"4", "32"}]
    thiols = {a.residue.id for a in topology.atoms() if a.residue.name == "CYS" and a.name == "HG"}
    assert thiols == {"3", "40"}


@pytest.mark.parametrize("name", ["2ovo", "6rsa", "1ajj"])
def test_deposited_coordinates_are_kept(mirror: Path, name: str) -> None:
    """Every deposited atom stays where its columns say, also under ORIGX and SCALE that are not the identity (two)."""
    lines = _lines(mirror / f"{name}.pdb.gz")
    assert (name == "1ajj") == any(line.startswith("ORIGX1      1.000000  0.000000") for line in lines)
    found = _heavy(*repair(mirror / f"{name}.pdb.gz", seed=1))
    expected = _heavy_of_file(lines)
    assert len(expected) > 250 and expected.keys() <= found.keys()
    for key, position in expected.items():
        np.testing.assert_allclose(found[key], position, atol=1e-6, err_msg=str(key))


def test_hydrogens_of_the_file_are_replaced(mirror: Path, tmp_path: Path) -> None:
    """6rsa was solved with neutrons and has deuterium; with it and without it the same protein comes out."""
    lines = _lines(mirror / "6rsa.pdb.gz")
    kept = [line for line in lines if not (line.startswith("ATOM") and line[76:78].strip() in ("H", "D"))]
    assert len(kept) < len(lines) - 500
    with_them, _ = repair(mirror / "6rsa.pdb.gz", seed=1)
    without, _ = repair(_write(tmp_path / "bare.pdb", [x for x in kept if not x.startswith("MASTER")]), seed=1)
    assert _names(with_them) == _names(without)


def test_selenium_becomes_sulphur_in_its_place(mirror: Path) -> None:
    """MSE turns into MET with every coordinate kept, sulphur where selenium was."""
    text = gzip.decompress((mirror / "1a8o.cif.gz").read_bytes()).decode()
    rows = [line.split() for line in text.splitlines() if line.startswith("HETATM") and " MSE " in line]
    found = _heavy(*repair(mirror / "1a8o.cif.gz", seed=1))
    assert len(rows) == 32
    for row in rows:
        name = {"SE": "SD"}.get(row[3], row[3])
        np.testing.assert_allclose(found[row[16], name], np.array(row[10:13], dtype=float) / 10, atol=1e-6)


def _split(lines: list[str], number: int, occupancies: tuple[float, float], names: tuple[str, str]) -> list[str]:
    """Give a residue two locations 0.2 Å apart, A and B, of these occupancies and residue names."""
    result = []
    for line in lines:
        if line.startswith("ATOM") and int(line[22:26]) == number:
            for shift, letter, occupancy, name in zip((0.0, 0.2), "AB", occupancies, names, strict=True):
                if name == "SER" and line[12:16].strip() in ("CG", "CD"):
                    continue
                atom = line[12:16].replace("CG", "OG") if name == "SER" else line[12:16]
                x = float(line[30:38]) + shift
                result.append(
                    f"{line[:12]}{atom}{letter}{name}{line[20:30]}{x:8.3f}{line[38:54]}{occupancy:6.2f}{line[60:]}"
                )
        elif not line.startswith(("MASTER", "SEQADV", "ANISOU")):
            result.append(line)
    return result


@pytest.mark.parametrize(("occupancies", "shift"), [((0.3, 0.7), 0.02), ((0.5, 0.5), 0.0), ((0.6, 0.4), 0.0)])
def test_most_occupied_location_is_taken(
    mirror: Path, tmp_path: Path, occupancies: tuple[float, float], shift: float
) -> None:
    """All atoms of a residue come from its most occupied location, from the first where two are equal."""
    lines = _lines(mirror / "1crn.pdb.gz")
    path = _write(tmp_path / "alt.pdb", _split(lines, 13, occupancies, ("PHE", "PHE")))
    found, expected = _heavy(*repair(path, seed=1)), _heavy_of_file(lines)
    inside = [key for key in expected if key[0] == "13"]
    assert len(inside) == 11
    for key in expected:
        offset = np.array([shift if key in inside else 0.0, 0, 0])
        np.testing.assert_allclose(found[key], expected[key] + offset, atol=1e-6, err_msg=str(key))


@pytest.mark.parametrize(("occupancies", "name"), [((0.6, 0.4), "PRO"), ((0.4, 0.6), "SER")])
def test_most_occupied_residue_is_taken(
    mirror: Path, tmp_path: Path, occupancies: tuple[float, float], name: str
) -> None:
    """Where a position has two residues (crambin's 22 is PRO or SER), the more occupied one is built, whole."""
    path = _write(tmp_path / "two.pdb", _split(_lines(mirror / "1crn.pdb.gz"), 22, occupancies, ("PRO", "SER")))
    topology, _ = repair(path, seed=1)
    residue = list(topology.residues())[21]
    assert residue.name == name and topology.getNumResidues() == 46
    heavy = {atom.name for atom in residue.atoms() if atom.element.symbol != "H"}
    assert heavy == {"N", "CA", "C", "O", "CB", *({"CG", "CD"} if name == "PRO" else {"OG"})}


def test_numbering_does_not_matter(mirror: Path, tmp_path: Path) -> None:
    """Negative numbers, a jump and insertion codes give the same chain as 1 to 46, nothing built into the jump."""

    def renumbered(line: str) -> str:
        if not line.startswith(("ATOM", "TER")) or not line[22:26].strip():
            return line
        number = int(line[22:26])
        new = f"{number - 8:4d} " if number <= 10 else f"  99{chr(ord('A') + number - 11)}"
        if number > 20:
            new = f"{number + 100:4d} "
        return line[:22] + new + line[27:]

    lines = [
        x for x in _lines(mirror / "1crn.pdb.gz") if not x.startswith(("SSBOND", "DBREF", "SEQADV", "HELIX", "SHEET"))
    ]
    path = _write(tmp_path / "odd.pdb", [renumbered(line) for line in lines])
    odd, usual = repair(path, seed=1), repair(mirror / "1crn.pdb.gz", seed=1)
    assert _names(odd[0]) == _names(usual[0])
    np.testing.assert_array_equal(odd[1], usual[1])
    assert [r.id for r in odd[0].residues()][:12] == [str(i) for i in range(-7, 3)] + ["99A", "99B"]


def test_built_residues_are_proteins(mirror: Path, tmp_path: Path) -> None:
    """Residues that are built have the right hand, trans peptides and sound bonds, and the rest stays in place."""
    lines = _lines(mirror / "1crn.pdb.gz")
    kept = [x for x in lines if not (x.startswith("ATOM") and 19 <= int(x[22:26]) <= 23) and not x.startswith("MASTER")]
    topology, positions = repair(_write(tmp_path / "gap.pdb", kept), seed=2)
    expected = _heavy_of_file(kept)
    found = _heavy(topology, positions)
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], atol=1e-6)
    built = [r for r in topology.residues() if "+" in r.id]
    assert [r.name for r in built] == ["PRO", "GLY", "THR", "PRO", "GLU"], "19 to 23 of SEQRES"
    residues = list(topology.residues())
    for residue in built:
        at = {a.name: positions[a.index] for a in residue.atoms()}
        before = {a.name: positions[a.index] for a in residues[residue.index - 1].atoms()}
        assert np.linalg.norm(at["N"] - before["C"]) == pytest.approx(0.134, abs=0.012)
        bonds = [before["C"] - before["CA"], at["N"] - before["C"], at["CA"] - at["N"]]
        if residue.name != "PRO":
            assert np.dot(np.cross(bonds[0], bonds[1]), np.cross(bonds[1], bonds[2])) < 0, f"{residue.id} is cis"
        if residue.name != "GLY":
            # Seen from its hydrogen, an L-amino acid reads CO, R, N clockwise.
            assert np.dot(at["HA"] - at["CA"], np.cross(at["C"] - at["CA"], at["CB"] - at["CA"])) < 0
        if residue.name == "THR":
            assert np.dot(at["CA"] - at["CB"], np.cross(at["OG1"] - at["CB"], at["CG2"] - at["CB"])) > 0


def test_residue_without_backbone_counts_as_missing(mirror: Path, tmp_path: Path) -> None:
    """A last residue with nothing but N goes; one inside without CA is built whole, if max_gap allows one."""
    lines = [x for x in _lines(mirror / "1crn.pdb.gz") if not x.startswith("MASTER")]
    atom = [x[12:16].strip() if x.startswith("ATOM") else "" for x in lines]
    number = [int(x[22:26]) if x.startswith("ATOM") else 0 for x in lines]
    end = [x for x, a, n in zip(lines, atom, number, strict=True) if n != 46 or a == "N"]
    topology, _ = repair(_write(tmp_path / "end.pdb", end), seed=1)
    assert topology.getNumResidues() == 45
    inside = _write(
        tmp_path / "in.pdb", [x for x, a, n in zip(lines, atom, number, strict=True) if (n, a) != (20, "CA")]
    )
    topology, _ = repair(inside, max_gap=1, seed=1)
    assert [r.id for r in topology.residues()][18:21] == ["19", "19+1", "21"]
    with pytest.raises(EntryError, match=r"1 residues are missing inside the chain, before THR 21") as caught:
        repair(inside, max_gap=0)
    assert caught.value.kind == "gap"


def test_pyroglutamate_is_opened(mirror: Path, tmp_path: Path) -> None:
    """PCA's ring carbon lies at the nitrogen; as GLU it is built away from it."""
    lines = [x for x in _lines(mirror / "1crn.pdb.gz") if not x.startswith(("MASTER", "SEQRES", "DBREF"))]
    nitrogen = _heavy_of_file(lines)["23", "N"]
    ring = [
        x[:30] + _place(*(nitrogen * 10 + (0.9, 0.9, 0.4))) + x[54:]
        if x.startswith("ATOM") and x[12:16] == " CD " and x[22:26] == "  23"
        else x
        for x in lines
    ]
    ring = [
        x.replace("GLU A  23", "PCA A  23").replace(" OE1 PCA", " OE  PCA") for x in ring if " OE2 GLU A  23" not in x
    ]
    assert sum(" OE  PCA" in x for x in ring) == 1
    topology, positions = repair(_write(tmp_path / "pca.pdb", ring), seed=1)
    at = {a.name: positions[a.index] for a in list(topology.residues())[22].atoms()}
    assert {"OE1", "OE2"} <= at.keys() and "OE" not in at
    assert np.linalg.norm(at["CD"] - at["N"]) > 0.25


def test_other_chains_do_not_matter(mirror: Path, tmp_path: Path) -> None:
    """Ligands in chains of their own, even UNK, and water are left out; water stays when asked."""
    lines = _lines(mirror / "1crn.pdb.gz")
    strangers = [("C1 ", "UNL", "B"), ("C1 ", "UNK", "C"), ("ZN ", " ZN", "D"), ("O  ", "HOH", "E")]
    extra = [
        f"HETATM{900 + i:5d}  {atom} {name} {chain}{i:4d}    {60 + 3 * i:8.3f}   5.000   5.000  1.00 10.00"
        f"          {atom[0]:>2s}  "
        for i, (atom, name, chain) in enumerate(strangers)
    ]
    at = next(i for i, x in enumerate(lines) if x.startswith("TER"))
    path = _write(tmp_path / "more.pdb", [x for x in [*lines[: at + 1], *extra, *lines[at + 1 :]] if "MASTER" not in x])
    usual = repair(mirror / "1crn.pdb.gz", seed=1)
    assert _names(repair(path, seed=1)[0]) == _names(usual[0])
    topology, _ = repair(path, keep_water=True, seed=1)
    assert _names(topology) == [*_names(usual[0]), ("HOH", {"O", "H1", "H2"})]


def test_modified_residue_without_parent_is_named(mirror: Path, tmp_path: Path) -> None:
    """A residue inside the chain that nobody can translate refuses the entry by its name and number."""
    lines = [x.replace("GLU A  23", "XYZ A  23") for x in _lines(mirror / "1crn.pdb.gz")]
    with pytest.raises(EntryError, match="XYZ 23 have no standard parent") as caught:
        repair(_write(tmp_path / "x.pdb", lines))
    assert caught.value.kind == "unknown_residue"


def test_wrong_hand_is_refused(mirror: Path) -> None:
    """check_geometry refuses the mirror image of a protein, and one whose CB and HA have changed places."""
    topology, positions = repair(mirror / "1crn.pdb.gz", seed=1)
    for wrong in (positions * [-1, 1, 1], positions.copy()):
        if wrong[0, 0] == positions[0, 0]:
            at = {a.name: a.index for a in list(topology.residues())[8].atoms()}  # ALA 9
            wrong[[at["CB"], at["HA"]]] = wrong[[at["HA"], at["CB"]]]
        with pytest.raises(EntryError, match="wrong hand") as caught:
            check_geometry(topology, wrong)
        assert caught.value.kind == "chirality"


def test_pierced_ring_is_found(mirror: Path) -> None:
    """No ring of crambin is pierced; a bond pushed through PHE 13's ring is found, one beside it is not."""
    topology, positions = repair(mirror / "1crn.pdb.gz", seed=1)
    every = np.ones(len(positions), dtype=bool)
    assert pierced_rings(topology, positions, every) == []
    ring = {a.name: positions[a.index] for a in list(topology.residues())[12].atoms()}
    centre = np.mean([ring[name] for name in ("CG", "CD1", "CE1", "CZ", "CE2", "CD2")], axis=0)
    normal = np.cross(ring["CG"] - centre, ring["CD1"] - centre)
    normal /= np.linalg.norm(normal)
    in_plane = (ring["CG"] - centre) / np.linalg.norm(ring["CG"] - centre)
    bond = [a.index for a in next(topology.residues()).atoms() if a.name in ("CB", "CG2")]
    for offset, n_found in ((0.0, 1), (0.05, 1), (0.16, 0)):
        moved = positions.copy()
        moved[bond] = centre + offset * in_plane + np.outer([0.07, -0.07], normal)
        found = pierced_rings(topology, moved, every)
        assert len([x for x in found if "THR1:CB-THR1:CG2 passes through the ring of PHE13" in x]) == n_found
