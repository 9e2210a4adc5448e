"""Heavy hydrogens: mass moved to each hydrogen from the atom it is bonded to, so that its bond swings more slowly."""

from __future__ import annotations

from typing import Any

import openmm
from openmm import app

from forcefield_ml import units
from forcefield_ml.errors import ConfigError

LIGHTEST, HEAVIEST = 1.0, 4.0
"""u. Four leave the oxygen of water ten, more than its hydrogens."""


def repartition(system: openmm.System, topology: app.Topology, hydrogen_mass: Any) -> None:
    """Give every hydrogen a mass and take the difference from its partner; the sum of all masses stays.

    What `hydrogenMass` of OpenMM's `ForceField.createSystem` does, for every System: thermodynamic averages stay as
    they are, bonds with hydrogen swing by the root of the masses' ratio more slowly, and an error of a force moves a
    hydrogen that much less. Source: Feenstra, Hess and Berendsen, J. Comput. Chem. 20, 786 (1999).

    Parameters
    ----------
    system
        Its masses are changed.
    topology
        With bonds; water included.
    hydrogen_mass
        u, or a quantity.

    Raises
    ------
    ConfigError
        If the mass is not within 1 to 4 u, or a hydrogen has no bond to take it from.
    """
    mass = float(units.strip(hydrogen_mass, "dalton"))
    if not LIGHTEST <= mass <= HEAVIEST:
        raise ConfigError(
            f"the hydrogen mass is {mass:g} u; {LIGHTEST:g} to {HEAVIEST:g} u is allowed. 3 u is usual with 1 fs"
        )
    partner: dict[int, int] = {}
    for bond in topology.bonds():
        for one, other in ((bond.atom1, bond.atom2), (bond.atom2, bond.atom1)):
            if one.element == app.element.hydrogen and other.element not in (app.element.hydrogen, None):
                partner[one.index] = other.index
    for atom in topology.atoms():
        if atom.element != app.element.hydrogen:
            continue
        if atom.index not in partner:
            raise ConfigError(
                f"atom {atom.index} ({atom.name} of {atom.residue.name} {atom.residue.id}) is a hydrogen without a "
                "bond, so there is no atom to take mass from. Give a topology with bonds, or leave hydrogen_mass out"
            )
        gain = mass - float(units.strip(system.getParticleMass(atom.index), "dalton"))
        heavy = partner[atom.index]
        system.setParticleMass(atom.index, mass)
        system.setParticleMass(heavy, float(units.strip(system.getParticleMass(heavy), "dalton")) - gain)


def take_masses(system: openmm.System, other: openmm.System) -> None:
    """Give a System the masses of another one of the same atoms.

    Parameters
    ----------
    system
        Is changed.
    other
        With as many particles.
    """
    for i in range(other.getNumParticles()):
        system.setParticleMass(i, other.getParticleMass(i))
