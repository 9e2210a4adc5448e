"""Run a model over every frame of a split and keep what each target atom got."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from forcefield_ml.data import ForceDataset, Sample
from forcefield_ml.data.stream import BatchSource
from forcefield_ml.models.interface import Prediction
from forcefield_ml.models.model import Model

Predictor = Callable[[int], Prediction]
"""From the number of a frame to the prediction on its targets, in ascending order of atoms."""


@dataclass
class PerAtom:
    """True and predicted forces on the target atoms of a split, with what is supplied besides the network.

    Parameters
    ----------
    target
        (n, 3) true forces, kJ/mol/nm.
    predicted
        (n, 3) forces, or (n,) magnitudes of a model of order 0, kJ/mol/nm.
    supplied
        (n, 3), the part of both that is not the network's; zero where the network gives all.
    marked
        (n,) bool, the atoms that models are judged by.
    species
        (n,) atomic numbers.
    entry
        (n,) index into `entries`.
    frame
        (n,) number of the frame in the file.
    atom
        (n,) number of the atom in the file's entry.
    entries
        Names of the entries.
    """

    target: NDArray[np.float32]
    predicted: NDArray[np.float32]
    supplied: NDArray[np.float32]
    marked: NDArray[np.bool_]
    species: NDArray[np.uint8]
    entry: NDArray[np.int32]
    frame: NDArray[np.int32]
    atom: NDArray[np.int32]
    entries: list[str]

    def where(self, chosen: NDArray[np.bool_]) -> PerAtom:
        """Return the chosen (n,) bool atoms alone."""
        arrays = {name: value[chosen] for name, value in vars(self).items() if name != "entries"}
        return PerAtom(**arrays, entries=self.entries)

    def save(self, path: Path | str) -> None:
        """Write the arrays as .npz, under the names of the fields, for the figures."""
        with open(path, "wb") as file:
            np.savez_compressed(
                file,
                target=self.target,
                predicted=self.predicted,
                species=self.species,
                entry=self.entry,
                frame=self.frame,
                atom=self.atom,
                entries=np.array(self.entries),
            )


def model_predictor(model: torch.nn.Module, source: BatchSource) -> Predictor:
    """Return a predictor that runs a model on the shells around each frame's targets.

    Parameters
    ----------
    model
        In eval mode, if its training mode differs.
    source
        Of the split's batches, with the model's neighbour search.
    """
    device = next(model.parameters()).device

    def predict(item: int) -> Prediction:
        batch = source.whole_frame(item)
        atoms = batch.atoms._replace(species=batch.atoms.species.to(device))
        neighbours = type(batch.neighbours)(*(tensor.to(device) for tensor in batch.neighbours))
        with torch.no_grad():
            prediction: Prediction = model(atoms, neighbours, batch.layer_sizes)
            terms = None if batch.terms is None else type(batch.terms)(*(tensor.to(device) for tensor in batch.terms))
            return prediction if terms is None else cast(Model, model).whole(prediction, terms)

    return predict


def run(
    dataset: ForceDataset,
    predictor: Predictor,
    items: Iterable[int] | None = None,
    done: Callable[[Sample], None] = lambda sample: None,
) -> PerAtom:
    """Predict frames one by one.

    Parameters
    ----------
    dataset
        The split.
    predictor
        What predicts.
    items
        Numbers of the frames; None for all.
    done
        Called after each frame, for progress.

    Returns
    -------
    PerAtom
        All target atoms of these frames.
    """
    names = [entry.name for entry in dataset.entries]
    number = {name: index for index, name in enumerate(names)}
    parts: list[PerAtom] = []
    for item in range(len(dataset)) if items is None else items:
        sample = dataset[item]
        mask = sample.entry.target_mask
        prediction = predictor(item)
        given = prediction.forces if prediction.forces is not None else prediction.magnitude
        if given is None:
            raise ValueError("the model predicts neither forces nor magnitudes; there is nothing to compare")
        target, predicted = sample.forces[mask], given.detach().cpu().numpy().astype(np.float32)
        supplied = np.zeros_like(target) if sample.supplied is None else sample.supplied[mask]
        if sample.supplied is not None:
            target, predicted = target + supplied, predicted + supplied
        entry = np.full(int(mask.sum()), number[sample.entry.name], dtype=np.int32)
        frame, atom = np.full_like(entry, sample.frame), dataset.target_atoms(sample.entry)
        marked, species = sample.entry.marked[mask], sample.entry.species[mask]
        parts.append(PerAtom(target, predicted, supplied, marked, species, entry, frame, atom, names))
        done(sample)
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0]) if name != "entries"
    }
    return PerAtom(**arrays, entries=names)
