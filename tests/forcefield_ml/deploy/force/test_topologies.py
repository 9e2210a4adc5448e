"""One solvated peptide read from PDB, mmCIF, AMBER's and GROMACS's files: the same atoms, box and forces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import openmm
import pytest
from deploy_helpers import Deployed, Molecules, bare_system, context_of, forces_of, write_model
from openmm import app, unit

import forcefield_ml
from data_pipeline.systems.build import protein_mask
from forcefield_ml.deploy.force.binding import bind
from forcefield_ml.deploy.force.openmm_force import NO_ENERGY
from forcefield_ml.errors import TopologyError

DATA = Path(__file__).parents[1] / "data"
READERS = ("pdb", "cif", "prmtop", "gro")
N_SOLUTE = 102
FORMULA = {1: 52 + 32, 6: 30, 7: 9, 8: 11 + 16, 11: 1, 17: 1}  # zwitterion with lysine charged, 16 waters, NaCl

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


class Read(NamedTuple):
    """What a reader of OpenMM made of its file."""

    molecules: Molecules
    create_system: Callable[..., openmm.System]


def read(name: str) -> Read:
    """Read the peptide as a user of these files does."""
    maker: Any
    if name == "prmtop":
        inpcrd = app.AmberInpcrdFile(str(DATA / "peptide.inpcrd"))
        maker = app.AmberPrmtopFile(str(DATA / "peptide.prmtop"), periodicBoxVectors=inpcrd.boxVectors)
        positions = inpcrd.positions
    elif name == "gro":
        gro = app.GromacsGroFile(str(DATA / "peptide.gro"))
        maker = app.GromacsTopFile(str(DATA / "peptide.top"), periodicBoxVectors=gro.getPeriodicBoxVectors())
        positions = gro.positions
    else:
        maker = {"pdb": app.PDBFile, "cif": app.PDBxFile}[name](str(DATA / f"peptide.{name}"))
        positions = maker.positions
    topology = maker.topology
    box = np.array(topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))
    solute = list(range(N_SOLUTE))
    xyz = np.array(positions.value_in_unit(unit.nanometer))
    return Read(Molecules(topology, xyz, box, solute), getattr(maker, "createSystem", None))


@pytest.fixture(scope="module")
def peptide() -> dict[str, Molecules]:
    """The peptide by each reader."""
    return {name: read(name).molecules for name in READERS}


def test_same_binding(peptide: dict[str, Molecules], deployed: dict[str, Deployed]) -> None:
    """Species, targets and box are the same by all readers, whatever the residues are called."""
    card = forcefield_ml.load(deployed["fast"].path).card
    bound = {name: bind(card, molecules.topology, None, False) for name, molecules in peptide.items()}
    first = bound["pdb"]
    assert first.targets == peptide["pdb"].solute and len(first.species) == 152
    assert {number: first.species.count(number) for number in set(first.species)} == FORMULA
    for other in bound.values():
        assert (other.species, other.targets, other.inputs) == (first.species, first.targets, first.inputs)
        assert np.allclose(other.box, first.box, atol=1e-5)
    names = {name: {residue.name for residue in m.topology.residues()} for name, m in peptide.items()}
    assert {"GLUP", "HISD"} <= names["gro"] and {"Na+", "Cl-"} <= names["prmtop"] and {"GLU", "HIS"} <= names["pdb"]


@pytest.mark.parametrize("name", ["fast", "tfn"])
def test_same_forces(name: str, peptide: dict[str, Molecules], deployed: dict[str, Deployed]) -> None:
    """Each reader's peptide feels the same forces."""
    found = {}
    for reader, molecules in peptide.items():
        system = bare_system(molecules)
        system.addForce(forcefield_ml.load(deployed[name].path).create_force(molecules.topology))
        found[reader] = forces_of(context_of(system, molecules, "CPU"))
    scale = np.linalg.norm(found["pdb"])
    assert scale > 1000
    for reader in READERS:
        assert np.linalg.norm(found[reader] - found["pdb"]) / scale < 2e-4, reader


@pytest.mark.parametrize("reader", ["prmtop", "gro"])
def test_mixed_with_its_own_force_field(reader: str, deployed: dict[str, Deployed]) -> None:
    """The MM system made of AMBER's or GROMACS's own file takes the model: solvent feels MM, the peptide the model."""
    molecules, create_system = read(reader)
    options = {"nonbondedMethod": app.PME, "nonbondedCutoff": 0.9 * unit.nanometer, "rigidWater": False}
    system = create_system(constraints=None, **options)
    mm = forces_of(context_of(system, molecules, "Reference"))
    model = forcefield_ml.load(deployed["fast"].path)
    model.add_to_system(system, molecules.topology, mode="solute")
    found = forces_of(context_of(system, molecules, "Reference"))
    assert np.abs(found[N_SOLUTE:] - mm[N_SOLUTE:]).max() < 1e-6 * np.abs(mm).max()
    alone = model.forces(molecules.positions, molecules.box, topology=molecules.topology, atoms=range(N_SOLUTE))
    assert np.abs(found[:N_SOLUTE] - alone).max() < 1e-4 * np.abs(alone).max()


def test_prmtop_without_the_coordinates_box(deployed: dict[str, Deployed]) -> None:
    """A prmtop knows one angle of its box: used without the inpcrd's, the model refuses the box that comes with it."""
    inpcrd = app.AmberInpcrdFile(str(DATA / "peptide.inpcrd"))
    prmtop = app.AmberPrmtopFile(str(DATA / "peptide.prmtop"))
    system = prmtop.createSystem(nonbondedMethod=app.PME, nonbondedCutoff=0.9 * unit.nanometer, rigidWater=False)
    forcefield_ml.load(deployed["fast"].path).add_to_system(system, prmtop.topology)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(inpcrd.positions)
    context.setPeriodicBoxVectors(*inpcrd.boxVectors)
    with pytest.raises(openmm.OpenMMException, match="box differs by"):
        forces_of(context)


CONVENTIONS = {
    "amber": {"LYS": "NLYS", "GLU": "GLH", "HIS": "CHID", "HOH": "WAT", "NA": "Na+", "CL": "Cl-"},
    "charmm": {"GLU": "GLUP", "HIS": "HSD", "HOH": "TIP3", "NA": "SOD", "CL": "CLA"},
    "gromacs": {"GLU": "GLUH", "HIS": "HISA", "HOH": "SOL", "NA": "NA+", "CL": "CL-"},
}


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_conventions(convention: str, deployed: dict[str, Deployed]) -> None:
    """Solute, water and ions are told apart, and missing hydrogens found, under each convention's names."""
    card = forcefield_ml.load(deployed["fast"].path).card
    molecules = read("pdb").molecules
    expected = bind(card, molecules.topology, None, False)
    names = CONVENTIONS[convention]
    for residue in molecules.topology.residues():
        residue.name = names.get(residue.name, residue.name)
    assert bind(card, molecules.topology, None, False).targets == expected.targets
    assert protein_mask(molecules.topology).sum() == N_SOLUTE
    with pytest.raises(forcefield_ml.errors.ForceModeError, match="water or ions"):
        bind(card, molecules.topology, [151], False)
    for wanted in (names["GLU"], names["HIS"], names["HOH"]):
        modeller = app.Modeller(molecules.topology, molecules.positions * unit.nanometer)
        residue = next(r for r in modeller.topology.residues() if r.name == wanted)
        modeller.delete([atom for atom in residue.atoms() if atom.element.symbol == "H"])
        with pytest.raises(TopologyError, match=f"{wanted}.*0 of at least"):
            bind(card, modeller.topology, None, False)


def with_residue(name: str, n_carbons: int = 1) -> app.Topology:
    """Return the peptide's topology and one more residue, of carbon and hydrogen."""
    topology = read("pdb").molecules.topology
    residue = topology.addResidue(name, topology.addChain("L"))
    for i in range(n_carbons):
        topology.addAtom(f"C{i}", app.Element.getBySymbol("C"), residue)
    return topology


@pytest.mark.parametrize("name", ["LIG", "DA", "SEP", "POPC"])
def test_foreign_residues(name: str, deployed: dict[str, Deployed], tmp_path: Path) -> None:
    """A ligand, a nucleotide, a modified residue, a lipid: refused by name, whether it feels the model or is near."""
    topology = with_residue(name)
    model = forcefield_ml.load(deployed["fast"].path)
    for atoms in (None, [0, 152]):
        with pytest.raises(TopologyError, match=rf"not trained on L:{name}.*allow_residues=\['{name}'\]"):
            model.create_force(topology, atoms=atoms)
    model.create_force(topology, allow_residues=[name])
    model.create_force(topology, atoms=[152], allow_residues=name)
    everywhere = forcefield_ml.load(write_model(tmp_path, target_atoms="all"))
    with pytest.raises(TopologyError, match=f"L:{name}"):
        everywhere.create_system(topology)
    system = everywhere.create_system(topology, allow_residues=[name])
    assert {force.getName() for force in system.getForces()} == {NO_ENERGY, "CMMotionRemover"}
    alone = forcefield_ml.load(write_model(tmp_path, predicts="solute_alone"))
    bind(alone.card, topology, range(N_SOLUTE), True)  # the model does not see it


def test_allowing_a_residue_that_is_not_there(deployed: dict[str, Deployed]) -> None:
    """A misspelt permission is an error, with the closest name."""
    model = forcefield_ml.load(deployed["fast"].path)
    with pytest.raises(TopologyError, match="Did you mean 'LIG'"):
        model.create_force(with_residue("LIG"), allow_residues=["LGI"])


def test_a_ligand_named_like_an_ion(deployed: dict[str, Deployed]) -> None:
    """RUB of CHARMM is one ion; the PDB's ligand of that name is refused."""
    with pytest.raises(TopologyError, match="L:RUB"):
        forcefield_ml.load(deployed["fast"].path).create_force(with_residue("RUB", 5))


def test_the_card_knows_the_residues(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """What the training data held is known; another amino acid warns, another residue is refused."""
    listed = ["LYS", "GLU", "SER", "THR", "LEU", "HIE", "HOH", "NA", "CL"]
    topology = read("gro").molecules.topology
    forcefield_ml.load(write_model(tmp_path, training={"residues": listed})).create_force(topology)
    assert not [w for w in recwarn if "training data held no" in str(w.message)]
    model = forcefield_ml.load(write_model(tmp_path, training={"residues": [*listed[:4], *listed[5:]]}))
    with pytest.warns(UserWarning, match="training data held no LEU"):
        model.create_force(topology)
    with pytest.raises(TopologyError, match=r"L:LIG.*it knows CL, GLU, HIS"):
        model.create_force(with_residue("LIG"))
    trained_on_it = forcefield_ml.load(write_model(tmp_path, training={"residues": [*listed, "LIG"]}))
    trained_on_it.create_force(with_residue("LIG"))


def test_embedded_wants_whole_molecules(tmp_path: Path) -> None:
    """Alone, a part of a molecule would have broken bonds; the first that is cut is named."""
    model = forcefield_ml.load(write_model(tmp_path, predicts="solute_alone"))
    topology = read("pdb").molecules.topology
    bind(model.card, topology, range(N_SOLUTE), True)
    with pytest.raises(TopologyError, match=r"cuts 1 bonds.*whole molecules"):
        bind(model.card, topology, [a.index for a in topology.atoms() if a.residue.name == "LYS"], True)
