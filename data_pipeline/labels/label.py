"""Reference forces and energies of frames, by any force field OpenMM can load or any potential of openmm-ml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import openmm
from openmm import app, unit

from data_pipeline.errors import EntryError
from data_pipeline.labels import ewald, parts
from data_pipeline.labels.potential import Potential
from data_pipeline.systems.build import DEFAULT_FORCE_FIELD, build_system, evaluate, make_context, protein_mask

MAX_FORCE = 1e5
"""kJ/mol/nm on one atom; thermal forces at 300 K stay below a tenth of it."""

FAR_SHARE = 0.2
"""Of the atoms of an uneven copy: those displaced far, by more than the part `NEAR` of the largest displacement."""

NEAR = 0.25
"""See `FAR_SHARE`."""


@dataclass(frozen=True)
class Reference:
    """What gives the labels.

    Parameters
    ----------
    force_field_files
        As in `build_system`.
    potential
        In place of the force field.
    mm_force_field_files
        The force field that is subtracted where asked, and that gives charges where the reference has none.
    cutoff, ewald_tolerance
        As in `build_system`, for both.
    """

    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD
    potential: Potential | None = None
    mm_force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD
    cutoff: float = 0.9
    ewald_tolerance: float = 1e-5

    @property
    def name(self) -> str:
        """Files, comma separated, or openmm-ml:NAME."""
        return ",".join(self.force_field_files) if self.potential is None else f"openmm-ml:{self.potential.name}"

    def build(self, topology: app.Topology) -> openmm.System:
        """Return the flexible System of the reference; raises as `build_system` and `Potential.build_system`."""
        if self.potential is not None:
            return self.potential.build_system(topology)
        return self._build(topology, self.force_field_files)

    def build_mm(self, topology: app.Topology) -> openmm.System:
        """Return the flexible System of the force field that is subtracted."""
        return self._build(topology, self.mm_force_field_files)

    def charges(self, system: openmm.System, topology: app.Topology) -> np.ndarray:
        """Return the charges (N,) float32 of the reference's System, or of the MM force field if it has none."""
        found = _charges(system)
        if found is None:
            found = _charges(self.build_mm(topology))
        return np.zeros(system.getNumParticles(), dtype=np.float32) if found is None else found

    def _build(self, topology: app.Topology, files: Sequence[str]) -> openmm.System:
        return build_system(topology, files, cutoff=self.cutoff, ewald_tolerance=self.ewald_tolerance)


@dataclass(frozen=True)
class Labels:
    """Reference forces of some frames.

    Parameters
    ----------
    forces
        (F, N, 3) float32 in kJ/mol/nm, total, on every atom.
    energy
        (F,) float64 in kJ/mol.
    charges
        (N,) float32 in elementary charges.
    pme_alpha
        Ewald splitting parameter in 1/nm, 0 without PME.
    pme_grid
        (3,) int32 mesh points, zeros without PME.
    kept
        (frames given,) bool; False where a frame was dropped, which the other arrays lack.
    parts
        Optional fields and attributes by name, as in `schema`.
    """

    forces: np.ndarray
    energy: np.ndarray
    charges: np.ndarray
    pme_alpha: float
    pme_grid: np.ndarray
    kept: np.ndarray
    parts: dict[str, np.ndarray] = field(default_factory=dict)


def label(
    topology: app.Topology,
    positions: np.ndarray,
    box: np.ndarray,
    *,
    droppable: np.ndarray | None = None,
    wanted: Sequence[str] = (),
    reciprocal_alpha: float = 4.5,
    max_force: float = MAX_FORCE,
    platform: str = "CPU",
    **reference: Any,
) -> Labels:
    """Compute total forces without any constraint, so that no bonded term is missing.

    Parameters
    ----------
    topology
        Atoms and bonds, with a box for PME.
    positions
        (F, N, 3) float32 in nm; float32 because the dataset holds that.
    box
        (F, 3, 3) float32 in nm.
    droppable
        (F,) bool, frames that are dropped where a force is too large; all others refuse the entry then.
    wanted
        Parts to compute besides, of `parts.PARTS`.
    reciprocal_alpha
        1/nm, of the part ``reciprocal``.
    max_force
        kJ/mol/nm; a frame with a larger force on any atom is refused or dropped.
    platform
        Name of an OpenMM platform.
    **reference
        As in `Reference`.

    Raises
    ------
    EntryError
        Of kind runaway, naming the atom, when a force is not finite or larger than `max_force`.
    ConfigError
        If the reference is a potential that is not there.
    TypeError
        If positions or box are not float32.
    """
    if positions.dtype != np.float32 or box.dtype != np.float32:
        raise TypeError(f"round to float32 before labelling; got {positions.dtype} positions and {box.dtype} box")
    source = Reference(**reference)
    system = source.build(topology)
    context = make_context(system, openmm.VerletIntegrator(0.001), platform)
    may_drop = np.zeros(len(positions), dtype=bool) if droppable is None else droppable
    kept = np.ones(len(positions), dtype=bool)
    forces = np.empty(positions.shape, dtype=np.float32)
    energy = np.empty(len(positions), dtype=np.float64)
    for frame, (frame_positions, frame_box) in enumerate(zip(positions, box, strict=True)):
        exact, energy[frame] = evaluate(context, frame_positions, frame_box)
        try:
            _refuse_runaway(topology, exact, energy[frame], frame, max_force)
        except EntryError:
            if not may_drop[frame]:
                raise
            kept[frame] = False
        forces[frame] = exact
    alpha, grid = ewald.pme_of(context)
    del context
    positions, box, forces = positions[kept], box[kept], forces[kept]
    charges = source.charges(system, topology)
    found = label_parts(
        source,
        system,
        topology,
        positions,
        box,
        forces,
        charges,
        wanted=wanted,
        reciprocal_alpha=reciprocal_alpha,
        platform=platform,
    )
    return Labels(forces, energy[kept], charges, alpha, grid, kept, found)


def label_parts(
    source: Reference,
    system: openmm.System,
    topology: app.Topology,
    positions: np.ndarray,
    box: np.ndarray,
    forces: np.ndarray,
    charges: np.ndarray,
    *,
    wanted: Sequence[str],
    reciprocal_alpha: float,
    reciprocal_grid: np.ndarray | None = None,
    platform: str = "CPU",
) -> dict[str, np.ndarray]:
    """Return parts of the labels of frames whose total forces are known: optional fields and attributes by name.

    Parameters
    ----------
    source
        What gives the labels.
    system
        Its System; force groups are changed.
    topology, positions, box
        As for `label`.
    forces
        (F, N, 3) float32 in kJ/mol/nm, total.
    charges
        (N,) elementary charges.
    wanted
        Of `parts.PARTS`.
    reciprocal_alpha
        1/nm, of the part ``reciprocal``.
    reciprocal_grid
        (3,) mesh points of it; None for those that the largest box asks for.
    platform
        Name of an OpenMM platform.
    """
    found: dict[str, np.ndarray] = {}
    if "groups" in wanted:
        names, by_group = parts.forces_by_group(system, positions, box, platform)
        found |= {"group_names": np.array(names, dtype="S32"), "forces_by_group": by_group}
    if "reciprocal" in wanted:
        mesh = reciprocal_grid
        if mesh is None:
            mesh = ewald.mesh(box.max(axis=0), reciprocal_alpha, ewald.RECIPROCAL_TOLERANCE)
        found |= {"reciprocal_alpha": np.array(reciprocal_alpha), "reciprocal_grid": mesh}
        found["forces_reciprocal"] = ewald.reciprocal_forces(
            charges, positions, box, alpha=reciprocal_alpha, grid=mesh, platform=platform
        )
    if "solute" in wanted:
        mask = protein_mask(topology)
        alone = source.build(parts.solute_topology(topology, mask))
        found["forces_solute"], found["energy_solute"] = parts.solute_forces(alone, mask, positions, platform)
    if "minus_mm" in wanted:
        mm = parts.total_forces(source.build_mm(topology), positions, box, platform)
        found["forces_minus_mm"] = (forces - mm).astype(np.float32)
    return found


def displace(
    positions: np.ndarray,
    mask: np.ndarray,
    *,
    copies: int,
    largest: float,
    uneven: bool = False,
    molecules: np.ndarray | None = None,
    shift: float = 0.0,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Add copies of each frame whose masked atoms are displaced at random, and molecules, if wanted, as a whole.

    Dynamics with a learnt force visits bonds and angles that a few thermal frames do not hold; where the network then
    has no restoring force, a bond breaks. A displaced copy shows it such geometries for the price of one force
    evaluation. Each copy has a standard deviation of its own, uniform up to the largest.

    In uneven copies each atom has its own: of a fifth of the atoms, drawn anew for each copy, uniform from a quarter of
    the largest to the largest, of the others uniform up to a quarter. A bond far out of its place then stands among
    atoms near theirs, as it does where dynamics break it; in even copies all bonds are far out together.

    Molecules moved as a whole show what holds two of them apart: a fifth of them in each copy, each by a standard
    deviation of its own, uniform up to the largest.

    Parameters
    ----------
    positions
        (F, N, 3) float32 in nm.
    mask
        (N,) bool, the atoms to displace.
    copies
        Of each frame.
    largest
        nm, of the standard deviation of each coordinate.
    uneven
        Draw a standard deviation for each atom.
    molecules
        (N,) integers, the same for the atoms of a molecule that may be moved as a whole; negative: never moved so.
    shift
        nm, largest standard deviation of each coordinate of such a move.
    seed
        Of the displacements.

    Returns
    -------
    positions : ndarray
        (F (1 + copies), N, 3) float32, the frames as sampled first.
    displacement : ndarray
        (F (1 + copies),) float32, standard deviations, the largest of any atom; 0 for the frames as sampled.
    """
    generator = np.random.default_rng(seed)
    n_copies, n_atoms = copies * len(positions), int(mask.sum())
    if uneven:
        far = generator.random((n_copies, n_atoms)) < FAR_SHARE
        low, high = np.where(far, NEAR, 0.0), np.where(far, 1.0, NEAR)
        sigma = largest * generator.uniform(low, high)
    else:
        sigma = generator.uniform(0.0, largest, size=(n_copies, 1))
    moved = np.tile(positions, (copies, 1, 1))
    noise = generator.normal(size=(n_copies, n_atoms, 3)) * sigma[:, :, None]
    moved[:, mask] += noise.astype(np.float32)
    if molecules is not None and shift > 0:
        moved += _moved_as_a_whole(molecules, n_copies, shift, generator).astype(np.float32)
    return (
        np.concatenate([positions, moved]),
        np.concatenate([np.zeros(len(positions)), sigma.max(axis=1, initial=0.0)]).astype(np.float32),
    )


def _moved_as_a_whole(molecules: np.ndarray, n_copies: int, shift: float, generator: np.random.Generator) -> np.ndarray:
    """Return (n_copies, N, 3) displacements, the same for all atoms of a molecule."""
    known = np.unique(molecules[molecules >= 0])
    sigma = np.where(generator.random((n_copies, len(known))) < FAR_SHARE, 1.0, 0.0)
    sigma *= generator.uniform(0.0, shift, size=sigma.shape)
    moves = generator.normal(size=(*sigma.shape, 3)) * sigma[:, :, None]
    found = np.zeros((n_copies, len(molecules), 3))
    inside = molecules >= 0
    found[:, inside] = moves[:, np.searchsorted(known, molecules[inside])]
    return found


def describe(topology: app.Topology) -> dict[str, np.ndarray]:
    """Return the fields of the dataset that the topology gives, by name as in `schema.ENTRY_FIELDS`.

    Raises
    ------
    EntryError
        Of kind unknown_element when an atom has none.
    """
    atoms = list(topology.atoms())
    nameless = [f"{a.residue.name}{a.residue.id}:{a.name}" for a in atoms if a.element is None]
    if nameless:
        raise EntryError("unknown_element", f"atoms without an element: {', '.join(nameless[:5])}")
    return {
        "species": np.array([a.element.atomic_number for a in atoms], dtype=np.uint8),
        "atom_names": np.array([a.name.encode() for a in atoms], dtype="S4"),
        "residue_names": np.array([a.residue.name.encode() for a in atoms], dtype="S4"),
        "residue_index": np.array([a.residue.index for a in atoms], dtype=np.int32),
        "bonds": np.array([(a.index, b.index) for a, b in topology.bonds()], dtype=np.int32).reshape(-1, 2),
        "target_mask": protein_mask(topology),
    }


def _refuse_runaway(topology: app.Topology, forces: np.ndarray, energy: float, frame: int, max_force: float) -> None:
    magnitude = np.linalg.norm(forces, axis=1)
    worst = int(np.argmax(np.where(np.isfinite(magnitude), magnitude, np.inf)))
    if not magnitude[worst] <= max_force:
        atom = list(topology.atoms())[worst]
        raise EntryError(
            "runaway",
            f"frame {frame}: the force on {atom.residue.name}{atom.residue.id}:{atom.name} is "
            f"{magnitude[worst]:.3g} kJ/mol/nm, more than label.max_force = {max_force:g}; the structure has clashes "
            "or the dynamics blew up",
        )
    if not np.isfinite(energy):
        raise EntryError("runaway", f"frame {frame}: the potential energy is {energy}")


def _charges(system: openmm.System) -> np.ndarray | None:
    """Return the point charges (N,) of a System, None where it has no NonbondedForce."""
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            charges = np.empty(system.getNumParticles(), dtype=np.float32)
            for i in range(force.getNumParticles()):
                charges[i] = force.getParticleParameters(i)[0].value_in_unit(unit.elementary_charge)
            return charges
    return None
