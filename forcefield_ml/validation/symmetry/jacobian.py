r"""Lambda, how far the Jacobian of the forces is from symmetric: zero for the gradient of an energy.

.. math:: \lambda = \frac{|J - J^T|}{2 |J|}, \qquad J = \partial F / \partial x

in the Frobenius norm; 1 for an antisymmetric Jacobian. Norms of matrices too large to write down are means over random
vectors v of components +1 and -1: E |A v|² = |A|². J v and J^T v come from automatic differentiation, so the number
holds for the forces as they are and not for a difference quotient.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forcefield_ml.progress import ProgressLine

LEAST_PROBES = 16

STEP = 1e-4
"""nm, by which each atom moves for the Jacobian of a force that is not differentiable here."""


def asymmetry(
    force: Callable[[Tensor], Tensor],
    positions: Tensor,
    n_probes: int = LEAST_PROBES,
    seed: int = 0,
    besides: Callable[[NDArray[np.float64]], NDArray[np.float64]] | None = None,
    quiet: bool = True,
) -> dict[str, Any]:
    """Estimate lambda by random probes.

    Parameters
    ----------
    force
        From positions (n, 3) nm to forces (n, 3) kJ/mol/nm on the same atoms, differentiable twice.
    positions
        (n, 3) nm, float64.
    n_probes
        At least `LEAST_PROBES`.
    seed
        Of the probes.
    besides
        A conservative force that acts besides, from positions (n, 3) to forces (n, 3); its Jacobian, symmetric, is
        taken by central differences.
    quiet
        Show no progress.

    Returns
    -------
    dict
        ``lambda`` and ``standard_error`` (jackknife over the probes), ``probes``, ``atoms``, ``jacobian_norm`` and
        ``antisymmetric_norm`` (of (J - J^T) / 2; kJ/mol/nm²); ``total`` with the first two for force and `besides`
        together, None without.

    Raises
    ------
    ValueError
        If there are fewer probes, or the Jacobian is zero.
    """
    if n_probes < LEAST_PROBES:
        raise ValueError(f"n_probes is {n_probes}; at least {LEAST_PROBES} are needed for a standard error")
    generator = torch.Generator().manual_seed(seed)
    place = positions.detach().clone().requires_grad_(True)
    found = force(place)
    # J^T u is linear in u, so that its derivative in u along v is J v: one graph serves all probes
    weights = torch.zeros_like(found, requires_grad=True)
    (transposed,) = torch.autograd.grad(found, place, weights, create_graph=True)
    rows = []
    with ProgressLine("lambda", quiet) as line:
        for probe in range(n_probes):
            vector = 2.0 * torch.randint(0, 2, place.shape, generator=generator).to(place) - 1.0
            (forward,) = torch.autograd.grad(transposed, weights, vector, retain_graph=True)
            (backward,) = torch.autograd.grad(found, place, vector, retain_graph=True)
            ours, other = forward.numpy(), backward.numpy()
            extra = np.zeros_like(ours) if besides is None else _along(besides, positions.numpy(), vector.numpy())
            rows.append((*_squares(ours, other), *_squares(ours + extra, other + extra)))
            line.show((probe + 1) / n_probes, f"probe {probe + 1} of {n_probes}", probe + 1 == n_probes)
    squares = np.array(rows)
    if not squares[:, 1].any():
        raise ValueError("the Jacobian is zero: these forces do not depend on where the atoms are")
    alone, both = _ratio(squares[:, :2]), _ratio(squares[:, 2:])
    return {
        "lambda": alone[0],
        "standard_error": alone[1],
        "probes": n_probes,
        "atoms": len(positions),
        "jacobian_norm": float(np.sqrt(squares[:, 1].mean())),
        "antisymmetric_norm": float(np.sqrt(squares[:, 0].mean())) / 2,
        "total": None if besides is None else {"lambda": both[0], "standard_error": both[1]},
    }


def _squares(forward: NDArray[np.float64], backward: NDArray[np.float64]) -> tuple[float, float]:
    """Return |J v - J^T v|² and the mean of |J v|² and |J^T v|², whose expectations are equal."""
    return float(((forward - backward) ** 2).sum()), float((forward**2 + backward**2).sum() / 2)


def _ratio(squares: NDArray[np.float64]) -> tuple[float, float]:
    """Return lambda and its jackknife standard error from (probes, 2)."""

    def value(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sqrt(sums[..., 0] / sums[..., 1]) / 2

    count, total = len(squares), squares.sum(axis=0)
    without = value(total - squares)
    return float(value(total)), float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum()))


def _along(
    besides: Callable[[NDArray[np.float64]], NDArray[np.float64]], place: NDArray[Any], vector: NDArray[Any]
) -> NDArray[np.float64]:
    return (besides(place + STEP * vector) - besides(place - STEP * vector)) / (2 * STEP)
