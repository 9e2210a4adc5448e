"""The endless, seeded order of training batches, made ahead in background threads."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from forcefield_ml.data.batch import Batch, collate, patch
from forcefield_ml.data.budget import BudgetPlan, Sphere, epoch_order, estimates, fit
from forcefield_ml.data.cache import GraphCache
from forcefield_ml.data.dataset import ForceDataset, Sample
from forcefield_ml.graph import NeighbourSearch


class BatchSource:
    """Make batches of a split; batch number b is a function of the seed and b alone.

    Each epoch passes once over all frames in an order of its own. So training that stops after b batches goes on
    at number b as if it had never stopped.

    With a budget of pairs, a batch holds as many of the epoch's next frames as are expected to fit (`BudgetPlan`).
    Their neighbours known, it is cut to the budget: targets of the last frame that does not fit become a compact
    patch of as many as do; a frame for which no pair is left waits for the next epoch. A batch never needs more
    pairs than the budget, unless one target alone does.

    Parameters
    ----------
    dataset
        The frames.
    search
        The model's neighbour search.
    n_layers
        Message passing layers of the model.
    frames_per_batch
        Frames joined in one batch; without meaning where `pairs_per_batch` is given.
    targets_per_batch
        Target atoms of a batch, divided evenly among its frames; None for all of them.
    seed
        Of order and patches.
    cache_bytes
        Memory for neighbours.
    pairs_per_batch
        Budget of a batch, see `batch.count_pairs`; None for none.
    marked_share
        Of patches with a marked atom at their centre, where only some targets are marked.
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
        pairs_per_batch: int | None = None,
        marked_share: float = 0.5,
    ):
        self.dataset = dataset
        self.cache = GraphCache(search, n_layers, cache_bytes)
        self._frames, self._targets, self._seed = frames_per_batch, targets_per_batch, seed
        self._marked_share = marked_share
        self._pairs, self._sphere = pairs_per_batch, Sphere.of(search, n_layers)
        self._plan: BudgetPlan | None = None
        self._planning = threading.Lock()

    def batch(self, number: int) -> Batch:
        """Return training batch `number`, counted from 0."""
        samples: list[Sample] = []
        graphs, chosen = [], []
        room = self._pairs or 0
        for place in self._places(number):
            epoch, position = divmod(place, len(self.dataset))
            sample = self.dataset[int(epoch_order(self._seed, epoch, len(self.dataset))[position])]
            graph = self.cache.graph(sample)
            random = np.random.default_rng([self._seed, 1, place])
            if self._pairs is not None:
                mask, needed = fit(sample, graph, room, random, self._marked_share)
                if samples and needed > room:
                    break
                room -= needed
            elif self._targets is not None:
                mask = patch(sample, max(1, self._targets // self._frames), random, self._marked_share)
            else:
                mask = sample.entry.target_mask
            samples.append(sample)
            graphs.append(graph)
            chosen.append(mask)
        return collate(samples, graphs, chosen)

    def _places(self, number: int) -> range:
        if self._pairs is None:
            return range(number * self._frames, (number + 1) * self._frames)
        with self._planning:
            if self._plan is None:
                expected = estimates(self.dataset, self.cache, self._sphere)
                self._plan = BudgetPlan(expected, self._pairs, self._seed)
        return self._plan.places(number)

    def whole_frame(self, item: int) -> Batch:
        """Return one frame of the split with all its targets, in ascending order of atoms."""
        sample = self.dataset[item]
        return collate([sample], [self.cache.graph(sample)], [sample.entry.target_mask])


class BatchStream:
    """Iterate over batches from a number on, `ahead` of them made while the caller computes.

    Their order does not depend on the number of threads.

    Parameters
    ----------
    source
        Makes the batches.
    start
        Number of the first batch.
    ahead
        Batches kept ready or in the making; 0 makes each when it is asked for, without a thread.
    step
        From one batch's number to the next: the number of processes that share the batches.
    n_threads
        Threads that make them.
    pin
        Put the batches into page-locked memory, from which a CUDA device copies while it computes.

    Attributes
    ----------
    waited : float
        Seconds for which the caller had to wait for batches.
    """

    def __init__(
        self, source: BatchSource, start: int = 0, ahead: int = 2, step: int = 1, n_threads: int = 1, pin: bool = False
    ):
        self._source, self._start, self._ahead, self._step = source, start, ahead, step
        self._n_threads, self._pin = n_threads, pin
        self.waited = 0.0

    def __iter__(self) -> Iterator[Batch]:
        numbers = itertools.count(self._start, self._step)
        if self._ahead == 0:
            while True:
                began = time.monotonic()
                batch = self._make(next(numbers))
                self.waited += time.monotonic() - began
                yield batch
        pool = ThreadPoolExecutor(self._n_threads, thread_name_prefix="batches")
        try:
            pending: deque[Future[Batch]] = deque(
                pool.submit(self._make, number) for number in itertools.islice(numbers, self._ahead)
            )
            while True:
                began = time.monotonic()
                batch = pending.popleft().result()
                self.waited += time.monotonic() - began
                pending.append(pool.submit(self._make, next(numbers)))
                yield batch
        finally:
            pool.shutdown(cancel_futures=True)

    def _make(self, number: int) -> Batch:
        batch = self._source.batch(number)
        if not self._pin:
            return batch
        return batch._replace(
            atoms=batch.atoms._replace(species=batch.atoms.species.pin_memory()),
            neighbours=type(batch.neighbours)(*(tensor.pin_memory() for tensor in batch.neighbours)),
            targets=batch.targets.pin_memory(),
            terms=batch.terms and type(batch.terms)(*(tensor.pin_memory() for tensor in batch.terms)),
        )
