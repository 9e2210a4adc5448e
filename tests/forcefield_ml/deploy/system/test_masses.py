"""Heavy hydrogens, beside OpenMM's own."""

from __future__ import annotations

import copy

import numpy as np
import openmm
import pytest
from deploy_helpers import AMBER14, Molecules
from openmm import app, unit

from forcefield_ml.deploy.system.masses import repartition, take_masses
from forcefield_ml.errors import ConfigError


def _masses(system: openmm.System) -> np.ndarray:
    return np.array([system.getParticleMass(i).value_in_unit(unit.dalton) for i in range(system.getNumParticles())])


def _system(molecules: Molecules, **settings: object) -> openmm.System:
    return app.ForceField(*AMBER14).createSystem(molecules.topology, rigidWater=False, **settings)


@pytest.mark.parametrize("mass", [1.5, 3.0 * unit.amu])
def test_the_same_as_openmm(wet: Molecules, mass: object) -> None:
    """Every mass is the one that ForceField.createSystem gives; protein and water."""
    system = _system(wet)
    before = _masses(system)
    repartition(system, wet.topology, mass)
    expected = _masses(_system(wet, hydrogenMass=mass))
    assert np.abs(expected - before).max() > 0.4, "control: the masses do change"
    np.testing.assert_allclose(_masses(system), expected, rtol=0, atol=1e-9)
    assert _masses(system).sum() == pytest.approx(before.sum())


def test_twice_is_once(wet: Molecules) -> None:
    """What is already heavy stays as it is, so a System made heavy by OpenMM can be given again."""
    system = _system(wet, hydrogenMass=3)
    before = _masses(system)
    repartition(system, wet.topology, 3.0)
    np.testing.assert_allclose(_masses(system), before, atol=1e-9)


@pytest.mark.parametrize("mass", [0.5, 4.5, 0.0])
def test_masses_that_are_refused(wet: Molecules, mass: float) -> None:
    """Told with the mass and what is allowed."""
    with pytest.raises(ConfigError, match=f"{mass:g} u; 1 to 4 u"):
        repartition(_system(wet), wet.topology, mass)


def test_a_hydrogen_without_a_bond(wet: Molecules) -> None:
    """A topology that lost its bonds is told of, by atom, and nothing is moved from elsewhere."""
    bare = copy.deepcopy(wet.topology)
    bare._bonds = []
    with pytest.raises(ConfigError, match="is a hydrogen without a bond"):
        repartition(_system(wet), bare, 3.0)


def test_taken_over(wet: Molecules) -> None:
    """One System's masses on another."""
    light, heavy = _system(wet), _system(wet, hydrogenMass=2)
    take_masses(light, heavy)
    np.testing.assert_array_equal(_masses(light), _masses(heavy))
