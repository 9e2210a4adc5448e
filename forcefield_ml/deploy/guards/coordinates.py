"""Positions as they come from a user: their type, number and unit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forcefield_ml import units
from forcefield_ml.errors import ConfigError
from forcefield_ml.nn.atom_types import CODE_STEP

SHORTEST_BOND, LONGEST_BOND = 0.03, 0.3
"""nm, between a hydrogen and its nearest atom; 0.07 to 0.13 in molecules. Ten times more or less is another unit."""


def read_positions(positions: Any) -> NDArray[np.float64]:
    """Return positions as floats in nm.

    Parameters
    ----------
    positions
        (N, 3), Quantity of a length, or plain numbers in nm.

    Raises
    ------
    ConfigError
        If they are of another shape, whole numbers, of half precision, or not numbers at all.
    """
    try:
        values = np.asarray(units.strip(positions, "nanometer"))
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"positions are no array of lengths ({error}); give (N, 3) numbers in nm or a Quantity"
        ) from None
    if values.ndim != 2 or values.shape[1] != 3:
        raise ConfigError(f"positions have shape {values.shape}; give (N, 3), one row of x, y, z per atom")
    if values.dtype not in (np.float32, np.float64):
        if values.dtype.kind in "iu":
            why = "whole numbers, so that something was cut off"
        else:
            why = "too coarse" if values.dtype == np.float16 else "no real numbers"
        raise ConfigError(
            f"positions are of type {values.dtype} ({why}); give float64 or float32, in nm or as a Quantity"
        )
    return values.astype(np.float64)


def check_unit(positions: NDArray[np.float64], species: Any) -> None:
    """Refuse positions in which no hydrogen has a bond: they are most likely in another unit.

    Parameters
    ----------
    positions
        (N, 3) nm, finite.
    species
        (N,) atomic numbers, or codes of atom types.

    Raises
    ------
    ConfigError
        If even the shortest distance of a hydrogen to another atom is above `LONGEST_BOND`, or the median distance is
        below `SHORTEST_BOND`.
    """
    from scipy.spatial import cKDTree

    hydrogens = np.flatnonzero(np.asarray(species) % CODE_STEP == 1)
    if not len(hydrogens) or len(positions) < 2:
        return
    nearest = cKDTree(positions).query(positions[hydrogens], k=2)[0][:, 1]
    if nearest.min() > LONGEST_BOND:
        hint = "are these ångström? Then pass positions * unit.angstrom"
    elif np.median(nearest) < SHORTEST_BOND:
        hint = "were they divided by ten twice, or are atoms on top of each other? Positions are in nm"
    else:
        return
    raise ConfigError(
        f"the nearest atom of a hydrogen is {np.median(nearest):.3g} nm away (the median; a bond is 0.1 nm): {hint}"
    )
