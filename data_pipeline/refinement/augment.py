"""Bent copies of candidates: errors like those of the candidates, and more of them than anybody made."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

WAVES = 256
"""Of which a random field is the sum."""


def bend(
    positions: NDArray[np.floating], copies: int, displacement: float, correlation: float, seed: int
) -> NDArray[np.float32]:
    """Return copies of a structure displaced by smooth random fields, so that near atoms move alike.

    Each coordinate of a field is Gaussian in all of space; at distance r two of its values correlate by
    exp(-r^2 / (2 correlation^2)).

    Parameters
    ----------
    positions
        (N, 3).
    copies
        How many, each by a field of its own.
    displacement
        Standard deviation of each coordinate, in the unit of the positions.
    correlation
        In the same unit.
    seed
        Of the fields.

    Returns
    -------
    ndarray
        (copies, N, 3).

    References
    ----------
    Rahimi, Recht, Advances in Neural Information Processing Systems 20 (2007): random Fourier features.
    """
    generator = np.random.default_rng(seed)
    own = positions.astype(np.float64)
    bent = np.empty((copies, len(own), 3))
    for copy in range(copies):
        waves = generator.normal(scale=1 / correlation, size=(3, WAVES))
        phases = generator.uniform(0, 2 * np.pi, size=WAVES)
        heights = generator.normal(scale=displacement * np.sqrt(2 / WAVES), size=(WAVES, 3))
        bent[copy] = own + np.cos(own @ waves + phases) @ heights
    return bent.astype(np.float32)
