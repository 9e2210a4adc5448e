from __future__ import annotations

import numpy as np
import openmm
import pytest
from openmm import app, unit

from data_pipeline.errors import EntryError
from data_pipeline.labels.label import describe, displace, label
from data_pipeline.systems.build import DEFAULT_FORCE_FIELD, build_system, make_context, protein_mask
from data_pipeline.systems.prepare import Prepared
from data_pipeline.systems.sample import Frames, relax, sample_minimized, sample_thermal

LABEL_TOLERANCE = 1e-4
"""mean |dF| / mean |F| between single-precision CPU and double-precision Reference forces, PME at 1e-5."""


@pytest.fixture(scope="module")
def relaxed(crambin: Prepared) -> np.ndarray:
    return relax(crambin, tolerance=100.0)


@pytest.fixture(scope="module")
def frames(crambin: Prepared, relaxed: np.ndarray) -> Frames:
    # Strong friction: so short a run would not reach the temperature otherwise.
    return sample_thermal(crambin, relaxed, n_frames=3, equilibration=0.8, interval=0.2, friction=20.0, seed=2)


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
    """After a ps the kinetic temperature is 300 K within 15, and forces are those of 300 K."""
    assert frames.kinetic_temperature == pytest.approx(300, abs=15) and (frames.temperature == 300).all()
    labels = label(crambin.topology, frames.positions, frames.box)
    mean = np.linalg.norm(labels.forces[:, protein_mask(crambin.topology)], axis=-1).mean()
    # FACTS: 1,250 to 1,340 meV/Å on other proteins, which is 1,206 to 1,293 kJ/mol/nm; cold frames have a tenth.
    assert 1100 < mean < 1450


def _bond_energies(prepared: Prepared, positions: np.ndarray) -> tuple[float, float]:
    """Mean energy in kT/2 of the protein's bonds to hydrogen and of water's bonds, one frame."""
    system = build_system(prepared.topology)
    (force,) = (f for f in system.getForces() if isinstance(f, openmm.HarmonicBondForce))
    bonds = [force.getBondParameters(n) for n in range(force.getNumBonds())]
    i, j = np.array([bond[:2] for bond in bonds]).T
    length, constant = (np.array([bond[n]._value for bond in bonds]) for n in (2, 3))
    stretch = np.linalg.norm(positions[i] - positions[j], axis=1) - length
    energy = constant * stretch**2 / 2 / (0.5 * 0.00831446 * 300)
    hydrogen = np.array([atom.element.atomic_number == 1 for atom in prepared.topology.atoms()])
    protein = protein_mask(prepared.topology)
    return float(energy[protein[i] & (hydrogen[i] | hydrogen[j])].mean()), float(energy[~protein[i]].mean())


def test_stiff_bonds_are_as_warm_as_the_rest(crambin: Prepared, frames: Frames) -> None:
    """Bonds that were constrained between snapshots hold kT/2, and water's what flexible dynamics gives them.

    Ringing of freed bonds would show at once: after 0.1 ps with weak friction water's are a third too low.
    """
    protein, water = zip(*(_bond_energies(crambin, frame) for frame in frames.positions), strict=True)
    assert np.mean(protein) == pytest.approx(1.0, abs=0.12)  # 300 bonds, three frames: 0.05 by chance
    integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.001)
    context = make_context(build_system(crambin.topology, cutoff=0.7), integrator)
    context.setPositions(frames.positions[-1])
    context.setVelocitiesToTemperature(300.0, 1)
    flexible = []
    for _ in range(4):
        integrator.step(120)
        positions = context.getState(getPositions=True).getPositions(asNumpy=True)._value
        flexible.append(_bond_energies(crambin, positions)[1])
    assert np.mean(water) == pytest.approx(np.mean(flexible), rel=0.06)


def test_several_temperatures(crambin: Prepared, relaxed: np.ndarray) -> None:
    """Each temperature has its snapshots, in order, and warmer ones move faster."""
    frames = sample_thermal(
        crambin, relaxed, temperatures=(280, 380), n_frames=2, equilibration=0.4, interval=0.1, friction=40.0, seed=2
    )
    assert frames.temperature.tolist() == [280, 280, 380, 380] and len(frames.positions) == 4
    assert frames.kinetic_temperature == pytest.approx(frames.temperature, abs=25)


def test_frames_differ_and_repeat(crambin: Prepared, relaxed: np.ndarray) -> None:
    """The same seed gives the same frames bit for bit, another seed others, and frames move."""
    short = {"n_frames": 2, "equilibration": 0.02, "interval": 0.02, "flexible_time": 0.005}
    first, again, other = (sample_thermal(crambin, relaxed, **short, seed=seed) for seed in (1, 1, 2))
    assert first.positions.tobytes() == again.positions.tobytes()
    assert first.positions.tobytes() != other.positions.tobytes()
    assert np.abs(first.positions[1] - first.positions[0]).max() > 1e-3
    assert first.positions.dtype == first.box.dtype == np.float32


def test_minimized_frame_sits_on_the_constraints(crambin: Prepared, relaxed: np.ndarray) -> None:
    """Water has exactly the rigid geometry, and most of the unconstrained label is what constraints held.

    In the relaxed structure water's bonds are stretched by its neighbours.
    """
    frames = sample_minimized(crambin, relaxed, damping_time=0.1)
    fields = describe(crambin.topology)
    i, j = fields["bonds"].T
    lengths = np.linalg.norm(frames.positions[0, i] - frames.positions[0, j], axis=1)
    water = fields["residue_names"][i] == b"HOH"
    # TIP3P-FB's O-H length in amber14/tip3pfb.xml.
    assert lengths[water] == pytest.approx(0.101181082494, abs=2e-5)
    flexible = np.linalg.norm(relaxed[i] - relaxed[j], axis=1)[water]
    assert flexible.mean() != pytest.approx(0.101181082494, abs=2e-5)


@pytest.mark.slow
def test_minimized_frames_have_the_papers_distribution(crambin: Prepared) -> None:
    """The paper's naive predictors have 81.5 and 79.9 meV/Å, a ratio of 0.98: many tiny forces and a few large."""
    frames = sample_minimized(crambin, relax(crambin))
    labels = label(crambin.topology, frames.positions, frames.box)
    magnitude = 1.0364 * np.linalg.norm(labels.forces[0, protein_mask(crambin.topology)], axis=1)
    assert 65 < magnitude.mean() < 100
    assert 0.85 < np.abs(magnitude - magnitude.mean()).mean() / magnitude.mean() < 1.1


def test_runaway_is_an_error_of_the_entry(crambin: Prepared) -> None:
    """Atoms on top of each other that no minimisation gets apart are refused, not carried on as NaN."""
    broken = crambin.positions.copy()
    broken[5] = np.nan
    with pytest.raises(EntryError) as caught:
        relax(Prepared(crambin.topology, broken))
    assert caught.value.kind == "runaway"


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


def test_uneven_copies_move_a_fifth_of_the_atoms_far(crambin: Prepared, frames: Frames) -> None:
    """Over many copies, the mean square displacement is that of the two uniform distributions, mixed one to four."""
    mask = protein_mask(crambin.topology)
    n_frames, largest, copies = len(frames.positions), 0.016, 20
    positions, sigma = displace(frames.positions, mask, copies=copies, largest=largest, uneven=True, seed=4)
    assert ((0.9 * largest < sigma[n_frames:]) & (sigma[n_frames:] <= largest)).all() and (sigma[:n_frames] == 0).all()
    moved = (positions - np.tile(frames.positions, (1 + copies, 1, 1)))[n_frames:]
    assert (moved[:, ~mask] == 0).all()
    squares = (moved[:, mask] / largest) ** 2
    far, near = (1 - 0.25**3) / 3 / 0.75, 0.25**2 / 3  # mean squares of the uniform distributions
    assert squares.mean() == pytest.approx(0.2 * far + 0.8 * near, rel=0.03)
    assert (squares.max(axis=2) > 0.7**2).mean() < 0.15  # even copies as large: a third and more
    again, _ = displace(frames.positions, mask, copies=copies, largest=largest, uneven=True, seed=4)
    assert np.array_equal(again, positions)


def test_molecules_are_moved_as_a_whole(crambin: Prepared, frames: Frames) -> None:
    """A fifth of the waters, no atom of them against another; the protein stays; what else is drawn stays the same."""
    mask = protein_mask(crambin.topology)
    residue = np.array([atom.residue.index for atom in crambin.topology.atoms()])
    molecules = np.where(mask, -1, residue)
    n_frames, copies, shift = len(frames.positions), 10, 0.03
    still = displace(frames.positions, mask, copies=copies, largest=0.01, seed=4)
    positions, sigma = displace(
        frames.positions, mask, copies=copies, largest=0.01, molecules=molecules, shift=shift, seed=4
    )
    assert np.array_equal(positions[:n_frames], frames.positions) and np.array_equal(sigma, still[1])
    np.testing.assert_array_equal(positions[:, mask], still[0][:, mask])
    moves = (positions - still[0])[n_frames:, ~mask]
    waters = np.array([a.residue.name == "HOH" for a in crambin.topology.atoms()])[~mask]
    triples = moves[:, waters].reshape(len(moves), -1, 3, 3)
    assert np.abs(triples - triples[:, :, :1]).max() < 2e-6, "atoms of a water move together"
    share = (np.abs(triples[:, :, 0]).max(axis=2) > 1e-6).mean()
    assert share == pytest.approx(0.2, abs=0.02)
    # of a fifth, the mean square of a standard deviation that is uniform up to the largest
    assert (triples[:, :, 0] ** 2).mean() == pytest.approx(0.2 * shift**2 / 3, rel=0.15)
