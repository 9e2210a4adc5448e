"""Batches by a budget of pairs: how many frames fit, and how many targets of a frame that does not."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forcefield_ml.data.batch import FrameGraph, count_pairs, ranking
from forcefield_ml.data.cache import GraphCache
from forcefield_ml.data.dataset import ForceDataset, Sample
from forcefield_ml.graph.search import LIQUID_DENSITY, NeighbourSearch

PROBES = 3
"""Frames whose neighbours are searched to correct the estimates of all."""


def epoch_order(seed: int, epoch: int, n_frames: int) -> NDArray[np.int64]:
    """Return the order in which an epoch passes over the frames of a split."""
    return np.random.default_rng([seed, 0, epoch]).permutation(n_frames)


def pairs_of_leading(graph: FrameGraph, ranks: Tensor) -> Tensor:
    """Return how many pairs the first 0, 1, 2, ... targets of a ranking need.

    Each atom gets, hop by hop, the rank of the first target that its row serves: t_0 is a target's own rank,
    t_h(j) = min over the rows i that list j of t_(h-1)(i), and of t_(h-1)(j). Layer L - h of the first n targets
    then runs on the atoms with t_h < n.

    Parameters
    ----------
    graph
        Of all T targets of a frame.
    ranks
        (T,) int64, the place of each target, in order of `graph`, in the ranking.

    Returns
    -------
    Tensor
        (T + 1,) int64, rising.
    """
    n_targets = graph.layer_sizes[-1]
    indices, _, mask = graph.neighbours
    counts = mask.sum(1)
    served = torch.full((len(graph.order),), n_targets, dtype=torch.int64)
    served[:n_targets] = ranks
    begin = torch.zeros(n_targets + 1, dtype=torch.int64)
    begin.index_add_(0, served[:n_targets], counts[:n_targets])
    for inner, outer in itertools.pairwise(reversed(graph.layer_sizes)):
        listed = mask[:inner]
        ranks_of_rows = served[:inner, None].expand(-1, indices.shape[1])[listed]
        served = served.scatter_reduce(0, indices[:inner][listed], ranks_of_rows, "amin")
        begin.index_add_(0, served[:outer], counts[:outer])
    return torch.cat([begin.new_zeros(1), begin[:n_targets].cumsum(0)])


def fit(
    sample: Sample, graph: FrameGraph, room: int, random: np.random.Generator, marked_share: float = 0.5
) -> tuple[NDArray[np.bool_], int]:
    """Choose as many targets of a frame as a number of pairs allows: all, or a compact patch around a random one.

    Parameters
    ----------
    sample, graph
        The frame.
    room
        Pairs.
    random
        Source of the random numbers.
    marked_share
        As for `batch.ranking`.

    Returns
    -------
    chosen
        (N,) bool; at least one target, though it alone may need more than there is room for.
    pairs
        What they need.
    """
    pairs = count_pairs(graph.neighbours, graph.layer_sizes)
    if pairs <= room:
        return sample.entry.target_mask, pairs
    ranked = ranking(sample, random, marked_share)
    targets = graph.order[: len(ranked)].numpy()  # ascending
    ranks = torch.empty(len(ranked), dtype=torch.int64)
    ranks[torch.from_numpy(np.searchsorted(targets, ranked))] = torch.arange(len(ranked))
    needed = pairs_of_leading(graph, ranks)
    count = max(1, int(torch.searchsorted(needed, room, right=True)) - 1)
    chosen = np.zeros(len(sample.entry.target_mask), dtype=bool)
    chosen[ranked[:count]] = True
    return chosen, int(needed[count])


class Sphere(NamedTuple):
    """Estimate pairs from numbers of atoms alone: the targets a ball, each hop a shell around it.

    Attributes
    ----------
    reach
        nm, of a hop.
    n_neighbours
        Of an atom.
    n_layers
        Message passing layers of the model.
    """

    reach: float
    n_neighbours: float
    n_layers: int

    @staticmethod
    def of(search: NeighbourSearch, n_layers: int) -> Sphere:
        """Return the estimate for a model's neighbour search, at the density of a liquid."""
        volume = 4.0 / 3.0 * math.pi * LIQUID_DENSITY
        if search.kind == "nearest":
            return Sphere((search.n_neighbours / volume) ** (1 / 3), search.n_neighbours, n_layers)
        return Sphere(search.cutoff, volume * search.cutoff**3, n_layers)

    def pairs(self, n_targets: int, n_atoms: int) -> float:
        """Return the pairs that the targets of a system of `n_atoms` need."""
        volume = 4.0 / 3.0 * math.pi * LIQUID_DENSITY
        radius = (n_targets / volume) ** (1 / 3)
        sizes = [min(n_atoms, volume * (radius + hop * self.reach) ** 3) for hop in range(self.n_layers)]
        return self.n_neighbours * sum(sizes)


def estimates(dataset: ForceDataset, cache: GraphCache, sphere: Sphere) -> list[float]:
    """Return the pairs that each frame of a split is expected to need.

    A `Sphere`, corrected by the mean ratio of truth to estimate in a few frames from small to large.

    Parameters
    ----------
    dataset
        The split.
    cache
        Where the neighbours of these few are found.
    sphere
        For the model's search.
    """
    guessed = [sphere.pairs(int(entry.target_mask.sum()), len(entry.species)) for entry, _ in dataset.index]
    by_size = np.argsort(guessed, kind="stable")
    probes = {int(by_size[(2 * k + 1) * len(by_size) // (2 * PROBES)]) for k in range(PROBES)}
    graphs = {item: cache.graph(dataset[item]) for item in probes}
    ratios = [count_pairs(graph.neighbours, graph.layer_sizes) / guessed[item] for item, graph in graphs.items()]
    return np.maximum(float(np.mean(ratios)) * np.array(guessed), 1.0).tolist()


class BudgetPlan:
    """Say which frames batch number b holds, by what they are expected to need.

    The frames of one epoch after the other are taken in their order; a batch takes the next as long as the sum of
    their estimates keeps within the budget, and at least one. That depends on seed and estimates alone, so any
    process finds the frames of any batch without having made the ones before.

    Parameters
    ----------
    expected
        (n,) pairs of each frame, see `estimates`.
    budget
        Pairs of a batch.
    seed
        Of the order.
    """

    def __init__(self, expected: Sequence[float], budget: int, seed: int):
        self._expected, self._budget, self._seed = np.asarray(expected, dtype=np.float64), budget, seed
        self._starts = [0]
        self._filled = 0.0
        self._epochs = 0
        self._lock = threading.Lock()

    def places(self, number: int) -> range:
        """Return the places of batch `number`, counted over all epochs: epoch times frames plus position."""
        with self._lock:
            while len(self._starts) <= number + 1:
                self._add_epoch()
            return range(self._starts[number], self._starts[number + 1])

    def _add_epoch(self) -> None:
        begin = self._epochs * len(self._expected)
        for place, item in enumerate(epoch_order(self._seed, self._epochs, len(self._expected)), begin):
            if place and self._filled + self._expected[item] > self._budget:
                self._starts.append(place)
                self._filled = 0.0
            self._filled += self._expected[item]
        self._epochs += 1
