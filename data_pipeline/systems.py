"""OpenMM systems and contexts as every stage builds them: one place for platform, force field and flexibility."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from data_pipeline.errors import EntryError

DEFAULT_FORCE_FIELD = ("amber14-all.xml", "amber14/tip3pfb.xml")

PROTEIN_RESIDUES = frozenset(
    "ALA ARG ASN ASP CYS GLN GLU GLY HIS ILE LEU LYS MET PHE PRO SER THR TRP TYR VAL".split()
    + "ACE NME NH2 ASH CYM CYX GLH HID HIE HIP HYP LYN".split()
)
"""Residues whose atoms are targets: the standard ones, their protonation variants and caps."""


@lru_cache(maxsize=4)
def force_field(files: tuple[str, ...]) -> app.ForceField:
    """Load a force field.

    Parameters
    ----------
    files
        Names that ``openmm.app.ForceField`` finds, or paths of XML files.

    Raises
    ------
    EntryError
        If OpenMM cannot load one of them.
    """
    try:
        return app.ForceField(*files)
    except Exception as error:
        raise EntryError(
            "force_field",
            f"OpenMM cannot load the force field {', '.join(files)}: {error}. "
            "Name XML files that ship with OpenMM, such as amber14-all.xml and amber14/tip3pfb.xml, or give paths.",
        ) from error


def single_thread_platform(name: str = "CPU", device: str | None = None) -> openmm.Platform:
    """Return a platform that repeats bit for bit: one thread and deterministic forces where it knows them.

    The values become the platform's defaults in this process, since Modeller and PDBFixer make contexts of their own.

    Parameters
    ----------
    name
        ``"CPU"``, ``"Reference"``, ``"CUDA"``, ``"OpenCL"`` or ``"HIP"``.
    device
        Index of a device; None leaves it as it is in this process, at first as OpenMM chooses.

    Raises
    ------
    EntryError
        If this installation has no such platform, or the platform has no devices to choose from.
    """
    names = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if name not in names:
        raise EntryError("platform", f"OpenMM has no platform {name!r} here. Allowed: {', '.join(names)}.")
    platform = openmm.Platform.getPlatformByName(name)
    known = platform.getPropertyNames()
    if device is not None and "DeviceIndex" not in known:
        raise EntryError("platform", f"OpenMM's platform {name} has no device {device!r} to choose; leave device out.")
    values = {"Threads": "1", "DeterministicForces": "true", "Precision": "mixed", "DeviceIndex": device}
    for key, value in values.items():
        if key in known and value is not None:
            platform.setPropertyDefaultValue(key, value)
    return platform


def build_system(
    topology: app.Topology,
    files: Sequence[str] = DEFAULT_FORCE_FIELD,
    *,
    cutoff: float = 0.9,
    ewald_tolerance: float = 5e-4,
    constrained: bool = False,
    hydrogen_mass: float | None = None,
) -> openmm.System:
    """Build a System, by default with every bond and angle flexible, as labels need it.

    Parameters
    ----------
    topology
        Atoms, bonds and, for PME, the box. Without a box there is no cutoff.
    files
        Force field files.
    cutoff
        Direct-space cutoff in nm.
    ewald_tolerance
        PME error tolerance.
    constrained
        True constrains bonds to hydrogen and makes water rigid. Never for labels: the terms of constrained bonds
        are missing from the forces.
    hydrogen_mass
        Da, of hydrogens outside water, taken from their neighbours; None leaves them as they are.

    Raises
    ------
    EntryError
        If a residue has no template, the box is smaller than twice the cutoff, or there are virtual sites.
    """
    box = topology.getPeriodicBoxVectors()
    options: dict[str, Any] = {"nonbondedMethod": app.NoCutoff}
    if box is not None:
        width = box_width(np.array(box.value_in_unit(unit.nanometer)))
        if width < 2 * cutoff:
            raise EntryError(
                "small_box",
                f"the box is {width:.3f} nm wide, less than twice the cutoff of {cutoff} nm. "
                "Raise prepare.padding or lower label.cutoff.",
            )
        options = {
            "nonbondedMethod": app.PME,
            "nonbondedCutoff": cutoff * unit.nanometer,
            "ewaldErrorTolerance": ewald_tolerance,
        }
    try:
        system = force_field(tuple(files)).createSystem(
            topology,
            constraints=app.HBonds if constrained else None,
            rigidWater=constrained,
            hydrogenMass=hydrogen_mass,
            **options,
        )
    except ValueError as error:
        raise EntryError("no_template", f"the force field does not describe this system: {error}") from error
    if any(system.isVirtualSite(i) for i in range(system.getNumParticles())):
        raise EntryError(
            "virtual_sites",
            f"{', '.join(files)} puts virtual sites into water; a dataset holds atoms only. "
            "Choose a three-site water such as amber14/tip3pfb.xml.",
        )
    return system


def box_width(box: np.ndarray) -> float:
    """Return the least diagonal element of a reduced box (3, 3) in nm: OpenMM wants it to be twice the cutoff."""
    return float(np.diag(box).min())


def make_context(system: openmm.System, integrator: openmm.Integrator, platform: str = "CPU") -> openmm.Context:
    """Make a Context on one thread of the named platform."""
    return openmm.Context(system, integrator, single_thread_platform(platform))


def protein_mask(topology: app.Topology) -> np.ndarray:
    """Return (N,) bool, true for the atoms of protein residues."""
    return np.array([atom.residue.name in PROTEIN_RESIDUES for atom in topology.atoms()], dtype=bool)


def box_of(state: openmm.State) -> np.ndarray:
    """Return the box (3, 3) in nm of a State."""
    return np.asarray(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer), dtype=np.float64)
