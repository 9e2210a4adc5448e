"""Put a protein into a periodic box of water and ions, at the density of water."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import openmm
from openmm import app, unit
from scipy.spatial import cKDTree

from data_pipeline.errors import EntryError
from data_pipeline.systems.box import BoxShape, best_orientation, box_vectors
from data_pipeline.systems.build import DEFAULT_FORCE_FIELD, force_field, single_thread_platform
from data_pipeline.systems.repair import seed_generators

ATOMS_PER_VOLUME = 100.0
"""1/nm³, of water; of protein it is about the same."""

MOLECULES_PER_VOLUME = 33.3
"""1/nm³, of water at 300 K and 1 bar."""

PROTEIN_VOLUME = 0.73 * 1.66054e-3
"""nm³ per dalton, from a partial specific volume of 0.73 ml/g."""

EMPTY = (1.3, 2.0, 3.0, 5.0)
"""Volume that Modeller leaves empty, in volumes of the protein, beyond that of the protein: tried in turn."""

NEIGHBOURS = 0.28
"""nm between the heavy atoms of neighbours in water; where molecules are too many, the nearer ones go first."""


def solvate(
    topology: app.Topology,
    positions: np.ndarray,
    *,
    padding: float = 0.8,
    ionic_strength: float = 0.0,
    box_shape: BoxShape = "cube",
    cutoff: float = 0.9,
    max_atoms: int = 100_000,
    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD,
    seed: int = 0,
) -> tuple[app.Topology, np.ndarray]:
    """Return topology and positions (N, 3) in nm with three-site water and neutralising ions.

    Parameters
    ----------
    topology
        Of the repaired protein, and crystal water if any.
    positions
        (N, 3) in nm.
    padding, ionic_strength, box_shape, cutoff, max_atoms, force_field_files, seed
        As in `prepare.prepare`.

    Raises
    ------
    EntryError
        Of kind too_large, no_template or solvent.
    """
    if box_shape == "brick":
        positions = positions @ best_orientation(positions, padding)
    box = box_vectors(positions, padding, box_shape=box_shape, cutoff=cutoff)
    estimate = int(np.linalg.det(box) * ATOMS_PER_VOLUME)
    if estimate > max_atoms:
        raise EntryError(
            "too_large",
            f"the box would hold about {estimate} atoms; prepare.max_atoms allows {max_atoms}. "
            "The protein is very long or prepare.padding very large.",
        )
    single_thread_platform("CPU")
    seed_generators(seed)
    try:
        return _fill(topology, positions, box, ionic_strength, force_field(tuple(force_field_files)))
    except EntryError:
        raise
    except ValueError as error:
        raise EntryError("no_template", f"the force field does not describe the repaired protein: {error}") from error
    except Exception as error:
        # Modeller raises plain Exception and IndexError when the box has too little water for the ions.
        raise EntryError("solvent", f"water and ions could not be added: {error}") from error


def _fill(
    topology: app.Topology, positions: np.ndarray, box: np.ndarray, ionic_strength: float, field: app.ForceField
) -> tuple[app.Topology, np.ndarray]:
    """Fill a larger box, draw its water and ions together into the one asked for, and take out what is too much.

    Modeller keeps water two radii away from the protein and thins it out at the faces of the box. The volume that is
    left empty is about the protein's own, 5 to 20 % of the box, and at constant volume nothing would fill it.
    """
    volume = float(np.linalg.det(box))
    masses = [atom.element.mass.value_in_unit(unit.dalton) for atom in topology.atoms() if atom.residue.name != "HOH"]
    protein = PROTEIN_VOLUME * sum(masses)
    n_wanted = round(MOLECULES_PER_VOLUME * (volume - protein))
    modeller = app.Modeller(topology, positions * unit.nanometer)
    molecules: list[Any] = []
    for empty in EMPTY:
        scale = (1 + (empty * protein + 0.5) / volume) ** (1 / 3)
        modeller = app.Modeller(topology, positions * unit.nanometer)
        modeller.addSolvent(
            field,
            model="tip3p",
            boxVectors=_vectors(box * scale),
            ionicStrength=ionic_strength * unit.molar,
            neutralize=True,
        )
        molecules = [residue for residue in modeller.topology.residues() if residue.name in ("HOH", "NA", "CL")]
        if len(molecules) >= n_wanted:
            break
    else:
        raise EntryError("solvent", f"only {len(molecules)} of {n_wanted} molecules of water found a place")
    centre = (positions.min(axis=0) + positions.max(axis=0)) / 2
    kept = topology.getNumAtoms()
    added = [residue for residue in molecules if next(residue.atoms()).index >= kept]
    places = np.array(modeller.positions.value_in_unit(unit.nanometer))
    heads = places[[next(residue.atoms()).index for residue in added]]
    shifts = (heads - centre) * (1 / scale - 1)
    places[kept:] += np.repeat(shifts, [len(list(residue.atoms())) for residue in added], axis=0)
    modeller.positions = [openmm.Vec3(*row) for row in places] * unit.nanometer
    modeller.topology.setPeriodicBoxVectors(_vectors(box))

    pairs = _surplus_pairs(added, n_wanted, ionic_strength)
    waters = [i for i, residue in enumerate(added) if residue.name == "HOH"]
    heavy = np.array([atom.element.symbol != "H" for atom in topology.atoms()])
    crowded = _most_crowded((heads + shifts)[waters], places[:kept][heavy], box, len(molecules) - n_wanted - len(pairs))
    modeller.delete([*pairs, *(added[waters[i]] for i in crowded)])
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))


def _vectors(box: np.ndarray) -> unit.Quantity:
    return [openmm.Vec3(*row) for row in box] * unit.nanometer


def _surplus_pairs(added: list[Any], n_molecules: int, ionic_strength: float) -> list[Any]:
    """Return the ions that a box with fewer molecules does not need for its ionic strength, as many of each sign."""
    sodium, chloride = ([residue for residue in added if residue.name == name] for name in ("NA", "CL"))
    # As Modeller counts them, with 55.4 mol/l of water.
    wanted = int((n_molecules - abs(len(sodium) - len(chloride))) * ionic_strength / 55.4 + 0.5)
    n_surplus = max(0, min(len(sodium), len(chloride)) - wanted)
    return sodium[len(sodium) - n_surplus :] + chloride[len(chloride) - n_surplus :]


def _most_crowded(waters: np.ndarray, solute: np.ndarray, box: np.ndarray, n_out: int) -> list[int]:
    """Return the indices of waters (W, 3) to take out one by one, each time the one with most overlap that is left."""
    shifts = np.array(list(product((-1, 0, 1), repeat=3))) @ box
    images = (np.concatenate([waters, solute])[None] + shifts[:, None]).reshape(-1, 3)
    near = cKDTree(waters).sparse_distance_matrix(cKDTree(images), NEIGHBOURS, output_type="coo_matrix")
    first, second = near.row, near.col % (len(waters) + len(solute))
    order = np.lexsort((second, first))
    order = order[first[order] != second[order]]
    first, second, overlap = first[order], second[order], (NEIGHBOURS - near.data)[order]
    crowding = np.bincount(first, overlap, minlength=len(waters))
    out: list[int] = []
    starts = np.searchsorted(first, np.arange(len(waters) + 1))
    for _ in range(n_out):
        worst = int(np.argmax(crowding))
        crowding[worst] = -np.inf
        out.append(worst)
        for k in range(starts[worst], starts[worst + 1]):
            if second[k] < len(waters):
                crowding[second[k]] -= overlap[k]
    return out
