"""A folder of PDB entries on this machine.

Three layouts are read: flat (``103l.pdb.gz``, ``103l.cif``, ``pdb_0000103l.cif.gz``), the wwPDB's divided one
(``03/pdb103l.ent.gz``, ``03/103l.cif.gz``) and its coming one with a folder for each entry
(``03/pdb_0000103l/pdb_0000103l.cif.gz``, also with versions, ``pdb_0000103l_xyz_v1-2.cif.gz``). Upper case serves,
too. Where an entry has several files, mmCIF goes before PDB, and of versions the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_pipeline.errors import ConfigError, EntryError
from data_pipeline.ledger import sha256
from data_pipeline.sources.ids import is_id, normalise_id

_NAME = re.compile(
    r"(?:(?:pdb)?(?P<short>[0-9][a-z0-9]{3})|(?P<long>pdb_[a-z0-9]{8})(?:_xyz(?:_v(?P<major>\d+)-(?P<minor>\d+))?)?)"
    r"\.(?P<format>cif|pdb|ent)(?:\.gz)?"
)
_SUFFIX = re.compile(r".*\.(cif|pdb|ent)(\.gz)?")


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
        ranked: dict[str, tuple[bool, int, int, str, Path]] = {}
        for path in self._files():
            match = _NAME.fullmatch(path.name.lower())
            if match is None:
                if _SUFFIX.fullmatch(path.name.lower()):
                    self.ignored.append(path.name)
                continue
            entry_id = normalise_id(match.group("short") or match.group("long"))
            # A name without a version is that of the archive's current file.
            major, minor = (-int(match.group(part) or 1_000_000) for part in ("major", "minor"))
            candidate = (match.group("format") != "cif", major, minor, path.name, path)
            ranked[entry_id] = min(ranked.get(entry_id, candidate), candidate)
        self._paths = {entry_id: ranked[entry_id][-1] for entry_id in sorted(ranked)}
        if not self._paths:
            below = [p.name for p in sorted(self.root.iterdir()) if p.is_dir()]
            hint = f" Did you mean one of its folders: {', '.join(below[:5])}?" if below else ""
            raise ConfigError(
                f"no entry in {self.root}: files must be called ID.cif, ID.pdb or pdbID.ent, plain or .gz.{hint}"
            )

    def _files(self) -> list[Path]:
        """Return the files of the folder, of its two-character folders, and of the entries' folders in these."""
        files: list[Path] = []
        folders = [self.root]
        while folders:
            for path in sorted(folders.pop().iterdir()):
                if path.is_file():
                    files.append(path)
                elif path.is_dir() and (len(path.name) == 2 or is_id(path.name.lower())):
                    folders.append(path)
        return files

    def ids(self) -> list[str]:
        """Return every entry's id, lower case and sorted."""
        return list(self._paths)

    def ahead(self, ids: Iterable[str]) -> Iterator[str]:
        """Yield the ids: the files are there."""
        return iter(ids)

    def path(self, entry_id: str) -> Path:
        """Return the entry's file; the mmCIF one where there are two.

        Parameters
        ----------
        entry_id
            In any of the forms that `normalise_id` accepts.

        Raises
        ------
        EntryError
            Of kind ``not_found`` where the mirror has no such entry.
        """
        known = normalise_id(entry_id)
        if known not in self._paths:
            raise EntryError(
                "not_found",
                f"no entry {entry_id!r} in the mirror {self.root}, which holds {len(self._paths)}; "
                f"add its file ({known}.cif.gz from files.rcsb.org/download) or take the id out of the list.",
            )
        return self._paths[known]

    def sha256(self, entry_id: str) -> str:
        """Return the SHA-256 of the entry's file as it lies there, still compressed if it is.

        Parameters
        ----------
        entry_id
            In any of the forms that `normalise_id` accepts.
        """
        return sha256(self.path(entry_id))

    def describe(self) -> str:
        """Return where the entries come from, in one line."""
        return f"{len(self._paths)} entries in the folder {self.root}"
