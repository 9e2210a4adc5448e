"""Multiple time stepping against systems with known answers, and on a peptide in water."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import openmm
import pytest
from numpy.typing import NDArray

import forcefield_ml
from data_pipeline.systems.prepare import Prepared
from forcefield_ml.deploy.system.force_groups import ForceGroups
from forcefield_ml.simulation import build, mts

H = 0.0005
"""ps, of the inner steps."""

DIRECT, REFERENCE = 1, 2
GROUPS = ForceGroups((), (DIRECT,), (REFERENCE,))
K, COUPLING, MASS = np.array([2.0e5, 2.6e5, 3.3e5]), 0.8e5, 12.0
"""kJ/mol/nm², by axis, and between the two atoms; u. Periods of 30 to 49 fs."""


class Coupled:
    """Two atoms on springs of their own, coupled by another; the direct force is too soft and swirls.

    Parameters
    ----------
    soft
        Share by which springs of the direct force are too soft.
    curl
        Share of the first spring with which it pushes atoms around the z axis.
    springs
        kJ/mol/nm², by axis.
    """

    def __init__(self, soft: float = 0.02, curl: float = 0.02, springs: NDArray[np.float64] = K) -> None:
        self.soft, self.curl, self.springs, self.calls = soft, curl, springs, 0

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        """Return no energy, and the direct force."""
        self.calls += 1
        x = state.getPositions(asNumpy=True)._value
        swirl = np.stack([-x[:, 1], x[:, 0], np.zeros(len(x))], axis=1)
        return 0.0, -(1 - self.soft) * (self.springs * x + COUPLING * (x - x[::-1])) + self.curl * K[0] * swirl

    def system(self) -> openmm.System:
        """Return a System with the direct force in one group and the reference in another."""
        system = openmm.System()
        springs = openmm.CustomExternalForce("0.5*(kx*x^2+ky*y^2+kz*z^2)")
        coupling = openmm.CustomBondForce(f"0.5*{COUPLING}*r^2")
        coupling.addBond(0, 1)
        for name, value in zip(("kx", "ky", "kz"), self.springs, strict=True):
            springs.addGlobalParameter(name, value)
        for i in range(2):
            system.addParticle(MASS)
            springs.addParticle(i)
        for force, group in ((openmm.PythonForce(self), DIRECT), (springs, REFERENCE), (coupling, REFERENCE)):
            force.setForceGroup(group)
            system.addForce(force)
        return system


def verlet(group: int, step: float = H) -> openmm.CustomIntegrator:
    """Return velocity Verlet with the forces of one group."""
    made = openmm.CustomIntegrator(step)
    made.addComputePerDof("v", f"v+0.5*dt*f{group}/m")
    made.addComputePerDof("x", "x+dt*v")
    made.addComputePerDof("v", f"v+0.5*dt*f{group}/m")
    return made


def path(
    system: openmm.System, integrator: openmm.Integrator, looks: int, apart: int, start: NDArray[np.float64]
) -> Any:
    """Return positions (looks, 2, 3) and total energies by the reference, some steps apart, from rest."""
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(start)
    positions, energies = [], []
    for _ in range(looks):
        integrator.step(apart)
        state = context.getState(positions=True, energy=True, groups={REFERENCE})
        positions.append(state.getPositions(asNumpy=True)._value)
        energies.append(state.getKineticEnergy()._value + state.getPotentialEnergy()._value)
    return np.array(positions), np.array(energies)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1, -1])
def test_periods_are_the_references(axis: int, sign: int) -> None:
    """Each of the six normal modes swings with its analytic period, which the direct force alone misses by 1 %."""
    start = np.zeros((2, 3))
    start[0, axis], start[1, axis] = 0.01, sign * 0.01
    period = 2 * math.pi / math.sqrt((K[axis] + (0 if sign == 1 else 2 * COUPLING)) / MASS)

    def found(integrator: openmm.Integrator, apart: int) -> float:
        x = path(Coupled().system(), integrator, 500, apart, start)[0][:, 0, axis]
        before = np.flatnonzero((x[:-1] < 0) & (x[1:] >= 0))
        crossings = 8 * H * (before - x[before] / (x[before + 1] - x[before]))
        return float((crossings[-1] - crossings[0]) / (len(crossings) - 1))

    assert found(mts.integrator(Coupled().system(), H, 8, groups=GROUPS), 1) == pytest.approx(period, rel=1e-3)
    assert found(verlet(DIRECT), 8) > 1.008 * period  # the negative control


def test_drift_of_the_analytic_system() -> None:
    """At 8 x 0.5 fs energy drifts no more than twice as fast as with the reference at 0.5 fs; the direct runs away.

    Springs are alike in x and y, so that the swirl pumps energy into circles. What the reference shows, and most of
    what multiple time stepping does, is the oscillating error of its energy, seen over a finite time.
    """
    starts = np.random.default_rng(1).normal(size=(3, 2, 3)) * 0.005
    direct_force = Coupled(soft=0.005, curl=0.005, springs=np.array([2.0e5, 2.0e5, 3.3e5]))

    def drift(make: Any, apart: int) -> float:
        slopes = []
        for start in starts:
            energies = path(direct_force.system(), make(), 700, apart, start)[1]
            slopes.append(np.polyfit(8 * H * np.arange(len(energies)), energies, 1)[0])
        return float(np.sqrt(np.mean(np.square(slopes))))

    multiple = drift(lambda: mts.integrator(direct_force.system(), H, 8, groups=GROUPS), 1)
    reference, direct = drift(lambda: verlet(REFERENCE), 8), drift(lambda: verlet(DIRECT), 8)
    assert multiple < 2 * reference, (multiple, reference, direct)
    assert multiple < 1e-4 * direct, (multiple, reference, direct)


@pytest.mark.parametrize("temperature", [None, 300.0])
def test_evaluations(temperature: float | None) -> None:
    """Eight of the direct force a step, and none twice at one place; NVE begins with one more."""
    direct = Coupled()
    system = direct.system()
    integrator = mts.integrator(system, H, 8, temperature, groups=GROUPS)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.full((2, 3), 0.01))
    integrator.step(10)
    assert direct.calls == 80 + (temperature is None)


def test_distribution_is_the_references() -> None:
    """With a thermostat the spread of positions is that of the reference, though the direct springs are 20 % softer.

    <x²> = kT (1/k + 1/(k + 2c)) / 2 on an axis; the direct force alone would give 25 % more.
    """
    kt = 8.31446e-3 * 300
    direct = Coupled(soft=0.2, curl=0.1)
    system = direct.system()
    integrator = mts.integrator(system, H, 8, 300.0, 20.0, groups=GROUPS)
    integrator.setRandomNumberSeed(3)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.zeros((2, 3)))
    found = []
    for _ in range(6000):
        integrator.step(1)
        found.append(context.getState(positions=True).getPositions(asNumpy=True)._value ** 2)
    expected = kt * (1 / K + 1 / (K + 2 * COUPLING)) / 2
    ratio = float((np.mean(found, axis=(0, 1)) / expected).mean())
    assert ratio == pytest.approx(1, abs=0.08)


class Energies:
    """Total energies by the reference along NVE runs of a peptide in water with `amber14-fast`."""

    def __init__(self, peptide: Prepared) -> None:
        self.peptide = peptide
        self.mm = build.mm_system(peptide, ("amber14-all.xml", "amber14/tip3pfb.xml"), 0.6)
        for index in reversed(range(self.mm.getNumForces())):
            if isinstance(self.mm.getForce(index), openmm.CMMotionRemover):
                self.mm.removeForce(index)
        self.options = (openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
        self.start = build.relax(
            self.mm,
            peptide,
            self.options,
            temperature=300.0,
            timestep=H,
            equilibration=0.3,
            max_iterations=200,
            seed=3,
        )

    def slope(self, kind: str, steps: int) -> float:
        """Return the drift in meV/atom/ps over so many inner steps."""
        system = openmm.XmlSerializer.clone(self.mm)
        if kind != "reference":
            forcefield_ml.load("amber14-fast").add_to_system(
                system, self.peptide.topology, mode="solute", mm_platform="CPU"
            )
            system.removeForce(next(i for i, f in enumerate(system.getForces()) if "CMMotion" in f.getName()))
        if kind == "multiple":
            integrator, apart = mts.integrator(system, H, 8), 1
        else:
            integrator, apart = openmm.CustomIntegrator(H), 8
            integrator.addComputePerDof("v", "v+0.5*dt*f/m")
            integrator.addComputePerDof("x", "x+dt*v")
            integrator.addComputePerDof("v", "v+0.5*dt*f/m")
        context = openmm.Context(system, integrator, *self.options)
        context.setPositions(self.start[0])
        context.setVelocities(self.start[1])
        energies = []
        for _ in range(steps // 8):
            integrator.step(apart)
            state = context.getState(energy=True, groups=integrator.getIntegrationForceGroups())
            energies.append(state.getKineticEnergy()._value + state.getPotentialEnergy()._value)
        slope = np.polyfit(8 * H * np.arange(len(energies)), energies, 1)[0]
        return float(slope / system.getNumParticles() * 10.364)  # meV for kJ/mol


@contextmanager
def silent() -> Iterator[None]:
    """Keep the warning against minimisers from the screen."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="this model has forces but no energy")
        yield


@pytest.mark.slow
def test_drift_of_a_peptide(peptide: Prepared) -> None:
    """With `amber14-fast` energy drifts at most a tenth as fast at 8 x 0.5 fs as with the direct force alone.

    With a model of this error it is not yet the drift of the reference (docs/mts.md has the numbers).
    """
    with silent():
        runs = Energies(peptide)
        multiple, direct = runs.slope("multiple", 1600), runs.slope("direct", 800)
    assert abs(multiple) < 0.1 * abs(direct), (multiple, direct)
    assert direct > 5
