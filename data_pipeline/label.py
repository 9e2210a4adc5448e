"""Reference forces and energies of frames, by any force field OpenMM can load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import openmm
from openmm import app, unit

from data_pipeline.errors import EntryError
from data_pipeline.systems import DEFAULT_FORCE_FIELD, build_system, make_context, protein_mask

MAX_FORCE = 1e5
"""kJ/mol/nm on one atom; thermal forces at 300 K stay below a tenth of it."""


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
    """

    forces: np.ndarray
    energy: np.ndarray
    charges: np.ndarray
    pme_alpha: float
    pme_grid: np.ndarray


def label(
    topology: app.Topology,
    positions: np.ndarray,
    box: np.ndarray,
    *,
    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD,
    ewald_tolerance: float = 1e-5,
    cutoff: float = 0.9,
    max_force: float = MAX_FORCE,
    platform: str = "CPU",
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
    force_field_files, ewald_tolerance, cutoff
        As in `build_system`.
    max_force
        kJ/mol/nm; a frame with a larger force on any atom is refused.
    platform
        Name of an OpenMM platform.

    Raises
    ------
    EntryError
        Of kind runaway, naming the atom, when a force is not finite or larger than `max_force`.
    TypeError
        If positions or box are not float32.
    """
    if positions.dtype != np.float32 or box.dtype != np.float32:
        raise TypeError(f"round to float32 before labelling; got {positions.dtype} positions and {box.dtype} box")
    system = build_system(topology, force_field_files, cutoff=cutoff, ewald_tolerance=ewald_tolerance)
    context = make_context(system, openmm.VerletIntegrator(0.001), platform)
    forces = np.empty(positions.shape, dtype=np.float32)
    energy = np.empty(len(positions), dtype=np.float64)
    for frame, (frame_positions, frame_box) in enumerate(zip(positions, box, strict=True)):
        context.setPeriodicBoxVectors(*frame_box.astype(np.float64))
        context.setPositions(frame_positions.astype(np.float64))
        state = context.getState(getForces=True, getEnergy=True)
        exact = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        energy[frame] = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        _refuse_runaway(topology, np.asarray(exact), frame, max_force)
        forces[frame] = exact
    if not np.isfinite(energy).all():
        raise EntryError("runaway", f"the potential energy is not finite: {energy.tolist()}")
    charges, alpha, grid = _electrostatics(system, context)
    return Labels(forces, energy, charges, alpha, grid)


def displace(
    positions: np.ndarray, mask: np.ndarray, *, copies: int, largest: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add copies of each frame whose masked atoms are displaced at random.

    Dynamics with a learnt force visits bonds and angles that a few thermal frames do not hold; where the network then
    has no restoring force, a bond breaks. A displaced copy shows it such geometries for the price of one force
    evaluation. Each copy has a standard deviation of its own, uniform up to the largest.

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
    seed
        Of the displacements.

    Returns
    -------
    positions : ndarray
        (F (1 + copies), N, 3) float32, the frames as sampled first.
    displacement : ndarray
        (F (1 + copies),) float32, standard deviations; 0 for the frames as sampled.
    """
    generator = np.random.default_rng(seed)
    sigma = generator.uniform(0.0, largest, size=copies * len(positions))
    moved = np.tile(positions, (copies, 1, 1))
    noise = generator.normal(size=(len(sigma), int(mask.sum()), 3)) * sigma[:, None, None]
    moved[:, mask] += noise.astype(np.float32)
    return (
        np.concatenate([positions, moved]),
        np.concatenate([np.zeros(len(positions)), sigma]).astype(np.float32),
    )


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


def _refuse_runaway(topology: app.Topology, forces: np.ndarray, frame: int, max_force: float) -> None:
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


def _electrostatics(system: openmm.System, context: openmm.Context) -> tuple[np.ndarray, float, np.ndarray]:
    charges = np.zeros(system.getNumParticles(), dtype=np.float32)
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            for i in range(force.getNumParticles()):
                charges[i] = force.getParticleParameters(i)[0].value_in_unit(unit.elementary_charge)
            if force.getNonbondedMethod() == openmm.NonbondedForce.PME:
                alpha, *grid = force.getPMEParametersInContext(context)
                alpha = alpha.value_in_unit(unit.nanometer**-1) if unit.is_quantity(alpha) else alpha
                return charges, float(alpha), np.array(grid, dtype=np.int32)
    return charges, 0.0, np.zeros(3, dtype=np.int32)
