from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from openmm import app

from forcefield_ml.deploy.guards.stability import Limits, check_state, kinetic_temperature, torn_bonds
from forcefield_ml.units import BOLTZMANN


def test_temperature_of_maxwell_velocities() -> None:
    """Velocities drawn at 300 K, masses mixed, give 300 K within the standard error."""
    random = np.random.default_rng(0)
    masses = random.choice([1.0, 12.0, 16.0], 20000)
    velocities = random.normal(size=(20000, 3)) * np.sqrt(BOLTZMANN * 300 / masses)[:, None]
    assert kinetic_temperature(velocities, masses) == pytest.approx(300, abs=5 * 300 * np.sqrt(2 / 60000))
    assert kinetic_temperature(velocities[:0], masses[:0]) == 0.0


@pytest.mark.parametrize(
    ("positions", "forces", "temperatures", "kind", "atom"),
    [
        ((3, np.nan), None, {}, "positions", 3),
        (None, (2, np.inf), {}, "force", 2),
        (None, (4, 2e5), {}, "force", 4),
        (None, None, {"solute": 1200.0}, "temperature", 0),
        (None, None, {"solute": float("nan")}, "temperature", 0),
    ],
)
def test_sees_what_is_absurd(positions, forces, temperatures, kind, atom) -> None:
    """Each kind of absurdity is told with its kind and its worst atom first."""
    x, f = np.zeros((6, 3)), np.zeros((6, 3))
    f[0] = 1.0
    for array, change in ((x, positions), (f, forces)):
        if change is not None:
            array[change[0], 1] = change[1]
    event = check_state(7, x, f, temperatures, Limits())
    assert event is not None and (event.kind, event.step) == (kind, 7)
    assert event.atoms[0] == f"atom {atom}"


def test_lets_thermal_states_pass() -> None:
    """Nothing is wrong with forces and temperatures as they are at 300 K."""
    random = np.random.default_rng(1)
    forces = random.normal(size=(1000, 3)) * 1500
    assert check_state(0, random.normal(size=(1000, 3)), forces, {"solute": 330.0}, Limits()) is None


def test_names_atoms_of_the_group_that_is_too_hot() -> None:
    """The largest force of all is on an atom of another group; the event names the group's own worst."""
    forces = np.zeros((4, 3))
    forces[:, 0] = 1, 5, 3, 9
    members = {"solute": np.array([True, False, True, False])}
    event = check_state(0, np.zeros((4, 3)), forces, {"solute": 2000.0}, Limits(), None, members)
    assert event is not None and event.atoms == ["atom 2", "atom 0"]


def water(box: float | None = None) -> Any:
    """A topology of one water, in a cube if wanted."""
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    oxygen, *hydrogens = [
        topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in ("O", "H1", "H2")
    ]
    for hydrogen in hydrogens:
        topology.addBond(oxygen, hydrogen)
    if box is not None:
        topology.setPeriodicBoxVectors(np.eye(3) * box)
    return topology


@pytest.mark.parametrize(("length", "fires"), [(0.12, False), (0.154, False), (0.157, True), (0.9, True)])
def test_a_torn_bond(length: float, fires: bool) -> None:
    """O-H at 1.6 of the sum of covalent radii, 0.155 nm; forces and temperature are those of a good state."""
    positions = np.array([[0.0, 0.0, 0.0], [length, 0.0, 0.0], [0.0, 0.096, 0.0]])
    event = check_state(3, positions, np.zeros((3, 3)), {"system": 300.0}, Limits(), water())
    assert (event is not None) == fires
    if event is not None:
        assert (event.kind, event.step, event.atoms) == ("bond", 3, ["HOH1:O (0)", "HOH1:H1 (1)"])
        assert f"1 bond is torn, the longest to {length:.3f} nm" in event.reason
    assert check_state(3, positions, np.zeros((3, 3)), {}, Limits(torn_bonds=False), water()) is None


def test_a_bond_across_the_box_is_whole() -> None:
    """Atoms on both sides of a periodic box are as near as their nearest copies; without a box they are not."""
    positions = np.array([[0.01, 0.0, 0.0], [1.96, 0.0, 0.0], [0.01, 0.096, 0.0]])
    assert torn_bonds(positions, water(2.0)) == []
    assert torn_bonds(positions, water()) == [(pytest.approx(1.95), 0, 1)]
    assert torn_bonds(positions + np.array([0.3, 5.0, -4.0]), water(2.0)) == []
    assert torn_bonds(positions, None) == []
