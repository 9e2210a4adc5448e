r"""Work around closed loops: zero for the gradient of an energy, whatever the loop.

A loop moves all atoms at once on an ellipse, x(t) = x_0 + a (u sin t + w (1 - cos t)), u and w random and orthonormal.
The trapezium rule on a smooth periodic integrand converges faster than any power of the number of points, so that what
is left for a conservative force is rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.progress import ProgressLine

Force = Callable[[NDArray[np.float64]], NDArray[np.float64]]

RADIUS = 0.003
"""nm, root mean square displacement of an atom along each axis of a loop: less than bonds move at 300 K."""


def loop_work(
    force: Force,
    positions: NDArray[np.float64],
    n_loops: int = 8,
    n_points: int = 8,
    radius: float = RADIUS,
    seed: int = 0,
    quiet: bool = True,
) -> dict[str, Any]:
    """Return the work that a force does around random closed loops.

    Parameters
    ----------
    force
        From positions (n, 3) nm to forces (n, 3) kJ/mol/nm.
    positions
        (n, 3) nm, where the loops begin.
    n_loops
        At least 2.
    n_points
        On each loop; 8 integrate forces that are polynomials of degree 6 along the loop without error.
    radius
        nm, see `RADIUS`.
    seed
        Of the loops.
    quiet
        Show no progress.

    Returns
    -------
    dict
        ``work`` (root mean square over the loops, kJ/mol) and ``standard_error``, ``moved`` (mean of the integral of
        |F dx|, kJ/mol), ``relative`` (the first over the last), ``loops``, ``points``, ``radius``, ``each`` (kJ/mol).

    Raises
    ------
    ValueError
        If there are fewer than 2 loops or 4 points.
    """
    if n_loops < 2 or n_points < 4:
        raise ValueError(f"{n_loops} loops of {n_points} points; at least 2 loops of 4 points are needed")
    random = np.random.default_rng(seed)
    angles = 2 * np.pi * np.arange(n_points) / n_points
    works, moved = np.zeros(n_loops), np.zeros(n_loops)
    with ProgressLine("closed loops", quiet) as line:
        for loop in range(n_loops):
            axes, _ = np.linalg.qr(random.normal(size=(positions.size, 2)))
            u, w = (axes.T * radius * np.sqrt(len(positions))).reshape(2, *positions.shape)
            for angle in angles:
                at = positions + u * np.sin(angle) + w * (1 - np.cos(angle))
                along = (u * np.cos(angle) + w * np.sin(angle)) * 2 * np.pi / n_points
                done = float((force(at) * along).sum())
                works[loop] += done
                moved[loop] += abs(done)
            line.show((loop + 1) / n_loops, f"loop {loop + 1} of {n_loops}", loop + 1 == n_loops)
    squares = works**2
    work = float(np.sqrt(squares.mean()))
    spread = float(squares.std(ddof=1) / np.sqrt(n_loops))
    return {
        "work": work,
        "standard_error": spread / (2 * work) if work else 0.0,
        "moved": float(moved.mean()),
        "relative": work / float(moved.mean()) if moved.any() else 0.0,
        "loops": n_loops,
        "points": n_points,
        "radius": radius,
        "each": works.tolist(),
    }
