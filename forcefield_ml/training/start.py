"""What a new run takes of a checkpoint that it begins with: all that both networks have. The rest begins fresh.

A direct model is cheap to train, and what its backbone has learnt serves an energy as well; a network of elements alone
serves one of atom types, and what knows some kinds of residues can learn others. So the checkpoint's head may be
another, and atom types and bonded terms that the data have and the checkpoint lacks are added. Everything else is the
same network or is refused.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from forcefield_ml import models
from forcefield_ml.data import JoinedDataset
from forcefield_ml.errors import ConfigError
from forcefield_ml.nn.embedding import TypeEmbedding, add_types, set_types
from forcefield_ml.training import checkpoint as files
from forcefield_ml.training.terms import add_terms

HEADS_OF = {"vector": ("vector",), "energy": ("energy",), "both": ("vector", "energy")}
"""``head`` -> the heads that a network has."""

FIRST_ENERGY = 0.1
"""Times the weights of an energy head that begins on a trained backbone. By gradient that gives larger forces than the
direct head's, since its scalars change faster than those of one without training: noise of twice the signal."""


class Begun(NamedTuple):
    """What a run began with.

    Attributes
    ----------
    taken, fresh
        Names of the parts: backbone, the heads, atom types; of those that were added to others, their number.
    """

    taken: tuple[str, ...]
    fresh: tuple[str, ...]

    def record(self) -> dict[str, list[str]]:
        """Return plain lists, for the checkpoint."""
        return {"taken": list(self.taken), "fresh": list(self.fresh)}

    def told(self) -> str:
        """Return one line for the log."""
        return f"taken: {', '.join(self.taken)}; begins fresh: {', '.join(self.fresh) or 'nothing'}"


def read(path: Path) -> files.Checkpoint:
    """Return what a new run begins with.

    Parameters
    ----------
    path
        Of a checkpoint or of an exported model.pt.

    Raises
    ------
    ModelFileError
        If it is neither, or damaged.
    """
    if not files.is_torchscript(path):
        return files.load(path)
    from forcefield_ml.deploy.model_file import bundle  # needs vesin, which a training does not

    return bundle.checkpoint(path)


def begin_with(
    start: files.Checkpoint,
    model: models.Model | models.TwoHeads,
    training: JoinedDataset,
    path: Path,
) -> Begun:
    """Put a checkpoint's weights into a fresh model.

    Parameters
    ----------
    start
        The checkpoint.
    model
        Of the new run; changed in place. Predictions of a head that is taken are the checkpoint's, bit for bit, but
        where the new network bounds features and the checkpoint's did not, and of bonds between elements that it had
        not met, whose terms are fitted.
    training
        The data, whose atom types and bonded terms the model shall know.
    path
        Of the checkpoint, for messages.

    Raises
    ------
    ConfigError
        If it is of another network, or the data have more kinds of bonded terms than a model has room for.
    ModelFileError
        If its weights do not fit the model it names.
    """
    known = models.parse_config(start.model_config).model_dump(mode="json")
    _require_same_backbone(known, model.config, path)
    former: dict[str, Any] = {name: files.rebuild(start, str(path), name) for name in HEADS_OF[known["head"]]}
    first = next(iter(former.values()))
    backbone, bonded = first.backbone.state_dict(), first.bonded
    scale = float(start.training["scale"])
    types = _new_types(known, model)
    taken, fresh = ["backbone", *(["bonded terms"] if bonded is not None else [])], []
    for name, part in model.parts.items():
        part.backbone.load_state_dict(backbone, strict=not types)
        if part.bonded is not None:
            part.bonded.load_state_dict(bonded.state_dict())
        if name in former:
            part.head.load_state_dict(former[name].head.state_dict())
            taken.append(f"{name} head")
        else:
            part.set_scale(scale / math.sqrt(3))
            if name == "energy":
                part.head.weights.data.mul_(FIRST_ENERGY)
            fresh.append(f"{name} head")
    if types:
        set_types(model, training.molecules())
        for embedding in types:
            embedding.weights.data.zero_()  # adds nothing: the first forces are those of the elements alone
        fresh.append("atom types")
    elif n_types := add_types(model, training.molecules()):
        fresh.append(f"{n_types} more atom types")
    if bonded is not None and (n_terms := add_terms(model, training, scale)):
        fresh.append(f"{n_terms} more kinds of bonded terms")
    return Begun(tuple(taken), tuple(fresh))


def _new_types(known: dict[str, Any], model: models.Model | models.TwoHeads) -> list[TypeEmbedding]:
    """Return the model's tables of atom types if the checkpoint has none."""
    if known.get("type_depth", 0):
        return []
    return [part for part in model.modules() if isinstance(part, TypeEmbedding)]


def _require_same_backbone(known: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    free = set()
    if known["head"] == "both" or wanted["head"] != "vector":
        free.add("head")
    if not known.get("bound"):
        free.add("bound")
    if known.get("type_depth") == 0:
        free |= {"type_depth", "n_types"}
    keys = [key for key in sorted({*known, *wanted} - free) if known.get(key) != wanted.get(key)]
    changed = [f"{key} was {known.get(key)!r}, is {wanted.get(key)!r}" for key in keys]
    if changed:
        raise ConfigError(
            f"start_from: {path} is a checkpoint of another network ({'; '.join(changed)}). Take its settings under "
            "model, or leave start_from out"
        )
