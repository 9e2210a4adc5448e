"""Residue names of all conventions are told apart, against the tables that ship with OpenMM."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from openmm import app

from data_pipeline.systems.residues import (
    AMINO_ACIDS,
    PROTEIN_RESIDUES,
    amber_name,
    is_ion,
    is_protein,
    is_water,
    parent_name,
)

DATA = Path(app.__file__).parent / "data"


def templates(file: str) -> set[str]:
    """Return the names of the residue templates of a force field."""
    tree = ElementTree.parse(DATA / file)
    return {str(residue.get("name")) for residue in tree.getroot().findall("./Residues/Residue")}


@pytest.mark.parametrize(
    "expected, names",
    {
        "HID": "HSD HISD HISA HID NHID CHID NHSD",
        "HIE": "HSE HISE HIE CHIE",
        "HIP": "HSP HISH HISP HIP",
        "CYX": "CYX CYS2 NCYX CCYX",
        "CYS": "CYS CYSH NCYS",
        "ASH": "ASH ASPH ASPP",
        "GLH": "GLH GLUP GLUH",
        "LYN": "LYN LYSN LSN",
        "LYS": "LYS LYSH NLYS CLYS NLYP",
        "ALA": "ALA NALA CALA ala",
        "HOH": "HOH WAT SOL TIP3 SPC H2O TIP3P",
        "NA": "NA NA+ Na+ SOD",
        "CL": "CL CL- Cl- CLA",
        "K": "K K+ POT",
        "MG": "MG MG2+ Mg2+ MG2",
        "ZN": "ZN ZN2",
        "NME": "NME NMA",
        "NH2": "NH2 NHE",
        # what must stay what it is: ligands, nucleic acids, modified residues, and names that only look like ours
        "LIG": "LIG",
        "DA": "DA",
        "SEP": "SEP",
        "CLR": "CLR",
        "NAD": "NAD",
        "CACE": "CACE",
        "NHOH": "NHOH",
        "HSX": "HSX",
    }.items(),
)
def test_names(expected: str, names: str) -> None:
    """Each convention's name becomes AMBER's; a foreign name stays foreign."""
    assert {amber_name(name) for name in names.split()} == {expected}


def test_openmm_translates_alike() -> None:
    """What OpenMM's readers translate, this table translates to the same amino acid, cap or water."""
    app.PDBFile._loadNameReplacementTables()
    table = app.PDBFile._residueNameReplacements
    known = AMINO_ACIDS | {"ACE", "NME", "NH2", "HOH"}
    pairs = {(old, new) for old, new in table.items() if new in known}
    assert len(pairs) > 40
    assert [(old, parent_name(old), new) for old, new in pairs if parent_name(old) != new] == []
    foreign = [old for old, new in table.items() if new not in known]
    assert not [name for name in foreign if is_protein(name) or is_water(name)]


@pytest.mark.parametrize("file", ["amber14/protein.ff14SB.xml", "amber19/protein.ff19SB.xml"])
def test_amber_templates_are_protein(file: str) -> None:
    """All residues of AMBER's protein force fields, termini included, are known; the list of ours has no other."""
    names = templates(file)
    assert len(names) > 70
    assert [name for name in names if not is_protein(name)] == []
    assert {parent_name(name) for name in names} >= AMINO_ACIDS


def test_charmm_templates() -> None:
    """CHARMM's names of amino acids, water and simple ions are known."""
    names = templates("charmm36.xml") | templates("charmm36/water.xml")
    common = {"HSD", "HSE", "HSP", "SOD", "CLA", "POT", "CAL", "CES", "LIT", "RUB", "ZN2", "MG"} | AMINO_ACIDS - {"HIS"}
    assert common <= names
    assert all(is_protein(name) or is_ion(name, 1) for name in common)
    assert any(is_water(name) for name in names)


def test_nucleic_acids_and_lipids_are_foreign() -> None:
    """No template of DNA, RNA or lipids passes as protein, water or ion."""
    for file in ("amber14/DNA.OL15.xml", "amber14/RNA.OL3.xml", "amber14/lipid17.xml"):
        names = templates(file)
        assert len(names) > 5
        wrong = [name for name in names if is_protein(name) or is_water(name) or is_ion(name, 1)]
        assert wrong == []


def test_a_ligand_named_like_an_ion() -> None:
    """A residue of several atoms is no ion, whatever its name."""
    assert is_ion("RUB", 1) and not is_ion("RUB", 30)
    assert not PROTEIN_RESIDUES & {amber_name("RUB")}
