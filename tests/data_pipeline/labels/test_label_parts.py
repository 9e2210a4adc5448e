from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import pytest
from openmm import app, unit

from data_pipeline.errors import EntryError
from data_pipeline.labels import ewald
from data_pipeline.labels.label import Labels, label
from data_pipeline.labels.parts import PARTS, assign_groups
from data_pipeline.schema import ENTRY_ATTRIBUTES, ENTRY_FIELDS
from data_pipeline.stages import label_entry, save_arrays
from data_pipeline.systems.build import DEFAULT_FORCE_FIELD, build_system, protein_mask
from data_pipeline.systems.prepare import Prepared
from data_pipeline.systems.sample import Frames

CUTOFF = 0.6
TOLERANCE = 1e-4
"""mean |dF| / mean |F|, as labels must have."""

OTHER_FORCE_FIELD = ["amber99sbildn.xml", "tip3p.xml"]
COULOMB = 138.935456
"""kJ nm / mol / e²."""


@pytest.fixture(scope="module")
def labels(tripeptide: Prepared, tripeptide_frames: Frames) -> Labels:
    return label(
        tripeptide.topology,
        tripeptide_frames.positions,
        tripeptide_frames.box,
        cutoff=CUTOFF,
        wanted=PARTS,
        mm_force_field_files=OTHER_FORCE_FIELD,
    )


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected, axis=-1).mean() / np.linalg.norm(expected, axis=-1).mean())


def openmm_forces(system: openmm.System, positions: np.ndarray, box: np.ndarray | None) -> tuple[np.ndarray, float]:
    """Forces and energy of a System on the Reference platform, by plain OpenMM calls."""
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    if box is not None:
        context.setPeriodicBoxVectors(*box.astype(float))
    context.setPositions(positions.astype(float))
    state = context.getState(getForces=True, getEnergy=True)
    forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
    return np.array(forces), state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)


def test_parts_do_not_change_the_total(tripeptide: Prepared, tripeptide_frames: Frames, labels: Labels) -> None:
    """The total forces are bit for bit those of a call that asks for no part, and that gives no part."""
    plain = label(tripeptide.topology, tripeptide_frames.positions, tripeptide_frames.box, cutoff=CUTOFF)
    assert plain.forces.tobytes() == labels.forces.tobytes() and (plain.energy == labels.energy).all()
    assert not plain.parts
    names = {one.name for one in (*ENTRY_FIELDS, *ENTRY_ATTRIBUTES) if not one.required}
    others = {"temperature", "kinetic_temperature", "displacement", "dropped_copies"}
    assert set(labels.parts) == names - others


def test_groups_sum_to_the_total(labels: Labels) -> None:
    """The sum over groups is the total; without any one of them it is not."""
    by_group = labels.parts["forces_by_group"]
    assert by_group.shape == (2, len(labels.parts["group_names"]), *labels.forces.shape[1:])
    assert difference(by_group.sum(axis=1), labels.forces) < 1e-5
    for group in range(by_group.shape[1]):
        assert difference(np.delete(by_group, group, axis=1).sum(axis=1), labels.forces) > 1e-3


def test_the_group_of_bonds_holds_the_bonds(tripeptide: Prepared, tripeptide_frames: Frames, labels: Labels) -> None:
    """The group named HarmonicBondForce is -k (r - r0) along each bond, computed here from the parameters."""
    system = build_system(tripeptide.topology, DEFAULT_FORCE_FIELD, cutoff=CUTOFF)
    force = next(force for force in system.getForces() if isinstance(force, openmm.HarmonicBondForce))
    positions, expected = tripeptide_frames.positions[1].astype(float), np.zeros(tripeptide_frames.positions.shape[1:])
    for index in range(force.getNumBonds()):
        i, j, length, k = force.getBondParameters(index)
        vector = positions[j] - positions[i]
        distance = np.linalg.norm(vector)
        pull = k._value * (distance - length._value) * vector / distance
        expected[i] += pull
        expected[j] -= pull
    group = labels.parts["group_names"].tolist().index(b"HarmonicBondForce")
    assert difference(labels.parts["forces_by_group"][1, group], expected) < 1e-5


def test_more_terms_than_force_groups_are_refused() -> None:
    """OpenMM has 32 groups: a 33rd term would be counted with another in silence."""
    system = openmm.System()
    for _ in range(33):
        system.addForce(openmm.HarmonicBondForce())
    with pytest.raises(EntryError, match="33 terms, OpenMM has 32"):
        assign_groups(system)


def test_terms_of_the_same_name_are_told_apart() -> None:
    """Two forces of one class get a number; names are sorted, and so are their groups."""
    system = openmm.System()
    forces = [openmm.HarmonicBondForce(), openmm.HarmonicAngleForce(), openmm.HarmonicBondForce()]
    for force in forces:
        system.addForce(force)
    assert assign_groups(system) == ["HarmonicAngleForce", "HarmonicBondForce", "HarmonicBondForce 2"]
    assert [force.getForceGroup() for force in system.getForces()] == [1, 0, 2]


def ewald_sum(charges: np.ndarray, positions: np.ndarray, box: np.ndarray, alpha: float) -> np.ndarray:
    """Reciprocal-space Ewald forces by the sum itself, over every wave vector up to exp(-k²/4α²) = 1e-13."""
    reciprocal = 2 * np.pi * np.linalg.inv(box).T
    largest = 2 * alpha * np.sqrt(13 * np.log(10))
    reach = [int(np.ceil(largest * np.linalg.norm(vector) / (2 * np.pi))) for vector in box]
    counts = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij"), axis=-1).reshape(-1, 3)
    vectors = counts @ reciprocal
    squared = (vectors**2).sum(axis=1)
    inside = (squared > 0) & (squared < largest**2)
    vectors, squared = vectors[inside], squared[inside]
    phases = np.exp(1j * positions @ vectors.T)
    structure = charges @ phases
    weights = 4 * np.pi * COULOMB / abs(np.linalg.det(box)) * np.exp(-squared / (4 * alpha**2)) / squared
    return charges[:, None] * (np.imag(phases * structure.conj()) * weights) @ vectors


@pytest.mark.parametrize("alpha", [3.0, 4.5])
def test_reciprocal_part_is_the_direct_ewald_sum(alpha: float) -> None:
    """In a small triclinic box the mesh gives the sum over wave vectors within 1e-4, and a coarse mesh does not."""
    generator = np.random.default_rng(3)
    box = np.array([[1.6, 0, 0], [0.3, 1.7, 0], [-0.4, 0.5, 1.5]])
    charges = generator.normal(size=40)
    charges -= charges.mean()
    positions = generator.random((1, 40, 3)) @ box
    expected = ewald_sum(charges, positions[0], box, alpha)

    def found(tolerance: float) -> np.ndarray:
        grid = ewald.mesh(box, alpha, tolerance)
        return ewald.reciprocal_forces(charges, positions, box[None], alpha=alpha, grid=grid)[0]

    assert difference(found(ewald.RECIPROCAL_TOLERANCE), expected) < TOLERANCE
    assert difference(found(1e-3), expected) > TOLERANCE


def test_reciprocal_part_of_labels_uses_their_charges(tripeptide_frames: Frames, labels: Labels) -> None:
    """The stored forces are the direct Ewald sum over the stored charges, bonded neighbours included, at 4.5 /nm."""
    assert labels.parts["reciprocal_alpha"] == 4.5 and labels.parts["reciprocal_grid"].dtype == np.int32
    for frame in range(2):
        expected = ewald_sum(
            labels.charges,
            tripeptide_frames.positions[frame].astype(float),
            tripeptide_frames.box[frame].astype(float),
            4.5,
        )
        assert difference(labels.parts["forces_reciprocal"][frame], expected) < TOLERANCE


def test_solute_alone_equals_a_system_made_by_hand(
    tripeptide: Prepared, tripeptide_frames: Frames, labels: Labels
) -> None:
    """Forces and energy are those of the protein's atoms only, without box and cutoff; other atoms feel none."""
    mask = protein_mask(tripeptide.topology)
    alone, copies = app.Topology(), {}
    chain = alone.addChain()
    for residue in list(tripeptide.topology.residues())[:3]:
        copy = alone.addResidue(residue.name, chain)
        for atom in residue.atoms():
            copies[atom.index] = alone.addAtom(atom.name, atom.element, copy)
    for a, b in tripeptide.topology.bonds():
        if a.index in copies:
            alone.addBond(copies[a.index], copies[b.index])
    system = app.ForceField(*DEFAULT_FORCE_FIELD).createSystem(alone, nonbondedMethod=app.NoCutoff, constraints=None)
    assert mask.sum() == system.getNumParticles() == 42
    for frame in range(2):
        expected, energy = openmm_forces(system, tripeptide_frames.positions[frame][mask], None)
        assert difference(labels.parts["forces_solute"][frame][mask], expected) < TOLERANCE
        assert labels.parts["energy_solute"][frame] == pytest.approx(energy, rel=1e-5)
    assert (labels.parts["forces_solute"][:, ~mask] == 0).all()


def test_minus_mm_is_what_is_left(tripeptide: Prepared, tripeptide_frames: Frames, labels: Labels) -> None:
    """Added to the forces of the MM force field by plain OpenMM calls, it gives the labels."""
    system = app.ForceField(*OTHER_FORCE_FIELD).createSystem(
        tripeptide.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=CUTOFF,
        ewaldErrorTolerance=1e-5,
        rigidWater=False,
    )
    left = labels.parts["forces_minus_mm"]
    for frame in range(2):
        mm, _ = openmm_forces(system, tripeptide_frames.positions[frame], tripeptide_frames.box[frame])
        assert difference(left[frame] + mm, labels.forces[frame]) < TOLERANCE
    assert difference(labels.forces - left, labels.forces) > 0.01


def _write(tripeptide: Prepared, tripeptide_frames: Frames, folder: Path) -> dict[str, Any]:
    from data_pipeline.systems.prepare import write_prepared

    write_prepared(tripeptide.topology, tripeptide.positions, folder / "prepared.cif")
    save_arrays(folder / "frames.npz", asdict(tripeptide_frames))
    return {
        "prepared": str(folder / "prepared.cif"),
        "frames": str(folder / "frames.npz"),
        "settings": {
            "force_field_files": list(DEFAULT_FORCE_FIELD),
            "cutoff": CUTOFF,
            "displaced_copies": 4,
            "displace": "even",
            "displacement": 0.02,
            "displaced_atoms": "solute",
            "displaced_molecules": 0.0,
            "potential": None,
            "parts": ["groups"],
        },
        "seed": 1,
    }


def test_a_displaced_copy_with_a_clash_is_dropped_alone(
    tripeptide: Prepared, tripeptide_frames: Frames, tmp_path: Path
) -> None:
    """Copies above max_force are left out of every array and counted; a frame as sampled refuses the entry."""
    arguments = _write(tripeptide, tripeptide_frames, tmp_path)
    label_entry(tmp_path / "all.npz", **arguments)
    everything = np.load(tmp_path / "all.npz")
    largest = np.linalg.norm(everything["forces"], axis=-1).max(axis=1)
    assert len(largest) == 10 and everything["dropped_copies"] == 0
    limit = 1.001 * float(np.sort(largest[2:])[4])  # five of eight copies stay below, and both frames as sampled
    assert largest[:2].max() < limit
    arguments["settings"]["max_force"] = limit
    label_entry(tmp_path / "some.npz", **arguments)
    some, kept = np.load(tmp_path / "some.npz"), largest <= limit
    assert kept.sum() == 7 and some["dropped_copies"] == 3
    for name in ("positions", "box", "displacement", "forces", "energy"):
        assert some[name].tobytes() == everything[name][kept].tobytes(), name
    # The CPU platform's neighbour list, and so the order of its sums, depends on the frames before.
    assert difference(some["forces_by_group"], everything["forces_by_group"][kept]) < 1e-6
    arguments["settings"]["max_force"] = float(largest[0]) / 2
    with pytest.raises(EntryError, match="frame 0: the force on"):
        label_entry(tmp_path / "none.npz", **arguments)
