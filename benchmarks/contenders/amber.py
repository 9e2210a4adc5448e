"""AMBER14 with PME as OpenMM's own platforms compute it: flexible water, the cutoff of the labels."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import openmm
from openmm import unit

from contenders.interface import Contender, Setting

BLOCK = 10
"""Steps of dynamics in one go, which hold about one search; the first block is not timed."""


class Amber(Contender):
    """A Context of OpenMM."""

    warmup = 3

    def __init__(self, setting: Setting):
        system = openmm.XmlSerializer.deserialize(setting.system.read_text(encoding="utf-8"))
        (nonbonded,) = (force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
        cutoff = nonbonded.getCutoffDistance().value_in_unit(unit.nanometer)
        system = repeated(system, setting.n_copies)
        system.setDefaultPeriodicBoxVectors(*setting.box)
        name = {"cpu": "CPU", "cuda": "CUDA"}[setting.device]
        properties = {"Threads": str(setting.threads)} if name == "CPU" else {"Precision": "mixed"}
        self.integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.001)
        self.context = openmm.Context(system, self.integrator, openmm.Platform.getPlatformByName(name), properties)
        self.about = {
            "versions": {"openmm": openmm.__version__},
            "n_parameters": None,
            "cutoff": f"{cutoff:g} nm, and PME",
        }

    def evaluate(self, positions: np.ndarray) -> np.ndarray:
        """Return forces: positions in, forces out, no energy."""
        self.context.setPositions(positions)
        return self.context.getState(forces=True).getForces(asNumpy=True)._value

    def extra(self, budget: float) -> dict[str, Any]:
        """Return the seconds of a step of dynamics, where positions and forces stay inside."""
        self.context.setVelocitiesToTemperature(300.0, 1)
        self.integrator.step(BLOCK)
        n_steps = 0
        begun = time.perf_counter()
        while n_steps == 0 or time.perf_counter() - begun < budget:
            self.integrator.step(BLOCK)
            self.context.getState(energy=True)
            n_steps += BLOCK
        return {"dynamics_step_s": (time.perf_counter() - begun) / n_steps}


def repeated(system: openmm.System, n_copies: int) -> openmm.System:
    """Return a System with copies of all particles and their interactions, one copy after the other.

    Parameters
    ----------
    system
        Without constraints, of the forces that AMBER needs.
    n_copies
        How many.

    Raises
    ------
    ValueError
        If the System has a force of another kind, or constraints.
    """
    if n_copies == 1:
        return system
    if system.getNumConstraints():
        raise ValueError(f"a System with {system.getNumConstraints()} constraints cannot be repeated; build without")
    n_particles = system.getNumParticles()
    bonded = {
        openmm.HarmonicBondForce: ("Bond", 2),
        openmm.HarmonicAngleForce: ("Angle", 3),
        openmm.PeriodicTorsionForce: ("Torsion", 4),
    }
    larger = openmm.System()
    for particle in list(range(n_particles)) * n_copies:
        larger.addParticle(system.getParticleMass(particle))
    for force in system.getForces():
        if isinstance(force, openmm.CMMotionRemover):
            larger.addForce(openmm.CMMotionRemover(force.getFrequency()))
        elif isinstance(force, openmm.NonbondedForce):
            larger.addForce(_repeated_nonbonded(force, n_particles, n_copies))
        elif type(force) in bonded:
            noun, n_atoms = bonded[type(force)]
            new = type(force)()
            new.setUsesPeriodicBoundaryConditions(force.usesPeriodicBoundaryConditions())
            terms = [getattr(force, f"get{noun}Parameters")(k) for k in range(getattr(force, f"getNum{noun}s")())]
            add = getattr(new, f"add{noun}")
            for copy in range(n_copies):
                for term in terms:
                    add(*[atom + copy * n_particles for atom in term[:n_atoms]], *term[n_atoms:])
            larger.addForce(new)
        else:
            raise ValueError(f"a System with a {type(force).__name__} cannot be repeated; allowed: AMBER's forces")
    return larger


def _repeated_nonbonded(force: openmm.NonbondedForce, n_particles: int, n_copies: int) -> openmm.NonbondedForce:
    new = openmm.NonbondedForce()
    new.setNonbondedMethod(force.getNonbondedMethod())
    new.setCutoffDistance(force.getCutoffDistance())
    new.setEwaldErrorTolerance(force.getEwaldErrorTolerance())
    new.setUseDispersionCorrection(force.getUseDispersionCorrection())
    particles = [force.getParticleParameters(k) for k in range(n_particles)]
    exceptions = [force.getExceptionParameters(k) for k in range(force.getNumExceptions())]
    for copy in range(n_copies):
        for particle in particles:
            new.addParticle(*particle)
        for first, second, *values in exceptions:
            new.addException(first + copy * n_particles, second + copy * n_particles, *values)
    return new


def make(setting: Setting) -> Amber:
    """Return the contender."""
    return Amber(setting)
