"""Batches by a budget of pairs: counted as brute force counts, never above, as many as fit, the same from any start."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS, write_dataset

from forcefield_ml import models
from forcefield_ml.data import BatchSource, ForceDataset
from forcefield_ml.data.batch import FrameGraph, collate, ranking
from forcefield_ml.data.budget import BudgetPlan, epoch_order, fit, pairs_of_leading
from forcefield_ml.data.cache import GraphCache

MODELS = {"fast": TINY_MODELS["fast"] | {"cutoff": 0.3, "n_layers": 3}, "tfn1": TINY_MODELS["tfn1"]}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> ForceDataset:
    """Return three entries of some 300 atoms."""
    path: Path = tmp_path_factory.mktemp("budget") / "dataset.h5"
    return ForceDataset(write_dataset(path, {"1aaa": "train", "2bbb": "train", "3ccc": "train"}, n_atoms=300))


def brute_force(graph: FrameGraph, targets: list[int], n_layers: int) -> int:
    """Count pairs layer by layer, from the last back, with sets of atoms."""
    rows = [set(row[mask].tolist()) for row, mask in zip(*graph.neighbours[::2], strict=True)]
    needed = set(targets)
    pairs = sum(len(rows[atom]) for atom in needed)
    for _ in range(n_layers - 1):
        needed |= {neighbour for atom in needed for neighbour in rows[atom]}
        pairs += sum(len(rows[atom]) for atom in needed)
    return pairs


@pytest.mark.parametrize("name", sorted(MODELS))
def test_pairs_are_counted_as_by_brute_force(dataset, name):
    """For every number of targets of a ranking, the count is that of sets of atoms, and that of the batch made."""
    model = models.build(MODELS[name])
    n_layers = model.capabilities.n_layers
    sample = dataset[0]
    graph = GraphCache(model.search(), n_layers).graph(sample)
    ranked = ranking(sample, np.random.default_rng(1))
    places = [graph.order[: len(ranked)].tolist().index(atom) for atom in ranked]
    ranks = torch.tensor([places.index(target) for target in range(len(ranked))])
    found = pairs_of_leading(graph, ranks)
    assert len(found) == len(ranked) + 1 and found[0] == 0
    for count in (1, 2, 7, 30, len(ranked)):
        chosen = np.zeros(len(sample.positions), dtype=bool)
        chosen[ranked[:count]] = True
        expected = brute_force(graph, places[:count], n_layers)
        assert found[count] == expected == collate([sample], [graph], [chosen]).n_pairs
    for room in (1, 2000, int(found[12]), int(found[12]) - 1, int(found[-1]), 10**9):
        chosen, pairs = fit(sample, graph, room, np.random.default_rng(1))
        count = int(chosen.sum())
        assert pairs == found[count] and (pairs <= room or count == 1)
        assert count == len(ranked) or found[count + 1] > room


@pytest.mark.parametrize("budget", [1, 3000, 20_000, 60_000, 10**6])
def test_batches_keep_to_the_budget_and_do_not_depend_on_history(dataset, budget):
    """No batch is above the budget but one of a single target; a fresh source makes the same batch number 5."""
    model = models.build(MODELS["fast"])

    def source() -> BatchSource:
        return BatchSource(dataset, model.search(), 3, seed=3, pairs_per_batch=budget)

    in_order = source()
    batches = [in_order.batch(number) for number in range(8)]
    assert all(batch.n_pairs <= budget or len(batch.targets) == 1 for batch in batches)
    again = source().batch(5)
    assert again.frames == batches[5].frames and torch.equal(again.targets, batches[5].targets)
    assert torch.equal(again.neighbours.vectors, batches[5].neighbours.vectors)
    if budget == 1:
        assert all(len(batch.targets) == 1 for batch in batches)
    if budget == 20_000:  # patches of frames that need more: filled to the last target that fits
        assert all(len(batch.frames) == 1 and batch.n_pairs > 0.9 * budget for batch in batches)
    if budget == 10**6:  # several whole frames
        assert all(len(batch.frames) > 3 and batch.n_pairs > 0.5 * budget for batch in batches)


def test_plan_passes_over_all_frames_and_fills_its_batches():
    """Batches follow each other through whole epochs; none could take the next frame; any is found alone."""
    expected = np.random.default_rng(0).uniform(1, 40, 30).tolist()
    expected[7] = 500.0
    plan = BudgetPlan(expected, 100, seed=2)
    order = np.concatenate([epoch_order(2, epoch, 30) for epoch in range(5)])
    costs = np.array(expected)[order]
    batches = [plan.places(number) for number in range(20)]
    assert [place for batch in batches for place in batch] == list(range(batches[-1].stop)) and batches[-1].stop > 60
    for batch in batches:
        total = costs[batch.start : batch.stop].sum()
        assert (total <= 100 or len(batch) == 1) and total + costs[batch.stop] > 100
    assert BudgetPlan(expected, 100, seed=2).places(13) == batches[13]
    assert any(BudgetPlan(expected, 100, seed=4).places(number) != batches[number] for number in range(20))


def test_every_frame_comes_in_time(dataset):
    """A frame that found no room in its batch comes in a later epoch: after some, all have been seen."""
    model = models.build(MODELS["fast"])
    source = BatchSource(dataset, model.search(), 3, seed=1, pairs_per_batch=150_000)
    seen = list(itertools.chain.from_iterable(source.batch(number).frames for number in range(12)))
    assert set(seen) == {(entry.name, frame) for entry, frame in dataset.index}
