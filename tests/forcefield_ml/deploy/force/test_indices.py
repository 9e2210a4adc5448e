"""Which atoms are meant by indices, masks and OpenMM's atoms, and what is refused, wherever atoms are chosen."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deploy_helpers import Deployed, Molecules, eager_forces, make_model, write_model
from openmm import app

import forcefield_ml
from forcefield_ml.deploy.force.binding import bind
from forcefield_ml.deploy.force.indices import read_indices
from forcefield_ml.errors import ConfigError, ForceModeError, TopologyError

MASK = [False, True, False, True, True]

GOOD: dict[str, Any] = {
    "list": [4, 1, 3],
    "twice": [1, 3, 4, 4],
    "set": {1, 3, 4},
    "iterator": iter([4, 3, 1]),
    "int32": np.array([3, 4, 1], dtype=np.int32),
    "numpy scalars": [np.int64(1), np.uint8(3), 4],
    "tensor": torch.tensor([4, 1, 3]),
    "tensor scalars": list(torch.tensor([4, 1, 3])),
    "mask": MASK,
    "numpy mask": np.array(MASK),
    "numpy booleans": [np.bool_(value) for value in MASK],
    "tensor mask": torch.tensor(MASK),
    "tensor booleans": list(torch.tensor(MASK)),
}

BAD: dict[str, tuple[Any, str]] = {
    "empty": ([], "empty"),
    "no floats": (np.array([]), "empty"),
    "empty mask": ([False] * 5, "empty"),
    "short mask": ([True, False], "a mask of 2 booleans, but there are 5 atoms"),
    "long mask": (np.ones(6, dtype=bool), "a mask of 6 booleans, but there are 5 atoms"),
    "mixed": ([True, 3], "booleans beside other values"),
    "negative": ([2, -1], "the index -1, but there are atoms 0 to 4"),
    "too large": ([0, 5], "the index 5, but there are atoms 0 to 4"),
    "floats": (np.array([1.0, 2.0]), "holds 1.0, a float"),
    "a float": ([1, 2.7], "holds 2.7, a float"),
    "a float scalar": ([np.float32(2.5)], "holds 2.5, a float"),
    "float tensor": (torch.tensor([0.5]), "holds 0.5, a float"),
    "column": (np.array([[1], [2]]), "a list; .* one dimension"),
    "square mask": (np.ones((5, 5), dtype=bool), "a list; .* one dimension"),
    "text": ("protein", "got 'protein'"),
    "texts": (["1"], "holds '1', a str"),
    "number": (3, "got 3"),
    "0-d": (np.array(3), "must be a list"),
    "None inside": ([None], "holds None"),
}


@pytest.mark.parametrize("chosen", GOOD)
def test_good(chosen: str) -> None:
    """Every way to name atoms 1, 3 and 4 of five."""
    found = read_indices(GOOD[chosen], 5)
    assert found == [1, 3, 4] and all(type(value) is int for value in found)


@pytest.mark.parametrize("chosen", BAD)
def test_bad(chosen: str) -> None:
    """What names no atoms is refused with the argument's name, the value, and what is allowed."""
    value, told = BAD[chosen]
    with pytest.raises(TopologyError, match=rf"^selection .*({told})"):
        read_indices(value, 5, "selection")


def test_atoms_of_openmm(dry: Molecules) -> None:
    """OpenMM's atoms are taken by their index, as Modeller.delete takes them."""
    atoms = list(dry.topology.atoms())
    assert read_indices([atoms[7], atoms[2], 5], len(atoms)) == [2, 5, 7]


def test_binding(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """A force made with a mask acts on the atoms of the mask, not on atoms 0 and 1."""
    card = forcefield_ml.load(deployed["fast"].path).card
    mask = np.zeros(len(wet.positions), dtype=bool)
    mask[[3, 30, 31]] = True
    assert bind(card, wet.topology, mask, False).targets == [3, 30, 31]
    with pytest.raises(TopologyError, match=r"atoms holds 3\.0, a float"):
        bind(card, wet.topology, np.array([3.0]), False)


@pytest.mark.parametrize("predicts", ["total", "solute_alone"])
@pytest.mark.parametrize("by", ["topology", "species"])
def test_forces_read_atoms(predicts: str, by: str, dry: Molecules, tmp_path: Path) -> None:
    """DeployedModel.forces takes a mask and refuses atoms that do not exist."""
    model = forcefield_ml.load(write_model(tmp_path, predicts=predicts))
    given = {"topology": dry.topology, "species": [atom.element.atomic_number for atom in dry.topology.atoms()]}
    n_atoms = len(dry.positions)

    def forces(atoms: Any) -> np.ndarray:
        return model.forces(dry.positions, atoms=atoms, **{by: given[by]})

    for atoms, told in (([-1], "index -1"), ([10**6], "index 1000000"), ([], "empty"), ([0.0], r"holds 0\.0")):
        with pytest.raises(TopologyError, match=told):
            forces(atoms)
    mask = np.ones(n_atoms, dtype=bool)
    if predicts == "total":
        mask[::2] = False
    expected = eager_forces(make_model("fast"), dry)[mask]
    assert np.abs(forces(mask) - expected).max() < 1e-4 * np.abs(expected).max()


def _copy(topology: app.Topology, positions: np.ndarray) -> app.Topology:
    modeller = app.Modeller(topology, positions)
    modeller.delete([])  # Modeller keeps the topology that it is given until it deletes something
    return modeller.topology


def _without_a_hydrogen(topology: app.Topology, positions: np.ndarray) -> tuple[app.Topology, np.ndarray]:
    modeller = app.Modeller(topology, positions)
    lost = next(a for a in modeller.topology.atoms() if a.element.symbol == "H" and a.residue.name == "HOH")
    modeller.delete([lost])
    return modeller.topology, np.delete(positions, lost.index, axis=0)


def _with_a_ligand(topology: app.Topology, positions: np.ndarray) -> tuple[app.Topology, np.ndarray]:
    grown = _copy(topology, positions)
    grown.addAtom("C1", app.Element.getBySymbol("C"), grown.addResidue("LIG", grown.addChain("L")))
    return grown, np.concatenate([positions, positions[:1] + 0.5])


@pytest.mark.parametrize(
    "change, told", [(_without_a_hydrogen, "hydrogens are missing"), (_with_a_ligand, "not trained on L:LIG")]
)
def test_forces_check_the_topology(
    change: Callable[..., Any], told: str, wet: Molecules, deployed: dict[str, Deployed]
) -> None:
    """What a force of OpenMM refuses, DeployedModel.forces refuses."""
    model = forcefield_ml.load(deployed["fast"].path)
    topology, positions = change(wet.topology, wet.positions)
    with pytest.raises(TopologyError, match=told):
        model.forces(positions, wet.box, topology=topology)


def test_forces_on_water(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """A model of solute atoms gives no forces on water; a ligand may be let pass by name, of a topology only."""
    model = forcefield_ml.load(deployed["fast"].path)
    water = wet.solute[-1] + 1
    with pytest.raises(ForceModeError, match="solute atoms only"):
        model.forces(wet.positions, wet.box, topology=wet.topology, atoms=[0, water])
    topology, positions = _with_a_ligand(wet.topology, wet.positions)
    found = model.forces(positions, wet.box, topology=topology, allow_residues=["LIG"])
    assert found.shape == (len(wet.solute), 3)
    with pytest.raises(ConfigError, match="one for each atom"):
        model.forces(wet.positions, wet.box, topology=topology, allow_residues=["LIG"])
    with pytest.raises(ConfigError, match="allow_residues"):
        model.forces(positions[:1], species=[6], allow_residues=["LIG"])


def test_the_box_of_the_topology_is_not_looked_at(dry: Molecules, deployed: dict[str, Deployed]) -> None:
    """PDB files of molecules in vacuum often hold a box of 0.1 nm, which forces() in vacuum has no use for."""
    topology = _copy(dry.topology, dry.positions)
    topology.setUnitCellDimensions((0.1, 0.1, 0.1))
    found = forcefield_ml.load(deployed["fast"].path).forces(dry.positions, topology=topology)
    expected = eager_forces(deployed["fast"].eager, dry)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
