"""Sound entry files and all the ways to damage them, by seed."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gemmi


@dataclass(frozen=True)
class Sound:
    """A sound file.

    Parameters
    ----------
    path
        Where it lies, gzipped.
    packed, text
        Its bytes, as they lie there and unpacked.
    """

    path: Path
    packed: bytes
    text: bytes

    @property
    def is_cif(self) -> bool:
        """Whether it is mmCIF."""
        return self.path.name.endswith(".cif.gz")


@dataclass(frozen=True)
class Damaged:
    """A damaged file.

    Parameters
    ----------
    kind
        Key of `DAMAGES`.
    sound
        What it was.
    data
        What it is.
    n_bytes
        Bytes that differ without a pattern, as disks and memory leave them; 0 for any other damage.
    suffix
        Of its name.
    """

    kind: str
    sound: Sound
    data: bytes
    n_bytes: int
    suffix: str


def read_sound(path: Path) -> Sound:
    """Return a sound file."""
    return Sound(path, path.read_bytes(), gzip.decompress(path.read_bytes()))


def damage(kind: str, sound: Sound, seed: int) -> Damaged:
    """Return a file damaged in one of the ways of `DAMAGES`; the same seed gives the same bytes."""
    rng = random.Random(f"{kind} {sound.path.name} {seed}")
    data, n_bytes = sound.text, 0
    while data in (sound.text, sound.packed):  # a damage may find nothing to change
        made = DAMAGES[kind](rng, sound)
        data, n_bytes = made if isinstance(made, tuple) else (made, 0)
        if kind == "other extension":
            break
    if data[:2] != b"\x1f\x8b" and rng.random() < 0.5:
        data = gzip.compress(data, 1, mtime=0)
    suffix = rng.choice((".pdb", ".cif.gz", ".ent")) if rng.random() < 0.1 else "".join(sound.path.suffixes)
    return Damaged(kind, sound, data, n_bytes, suffix)


def _flip(rng: random.Random, data: bytes, places: range | list[int] | None = None) -> tuple[bytes, int]:
    changed = bytearray(data)
    chosen = rng.sample(places or range(len(data)), rng.choice((1, 1, 2, 8)))
    for place in chosen:
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed), len(chosen)


def _lines_at(text: bytes, pattern: bytes) -> list[int]:
    """Return the positions of all bytes in lines that match."""
    return [k for match in re.finditer(rb"^" + pattern + rb"[^\n]*", text, re.MULTILINE) for k in range(*match.span())]


ATOM = rb"(?:ATOM |HETATM)"


def _flip_atoms(rng: random.Random, sound: Sound) -> tuple[bytes, int]:
    return _flip(rng, sound.text, _lines_at(sound.text, ATOM))


def _flip_sequence(rng: random.Random, sound: Sound) -> tuple[bytes, int]:
    pattern = rb"1 \d+ +[A-Z]{3} n" if sound.is_cif else rb"SEQRES"
    return _flip(rng, sound.text, _lines_at(sound.text, pattern))


def _edit_atoms(sound: Sound, edit: Callable[[int, list[str]], list[str]]) -> bytes:
    """Apply a function to (number, fields) of each atom: x, y, z and occupancy."""
    lines = sound.text.decode("latin-1").split("\n")
    tags = re.findall(r"^_atom_site\.(\w+)", sound.text.decode("latin-1"), re.MULTILINE)
    where = [tags.index(name) for name in ("Cartn_x", "Cartn_y", "Cartn_z", "occupancy")] if sound.is_cif else []
    number = 0
    for k, line in enumerate(lines):
        if not line.startswith(("ATOM ", "HETATM")):
            continue
        if sound.is_cif:
            values = line.split()
            new = edit(number, [values[column] for column in where])
            for column, value in zip(where, new, strict=True):
                values[column] = value
            lines[k] = " ".join(values)
        else:
            old = [line[30:38], line[38:46], line[46:54], line[54:60]]
            new = edit(number, [value.strip() for value in old])
            lines[k] = line[:30] + "".join(v[:8].rjust(8) for v in new[:3]) + new[3][:6].rjust(6) + line[60:]
        number += 1
    return "\n".join(lines).encode("latin-1")


def _scaled(sound: Sound, factor: float) -> bytes:
    return _edit_atoms(sound, lambda _, f: [f"{float(x) * factor:.3f}" for x in f[:3]] + f[3:])


def _absurd(rng: random.Random, sound: Sound) -> bytes:
    value = rng.choice(("nan", "inf", "-inf", "1e30", "1e308", "?", "9999.999", "-999.999", "1.2.3", "--1.000"))
    share = rng.choice((0.002, 0.1, 1.0))
    return _edit_atoms(sound, lambda _, f: [value if rng.random() < share else x for x in f[:3]] + f[3:])


def _one_point(rng: random.Random, sound: Sound) -> bytes:
    point = rng.choice((["0.000"] * 3, [f"{rng.uniform(-99, 99):.3f}" for _ in range(3)]))
    return _edit_atoms(sound, lambda _, f: [*point, f[3]])


def _mixed_up(rng: random.Random, sound: Sound) -> bytes:
    """Give every atom the place of another one."""
    places: list[list[str]] = []
    _edit_atoms(sound, lambda _, f: places.append(f[:3]) or f)  # type: ignore[func-returns-value]
    rng.shuffle(places)
    return _edit_atoms(sound, lambda n, f: places[n] + f[3:])


def _one_away(rng: random.Random, sound: Sound) -> bytes:
    """Put one atom of the chain far away."""
    far, target = rng.choice((20.0, 300.0, 2000.0)), rng.randrange(200)
    return _edit_atoms(sound, lambda n, f: [f"{float(f[0]) + far * (n == target):.3f}", *f[1:]])


def _occupancy(rng: random.Random, sound: Sound) -> bytes:
    value, share = rng.choice(("0.00", "-1.00", "-0.50")), rng.choice((0.05, 1.0))
    return _edit_atoms(sound, lambda _, f: [*f[:3], value if rng.random() < share else f[3]])


def _columns(rng: random.Random, sound: Sound) -> bytes:
    """Shuffle the columns of the atoms, under headings that stay."""
    lines = sound.text.decode("latin-1").split("\n")
    order: list[int] = []
    shift = rng.choice((-3, -1, 1, 2, 5))
    for k, line in enumerate(lines):
        if not line.startswith(("ATOM ", "HETATM")):
            continue
        if sound.is_cif:
            values = line.split()
            if not order:
                order = rng.sample(range(len(values)), len(values))
            lines[k] = " ".join(values[column] for column in order)
        else:
            lines[k] = line[:12] + (" " * shift + line[12:] if shift > 0 else line[12 - shift :])
    return "\n".join(lines).encode("latin-1")


def _block(rng: random.Random, sound: Sound) -> tuple[int, int, list[bytes]]:
    lines = sound.text.split(b"\n")
    atoms = [k for k, line in enumerate(lines) if line.startswith((b"ATOM ", b"HETATM"))]
    if rng.random() < 0.3:
        atoms = list(range(len(lines)))
    first = rng.choice(atoms[:-1])
    return first, min(first + rng.choice((1, 3, 40, 400)), atoms[-1]), lines


def _twice(rng: random.Random, sound: Sound) -> bytes:
    if rng.random() < 0.2:
        return sound.text + sound.text
    first, last, lines = _block(rng, sound)
    return b"\n".join(lines[:last] + lines[first:])


def _lost(rng: random.Random, sound: Sound) -> bytes:
    first, last, lines = _block(rng, sound)
    return b"\n".join(lines[:first] + lines[last:])


def _junk(rng: random.Random, sound: Sound) -> bytes:
    junk = rng.randbytes(rng.choice((1, 30, 5000)))
    place = rng.randrange(len(sound.text))
    inside = sound.text[:place] + junk + sound.text[place + len(junk) :]
    return rng.choice((junk, b"\x1f\x8b" + junk, b"HEADER" + junk, b"data_1abc\n" + junk, inside, sound.packed + junk))


def _foreign(rng: random.Random, sound: Sound) -> tuple[bytes, int]:
    """Insert bytes that are not UTF-8."""
    data, n = bytearray(sound.text), rng.choice((1, 3, 20))
    for _ in range(n):
        data.insert(rng.randrange(len(data)), rng.randrange(0x80, 0x100))
    return bytes(data), n


def _page(rng: random.Random, sound: Sound) -> bytes:
    head = rng.choice((b"", b"\n ", b"\xef\xbb\xbf"))
    page = rng.choice(
        (
            b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
            b"<html><pre>" + sound.text[:5000] + b"</pre></html>",
            b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
            b"<Error><Code>SlowDown</Code></Error>",
            b'{"status": 429, "message": "too many requests"}',
            b"404 Not Found",
            b"The requested structure data_1ABC is not available\n",
        )
    )
    return head + page


def _cif_syntax(rng: random.Random, sound: Sound) -> bytes:
    """Leave out a column, a heading, a value, or the end of a quotation; change a PDB file's record names instead."""
    text = sound.text
    if not sound.is_cif:
        old = rng.choice((b"ATOM  ", b"SEQRES", b"MASTER", b"END   ", b"TER   "))
        return text.replace(old, rng.choice((b"atom  ", b"XXXXXX", b"      ", old[:3] + b"   ")))
    what = rng.randrange(5)
    tags = re.findall(rb"^_(?:atom_site|entity_poly|entity_poly_seq|exptl|refine)\.\w+ *\n?", text, re.MULTILINE)
    if what == 0:
        return text.replace(rng.choice(tags), b"", 1)
    if what == 1:
        return text.replace(rng.choice(tags), b"_nothing.known ", 1)
    if what == 2:
        return re.sub(rb"'\n", b"\n", text, count=1)
    places = [match.end() for match in re.finditer(rb"^(?:ATOM|HETATM)[^\n]*", text, re.MULTILINE)]
    place = rng.choice(places)
    return text[:place] + (b" 1.0" if what == 3 else b" ; '") + text[place:]


def _no_element(rng: random.Random, sound: Sound) -> bytes:
    if sound.is_cif:
        return re.sub(rb"^_atom_site.type_symbol", b"_atom_site.other", sound.text, flags=re.MULTILINE)
    return re.sub(rb"^((?:ATOM  |HETATM).{70})[^\n]*", rb"\1", sound.text, flags=re.MULTILINE)


def _sequence(rng: random.Random, sound: Sound) -> bytes:
    """Declare another sequence: some residues exchanged, the chain reversed, one residue left out."""
    names = re.compile(
        rb"(?<= )(?:ALA|ASN|CYS|GLU|HIS|LEU|MET|PRO|THR|TYR|ARG|ASP|GLN|GLY|ILE|LYS|PHE|SER|TRP|VAL)(?= )"
    )
    pattern = rb"1 \d+ +[A-Z]{3} n" if sound.is_cif else rb"SEQRES"
    found = [
        (line.start() + match.start(), match.group())
        for line in re.finditer(rb"^" + pattern + rb"[^\n]*", sound.text, re.MULTILINE)
        for match in names.finditer(line.group())
    ]
    old = [name for _, name in found]
    new = list(old)
    how = rng.randrange(3)
    if how == 0:
        for k in rng.sample(range(len(new)), rng.choice((1, 5, len(new)))):
            new[k] = rng.choice([name for name in sorted(set(old)) if name != old[k]])
    elif how == 1:
        new.reverse()
    else:
        del new[rng.randrange(3, len(new) - 3)]
        new.append(rng.choice(old))
    text = bytearray(sound.text)
    for (place, _), name in zip(found, new, strict=True):
        text[place : place + 3] = name
    return bytes(text)


DAMAGES: dict[str, Callable[[random.Random, Sound], bytes | tuple[bytes, int]]] = {
    "packed file cut": lambda rng, sound: sound.packed[: rng.randrange(len(sound.packed))],
    "text cut": lambda rng, sound: sound.text[: rng.randrange(len(sound.text) - 2)],
    "cut at the end of a line": lambda rng, sound: sound.text[
        : sound.text.rindex(b"\n", 0, rng.randrange(99, 20000)) + 1
    ],
    "bits of the packed file": lambda rng, sound: (_flip(rng, sound.packed)[0], 0),
    "bits of the text": lambda rng, sound: _flip(rng, sound.text),
    "bits of atoms": _flip_atoms,
    "bits of the sequence": _flip_sequence,
    "empty": lambda rng, sound: rng.choice(
        (b"", b"\n", b" \n\n" * 99, gzip.compress(b""), b"\0", b"END\n", b"data_\n#\n")
    ),
    "web page": _page,
    "junk": _junk,
    "foreign bytes": _foreign,
    "absurd numbers": _absurd,
    "one point": _one_point,
    "blown up": lambda rng, sound: _scaled(sound, rng.choice((100.0, 10.0, 3.0, -30.0))),
    "shrunk": lambda rng, sound: _scaled(sound, rng.choice((0.01, 0.1, 0.3, 0.0))),
    "places mixed up": _mixed_up,
    "one atom away": _one_away,
    "occupancies": _occupancy,
    "columns": _columns,
    "lines twice": _twice,
    "lines lost": _lost,
    "syntax": _cif_syntax,
    "no element": _no_element,
    "other sequence": _sequence,
    "other extension": lambda rng, sound: sound.text,
}
"""Kind of damage -> what makes it: bytes, or bytes and the number of those that differ at random."""


def residues(data: bytes, is_cif: bool) -> tuple[dict[int, str], list[gemmi.Atom]]:
    """Return the residues with coordinates by position, and the atoms of the protein chain.

    Read with gemmi alone.
    """
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if is_cif:
        block = gemmi.cif.read_string(data.decode("utf-8", "replace"))[0]
        structure = gemmi.make_structure_from_block(block)
    else:
        structure = gemmi.read_pdb_string(data)
    structure.setup_entities()
    structure.assign_label_seq_id()
    polymers = [chain.get_polymer() for chain in structure[0] if chain.get_polymer()]
    assert len(polymers) == 1
    observed = {residue.label_seq: residue.name for residue in polymers[0]}
    return observed, [atom for residue in polymers[0] for atom in residue]
