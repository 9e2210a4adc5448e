"""A data set in numbers: counts, forces, and the errors that a model must beat."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.check import open_dataset, read_entries
from data_pipeline.schema import SPLITS

MEV_PER_ANGSTROM = 1.0364269656
"""1 kJ/mol/nm in meV/Å; the same as in forcefield_ml.units, which must not be imported here (a test compares)."""


def datasheet(path: str | Path) -> dict[str, Any]:
    """Summarise a dataset.

    Parameters
    ----------
    path
        A dataset.h5.

    Returns
    -------
    ``protocol``, ``force_field``, ``content_sha256`` and, under ``splits`` by split and ``all``: ``entries``,
    ``clusters``, ``residues``, ``frames`` (as sampled), ``displaced`` (frames with displaced atoms, which no number
    below counts), ``atoms``, ``targets`` (per frame, summed over entries), ``mean_force``,
    ``rms_force`` and ``max_force`` over target atoms, and the naive errors ``zero_predictor`` (tensor) and
    ``mean_magnitude_predictor`` (magnitude), all in meV/Å, null for an empty split.

    Raises
    ------
    SchemaError
        As `open_dataset`.
    """
    magnitudes: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    counts = {
        split: {"entries": 0, "residues": 0, "frames": 0, "displaced": 0, "atoms": 0, "targets": 0} for split in SPLITS
    }
    clusters: dict[str, set[str]] = {split: set() for split in SPLITS}
    with open_dataset(path) as file:
        sheet = {name: str(file.attrs[name]) for name in ("protocol", "force_field", "content_sha256")}
        for entry in read_entries(file):
            split, mask = str(entry.attributes["split"]), entry.fields["target_mask"]
            forces = entry.fields["forces"]
            if "displacement" in entry.fields:
                forces = forces[entry.fields["displacement"] == 0]
                counts[split]["displaced"] += len(entry.fields["forces"]) - len(forces)
            forces = forces[:, mask]
            magnitudes[split].append((np.linalg.norm(forces, axis=-1) * MEV_PER_ANGSTROM).ravel())
            clusters[split].add(str(entry.attributes["cluster"]))
            count = counts[split]
            count["entries"] += 1
            count["residues"] += len(np.unique(entry.fields["residue_index"][mask]))
            count["frames"] += len(forces)
            count["atoms"] += len(mask)
            count["targets"] += int(mask.sum())
    splits: dict[str, Any] = {}
    for split in SPLITS:
        splits[split] = {**counts[split], "clusters": len(clusters[split]), **_forces(magnitudes[split])}
    total = {key: sum(counts[split][key] for split in SPLITS) for key in counts["train"]}
    everything = [values for split in SPLITS for values in magnitudes[split]]
    splits["all"] = {**total, "clusters": len(set().union(*clusters.values())), **_forces(everything)}
    return {**sheet, "splits": splits}


def _forces(parts: list[np.ndarray]) -> dict[str, float | None]:
    if not parts:
        names = ("mean_force", "rms_force", "max_force", "zero_predictor", "mean_magnitude_predictor")
        return dict.fromkeys(names)
    values = np.concatenate(parts).astype(np.float64)
    mean = float(values.mean())
    return {
        "mean_force": mean,
        "rms_force": float(np.sqrt((values**2).mean())),
        "max_force": float(values.max()),
        "zero_predictor": mean,
        "mean_magnitude_predictor": float(np.abs(values - mean).mean()),
    }
