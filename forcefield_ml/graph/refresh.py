"""Neighbours among candidates, at the present positions; plain PyTorch. `compiled` has the compiled form."""

from __future__ import annotations

import torch
from torch import Tensor

from forcefield_ml.graph.candidates import Candidates, keep_pairs, pair_rows, pair_vectors
from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.graph.search import row_places, take


def _write(vectors: Tensor, candidates: Candidates, rows: Tensor, out: NeighbourMatrix) -> int:
    """Write pairs into the rows of `out` and return the longest row, or only return it if it is too long."""
    n_rows, width = out.indices.shape
    places, mask = row_places(rows, n_rows, width)
    longest = int(candidates.starts.diff().max())
    if longest <= width:
        out.indices.copy_(take(candidates.partners.long(), places))
        out.vectors.copy_(take(vectors.to(out.vectors.dtype), places))
        out.mask.copy_(mask)
    return longest


def refresh_cutoff(x: Tensor, candidates: Candidates, cutoff: float, out: NeighbourMatrix) -> int:
    """Write the candidates nearer than the cutoff, from the front of each row, in the candidates' order.

    Parameters
    ----------
    x
        (n, 3) float64 nm.
    candidates
        Rows of the first n_rows atoms.
    cutoff
        nm.
    out
        (n_rows, K), overwritten.

    Returns
    -------
    int
        Neighbours in the longest row; if more than K, `out` is not to be used.
    """
    vectors = pair_vectors(x, x, candidates)
    kept = vectors.square().sum(1) < cutoff * cutoff
    near = keep_pairs(candidates, kept)
    return _write(vectors[kept], near, pair_rows(near), out)


def refresh_nearest(x: Tensor, candidates: Candidates, out: NeighbourMatrix) -> Tensor:
    """Write the K nearest candidates, all where there are not more, in the candidates' order.

    Parameters
    ----------
    x
        (n, 3) float64 nm.
    candidates
        Rows of the first n_rows atoms.
    out
        (n_rows, K), overwritten.

    Returns
    -------
    Tensor
        (n_rows,) float64 nm, the distance of the farthest neighbour of each row, 0 where there is none.
    """
    n_rows, width = out.indices.shape
    vectors = pair_vectors(x, x, candidates)
    distances = vectors.square().sum(1)
    places, mask = row_places(pair_rows(candidates), n_rows, width)
    spread = take(distances, places).masked_fill_(~mask, float("inf"))
    nearest = torch.sort(spread, dim=1, stable=True).indices[:, :width].sort(dim=1).values
    places = places.gather(1, nearest)
    out.mask.copy_(mask.gather(1, nearest))
    out.indices.copy_(take(candidates.partners.long(), places))
    out.vectors.copy_(take(vectors.to(out.vectors.dtype), places))
    return take(distances, places).max(1).values.sqrt()
