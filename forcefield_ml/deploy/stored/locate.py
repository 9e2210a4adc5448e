"""Where a stored System finds its model again: by the path it was made with, by a name, or by its SHA-256 elsewhere."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from forcefield_ml import pretrained
from forcefield_ml.errors import ModelFileError

VARIABLE = "FORCEFIELD_ML_MODELS"
"""Environment variable: folders or files, separated as in PATH, where models are looked for."""

SHIPPED = "pretrained:"
"""Begins what is stored instead of a path for a model that ships with the package."""


def record(path: Path) -> str:
    """Return what is stored of a model's place: its absolute path, or its name if it ships with the package.

    Parameters
    ----------
    path
        The model.pt.
    """
    whole = path.resolve()
    return f"{SHIPPED}{whole.stem}" if whole.parent == pretrained.FOLDER else str(whole)


def locate(recorded: str, sha256: str, places: Iterable[Path | str] = ()) -> Path:
    """Return the model file with a certain SHA-256.

    Looked at in this order: what was recorded; `places`; the folders and files in the environment variable
    `VARIABLE`. In a folder the file of the recorded name comes first, then every other ``*.pt``.

    Parameters
    ----------
    recorded
        Of `record`.
    sha256
        In hexadecimal.
    places
        Folders or files.

    Raises
    ------
    ModelFileError
        If none of them is it; says what is at each place and how to point to another.
    """
    looked: list[str] = []
    seen: set[Path] = set()
    for path in _candidates(recorded, places):
        if path in seen:
            continue
        seen.add(path)
        found = _sha256(path)
        if found == sha256:
            return path
        looked.append(f"{path} ({f'another file, SHA-256 {found[:16]}...' if found else 'nothing there'})")
    at_its_place = "another file" in looked[0] if looked else False
    raise ModelFileError(
        (
            f"the file at {recorded} is not the model that this force was made with"
            if at_its_place
            else f"the model of this force is not at {recorded}"
        )
        + f"; its SHA-256 is {sha256[:16]}.... Looked at: {'; '.join(looked) or 'nothing'}. Put the original file "
        f"there, or tell where it is: forcefield_ml.read_system(xml, models=[folder or file]), or the environment "
        f"variable {VARIABLE}=folder; or make the force again from the new model"
    )


def _candidates(recorded: str, places: Iterable[Path | str]) -> Iterator[Path]:
    if recorded.startswith(SHIPPED):
        shipped = recorded.removeprefix(SHIPPED)
        yield pretrained.FOLDER / f"{Path(shipped).name}.pt"
        name = f"{Path(shipped).name}.pt"
    else:
        yield Path(recorded)
        name = recorded.replace("\\", "/").rpartition("/")[2]
    variable = [part for part in os.environ.get(VARIABLE, "").split(os.pathsep) if part]
    for place in map(Path, [*places, *variable]):
        if place.is_dir():
            yield place / name
            yield from sorted(place.glob("*.pt"))
        else:
            yield place


def _sha256(path: Path) -> str:
    """Return the hash of a file, or nothing if there is none that can be read."""
    try:
        if not path.is_file():
            return ""
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""
