"""Give atoms that the file lacked the geometry of a protein: bond lengths, hands, trans peptides, no overlap.

PDBFixer shapes what it builds with a force field of bonds and repulsion only: about half of the residues in a gap come
out as D-amino acids, one in five with a cis peptide, and no later minimisation turns them.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import pi
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from data_pipeline.errors import EntryError
from data_pipeline.systems.build import DEFAULT_FORCE_FIELD, force_field, make_context
from data_pipeline.systems.geometry import centres, hand, pierced_rings

_IMPROPER = -35.0 * pi / 180
"""rad; angle of the torsion through three neighbours and their centre, of a tetrahedral atom."""

_STIFFNESS = 500.0
"""kJ/mol, of hands and peptides: far above the barriers between right and wrong."""

_ATTEMPTS = 4

_RADIUS = {"H": 0.09}
"""nm within which atoms overlap; others than these have `_HEAVY_RADIUS`."""

_HEAVY_RADIUS = 0.15


def regularise(topology: app.Topology, positions: np.ndarray, moving: np.ndarray, *, seed: int) -> np.ndarray:
    """Return positions (N, 3) in nm, minimised with AMBER's bonded terms, right hands and trans peptides.

    Parameters
    ----------
    topology
        Of the protein with hydrogens.
    positions
        (N, 3) in nm.
    moving
        (N,) bool, the atoms that may move.
    seed
        Of the dynamics that loosens tangles.

    Raises
    ------
    EntryError
        Of kind no_template when a residue is none that AMBER knows, rebuild when faults are left.
    """
    system = _system(topology, moving)
    integrator = openmm.LangevinMiddleIntegrator(600 * unit.kelvin, 10 / unit.picosecond, 0.0005 * unit.picosecond)
    integrator.setRandomNumberSeed(seed % (2**31 - 2) + 1)
    context = make_context(system, integrator)
    context.setPositions(positions * unit.nanometer)
    for attempt in range(_ATTEMPTS):
        context.setParameter("stiffness", _STIFFNESS * 2**attempt)
        for overlap in (0.0, 0.1, 1.0):  # first through each other into shape, then apart
            context.setParameter("overlap", overlap)
            openmm.LocalEnergyMinimizer.minimize(context, 10.0, 300)
        state = context.getState(positions=True)
        result = np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer))
        left = faults(topology, result, moving)
        if not left:
            return result
        context.setParameter("overlap", 0.1)
        context.setVelocitiesToTemperature(600 * unit.kelvin, seed % (2**31 - 2) + 1 + attempt)
        integrator.step(300)
    raise EntryError("rebuild", f"what the file lacks could not be built: {'; '.join(left)}")


def faults(topology: app.Topology, positions: np.ndarray, moving: np.ndarray) -> list[str]:
    """Name the wrong hands, cis peptides and pierced rings in which an atom that may move takes part.

    Parameters
    ----------
    topology
        Of the protein.
    positions
        (N, 3) in nm.
    moving
        (N,) bool.
    """
    found = [
        f"{centre.residue.name}{centre.residue.id}:{centre.name} has the wrong hand"
        for residue in topology.residues()
        for *neighbours, centre in centres(residue)
        if any(moving[atom.index] for atom in (*neighbours, centre)) and hand(positions, neighbours, centre) < 0
    ]
    for atoms in peptides(topology):
        bonds = np.diff(positions[[atom.index for atom in atoms]], axis=0)
        cis = np.dot(np.cross(bonds[0], bonds[1]), np.cross(bonds[1], bonds[2])) > 0
        if cis and any(moving[atom.index] for atom in atoms):
            found.append(f"the peptide before {atoms[3].residue.name}{atoms[3].residue.id} is cis")
    return found + pierced_rings(topology, positions, moving)


def peptides(topology: app.Topology) -> Iterator[tuple[Any, Any, Any, Any]]:
    """Yield CA, C, N, CA of each peptide bond that is to be trans: all but those before proline."""
    for a, b in topology.bonds():
        if {a.name, b.name} != {"C", "N"} or a.residue is b.residue:
            continue
        carbon, nitrogen = (a, b) if a.name == "C" else (b, a)
        before = next((atom for atom in carbon.residue.atoms() if atom.name == "CA"), None)
        after = next((atom for atom in nitrogen.residue.atoms() if atom.name == "CA"), None)
        if before and after and nitrogen.residue.name != "PRO":
            yield before, carbon, nitrogen, after


def _system(topology: app.Topology, moving: np.ndarray) -> openmm.System:
    try:
        system = force_field(DEFAULT_FORCE_FIELD).createSystem(topology, rigidWater=False, removeCMMotion=False)
    except ValueError as error:
        raise EntryError("no_template", f"AMBER does not describe the repaired protein: {error}") from error
    nonbonded = [i for i, force in enumerate(system.getForces()) if isinstance(force, openmm.NonbondedForce)]
    for i in reversed(nonbonded):
        system.removeForce(i)
    for fixed in np.nonzero(~moving)[0]:
        system.setParticleMass(int(fixed), 0.0)
    shape = openmm.CustomTorsionForce("stiffness*(1-cos(theta-theta0))")
    shape.addGlobalParameter("stiffness", _STIFFNESS)
    shape.addPerTorsionParameter("theta0")
    for residue in topology.residues():
        for centre in centres(residue):
            if any(moving[atom.index] for atom in centre):
                shape.addTorsion(*(atom.index for atom in centre), [_IMPROPER])
    for peptide in peptides(topology):
        if any(moving[atom.index] for atom in peptide):
            shape.addTorsion(*(atom.index for atom in peptide), [pi])
    system.addForce(shape)
    system.addForce(_repulsion(topology, moving))
    return system


def _repulsion(topology: app.Topology, moving: np.ndarray) -> openmm.CustomNonbondedForce:
    force = openmm.CustomNonbondedForce("overlap*50000*step(reach-r)*(reach-r)^2; reach=radius1+radius2")
    force.addGlobalParameter("overlap", 1.0)
    force.addPerParticleParameter("radius")
    for atom in topology.atoms():
        force.addParticle([_RADIUS.get(atom.element.symbol, _HEAVY_RADIUS)])
    force.createExclusionsFromBonds([(a.index, b.index) for a, b in topology.bonds()], 3)
    force.addInteractionGroup(np.nonzero(moving)[0].tolist(), range(len(moving)))
    force.setNonbondedMethod(openmm.CustomNonbondedForce.CutoffNonPeriodic)
    force.setCutoffDistance(2 * _HEAVY_RADIUS)
    return force
