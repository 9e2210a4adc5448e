from __future__ import annotations

import numpy as np
import openmm
import pytest
from openmm import unit

from data_pipeline.systems.build import build_system
from forcefield_ml.errors import ConfigError, UnstableError
from forcefield_ml.simulation.fire import minimise


def _context(system: openmm.System, positions: np.ndarray) -> openmm.Context:
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    return context


def _positions(context: openmm.Context) -> np.ndarray:
    return np.array(context.getState(positions=True).getPositions(asNumpy=True).value_in_unit(unit.nanometer))


def _particles(n: int) -> openmm.System:
    system = openmm.System()
    for _ in range(n):
        system.addParticle(12.0)
    return system


def _bowl(start: np.ndarray, constants: tuple[float, float, float]) -> openmm.Context:
    system = _particles(len(start))
    force = openmm.CustomExternalForce("0.5*(a*(x-1)^2+b*(y-2)^2+c*(z+1)^2)")
    for name, value in zip("abc", constants, strict=True):
        force.addGlobalParameter(name, value)
    for i in range(len(start)):
        force.addParticle(i)
    system.addForce(force)
    return _context(system, start)


def test_finds_the_bottom_of_a_quadratic_bowl() -> None:
    """Stiff and soft directions (ratio 1000) end at the analytic minimum, to within tolerance over stiffness."""
    context = _bowl(np.random.default_rng(0).normal(size=(5, 3)) * 0.1, (300.0, 3e5, 3e3))
    result = minimise(context, tolerance=1.0, max_steps=5000)
    assert result.converged
    np.testing.assert_allclose(_positions(context), np.tile([1, 2, -1], (5, 1)), atol=1.0 / 300)


def test_needs_no_energy() -> None:
    """A force with a constant energy, on which OpenMM's minimiser does nothing, is followed all the same."""

    def pull(state: openmm.State) -> tuple[float, np.ndarray]:
        where = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        return 0.0, -1000.0 * (np.asarray(where) - 0.5)

    system = _particles(3)
    system.addForce(openmm.PythonForce(pull))
    start = np.array([[0.0, 0, 0], [1, 0, 0], [0.5, 0.9, 0.5]])
    context = _context(system, start)
    openmm.LocalEnergyMinimizer.minimize(context, 1.0)
    np.testing.assert_allclose(_positions(context), start, atol=1e-6)  # the negative control
    assert minimise(context, tolerance=0.1, max_steps=2000).converged
    np.testing.assert_allclose(_positions(context), 0.5, atol=1e-3)


def test_relaxes_a_peptide_in_water(peptide) -> None:
    """Energies are never read, yet the MM energy of a solvated peptide falls with the largest force."""
    context = _context_of(peptide)
    before = context.getState(energy=True).getPotentialEnergy()._value
    result = minimise(context, tolerance=10.0, max_steps=150)
    after = context.getState(energy=True, forces=True)
    norms = np.linalg.norm(after.getForces(asNumpy=True)._value, axis=1)
    assert result.max_force == pytest.approx(norms.max(), rel=1e-3)
    assert result.max_force < 0.2 * result.start_max_force
    assert after.getPotentialEnergy()._value < before - 1000


def _context_of(peptide) -> openmm.Context:
    system = build_system(peptide.topology, cutoff=0.6)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("CPU"))
    context.setPositions(peptide.positions)
    return context


def test_no_step_is_longer_than_the_cap() -> None:
    """Under a huge force the farthest atom moves exactly the cap in the first step."""
    context = _bowl(np.array([[5.0, 2, -1]]), (1e9, 1e9, 1e9))
    result = minimise(context, tolerance=1.0, max_steps=1, max_displacement=0.004)
    assert result.displacement == pytest.approx(0.004, rel=1e-6)


def test_atoms_without_mass_stay() -> None:
    """A particle of mass zero is fixed."""
    context = _bowl(np.zeros((2, 3)), (1e4, 1e4, 1e4))
    context.getSystem().setParticleMass(0, 0.0)
    minimise(context, tolerance=1.0, max_steps=1000)
    np.testing.assert_allclose(_positions(context), [[0, 0, 0], [1, 2, -1]], atol=1e-3)


def test_stops_at_a_force_that_is_not_finite() -> None:
    """The error names the atom, and the Context keeps the last positions whose forces were finite."""
    system = _particles(2)
    force = openmm.CustomExternalForce("-1e5*sqrt(x)")  # NaN beyond x = 0, towards which the other term pulls
    force.addParticle(1, [])
    system.addForce(force)
    back = openmm.CustomExternalForce("1e6*x")
    back.addParticle(1, [])
    system.addForce(back)
    context = _context(system, np.array([[0.0, 0, 0], [0.02, 0, 0]]))
    with pytest.raises(UnstableError, match="atom 1"):
        minimise(context, tolerance=1.0, max_steps=100)
    forces = context.getState(forces=True).getForces(asNumpy=True)._value
    assert np.isfinite(forces).all()


def test_refuses_constraints() -> None:
    """Constrained systems would leave their constraints."""
    system = _particles(2)
    system.addConstraint(0, 1, 0.1)
    context = _context(system, np.array([[0.0, 0, 0], [0.1, 0, 0]]))
    with pytest.raises(ConfigError, match="1 constraints"):
        minimise(context)
