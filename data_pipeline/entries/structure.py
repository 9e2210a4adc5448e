"""Read an entry's file, PDB or mmCIF, plain or gzipped, and say plainly what is wrong with one that cannot be read.

The format is taken from the content, not from the name. The parsers are lenient (gemmi reads ``1x.5`` as 1, and
drops a line whose record it does not know), so what they would pass over is checked here first.
"""

from __future__ import annotations

import gzip
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gemmi

from data_pipeline.entries.plausible import check_coordinates
from data_pipeline.errors import EntryError

MAX_BYTES = 64 << 20
"""Largest file that is unpacked; twenty models of 200 residues have a tenth of it, and mmCIF grows when parsed."""

_HEAD = 1 << 16
"""Bytes at the start in which a file shows its format."""

_PDB_RECORDS = frozenset(
    "HEADER OBSLTE TITLE SPLIT CAVEAT COMPND SOURCE KEYWDS EXPDTA NUMMDL MDLTYP AUTHOR REVDAT SPRSDE JRNL REMARK DBREF "
    "DBREF1 DBREF2 SEQADV SEQRES MODRES HET HETNAM HETSYN FORMUL HELIX SHEET TURN SSBOND LINK LINKR HYDBND SLTBRG "
    "CISPEP SITE CRYST1 ORIGX1 ORIGX2 ORIGX3 SCALE1 SCALE2 SCALE3 MTRIX1 MTRIX2 MTRIX3 TVECT FTNOTE MODEL ATOM ANISOU "
    "SIGATM SIGUIJ HETATM TER ENDMDL CONECT MASTER END".split()
)
"""The records of all versions of the format."""

_PROSE = frozenset("TITLE CAVEAT COMPND SOURCE KEYWDS AUTHOR REVDAT JRNL REMARK HETSYN FTNOTE TVECT".split())
"""Records of text in which old files have letters that are not ASCII; nothing is read from them by column."""

_PDB_START = re.compile(rb"^(HEADER|ATOM  |HETATM|SEQRES|CRYST1|REMARK|TITLE )", re.MULTILINE)
_CIF_BLOCK = re.compile(rb"\A(?:\s|#[^\n]*\n)*data_", re.IGNORECASE)
_USUAL = re.compile(r"(?:(?= *-?\d+\.).{4}\.\d{3}){3}")
_NUMBER = re.compile(r" *-?\d+\.\d* *")


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
            "too_large",
            f"{path.name}: more than {MAX_BYTES >> 20} MiB when unpacked; entries of that size are not read.",
        )
    if not data.strip():
        raise EntryError("empty", f"{path.name}: the file is empty; fetch it again.")
    return data


def read_entry(path: Path | str, *, archive: bool = True) -> Entry:
    """Read one entry.

    A file that claims to come from the archive must have the archive's last line (``END`` in PDB, ``#`` in mmCIF):
    a file cut at the end of a line parses without complaint otherwise.

    Parameters
    ----------
    path
        A PDB or mmCIF file, plain or gzipped.
    archive
        False for files of any program: some write a header and their own records, such as scores, behind it.

    Raises
    ------
    EntryError
        Of kind ``empty``, ``html``, ``truncated``, ``too_large`` or ``unreadable``, or as
        `plausible.check_coordinates`.
    """
    path = Path(path)
    data = read_bytes(path)
    if data[:_HEAD].removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"<"):
        raise EntryError(
            "html", f"{path.name}: a web page or XML, not a structure; the download failed, fetch it again."
        )
    is_cif = _CIF_BLOCK.match(data[:_HEAD]) is not None
    if not is_cif and not _PDB_START.search(data[:_HEAD]):
        raise EntryError("unreadable", f"{path.name}: neither PDB nor mmCIF; it starts with {data[:40]!r}.")
    archived = archive and _from_archive(data, is_cif)
    whole = _ends_whole(data, is_cif)
    try:
        entry = _read_mmcif(data) if is_cif else _read_pdb(data, archived)
    except (RuntimeError, ValueError, IndexError) as error:
        kind = "unreadable" if whole else "truncated"
        raise EntryError(kind, f"{path.name}: does not parse ({str(error)[:200]}); fetch it again.") from error
    if archived and not whole:
        last = data.rstrip().rsplit(b"\n", 1)[-1][:60].decode("latin-1")
        raise EntryError("truncated", f"{path.name}: the end is missing, the last line is {last!r}; fetch it again.")
    if len(entry.structure) == 0 or entry.structure[0].count_atom_sites() == 0:
        raise EntryError("empty", f"{path.name}: no coordinates in it.")
    try:
        check_coordinates(entry.structure)
    except EntryError as error:
        raise EntryError(error.kind, f"{path.name}: {error}") from None
    return entry


def _read_mmcif(data: bytes) -> Entry:
    document = gemmi.cif.read_string(data.decode("utf-8", "replace"))
    if any(block.find_loop("_atom_site.id") for block in document[1:]):
        raise ValueError(f"{len(document)} data blocks with coordinates; an entry is one")
    block = document[0]
    return Entry(gemmi.make_structure_from_block(block), block, ())


def _read_pdb(data: bytes, archived: bool) -> Entry:
    text = data.decode("latin-1")
    lines = tuple(line.rstrip("\r") for line in text.split("\n"))  # splitlines would also break at form feeds
    _check_lines(lines, archived)
    return Entry(gemmi.read_pdb_string(data), None, lines)


def _check_lines(lines: tuple[str, ...], archived: bool) -> None:
    """Refuse what gemmi passes over: unknown records, binary bytes, what is no coordinate, lines after END."""
    ended = False
    for number, line in enumerate(lines, start=1):
        record = line[:6].rstrip()
        if ended and record:
            raise ValueError(f"line {number} comes after END: {line[:60]!r}")
        if "\0" in line or (record not in _PROSE and not (line.isascii() and line.isprintable())):
            raise ValueError(f"line {number} has bytes that are no text: {line[:80]!r}")
        if record in ("ATOM", "HETATM"):
            usual = _USUAL.fullmatch(line[30:54])
            if not usual and not all(_NUMBER.fullmatch(line[k : k + 8]) for k in (30, 38, 46)):
                raise ValueError(f"line {number} has no three coordinates in columns 31 to 54: {line[:80]!r}")
        elif archived and record and record not in _PDB_RECORDS:
            raise ValueError(f"line {number} has no known record: {line[:60]!r}")
        ended = ended or record == "END"


def _from_archive(data: bytes, is_cif: bool) -> bool:
    """Tell whether a file is written as the archive does: with a header, with ``#`` between mmCIF categories."""
    if is_cif:
        return re.match(rb"data_\S+\s*\n#\s*\n", data[:_HEAD]) is not None
    return data.startswith(b"HEADER") or re.search(rb"^SEQRES", data, re.MULTILINE) is not None


def _ends_whole(data: bytes, is_cif: bool) -> bool:
    last = data[-_HEAD:].rstrip().rsplit(b"\n", 1)[-1].strip()
    return last == b"#" if is_cif else last.startswith(b"END")
