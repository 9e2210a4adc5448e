"""Means of correlated series with errors from blocks, and the drift of an energy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from forcefield_ml.units import KJ_PER_MOL_IN_MEV

BLOCKS = 5
"""Few and long: a block must be longer than what is correlated, and two hundred steps are not many."""


def block_mean(values: ArrayLike, n_blocks: int = BLOCKS) -> dict[str, Any]:
    """Return the mean over time and its standard error from the means of consecutive blocks.

    Parameters
    ----------
    values
        (F, ...); what is not time is averaged, too.
    n_blocks
        Blocks; as many as there are values where these are fewer.

    Returns
    -------
    dict
        ``mean``, ``standard_error`` (None for fewer than two values), ``blocks``.

    Raises
    ------
    ValueError
        If there is no value.
    """
    series = np.asarray(values, dtype=np.float64)
    if not series.size:
        raise ValueError("there is nothing to average")
    series = series.reshape(len(series), -1).mean(axis=1)
    blocks = np.array([block.mean() for block in np.array_split(series, min(n_blocks, len(series)))])
    error = float(blocks.std(ddof=1) / np.sqrt(len(blocks))) if len(blocks) > 1 else None
    return {"mean": float(series.mean()), "standard_error": error, "blocks": len(blocks)}


def thermal_error(temperature: float, n_atoms: int, friction: float, length: float) -> float:
    """Return the standard error of a mean kinetic temperature that any force has in Langevin dynamics.

    Kinetic temperature fluctuates by T sqrt(2 / 3N) in the canonical ensemble, and what it was is forgotten at twice
    the friction where no other motion helps, so that a run holds friction x length independent values, at least one.
    Blocks of a run that is not much longer than 1 / friction cannot show it.

    Parameters
    ----------
    temperature
        K, of the thermostat.
    n_atoms
        Without constraints.
    friction
        1/ps.
    length
        ps.
    """
    return float(temperature * np.sqrt(2.0 / (3.0 * n_atoms) / max(1.0, friction * length)))


def drift(time: ArrayLike, kinetic: ArrayLike, potential: ArrayLike, n_atoms: int) -> dict[str, Any]:
    """Return the drift of kinetic plus reference potential energy along a run at constant energy.

    The slope is a straight line's through all values, its standard error that of the same line through the means of
    2 x `BLOCKS` blocks. ``over_kinetic_std`` is the change along the run, |slope| x length, over the standard deviation
    of the kinetic energy about its own line: a run that heats does not widen the measure by which its drift is judged.

    Parameters
    ----------
    time
        (F,) ps, at least 4.
    kinetic, potential
        (F,) kJ/mol of the whole system.
    n_atoms
        Of the system.

    Returns
    -------
    dict
        ``slope`` and ``standard_error`` (meV/atom/ps), ``over_kinetic_std``, ``kinetic_std`` (kJ/mol), ``length``
        (ps).

    Raises
    ------
    ValueError
        If there are fewer than 4 values.
    """
    at, moving = np.asarray(time, dtype=np.float64), np.asarray(kinetic, dtype=np.float64)
    if len(at) < 4:
        raise ValueError(f"a drift needs at least 4 energies, got {len(at)}")
    total = moving + np.asarray(potential, dtype=np.float64)
    slope = np.polyfit(at, total, 1)[0]
    spread = float(np.std(moving - np.polyval(np.polyfit(at, moving, 1), at)))
    length = float(at[-1] - at[0])
    n_blocks = min(2 * BLOCKS, len(at))
    x, y = (np.array([block.mean() for block in np.array_split(values, n_blocks)]) for values in (at, total))
    rest = y - np.polyval(np.polyfit(x, y, 1), x)
    error = np.sqrt((rest**2).sum() / (n_blocks - 2) / ((x - x.mean()) ** 2).sum())
    unit = KJ_PER_MOL_IN_MEV / n_atoms
    return {
        "slope": float(slope) * unit,
        "standard_error": float(error) * unit,
        "over_kinetic_std": abs(float(slope)) * length / spread if spread else None,
        "kinetic_std": spread,
        "length": length,
    }
