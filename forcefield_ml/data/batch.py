"""From frames to batches: which atoms, whose neighbours, which targets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from forcefield_ml.bonded.batch import joined as joined_terms
from forcefield_ml.bonded.batch import term_batch
from forcefield_ml.bonded.module import TermBatch
from forcefield_ml.data.dataset import Sample
from forcefield_ml.graph import NeighbourMatrix, concatenate, shells
from forcefield_ml.models.interface import Atoms


class FrameGraph(NamedTuple):
    """The part of one frame that the forces on its targets depend on.

    Attributes
    ----------
    order
        (n,) int64, these atoms in the frame's numbering, the targets first and ascending.
    neighbours
        Rows of the first ``layer_sizes[0]`` of them, indices along `order`.
    layer_sizes
        Atoms that each layer is computed for; the last entry is the number of targets.
    """

    order: Tensor
    neighbours: NeighbourMatrix
    layer_sizes: List[int]


class Batch(NamedTuple):
    """Input and target of one step.

    Attributes
    ----------
    atoms
        n atoms, of all frames of the batch.
    neighbours
        Rows of the first ``layer_sizes[0]`` atoms.
    layer_sizes
        For the model.
    targets
        (layer_sizes[-1], 3) kJ/mol/nm, true forces on the leading atoms.
    frames
        Entry and frame number of each part.
    terms
        Bonded terms that move the targets; None where entries hold none.
    """

    atoms: Atoms
    neighbours: NeighbourMatrix
    layer_sizes: List[int]
    targets: Tensor
    frames: List[Tuple[str, int]]
    terms: Optional[TermBatch] = None

    @property
    def n_pairs(self) -> int:
        """Pairs that the targets need, see `count_pairs`."""
        return count_pairs(self.neighbours, self.layer_sizes)


def count_pairs(neighbours: NeighbourMatrix, layer_sizes: Sequence[int]) -> int:
    """Return the pairs of the neighbour matrix over all layers: the cost of a step, up to a factor of the model.

    Parameters
    ----------
    neighbours
        At least ``layer_sizes[0]`` rows.
    layer_sizes
        Atoms that each layer is computed for.
    """
    counts = neighbours.mask.sum(1)
    return sum(int(counts[:size].sum()) for size in layer_sizes)


def ranking(sample: Sample, random: np.random.Generator, marked_share: float = 0.5) -> NDArray[np.int64]:
    """Return the targets of a frame in order of their distance from a random one of them, the centre.

    The leading ones are a compact patch, which depends on fewer other atoms than scattered targets would.

    Parameters
    ----------
    sample
        The frame.
    random
        Source of the random numbers.
    marked_share
        Probability that the centre is a marked atom, where only some targets are.
    """
    targets = np.flatnonzero(sample.entry.target_mask)
    places = sample.positions[targets].astype(np.float64)
    marked, centres = sample.entry.marked[targets], np.arange(len(targets))
    if not marked.all():
        centres = np.flatnonzero(marked == (random.random() < marked_share))
    away = places - places[centres[random.integers(len(centres))]]
    if sample.box is not None:
        away -= np.rint(away @ np.linalg.inv(sample.box)) @ sample.box  # exact within half the box: near enough here
    return targets[np.argsort((away**2).sum(axis=1), kind="stable")]


def patch(sample: Sample, n_targets: int, random: np.random.Generator, marked_share: float = 0.5) -> NDArray[np.bool_]:
    """Choose a random target atom and its nearest targets.

    Parameters
    ----------
    sample
        The frame.
    n_targets
        Targets to choose; all of them if there are no more.
    random
        Source of the random numbers.
    marked_share
        As for `ranking`.

    Returns
    -------
    ndarray
        (N,) bool.
    """
    if int(sample.entry.target_mask.sum()) <= n_targets:
        return sample.entry.target_mask
    chosen = np.zeros(len(sample.entry.target_mask), dtype=bool)
    chosen[ranking(sample, random, marked_share)[:n_targets]] = True
    return chosen


def collate(samples: Sequence[Sample], graphs: Sequence[FrameGraph], chosen: Sequence[NDArray[np.bool_]]) -> Batch:
    """Join the chosen targets of some frames, with all they depend on, into one batch.

    Parameters
    ----------
    samples
        The frames.
    graphs
        `GraphCache.graph` of each, for all its targets.
    chosen
        (N,) bool for each, True for the targets to use; a subset of the frame's.

    Returns
    -------
    Batch
        Its atoms are ordered by layer first, then by frame.
    """
    if len(samples) == 1 and int(chosen[0].sum()) == graphs[0].layer_sizes[-1]:
        order, neighbours, layer_sizes = graphs[0]
    else:
        joined = _all_rows(graphs[0]) if len(graphs) == 1 else concatenate([_all_rows(graph) for graph in graphs])
        wanted = torch.cat([torch.from_numpy(c)[graph.order] for c, graph in zip(chosen, graphs, strict=True)])
        order, neighbours, layer_sizes = shells(joined, wanted, len(graphs[0].layer_sizes))
    pairs = list(zip(samples, graphs, strict=True))
    species = torch.cat([torch.from_numpy(sample.entry.codes)[graph.order] for sample, graph in pairs])
    forces = torch.cat([torch.from_numpy(sample.forces)[graph.order] for sample, graph in pairs])
    if order is not graphs[0].order:
        species, forces = species[order], forces[order[: layer_sizes[-1]]]
    return Batch(
        atoms=Atoms(species=species),
        neighbours=neighbours,
        layer_sizes=layer_sizes,
        targets=forces[: layer_sizes[-1]],
        frames=[(sample.entry.name, sample.frame) for sample in samples],
        terms=_terms(samples, graphs, order if order is not graphs[0].order else None, layer_sizes[-1]),
    )


def _terms(
    samples: Sequence[Sample], graphs: Sequence[FrameGraph], order: Tensor | None, n_targets: int
) -> TermBatch | None:
    """Return the bonded terms of the targets; `order` is that of the batch along the joined graphs, None: as it is."""
    if samples[0].entry.terms is None:
        return None
    n_atoms = sum(len(graph.order) for graph in graphs)
    row_of = np.full(n_atoms, n_targets, dtype=np.int64)
    leading = np.arange(n_targets) if order is None else order[:n_targets].numpy()
    row_of[leading] = np.arange(n_targets)
    parts, first = [], 0
    for sample, graph in zip(samples, graphs, strict=True):
        rows = np.full(len(sample.positions), n_targets, dtype=np.int64)
        rows[graph.order.numpy()] = row_of[first : first + len(graph.order)]
        first += len(graph.order)
        assert sample.entry.terms is not None
        parts.append(term_batch(sample.entry.terms, sample.positions, sample.box, rows, n_targets))
    return joined_terms(parts)


def _all_rows(graph: FrameGraph) -> NeighbourMatrix:
    """Give the outermost atoms, whose neighbours nobody asks for, empty rows."""
    missing = len(graph.order) - len(graph.neighbours.indices)
    indices, vectors, mask = graph.neighbours
    return NeighbourMatrix(
        pad(indices, [0, 0, 0, missing]), pad(vectors, [0, 0, 0, 0, 0, missing]), pad(mask, [0, 0, 0, missing])
    )
