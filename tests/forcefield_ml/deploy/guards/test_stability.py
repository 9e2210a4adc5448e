from __future__ import annotations

import numpy as np
import pytest

from forcefield_ml.deploy.guards.stability import Limits, check_state, kinetic_temperature
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
