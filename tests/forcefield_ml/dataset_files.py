"""Small models, and a small dataset.h5 written from the schema's tables: random atoms with analytic forces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from data_pipeline import schema

TINY_MODELS: dict[str, dict[str, Any]] = {
    "fast": {"architecture": "fast", "n_channels": 6, "n_layers": 2, "n_basis": 8, "n_units": 4, "n_first_units": 6},
    "tfn0": {"architecture": "tfn", "order": 0, "channels": (6, 4, 1), "n_neighbours": 12, "n_basis": 8, "n_units": 4},
    "tfn1": {"architecture": "tfn", "order": 1, "channels": (6, 4, 1), "n_neighbours": 12, "n_basis": 8, "n_units": 4},
    "tfn2": {"architecture": "tfn", "order": 2, "channels": (6, 4, 1), "n_neighbours": 12, "n_basis": 8, "n_units": 4},
}
"""The real architectures, small."""

SIDE = 1.0
"""nm; the box is SIDE high at its lowest and so admits cutoffs to half of it."""


def pair_forces(positions: np.ndarray, species: np.ndarray, box: np.ndarray) -> np.ndarray:
    """Return F_i = sum_j (z_i + z_j) w(r_ij) r_ij over r_ij < 0.3 nm and all images, w = -1000 (1 - r / 0.3)^2."""
    forces = np.zeros((len(positions), 3))
    for shift in np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3):
        vectors = positions[None] + shift @ box - positions[:, None]
        distances = np.linalg.norm(vectors, axis=-1)
        near = (distances < 0.3) & (distances > 1e-9)
        weights = np.where(near, -1000 * (1 - distances / 0.3) ** 2, 0) * (species[:, None] + species[None])
        forces += (weights[:, :, None] * vectors).sum(axis=1)
    return forces


def write_dataset(
    path: Path, splits: dict[str, str], n_frames: int = 2, seed: int = 0, n_atoms: int = 100, parts: bool = False
) -> Path:
    """Write a dataset with one entry per item of `splits` (entry to split) and every required field of the schema.

    With parts, made-up ones: the reciprocal and the MM part are smooth fields of their own, the solute's force is
    that of its pairs without box and water.
    """
    random = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        values: dict[str, Any] = {
            "format": schema.FORMAT,
            "schema_version": schema.SCHEMA_VERSION,
            "protocol": "thermal",
            "force_field": "analytic",
            "config": json.dumps({"label": {"mm_force_field": ["mm.xml"]}}),
            "versions": "{}",
            "content_sha256": f"{seed:064d}",
        }
        for attribute in (one for one in schema.declared(schema.FILE_ATTRIBUTES, schema.FORCES) if one.required):
            file.attrs[attribute.name] = values[attribute.name]
        for number, (name, split) in enumerate(splits.items()):
            entry = _entry(random, n_frames, n_atoms + 7 * number)
            if parts:
                entry |= _parts(entry)
            group = file.create_group(f"{schema.ENTRIES_GROUP}/{name}")
            for field in (field for field in schema.ENTRY_FIELDS if field.name in entry):
                group.create_dataset(field.name, data=np.asarray(entry[field.name]).astype(field.dtype))
            attributes = {
                "split": split,
                "cluster": f"c{number}",
                "sequence": "ACDEFGHIKLMN"[: 9 + number % 4],
                "source_file": f"{name}.cif",
                "source_sha256": "0" * 64,
                "seed": number,
                "pme_alpha": 3.0,
                "pme_grid": np.array([20, 20, 20], dtype=np.int32),
            }
            for attribute in (one for one in schema.declared(schema.ENTRY_ATTRIBUTES, schema.FORCES) if one.required):
                group.attrs[attribute.name] = attributes[attribute.name]
            if parts:
                group.attrs["reciprocal_alpha"] = 4.5
    return path


def _parts(entry: dict[str, Any]) -> dict[str, Any]:
    mask, positions, forces = entry["target_mask"], entry["positions"].astype(float), entry["forces"]
    alone = np.zeros_like(forces)
    for frame, places in enumerate(positions):
        alone[frame, mask] = pair_forces(places[mask], entry["species"][mask].astype(float), 100 * np.eye(3))
    return {
        "forces_reciprocal": 40 * np.sin(2 * positions + 1),
        "forces_minus_mm": 30 * np.cos(3 * positions),
        "forces_solute": alone,
        "energy_solute": np.zeros(len(forces)),
    }


def _entry(random: np.random.Generator, n_frames: int, n_atoms: int) -> dict[str, Any]:
    n_targets = n_atoms // 3
    species = np.where(
        np.arange(n_atoms) < n_targets, random.choice([1, 6, 7, 8], n_atoms), random.choice([1, 8], n_atoms)
    )
    species[-2:] = 11, 17
    target_mask = np.zeros(n_atoms, dtype=bool)
    target_mask[random.permutation(n_atoms - 2)[:n_targets]] = True  # not the leading atoms: order matters
    box = np.array([[SIDE, 0, 0], [0.2, SIDE * 1.05, 0], [-0.1, 0.15, SIDE * 1.1]])
    positions = (random.random((n_frames, n_atoms, 3)) * 1.6 - 0.3) @ box  # some lie outside the box
    positions = positions.astype(np.float32)
    forces = np.stack([pair_forces(frame.astype(float), species.astype(float), box) for frame in positions])
    return {
        "species": species,
        "atom_names": np.full(n_atoms, b"X"),
        "residue_names": np.full(n_atoms, b"ALA"),
        "residue_index": np.arange(n_atoms),
        "charges": np.zeros(n_atoms),
        "bonds": np.zeros((0, 2)),
        "target_mask": target_mask,
        "positions": positions,
        "box": np.broadcast_to(box, (n_frames, 3, 3)),
        "forces": forces,
        "energy": np.zeros(n_frames),
        "displacement": np.zeros(n_frames),
    }


def write_refinement_dataset(path: Path, splits: dict[str, str], seed: int = 0, n_atoms: int = 80) -> Path:
    """Write candidates whose vectors are, up to a factor, `pair_forces`; every fourth atom has no partner."""
    from data_pipeline.dataset.pack import PackedEntry, pack

    random = np.random.default_rng(seed)
    entries = []
    for number, (name, split) in enumerate(sorted(splits.items())):
        species = random.choice([6, 7, 8, 15], n_atoms).astype("u1")
        positions = random.uniform(0, 0.9, (1, n_atoms, 3)).astype("f4")
        partner = np.arange(n_atoms) % 4 != 3
        vectors = 1e-4 * pair_forces(positions[0].astype(float), species.astype(float), 100 * np.eye(3))[None]
        fields = {
            "species": species,
            "atom_names": np.full(n_atoms, b"X", "S4"),
            "residue_names": np.full(n_atoms, b"G", "S4"),
            "residue_index": (np.arange(n_atoms) // 10).astype("i4"),
            "bonds": np.zeros((0, 2), "i4"),
            "target_mask": partner,
            "positions": positions,
            "refinement": np.where(partner[:, None], vectors, 0).astype("f4"),
            "native_positions": np.where(partner[:, None], positions + vectors, 0).astype("f4"),
            "has_partner": partner,
            "chain_names": np.full(n_atoms, b"A", "S4"),
            "residue_numbers": (np.arange(n_atoms) // 10).astype("S8"),
        }
        attributes = {
            "split": split,
            "cluster": f"c{number}",
            "sequence": "ACGU"[number % 4] * 8,
            "source_file": f"{name}.pdb",
            "source_sha256": "0" * 64,
            "native_file": "native.pdb",
            "native_sha256": "1" * 64,
            "native_atoms": int(partner.sum()),
            "renamed_residues": 0,
            "missing_residues": 0,
            "degenerate_atoms": 0,
        }
        entries.append(PackedEntry(name, fields, attributes))
    header = {"task": schema.REFINEMENT, "protocol": "candidates", "config": "{}", "versions": "{}"}
    pack(entries, path, header)
    return path
