"""Write the same solvated hexapeptide as PDB, mmCIF, prmtop/inpcrd and gro/top, each with its own residue names.

    python -m venv env && env/bin/pip install openmm==8.6.1 pdbfixer==1.12.0 parmed==4.3.1 gemmi
    OPENMM_DEFAULT_PLATFORM=Reference env/bin/python make_peptide_files.py ../../../../examples/demo/mirror/1ubq.cif.gz

Residues 63-68 of 1UBQ (Lys-Glu-Ser-Thr-Leu-His), the acid protonated, the histidine on ND1, the nearest waters, Na+ and
Cl-, in a triclinic box that the peptide leaves on one side. Positions are multiples of 0.001 nm, which
every format holds exactly.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import gemmi
import numpy as np
import parmed
from openmm import app, unit
from openmm.app.internal.unitcell import computePeriodicBoxVectors
from pdbfixer import PDBFixer

HERE = Path(__file__).parent
LENGTHS, ANGLES = (20.0, 21.0, 22.0), (75.0, 80.0, 85.0)  # Å, degrees
N_WATERS = 16
AMBER = {"GLU": "GLH", "HIS": "HID", "HOH": "WAT", "NA": "Na+", "CL": "Cl-"}
GROMACS = {"GLU": "GLUP", "HIS": "HISD", "HOH": "SOL", "NA": "NA", "CL": "CL"}

structure = gemmi.read_structure(sys.argv[1])
structure.remove_ligands_and_waters()
chain = structure[0]["A"]
for i in reversed(range(len(chain))):
    if not 63 <= chain[i].seqid.num <= 68:
        del chain[i]
structure.write_minimal_pdb("fragment.pdb")
fixer = PDBFixer("fragment.pdb")
Path("fragment.pdb").unlink()
fixer.missingResidues = {}
fixer.findMissingAtoms()
fixer.addMissingAtoms(seed=1)
forcefield = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
random.seed(1)
modeller = app.Modeller(fixer.topology, fixer.positions)
modeller.addHydrogens(forcefield, variants=[None, "GLH", None, None, None, "HID"])
vectors = computePeriodicBoxVectors(*(0.1 * np.array(LENGTHS)), *np.radians(ANGLES))
modeller.addSolvent(forcefield, boxVectors=vectors, ionicStrength=0.4 * unit.molar)

positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
peptide = [a.index for a in modeller.topology.atoms() if a.residue.chain.index == 0]
residues = list(modeller.topology.residues())
waters = [r for r in residues if r.name == "HOH"]
first = {r: next(r.atoms()).index for r in residues}
distance = {r: np.linalg.norm(positions[peptide] - positions[first[r]], axis=1).min() for r in waters}
kept = set(sorted(waters, key=distance.get)[:N_WATERS])
for name in ("NA", "CL"):
    kept.add(next(r for r in residues if r.name == name))
modeller.delete([r for r in residues if r.chain.index > 0 and r not in kept])
positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
positions = np.round(positions - positions[:5].mean(axis=0) + [0.1, 0.6, 0.5], 3)
modeller.topology.setPeriodicBoxVectors(vectors)

with open(HERE / "peptide.pdb", "w") as file:
    app.PDBFile.writeFile(modeller.topology, positions * unit.nanometer, file)
with open(HERE / "peptide.cif", "w") as file:
    app.PDBxFile.writeFile(modeller.topology, positions * unit.nanometer, file)
system = forcefield.createSystem(
    modeller.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.65 * unit.nanometer, rigidWater=False
)
for names, files in ((AMBER, ("peptide.prmtop", "peptide.inpcrd")), (GROMACS, ("peptide.top", "peptide.gro"))):
    copy = parmed.openmm.load_topology(modeller.topology, system, xyz=positions * unit.nanometer)
    copy.box = [*LENGTHS, *ANGLES]
    for residue in copy.residues:
        residue.name = names.get(residue.name, residue.name)
    for file in files:
        options = {"combine": "all"} if file.endswith("top") and "prm" not in file else {}
        copy.save(str(HERE / file), overwrite=True, **options)

top = (HERE / "peptide.top").read_text().splitlines(keepends=True)
while top[0].startswith(";"):  # when, where and by whom
    del top[0]
(HERE / "peptide.top").write_text("".join(top))
