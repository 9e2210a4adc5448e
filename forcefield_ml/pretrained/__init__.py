"""Models that ship with the package, each with its card inside and its recipe beside it.

`forcefield_ml.load("amber14-fast")` loads one by name; a file of that name in the working directory does not matter,
as names carry no suffix.
"""

from __future__ import annotations

from pathlib import Path

from forcefield_ml.errors import ModelFileError, closest

FOLDER = Path(__file__).resolve().parent

DEFAULT = "amber14-fast"
"""The model of commands that are not told which."""

LICENCE = "MIT, as the package it ships with; it learnt from PDB entries, which are in the public domain (CC0 1.0)"

FURTHER = {
    "rna-refinement": ", and from the models of RNA-Puzzles, which come without a licence; cite Magnus et al., Nucleic "
    "Acids Research 48, 576 (2020)"
}
"""Name of a model that ships to what else it learnt from."""


def names() -> list[str]:
    """Return the names of the models that ship."""
    return sorted(path.stem for path in FOLDER.glob("*.pt"))


def licence(name: str) -> str:
    """Return under which licence a model ships, and whose data it learnt from."""
    return LICENCE + FURTHER.get(name, "")


def path(name: str) -> Path:
    """Return the file of a model that ships.

    Parameters
    ----------
    name
        One of `names`.

    Raises
    ------
    ModelFileError
        If there is none of this name.
    """
    if name not in names():
        raise ModelFileError(
            f"no model {name!r} ships with this package.{closest(name, names())} For a file of your own give its path, "
            "such as ./model.pt"
        )
    return FOLDER / f"{name}.pt"


def resolve(path_or_name: Path | str) -> Path:
    """Return a path as it is, or the file of a model that ships where its name is given instead.

    Parameters
    ----------
    path_or_name
        A path; what has no suffix and is no file is taken for a name.

    Raises
    ------
    ModelFileError
        If no model of this name ships.
    """
    given = Path(path_or_name)
    return path(str(given)) if not given.suffix and not given.is_file() else given
