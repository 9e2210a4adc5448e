"""What a network learns of a dataset, and on which atoms: every target is declared here, once.

| target                   | learnt                               | supplied by OpenMM  | in the pipeline: label.parts |
|--------------------------|--------------------------------------|---------------------|------------------------------|
| `total`                  | the total force                      | -                   | -                            |
| `total_minus_reciprocal` | the total less the reciprocal sum    | the reciprocal sum  | reciprocal                   |
| `solute_alone`           | the marked atoms' own forces         | -                   | solute                       |
| `reference_minus_mm`     | the reference less an MM force field | the MM force        | minus_mm                     |
| `refinement`             | where a candidate's atoms should go  | -                   | (task: refinement)           |

Learnt plus supplied is what a model is judged by: the total force, or with `solute_alone` that of the marked atoms
without any others, which the network then does not see either. Refinement vectors are displacements and no forces:
they are in datasets of their own (`data_pipeline.schema`: the task), in nm inside and Å on paper.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from data_pipeline import schema
from forcefield_ml.errors import ConfigError, DatasetError, closest
from forcefield_ml.units import FORCE

TargetName = Literal["total", "total_minus_reciprocal", "solute_alone", "reference_minus_mm", "refinement"]
TargetAtoms = Literal["solute", "all"]

TARGET_NAMES: tuple[str, ...] = get_args(TargetName)
TARGET_ATOMS: tuple[str, ...] = get_args(TargetAtoms)


class _Source(NamedTuple):
    """Where a target is in a dataset: the fields it needs, and the pipeline's part that makes them."""

    fields: tuple[str, ...]
    attributes: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    task: str = schema.FORCES


_SOURCES = {
    "total": _Source(("forces",)),
    "total_minus_reciprocal": _Source(("forces", "forces_reciprocal"), ("reciprocal_alpha",), ("reciprocal",)),
    "solute_alone": _Source(("forces_solute",), (), ("solute",)),
    "reference_minus_mm": _Source(("forces", "forces_minus_mm"), (), ("minus_mm",)),
    "refinement": _Source(("refinement",), task=schema.REFINEMENT),
}


class Forces(NamedTuple):
    """Forces of one frame, (N, 3) float32 in kJ/mol/nm, or displacements in nm.

    Attributes
    ----------
    learnt
        What the network is to predict.
    supplied
        What is added to a prediction to give what it is judged by; None where nothing is.
    """

    learnt: NDArray[np.float32]
    supplied: NDArray[np.float32] | None


@dataclass(frozen=True)
class Target:
    """What is learnt, and on which atoms.

    Parameters
    ----------
    name
        One of `TARGET_NAMES`.
    atoms
        ``"solute"``: those that the dataset marks as targets; ``"all"``.

    Raises
    ------
    ConfigError
        If there is no such target, or no dataset holds it for these atoms.
    """

    name: str = "total"
    atoms: str = "solute"

    def __post_init__(self) -> None:
        for value, allowed in ((self.name, TARGET_NAMES), (self.atoms, TARGET_ATOMS)):
            if value not in allowed:
                raise ConfigError(f"no target {value!r}.{closest(value, allowed)}")
        if self.alone and self.atoms == "all":
            raise ConfigError(
                "target 'solute_alone' is the force of the solute's atoms on each other, so target_atoms must be "
                "'solute'; to learn the forces on all atoms take target 'total' or 'total_minus_reciprocal'"
            )

        if self.quantity is not FORCE and self.atoms == "all":
            raise ConfigError(
                f"target {self.name!r} has vectors for the atoms that have a partner in the native and for no others, "
                "so target_atoms must be 'solute' (leave it out)"
            )

    @property
    def quantity(self) -> schema.Paper:
        """What the vectors are, and their unit on paper."""
        return quantity_of(self.name)

    @property
    def task(self) -> str:
        """The task of the datasets that hold it, one of `schema.TASKS`."""
        return _SOURCES[self.name].task

    @property
    def alone(self) -> bool:
        """Whether the network sees the target atoms and no others."""
        return self.name == "solute_alone"

    @property
    def judged_as_learnt(self) -> bool:
        """Whether a model is judged by what it learns and not by the total force."""
        return self.alone or self.task != schema.FORCES

    @property
    def supplied(self) -> str | None:
        """What OpenMM gives besides the network: ``"reciprocal"``, ``"mm"`` or None."""
        return {"total_minus_reciprocal": "reciprocal", "reference_minus_mm": "mm"}.get(self.name)

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the labels that the pipeline must be asked for."""
        return _SOURCES[self.name].parts

    def require_task(self, task: str, source: str) -> None:
        """Raise DatasetError unless a dataset is of the target's task.

        Parameters
        ----------
        task
            Of the dataset.
        source
            The file for the message.
        """
        if task != self.task:
            fitting = ", ".join(name for name in TARGET_NAMES if _SOURCES[name].task == task)
            raise DatasetError(
                f"{source} is a dataset of {task}, target {self.name!r} needs one of {self.task}. Take target "
                f"{fitting}, or another dataset"
            )

    def require(self, group: Any, source: str) -> None:
        """Raise DatasetError, naming the pipeline's setting, unless an entry holds what is needed.

        Parameters
        ----------
        group
            The entry in the HDF5 file.
        source
            Entry and file for the message.
        """
        wanted = _SOURCES[self.name]
        missing = [name for name in wanted.fields if name not in group]
        missing += [name for name in wanted.attributes if name not in group.attrs]
        if missing and wanted.parts:
            raise DatasetError(
                f"{source} lacks {', '.join(missing)}, which target {self.name!r} needs. Give the configuration of "
                f"data-pipeline run label: {{parts: [{', '.join(wanted.parts)}]}} and run it again (prepared systems "
                "and frames are kept), or choose another target"
            )

    def read(self, group: Mapping[str, Any], frame: int) -> Forces:
        """Return the forces of one frame of an entry on all its atoms.

        Parameters
        ----------
        group
            The entry in the HDF5 file.
        frame
            Number of the frame.
        """
        learnt, *parts = (group[name][frame] for name in _SOURCES[self.name].fields)
        if self.name == "total_minus_reciprocal":
            return Forces(learnt - parts[0], parts[0])
        if self.name == "reference_minus_mm":
            return Forces(parts[0], learnt - parts[0])
        return Forces(learnt, None)


def quantity_of(predicts: str) -> schema.Paper:
    """Return what the vectors of a target are, and their unit on paper.

    Parameters
    ----------
    predicts
        One of `TARGET_NAMES`; anything else, such as ``magnitude``, is of a force.
    """
    return schema.PAPER[_SOURCES[predicts].task] if predicts in _SOURCES else FORCE


def charges_of(force_field: str, config: str) -> list[str]:
    """Return the files of the force field whose charges a dataset holds, as `openmm.app.ForceField` takes them.

    Parameters
    ----------
    force_field, config
        Attributes of the dataset.
    """
    return mm_force_field(config) if json.loads(config).get("label", {}).get("potential") else force_field.split(",")


def mm_force_field(config: str) -> list[str]:
    """Return the files of the force field that a dataset's ``forces_minus_mm`` lacks, from its attribute ``config``."""
    return list(json.loads(config).get("label", {}).get("mm_force_field", []))
