"""Which terms a molecule has: by hand, by brute force, and the same however its atoms are numbered."""

from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest
from molecule_files import AMIDE, CYCLOPROPANE, ETHANE, FORMALDEHYDE, FORMAMIDE, PROPANE, WATER, Molecule, together

from forcefield_ml.bonded import KINDS, find_terms
from forcefield_ml.bonded.terms import DEPTHS, MOST_PARTNERS, touching
from forcefield_ml.errors import TopologyError

MOLECULES = {
    "water": (WATER, (2, 1, 0, 0)),
    "ethane": (ETHANE, (7, 12, 9, 0)),
    "formaldehyde": (FORMALDEHYDE, (3, 3, 0, 6)),
    "formamide": (FORMAMIDE, (5, 6, 4, 12)),
    # each of three bonds in the ring has three partners at either end, of which one is the same atom
    "cyclopropane": (CYCLOPROPANE, (9, 18, 24, 0)),
}


def read_one_way(kind: str, atoms: tuple[int, ...]) -> tuple[int, ...]:
    """Return a term as one of the two ways to read it; an improper has one."""
    return atoms if kind == "improper" else min(atoms, atoms[::-1])


def brute_force(molecule: Molecule) -> dict[str, set[tuple[int, ...]]]:
    """Return all terms, tried over all atoms."""
    n = len(molecule.species)
    bonded = np.zeros((n, n), dtype=bool)
    bonded[tuple(molecule.bonds.T)] = True
    bonded |= bonded.T
    four = list(permutations(range(n), 4))
    return {
        "bond": {pair for pair in combinations(range(n), 2) if bonded[pair]},
        "angle": {
            read_one_way("angle", (i, j, k)) for i, j, k in permutations(range(n), 3) if bonded[i, j] and bonded[j, k]
        },
        "proper": {
            read_one_way("proper", (i, j, k, m))
            for i, j, k, m in four
            if bonded[i, j] and bonded[j, k] and bonded[k, m]
        },
        "improper": {
            (i, j, centre, m)
            for i, j, centre, m in four
            if bonded[centre, [i, j, m]].all() and bonded[centre].sum() == 3
        },
    }


def keys_by_atoms(molecule: Molecule, names: np.ndarray) -> dict[str, dict[tuple[int, ...], tuple[int, ...]]]:
    """Return kind to (atoms by name to keys)."""
    return {
        kind: {
            read_one_way(kind, tuple(names[atoms].tolist())): tuple(keys.tolist())
            for atoms, keys in zip(terms.atoms, terms.keys, strict=True)
        }
        for kind, terms in find_terms(*molecule).items()
    }


@pytest.mark.parametrize("name", sorted(MOLECULES))
def test_by_hand_and_by_brute_force(name: str) -> None:
    """Each term once, with the atoms that all tuples of atoms give, in the number counted by hand."""
    molecule, counts = MOLECULES[name]
    found, expected = find_terms(*molecule), brute_force(molecule)
    assert tuple(len(found[kind].atoms) for kind in KINDS) == counts
    for kind, size in KINDS.items():
        assert found[kind].atoms.shape == (len(expected[kind]), size)
        assert {read_one_way(kind, tuple(row)) for row in found[kind].atoms.tolist()} == expected[kind]
        assert found[kind].keys.shape == (len(expected[kind]), DEPTHS)


@pytest.mark.parametrize("seed", range(8))
def test_numbers_of_atoms_do_not_matter(seed: int) -> None:
    """Renumbered atoms, with bonds in another order and read backwards, make the same terms with the same keys."""
    random = np.random.default_rng(seed)
    molecule = together(AMIDE, CYCLOPROPANE, FORMAMIDE)
    n = len(molecule.species)
    order = random.permutation(n)
    bonds = np.argsort(order)[random.permutation(molecule.bonds)]
    turned = np.where(random.random((len(bonds), 1)) < 0.5, bonds, bonds[:, ::-1])
    expected = keys_by_atoms(molecule, np.arange(n))
    assert keys_by_atoms(Molecule(molecule.species[order], turned), order) == expected
    assert all(len(terms) for terms in expected.values())


def test_a_bond_told_twice_is_one() -> None:
    """Topologies hold some bonds twice (standard bonds added to those of a file): no term counts double for that."""
    expected = keys_by_atoms(AMIDE, np.arange(12))
    twice = np.concatenate([AMIDE.bonds, AMIDE.bonds[3:7, ::-1]])
    found = find_terms(AMIDE.species, twice)
    assert {kind: len(terms.atoms) for kind, terms in found.items()} == {kind: len(t) for kind, t in expected.items()}
    assert keys_by_atoms(Molecule(AMIDE.species, twice), np.arange(12)) == expected


def test_equal_surroundings_have_equal_keys() -> None:
    """All C-H bonds of ethane are one kind, and all its dihedrals; no key serves two depths or two kinds."""
    found = find_terms(*ETHANE)
    hydrogens = (ETHANE.species[found["bond"].atoms] == 1).any(axis=1)
    assert len(np.unique(found["bond"].keys[hydrogens], axis=0)) == 1
    assert len(np.unique(found["bond"].keys, axis=0)) == 2
    assert len(np.unique(found["proper"].keys, axis=0)) == 1
    keys = np.concatenate([np.unique(terms.keys) for terms in find_terms(*AMIDE).values()])
    assert len(np.unique(keys)) == len(keys)
    by_depth = [
        set(np.concatenate([t.keys[:, d] for t in find_terms(*AMIDE).values()]).tolist()) for d in range(DEPTHS)
    ]
    assert not by_depth[0] & by_depth[1] and not by_depth[1] & by_depth[2] and not by_depth[0] & by_depth[2]


def test_different_surroundings_differ_at_their_depth() -> None:
    """A carbon's bond in ethane and propane differs one bond away, a methyl's hydrogen two bonds away."""
    ethane, propane = (keys_by_atoms(one, np.arange(len(one.species)))["bond"] for one in (ETHANE, PROPANE))
    alike = [one == other for one, other in zip(ethane[0, 1], propane[0, 1], strict=True)]
    assert alike == [True, False, False]
    alike = [one == other for one, other in zip(ethane[0, 2], propane[0, 3], strict=True)]
    assert alike == [True, True, False]
    assert ethane[0, 1][0] != ethane[0, 2][0]


def test_order_of_an_improper_is_told() -> None:
    """The three orders of partners that the fit chooses among have keys of their own."""
    keys = keys_by_atoms(FORMAMIDE, np.arange(6))["improper"]
    at_carbon = {atoms: key[0] for atoms, key in keys.items() if atoms[2] == 0}
    assert len(at_carbon) == 6 == len(set(at_carbon.values()))


def test_terms_that_hold_some_atoms() -> None:
    """Those with at least one of them stay, with their keys."""
    found = find_terms(*ETHANE)
    chosen = np.zeros(8, dtype=bool)
    chosen[2] = True
    kept = touching(found, chosen)
    # a hydrogen: its bond, two angles to hydrogens and one to carbon, three dihedrals
    assert [len(kept[kind].atoms) for kind in KINDS] == [1, 3, 3, 0]
    for kind in KINDS:
        here = (found[kind].atoms == 2).any(axis=1)
        assert np.array_equal(kept[kind].atoms, found[kind].atoms[here])
        assert np.array_equal(kept[kind].keys, found[kind].keys[here])


@pytest.mark.parametrize("bonds", [[[0, 3]], [[0, -1]], [[1, 1]]])
def test_bonds_of_no_atoms_are_refused(bonds: list[list[int]]) -> None:
    """A file may name any; an index of -1 would be the last atom."""
    with pytest.raises(TopologyError, match="bonds name atoms"):
        find_terms(np.array([8, 1, 1]), np.array(bonds))


def test_an_atom_of_too_many_bonds_is_refused() -> None:
    """Terms grow with the square of the partners: a star of a crafted file would fill the memory."""
    star = np.array([[0, k] for k in range(1, MOST_PARTNERS + 2)])
    with pytest.raises(TopologyError, match="an atom has 17 bonds"):
        find_terms(np.full(len(star) + 1, 6), star)
    assert len(find_terms(np.full(len(star), 6), star[:-1])["angle"].atoms) == MOST_PARTNERS * (MOST_PARTNERS - 1) // 2


def test_no_bonds() -> None:
    """Ions have no terms, and there need not be atoms."""
    for species in (np.array([11, 17]), np.zeros(0, dtype=int)):
        for kind, terms in find_terms(species, np.zeros((0, 2), dtype=int)).items():
            assert terms.atoms.shape == (0, KINDS[kind]) and terms.keys.shape == (0, DEPTHS)
