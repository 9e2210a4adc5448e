"""The reference forces of a dataset's entry along dynamics, and what of them a model leaves to OpenMM.

| the model predicts       | force on its atoms in dynamics                                   |
|--------------------------|------------------------------------------------------------------|
| `total`                  | the network's                                                    |
| `total_minus_reciprocal` | the network's, and the reciprocal sum of the labels              |
| `solute_alone`           | the network's, and the total less that of the solute in a vacuum |

All other atoms have the reference's total force.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import openmm
from numpy.typing import NDArray

from data_pipeline.config import LabelConfig
from data_pipeline.dataset.check_entry import PARTS, relative_error
from data_pipeline.dataset.pack import PackedEntry
from data_pipeline.dataset.recompute import topology_of
from data_pipeline.labels import ewald, parts
from data_pipeline.labels.label import Reference as Source
from data_pipeline.labels.label import label_parts
from data_pipeline.systems.build import evaluate
from forcefield_ml.errors import DatasetError
from forcefield_ml.simulation.build import platform_named

SERVED = ("total", "total_minus_reciprocal", "solute_alone")
"""What a model may predict."""

AGREEMENT = 1e-4
"""Largest mean |dF| / mean |F| between the dataset's forces of a frame and the reference set up here."""


class Truth(NamedTuple):
    """What the reference says of one geometry.

    Attributes
    ----------
    forces
        (N, 3), total, kJ/mol/nm.
    supplied
        (N, 3), what of them is not the network's to predict.
    energy
        kJ/mol, total.
    """

    forces: NDArray[np.float64]
    supplied: NDArray[np.float64]
    energy: float


class Reference:
    """The reference of one entry, as its labels were made.

    Parameters
    ----------
    entry
        With the part of the labels that the model learnt.
    label
        How they were made.
    predicts
        One of `SERVED`.
    platform
        Name of an OpenMM platform.

    Raises
    ------
    DatasetError
        If the labels of the entry's first frame are not those computed here.
    """

    def __init__(self, entry: PackedEntry, label: LabelConfig, predicts: str, platform: str) -> None:
        self._entry, self._predicts = entry, predicts
        self._mask = entry.fields["target_mask"].astype(bool)
        system = _system(entry, label.reference)
        self.masses = [system.getParticleMass(i) for i in range(system.getNumParticles())]
        self._context = _context(system, platform)
        part = self._part(label.reference)
        self._part_context = None if part is None else _context(part, platform)
        self._require_agreement()

    def __call__(self, positions: NDArray[np.float32], box: NDArray[np.float32]) -> Truth:
        """Return forces and energy at positions (N, 3) and box (3, 3), nm."""
        forces, energy = evaluate(self._context, positions, box)
        if self._part_context is None:
            return Truth(forces, np.zeros_like(forces), energy)
        if self._predicts == "total_minus_reciprocal":
            return Truth(forces, evaluate(self._part_context, positions, box)[0], energy)
        supplied = forces.copy()
        supplied[self._mask] -= evaluate(self._part_context, positions[self._mask], None)[0]
        return Truth(forces, supplied, energy)

    def _part(self, source: Source) -> openmm.System | None:
        """Return what computes the part of the labels that the model learnt or left out."""
        fields, attributes = self._entry.fields, self._entry.attributes
        if self._predicts == "total_minus_reciprocal":
            alpha, grid = float(attributes["reciprocal_alpha"]), np.asarray(attributes["reciprocal_grid"])
            return ewald.reciprocal_system(fields["charges"], fields["box"], alpha=alpha, grid=grid)
        if self._predicts == "solute_alone":
            return source.build(parts.solute_topology(topology_of(fields), self._mask))
        return None

    def _require_agreement(self) -> None:
        fields = self._entry.fields
        found = self(fields["positions"][0], fields["box"][0])
        compared = {"forces": found.forces}
        if self._predicts == "total_minus_reciprocal":
            compared["forces_reciprocal"] = found.supplied
        elif self._predicts == "solute_alone":
            compared["forces_solute"] = found.forces - found.supplied
        for name, here in compared.items():
            error = relative_error(here, fields[name][0])
            if not error <= AGREEMENT:
                raise DatasetError(
                    f"{self._entry.name}: the {name} of its first frame differ from those computed here by {error:.1e} "
                    f"(mean |dF| / mean |F|, allowed {AGREEMENT:.0e}); its labels were made otherwise. Run "
                    "data-pipeline check --recompute on the dataset, and use the version of OpenMM that made it"
                )


def parts_of(
    entry: PackedEntry,
    label: LabelConfig,
    positions: NDArray[np.float32],
    box: NDArray[np.float32],
    forces: NDArray[np.float32],
    platform: str,
) -> dict[str, NDArray[Any]]:
    """Return every part of the labels that an entry has, of other frames of it, by the pipeline's own function.

    Parameters
    ----------
    entry, label, platform
        As for `Reference`.
    positions
        (F, N, 3) nm.
    box
        (F, 3, 3) nm.
    forces
        (F, N, 3) total, kJ/mol/nm.

    Returns
    -------
    dict
        Fields and attributes by name, as in `data_pipeline.schema`.
    """
    return label_parts(
        label.reference,
        _system(entry, label.reference),
        topology_of(entry.fields),
        positions,
        box,
        forces,
        entry.fields["charges"],
        wanted=[part for part, names in PARTS.items() if names[-1] in entry.fields],
        reciprocal_alpha=float(entry.attributes.get("reciprocal_alpha", label.reciprocal_alpha)),
        reciprocal_grid=entry.attributes.get("reciprocal_grid"),
        platform=platform,
    )


def _system(entry: PackedEntry, source: Source) -> openmm.System:
    system = source.build(topology_of(entry.fields))
    if alpha := float(entry.attributes["pme_alpha"]):
        ewald.set_pme(system, alpha, np.asarray(entry.attributes["pme_grid"]))
    return system


def _context(system: openmm.System, platform: str) -> openmm.Context:
    return openmm.Context(system, openmm.VerletIntegrator(0.001), platform_named(platform))
