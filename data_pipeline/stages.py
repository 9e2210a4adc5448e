"""What a worker does with one entry at one stage: read files, call the stage, write one file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import EntryError
from data_pipeline.files import whole
from data_pipeline.label import describe, displace, label
from data_pipeline.prepare import prepare, read_prepared
from data_pipeline.sample import Frames, sample_minimized, sample_thermal

THERMAL_KEYS = (
    "temperature n_frames equilibration interval timestep friction equilibration_friction minimise_iterations"
).split()
MINIMIZED_KEYS = "flexible_tolerance constrained_tolerance max_iterations".split()


def prepare_entry(out: Path, path: str, settings: dict[str, Any], seed: int) -> None:
    """Write prepared/ID.cif; see `prepare.prepare`."""
    prepare(path, out, **settings, seed=seed)


def sample_entry(out: Path, prepared: str, settings: dict[str, Any], seed: int) -> None:
    """Write frames/ID.npz by the protocol that the settings name; see `sample`."""
    system = read_prepared(prepared)
    common = {key: settings[key] for key in ("cutoff", "force_field_files", "platform")}
    if settings["protocol"] == "thermal":
        frames = sample_thermal(system, **{key: settings[key] for key in THERMAL_KEYS}, **common, seed=seed)
    else:
        frames = sample_minimized(system, **{key: settings[key] for key in MINIMIZED_KEYS}, **common)
    save_arrays(out, {"positions": frames.positions, "box": frames.box, "temperature": frames.temperature})


def label_entry(out: Path, prepared: str, frames: str, settings: dict[str, Any], seed: int) -> None:
    """Write labelled/ID.npz: every field of the dataset and the PME parameters; see `label.label`."""
    topology = read_prepared(prepared).topology
    read = read_frames(frames)
    settings = dict(settings)
    copies, largest = settings.pop("displaced_copies"), settings.pop("displacement")
    description = describe(topology)
    positions, displacement = displace(
        read.positions, description["target_mask"], copies=copies, largest=largest, seed=seed
    )
    box = np.tile(read.box, (1 + copies, 1, 1))
    labels = label(topology, positions, box, **settings)
    save_arrays(
        out,
        {
            **description,
            "charges": labels.charges,
            "positions": positions,
            "box": box,
            "displacement": displacement,
            "forces": labels.forces,
            "energy": labels.energy,
            "pme_alpha": np.float64(labels.pme_alpha),
            "pme_grid": labels.pme_grid,
            "temperature": read.temperature,
        },
    )


def read_frames(path: str | Path) -> Frames:
    """Read frames/ID.npz.

    Raises
    ------
    EntryError
        Of kind unreadable.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return Frames(arrays["positions"], arrays["box"], arrays["temperature"])
    except (OSError, ValueError, KeyError) as error:
        raise EntryError("unreadable", f"{path} holds no frames: {error}. Run sample again.") from error


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write an .npz file that appears complete or not at all; the same arrays give the same bytes."""
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
