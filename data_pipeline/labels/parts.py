"""Parts of the reference forces that a network may learn in place of the total: see `schema.ENTRY_FIELDS`."""

from __future__ import annotations

from collections import Counter

import numpy as np
import openmm
from openmm import app

from data_pipeline.errors import EntryError
from data_pipeline.systems.build import evaluate, make_context

PARTS = ("groups", "reciprocal", "solute", "minus_mm")

MAX_GROUPS = 32
"""OpenMM has so many force groups."""


def assign_groups(system: openmm.System) -> list[str]:
    """Put each term of a System into a force group of its own and return their names, sorted.

    A term is one Force, named as OpenMM names it; the reciprocal space of a NonbondedForce is a term besides.

    Parameters
    ----------
    system
        Its force groups are changed.

    Raises
    ------
    EntryError
        Of kind force_groups, if there are more terms than groups.
    """
    terms: list[tuple[str, openmm.Force, bool]] = []
    for force in system.getForces():
        if isinstance(force, openmm.CMMotionRemover):
            continue
        terms.append((force.getName(), force, False))
        if isinstance(force, openmm.NonbondedForce) and force.getNonbondedMethod() == openmm.NonbondedForce.PME:
            terms.append((f"{force.getName()} reciprocal", force, True))
    terms.sort(key=lambda term: term[0])
    if len(terms) > MAX_GROUPS:
        raise EntryError(
            "force_groups",
            f"the reference has {len(terms)} terms, OpenMM has {MAX_GROUPS} force groups; "
            "leave groups out of label.parts",
        )
    names, seen = [], Counter[str]()
    for group, (name, force, is_reciprocal) in enumerate(terms):
        if is_reciprocal:
            force.setReciprocalSpaceForceGroup(group)
        else:
            force.setForceGroup(group)
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


def forces_by_group(
    system: openmm.System, positions: np.ndarray, box: np.ndarray, platform: str = "CPU"
) -> tuple[list[str], np.ndarray]:
    """Return the names of the terms and the forces of each.

    Parameters
    ----------
    system
        Its force groups are changed.
    positions
        (F, N, 3) in nm.
    box
        (F, 3, 3) in nm.
    platform
        Name of an OpenMM platform.

    Returns
    -------
    names : list of str
        Of G terms.
    forces : ndarray
        (F, G, N, 3) float32 in kJ/mol/nm; their sum over G is the total force.
    """
    names = assign_groups(system)
    context = make_context(system, openmm.VerletIntegrator(0.001), platform)
    forces = np.empty((len(positions), len(names), *positions.shape[1:]), dtype=np.float32)
    for frame, (frame_positions, frame_box) in enumerate(zip(positions, box, strict=True)):
        for group in range(len(names)):
            forces[frame, group] = evaluate(context, frame_positions, frame_box, {group})[0]
    return names, forces


def total_forces(system: openmm.System, positions: np.ndarray, box: np.ndarray, platform: str = "CPU") -> np.ndarray:
    """Return the forces of a periodic System, (F, N, 3) in kJ/mol/nm; parameters as in `forces_by_group`."""
    context = make_context(system, openmm.VerletIntegrator(0.001), platform)
    return np.stack([evaluate(context, *frame)[0] for frame in zip(positions, box, strict=True)])


def solute_topology(topology: app.Topology, mask: np.ndarray) -> app.Topology:
    """Return the masked atoms alone, without a box.

    Parameters
    ----------
    topology
        The whole system.
    mask
        (N,) bool, the solute's atoms.
    """
    modeller = app.Modeller(topology, np.zeros((len(mask), 3)))
    modeller.delete([atom for atom in topology.atoms() if not mask[atom.index]])
    alone = modeller.getTopology()
    alone.setPeriodicBoxVectors(None)
    return alone


def solute_forces(
    system: openmm.System, mask: np.ndarray, positions: np.ndarray, platform: str = "CPU"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the forces on the solute alone, as mechanical embedding replaces them, and its energy.

    Parameters
    ----------
    system
        Of the solute only, see `solute_topology`: no box, no cutoff.
    mask
        (N,) bool, the solute's atoms in the whole system.
    positions
        (F, N, 3) in nm of the whole system, the solute not broken across the box.
    platform
        Name of an OpenMM platform.

    Returns
    -------
    forces : ndarray
        (F, N, 3) float32 in kJ/mol/nm, zero on other atoms.
    energy : ndarray
        (F,) float64 in kJ/mol.
    """
    context = make_context(system, openmm.VerletIntegrator(0.001), platform)
    forces = np.zeros(positions.shape, dtype=np.float32)
    energy = np.empty(len(positions))
    for frame, frame_positions in enumerate(positions):
        forces[frame, mask], energy[frame] = evaluate(context, frame_positions[mask], None)
    return forces, energy
