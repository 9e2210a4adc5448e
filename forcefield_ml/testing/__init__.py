"""Public assertions about models, and systems to make them on."""

from forcefield_ml.testing.properties import (
    assert_additive,
    assert_equivariant,
    assert_lattice_invariant,
    assert_permutation_equivariant,
    assert_smooth_at_cutoff,
    assert_translation_invariant,
    random_rotation,
)
from forcefield_ml.testing.systems import brute_force_pairs, matrix_pairs, random_liquid

__all__ = [
    "assert_additive",
    "assert_equivariant",
    "assert_lattice_invariant",
    "assert_permutation_equivariant",
    "assert_smooth_at_cutoff",
    "assert_translation_invariant",
    "brute_force_pairs",
    "matrix_pairs",
    "random_liquid",
    "random_rotation",
]
