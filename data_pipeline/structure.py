"""Read an entry's file, PDB or mmCIF, plain or gzipped, and say plainly what is wrong with one that cannot be read.

The format is taken from the content, not from the name.
"""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gemmi

from data_pipeline.errors import EntryError

MAX_BYTES = 1 << 30
"""Largest file that is unpacked; the largest PDB entries have about half of it."""

_PDB_RECORD = re.compile(rb"^(HEADER|ATOM  |HETATM|SEQRES|CRYST1|REMARK|TITLE )", re.MULTILINE)
_CIF_BLOCK = re.compile(rb"\A(?:\s|#[^\n]*\n)*data_", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """An entry as read.

    Parameters
    ----------
    structure
        Header and coordinates, entities not yet completed for PDB files.
    block
        The mmCIF block; None for a PDB file.
    lines
        The lines of a PDB file; empty for mmCIF.
    """

    structure: gemmi.Structure
    block: gemmi.cif.Block | None
    lines: tuple[str, ...]

    @property
    def format(self) -> Literal["mmcif", "pdb"]:
        """The format of the file."""
        return "pdb" if self.block is None else "mmcif"


def read_bytes(path: Path) -> bytes:
    """Return the content of a file, unpacked if it is gzipped.

    Raises
    ------
    EntryError
        If the file is missing, empty, damaged or far too large.
    """
    try:
        with path.open("rb") as raw:
            gzipped = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rb") if gzipped else path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except EOFError as error:
        raise EntryError("truncated", f"{path.name}: the gzip file ends too early; fetch it again.") from error
    except (OSError, zlib.error) as error:
        raise EntryError("unreadable", f"{path.name}: cannot be read ({error}); fetch it again.") from error
    if len(data) > MAX_BYTES:
        raise EntryError(
            "unreadable", f"{path.name}: more than {MAX_BYTES} bytes when unpacked, no entry has that many."
        )
    if not data.strip():
        raise EntryError("empty", f"{path.name}: the file is empty; fetch it again.")
    return data


def read_entry(path: Path | str) -> Entry:
    """Read one entry.

    A file that claims to come from the archive must have the archive's last line (``END`` in PDB, ``#`` in mmCIF):
    a file cut at the end of a line parses without complaint otherwise.

    Parameters
    ----------
    path
        A PDB or mmCIF file, plain or gzipped.

    Raises
    ------
    EntryError
        Of kind ``empty``, ``html``, ``truncated`` or ``unreadable``.
    """
    path = Path(path)
    data = read_bytes(path)
    if re.match(rb"\s*<(!doctype|html|\?xml)", data, re.IGNORECASE):
        raise EntryError(
            "html", f"{path.name}: a web page or XML, not a structure; the download failed, fetch it again."
        )
    try:
        if _CIF_BLOCK.match(data):
            entry = _read_mmcif(data)
        elif _PDB_RECORD.search(data):
            entry = _read_pdb(data)
        else:
            raise EntryError("unreadable", f"{path.name}: neither PDB nor mmCIF; it starts with {data[:40]!r}.")
    except (RuntimeError, ValueError, IndexError) as error:
        kind = "unreadable" if _ends_whole(data) else "truncated"
        raise EntryError(kind, f"{path.name}: does not parse ({error}); fetch it again.") from error
    if _from_archive(data) and not _ends_whole(data):
        last = data.rstrip().rsplit(b"\n", 1)[-1][:60].decode("latin-1")
        raise EntryError("truncated", f"{path.name}: the end is missing, the last line is {last!r}; fetch it again.")
    if len(entry.structure) == 0 or entry.structure[0].count_atom_sites() == 0:
        raise EntryError("empty", f"{path.name}: no coordinates in it.")
    return entry


def _read_mmcif(data: bytes) -> Entry:
    block = gemmi.cif.read_string(data.decode("utf-8", "replace"))[0]
    return Entry(gemmi.make_structure_from_block(block), block, ())


def _read_pdb(data: bytes) -> Entry:
    text = data.decode("latin-1")
    return Entry(gemmi.read_pdb_string(text), None, tuple(text.splitlines()))


def _from_archive(data: bytes) -> bool:
    """Tell whether a file is written as the archive does: with a header, with ``#`` between mmCIF categories."""
    if _CIF_BLOCK.match(data):
        return re.match(rb"data_\S+\s*\n#\s*\n", data) is not None
    return data.startswith(b"HEADER") or re.search(rb"^SEQRES", data, re.MULTILINE) is not None


def _ends_whole(data: bytes) -> bool:
    last = data.rstrip().rsplit(b"\n", 1)[-1].strip()
    return last == b"#" if _CIF_BLOCK.match(data) else last.startswith(b"END")
