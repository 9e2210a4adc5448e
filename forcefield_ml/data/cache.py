"""The neighbours of frames seen before, within a budget of memory."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch

from forcefield_ml.data.batch import FrameGraph, frame_graph
from forcefield_ml.data.dataset import Sample
from forcefield_ml.errors import DatasetError
from forcefield_ml.graph import NeighbourMatrix, NeighbourSearch


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
        self._graphs: OrderedDict[tuple[str, int], FrameGraph] = OrderedDict()
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
        key = (sample.entry.name, sample.frame)
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
        box = None if sample.box is None else torch.from_numpy(sample.box)
        try:
            with torch.no_grad():
                neighbours = self._search(torch.from_numpy(sample.positions), box)
        except (ValueError, RuntimeError, torch.jit.Error) as error:
            reason = str(error).strip().splitlines()[-1]
            raise DatasetError(f"frame {sample.frame} of {sample.entry.name}: {reason}") from None
        order, (indices, vectors, mask), sizes = frame_graph(neighbours, sample.entry.target_mask, self._n_layers)
        return FrameGraph(order.int(), NeighbourMatrix(indices.int(), vectors, mask), sizes)

    def _keep(self, key: tuple[str, int], graph: FrameGraph) -> None:
        with self._lock:
            self.searches += 1
            if key not in self._graphs:
                self._graphs[key] = graph
                self.size += _bytes(graph)
            while self.size > self._budget and self._graphs:
                _, dropped = self._graphs.popitem(last=False)
                self.size -= _bytes(dropped)


def _bytes(graph: FrameGraph) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (graph.order, *graph.neighbours))
