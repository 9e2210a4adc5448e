"""Judge a model on a split of a dataset: the JSON that `forcefield-ml evaluate` writes."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import torch
from numpy.typing import NDArray

import forcefield_ml
from forcefield_ml import pretrained
from forcefield_ml.bonded.bound import bound_terms
from forcefield_ml.bonded.module import keys_of
from forcefield_ml.data import BatchSource, ForceDataset, Sample, Target
from forcefield_ml.data.target import quantity_of
from forcefield_ml.errors import DatasetError, ForceModeError
from forcefield_ml.models.fingerprint import weights_sha256
from forcefield_ml.models.interface import Prediction
from forcefield_ml.nn.embedding import types_of
from forcefield_ml.progress import ProgressLine, duration
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training import predict
from forcefield_ml.training.metrics import grouped, mean_and_error, tail, tail_in_words, with_naive
from forcefield_ml.units import FORCE

ENDS = ("first", "inside", "last")
"""Residues of a chain, caps included."""

FORMAT = "forcefield-ml-evaluation"
"""Value of ``format`` in the JSON."""


def evaluate(
    model: torch.nn.Module | Path | str,
    dataset: ForceDataset | Path | str,
    split: str = "test",
    per_atom: Path | str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Run a model over every frame of a split and compare with the reference forces.

    What it is compared with is the total force, to which a model of a part of it gets what OpenMM supplies in a
    simulation; the force of the solute alone for a model of that, and refinement vectors for one of these. See
    `data.target`.

    Parameters
    ----------
    model
        A model of `models.build`, the path of a checkpoint or of an exported model.pt, or the name of one that ships.
    dataset
        dataset.h5, or one that is open (its own split and target count then).
    split
        ``"train"``, ``"validation"`` or ``"test"``.
    per_atom
        Where to write true and predicted forces of each target atom as .npz (see `predict.PerAtom`).
    quiet
        Show no progress.

    Returns
    -------
    dict
        The metrics of `metrics.KEYS` over all atoms pooled that the dataset marks, ``naive``, ``tail`` (see
        `metrics.tail`), ``proteins`` (mean, standard_error, each), ``elements``, ``residues`` (by their names in the
        dataset), ``weights_sha256`` (see `models.fingerprint`), and what was evaluated. Of forces ``ends`` has the
        metrics of each chain's first residue, its last, and those inside. For a model of all atoms ``others`` has the
        same of those not marked; where something is supplied, ``network`` compares what is the network's own.

    Raises
    ------
    DatasetError
        If the split is empty, lacks the part that the model predicts, or holds elements that it does not know.
    ModelFileError
        If the file is no model.
    ForceModeError
        If the open dataset has another target than the model.
    UnstableError
        If a prediction is not finite.
    """
    about: dict[str, Any] = {}
    if not isinstance(model, str | Path):
        frames = dataset if isinstance(dataset, ForceDataset) else ForceDataset(dataset, split)
        frames.require_frames()
        predictor, weights = _eager(model, frames), weights_sha256(model.state_dict())
    else:
        model = pretrained.resolve(model)
        about["model"] = model.name
        exported = files.is_torchscript(model)
        loaded, training, weights = _read_exported(model) if exported else _read_checkpoint(model)
        frames = _frames(dataset, split, files.target_of(training), model)
        frames.require_frames()
        predictor = _exported(loaded, training, frames) if exported else _eager(loaded, frames)
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

        everything = predict.run(frames, predictor, done=show)
    atoms = everything.where(everything.marked)
    if per_atom is not None:
        atoms.save(per_atom)
    quantity = frames.target.quantity
    each = grouped(atoms.predicted, atoms.target, atoms.entry, atoms.entries, quantity)
    numbers, element = np.unique(atoms.species, return_inverse=True)
    residues, residue = np.unique(_described(frames, atoms, "residue_names"), return_inverse=True)
    return {
        "format": FORMAT,
        "made": f"forcefield-ml {forcefield_ml.__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "weights_sha256": weights,
        **with_naive(atoms.predicted, atoms.target, quantity),
        "tail": tail(atoms.predicted, atoms.target, quantity),
        "units": {"tensor": quantity.unit, "magnitude": quantity.unit, "angle": "degrees"},
        "proteins": {**mean_and_error(each), "each": each},
        "elements": grouped(
            atoms.predicted, atoms.target, element, [gemmi.Element(int(number)).name for number in numbers], quantity
        ),
        "residues": grouped(atoms.predicted, atoms.target, residue, residues.tolist(), quantity),
        **_besides(frames, everything),
        "predicts": frames.target.name,
        "compared_with": frames.target.name if frames.target.judged_as_learnt else "total",
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
    quantity = quantity_of(result["predicts"])
    for key, unit in (
        ("tensor", quantity.unit),
        ("magnitude", quantity.unit),
        ("angle", "degrees"),
        ("relative", ""),
        ("pearson", ""),
    ):
        digits = {"relative": 3, "pearson": 3, "angle": 1}.get(key, quantity.digits)
        values = (result[key], result["naive"][key])
        rows.append((f"{key} ({unit})" if unit else key, *("-" if v is None else f"{v:.{digits}f}" for v in values)))
    lines = [f"{name:20}{model:>10}{naive:>10}" for name, model, naive in rows]
    if result.get("tail"):
        lines.append(f"tensor errors above: {tail_in_words(result['tail'], quantity)}")
    for key, of in (("network", "what the network predicts itself"), ("others", "the atoms that are not marked")):
        if result.get(key) and result[key]["tensor"] is not None:
            part = result[key]
            tensor, naive = quantity.text(part["tensor"]), quantity.text(part["naive"]["tensor"])
            lines.append(f"of {of}: tensor {tensor} of {naive} {quantity.unit}")
    entries = "proteins" if quantity is FORCE else "structures"
    about = f"{result['n_atoms']} target atoms, {result['n_frames']} frames, {result['n_proteins']} {entries}"
    return "\n".join([*lines, f"{about}; split {result['split']}, {result['dataset']['protocol']}"])


def _besides(frames: ForceDataset, everything: predict.PerAtom) -> dict[str, Any]:
    """Return the metrics that only some kinds of model have."""
    found: dict[str, Any] = {"supplied": frames.target.supplied}
    if frames.target.supplied is not None:
        part = everything.where(everything.marked)
        network = part.predicted - part.supplied, part.target - part.supplied
        found["network"] = with_naive(*network, frames.target.quantity)
    if frames.target.quantity is FORCE:
        part = everything.where(everything.marked)
        found["ends"] = grouped(part.predicted, part.target, _ends(frames, part), ENDS)
    others = everything.where(~everything.marked)
    if len(others.target):
        found["others"] = with_naive(others.predicted, others.target, frames.target.quantity)
    return found


def _described(frames: ForceDataset, atoms: predict.PerAtom, field: str) -> NDArray[Any]:
    """Return what the dataset tells of each atom, (n,); see `ForceDataset.described`."""
    parts = {which: frames.described(atoms.entries[which])[field] for which in np.unique(atoms.entry)}
    values = np.empty(len(atoms.entry), dtype=np.result_type(*parts.values()))
    for which, told in parts.items():
        rows = atoms.entry == which
        values[rows] = told[atoms.atom[rows]]
    return values


def _ends(frames: ForceDataset, atoms: predict.PerAtom) -> NDArray[np.int64]:
    """Return the number in `ENDS` of each atom's residue, (n,)."""
    numbers = _described(frames, atoms, "residue_index")
    found = np.zeros(len(numbers), dtype=np.int64)
    for which in np.unique(atoms.entry):
        own = atoms.entry == which
        found[own] = end_of(numbers[own])
    return found


def end_of(residue: NDArray[Any]) -> NDArray[np.int64]:
    """Return (n,) numbers in `ENDS` of the n atoms of a chain, of the numbers of their residues."""
    return np.select([residue == residue.min(), residue == residue.max()], [0, 2], 1)


def _frames(dataset: ForceDataset | Path | str, split: str, target: Target, model: Path) -> ForceDataset:
    """Return the frames with what a model predicts."""
    if not isinstance(dataset, ForceDataset):
        return ForceDataset(dataset, split, target)
    if dataset.target != target:
        raise ForceModeError(
            f"{model} predicts {target.name!r} of {target.atoms} atoms, but the dataset was opened with target "
            f"{dataset.target.name!r} of {dataset.target.atoms}: the two cannot be compared. Open it with "
            f"ForceDataset(path, split, {target!r}), or pass its path"
        )
    return dataset


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
    frames.encode(types_of(model), keys_of(model))
    model.eval()
    # each frame is used once: nothing to cache
    source = BatchSource(frames, model.search(), model.capabilities.n_layers, cache_bytes=0)
    return predict.model_predictor(model, source)


def _read_checkpoint(path: Path) -> tuple[Any, dict[str, Any], str]:
    model, checkpoint = files.load_model(path)
    return model, checkpoint.training, weights_sha256(model.state_dict())


def _read_exported(path: Path) -> tuple[Any, dict[str, Any], str]:
    """Return a model.pt, what its card tells of the training (what it predicts is the card's own word), its weights."""
    from forcefield_ml.deploy.model_file import bundle

    card, module, _ = bundle.read(path)
    told = {key: card[key] for key in ("predicts", "target_atoms", "species")}
    return module, {**card["training"], **told}, bundle.weights_of(card, module, str(path))


def _exported(module: Any, training: dict[str, Any], frames: ForceDataset) -> predict.Predictor:
    frames.require_species(training["species"])
    frames.encode(types_of(module))

    terms = {entry.name: bound_terms(module, entry.species, entry.bonds, entry.target_mask) for entry in frames.entries}

    def predictor(item: int) -> Prediction:
        sample = frames[item]
        positions, targets = torch.from_numpy(sample.positions), torch.from_numpy(sample.entry.target_mask)
        box = None if sample.box is None else torch.from_numpy(sample.box)
        species = torch.from_numpy(sample.entry.codes)
        try:
            with torch.no_grad():
                prediction: Prediction = module(species, positions, box, targets)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DatasetError(f"frame {sample.frame} of {sample.entry.name}: {reason}") from None
        return terms[sample.entry.name].complete(prediction, positions, box, targets)

    return predictor
