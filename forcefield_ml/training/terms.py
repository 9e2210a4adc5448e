"""Bonded terms of a run's data: fitted before training begins, or added to those that a trained model has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from forcefield_ml import models
from forcefield_ml.bonded.fit import Frame, fit, residual, unknown
from forcefield_ml.bonded.module import Bonded
from forcefield_ml.bonded.terms import find_terms, touching
from forcefield_ml.data import JoinedDataset

FIT_FRAMES = 100
"""Training frames, evenly over the entries, that bonded terms are fitted to before training begins."""


def fit_terms(model: models.Model | models.TwoHeads, training: JoinedDataset) -> float:
    """Fit a model's bonded terms to the training frames.

    Parameters
    ----------
    model
        With bonded terms; changed in place.
    training
        The data.

    Returns
    -------
    float
        The root mean square of the forces that they leave, kJ/mol/nm.

    Raises
    ------
    ConfigError
        If the data have more kinds of terms than a model has room for.
    """
    items = training.sampled_items() or list(range(len(training)))
    chosen = [items[k] for k in np.unique(np.linspace(0, len(items) - 1, FIT_FRAMES).round().astype(int))]
    frames = _frames(training, chosen)
    table = fit(frames)
    left = residual(frames, table)
    _terms_of(model).set_table(table, left)
    return left


def add_terms(model: models.Model | models.TwoHeads, training: JoinedDataset, scale: float) -> int:
    """Let a trained model have the bonded terms of the data that it lacks.

    Forces change where not even the elements of a term were known; all others are at first what they were.

    Parameters
    ----------
    model
        With bonded terms; changed in place.
    training
        The data; one frame of each molecule is looked at.
    scale
        kJ/mol/nm, of the model's forces.

    Returns
    -------
    int
        Keys that are new.

    Raises
    ------
    ConfigError
        If there are more kinds of terms than a model has room for.
    """
    first: dict[tuple[bytes, bytes], int] = {}
    for item in training.sampled_items():
        first.setdefault(training.index[item][0].molecule, item)
    terms = _terms_of(model)
    table = unknown(_frames(training, list(first.values())), terms.table())
    terms.add_table(table, scale)
    return sum(map(len, table.keys.values()))


def _terms_of(model: models.Model | models.TwoHeads) -> Bonded:
    bonded = next(iter(model.parts.values())).bonded
    assert bonded is not None
    return bonded


def _frames(training: JoinedDataset, items: list[int]) -> Callable[[], Iterable[Frame]]:
    # an entry may be prepared in another way in another dataset
    entries = {(entry.source, entry.name): entry for entry, _ in (training.index[item] for item in items)}
    terms = {key: touching(find_terms(entry.species, entry.bonds), entry.target_mask) for key, entry in entries.items()}

    def frames() -> Iterator[Frame]:
        for item in items:
            sample, entry = training[item], training.index[item][0]
            found = terms[entry.source, entry.name]
            yield Frame(found, sample.positions, sample.box, sample.forces, entry.target_mask)

    return frames
