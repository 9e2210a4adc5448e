"""Real spherical harmonics up to order 2 and their couplings, in e3nn's basis: order 1 is (x, y, z)."""

import math
from typing import Tuple

import torch
from torch import Tensor

MAX_ORDER = 2


def spherical_harmonics(directions: Tensor, order: int) -> Tensor:
    """Return all harmonics of orders 0 to `order`, normalised so that each order has squared norm 2 l + 1.

    Parameters
    ----------
    directions
        (n, K, 3) unit vectors; a zero vector yields zeros in all orders above 0.
    order
        0, 1 or 2.

    Returns
    -------
    Tensor
        (n, (order + 1)^2, K): 1; x, y, z; then the five of order 2.
    """
    x, y, z = directions.unbind(-1)
    parts = [torch.ones_like(x)]
    if order >= 1:
        s3 = math.sqrt(3.0)
        parts.extend([s3 * x, s3 * y, s3 * z])
    if order >= 2:
        s15 = math.sqrt(15.0)
        parts.extend(
            [
                s15 * x * z,
                s15 * x * y,
                math.sqrt(5.0) * (y * y - 0.5 * (x * x + z * z)),
                s15 * y * z,
                0.5 * s15 * (z * z - x * x),
            ]
        )
    return torch.stack(parts, dim=1)


def coupling_paths(filter_order: int, in_order: int, out_order: int, parity: str) -> Tuple[Tuple[int, int, int], ...]:
    """Return every (filter, input, output) order that a tensor product may couple.

    Parameters
    ----------
    filter_order, in_order, out_order
        Largest order of the harmonics, the input and the output features.
    parity
        ``"O3"``: features of order l have parity (-1)^l, so the sum of the three orders must be even; reflections
        are respected. ``"SO3"``: all couplings allowed by the triangle rule, the cross product among them.
    """
    return tuple(
        (f, i, o)
        for f in range(filter_order + 1)
        for i in range(in_order + 1)
        for o in range(out_order + 1)
        if abs(f - i) <= o <= f + i and (parity == "SO3" or (f + i + o) % 2 == 0)
    )


def clebsch_gordan(filter_order: int, in_order: int, out_order: int) -> Tensor:
    """Return the coupling (2f + 1, 2i + 1, 2o + 1) that keeps the output's squared norm per component at 1.

    Wigner 3j symbols in the real basis, times sqrt(2 o + 1), for inputs with independent components of variance 1.
    """
    from e3nn import o3

    return o3.wigner_3j(filter_order, in_order, out_order, dtype=torch.float64) * math.sqrt(2 * out_order + 1)
