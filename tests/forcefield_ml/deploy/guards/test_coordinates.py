"""Positions in another unit, type or shape are refused; what a physicist would pass is taken."""

from __future__ import annotations

import numpy as np
import pytest
from deploy_helpers import Deployed, Molecules
from openmm import Vec3, unit

import forcefield_ml
from forcefield_ml.deploy.guards.coordinates import check_unit, read_positions
from forcefield_ml.errors import ConfigError

WATER = np.array([[0, 0, 0], [0.0957, 0, 0], [-0.024, 0.0927, 0]])


def test_what_is_taken() -> None:
    """Float arrays, lists and Quantities of any length, single or double, come out in nm as float64."""
    for given in (
        WATER,
        WATER.tolist(),
        WATER * unit.nanometer,
        10 * WATER * unit.angstrom,
        [Vec3(*row) for row in WATER] * unit.nanometer,
        WATER.astype(np.float32),
    ):
        assert np.allclose(read_positions(given), WATER, atol=1e-7) and read_positions(given).dtype == np.float64


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (WATER.astype(np.float16), "float16 .too coarse"),
        (np.array([[0, 0, 0], [1, 0, 0]]), "int64 .whole numbers"),
        (WATER.astype(complex), "no real numbers"),
        ([["a", "b", "c"]], "no real numbers"),
        (WATER.ravel(), r"shape \(9,\)"),
        (WATER * unit.picosecond, "no array of lengths"),
        ([[0.0, 1.0, 2.0], [1.0, 2.0]], "no array of lengths"),
    ],
)
def test_what_is_refused(given: object, told: str) -> None:
    """Half precision, whole numbers, other shapes and other dimensions are refused with what was found."""
    with pytest.raises(ConfigError, match=told):
        read_positions(given)


def test_units_are_guessed_from_hydrogens(wet: Molecules, deployed: dict[str, Deployed]) -> None:
    """Ångström given as nm, and nm divided by ten once more, are refused; a lone ion or heavy atoms say nothing."""
    species = [atom.element.atomic_number for atom in wet.topology.atoms()]
    check_unit(wet.positions, species)
    with pytest.raises(ConfigError, match=r"unit\.angstrom"):
        check_unit(10 * wet.positions, species)
    with pytest.raises(ConfigError, match="divided by ten twice"):
        check_unit(0.1 * wet.positions, species)
    check_unit(10 * wet.positions, [11] * len(species))
    model = forcefield_ml.load(deployed["fast"].path)
    with pytest.raises(ConfigError, match=r"unit\.angstrom"):
        model.forces(10 * wet.positions, species=species)
    with pytest.raises(ConfigError, match="float16"):
        model.forces(wet.positions.astype(np.float16), species=species)
    model.forces(10 * wet.positions * unit.angstrom, species=species)
