"""Small molecules with bonded forces that OpenMM computes: drawn by hand, in frames, and as a dataset.h5."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import openmm
from dataset_files import pair_forces, write_dataset
from openmm import app

from forcefield_ml.bonded import BondedTable, Parameters, find_terms
from forcefield_ml.bonded.geometry import N_FUNCTIONS


class Molecule(NamedTuple):
    """What a topology tells of one molecule or several."""

    species: np.ndarray  # (N,)
    bonds: np.ndarray  # (B, 2)


def drawn(species: list[int], bonds: list[tuple[int, int]]) -> Molecule:
    return Molecule(np.array(species), np.array(bonds, dtype=np.int64).reshape(-1, 2))


def together(*molecules: Molecule) -> Molecule:
    """Return molecules one after the other."""
    first = np.cumsum([0, *(len(molecule.species) for molecule in molecules)])
    bonds = [molecule.bonds + start for molecule, start in zip(molecules, first[:-1], strict=True)]
    return Molecule(np.concatenate([molecule.species for molecule in molecules]), np.concatenate(bonds))


WATER = drawn([8, 1, 1], [(0, 1), (0, 2)])
ETHANE = drawn([6, 6, 1, 1, 1, 1, 1, 1], [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5), (1, 6), (1, 7)])
PROPANE = drawn(
    [6, 6, 6, 1, 1, 1, 1, 1, 1, 1, 1],
    [(0, 1), (1, 2), (0, 3), (0, 4), (0, 5), (1, 6), (1, 7), (2, 8), (2, 9), (2, 10)],
)
FORMALDEHYDE = drawn([6, 8, 1, 1], [(0, 1), (0, 2), (0, 3)])
FORMAMIDE = drawn([6, 8, 1, 7, 1, 1], [(0, 1), (0, 2), (0, 3), (3, 4), (3, 5)])
CYCLOPROPANE = drawn(
    [6, 6, 6, 1, 1, 1, 1, 1, 1], [(0, 1), (1, 2), (2, 0), (0, 3), (0, 4), (1, 5), (1, 6), (2, 7), (2, 8)]
)
AMIDE = drawn(
    [6, 1, 1, 1, 6, 8, 7, 1, 6, 1, 1, 1],
    [(0, 1), (0, 2), (0, 3), (0, 4), (4, 5), (4, 6), (6, 7), (6, 8), (8, 9), (8, 10), (8, 11)],
)
"""N-methylacetamide."""

RADIUS = {1: 0.032, 6: 0.077, 7: 0.070, 8: 0.066, 11: 0.15, 16: 0.10, 17: 0.10}
"""nm; two of them make a bond."""


def chosen_table(molecule: Molecule, depths: int = 2, seed: int = 0) -> BondedTable:
    """Return a table with parameters of a molecule's size for all of its keys down to some depth."""
    random = np.random.default_rng(seed)
    keys, values, gram = {}, {}, {}
    for kind, terms in find_terms(*molecule).items():
        n = N_FUNCTIONS[kind]
        rows = {}
        for depth in range(depths):
            for key in np.unique(terms.keys[:, depth]).tolist():
                atoms = terms.atoms[np.flatnonzero(terms.keys[:, depth] == key)[0]]
                rows[key] = _chosen(kind, molecule.species[atoms], depth, random)
        keys[kind] = np.array(sorted(rows), dtype=np.int64)
        values[kind] = np.array([rows[key] for key in sorted(rows)]).reshape(-1, n)
        gram[kind] = np.tile(np.diag(0.5 + np.arange(n)) + 0.1, (len(rows), 1, 1))
    return BondedTable(keys, values, gram)


def _chosen(kind: str, elements: np.ndarray, depth: int, random: np.random.Generator) -> np.ndarray:
    if kind in ("proper", "improper"):
        return random.normal(size=N_FUNCTIONS[kind]) * (2.0 if depth == 0 else 1.0)
    stiff, place = (2e5, RADIUS[elements[0]] + RADIUS[elements[1]]) if kind == "bond" else (400.0, 1.95)
    if depth:  # a correction: another stiffness, another place
        stiff, place = stiff * 0.1 * random.normal(), place * (1 + 0.1 * random.normal())
    return np.array([stiff, stiff * place])


def openmm_system(parameters: Parameters, species: np.ndarray, box: np.ndarray | None = None) -> openmm.System:
    """Return a System with OpenMM's own forces for some terms: their energy, up to a constant."""
    system = openmm.System()
    for number in species:
        system.addParticle(app.Element.getByAtomicNumber(int(number)).mass)
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*(openmm.Vec3(*row) for row in np.asarray(box, dtype=float)))
    bond, angle, torsion = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.PeriodicTorsionForce()
    for kind, force in (("bond", bond), ("angle", angle)):
        add = force.addBond if kind == "bond" else force.addAngle
        for atoms, (k, k_times_place) in zip(parameters.atoms[kind], parameters.values[kind], strict=True):
            if k:
                add(*(int(i) for i in atoms), float(k_times_place / k), float(k))
    for kind, first in (("proper", 1), ("improper", 2)):
        for atoms, sizes in zip(parameters.atoms[kind], parameters.values[kind], strict=True):
            for n, size in enumerate(sizes, start=first):
                torsion.addTorsion(*(int(i) for i in atoms), n, 0.0, float(size))
    for force in (bond, angle, torsion):
        force.setUsesPeriodicBoundaryConditions(box is not None)
        system.addForce(force)
    return system


def openmm_context(system: openmm.System, step: float = 0.0005) -> openmm.Context:
    integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, step)
    integrator.setRandomNumberSeed(1)
    return openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))


def openmm_forces(system: openmm.System, positions: np.ndarray) -> np.ndarray:
    """Return the forces (N, 3), kJ/mol/nm, in double precision."""
    context = openmm_context(system)
    context.setPositions(np.asarray(positions, dtype=float))
    return context.getState(forces=True).getForces(asNumpy=True)._value


def conformers(molecule: Molecule, table: BondedTable, n_frames: int, seed: int = 0) -> np.ndarray:
    """Return positions (F, N, 3), nm, of dynamics by a table's own terms at 300 K, far enough apart to differ."""
    context = openmm_context(openmm_system(table.parameters(*molecule), molecule.species))
    context.setPositions(0.2 * np.random.default_rng(seed).random((len(molecule.species), 3)))
    openmm.LocalEnergyMinimizer.minimize(context, 1.0)
    context.setVelocitiesToTemperature(300.0, seed + 1)
    frames = []
    for frame in range(n_frames + 5):
        context.getIntegrator().step(200)
        if frame >= 5:
            frames.append(context.getState(positions=True).getPositions(asNumpy=True)._value)
    return np.array(frames)


SIDE = 1.5
"""nm, of the box of `write_molecules`."""


@lru_cache(maxsize=1)
def _pools() -> tuple[BondedTable, np.ndarray, np.ndarray]:
    table = chosen_table(together(AMIDE, WATER), seed=4)
    return table, conformers(AMIDE, table, 40), conformers(WATER, table, 40)


def liquid(random: np.random.Generator, torn: bool = True) -> tuple[Molecule, np.ndarray, np.ndarray, np.ndarray]:
    """Return nine amides among eighteen waters: molecules, positions (N, 3), a triclinic box, and the forces.

    These are OpenMM's for the bonds and weak ones between all near atoms. Torn, a molecule's atoms are in many images.
    """
    table, amides, waters = _pools()
    box = np.array([[SIDE, 0, 0], [0.2, SIDE, 0], [-0.1, 0.15, SIDE]])
    sites = random.permutation(np.stack(np.meshgrid(*[np.arange(3) / 3] * 3), axis=-1).reshape(-1, 3)) @ box
    placed = []
    for number, site in enumerate(sites):
        pool = amides if number < 9 else waters
        one = pool[random.integers(len(pool))]
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        placed.append((one - one.mean(axis=0)) @ turn + site)
    molecules = together(*[AMIDE] * 9, *[WATER] * 18)
    positions = np.concatenate(placed)
    system = openmm_system(table.parameters(*molecules), molecules.species, box)
    forces = openmm_forces(system, positions)
    forces += 0.1 * pair_forces(positions, molecules.species.astype(float), box)  # which tries the nearest images alone
    if torn:
        positions = positions + random.integers(-1, 2, size=positions.shape) @ box
    return molecules, positions.astype(np.float32), box, forces


def _alone(molecules: Molecule, places: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the forces (F, N, 3) of bonded terms without a box, on some molecules."""
    system = openmm_system(_pools()[0].parameters(*molecules), molecules.species)
    return np.where(mask[:, None], [openmm_forces(system, frame) for frame in places], 0.0)


def write_molecules(path: Path, splits: dict[str, str], n_frames: int = 4, seed: int = 0, parts: bool = False) -> Path:
    """Write a dataset of liquids, whose amides are the targets; parameters as of `dataset_files.write_dataset`.

    With parts molecules are whole, so that the solute has its own force alone.
    """
    write_dataset(path, splits, n_frames, seed, parts=parts)
    random = np.random.default_rng(seed)
    with h5py.File(path, "r+") as file:
        for name in splits:
            frames = [liquid(random, torn=not parts) for _ in range(n_frames)]
            molecules = frames[0][0]
            n_atoms = len(molecules.species)
            places = np.stack([positions for _, positions, _, _ in frames])
            fields: dict[str, Any] = {
                "species": molecules.species,
                "atom_names": np.full(n_atoms, b"X"),
                "residue_names": np.full(n_atoms, b"ALA"),
                "residue_index": np.arange(n_atoms),
                "charges": np.zeros(n_atoms),
                "bonds": molecules.bonds,
                "target_mask": np.arange(n_atoms) < 9 * len(AMIDE.species),
                "positions": places,
                "box": np.stack([box for _, _, box, _ in frames]),
                "forces": np.stack([forces for _, _, _, forces in frames]),
            }
            if parts:
                fields |= {"forces_reciprocal": 40 * np.sin(2 * places + 1), "forces_minus_mm": 30 * np.cos(3 * places)}
                fields["forces_solute"] = _alone(molecules, places, fields["target_mask"])
            group = file["entries"][name]
            for field, value in fields.items():
                dtype = group[field].dtype
                del group[field]
                group.create_dataset(field, data=np.asarray(value).astype(dtype))
    return path
