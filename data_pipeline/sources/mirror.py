"""A folder of PDB entries on this machine.

Two layouts are read: flat (``103l.pdb.gz``, ``103l.cif``, ``pdb_0000103l.cif.gz``) and the wwPDB's divided one
(``03/pdb103l.ent.gz``, ``03/103l.cif.gz``). Where an entry has several files, mmCIF goes before PDB.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from data_pipeline.errors import ConfigError

_NAME = re.compile(
    r"(?:pdb)?(?P<short>[0-9][a-z0-9]{3})\.(?P<a>cif|pdb|ent)(?:\.gz)?"
    r"|(?P<long>pdb_[a-z0-9]{8})(?:_xyz)?\.(?P<b>cif|pdb|ent)(?:\.gz)?"
)
_SUFFIX = re.compile(r".*\.(cif|pdb|ent)(\.gz)?")
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


class Mirror:
    """A folder of entry files.

    Parameters
    ----------
    root
        The folder.

    Attributes
    ----------
    ignored
        Names of the files that look like structures but are not named after an entry; a caller may tell the user.

    Raises
    ------
    ConfigError
        If the folder does not exist or holds no entry.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self.ignored: list[str] = []
        if not self.root.is_dir():
            raise ConfigError(f"the mirror {self.root} is not a folder; give the folder that holds the entry files.")
        ranked: dict[str, tuple[int, str, Path]] = {}
        for path in self._files():
            match = _NAME.fullmatch(path.name.lower())
            if match is None:
                if _SUFFIX.fullmatch(path.name.lower()):
                    self.ignored.append(path.name)
                continue
            entry_id = normalise_id(match.group("short") or match.group("long"))
            rank = 0 if (match.group("a") or match.group("b")) == "cif" else 1
            candidate = (rank, path.name, path)
            ranked[entry_id] = min(ranked.get(entry_id, candidate), candidate)
        self._paths = {entry_id: ranked[entry_id][2] for entry_id in sorted(ranked)}
        if not self._paths:
            below = [p.name for p in sorted(self.root.iterdir()) if p.is_dir()]
            hint = f" Did you mean one of its folders: {', '.join(below[:5])}?" if below else ""
            raise ConfigError(
                f"no entry in {self.root}: files must be called ID.cif, ID.pdb or pdbID.ent, plain or .gz.{hint}"
            )

    def _files(self) -> list[Path]:
        """Return the files of the folder and of its two-character folders, in order of name."""
        files: list[Path] = []
        for path in sorted(self.root.iterdir()):
            if path.is_file():
                files.append(path)
            elif path.is_dir() and len(path.name) == 2:
                files += [p for p in sorted(path.iterdir()) if p.is_file()]
        return files

    def ids(self) -> list[str]:
        """Return every entry's id, lower case and sorted."""
        return list(self._paths)

    def path(self, entry_id: str) -> Path:
        """Return the entry's file; the mmCIF one where there are two.

        Parameters
        ----------
        entry_id
            In any of the forms that `normalise_id` accepts.

        Raises
        ------
        ConfigError
            If the mirror has no such entry.
        """
        known = normalise_id(entry_id)
        if known not in self._paths:
            raise ConfigError(
                f"no entry {entry_id!r} in the mirror {self.root}, which holds {len(self._paths)}; "
                f"add its file ({known}.cif.gz from files.rcsb.org/download) or take the id out of the list."
            )
        return self._paths[known]

    def sha256(self, entry_id: str) -> str:
        """Return the SHA-256 of the entry's file as it lies there, still compressed if it is.

        Parameters
        ----------
        entry_id
            In any of the forms that `normalise_id` accepts.
        """
        with self.path(entry_id).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
