"""What a worker does with one entry at one stage: read files, call the stage, write one file."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from data_pipeline.errors import EntryError
from data_pipeline.files import whole
from data_pipeline.labels.label import describe, displace, label
from data_pipeline.labels.potential import Potential
from data_pipeline.systems.prepare import prepare, read_prepared
from data_pipeline.systems.sample import Frames, relax, sample_minimized, sample_thermal


def prepare_entry(out: Path, path: str, settings: dict[str, Any], seed: int) -> None:
    """Write prepared/ID.cif; see `prepare.prepare`."""
    prepare(path, out, **settings, seed=seed)


def relax_entry(out: Path, prepared: str, settings: dict[str, Any]) -> None:
    """Write relaxed/ID.npz; see `sample.relax`."""
    save_arrays(out, {"positions": relax(read_prepared(prepared), **settings)})


def sample_entry(
    out: Path, prepared: str, relaxed: str, protocol: str, settings: dict[str, Any], seed: int | None = None
) -> None:
    """Write PROTOCOL/frames/ID.npz; see `sample`."""
    system = read_prepared(prepared)
    (start,) = read_arrays(relaxed, "positions")
    if protocol == "thermal":
        frames = sample_thermal(system, start, **settings, seed=seed or 0)
    else:
        frames = sample_minimized(system, start, **settings)
    save_arrays(out, asdict(frames))


def label_entry(out: Path, prepared: str, frames: str, settings: dict[str, Any], seed: int) -> None:
    """Write PROTOCOL/labelled/ID.npz: every field of the dataset and the PME parameters; see `label.label`."""
    topology = read_prepared(prepared).topology
    read = read_frames(frames)
    settings = dict(settings)
    copies, largest, how = (settings.pop(key) for key in ("displaced_copies", "displacement", "displace"))
    whose, shift = settings.pop("displaced_atoms"), settings.pop("displaced_molecules")
    potential = settings.pop("potential")
    settings["potential"] = None if potential is None else Potential(**potential)
    settings["wanted"] = settings.pop("parts")
    description = describe(topology)
    solute = description["target_mask"]
    positions, displacement = displace(
        read.positions,
        np.ones_like(solute) if whose == "all" else solute,
        copies=copies,
        largest=largest,
        uneven=how == "uneven",
        molecules=np.where(solute, -1, description["residue_index"]),
        shift=shift,
        seed=seed,
    )
    box = np.tile(read.box, (1 + copies, 1, 1))
    labels = label(topology, positions, box, droppable=displacement > 0, **settings)
    kept = labels.kept
    save_arrays(
        out,
        {
            **description,
            "charges": labels.charges,
            "positions": positions[kept],
            "box": box[kept],
            "displacement": displacement[kept],
            "forces": labels.forces,
            "energy": labels.energy,
            "pme_alpha": np.float64(labels.pme_alpha),
            "pme_grid": labels.pme_grid,
            "temperature": np.tile(read.temperature, 1 + copies)[kept],
            "kinetic_temperature": np.tile(read.kinetic_temperature, 1 + copies)[kept],
            "dropped_copies": np.int64((~kept).sum()),
            **labels.parts,
        },
    )


def read_frames(path: str | Path) -> Frames:
    """Read PROTOCOL/frames/ID.npz.

    Raises
    ------
    EntryError
        Of kind unreadable.
    """
    return Frames(*read_arrays(path, *(field.name for field in fields(Frames))))


def read_arrays(path: str | Path, *names: str) -> list[np.ndarray]:
    """Read arrays by name from a file written by `save_arrays`.

    Raises
    ------
    EntryError
        Of kind unreadable.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise EntryError("unreadable", f"{path} lacks {', '.join(names)}: {error}. Run its stage again.") from error


def save_arrays(path: Path, arrays: dict[str, Any]) -> None:
    """Write an .npz file that appears complete or not at all; the same arrays give the same bytes."""
    with whole(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
