"""The neighbours of frames seen before, within a budget of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch

from forcefield_ml.data.batch import FrameGraph
from forcefield_ml.data.dataset import Sample
from forcefield_ml.errors import DatasetError
from forcefield_ml.graph import Neighbourhood, NeighbourList, NeighbourMatrix, NeighbourSearch

NO_SKIN = 1e-9
"""nm: each frame is searched once."""


class GraphCache:
    """Search a frame's neighbours once, on the whole periodic system, and keep the rows its targets need.

    Rows are kept as int32 and float32; the frames used longest ago are dropped when the budget is spent. May be
    used from several threads.

    Parameters
    ----------
    search
        The model's neighbour search.
    n_layers
        Message passing layers of the model.
    budget
        Bytes.

    Attributes
    ----------
    size : int
        Bytes held.
    searches : int
        How many frames have been searched.
    """

    def __init__(self, search: NeighbourSearch, n_layers: int, budget: int = 1 << 30):
        self._search, self._n_layers, self._budget = search, n_layers, budget
        self._graphs: OrderedDict[tuple[str, str, int], FrameGraph] = OrderedDict()
        self._lock = threading.Lock()
        self.size = 0
        self.searches = 0

    def graph(self, sample: Sample) -> FrameGraph:
        """Return what the forces on a frame's targets depend on.

        Parameters
        ----------
        sample
            The frame.

        Returns
        -------
        FrameGraph
            With int64 indices, for all targets of the frame.

        Raises
        ------
        DatasetError
            If the neighbours cannot be found: a box that is too small, positions that are not finite.
        """
        key = (sample.entry.source, sample.entry.name, sample.frame)
        with self._lock:
            found = self._graphs.get(key)
            if found is not None:
                self._graphs.move_to_end(key)
        if found is None:
            found = self._make(sample)
            self._keep(key, found)
        return found._replace(
            order=found.order.long(), neighbours=found.neighbours._replace(indices=found.neighbours.indices.long())
        )

    def _make(self, sample: Sample) -> FrameGraph:
        search, targets = self._search, torch.from_numpy(sample.entry.target_mask)
        box = None if sample.box is None else torch.from_numpy(sample.box)
        try:
            # a list for one step: it finds the rows that are needed, and no others, faster than the search
            neighbours = NeighbourList(
                search.kind, search.n_neighbours, search.cutoff, self._n_layers, NO_SKIN, targets, torch.float32
            )
            found = neighbours(torch.from_numpy(sample.positions), box)
        except (ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise DatasetError(f"frame {sample.frame} of {sample.entry.name}: {reason}") from None
        return _targets_ascending(found)

    def _keep(self, key: tuple[str, str, int], graph: FrameGraph) -> None:
        with self._lock:
            self.searches += 1
            if key not in self._graphs:
                self._graphs[key] = graph
                self.size += _bytes(graph)
            while self.size > self._budget and self._graphs:
                _, dropped = self._graphs.popitem(last=False)
                self.size -= _bytes(dropped)


def _targets_ascending(found: Neighbourhood) -> FrameGraph:
    """Renumber atoms so that targets ascend, leave out places that no row fills, and store small numbers."""
    indices, vectors, mask = found.neighbours
    order = torch.arange(len(found.order))
    order[: len(found.ascending)] = found.ascending
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order))
    rows, width = order[: len(mask)], max(1, int(mask.sum(1).max()))
    mask = mask[rows, :width]
    indices = place[indices[rows, :width]] * mask
    return FrameGraph(
        found.order[order].int(), NeighbourMatrix(indices.int(), vectors[rows, :width], mask), found.layer_sizes
    )


def _bytes(graph: FrameGraph) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (graph.order, *graph.neighbours))
