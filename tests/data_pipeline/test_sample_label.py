from __future__ import annotations

import numpy as np
import openmm
import pytest
from openmm import app, unit

from data_pipeline.errors import EntryError
from data_pipeline.label import describe, displace, label
from data_pipeline.prepare import Prepared
from data_pipeline.sample import Frames, sample_minimized, sample_thermal
from data_pipeline.systems import DEFAULT_FORCE_FIELD, protein_mask

LABEL_TOLERANCE = 1e-4
"""mean |dF| / mean |F| between single-precision CPU and double-precision Reference forces, PME at 1e-5."""


@pytest.fixture(scope="module")
def frames(crambin: Prepared) -> Frames:
    # Strong friction: so short a run would not reach the temperature otherwise.
    friction = {"friction": 20.0, "equilibration_friction": 20.0}
    short = {"n_frames": 3, "equilibration": 0.25, "interval": 0.05, "minimise_iterations": 40}
    return sample_thermal(crambin, **short, **friction, seed=2)


def _reference_forces(prepared: Prepared, frames: Frames, frame: int) -> tuple[np.ndarray, float]:
    """Sum of OpenMM's forces, one force group for each term, on the Reference platform, written out here anew."""
    system = app.ForceField(*DEFAULT_FORCE_FIELD).createSystem(
        prepared.topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.9,
        ewaldErrorTolerance=1e-5,
        constraints=None,
        rigidWater=False,
    )
    for group, force in enumerate(system.getForces()):
        force.setForceGroup(group)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPeriodicBoxVectors(*frames.box[frame].astype(float))
    context.setPositions(frames.positions[frame].astype(float))
    total, energy = np.zeros_like(prepared.positions), 0.0
    for group in range(system.getNumForces()):
        state = context.getState(getForces=True, getEnergy=True, groups={group})
        total += state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.nanometer)
        energy += state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
    return total, energy


def test_labels_are_the_sum_over_force_groups(crambin: Prepared, frames: Frames) -> None:
    """Labels equal the sum of every term's forces on the Reference platform, on solvent too."""
    labels = label(crambin.topology, frames.positions[:1], frames.box[:1])
    expected, energy = _reference_forces(crambin, frames, 0)
    error = np.linalg.norm(labels.forces[0] - expected, axis=1).mean() / np.linalg.norm(expected, axis=1).mean()
    assert error < LABEL_TOLERANCE
    assert abs(labels.energy[0] - energy) < 1e-5 * abs(energy)


def test_labels_are_minus_the_energy_gradient(crambin: Prepared, frames: Frames) -> None:
    """Along a random direction the energy's finite difference equals minus the projected force."""
    direction = np.random.default_rng(0).normal(size=crambin.positions.shape)
    direction /= np.linalg.norm(direction)
    step = 0.02
    moved = np.stack([frames.positions[0] + s * step * direction for s in (-1, 0, 1)]).astype(np.float32)
    labels = label(crambin.topology, moved, np.repeat(frames.box[:1], 3, axis=0))
    slope = (labels.energy[2] - labels.energy[0]) / (2 * step)
    assert slope == pytest.approx(-(labels.forces[1] * direction).sum(), rel=0.02, abs=20)


def test_labels_hold_the_terms_that_constraints_remove(crambin: Prepared, frames: Frames) -> None:
    """Forces of a constrained System differ at hydrogens: labels made so would fail the tests above."""
    from data_pipeline.systems import build_system, make_context

    labels = label(crambin.topology, frames.positions[:1], frames.box[:1])
    system = build_system(crambin.topology, ewald_tolerance=1e-5, constrained=True)
    context = make_context(system, openmm.VerletIntegrator(0.001))
    context.setPeriodicBoxVectors(*frames.box[0].astype(float))
    context.setPositions(frames.positions[0].astype(float))
    forces = context.getState(getForces=True).getForces(asNumpy=True)._value
    difference = np.linalg.norm(labels.forces[0] - forces, axis=1)[protein_mask(crambin.topology)]
    assert difference.mean() > 0.05 * np.linalg.norm(labels.forces[0], axis=1).mean()


def test_labels_repeat_bit_for_bit_and_report_pme(crambin: Prepared, frames: Frames) -> None:
    """Labelling is a pure function; alpha is what OpenMM's formula gives for cutoff and tolerance."""
    first, second = (label(crambin.topology, frames.positions[:1], frames.box[:1]) for _ in range(2))
    assert first.forces.tobytes() == second.forces.tobytes() and first.energy == second.energy
    assert first.pme_alpha == pytest.approx(np.sqrt(-np.log(2 * 1e-5)) / 0.9, rel=1e-6)
    assert (first.pme_grid > 20).all()
    assert first.charges.sum() == pytest.approx(0, abs=1e-3)


def test_labels_depend_on_the_force_field(crambin: Prepared, frames: Frames) -> None:
    """Any force field OpenMM knows by name serves, and gives forces of its own."""
    other = label(
        crambin.topology, frames.positions[:1], frames.box[:1], force_field_files=["amber99sbildn.xml", "tip3p.xml"]
    )
    ours = label(crambin.topology, frames.positions[:1], frames.box[:1])
    assert np.isfinite(other.forces).all()
    assert np.linalg.norm(other.forces - ours.forces, axis=-1).mean() > 1


def test_positions_must_be_rounded_first(crambin: Prepared, frames: Frames) -> None:
    """float64 positions would not be what the dataset holds."""
    with pytest.raises(TypeError, match="float32"):
        label(crambin.topology, frames.positions[:1].astype(float), frames.box[:1])


def test_runaway_is_refused_by_name(crambin: Prepared, frames: Frames) -> None:
    """Two atoms on top of each other give an absurd force: the entry is refused and the atom named."""
    bad = frames.positions[:1].copy()
    bad[0, 100] = bad[0, 7] + np.float32(1e-3)
    with pytest.raises(EntryError, match=r"frame 0: the force on \w+\d+:\w+ is .* kJ/mol/nm") as caught:
        label(crambin.topology, bad, frames.box[:1])
    assert caught.value.kind == "runaway"


def test_describe_matches_the_topology(crambin: Prepared) -> None:
    """The target mask is the protein, water has two bonds a molecule, ions none."""
    fields = describe(crambin.topology)
    water = fields["residue_names"] == b"HOH"
    assert fields["target_mask"].sum() == 642
    assert not (fields["target_mask"] & water).any()
    bonds = water[fields["bonds"]].all(axis=1).sum()
    assert bonds == 2 * (water.sum() // 3)
    assert set(fields["species"]) <= {1, 6, 7, 8, 16, 11, 17}


def test_thermal_frames_have_the_temperature_and_its_forces(crambin: Prepared, frames: Frames) -> None:
    """After a fraction of a ps the kinetic temperature is 300 K within 15, and forces are those of 300 K."""
    assert frames.temperature == pytest.approx(300, abs=15)
    labels = label(crambin.topology, frames.positions, frames.box)
    mean = np.linalg.norm(labels.forces[:, protein_mask(crambin.topology)], axis=-1).mean()
    # FACTS: 1,250 to 1,340 meV/Å on other proteins, which is 1,206 to 1,293 kJ/mol/nm; cold frames have a tenth.
    assert 1100 < mean < 1450


def test_frames_differ_and_repeat(crambin: Prepared) -> None:
    """The same seed gives the same frames bit for bit, another seed others, and frames move."""
    short = {"n_frames": 2, "equilibration": 0.005, "interval": 0.005, "minimise_iterations": 3}
    first, again, other = (sample_thermal(crambin, **short, seed=seed) for seed in (1, 1, 2))
    assert first.positions.tobytes() == again.positions.tobytes()
    assert first.positions.tobytes() != other.positions.tobytes()
    assert np.abs(first.positions[1] - first.positions[0]).max() > 1e-4
    assert first.positions.dtype == first.box.dtype == np.float32


def test_minimized_frame_sits_on_the_constraints(crambin: Prepared) -> None:
    """The last minimisation is constrained: water has exactly the rigid geometry, protein X-H exactly its length.

    So their labels are left with what the missing constraint forces held: hydrogen bonds pulled, angles at rest.
    """
    frames = sample_minimized(crambin, max_iterations=15)
    fields = describe(crambin.topology)
    i, j = fields["bonds"].T
    lengths = np.linalg.norm(frames.positions[0, i] - frames.positions[0, j], axis=1)
    water = fields["residue_names"][i] == b"HOH"
    # TIP3P-FB's O-H length in amber14/tip3pfb.xml.
    assert lengths[water] == pytest.approx(0.101181082494, abs=2e-5)
    flexible = np.abs(crambin.positions[i] - crambin.positions[j])[water]
    assert np.linalg.norm(flexible, axis=1).mean() != pytest.approx(0.101181082494, abs=2e-5)


def test_displaced_copies_move_the_protein_alone(crambin: Prepared, frames: Frames) -> None:
    """Frames as sampled come first, unchanged; copies differ in masked atoms by their own standard deviation."""
    mask = protein_mask(crambin.topology)
    n_frames = len(frames.positions)
    positions, sigma = displace(frames.positions, mask, copies=3, largest=0.01, seed=4)
    assert positions.shape == (4 * n_frames, *frames.positions.shape[1:]) and positions.dtype == np.float32
    assert np.array_equal(positions[:n_frames], frames.positions) and (sigma[:n_frames] == 0).all()
    moved = positions - np.tile(frames.positions, (4, 1, 1))
    assert (moved[:, ~mask] == 0).all()
    assert np.allclose(moved[n_frames:, mask].std(axis=(1, 2)), sigma[n_frames:], rtol=0.05)
    assert 0 < sigma[n_frames:].min() and sigma.max() <= 0.01 and len(set(sigma[n_frames:])) == 3 * n_frames
    again, _ = displace(frames.positions, mask, copies=3, largest=0.01, seed=4)
    other, _ = displace(frames.positions, mask, copies=3, largest=0.01, seed=5)
    assert np.array_equal(again, positions) and not np.array_equal(other, positions)
