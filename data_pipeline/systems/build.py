"""OpenMM systems and contexts as every stage builds them: one place for platform, force field and flexibility."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from data_pipeline.errors import ConfigError, EntryError
from data_pipeline.systems.residues import is_protein

FORCE_FIELDS: dict[str, tuple[str, ...]] = {
    "amber14": ("amber14-all.xml", "amber14/tip3pfb.xml"),
    "amber19": ("amber19-all.xml", "amber19/tip3pfb.xml"),
    "charmm36": ("charmm36.xml", "charmm36/water.xml"),
    "amoeba2018": ("amoeba2018.xml",),
}
"""Force fields by name, each with its water and ions."""

DEFAULT_FORCE_FIELD = FORCE_FIELDS["amber14"]


def expand_force_field(names: str | Iterable[str]) -> list[str]:
    """Return file names: those of each name in `FORCE_FIELDS`, everything else as it is.

    Parameters
    ----------
    names
        One or several names of force fields, names of files that OpenMM finds, or paths.
    """
    return [file for name in ([names] if isinstance(names, str) else names) for file in FORCE_FIELDS.get(name, (name,))]


def locate_force_field(files: Iterable[str], folder: Path) -> list[str]:
    """Return the files with paths made absolute, having made sure that each is there.

    Parameters
    ----------
    files
        Names of files that OpenMM finds, or paths.
    folder
        What relative paths are relative to.

    Raises
    ------
    ConfigError
        Naming the closest known name.
    """
    located = []
    for file in files:
        path = folder / Path(file).expanduser()
        if path.is_file():
            located.append(str(path.resolve()))
        elif any((data / file).is_file() for data in _data_folders()):
            located.append(file)
        else:
            shipped = {str(found.relative_to(data)) for data in _data_folders() for found in data.rglob("*.xml")}
            close = difflib.get_close_matches(file, [*FORCE_FIELDS, *sorted(shipped)], n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise ConfigError(
                f"no force field {file!r}.{hint} Give one of {', '.join(FORCE_FIELDS)}, a file that ships with OpenMM "
                f"such as amber14-all.xml, or the path of an XML file (looked for at {path})."
            )
    return located


def _data_folders() -> list[Path]:
    """Where OpenMM looks for force fields: its own folder and those that packages add."""
    added = (Path(entry.load()()) for entry in entry_points(group="openmm.forcefielddir"))
    return [Path(app.__file__).parent / "data", *added]


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
            f"Give one of {', '.join(FORCE_FIELDS)}, XML files that ship with OpenMM, or paths.",
        ) from error


def require_point_charges(files: Sequence[str]) -> None:
    """Make sure that a force field can add water and ions, which needs fixed charges and radii.

    Parameters
    ----------
    files
        Of the force field that prepares and moves atoms.

    Raises
    ------
    EntryError
        As `force_field`, or of the same kind for a polarisable force field.
    """
    if not any(isinstance(one, app.forcefield.NonbondedGenerator) for one in force_field(tuple(files)).getGenerators()):
        raise EntryError(
            "force_field",
            f"{', '.join(files)} has no NonbondedForce, so it cannot add solvent (and AMOEBA would need seconds for a "
            "step). Set sample.force_field to one that can, such as amber14; labels are made by label.force_field.",
        )


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
    except RuntimeError as error:  # raised by scripts inside XML files, as CHARMM's are when versions are mixed
        raise EntryError("force_field", f"{', '.join(files)} do not go together: {error}") from error
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


def evaluate(
    context: openmm.Context, positions: np.ndarray, box: np.ndarray | None, groups: Iterable[int] | None = None
) -> tuple[np.ndarray, float]:
    """Return forces (N, 3) in kJ/mol/nm and energy in kJ/mol at given positions.

    Parameters
    ----------
    context
        Of the system.
    positions
        (N, 3) in nm.
    box
        (3, 3) in nm, or None for a system without one.
    groups
        Force groups to count; None for all.
    """
    if box is not None:
        context.setPeriodicBoxVectors(*box.astype(np.float64))
    context.setPositions(positions.astype(np.float64))
    chosen: dict[str, Any] = {} if groups is None else {"groups": set(groups)}
    state = context.getState(getForces=True, getEnergy=True, **chosen)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return np.asarray(forces), state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def protein_mask(topology: app.Topology) -> np.ndarray:
    """Return (N,) bool, true for the atoms of protein residues."""
    return np.array([is_protein(atom.residue.name) for atom in topology.atoms()], dtype=bool)


def box_of(state: openmm.State) -> np.ndarray:
    """Return the box (3, 3) in nm of a State."""
    return np.asarray(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer), dtype=np.float64)
