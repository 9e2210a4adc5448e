"""Judge a model on a split of a dataset: the JSON that `forcefield-ml evaluate` writes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import torch

from forcefield_ml import pretrained
from forcefield_ml.data import BatchSource, ForceDataset, Sample
from forcefield_ml.errors import DatasetError, ForceModeError
from forcefield_ml.models.interface import Prediction
from forcefield_ml.progress import ProgressLine, duration
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training import predict
from forcefield_ml.training.metrics import grouped, mean_and_error, with_naive


def evaluate(
    model: torch.nn.Module | Path | str,
    dataset: ForceDataset | Path | str,
    split: str = "test",
    per_atom: Path | str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a model over every frame of a split and compare with the reference forces.

    Parameters
    ----------
    model
        A model of `models.build`, the path of a checkpoint or of an exported model.pt, or the name of one that ships.
    dataset
        dataset.h5, or one that is open (its own split counts then).
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    per_atom
        Where to write true and predicted forces of each target atom as .npz (see `predict.PerAtom`).
    quiet
        Show no progress.

    Returns
    -------
    dict
        The metrics of `metrics.KEYS` over all target atoms pooled, ``naive``, ``proteins`` (mean, standard_error,
        each), ``elements``, and what was evaluated.

    Raises
    ------
    DatasetError
        If the split is empty, or holds elements that the model does not know.
    ModelFileError
        If the file is no model.
    ForceModeError
        If the model predicts something else than the total force.
    UnstableError
        If a prediction is not finite.
    """
    frames = dataset if isinstance(dataset, ForceDataset) else ForceDataset(dataset, split)
    frames.require_frames()
    about: dict[str, Any] = {}
    if not isinstance(model, str | Path):
        predictor = _eager(model, frames)
    else:
        model = pretrained.resolve(model)
        about["model"] = model.name
        if files.is_torchscript(model):
            predictor, training = _exported(model, frames)
        else:
            loaded, checkpoint = files.load_model(model)
            predictor, training = _eager(loaded, frames), checkpoint.training
        about["training"] = _about_training(training, frames)
    began = time.monotonic()
    with ProgressLine(f"evaluate {frames.split}", quiet) as line:
        count = 0

        def show(sample: Sample) -> None:
            nonlocal count
            count += 1
            left = (time.monotonic() - began) * (len(frames) / count - 1)
            text = f"{duration(left)} left · {sample.entry.name} · frame {count} of {len(frames)}"
            line.show(count / len(frames), text, count == len(frames))

        atoms = predict.run(frames, predictor, done=show)
    if per_atom is not None:
        atoms.save(per_atom)
    each = grouped(atoms.predicted, atoms.target, atoms.entry, atoms.entries)
    numbers, element = np.unique(atoms.species, return_inverse=True)
    return {
        **with_naive(atoms.predicted, atoms.target),
        "units": {"tensor": "meV/Å", "magnitude": "meV/Å", "angle": "degrees"},
        "proteins": {**mean_and_error(each), "each": each},
        "elements": grouped(
            atoms.predicted, atoms.target, element, [gemmi.Element(int(number)).name for number in numbers]
        ),
        "n_frames": len(frames),
        "n_proteins": len(each),
        "split": frames.split,
        "dataset": {
            "name": frames.path.name,
            "content_sha256": frames.content_sha256,
            "protocol": frames.protocol,
            "force_field": frames.force_field,
        },
        "seconds": time.monotonic() - began,
        **about,
    }


def table(result: dict[str, Any]) -> str:
    """Return the main numbers of `evaluate` as lines for the screen, as table 1 of the paper has them."""
    rows: list[tuple[str, ...]] = [("", "model", "naive")]
    for key, unit in (
        ("tensor", "meV/Å"),
        ("magnitude", "meV/Å"),
        ("angle", "degrees"),
        ("relative", ""),
        ("pearson", ""),
    ):
        digits = 3 if key in ("relative", "pearson") else 1
        values = (result[key], result["naive"][key])
        rows.append((f"{key} ({unit})" if unit else key, *("-" if v is None else f"{v:.{digits}f}" for v in values)))
    lines = [f"{name:20}{model:>10}{naive:>10}" for name, model, naive in rows]
    about = f"{result['n_atoms']} target atoms, {result['n_frames']} frames, {result['n_proteins']} proteins"
    return "\n".join([*lines, f"{about}; split {result['split']}, {result['dataset']['protocol']}"])


def _about_training(training: dict[str, Any], frames: ForceDataset) -> dict[str, Any]:
    seen = set(training.get("sequences", {}).values())
    return {
        "n_batches": training.get("n_batches"),
        "dataset_sha256": training.get("dataset_sha256"),
        "protocol": training.get("protocol"),
        # not the leakage check, which compares by identity: only what can be told from the file alone
        "sequences_trained_on": [entry.name for entry in frames.entries if entry.sequence in seen],
    }


def _eager(model: Any, frames: ForceDataset) -> predict.Predictor:
    frames.require_species(model.capabilities.elements)
    model.eval()
    # each frame is used once: nothing to cache
    source = BatchSource(frames, model.search(), model.capabilities.n_layers, cache_bytes=0)
    return predict.model_predictor(model, source)


def _exported(path: Path, frames: ForceDataset) -> tuple[predict.Predictor, dict[str, Any]]:
    from forcefield_ml.deploy import bundle

    card, module, _ = bundle.read(path)
    if card["predicts"] not in ("total", "magnitude"):
        raise ForceModeError(
            f"{path} predicts {card['predicts']!r}, the dataset holds total forces: the two cannot be compared. "
            "Give a model that predicts 'total'"
        )
    frames.require_species(card["species"])

    def predictor(item: int) -> Prediction:
        sample = frames[item]
        box = None if sample.box is None else torch.from_numpy(sample.box)
        species = torch.from_numpy(sample.entry.species).long()
        try:
            with torch.no_grad():
                prediction: Prediction = module(
                    species, torch.from_numpy(sample.positions), box, torch.from_numpy(sample.entry.target_mask)
                )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DatasetError(f"frame {sample.frame} of {sample.entry.name}: {reason}") from None
        return prediction

    return predictor, card["training"]
