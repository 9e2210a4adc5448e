"""What a convolution's product is made of: paths and their couplings, radial weights from a table."""

import itertools
from typing import List, Sequence, Tuple

import torch
from torch import Tensor, nn

from forcefield_ml.nn.spherical import clebsch_gordan, spherical_harmonics

Path = Tuple[int, int, int]


def tensor_products(
    paths: Sequence[Path], norms: Sequence[float], filter_size: int, out_size: int
) -> Tuple[List[Path], Tensor, Tensor]:
    """Order paths by their input and lay out their couplings; for any orders.

    Returns
    -------
    inputs
        Input order, its first path and one behind its last.
    combine
        (products, paths), what of the radial weights each product takes: here each one path's.
    couplings
        (filter_size, sum of paths * (2 i + 1) * out_size), float64.
    """
    by_input = sorted(range(len(paths)), key=lambda index: paths[index][1])
    inputs: List[Path] = []
    couplings = []
    for i, members in itertools.groupby(by_input, key=lambda index: paths[index][1]):
        group = list(members)
        first = inputs[-1][2] if inputs else 0
        inputs.append((i, first, first + len(group)))
        block = torch.zeros(filter_size, len(group), 2 * i + 1, out_size, dtype=torch.float64)
        for place, index in enumerate(group):
            f, _, o = paths[index]
            block[f * f : (f + 1) ** 2, place, :, o * o : (o + 1) ** 2] = clebsch_gordan(f, i, o) * norms[index]
        couplings.append(block.flatten(1))
    return inputs, torch.eye(len(paths), dtype=torch.float64)[by_input], torch.cat(couplings, dim=1)


def vector_products(
    paths: Sequence[Path], norms: Sequence[float], filter_size: int, out_size: int
) -> Tuple[List[Path], Tensor, Tensor]:
    """Return what `tensor_products` does for scalars and vectors alone: products of `DenseConvolution._vectors`.

    With y = sqrt(3) r/|r|, a scalar s and a vector v the products are s and (y.v) into scalars, s y, v and (y.v) y
    into vectors. Harmonics of order 2 couple a vector to (y.v) y - v, times a number, so they need not be known.
    """
    combine = torch.zeros(5, len(paths), dtype=torch.float64)
    products = {(0, 0, 0): 0, (1, 1, 0): 1, (1, 0, 1): 2, (0, 1, 1): 3, (2, 1, 1): 4}
    for index, path in enumerate(paths):
        coupling = clebsch_gordan(*path) * norms[index]
        if path[0] < 2:
            combine[products[path], index] = coupling[coupling != 0][0]  # of each component the same
        else:
            along_x = spherical_harmonics(torch.tensor([[[1.0, 0.0, 0.0]]], dtype=torch.float64), 2)[0, 4:, 0]
            number = torch.einsum("f,fio->io", along_x, coupling)[1, 1]
            combine[3, index], combine[4, index] = number, -number
    return [], combine[: 5 if filter_size > 4 else 4], torch.zeros(filter_size, 0, dtype=torch.float64)


def coupling_numbers(paths: Sequence[Path]) -> Tuple[Tuple[float, ...], ...]:
    """Return the couplings of each path as plain numbers, (2 f + 1) * (2 i + 1) * (2 o + 1) of them."""
    return tuple(tuple(clebsch_gordan(*path).flatten().tolist()) for path in paths)


def look_up(table: Tensor, nodes: Tensor, shares: Tensor) -> Tensor:
    """Return (m, columns): sums of rows of a table, each times its share; one pass, nothing is gathered before.

    Parameters
    ----------
    table
        (rows, columns).
    nodes, shares
        (..., k) int32 rows and (..., k), m times.
    """
    k = nodes.shape[-1]
    return nn.functional.embedding_bag(
        nodes.reshape(-1, k), table.to(shares.dtype), mode="sum", per_sample_weights=shares.reshape(-1, k)
    )
