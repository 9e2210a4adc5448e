"""The force that a model brings which leaves the reciprocal-space sum of the Coulomb force to OpenMM.

The sum is that of the labels (`data_pipeline.labels.ewald`): point charges, the card's alpha, no pair excluded, so that
excluded and 1-4 pairs count as all others and the network has learnt what corrects them. Its self term is a constant,
the background that neutralises a net charge exerts no force.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import openmm
from openmm import app

from data_pipeline.errors import PipelineError
from data_pipeline.labels import ewald
from data_pipeline.systems.build import box_width, force_field
from forcefield_ml import units
from forcefield_ml.deploy.system.mm import AddToSolute
from forcefield_ml.errors import BoxError, ForceModeError

RECIPROCAL = "forcefield_ml:reciprocal"
"""Name of the OpenMM force that supplies the reciprocal-space sum."""

CHARGE_TOLERANCE = 0.05
"""e, by which charges may differ from those of training without a word: water models of one family do by 0.02."""

Charges: TypeAlias = openmm.System | Sequence[float] | np.ndarray


def make_reciprocal(
    card: dict[str, Any], topology: app.Topology, charges: Charges | None = None
) -> openmm.NonbondedForce:
    """Return the force that supplies the reciprocal-space sum on every atom.

    Parameters
    ----------
    card
        Of a model that predicts total_minus_reciprocal.
    topology
        With a box.
    charges
        An MM System whose NonbondedForce holds them, or one number for each atom, in e; None takes those of the force
        field that the card names.

    Raises
    ------
    BoxError
        If the topology has no box.
    ForceModeError
        If there are no charges, or not one for each atom, or the MM System has no PME.
    """
    if topology.getPeriodicBoxVectors() is None:
        raise BoxError(
            "this model leaves the reciprocal-space sum of PME to OpenMM, which exists in a periodic box only; set "
            "one with topology.setPeriodicBoxVectors, or use a model that predicts 'total'"
        )
    box = np.array(units.strip(topology.getPeriodicBoxVectors(), "nanometer"), dtype=np.float64)
    told = card["reciprocal"]
    grid = ewald.mesh(box, told["alpha"], told["tolerance"])
    found = _charges(told["force_field"], topology, charges)
    force = ewald.reciprocal_force(found, alpha=told["alpha"], grid=grid, width=box_width(box))
    force.setName(RECIPROCAL)
    return force


def put_on_solute(force: openmm.NonbondedForce, system: openmm.System, atoms: Sequence[int], platform: str) -> Any:
    """Return a PythonForce that exerts a force of `make_reciprocal` on some atoms alone, by an inner Context.

    Parameters
    ----------
    force
        On every atom.
    system
        Particles and box are taken from it.
    atoms
        Indices of these atoms.
    platform
        Of the inner Context.
    """
    inner = openmm.System()
    for _ in range(system.getNumParticles()):
        inner.addParticle(1.0)
    inner.setDefaultPeriodicBoxVectors(*system.getDefaultPeriodicBoxVectors())
    inner.addForce(force)
    outer = openmm.PythonForce(
        AddToSolute(openmm.XmlSerializer.serialize(inner), [int(i) for i in atoms], True, platform)
    )
    outer.setUsesPeriodicBoundaryConditions(True)
    outer.setName(RECIPROCAL)
    return outer


def _charges(files: list[str], topology: app.Topology, given: Charges | None) -> np.ndarray:
    if given is None:
        return _charges_of_force_field(files, topology)
    if isinstance(given, openmm.System):
        found = _charges_of_system(given)
        _compare(found, files, topology)
    else:
        found = np.asarray(given, dtype=np.float64)
    if found.shape != (topology.getNumAtoms(),) or not np.isfinite(found).all():
        raise ForceModeError(
            f"charges has shape {found.shape}{'' if np.isfinite(found).all() else ' and values that are not finite'}; "
            f"one finite number for each of the {topology.getNumAtoms()} atoms is needed, in elementary charges"
        )
    return found


def _charges_of_system(system: openmm.System) -> np.ndarray:
    """Return the charges (N,) in e of an MM System with PME."""
    forces = [force for force in system.getForces() if isinstance(force, openmm.NonbondedForce)]
    if len(forces) != 1:
        raise ForceModeError(
            f"this model leaves the reciprocal-space sum to OpenMM, whose charges are those of the MM system; it has "
            f"{len(forces)} NonbondedForce. Pass charges=[one number for each atom], or an MM system with fixed charges"
        )
    force = forces[0]
    if force.getNonbondedMethod() not in (force.PME, force.LJPME, force.Ewald):
        raise ForceModeError(
            "the MM system has no Ewald sum, but this model was trained on forces with PME. Make the system with "
            "forcefield.createSystem(topology, nonbondedMethod=PME, ...)"
        )
    if force.getNumParticleParameterOffsets():
        raise ForceModeError(
            "the charges of the MM system depend on parameters (NonbondedForce has offsets), but the reciprocal-space "
            "sum that this model needs has fixed ones. Pass charges=[one number for each atom]"
        )
    charges = [force.getParticleParameters(i)[0] for i in range(force.getNumParticles())]
    found = np.array([units.strip(charge, "elementary_charge") for charge in charges], dtype=np.float64)
    if not found.any():
        raise ForceModeError(
            "every charge in the MM system's NonbondedForce is zero (an alchemical or polarisable force field?), so "
            "there is no reciprocal-space sum to give. Pass charges=[one number for each atom]"
        )
    return found


def _charges_of_force_field(files: list[str], topology: app.Topology) -> np.ndarray:
    try:
        system = force_field(tuple(files)).createSystem(topology, nonbondedMethod=app.PME)
        return _charges_of_system(system)
    except (PipelineError, ValueError, openmm.OpenMMException, ForceModeError) as error:
        raise ForceModeError(
            f"this model leaves the reciprocal-space sum to OpenMM, with the charges of {', '.join(files)} by its "
            f"card, which cannot be found for this topology: {error}. Pass charges=an MM system with these charges, "
            "or charges=[one number for each atom]"
        ) from None


def _compare(found: np.ndarray, files: list[str], topology: app.Topology) -> None:
    """Warn if charges are far from those that the model was trained beside; where these are unknown, keep silent."""
    try:
        trained = _charges_of_force_field(files, topology)
    except ForceModeError:
        return
    if len(found) != len(trained):
        return
    difference = np.abs(found - trained)
    worst = int(difference.argmax())
    if difference[worst] > CHARGE_TOLERANCE:
        atom = list(topology.atoms())[worst]
        warnings.warn(
            f"the MM system's charges differ by up to {difference[worst]:.3f} e ({atom.residue.name}{atom.residue.id} "
            f"{atom.name}) from those of {', '.join(files)}, beside which the model was trained: its long-range forces "
            "will not be those it learnt to complete. Take that force field for the MM system, or pass charges=",
            stacklevel=4,
        )
