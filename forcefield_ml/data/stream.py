"""The endless, seeded order of training batches, made ahead in one background thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np

from forcefield_ml.data.batch import Batch, collate, patch
from forcefield_ml.data.cache import GraphCache
from forcefield_ml.data.dataset import ForceDataset
from forcefield_ml.graph import NeighbourSearch


class BatchSource:
    """Make batches of a split; batch number b is a function of the seed and b alone.

    Each epoch passes once over all frames in an order of its own. So training that stops after b batches goes on
    at number b as if it had never stopped.

    Parameters
    ----------
    dataset
        The frames.
    search
        The model's neighbour search.
    n_layers
        Message passing layers of the model.
    frames_per_batch
        Frames joined in one batch.
    targets_per_batch
        Target atoms of a batch, divided evenly among its frames; None for all of them.
    seed
        Of order and patches.
    cache_bytes
        Memory for neighbours.
    """

    def __init__(
        self,
        dataset: ForceDataset,
        search: NeighbourSearch,
        n_layers: int,
        frames_per_batch: int = 1,
        targets_per_batch: int | None = None,
        seed: int = 0,
        cache_bytes: int = 1 << 30,
    ):
        self.dataset = dataset
        self.cache = GraphCache(search, n_layers, cache_bytes)
        self._frames, self._targets, self._seed = frames_per_batch, targets_per_batch, seed

    def batch(self, number: int) -> Batch:
        """Return training batch `number`, counted from 0."""
        samples, graphs, chosen = [], [], []
        for place in range(number * self._frames, (number + 1) * self._frames):
            epoch, position = divmod(place, len(self.dataset))
            order = np.random.default_rng([self._seed, 0, epoch]).permutation(len(self.dataset))
            sample = self.dataset[int(order[position])]
            samples.append(sample)
            graphs.append(self.cache.graph(sample))
            if self._targets is None:
                chosen.append(sample.entry.target_mask)
            else:
                random = np.random.default_rng([self._seed, 1, place])
                chosen.append(patch(sample, max(1, self._targets // self._frames), random))
        return collate(samples, graphs, chosen)

    def whole_frame(self, item: int) -> Batch:
        """Return one frame of the split with all its targets, in ascending order of atoms."""
        sample = self.dataset[item]
        return collate([sample], [self.cache.graph(sample)], [sample.entry.target_mask])


class BatchStream:
    """Iterate over batches from a number on, `ahead` of them made while the caller computes.

    Parameters
    ----------
    source
        Makes the batches.
    start
        Number of the first batch.
    ahead
        Batches kept ready; 0 makes each when it is asked for, without a thread.
    """

    def __init__(self, source: BatchSource, start: int = 0, ahead: int = 2):
        self._source, self._start, self._ahead = source, start, ahead

    def __iter__(self) -> Iterator[Batch]:
        if self._ahead == 0:
            number = self._start
            while True:
                yield self._source.batch(number)
                number += 1
        ready: queue.Queue[Batch | Exception] = queue.Queue(maxsize=self._ahead)
        stop = threading.Event()
        worker = threading.Thread(target=self._fill, args=(ready, stop), name="batches", daemon=True)
        worker.start()
        try:
            while True:
                batch = ready.get()
                if isinstance(batch, Exception):
                    raise batch
                yield batch
        finally:
            stop.set()
            worker.join(timeout=60)

    def _fill(self, ready: queue.Queue[Batch | Exception], stop: threading.Event) -> None:
        number = self._start
        while not stop.is_set():
            made: Batch | Exception
            try:
                made = self._source.batch(number)
            except Exception as error:  # handed to the reader, which raises it
                made = error
            while not stop.is_set():
                try:
                    ready.put(made, timeout=0.2)
                    break
                except queue.Full:
                    continue
            if isinstance(made, Exception):
                return
            number += 1
