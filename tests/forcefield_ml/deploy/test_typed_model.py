"""A model of atom types: training learns them, the file holds them, the topology gives them to the force."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import numpy as np
import openmm
import pytest
import torch
from deploy_helpers import CONFIGS, Deployed, Molecules, bare_system, context_of, forces_of
from openmm import app

import forcefield_ml
from forcefield_ml import models, units
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import ConfigError, ForceModeError, SurroundingsWarning, TopologyError
from forcefield_ml.nn.atom_types import AtomTypes
from forcefield_ml.nn.embedding import TypeEmbedding, set_types, types_of

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


def numbers(topology: app.Topology) -> tuple[np.ndarray, np.ndarray]:
    """Return species (N,) and bonds (B, 2)."""
    bonds = np.array([(one.index, other.index) for one, other in topology.bonds()])
    return np.array([atom.element.atomic_number for atom in topology.atoms()]), bonds


def without_bonds(topology: app.Topology) -> app.Topology:
    bare = app.Topology()
    chain = bare.addChain()
    for residue in topology.residues():
        copy = bare.addResidue(residue.name, chain, residue.id)
        for atom in residue.atoms():
            bare.addAtom(atom.name, atom.element, copy)
    bare.setPeriodicBoxVectors(topology.getPeriodicBoxVectors())
    return bare


def _turned(topology: app.Topology) -> app.Topology:
    """Return a topology whose waters begin with a hydrogen."""
    other, chain = app.Topology(), None
    copies = {}
    for residue in topology.residues():
        chain = chain or other.addChain()
        copy = other.addResidue(residue.name, chain, residue.id)
        atoms = list(residue.atoms())
        for atom in [atoms[1], atoms[0], *atoms[2:]] if residue.name == "HOH" else atoms:
            copies[atom] = other.addAtom(atom.name, atom.element, copy)
    for one, two in topology.bonds():
        other.addBond(copies[one], copies[two])
    other.setPeriodicBoxVectors(topology.getPeriodicBoxVectors())
    return other


@pytest.fixture(scope="module")
def typed(wet: Molecules, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """A model of random weights that knows the types of the tripeptide and of water."""
    torch.manual_seed(2)
    model = models.build({**CONFIGS["fast"], "type_depth": 3, "n_types": 64}).eval()
    species, bonds = numbers(wet.topology)
    set_types(model, 10 * [(species, bonds)])
    model.set_scale(50.0)
    path = bundle.write(model, make_card(model), tmp_path_factory.mktemp("typed") / "model.pt")
    return Deployed(model, path)


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
def test_openmm_feels_the_types_of_the_topology(typed: Deployed, wet: Molecules, backend: str) -> None:
    """Both backends give what the eager network gives for the codes; for bare atomic numbers that is something else."""
    species, bonds = numbers(wet.topology)
    types = types_of(typed.eager)
    assert types is not None
    found = {}
    for name, atoms in (("typed", types.codes(species, bonds)), ("bare", species)):
        with torch.no_grad():
            neighbours = typed.eager.search()(
                torch.tensor(wet.positions, dtype=torch.float32), torch.tensor(wet.box).float()
            )
            sizes = [len(species)] * typed.eager.capabilities.n_layers
            found[name] = typed.eager(models.Atoms(torch.from_numpy(atoms)), neighbours, sizes).forces.double().numpy()
    system = bare_system(wet)
    system.addForce(forcefield_ml.load(typed.path).create_force(wet.topology, backend=backend))
    again = (
        openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system)) if backend == "pythonforce" else system
    )
    forces = forces_of(context_of(again, wet, "Reference"))[wet.solute]
    scale = np.linalg.norm(found["typed"][wet.solute])
    assert np.linalg.norm(forces - found["typed"][wet.solute]) < 1e-4 * scale
    assert np.linalg.norm(forces - found["bare"][wet.solute]) > 0.01 * scale


def test_numbering_of_the_file_does_not_matter(typed: Deployed, dry: Molecules) -> None:
    """Names of residues and atoms tell a type nothing: renamed atoms feel the same."""
    renamed = app.Topology()
    chain, copies = renamed.addChain(), {}
    for residue in dry.topology.residues():
        copy = renamed.addResidue(residue.name, chain)
        for k, atom in enumerate(residue.atoms()):
            copies[atom] = renamed.addAtom(f"X{k}", atom.element, copy)
    for one, other in dry.topology.bonds():
        renamed.addBond(copies[other], copies[one])
    model = forcefield_ml.load(typed.path)
    expected = model.forces(dry.positions, topology=dry.topology)
    assert np.array_equal(model.forces(dry.positions, topology=renamed), expected)


def test_what_has_no_bonds_is_refused(typed: Deployed, wet: Molecules) -> None:
    """A topology without bonds, and elements alone."""
    model = forcefield_ml.load(typed.path)
    with pytest.raises(TopologyError, match=r"bonded as no atom .* lacks bonds \(it has 0\)"):
        model.create_force(without_bonds(wet.topology))
    species, _ = numbers(wet.topology)
    with pytest.raises(ConfigError, match="knows atoms by their bonds"):
        model.forces(wet.positions, wet.box, species=species)


def test_unknown_but_complete_surroundings_are_told(typed: Deployed, dry: Molecules) -> None:
    """Two carbons with a bond too many lack none: the forces are guesses, and it is said whose."""
    odd = copy.deepcopy(dry.topology)
    first, *_, last = (atom for atom in odd.atoms() if atom.name == "CA")
    odd.addBond(first, last)
    model = forcefield_ml.load(typed.path)
    with pytest.warns(SurroundingsWarning, match=r"LYS351 CA .*ALA353 CA .*It knows the element alone"):
        model.create_force(odd)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.create_force(dry.topology)


def test_ase_takes_the_types_from_a_topology(typed: Deployed, wet: Molecules) -> None:
    """ASE's forces are OpenMM's where the topology is given, all of it or the solute alone; refused where it is not."""
    from ase import Atoms
    from ase.constraints import FixAtoms

    model = forcefield_ml.load(typed.path)
    atoms = Atoms([a.element.symbol for a in wet.topology.atoms()], 10 * wet.positions, cell=10 * wet.box, pbc=True)
    atoms.set_constraint(FixAtoms(np.setdiff1d(np.arange(len(atoms)), wet.solute)))
    expected = model.forces(wet.positions, wet.box, topology=wet.topology, atoms=wet.solute)[wet.solute]
    scale = units.ANGSTROM / units.EV
    settings = {"mode": "solute", "targets": wet.solute}
    atoms.calc = forcefield_ml.ForcefieldMLCalculator(model, topology=wet.topology, **settings)
    found = atoms.get_forces(apply_constraint=False)[wet.solute] / scale
    assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
    with pytest.raises(ForceModeError, match=r"knows atoms by their bonds.*pass topology="):
        forcefield_ml.ForcefieldMLCalculator(model, **settings)
    for wrong, told in ((without_bonds(wet.topology), "it has 0"), (_turned(wet.topology), "other elements")):
        atoms.calc = forcefield_ml.ForcefieldMLCalculator(model, topology=wrong, **settings)
        with pytest.raises(TopologyError, match=told):
            atoms.get_forces()
    fewer = atoms[:-3]
    fewer.calc = forcefield_ml.ForcefieldMLCalculator(model, topology=wet.topology, **settings)
    with pytest.raises(TopologyError, match=f"{len(atoms)} atoms, ASE's Atoms {len(fewer)}"):
        fewer.get_forces()


def test_unseen_surroundings_far_away_are_no_reason_to_refuse(dry: Molecules, tmp_path: Path) -> None:
    """Where all beyond one bond is like nothing in training, the model feels what it knows of one bond."""
    torch.manual_seed(2)
    model = models.build({**CONFIGS["fast"], "type_depth": 3, "n_types": 128}).eval()
    known = AtomTypes.of(10 * [numbers(dry.topology)], depth=3, room=128)
    near = AtomTypes(*(values[known.depths == 1] for values in known))
    expected = None
    for name, types in (("near", near), ("far", known._replace(hashes=np.where(known.depths == 1, known.hashes, 0)))):
        (embedding,) = (part for part in model.modules() if isinstance(part, TypeEmbedding))
        for buffer in embedding.buffers():
            buffer.zero_()
        embedding.set_types(types)
        deployed = forcefield_ml.load(bundle.write(model, make_card(model), tmp_path / f"{name}.pt"))
        forces = deployed.forces(dry.positions, topology=dry.topology)
        expected = forces if expected is None else expected
        assert np.array_equal(forces, expected) and np.isfinite(forces).all()
