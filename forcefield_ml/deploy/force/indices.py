"""Atoms as a user names them, read as indices: whole numbers, a boolean mask, or OpenMM's atoms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from forcefield_ml.errors import TopologyError


def read_indices(chosen: Any, n_atoms: int, name: str = "atoms") -> list[int]:
    """Return the indices of chosen atoms, ascending, each once.

    Parameters
    ----------
    chosen
        Whole numbers from 0 to `n_atoms` - 1 (a list, range, set, array or generator), atoms that know their
        ``index``, or a mask: one boolean for each of the `n_atoms`.
    n_atoms
        Of the system.
    name
        Of the argument, for messages.

    Raises
    ------
    TopologyError
        If there is none, one is no whole number or out of range, or a mask has another length.
    """
    values = read_values(chosen, name)
    if values and isinstance(values[0], bool):
        if len(values) != n_atoms:
            raise TopologyError(
                f"{name} is a mask of {len(values)} booleans, but there are {n_atoms} atoms; give one boolean for each "
                f"atom, or indices from 0 to {n_atoms - 1}"
            )
        values = [i for i, value in enumerate(values) if value]
    if not values:
        raise TopologyError(f"{name} is empty: give the index of one atom at least, or None")
    found = sorted(set(values))
    if found[0] < 0 or found[-1] >= n_atoms:
        wrong = found[0] if found[0] < 0 else found[-1]
        raise TopologyError(
            f"{name} holds the index {wrong}, but there are atoms 0 to {n_atoms - 1}; atoms are counted from 0 in the "
            "order of the structure given here (was it changed after the selection?), and never from the end"
        )
    return found


def read_values(chosen: Any, name: str = "atoms") -> list[int]:
    """Return what `read_indices` is to read as a list of whole numbers or of booleans, where the range is not known.

    Parameters
    ----------
    chosen, name
        As for `read_indices`.

    Raises
    ------
    TopologyError
        If one value is neither, or both kinds are mixed.
    """
    if isinstance(chosen, str) or not isinstance(values := _plain(chosen), Iterable):
        raise TopologyError(f"{name} must be a list of indices or a mask; got {chosen!r}")
    values = [_plain(value if callable(own := getattr(value, "index", value)) else own) for value in values]
    n_booleans = sum(isinstance(value, bool) for value in values)
    if 0 < n_booleans < len(values):
        raise TopologyError(f"{name} holds booleans beside other values; give either indices or one boolean per atom")
    for value in values:
        if not isinstance(value, int):
            raise TopologyError(
                f"{name} holds {value!r}, a {type(value).__name__}; atoms are chosen by whole numbers in one dimension "
                "(of an array of floats take .astype(int)) or by one boolean per atom"
            )
    return values


def _plain(value: Any) -> Any:
    """Return a value of NumPy or torch as Python's own."""
    return value.tolist() if hasattr(value, "tolist") else value
