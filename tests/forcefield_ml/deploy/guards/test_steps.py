"""How long a time step may be is found for every kind of integrator."""

from __future__ import annotations

import warnings
from typing import Any

import openmm
import pytest

from forcefield_ml.deploy.guards.steps import FreeAtoms, check_step, free_atoms, interval, together
from forcefield_ml.errors import ForceModeError

FREE = FreeAtoms(1.008, 3)


def system_of(*masses: float, constraints: tuple[tuple[int, int], ...] = ()) -> openmm.System:
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    for i, j in constraints:
        system.addConstraint(i, j, 0.1)
    return system


def verdict(integrator: openmm.Integrator, free: FreeAtoms = FREE, group: int = 0) -> str:
    """Return what `check_step` does: "", "warns" or "refuses"."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check_step(integrator, group, free)
        except ForceModeError:
            return "refuses"
    return "warns" if caught else ""


@pytest.mark.parametrize(
    ("femtoseconds", "expected"),
    [(0.5, ""), (1.0, ""), (1.1, "warns"), (2.0, "warns"), (2.1, "refuses"), (4, "refuses")],
)
def test_limits(femtoseconds: float, expected: str) -> None:
    """Above 1 fs warns, above 2 fs without constraints is refused, whatever the integrator."""
    step = femtoseconds / 1000
    for integrator in (
        openmm.VerletIntegrator(step),
        openmm.LangevinMiddleIntegrator(300, 1, step),
        openmm.NoseHooverIntegrator(300, 1, step),
        openmm.BrownianIntegrator(300, 1, step),
        openmm.MTSIntegrator(step, [(0, 1)]),
    ):
        assert verdict(integrator) == expected, type(integrator)


def test_constraints_and_heavy_hydrogens() -> None:
    """The lightest particle that moves and that nothing holds decides; a heavier one allows a longer step."""
    assert free_atoms(system_of(12, 1.008, 16, 1.008, constraints=((0, 1),))) == FreeAtoms(1.008, 3, "atom 3")
    held = free_atoms(system_of(12, 1.008, 0, 16, constraints=((0, 1),)))
    assert held == FreeAtoms(16, 3, "atom 3")
    assert verdict(openmm.VerletIntegrator(0.002), held) == ""
    everything = free_atoms(system_of(12, 1.008, constraints=((0, 1),)))
    assert verdict(openmm.VerletIntegrator(0.004), everything) == ""
    heavy = free_atoms(system_of(10, 3.024))
    assert 1.6 < heavy.stretch < 1.7  # sqrt of the reduced masses, 2.416 over 0.930
    assert verdict(openmm.VerletIntegrator(0.0015), heavy) == ""
    assert verdict(openmm.VerletIntegrator(0.003), heavy) == "warns"
    assert verdict(openmm.VerletIntegrator(0.004), heavy) == "refuses"


@pytest.mark.parametrize("make", [openmm.MTSIntegrator, lambda dt, g: openmm.MTSLangevinIntegrator(300, 1, dt, g)])
def test_multiple_time_steps(make: Any) -> None:
    """The interval is that of the model's group, not the outer step; a group left out is refused."""
    integrator = make(0.004, [(0, 1), (1, 2), (2, 8)])
    assert [interval(integrator, group) for group in (0, 1, 2)] == pytest.approx([0.004, 0.002, 0.0005])
    assert [verdict(integrator, group=group) for group in (0, 1, 2)] == ["refuses", "warns", ""]
    with pytest.raises(ForceModeError, match=r"group 5, which this MTS.* never evaluates"):
        check_step(integrator, 5, FREE)
    assert not together(integrator, 0, 1) and together(openmm.VerletIntegrator(0.001), 0, 1)


def test_custom_integrators() -> None:
    """Velocity Verlet moves a whole step between forces, also when written in halves or in words nobody can read."""
    for moves in (["x+dt*v"], ["x+0.5*dt*v", "x+0.5*dt*v"], ["x+(dt/2)*v", "x+dt/2*v"], ["x + sin(h)*v"]):
        integrator = openmm.CustomIntegrator(0.003)
        integrator.addGlobalVariable("h", 0.1)
        integrator.addComputePerDof("v", "v+0.5*dt*f/m")
        for move in moves:
            integrator.addComputePerDof("x", move)
        integrator.addComputePerDof("v", "v+0.5*dt*f/m")
        assert interval(integrator, 7) == pytest.approx(0.003), moves
        assert verdict(integrator) == "refuses"
    twice = openmm.CustomIntegrator(0.003)
    for _ in range(3):
        twice.addComputePerDof("v", "v+(dt/3)*f/m")
        twice.addComputePerDof("x", "x+(dt/3)*v")
    assert interval(twice, 0) == pytest.approx(0.001)


def test_groups_that_are_not_integrated() -> None:
    """An integrator told to leave the model's group out is refused."""
    integrator = openmm.VerletIntegrator(0.0005)
    integrator.setIntegrationForceGroups({0, 1})
    check_step(integrator, 1, FREE)
    with pytest.raises(ForceModeError, match="it would do nothing"):
        check_step(integrator, 2, FREE)


def test_variable_steps() -> None:
    """A step that the integrator chooses is judged by its upper bound; without one it warns."""
    for make in (
        lambda: openmm.VariableVerletIntegrator(0.001),
        lambda: openmm.VariableLangevinIntegrator(300, 1, 0.001),
    ):
        assert verdict(make()) == "warns"
        for longest, expected in ((0.001, ""), (0.0015, "warns"), (0.003, "refuses")):
            integrator = make()
            integrator.setMaximumStepSize(longest)
            assert verdict(integrator) == expected


def test_compound_integrators() -> None:
    """Each part counts, also one that is not the current."""
    compound = openmm.CompoundIntegrator()
    compound.addIntegrator(openmm.VerletIntegrator(0.0005))
    assert verdict(compound) == ""
    compound.addIntegrator(openmm.VerletIntegrator(0.003))
    assert verdict(compound) == "refuses"
