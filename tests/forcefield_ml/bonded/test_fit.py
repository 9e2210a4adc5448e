"""Least squares: parameters that made the forces come back; what the frames do not tell stays small or with its kin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from molecule_files import (
    AMIDE,
    ETHANE,
    PROPANE,
    RADIUS,
    Molecule,
    chosen_table,
    conformers,
    drawn,
    openmm_forces,
    openmm_system,
    together,
)

from forcefield_ml.bonded import BondedTable, find_terms, fit
from forcefield_ml.bonded.bound import BoundTerms
from forcefield_ml.bonded.fit import FEWEST, RIDGE, Frame, _fitted, residual, unknown
from forcefield_ml.bonded.geometry import slopes, term_vectors

LEFT = 1e-3
"""Of the forces, on frames that the fit has not seen, where parameters differ by elements."""

LEFT_DEEPER = 3e-3
"""The same where they differ by surroundings, too: the ridge of torsions holds at each depth."""

LEFT_EXACTLY = 1e-4
"""The same with next to no ridge."""


def frames_of(
    molecule: Molecule, positions: np.ndarray, forces: np.ndarray, targets: np.ndarray | None = None
) -> Callable[[], list[Frame]]:
    terms = find_terms(*molecule)
    chosen = np.ones(len(molecule.species), dtype=bool) if targets is None else targets
    pairs = list(zip(positions, forces, strict=True))
    return lambda: [Frame(terms, places, None, pulls, chosen) for places, pulls in pairs]


def truth(molecule: Molecule, table: BondedTable, positions: np.ndarray) -> np.ndarray:
    """Return the forces that OpenMM computes with a table's terms, frame by frame."""
    system = openmm_system(table.parameters(*molecule), molecule.species)
    return np.array([openmm_forces(system, frame) for frame in positions])


def left(molecule: Molecule, table: BondedTable, positions: np.ndarray, forces: np.ndarray) -> float:
    """Return |F_table - F| / |F| over all frames, the table's forces as a model in use computes them."""
    terms = BoundTerms(table.parameters(*molecule))
    found = np.array([terms(torch.from_numpy(frame)).numpy() for frame in positions])
    return float(np.linalg.norm(found - forces) / np.linalg.norm(forces))


@pytest.fixture(scope="module")
def seen() -> tuple[Molecule, BondedTable, np.ndarray, np.ndarray]:
    """Two molecules in dynamics, with parameters that differ by elements and by what is one bond away."""
    molecule = together(AMIDE, PROPANE)
    table = chosen_table(molecule, depths=2, seed=1)
    positions = conformers(molecule, table, 60, seed=1)
    return molecule, table, positions, truth(molecule, table, positions)


def test_known_parameters_come_back(seen: tuple[Molecule, BondedTable, np.ndarray, np.ndarray]) -> None:
    """Next to nothing of the forces is left on frames that the fit has not seen; stiffness and place are found."""
    molecule, table, positions, forces = seen
    training, unseen = (frames_of(molecule, positions[part], forces[part]) for part in (slice(40), slice(40, None)))
    found = fit(training)
    assert left(molecule, found, positions[40:], forces[40:]) < LEFT_DEEPER
    assert left(molecule, BondedTable.empty(), positions[40:], forces[40:]) == pytest.approx(1.0)
    assert residual(unseen, found) < LEFT_DEEPER * np.sqrt((forces[40:] ** 2).sum(-1).mean())
    for kind in ("bond", "angle"):
        expected, fitted = (one.parameters(*molecule).values[kind] for one in (table, found))
        assert np.allclose(fitted[:, 0], expected[:, 0], rtol=0.02)
        assert np.allclose(fitted[:, 1] / fitted[:, 0], expected[:, 1] / expected[:, 0], rtol=2e-3)
    exact = fit(training, dict.fromkeys(RIDGE, 1e-7))
    assert left(molecule, exact, positions[40:], forces[40:]) < LEFT_EXACTLY


def test_known_parameters_of_elements_come_back() -> None:
    """Where elements tell everything, the corrections for surroundings bring back what the ridge took."""
    molecule = together(AMIDE, PROPANE)
    table = chosen_table(molecule, depths=1, seed=1)
    positions = conformers(molecule, table, 40, seed=1)
    forces = truth(molecule, table, positions)
    found = fit(frames_of(molecule, positions[:25], forces[:25]))
    assert left(molecule, found, positions[25:], forces[25:]) < LEFT


def test_elements_alone_do_not_tell_it(seen: tuple[Molecule, BondedTable, np.ndarray, np.ndarray]) -> None:
    """The control: with the keys of depth 0 only, much more is left."""
    molecule, _, positions, forces = seen
    found = fit(frames_of(molecule, positions[:40], forces[:40]))
    first = {kind: set(terms.keys[:, 0].tolist()) for kind, terms in find_terms(*molecule).items()}
    kept = {kind: np.array([key in first[kind] for key in keys.tolist()]) for kind, keys in found.keys.items()}
    shallow = BondedTable(
        {kind: found.keys[kind][here] for kind, here in kept.items()},
        {kind: found.values[kind][here] for kind, here in kept.items()},
        {},
    )
    assert left(molecule, shallow, positions[40:], forces[40:]) > 10 * LEFT_DEEPER


def test_what_a_table_lacks_is_found(seen: tuple[Molecule, BondedTable, np.ndarray, np.ndarray]) -> None:
    """Keys that enough terms have and the table has not: fitted for elements, nothing for surroundings."""
    molecule, _, positions, forces = seen
    n = len(AMIDE.species)
    frames = frames_of(molecule, positions[:40], forces[:40])
    whole = fit(frames)
    propane = fit(frames_of(PROPANE, positions[:40, n:], forces[:40, n:]))
    found = unknown(frames, propane, fewest=FEWEST)
    elements = {kind: set(terms.keys[:, 0].tolist()) for kind, terms in find_terms(*molecule).items()}
    for kind, keys in found.keys.items():
        assert set(keys.tolist()) == set(whole.keys[kind].tolist()) - set(propane.keys[kind].tolist())
        deeper = np.array([key not in elements[kind] for key in keys.tolist()])
        assert deeper.any() and not deeper.all() and not found.values[kind][deeper].any()
        assert found.values[kind][~deeper].any(axis=1).all()
        np.testing.assert_allclose(found.gram[kind], whole.gram[kind][np.searchsorted(whole.keys[kind], keys)])
    hydrogen = find_terms(*AMIDE)["bond"].keys[AMIDE.bonds.tolist().index([6, 7]), 0]  # N-H, of which there is one kind
    stiff, place = found.values["bond"][found.keys["bond"].tolist().index(hydrogen)]
    assert stiff > 1e5 and place / stiff == pytest.approx(RADIUS[1] + RADIUS[7], rel=0.2)
    joined = _fitted(frames, propane, 0, RIDGE, FEWEST)
    for kind, keys in joined.keys.items():  # what a model knows is not fitted a second time
        assert len(np.unique(keys)) == len(keys) > len(propane.keys[kind])
        assert np.array_equal(joined.values[kind][np.isin(keys, propane.keys[kind])], propane.values[kind])
    assert not any(map(len, unknown(frames, whole, fewest=FEWEST).keys.values()))
    assert not any(map(len, unknown(frames, propane, fewest=10_000).keys.values()))


def test_only_targets_count(seen: tuple[Molecule, BondedTable, np.ndarray, np.ndarray]) -> None:
    """Forces on other atoms, here nonsense, change nothing."""
    molecule, _, positions, forces = seen
    targets = np.arange(len(molecule.species)) < len(AMIDE.species)
    wrong = forces.copy()
    wrong[:, ~targets] = 1e4
    one, other = (fit(frames_of(molecule, positions[:10], pulls[:10], targets)) for pulls in (forces, wrong))
    assert all(np.array_equal(one.values[kind], other.values[kind]) for kind in one.values)
    everywhere = fit(frames_of(molecule, positions[:10], wrong[:10]))
    assert not np.allclose(everywhere.values["bond"], one.values["bond"], rtol=1e-3)


def test_what_is_left_of_nothing_is_everything(seen: tuple[Molecule, BondedTable, np.ndarray, np.ndarray]) -> None:
    """An empty table leaves the root mean square norm of the targets' forces."""
    molecule, _, positions, forces = seen
    targets = np.arange(len(molecule.species)) % 3 == 0
    found = residual(frames_of(molecule, positions, forces, targets), BondedTable.empty())
    assert found == pytest.approx(np.sqrt((forces[:, targets] ** 2).sum(-1).mean()))


def test_rare_kinds_are_taken_for_their_kin() -> None:
    """Too few terms in all frames: no key of their own, the value of the elements; one frame more, and there is one."""
    table = chosen_table(together(ETHANE, PROPANE), depths=2, seed=2)
    common, rare = (conformers(one, table, 40, seed=3) for one in (ETHANE, PROPANE))
    own_kind = find_terms(*PROPANE)["bond"]
    carbon = np.flatnonzero((PROPANE.species[own_kind.atoms] == 6).all(axis=1))
    key = int(own_kind.keys[carbon[0], 1])
    for n_rare, known in ((FEWEST // 2 - 1, False), (FEWEST // 2, True)):  # two such bonds a molecule
        molecules = [(ETHANE, common), (PROPANE, rare[:n_rare])]
        all_frames = [f for m, places in molecules for f in frames_of(m, places, truth(m, table, places))()]
        found = fit(lambda frames=all_frames: frames)
        assert (key in found.keys["bond"]) == known
        elements = found.values["bond"][np.searchsorted(found.keys["bond"], own_kind.keys[carbon[0], 0])]
        values = found.parameters(*PROPANE).values["bond"][carbon]
        assert np.array_equal(values, [elements, elements]) != known


def test_unknown_elements_count_for_nothing(seen: tuple[Molecule, BondedTable, np.ndarray, np.ndarray]) -> None:
    """Terms of elements that the frames lack are told as unknown, and pull at nothing; others of the molecule do."""
    table = seen[1]
    thiol = drawn([6, 16, 1, 1, 1, 1], [(0, 1), (0, 2), (0, 3), (0, 4), (1, 5)])
    found = table.parameters(*thiol)
    sulfur = {kind: (thiol.species[atoms] == 16).any(axis=1) for kind, atoms in found.atoms.items()}
    for kind, here in sulfur.items():
        assert np.array_equal(found.known[kind], ~here)
        assert not found.values[kind][here].any()
    places = torch.from_numpy(0.2 * np.random.default_rng(0).random((6, 3)))
    forces = BoundTerms(found)(places)
    assert not forces[[1, 5]].any() and forces[[0, 2, 3, 4]].norm(dim=1).min() > 1


def one_conformer(noise: float) -> tuple[Molecule, np.ndarray, np.ndarray]:
    """Return hydrogen peroxide, H-O-O-H, whose dihedral is never far from 60 degrees, with forces that hold noise."""
    random = np.random.default_rng(5)
    peroxide = drawn([1, 8, 8, 1], [(0, 1), (1, 2), (2, 3)])
    positions = []
    for turn in np.radians(60 + 2 * random.normal(size=60)):
        first, last = (0.0965 * np.array([np.cos(a), np.sin(a), 0.2]) for a in (0.0, turn))
        along = np.array([0, 0, 0.147])
        frame = np.array([first, 0 * along, along, last + along])
        positions.append(frame + 0.002 * random.normal(size=(4, 3)))
    table = chosen_table(peroxide, depths=1)
    table = table._replace(values={**table.values, "proper": np.array([[3.0, 2.0, 1.0, 0.0]])})
    forces = truth(peroxide, table, np.array(positions))
    return peroxide, np.array(positions), forces + noise * random.normal(size=forces.shape)


def test_a_torsion_seen_in_one_conformer_stays_small() -> None:
    """Its functions are nearly alike there: without the ridge their values are huge and cancel nowhere else."""
    peroxide, positions, forces = one_conformer(noise=100.0)
    frames = frames_of(peroxide, positions, forces)
    held, free = (
        fit(frames, {**RIDGE, "proper": ridge}).parameters(*peroxide).values["proper"] for ridge in (RIDGE["proper"], 0)
    )
    assert np.abs(held).max() < 30
    assert np.abs(free).max() > 10 * np.abs(held).max()


def test_gram_by_brute_force() -> None:
    """The mean over the terms of a key of its functions' products."""
    table = chosen_table(AMIDE, seed=6)
    positions = conformers(AMIDE, table, 4)
    found = fit(frames_of(AMIDE, positions, truth(AMIDE, table, positions)), fewest=1)
    for kind, terms in find_terms(*AMIDE).items():
        assert found.gram[kind].shape[0] == len(found.keys[kind]) > 0
        for row, key in enumerate(found.keys[kind].tolist()):
            atoms = terms.atoms[(terms.keys == key).any(axis=1)]
            products = []
            for frame in positions:
                for term in slopes(kind, term_vectors(torch.from_numpy(atoms), torch.from_numpy(frame), None)).numpy():
                    products.append([[(one * other).sum() for other in term] for one in term])
            assert np.allclose(found.gram[kind][row], np.mean(products, axis=0), rtol=1e-9, atol=1e-12)


def test_no_terms_at_all() -> None:
    """Ions: nothing is fitted, everything is left."""
    ions = drawn([11, 17], [])
    positions, forces = np.zeros((3, 2, 3)), np.ones((3, 2, 3))
    found = fit(frames_of(ions, positions, forces))
    assert all(not len(keys) for keys in found.keys.values())
    assert residual(frames_of(ions, positions, forces), found) == pytest.approx(np.sqrt(3))
