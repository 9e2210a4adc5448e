"""Atom types: equal surroundings have equal types, whatever the numbering; what is not known falls back."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forcefield_ml.nn.atom_types import CODE_STEP, AtomTypes, bonds_among, surroundings
from forcefield_ml.nn.embedding import TypeEmbedding, add_types, set_types, types_of

ETHANOL = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1])
ETHANOL_BONDS = np.array([(0, 1), (1, 2), (0, 3), (0, 4), (0, 5), (1, 6), (1, 7), (2, 8)])
WATER, WATER_BONDS = np.array([8, 1, 1]), np.array([(0, 1), (0, 2)])


def test_ethanol_by_hand() -> None:
    """One bond away: two carbons of their own, O, H of C alike, H of O. Two bonds away the hydrogens of C differ."""
    around = surroundings(ETHANOL, ETHANOL_BONDS, 2)
    one, two = around[:, 0], around[:, 1]
    assert len(set(one)) == 5 and len(set(one[3:8])) == 1 and one[8] not in one[:8]
    assert len(set(two[3:6])) == 1 and len(set(two[6:8])) == 1 and two[3] != two[6]
    assert len(set(two)) == 6


def test_numbering_does_not_matter() -> None:
    """Atoms in another order have the same surroundings; the order of bonds and of their ends changes nothing."""
    random = np.random.default_rng(0)
    order = random.permutation(len(ETHANOL))
    place = np.argsort(order)
    bonds = place[ETHANOL_BONDS][:, ::-1][random.permutation(len(ETHANOL_BONDS))]
    expected = surroundings(ETHANOL, ETHANOL_BONDS, 4)[order]
    assert np.array_equal(surroundings(ETHANOL[order], bonds, 4), expected)


def test_hashes_are_those_of_another_process() -> None:
    """They are stored in models: a change of the function makes every stored model wrong."""
    found = surroundings(WATER, WATER_BONDS, 2)[:2].tolist()
    assert found == [[8142589628975131977, 7435267895934404952], [8312560738039253465, -7404541065711583827]]


def test_unseen_surroundings_fall_back_to_nearer_ones() -> None:
    """Methanol's oxygen is bonded as ethanol's one bond away, and not two; its carbon is like none."""
    types = AtomTypes.of([(ETHANOL, ETHANOL_BONDS)], depth=3, room=100, fewest=1)
    methanol = np.array([6, 8, 1, 1, 1, 1])
    found = types.find(methanol, np.array([(0, 1), (0, 2), (0, 3), (0, 4), (1, 5)]))
    own = types.find(ETHANOL, ETHANOL_BONDS)
    assert found[0] == 0 and types.depths[found[1] - 1] == 1 and types.depths[own[2] - 1] == 3
    chain = types.ancestry(3)
    assert chain[own[2], 0] == found[1], "the oxygen of both has one type at one bond"
    assert (chain[0] == 0).all() and (chain[own] > 0).all()


def test_rare_types_and_those_without_room_are_left_out() -> None:
    """What few atoms have is not learnt; the parents of what is kept are kept."""
    molecules = [(ETHANOL, ETHANOL_BONDS)] + 5 * [(WATER, WATER_BONDS)]
    types = AtomTypes.of(molecules, depth=2, room=100, fewest=4)
    assert (types.find(WATER, WATER_BONDS) > 0).all() and (types.find(ETHANOL, ETHANOL_BONDS)[:3] == 0).all()
    for room in range(1, 12):
        few = AtomTypes.of(molecules, depth=2, room=room, fewest=1)
        assert len(few.hashes) <= room and all(few.parents[few.depths > 1] > 0)


def test_types_can_be_added() -> None:
    """Those that were known keep their numbers and parents; the others follow, as far as there is room."""
    known = AtomTypes.of([(WATER, WATER_BONDS)], depth=2, room=100, fewest=1)
    grown = known.grown([(WATER, WATER_BONDS), (ETHANOL, ETHANOL_BONDS)], depth=2, room=100, fewest=1)
    both = AtomTypes.of([(WATER, WATER_BONDS), (ETHANOL, ETHANOL_BONDS)], depth=2, room=100, fewest=1)
    n_known = len(known.hashes)
    assert all(np.array_equal(new[:n_known], old) for new, old in zip(grown, known, strict=True))
    assert set(grown.hashes.tolist()) == set(both.hashes.tolist()) and len(grown.hashes) == len(both.hashes) > n_known
    assert np.array_equal(grown.find(WATER, WATER_BONDS), known.find(WATER, WATER_BONDS))
    hashes, parents = grown.hashes.tolist(), both.parents[both.parents > 0]
    assert len(parents) and sorted(hashes[p - 1] for p in grown.parents[grown.parents > 0]) == sorted(
        both.hashes[parents - 1].tolist()
    )
    again = grown.grown([(ETHANOL, ETHANOL_BONDS)], depth=2, room=100, fewest=1)
    assert len(again.hashes) == len(grown.hashes)
    tight = known.grown([(ETHANOL, ETHANOL_BONDS)], depth=2, room=n_known + 1, fewest=1)
    assert len(tight.hashes) == n_known + 1 and len(known.grown([], 2, 100).hashes) == n_known


def test_added_types_change_no_features_at_first() -> None:
    """Of any atom, with a known type or without; then they can be learnt."""
    network = torch.nn.ModuleDict({"types": TypeEmbedding(2, 50, 4)})
    set_types(network, [(WATER, WATER_BONDS)] * 10)
    embedding = network["types"]

    def features() -> list[torch.Tensor]:
        types = types_of(network)
        assert types is not None
        pairs = ((WATER, WATER_BONDS), (ETHANOL, ETHANOL_BONDS))
        return [embedding(torch.from_numpy(types.codes(*molecule))).detach() for molecule in pairs]

    before = features()
    assert before[0].any() and add_types(network, [(WATER, WATER_BONDS)] * 10) == 0
    n_new = add_types(network, [(ETHANOL, ETHANOL_BONDS)] * 10)
    after, types = features(), types_of(network)
    assert n_new > 5 and all(torch.equal(old, new) for old, new in zip(before, after, strict=True))
    assert types is not None and (types.find(ETHANOL, ETHANOL_BONDS) > 0).all()
    embedding.weights.data[len(types.hashes) - n_new :] += 1
    assert torch.equal(features()[0], before[0]) and not torch.equal(features()[1], before[1])
    assert add_types(torch.nn.Linear(1, 1), [(WATER, WATER_BONDS)]) == 0


def test_codes_hold_element_and_type() -> None:
    types = AtomTypes.of([(ETHANOL, ETHANOL_BONDS)], depth=2, room=100, fewest=1)
    codes = types.codes(ETHANOL, ETHANOL_BONDS)
    assert np.array_equal(codes % CODE_STEP, ETHANOL)
    assert np.array_equal(codes // CODE_STEP, types.find(ETHANOL, ETHANOL_BONDS))


def test_embedding_adds_up_what_is_known() -> None:
    """Features are the sum over depths; of an atom without a type they are zero; compiled, too."""
    network = torch.nn.ModuleDict({"types": TypeEmbedding(3, 50, 4)})
    set_types(network, [(np.tile(ETHANOL, 10), np.concatenate([ETHANOL_BONDS + 9 * k for k in range(10)]))])
    types = types_of(network)
    assert types is not None
    codes = torch.from_numpy(types.codes(ETHANOL, ETHANOL_BONDS))
    embedding = network["types"]
    weights = torch.cat([torch.zeros(1, 4), embedding.weights.detach()])
    along = types.ancestry(3)[codes.numpy() // CODE_STEP]
    expected = torch.stack([sum(weights[t] for t in row) for row in along.tolist()])
    compiled = torch.jit.script(embedding)
    for network_ in (embedding, compiled):
        torch.testing.assert_close(network_(codes).detach(), expected)
        assert (network_(torch.from_numpy(ETHANOL)) == 0).all()
    again = types_of(torch.jit.script(torch.nn.Sequential()).eval())
    assert again is None


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_rings_and_ends_stop_growing(depth: int) -> None:
    """An ion has no bonds; in a ring all atoms stay alike at every depth."""
    ring = np.array([(i, (i + 1) % 6) for i in range(6)])
    assert all(len(set(column)) == 1 for column in surroundings(np.full(6, 6), ring, depth).T)
    assert surroundings(np.array([11]), np.zeros((0, 2), dtype=int), depth).shape == (1, depth)


def test_bonds_among_chosen_atoms() -> None:
    """By hand: of a chain 0-1-2-3-4 without atom 2, bonds 0-1 and 3-4 are left, as 0-1 and 2-3."""
    chain = np.array([(0, 1), (1, 2), (2, 3), (3, 4)], dtype=np.int32)
    chosen = np.array([True, True, False, True, True])
    assert bonds_among(chain, chosen).tolist() == [[0, 1], [2, 3]]
    assert bonds_among(chain, np.ones(5, dtype=bool)).tolist() == chain.tolist()
    assert bonds_among(chain[:0], chosen).shape == (0, 2)
