"""A strand of RNA in a helix, what bends it, and files of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forcefield_ml.refinement.geometry import Geometry

SPECIES = {"C": 6, "N": 7, "O": 8, "P": 15}

TWIST, RISE = 35.46178381187288, 2.4964471672965742  # degrees and Å of a step of the helix

CYTIDINE = """
P    8.137 -0.000 79.238  OP1  8.894 -0.305 80.427  OP2  6.718 -0.436 79.076  O5'  7.977  1.544 79.020
C5'  9.077  2.436 79.006  C4'  8.604  3.778 78.536  O4'  8.156  3.665 77.165  C3'  7.366  4.325 79.234
O3'  7.655  4.850 80.508  C2'  6.923  5.365 78.248  O2'  7.882  6.395 78.267  C1'  7.120  4.592 76.931
N1   5.885  3.850 76.518  C2   4.836  4.564 75.909  O2   5.005  5.768 75.725  N3   3.682  3.964 75.559
C4   3.556  2.662 75.783  N4   2.402  2.117 75.427  C5   4.569  1.880 76.408  C6   5.708  2.516 76.742
"""
"""One residue around the axis z, Å: C 12 of PDB entry 5t5a, whose next residue lies one step of the helix farther."""

NAMES = CYTIDINE.split()[::4]
ATOMS = np.array([[float(word) for word in CYTIDINE.split()[start + 1 : start + 4]] for start in range(0, 80, 4)])


def helix(residues: int = 8) -> NDArray[np.float64]:
    """Return (20 residues, 3) positions in Å of a strand of cytidines, centred."""
    turns = np.radians(TWIST) * np.arange(residues)
    zero, cosine, sine = np.zeros(residues), np.cos(turns), np.sin(turns)
    rotations = np.array([[cosine, -sine, zero], [sine, cosine, zero], [zero, zero, zero + 1]])
    strand = np.einsum("xyr,ay->rax", rotations, ATOMS) + np.arange(residues)[:, None, None] * [0.0, 0.0, RISE]
    positions = strand.reshape(-1, 3)
    return positions - positions.mean(axis=0)


def bent(positions: NDArray[np.float64], amplitude: float = 1.5, wavelength: float = 25.0) -> NDArray[np.float64]:
    """Return positions in Å bent by a wave: near atoms move alike, so that bonds hardly change."""
    x, y, z = 2 * np.pi * positions.T / wavelength
    return np.asarray(positions + amplitude * np.stack([np.sin(z), np.cos(x), np.sin(y)], axis=1))


def geometry_of(positions: NDArray[np.float64]) -> Geometry:
    """Return the geometry of a strand of cytidines, positions in nm."""
    names = [NAMES[k % 20] for k in range(len(positions))]
    return Geometry(positions, [SPECIES[name[0]] for name in names], names, np.arange(len(names)) // 20)


def turn(seed: int = 0) -> NDArray[np.float64]:
    """Return a random rotation, (3, 3)."""
    matrix, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return np.asarray(matrix * np.sign(np.linalg.det(matrix)))


def atom_line(
    serial: int, name: str, residue: str, chain: str, number: int, at: NDArray[np.float64], **more: str
) -> str:
    """Return a line of a PDB file; `more`: element, altloc, occupancy, record."""
    element = more.get("element", name[0])
    spelt = name if len(name) == 4 or len(element) == 2 else f" {name:<3}"
    place = f"{spelt:<4}{more.get('altloc', ' ')}{residue:>3} {chain}{number:4d}    "
    numbers = f"{at[0]:8.3f}{at[1]:8.3f}{at[2]:8.3f}{more.get('occupancy', '  1.00')}{serial % 90 + 0.25:6.2f}"
    return f"{more.get('record', 'ATOM'):<6}{serial:5d} {place}{numbers}          {element:>2}"


def pdb_lines(positions: NDArray[np.float64], chain: str = "A") -> list[str]:
    """Return the lines of a strand of cytidines."""
    return [atom_line(k + 1, NAMES[k % 20], "C", chain, k // 20 + 1, at) for k, at in enumerate(np.asarray(positions))]


def write_pdb(path: Path, positions: NDArray[np.float64]) -> Path:
    """Write a strand of cytidines as PDB."""
    path.write_text("\n".join([*pdb_lines(positions), "TER", "END", ""]))
    return path


def write_cif(path: Path, positions: NDArray[np.float64]) -> Path:
    """Write the same as mmCIF, with a category besides that nobody reads."""
    columns = "group_PDB id type_symbol label_atom_id label_alt_id label_comp_id label_asym_id label_entity_id "
    columns += (
        "label_seq_id Cartn_x Cartn_y Cartn_z occupancy B_iso_or_equiv auth_seq_id auth_asym_id pdbx_PDB_model_num"
    )
    rows = [
        f'ATOM {k + 1} {NAMES[k % 20][0]} "{NAMES[k % 20]}" . C A 1 {k // 20 + 1} '
        f"{at[0]:.3f} {at[1]:.3f} {at[2]:.3f} 1.00 {k % 90}.25 {k // 20 + 1} A 1"
        for k, at in enumerate(np.asarray(positions))
    ]
    head = ["data_STRAND", "_mine.note  'kept as it is'", "loop_", *(f"_atom_site.{name}" for name in columns.split())]
    path.write_text("\n".join([*head, *rows, "#", ""]))
    return path
