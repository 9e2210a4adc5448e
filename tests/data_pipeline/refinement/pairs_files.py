"""Made-up RNA chains as PDB files: a zigzag of residues with the names of real atoms, at distances of a few tenths."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.spatial.transform import Rotation

NAMES = ("P", "OP1", "OP2", "O5'", "C5'", "C4'", "O4'", "C3'", "O3'", "C2'", "O2'", "C1'")
BASES = {"A": "N9", "G": "N9", "C": "N1", "U": "N1"}


class Atom(NamedTuple):
    """One line of a PDB file."""

    name: str
    residue: str
    chain: str
    number: int
    place: np.ndarray
    altloc: str = " "
    occupancy: float = 1.0


def chain(sequence: str, name: str = "A", first: int = 1, seed: int = 0) -> list[Atom]:
    """Return the atoms of a chain, Å; the seed turns and shakes it a little."""
    random = np.random.default_rng(seed)
    grid = 1.5 * np.array([(i, j, k) for i in range(3) for j in range(3) for k in range(2)], dtype=float)
    atoms = []
    for index, letter in enumerate(sequence):
        corner = np.array([6.0 * index, 4.0 * np.sin(index), 3.0 * np.cos(1.7 * index)]) + 8.0 * (ord(name) - ord("A"))
        for k, atom in enumerate((*NAMES, BASES[letter])):
            place = corner + grid[k] + random.uniform(-0.3, 0.3, 3)
            atoms.append(Atom(atom, letter, name, first + index, place))
    return atoms


def shaken(atoms: Iterable[Atom], seed: int = 1, size: float = 0.12) -> list[Atom]:
    """Return atoms bent smoothly, displaced at random, and moved as a whole."""
    random = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed)
    moved = []
    for atom in atoms:
        bent = atom.place + 3.0 * np.sin(0.08 * atom.place[[1, 2, 0]]) + random.normal(0, size, 3)
        moved.append(atom._replace(place=turn.apply(bent) + 30.0))
    return moved


def pdb(atoms: Iterable[Atom]) -> str:
    """Return a PDB file without header and end, as programs write it."""
    lines = [
        f"ATOM  {number:5d}  {atom.name:<3s}{atom.altloc}{atom.residue:>3s} {atom.chain}{atom.number:4d}    "
        f"{atom.place[0]:8.3f}{atom.place[1]:8.3f}{atom.place[2]:8.3f}{atom.occupancy:6.2f}{0.0:6.2f}          "
        f"{atom.name[0]:>2s}"
        for number, atom in enumerate(atoms, start=1)
    ]
    return "\n".join(lines) + "\n"


def write(path: Path, atoms: Iterable[Atom]) -> Path:
    """Write atoms, gzipped where the name says so."""
    data = pdb(atoms).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


SEQUENCES = {"one": "GGCAUCGAUC", "two": "AAUUCGGCAGU", "three": "CCGUAGGUAACG"}
SPLIT_OF = {"one": "train", "two": "val", "three": "test"}


def write_puzzles(folder: Path, n_candidates: int = 2) -> Path:
    """Write three molecules of as many splits in the layout of folders; return the table."""
    for number, (name, sequence) in enumerate(SEQUENCES.items()):
        native = chain(sequence, seed=number)
        write(folder / name / "native.pdb.gz", native)
        for k in range(n_candidates):
            write(folder / name / "candidates" / f"{k}_try.pdb.gz", shaken(native, seed=10 * number + k))
    table = folder / "puzzles.tsv"
    rows = [f"{number}\t{name}\t{split}" for number, (name, split) in enumerate(SPLIT_OF.items())]
    table.write_text("\n".join(["order\tpuzzle\tsplit", *rows, "9\tleft\textra", ""]))
    return table
