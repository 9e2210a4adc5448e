"""The long-range part of electrostatics: PME parameters, and the smooth reciprocal-space forces on their own."""

from __future__ import annotations

import numpy as np
import openmm
from openmm import unit

from data_pipeline.systems.build import evaluate, make_context

PME_FORCES = (openmm.NonbondedForce, openmm.AmoebaMultipoleForce)
"""Forces that may hold an Ewald sum."""

RECIPROCAL_TOLERANCE = 1e-6
"""Tolerance that sets the mesh of the reciprocal part; measured errors are a tenth of 1e-4 (test)."""


def pme_of(context: openmm.Context) -> tuple[float, np.ndarray]:
    """Return alpha in 1/nm and the mesh (3,) int32 of a Context's PME; zeros where it has none."""
    for force in context.getSystem().getForces():
        if isinstance(force, PME_FORCES) and force.getNonbondedMethod() == type(force).PME:
            alpha, *grid = force.getPMEParametersInContext(context)
            alpha = alpha.value_in_unit(unit.nanometer**-1) if unit.is_quantity(alpha) else alpha
            return float(alpha), np.array(grid, dtype=np.int32)
    return 0.0, np.zeros(3, dtype=np.int32)


def default_alpha(cutoff: float, tolerance: float) -> float:
    """Return the splitting parameter in 1/nm that OpenMM takes, ``sqrt(-ln(2 tolerance)) / cutoff``.

    Parameters
    ----------
    cutoff
        nm.
    tolerance
        Error tolerance.
    """
    return float(np.sqrt(-np.log(2 * tolerance)) / cutoff)


def mesh(box: np.ndarray, alpha: float, tolerance: float) -> np.ndarray:
    """Return the PME mesh (3,) int32 that OpenMM's error estimate asks for, in numbers that every platform takes.

    ``n = 2 alpha L / (3 tolerance^(1/5))``, rounded up to a product of 2, 3, 5 and 7.

    Parameters
    ----------
    box
        (3, 3) in nm.
    alpha
        Splitting parameter in 1/nm.
    tolerance
        Error tolerance.

    References
    ----------
    OpenMM User Guide, theory of NonbondedForce, Coulomb interaction with particle mesh Ewald.
    """
    wanted = np.ceil(2 * alpha * np.diag(box) / (3 * tolerance**0.2)).astype(int)
    return np.array([_smooth_number(int(n)) for n in wanted], dtype=np.int32)


def set_pme(system: openmm.System, alpha: float, grid: np.ndarray) -> None:
    """Give every Ewald sum of a System this alpha in 1/nm and mesh (3,), in place of an error tolerance."""
    for force in system.getForces():
        if isinstance(force, PME_FORCES) and force.getNonbondedMethod() == type(force).PME:
            force.setPMEParameters(alpha, *(int(n) for n in grid))


def reciprocal_force(charges: np.ndarray, *, alpha: float, grid: np.ndarray, width: float) -> openmm.NonbondedForce:
    """Return the OpenMM force that is the sum of `reciprocal_forces` and nothing else: no pair is an exception.

    Parameters
    ----------
    charges
        (N,) elementary charges.
    alpha
        Splitting parameter in 1/nm.
    grid
        (3,) mesh points.
    width
        nm, least diagonal element of the box.
    """
    force = openmm.NonbondedForce()
    for charge in charges:
        force.addParticle(float(charge), 1.0, 0.0)
    force.setNonbondedMethod(openmm.NonbondedForce.PME)
    # Direct space is switched off; OpenMM only wants a cutoff that fits the box.
    force.setCutoffDistance(min(0.3, 0.49 * width))
    force.setIncludeDirectSpace(False)
    force.setPMEParameters(alpha, *(int(n) for n in grid))
    return force


def reciprocal_system(charges: np.ndarray, box: np.ndarray, *, alpha: float, grid: np.ndarray) -> openmm.System:
    """Return a System of point charges whose forces are those of `reciprocal_forces`; parameters as there."""
    system = openmm.System()
    system.setDefaultPeriodicBoxVectors(*box[0].astype(np.float64))
    for _ in charges:
        system.addParticle(1.0)
    width = float(np.diagonal(box, axis1=1, axis2=2).min())
    system.addForce(reciprocal_force(charges, alpha=alpha, grid=grid, width=width))
    return system


def reciprocal_forces(
    charges: np.ndarray,
    positions: np.ndarray,
    box: np.ndarray,
    *,
    alpha: float,
    grid: np.ndarray,
    platform: str = "CPU",
) -> np.ndarray:
    """Return the reciprocal-space part of the Ewald sum over point charges.

    ``F_i = q_i / (eps0 V) sum_k k / k^2 exp(-k^2 / 4 alpha^2) Im(conj(S(k)) exp(i k.r_i))``, with the structure factor
    ``S(k) = sum_j q_j exp(i k.r_j)``. It is smooth, has no cutoff, and counts bonded neighbours as any other pair:
    what is left of the Coulomb force, ``erfc(alpha r)`` pairs and the corrections for excluded ones, is short-ranged.

    Parameters
    ----------
    charges
        (N,) elementary charges.
    positions
        (F, N, 3) in nm.
    box
        (F, 3, 3) in nm.
    alpha
        Splitting parameter in 1/nm.
    grid
        (3,) mesh points.
    platform
        Name of an OpenMM platform.

    Returns
    -------
    ndarray
        (F, N, 3) float32 in kJ/mol/nm.
    """
    system = reciprocal_system(charges, box, alpha=alpha, grid=grid)
    context = make_context(system, openmm.VerletIntegrator(0.001), platform)
    return np.stack([evaluate(context, *frame)[0] for frame in zip(positions, box, strict=True)]).astype(np.float32)


def _smooth_number(least: int) -> int:
    while True:
        rest = least
        for prime in (2, 3, 5, 7):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return least
        least += 1
