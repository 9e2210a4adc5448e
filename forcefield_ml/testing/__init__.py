"""Public assertions about models, and systems to make them on.

The paper's network in plain e3nn brings e3nn with it, which importing this package alone does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from forcefield_ml.testing.e3nn_network import PlainTensorFieldNetwork, edge_list, weights_of

__all__ = [
    "PlainTensorFieldNetwork",
    "assert_additive",
    "assert_equivariant",
    "assert_lattice_invariant",
    "assert_permutation_equivariant",
    "assert_smooth_at_cutoff",
    "assert_translation_invariant",
    "brute_force_pairs",
    "edge_list",
    "matrix_pairs",
    "random_liquid",
    "random_rotation",
    "weights_of",
]


def __getattr__(name: str) -> Any:
    """Import what needs e3nn when it is first asked for."""
    if name not in ("PlainTensorFieldNetwork", "edge_list", "weights_of"):
        raise AttributeError(f"module 'forcefield_ml.testing' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("forcefield_ml.testing.e3nn_network"), name)
