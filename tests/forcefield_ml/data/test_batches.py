"""Batches: the same forces as the whole periodic system, whole epochs, bounded memory, repeatable order."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from dataset_files import TINY_MODELS, write_dataset

from forcefield_ml import models
from forcefield_ml.data import Batch, BatchSource, BatchStream, ForceDataset
from forcefield_ml.data.batch import patch
from forcefield_ml.data.cache import GraphCache
from forcefield_ml.errors import DatasetError
from forcefield_ml.graph import whole
from forcefield_ml.models.interface import Atoms

MODELS = {name: values | {"cutoff": 0.3} if name == "fast" else values for name, values in TINY_MODELS.items()}
FORCE_TOLERANCE = 1e-5
"""L2 over the targets, relative."""


@pytest.fixture(scope="module")
def large_path(tmp_path_factory) -> Path:
    """Return entries of 400 atoms, so that few targets do not depend on all atoms."""
    path = tmp_path_factory.mktemp("large") / "dataset.h5"
    return write_dataset(path, {"1aaa": "train", "2bbb": "train", "3ccc": "validation"}, n_atoms=400, seed=3)


def trained_like(name: str) -> models.Model:
    """Return a model in eval mode whose normalisation has seen some data."""
    torch.manual_seed(0)
    model = models.build(MODELS[name])
    model.set_scale(300.0)
    return model


def predict(model: models.Model, batch: Batch) -> torch.Tensor:
    prediction = model(batch.atoms, batch.neighbours, batch.layer_sizes)
    return prediction.forces if prediction.forces is not None else prediction.magnitude


def on_whole_system(model: models.Model, dataset: ForceDataset, name: str, frame: int) -> torch.Tensor:
    """Return the prediction for every atom of a frame: no shells, no batch, no cache."""
    item = next(n for n, (entry, number) in enumerate(dataset.index) if (entry.name, number) == (name, frame))
    sample = dataset[item]
    neighbours = model.search()(torch.from_numpy(sample.positions), torch.from_numpy(sample.box))
    n_atoms = len(sample.positions)
    atoms = Atoms(torch.from_numpy(sample.entry.species).long())
    prediction = model(atoms, neighbours, whole(n_atoms, model.capabilities.n_layers))
    return prediction.forces if prediction.forces is not None else prediction.magnitude


@pytest.mark.parametrize("name", sorted(MODELS))
@pytest.mark.parametrize(("frames", "targets"), [(1, None), (2, None), (1, 9), (3, 12)])
def test_batch_equals_whole_periodic_system(large_path, name, frames, targets):
    """Forces in a batch of patches or proteins are those of the full periodic system, to 1e-5.

    The true forces identify each target: a wrong order of atoms would pair them with other predictions.
    """
    dataset, model = ForceDataset(large_path), trained_like(name)
    source = BatchSource(dataset, model.search(), model.capabilities.n_layers, frames, targets, seed=5)
    model.train()
    with torch.no_grad():
        for number in range(3):
            predict(model, source.batch(number))
        model.eval()
        batch = source.batch(7)
        found = predict(model, batch)
        full, true = [], []
        for entry, frame in batch.frames:
            full.append(on_whole_system(model, dataset, entry, frame))
            sample = dataset[next(i for i, (e, f) in enumerate(dataset.index) if (e.name, f) == (entry, frame))]
            true.append(np.where(sample.entry.target_mask[:, None], sample.forces, np.inf))
    pool, truth = torch.cat(full), torch.from_numpy(np.concatenate(true).astype(np.float32))
    matches = (batch.targets[:, None] == truth[None]).all(-1)
    # atoms that feel no force at all share a label; they cannot be told apart and are left out
    single = matches.sum(1) == 1
    assert single.float().mean() > 0.9
    expected = pool[matches[single].float().argmax(1)]
    difference = (found[single] - expected).norm() / expected.norm()
    assert difference < FORCE_TOLERANCE
    assert len(batch.targets) == batch.layer_sizes[-1] == len(found)
    if targets is not None:
        assert len(batch.targets) == targets // frames * frames
        assert batch.layer_sizes[0] < sum(len(part) for part in full) or name != "fast"


def test_a_missing_neighbour_would_be_noticed(large_path):
    """Negative control of the comparison above: dropping one neighbour of one target changes the forces."""
    dataset, model = ForceDataset(large_path), trained_like("fast").eval()
    batch = BatchSource(dataset, model.search(), 2).batch(0)
    mask = batch.neighbours.mask.clone()
    row = int(mask[: batch.layer_sizes[-1]].sum(1).argmax())
    mask[row, int(mask[row].float().argmax())] = False
    vectors = batch.neighbours.vectors * mask[:, :, None]
    with torch.no_grad():
        whole_batch = predict(model, batch)
        cut = predict(model, batch._replace(neighbours=batch.neighbours._replace(mask=mask, vectors=vectors)))
    assert (cut - whole_batch).norm() / whole_batch.norm() > 10 * FORCE_TOLERANCE


def test_patch_is_the_nearest_targets_of_one(large_path):
    """A patch holds targets only, as many as asked for: those nearest to one of them, over the periodic faces too."""
    sample = ForceDataset(large_path)[0]
    chosen = np.flatnonzero(patch(sample, 10, np.random.default_rng(1)))
    targets = np.flatnonzero(sample.entry.target_mask)
    assert len(chosen) == 10 and set(chosen) <= set(targets)
    shifts = np.stack(np.meshgrid(*[range(-3, 4)] * 3), axis=-1).reshape(-1, 3) @ sample.box
    away = sample.positions[targets][:, None] - sample.positions[targets][None]
    distances = np.linalg.norm(away[:, :, None] + shifts, axis=-1).min(-1)
    nearest = [set(targets[np.argsort(row)[:10]]) for row in distances]
    assert any(len(set(chosen) & near) >= 9 for near in nearest)  # rint is exact within half the box only
    everything = patch(sample, 10_000, np.random.default_rng(1))
    assert (everything == sample.entry.target_mask).all()


def test_epoch_visits_every_frame_once_and_order_repeats(dataset_path):
    """Each epoch passes over all frames; the order follows from the seed, and differs between epochs and seeds."""
    dataset, model = ForceDataset(dataset_path), trained_like("fast")

    def order(seed: int) -> list[tuple[str, int]]:
        source = BatchSource(dataset, model.search(), 2, seed=seed)
        return [source.batch(number).frames[0] for number in range(2 * len(dataset))]

    first = order(0)
    n = len(dataset)
    assert sorted(first[:n]) == sorted(first[n:]) == [(e.name, f) for e, f in dataset.index]
    assert first[:n] != first[n:] and first == order(0) and first != order(1)


@pytest.mark.parametrize(("ahead", "n_threads"), [(0, 1), (2, 1), (4, 3)])
def test_stream_from_a_number_on_is_the_rest_of_the_stream(dataset_path, ahead, n_threads):
    """What resuming relies on: a stream begun at batch 3 yields the same tensors as one that came to batch 3.

    Its order does not depend on the threads; two streams of every other batch have all between them.
    """
    dataset, model = ForceDataset(dataset_path), trained_like("fast")

    def make(start: int, step: int = 1) -> BatchStream:
        source = BatchSource(dataset, model.search(), 2, 1, 8, seed=4)
        return BatchStream(source, start, ahead, step, n_threads)

    whole_run = [make(0)._source.batch(number) for number in range(6)]
    resumed = list(itertools.islice(make(3), 3))
    even, odd = itertools.islice(make(0, 2), 3), itertools.islice(make(1, 2), 3)
    shared = list(itertools.chain.from_iterable(zip(even, odd, strict=True)))
    for expected, found in zip([*whole_run[3:], *whole_run], [*resumed, *shared], strict=True):
        assert expected.frames == found.frames and torch.equal(expected.targets, found.targets)
        assert torch.equal(expected.neighbours.vectors, found.neighbours.vectors)


def test_stream_measures_how_long_it_is_waited_for(dataset_path, monkeypatch):
    """A reader that is faster than the batches waits for nearly all of their time, a slower one hardly at all."""
    source = BatchSource(ForceDataset(dataset_path), trained_like("fast").search(), 2)
    batch = source.batch(0)
    monkeypatch.setattr(source, "batch", lambda number: time.sleep(0.05) or batch)
    hungry, patient = BatchStream(source), BatchStream(source)
    for _ in itertools.islice(hungry, 6):
        pass
    assert 0.9 * 6 * 0.05 < hungry.waited < 6 * 0.05 + 1
    waited = []
    for _ in itertools.islice(patient, 6):
        waited.append(patient.waited)
        time.sleep(0.1)
    assert waited[-1] - waited[0] < 0.15


def test_errors_of_the_background_thread_reach_the_reader(dataset_path):
    """A frame whose box is too small stops the reader with a message that names the entry."""
    model = models.build(MODELS["fast"] | {"cutoff": 0.9})
    stream = BatchStream(BatchSource(ForceDataset(dataset_path), model.search(), 2))
    with pytest.raises(DatasetError, match=r"frame \d of \d...: .*cutoff"):
        next(iter(stream))


def test_cache_saves_searches_within_its_budget(dataset_path):
    """Frames seen before are not searched again while the budget allows; beyond it the oldest go."""
    dataset, model = ForceDataset(dataset_path), trained_like("fast")
    roomy = GraphCache(model.search(), 2)
    graphs = [roomy.graph(dataset[item]) for item in range(len(dataset)) for _ in range(2)]
    assert roomy.searches == len(dataset) and graphs[0].neighbours.indices.dtype == torch.int64
    one = roomy.size // len(dataset)
    tight = GraphCache(model.search(), 2, budget=2 * one)
    for item in itertools.chain(range(len(dataset)), range(len(dataset))):
        again = tight.graph(dataset[item])
        assert tight.size <= 2 * one
        assert torch.equal(again.neighbours.vectors, graphs[2 * item].neighbours.vectors)
    assert tight.searches == 2 * len(dataset)
