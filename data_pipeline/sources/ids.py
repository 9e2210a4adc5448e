"""The names of entries: both forms of an id, and files that list them."""

from __future__ import annotations

import re
from pathlib import Path

from data_pipeline.errors import ConfigError

_ID = re.compile(r"[0-9][a-z0-9]{3}|pdb_[a-z0-9]{8}")
_LONG_OF_SHORT = re.compile(r"pdb_0000([0-9][a-z0-9]{3})")


def normalise_id(entry_id: str) -> str:
    """Return an entry's id in the form used throughout: lower case, four characters wherever they are enough.

    Parameters
    ----------
    entry_id
        ``1UBQ``, ``1ubq``, or ``pdb_00001ubq``, which all name the same entry.
    """
    lower = entry_id.strip().lower()
    match = _LONG_OF_SHORT.fullmatch(lower)
    return match.group(1) if match else lower


def is_id(entry_id: str) -> bool:
    """Tell whether this is an id as `normalise_id` returns it, and so safe as part of a file name or an address."""
    return _ID.fullmatch(entry_id) is not None


def read_ids(path: Path | str) -> list[str]:
    """Read a list of entries: ids parted by spaces, commas or new lines; from ``#`` to the end of a line is a remark.

    Parameters
    ----------
    path
        A text file.

    Returns
    -------
    list[str]
        Each id once, in the form of `normalise_id`, sorted.

    Raises
    ------
    ConfigError
        If the file cannot be read, holds a word that is no id, or no id at all.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the list of entries {path}: {error}") from error
    found = set()
    for number, line in enumerate(lines, start=1):
        for word in line.partition("#")[0].replace(",", " ").split():
            entry = normalise_id(word)
            if not is_id(entry):
                raise ConfigError(
                    f"{path}, line {number}: {word!r} is no entry's id. Allowed: four characters that begin with a "
                    "digit (1ubq) or pdb_ and eight (pdb_00001ubq), parted by spaces, commas or new lines."
                )
            found.add(entry)
    if not found:
        raise ConfigError(f"no id in {path}; write one a line, such as 1ubq.")
    return sorted(found)
