"""Compute the labels of packed entries again, from what the dataset holds alone, on OpenMM's Reference platform.

The Ewald sum is split at another alpha over a finer mesh: what depends on the numerical method does not come out alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import openmm
from openmm import app, unit

from data_pipeline.config import LabelConfig
from data_pipeline.dataset.check_entry import relative_error
from data_pipeline.dataset.pack import PackedEntry
from data_pipeline.labels import ewald, parts
from data_pipeline.systems.build import evaluate, make_context

TOLERANCE = 1e-4
"""Largest mean |dF| / mean |F| between stored and recomputed forces of a frame."""

ALPHA_FACTOR = 1.15
"""Between the alpha of the labels and that of the recomputation."""

MESH_FACTOR = 10.0
"""Between the tolerances that set their meshes."""

PLATFORM = "Reference"


@dataclass(frozen=True)
class Recomputed:
    """One frame computed again.

    Parameters
    ----------
    entry, frame
        Which.
    errors
        Field -> mean |dF| / mean |F|, for a term or a difference relative to the total force; of energies |dE| / |E|.
    """

    entry: str
    frame: int
    errors: dict[str, float]


def choose(names: Iterable[str], content_sha256: str, count: int) -> list[str]:
    """Return so many entries, chosen by the content: the same for everyone, and for nobody to choose.

    Parameters
    ----------
    names
        Of the entries.
    content_sha256
        Of the dataset.
    count
        How many; all where there are fewer.
    """
    return sorted(sorted(names, key=lambda name: _number(content_sha256, name))[:count])


def recompute(entry: PackedEntry, settings: LabelConfig, content_sha256: str) -> Recomputed:
    """Compute one frame of an entry again, every kind of label that it has.

    Parameters
    ----------
    entry
        As read from the file; its arrays must have been checked.
    settings
        The config's section ``label``.
    content_sha256
        Chooses the frame.

    Raises
    ------
    EntryError
        If the reference cannot be set up here, a force field's file is missing for instance.
    ConfigError
        If the reference is a potential that is not there.
    """
    fields, attributes = entry.fields, entry.attributes
    frame = _number(content_sha256, entry.name) % len(fields["positions"])
    positions, box = fields["positions"][frame : frame + 1], fields["box"][frame : frame + 1]
    stored = {name: values[frame] for name, values in fields.items() if name.startswith(("forces", "energy"))}
    topology, reference = topology_of(fields), settings.reference
    alpha = float(attributes["pme_alpha"])

    def split_at(system: openmm.System, alpha: float) -> openmm.System:
        if alpha:
            tolerance = settings.ewald_tolerance / MESH_FACTOR
            ewald.set_pme(system, alpha, ewald.mesh(box[0], alpha, tolerance))
        return system

    context = make_context(
        split_at(reference.build(topology), ALPHA_FACTOR * alpha), openmm.VerletIntegrator(0.001), PLATFORM
    )
    total, energy = evaluate(context, positions[0], box[0])
    errors = {"forces": relative_error(stored["forces"], total), "energy": _of_energy(stored["energy"], energy)}
    scale = np.linalg.norm(total, axis=-1).mean()

    def of_total(name: str, expected: np.ndarray) -> float:
        return float(np.linalg.norm(stored[name] - expected, axis=-1).mean(axis=-1).max() / scale)

    if "forces_by_group" in stored:
        # What is direct and what reciprocal space depends on alpha, so that is as stored; the mesh is finer.
        names, by_group = parts.forces_by_group(split_at(reference.build(topology), alpha), positions, box, PLATFORM)
        same = np.array(names, dtype="S32").tolist() == fields["group_names"].tolist()
        errors["forces_by_group"] = of_total("forces_by_group", by_group[0]) if same else np.inf
    if "forces_reciprocal" in stored:
        alone = float(attributes["reciprocal_alpha"])
        grid = ewald.mesh(box[0], alone, ewald.RECIPROCAL_TOLERANCE / MESH_FACTOR)
        smooth = ewald.reciprocal_forces(fields["charges"], positions, box, alpha=alone, grid=grid, platform=PLATFORM)
        errors["forces_reciprocal"] = relative_error(stored["forces_reciprocal"], smooth[0])
    if "forces_solute" in stored:
        mask = fields["target_mask"]
        solute = reference.build(parts.solute_topology(topology, mask))
        expected, energies = parts.solute_forces(solute, mask, positions, PLATFORM)
        errors["forces_solute"] = relative_error(stored["forces_solute"], expected[0])
        errors["energy_solute"] = _of_energy(stored["energy_solute"], float(energies[0]))
    if "forces_minus_mm" in stored:
        other = ALPHA_FACTOR * ewald.default_alpha(settings.cutoff, settings.ewald_tolerance)
        mm = parts.total_forces(split_at(reference.build_mm(topology), other), positions, box, PLATFORM)
        errors["forces_minus_mm"] = of_total("forces_minus_mm", total - mm[0])
    return Recomputed(entry.name, frame, errors)


def topology_of(fields: Mapping[str, np.ndarray]) -> app.Topology:
    """Return the topology that the arrays of an entry describe, with the box of the first frame.

    Parameters
    ----------
    fields
        By name, as in `schema.ENTRY_FIELDS`.
    """
    topology = app.Topology()
    chain = topology.addChain()
    atoms, previous = [], -1
    for index, residue_name, name, number in zip(
        fields["residue_index"], fields["residue_names"], fields["atom_names"], fields["species"], strict=True
    ):
        if index != previous:
            residue, previous = topology.addResidue(residue_name.decode(), chain), index
        atoms.append(topology.addAtom(name.decode(), app.Element.getByAtomicNumber(int(number)), residue))
    for i, j in fields["bonds"]:
        topology.addBond(atoms[i], atoms[j])
    topology.setPeriodicBoxVectors(fields["box"][0].astype(np.float64) * unit.nanometer)
    return topology


def _of_energy(found: float, expected: float) -> float:
    return abs(float(found) - expected) / max(abs(expected), 1.0)


def _number(content_sha256: str, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{content_sha256} {name}".encode()).digest()[:8], "big")
