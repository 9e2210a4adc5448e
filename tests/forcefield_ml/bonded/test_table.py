"""Parameters by key: the sum over the depths that are known, for all terms or those of some atoms."""

from __future__ import annotations

import numpy as np
import pytest
from molecule_files import AMIDE, PROPANE, WATER, chosen_table, together

from forcefield_ml.bonded import KINDS, BondedTable, Parameters, find_terms
from forcefield_ml.bonded.geometry import N_FUNCTIONS


@pytest.mark.parametrize("depths", [1, 2, 3])
def test_a_term_is_the_sum_of_its_depths(depths: int) -> None:
    """Looked up one by one in a dictionary."""
    table = chosen_table(AMIDE, depths)
    found = table.parameters(*AMIDE)
    for kind, terms in find_terms(*AMIDE).items():
        rows = dict(zip(table.keys[kind].tolist(), table.values[kind], strict=True))
        expected = [sum(rows.get(key, 0.0) for key in keys) for keys in terms.keys.tolist()]
        assert np.allclose(found.values[kind], expected, rtol=1e-14)
        assert np.array_equal(found.atoms[kind], terms.atoms) and found.known[kind].all()
        assert np.all(np.diff(table.keys[kind]) > 0)


def test_unseen_surroundings_have_the_values_of_the_elements() -> None:
    """A carbon chain in a table of amides."""
    table = chosen_table(AMIDE, 2)
    found = table.parameters(*PROPANE)
    terms = find_terms(*PROPANE)["bond"]
    carbons = (PROPANE.species[terms.atoms] == 6).all(axis=1)
    row = table.values["bond"][np.searchsorted(table.keys["bond"], terms.keys[carbons, 0])]
    assert np.array_equal(found.values["bond"][carbons], row) and found.known["bond"].all()
    assert row.any()


def test_those_of_some_atoms() -> None:
    """With targets, the terms that hold one of them; the others of the system are not there."""
    molecules = together(AMIDE, WATER, WATER)
    table = chosen_table(molecules)
    targets = np.arange(len(molecules.species)) < len(AMIDE.species)
    found, alone = table.parameters(*molecules, targets), table.parameters(*AMIDE)
    for kind in KINDS:
        assert np.array_equal(found.atoms[kind], alone.atoms[kind])
        assert np.array_equal(found.values[kind], alone.values[kind])
    assert len(table.parameters(*molecules).atoms["bond"]) == len(alone.atoms["bond"]) + 4


def test_a_table_that_knows_nothing() -> None:
    """Every term is unknown; and there are no terms of no molecule."""
    found = BondedTable.empty().parameters(*AMIDE)
    for kind in KINDS:
        assert not found.known[kind].any() and not found.values[kind].any()
        assert found.values[kind].shape == (len(find_terms(*AMIDE)[kind].atoms), N_FUNCTIONS[kind])
    nothing = Parameters.none()
    assert {kind: atoms.shape for kind, atoms in nothing.atoms.items()} == {kind: (0, k) for kind, k in KINDS.items()}
