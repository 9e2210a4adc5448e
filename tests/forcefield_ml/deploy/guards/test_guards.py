"""Topologies and simulations that would run and be wrong are refused before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import openmm
import pytest
from deploy_helpers import Deployed, Molecules, bare_system, context_of
from openmm import app, unit

import forcefield_ml
from forcefield_ml.deploy.force.binding import FEWEST_HYDROGENS
from forcefield_ml.errors import BoxError, ForceModeError, TopologyError

pytestmark = pytest.mark.filterwarnings("ignore:this model has forces but no energy")


def without(molecules: Molecules, unwanted: Callable[[app.topology.Atom], bool]) -> app.Topology:
    """Return the topology less some atoms."""
    modeller = app.Modeller(molecules.topology, molecules.positions * unit.nanometer)
    modeller.delete([atom for atom in molecules.topology.atoms() if unwanted(atom)])
    return modeller.topology


def test_missing_hydrogens_are_named(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """A structure without hydrogens, or one residue without them, is refused; the residue is named."""
    model = forcefield_ml.load(deployed["fast"].path)
    bare = without(wet, lambda atom: atom.element.symbol == "H")
    with pytest.raises(TopologyError, match=r"LYS351 \(0 of at least 12\).*addHydrogens"):
        model.create_force(bare)
    one = without(wet, lambda atom: atom.residue.name == "ASP" and atom.name == "HA")
    with pytest.raises(TopologyError, match=r"ASP352 \(3 of at least 4\)"):
        model.create_force(one)
    water = next(r for r in wet.topology.residues() if r.name == "HOH")
    dehydrated = without(wet, lambda atom: atom.residue == water and atom.name == "H2")
    with pytest.raises(TopologyError, match=r"HOH.* \(1 of at least 2\)"):
        model.create_force(dehydrated)


def test_fewest_hydrogens_are_those_of_openmm() -> None:
    """The table agrees with OpenMM's definitions: hydrogens in mid-chain that no variant of AMBER's can lack."""
    import xml.etree.ElementTree as ElementTree
    from pathlib import Path

    tree = ElementTree.parse(Path(app.__file__).parent / "data" / "hydrogens.xml")
    for residue in tree.getroot().findall("Residue"):
        name = str(residue.get("name"))
        if name not in FEWEST_HYDROGENS:
            continue
        variants = [str(v.get("name")) for v in residue.findall("Variant") if v.get("name") != "HIN"] or [name]
        counts = {
            variant: sum(
                h.get("terminal") in (None, "-C")
                and (h.get("variant") is None or variant in str(h.get("variant")).split(","))
                for h in residue.findall("H")
            )
            for variant in variants
        }
        assert FEWEST_HYDROGENS[name] <= min(counts.values()), (name, counts)
        assert FEWEST_HYDROGENS[name] >= min(counts.values()) - 1, (name, counts)


def test_unknown_elements_are_named(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """An element the model never saw is refused, with its residue and the elements that are known."""
    topology = without(wet, lambda atom: False)
    chain = topology.addChain("Z")
    topology.addAtom("ZN", app.Element.getBySymbol("Zn"), topology.addResidue("ZN", chain, "7"))
    with pytest.raises(TopologyError, match=r"does not know Zn \(in Z:ZN7\).*H, C, N, O"):
        forcefield_ml.load(deployed["fast"].path).create_force(topology)
    topology.addAtom("M", None, topology.addResidue("HO4", chain, "8"))
    with pytest.raises(TopologyError, match="virtual sites"):
        forcefield_ml.load(deployed["fast"].path).create_force(topology)


def test_atoms_must_suit(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """An index out of range, an empty choice, solvent for a solute model, and a topology without protein."""
    model = forcefield_ml.load(deployed["fast"].path)
    n_atoms = wet.topology.getNumAtoms()
    with pytest.raises(TopologyError, match=str(n_atoms - 1)):
        model.create_force(wet.topology, atoms=[0, n_atoms])
    with pytest.raises(TopologyError, match="empty"):
        model.create_force(wet.topology, atoms=[])
    with pytest.raises(ForceModeError, match="solute atoms only"):
        model.create_force(wet.topology, atoms=range(n_atoms))
    with pytest.raises(TopologyError, match="no residue is an amino acid"):
        model.create_force(without(wet, lambda atom: atom.index in wet.solute))


@pytest.mark.parametrize("shape", ["low", "sheared"])
def test_small_boxes(shape: str, wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """A box lower than twice the cutoff is refused, also where only the shear makes it low."""
    model = forcefield_ml.load(deployed["fast"].path)
    cutoff = float(model.card["neighbours"]["cutoff"])
    topology = without(wet, lambda atom: False)
    edge = 2 * cutoff + 0.01
    vectors = {
        "low": [[2, 0, 0], [0, 2, 0], [0, 0, edge - 0.02]],
        "sheared": [[edge, 0, 0], [0.45 * edge, edge, 0], [-0.45 * edge, 0.45 * edge, edge]],
    }[shape]
    topology.setPeriodicBoxVectors([openmm.Vec3(*row) for row in vectors] * unit.nanometer)
    with pytest.raises(BoxError, match="twice the cutoff"):
        model.create_force(topology)
    upright = np.diag([edge] * 3)
    topology.setPeriodicBoxVectors([openmm.Vec3(*row) for row in upright] * unit.nanometer)
    model.create_force(topology)  # control


def test_a_vacuum_is_told(wet: Molecules, dry: Molecules) -> None:
    """Of a model that learnt in water; in water there is nothing to tell."""
    model = forcefield_ml.load("amber14-fast")
    with pytest.warns(UserWarning, match="there is no water, but the model was trained on molecules in water"):
        model.create_force(dry.topology)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.create_force(wet.topology)


def test_check_refuses_the_minimiser(wet: Molecules, forcefield: app.ForceField, deployed: dict[str, Deployed]) -> None:
    """After check, minimizeEnergy says why it cannot work and what can; a simulation of MM alone is left as it is."""

    def simulation_of(system: openmm.System) -> app.Simulation:
        platform = openmm.Platform.getPlatformByName("CPU")
        simulation = app.Simulation(wet.topology, system, openmm.VerletIntegrator(0.001), platform)
        simulation.context.setPositions(wet.positions)
        return simulation

    system = forcefield.createSystem(
        wet.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.8, constraints=None, rigidWater=False
    )
    plain = simulation_of(system)
    with pytest.warns(UserWarning, match="holds no model, so nothing was checked"):
        forcefield_ml.check(plain).minimizeEnergy(maxIterations=1)
    forcefield_ml.load(deployed["fast"].path).add_to_system(system, wet.topology)
    simulation = simulation_of(system)
    assert forcefield_ml.check(simulation) is simulation
    with pytest.raises(ForceModeError, match=r"fire\.minimise"):
        simulation.minimizeEnergy(maxIterations=1)


@pytest.mark.parametrize("backend", ["pythonforce", "torchforce"])
def test_one_warning_about_the_energy(backend: str, dry: Molecules, deployed: dict[str, Deployed]) -> None:
    """A Context with a model without an energy says once that minimisers need one; OpenMM's moves nothing."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        system = bare_system(dry)
        system.addForce(forcefield_ml.load(deployed["fast"].path).create_force(dry.topology, backend=backend))
        context = context_of(system, dry, "Reference")
        before = context.getState(positions=True).getPositions(asNumpy=True)._value
        openmm.LocalEnergyMinimizer.minimize(context, 1.0, 20)
    assert [str(w.message)[:43] for w in caught] == ["this model has forces but no energy: LocalE"]
    after = context.getState(positions=True).getPositions(asNumpy=True)._value
    assert np.allclose(after, before, atol=1e-6), "OpenMM's minimiser works: drop the warning"
