"""A model that brings bonded terms: one force in every door, of the right terms, or a refusal that says why."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
import torch
from deploy_helpers import CONFIGS, Deployed, Molecules, bare_system, context_of, forces_of
from molecule_files import Molecule, chosen_table, openmm_forces, openmm_system
from openmm import app

import forcefield_ml
from forcefield_ml import models, units
from forcefield_ml.bonded.bound import BoundTerms
from forcefield_ml.deploy.force import openmm_force
from forcefield_ml.deploy.force.binding import Binding, bind, bonded
from forcefield_ml.deploy.force.evaluator import Evaluator
from forcefield_ml.deploy.model import DeployedModel
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.model_file.archive import replace_card
from forcefield_ml.deploy.model_file.card import make_card
from forcefield_ml.errors import ConfigError, ForceModeError, TopologyError

BACKENDS = ("pythonforce", "torchforce")
ONE_SLOW = ("pythonforce", pytest.param("torchforce", marks=pytest.mark.slow))
EXACT = 1e-4
"""L2 over the system, relative."""

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


def told(topology: app.Topology, chosen: list[int] | None = None) -> Molecule:
    """Return what the topology of some atoms tells."""
    atoms = list(topology.atoms())
    place = {index: k for k, index in enumerate(range(len(atoms)) if chosen is None else chosen)}
    bonds = [(place[one.index], place[two.index]) for one, two in topology.bonds() if one.index in place]
    return Molecule(np.array([atoms[index].element.atomic_number for index in place]), np.array(bonds).reshape(-1, 2))


def made(molecule: Molecule, folder: Path, **card: Any) -> tuple[torch.nn.Module, DeployedModel]:
    """Return a model of random weights with terms of some molecules, eager and from its file."""
    torch.manual_seed(2)
    head = card.pop("head", "vector")
    model = models.build({**CONFIGS["fast"], "head": head, "bonded": True}).eval()
    model.bonded.set_table(chosen_table(molecule, seed=1), 30.0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.bonded.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.set_scale(50.0)
    path = bundle.write(model, make_card(model, **card), folder / "model.pt")
    return model, forcefield_ml.load(path)


@pytest.fixture(scope="module")
def solute(wet: Molecules, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, DeployedModel]:
    """A model of solute atoms whose terms are those of the tripeptide: it has never seen a bond of water."""
    return made(told(wet.topology, wet.solute), tmp_path_factory.mktemp("solute"))


@pytest.fixture(scope="module")
def whole(wet: Molecules, tmp_path_factory: pytest.TempPathFactory) -> tuple[torch.nn.Module, DeployedModel]:
    """A conservative model of all atoms, which knows water, too."""
    return made(told(wet.topology), tmp_path_factory.mktemp("whole"), target_atoms="all", head="energy")


def expected_forces(model: torch.nn.Module, molecules: Molecules, chosen: np.ndarray | None = None) -> np.ndarray:
    """Return the network's forces plus OpenMM's own of all terms, (N, 3); `chosen` atoms move the terms that count."""
    molecule = told(molecules.topology)
    positions = torch.tensor(molecules.positions, dtype=torch.float32)
    box = None if molecules.box is None else torch.tensor(molecules.box, dtype=torch.float32)
    with torch.no_grad():
        sizes = [len(positions)] * model.capabilities.n_layers
        network = model(models.Atoms(torch.from_numpy(molecule.species)), model.search()(positions, box), sizes).forces
    parameters = model.bonded.table().parameters(*molecule, chosen)
    terms = openmm_forces(openmm_system(parameters, molecule.species, molecules.box), molecules.positions)
    return network.double().numpy() + terms


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("structure", ["dry", "wet", "triclinic"])
def test_one_force_in_every_door(
    structure: str, solute: tuple[torch.nn.Module, DeployedModel], request: pytest.FixtureRequest
) -> None:
    """forces(), both OpenMM forces and ASE give the network plus what OpenMM computes for its terms; water feels none.

    Terms of water, which the model does not know, do not matter where water is not to be moved.
    """
    from ase import Atoms
    from ase.constraints import FixAtoms

    molecules: Molecules = request.getfixturevalue(structure)
    eager, model = solute
    expected = expected_forces(eager, molecules)[molecules.solute]
    network = expected_forces(eager, molecules, np.zeros(len(molecules.positions), dtype=bool))[molecules.solute]
    assert relative(network, expected) > 0.5, "the control: without terms it is another force"
    assert relative(model.forces(molecules.positions, molecules.box, topology=molecules.topology), expected) < EXACT
    others = np.setdiff1d(np.arange(len(molecules.positions)), molecules.solute)
    for backend in BACKENDS:
        system = bare_system(molecules)
        system.addForce(model.create_force(molecules.topology, backend=backend))
        context = context_of(system, molecules, "Reference")
        for _ in range(3):
            found = forces_of(context)
            assert relative(found[molecules.solute], expected) < EXACT, backend
            assert not found[others].any()
    symbols = [atom.element.symbol for atom in molecules.topology.atoms()]
    box = None if molecules.box is None else 10 * molecules.box
    atoms = Atoms(symbols, 10 * molecules.positions, cell=box, pbc=box is not None)
    atoms.set_constraint(FixAtoms(others))
    atoms.calc = forcefield_ml.ForcefieldMLCalculator(
        model, mode="solute", targets=molecules.solute, topology=molecules.topology
    )
    found = atoms.get_forces(apply_constraint=False)[molecules.solute] * units.EV / units.ANGSTROM
    assert relative(found, expected) < EXACT


def test_atoms_in_other_images(solute: tuple[torch.nn.Module, DeployedModel], triclinic: Molecules) -> None:
    """Molecules torn by the box, as simulations store them, feel the same."""
    eager, model = solute
    expected = expected_forces(eager, triclinic)[triclinic.solute]
    shifts = np.random.default_rng(0).integers(-1, 2, size=triclinic.positions.shape) @ triclinic.box
    found = model.forces(triclinic.positions + shifts, triclinic.box, topology=triclinic.topology)
    assert relative(found, expected) < EXACT


@pytest.mark.parametrize("backend", BACKENDS)
def test_part_of_the_solute(solute: tuple[torch.nn.Module, DeployedModel], wet: Molecules, backend: str) -> None:
    """Chosen atoms feel all terms that they are in; those that hold none of them are not even computed."""
    eager, model = solute
    chosen = wet.solute[3:20:2]
    mask = np.isin(np.arange(len(wet.positions)), chosen)
    expected = expected_forces(eager, wet)
    system = bare_system(wet)
    system.addForce(model.create_force(wet.topology, atoms=chosen, backend=backend))
    found = forces_of(context_of(system, wet, "Reference"))
    assert relative(found[chosen], expected[chosen]) < EXACT
    assert not found[~mask].any()
    binding = Binding(**asdict(model.tell_bonds(bind(model.card, wet.topology, chosen, False), wet.topology)))
    terms = openmm_force.terms_of(
        bundle.read(model.path)[1], torch.tensor(binding.species), torch.from_numpy(mask), binding.bonds
    )
    kept = [mask[terms._atoms()[kind].numpy()].any(axis=1).all() for kind in ("bond", "angle", "proper", "improper")]
    every = BoundTerms(eager.bonded.table().parameters(*told(wet.topology)))
    assert all(kept) and 0 < terms.n_terms < every.n_terms


@pytest.mark.parametrize("backend", ONE_SLOW)
def test_energy_and_forces_agree(whole: tuple[torch.nn.Module, DeployedModel], dry: Molecules, backend: str) -> None:
    """A displacement changes the energy, of network and terms, by minus force times displacement."""
    context = context_of(whole[1].create_system(dry.topology, backend=backend), dry, "CPU")
    forces = forces_of(context)
    assert relative(forces, expected_forces(whole[0], dry)) < 3e-4
    move = 1e-4 * np.random.default_rng(0).normal(size=forces.shape)
    energies = []
    for sign in (1, -1):
        context.setPositions(dry.positions + sign * move)
        energies.append(context.getState(energy=True).getPotentialEnergy()._value)
    assert (energies[1] - energies[0]) / 2 == pytest.approx(float((forces * move).sum()), rel=5e-3)


def test_box_may_change_with_an_energy(whole: tuple[torch.nn.Module, DeployedModel], wet: Molecules) -> None:
    """A barostat's trial box reaches the terms: forces are those of a model bound to that box."""
    model = whole[1]
    context = context_of(model.create_system(wet.topology, backend="pythonforce"), wet, "Reference")
    forces_of(context)
    box = 1.01 * wet.box
    context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in box))
    context.setPositions(wet.positions)
    expected = model.forces(wet.positions, box, topology=wet.topology)
    assert relative(forces_of(context), expected) < 3e-4


def test_ase_has_the_energy_of_the_terms(whole: tuple[torch.nn.Module, DeployedModel], dry: Molecules) -> None:
    """Energies of ASE and OpenMM differ between two structures by the same."""
    from ase import Atoms

    model = whole[1]
    context = context_of(model.create_system(dry.topology, backend="pythonforce"), dry, "Reference")
    atoms = Atoms([a.element.symbol for a in dry.topology.atoms()], 10 * dry.positions)
    atoms.calc = forcefield_ml.ForcefieldMLCalculator(model, topology=dry.topology)
    energies = []
    for scale in (1.0, 1.01):
        context.setPositions(scale * dry.positions)
        atoms.positions = 10 * scale * dry.positions
        openmm_energy = context.getState(energy=True).getPotentialEnergy()._value
        energies.append((openmm_energy, atoms.get_potential_energy() * units.EV))
    (one, same), (other, alike) = energies
    assert abs(other - one) > 10 and alike - same == pytest.approx(other - one, rel=1e-5)


def test_system_xml_keeps_the_terms(solute: tuple[torch.nn.Module, DeployedModel], wet: Molecules) -> None:
    """A System written and read gives the same forces, bit for bit; the bonds are in it as plain data."""
    system = bare_system(wet)
    system.addForce(solute[1].create_force(wet.topology, backend="pythonforce"))
    before = forces_of(context_of(system, wet, "Reference"))
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    assert np.array_equal(forces_of(context_of(again, wet, "Reference")), before)
    assert relative(before[wet.solute], expected_forces(solute[0], wet)[wet.solute]) < EXACT


def test_a_binding_from_before_there_were_bonds(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """A stored force of a model without terms has no bonds in it, and still works."""
    model = forcefield_ml.load(deployed["fast"].path)
    plain = asdict(bind(model.card, wet.topology, None, False))
    assert plain.pop("bonds") == []
    force = openmm.PythonForce(openmm_force.ModelCallable(str(model.path), model.sha256, plain, False, "cpu"))
    force.setUsesPeriodicBoundaryConditions(True)
    system = bare_system(wet)
    system.addForce(force)
    found = forces_of(context_of(system, wet, "Reference"))[wet.solute]
    assert relative(found, model.forces(wet.positions, wet.box, topology=wet.topology)) < EXACT


def test_what_does_not_tell_bonds_is_refused(solute: tuple[torch.nn.Module, DeployedModel], wet: Molecules) -> None:
    """Elements alone, in every door: the network's forces without its terms would be wrong without a word."""
    eager, model = solute
    species = told(wet.topology).species
    with pytest.raises(ConfigError, match="knows atoms by their bonds, which species do not tell: give topology="):
        model.forces(wet.positions, wet.box, species=species)
    with pytest.raises(ForceModeError, match=r"knows atoms by their bonds.*pass topology="):
        forcefield_ml.ForcefieldMLCalculator(model, mode="solute", targets=wet.solute)
    with pytest.raises(ConfigError, match=r"brings bonded terms.*forcefield_ml\.bonded\.bound\.bound_terms"):
        Evaluator(eager, torch.from_numpy(species))
    with pytest.raises(ConfigError, match=r"brings bonded terms.*Pass bonds"):
        model.evaluator(torch.from_numpy(species))
    bonds = told(wet.topology).bonds.tolist()
    mask = torch.from_numpy(np.isin(np.arange(len(species)), wet.solute))
    evaluate = model.evaluator(torch.from_numpy(species), mask, bonds)
    found = evaluate(torch.from_numpy(wet.positions), torch.from_numpy(wet.box)).forces.numpy()
    assert relative(found, expected_forces(eager, wet)[wet.solute]) < EXACT


def test_a_topology_without_bonds(solute: tuple[torch.nn.Module, DeployedModel], wet: Molecules) -> None:
    """Terms that a topology does not tell would be lacking without a word: atoms without any bond are refused by name.

    Water without bonds may stay where it is not to be moved.
    """
    model = solute[1]
    bare = app.Topology()
    bare.setPeriodicBoxVectors(wet.topology.getPeriodicBoxVectors())
    copies, chain = {}, bare.addChain("A")
    for residue in wet.topology.residues():
        copy = bare.addResidue(residue.name, chain, residue.id)
        for atom in residue.atoms():
            copies[atom] = bare.addAtom(atom.name, atom.element, copy)
    with pytest.raises(TopologyError, match=r"A:LYS351 N \(atom 0\).* no bond.*it has 0\).*createStandardBonds"):
        model.create_force(bare)
    with pytest.raises(TopologyError, match="no bond"):
        model.forces(wet.positions, wet.box, topology=bare)
    for one, other in wet.topology.bonds():
        if one.index in wet.solute:
            bare.addBond(copies[one], copies[other])
    found = model.forces(wet.positions, wet.box, topology=bare)
    assert np.array_equal(found, model.forces(wet.positions, wet.box, topology=wet.topology))
    ions = [atom.index for atom in wet.topology.atoms() if atom.residue.name in ("NA", "CL")]
    binding = bind(model.card, wet.topology, wet.solute, False)
    everything = replace(binding, targets=sorted([*binding.targets, *ions]))
    assert ions and bonded(everything, wet.topology, None, model.bonded_table).bonds, "ions have none"


def test_unknown_bonds_name_their_atoms(solute: tuple[torch.nn.Module, DeployedModel], dry: Molecules) -> None:
    """A bond of elements that training has not seen would have no stiffness at all: refused, the atoms named."""
    model = solute[1]
    atoms = list(dry.topology.atoms())
    strange = app.Topology()
    chain, copies = strange.addChain("A"), {}
    for residue in dry.topology.residues():
        copy = strange.addResidue(residue.name, chain, residue.id)
        for atom in residue.atoms():
            copies[atom] = strange.addAtom(atom.name, atom.element, copy)
    for one, other in dry.topology.bonds():
        strange.addBond(copies[one], copies[other])
    oxygens = [atom for atom in atoms if atom.element.symbol == "O"]
    strange.addBond(copies[oxygens[0]], copies[oxygens[-1]])
    one, other = (rf"A:\w+ {atom.name} \(atom {atom.index}\)" for atom in (oxygens[0], oxygens[-1]))
    told_so = (
        rf"1 bond terms are of elements that the model has seen bonded so never or too rarely \({one}-{other}\)\. Leave"
    )
    with pytest.raises(TopologyError, match=told_so):
        model.create_force(strange)
    with pytest.raises(TopologyError, match=told_so):
        model.forces(dry.positions, topology=strange)


def test_water_that_shall_move_must_be_known(solute: tuple[torch.nn.Module, DeployedModel], wet: Molecules) -> None:
    """The same terms with all atoms as targets: water's are refused, unless water is not to be moved."""
    model = solute[1]
    bindings = [bind(model.card, wet.topology, atoms, False) for atoms in (wet.solute, None)]
    assert bonded(bindings[0], wet.topology, None, model.bonded_table).bonds
    everything = replace(bindings[1], targets=bindings[1].inputs)
    with pytest.raises(TopologyError, match=r"bond terms are of elements .*HOH\d+ O .* more\)"):
        bonded(everything, wet.topology, None, model.bonded_table)


@pytest.mark.parametrize("backend", ONE_SLOW)
def test_solute_that_is_seen_alone(
    solute: tuple[torch.nn.Module, DeployedModel], wet: Molecules, backend: str, tmp_path: Path
) -> None:
    """A model of the solute alone: its numbers are not those of the whole system, and terms go by them."""
    eager, model = solute
    card = make_card(eager, predicts="solute_alone")
    path = tmp_path / "alone.pt"
    path.write_bytes(replace_card(model.path.read_bytes(), json.dumps(card), "model.pt"))
    moved = app.Topology()  # water first: the solute's atoms have other numbers alone than in the system
    chains = {chain: moved.addChain(chain.id) for chain in reversed(list(wet.topology.chains()))}
    copies, order = {}, []
    for chain, copy in chains.items():
        for residue in chain.residues():
            other = moved.addResidue(residue.name, copy, residue.id)
            for atom in residue.atoms():
                copies[atom] = moved.addAtom(atom.name, atom.element, other)
                order.append(atom.index)
    for one, two in wet.topology.bonds():
        moved.addBond(copies[one], copies[two])
    assert order[: len(wet.solute)] != wet.solute
    molecule, places = told(wet.topology, wet.solute), wet.positions[wet.solute]
    positions = torch.tensor(places, dtype=torch.float32)
    with torch.no_grad():
        sizes = [len(places)] * eager.capabilities.n_layers
        atoms = models.Atoms(torch.from_numpy(molecule.species))
        network = eager(atoms, eager.search()(positions, None), sizes).forces.double().numpy()
    parameters = eager.bonded.table().parameters(*molecule)
    expected = network + openmm_forces(openmm_system(parameters, molecule.species), places)
    alone = forcefield_ml.load(path)
    assert relative(alone.forces(wet.positions[order], topology=moved), expected) < EXACT
    solute_now = np.flatnonzero(np.isin(order, wet.solute))
    system = openmm.System()
    for atom in moved.atoms():
        system.addParticle(atom.element.mass)
    system.addForce(alone.create_force(moved, backend=backend))
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(wet.positions[order])
    assert relative(forces_of(context)[solute_now], expected) < EXACT


@pytest.mark.slow
def test_types_and_terms_together(wet: Molecules, tmp_path: Path) -> None:
    """A network of atom types is told codes, its terms elements: both from one topology."""
    from forcefield_ml.nn.embedding import set_types, types_of

    torch.manual_seed(4)
    molecule = told(wet.topology)
    model = models.build({**CONFIGS["fast"], "type_depth": 2, "n_types": 64, "bonded": True}).eval()
    set_types(model, 10 * [molecule])
    model.bonded.set_table(chosen_table(molecule), 10.0)
    model.set_scale(50.0)
    deployed = forcefield_ml.load(bundle.write(model, make_card(model), tmp_path / "model.pt"))
    codes = torch.from_numpy(types_of(model).codes(*molecule))
    positions, box = torch.tensor(wet.positions).float(), torch.tensor(wet.box).float()
    with torch.no_grad():
        network = model(models.Atoms(codes), model.search()(positions, box), [len(codes)] * 2).forces.double().numpy()
    parameters = model.bonded.table().parameters(*molecule)
    terms = openmm_forces(openmm_system(parameters, molecule.species, wet.box), wet.positions)
    expected = (network + terms)[wet.solute]
    system = bare_system(wet)
    system.addForce(deployed.create_force(wet.topology, backend="pythonforce"))
    assert relative(forces_of(context_of(system, wet, "Reference"))[wet.solute], expected) < EXACT
