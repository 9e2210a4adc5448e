"""A structure's file, of which the coordinates change and nothing else does.

Which atoms the model sees is decided in `data_pipeline.refinement.structure`, where the data it learnt from is read:
heavy atoms of proteins and nucleic acids, the likeliest of alternative locations, the first model. What else the file
holds is moved or left so that it stays sensible:

| atoms                                      | do                                                           |
|--------------------------------------------|--------------------------------------------------------------|
| hydrogens and other locations of a residue | move as the nearest atom of the residue that the model sees  |
| water, ions, ligands                       | stay                                                         |
| further models                             | are left out of the file that is written, and told           |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gemmi
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from data_pipeline.entries.structure import Entry, read_bytes, read_entry
from data_pipeline.errors import EntryError
from data_pipeline.refinement.structure import Structure, read_structure
from forcefield_ml.errors import ConfigError, TopologyError
from forcefield_ml.files import write_whole
from forcefield_ml.units import ANGSTROM

STAYS = -1
"""In `StructureFile.carrier`: the atom does not move."""

_SAME = 1e-4
"""nm; a coordinate read twice, once in single precision, differs by less."""

_PDB_COLUMNS = (slice(30, 38), slice(38, 46), slice(46, 54))
_CIF_COLUMNS = ("Cartn_x", "Cartn_y", "Cartn_z")
_CIF_PLACE = ("auth_asym_id", "auth_seq_id", "pdbx_PDB_ins_code", "label_asym_id", "label_seq_id")


@dataclass(frozen=True)
class StructureFile:
    """A structure to refine, and what is needed to write it again.

    Parameters
    ----------
    path
        Where it was read.
    structure
        The N atoms that the model sees.
    start
        (N, 3) nm, their positions in double precision.
    carrier
        (R,) int64, for each atom of the file's first model the atom that it moves with, or `STAYS`.
    staying
        (S, 3) nm, positions of the heavy atoms that stay.
    """

    path: Path
    structure: Structure
    start: NDArray[np.float64]
    carrier: NDArray[np.int64]
    staying: NDArray[np.float64]
    _document: gemmi.cif.Document | None
    _lines: tuple[str, ...]

    @property
    def suffix(self) -> str:
        """``.cif`` or ``.pdb``, of the file that `write` makes."""
        return ".pdb" if self._document is None else ".cif"

    def notes(self) -> list[str]:
        """Return what the model does not see and what becomes of it, in sentences; none where it sees all."""
        counts = self.structure.left_out
        riding = int((self.carrier != STAYS).sum()) - len(self.start)
        told = []
        if riding:
            told.append(
                f"{riding} atoms that the model does not see (hydrogens, alternative locations) move with the nearest "
                "atom of their residue that it sees."
            )
        if counts["other_residues"]:
            n_atoms = int((self.carrier == STAYS).sum())
            told.append(f"{n_atoms} atoms of {counts['other_residues']} waters, ions or ligands stay where they are.")
        if counts["models"]:
            told.append(
                f"The file has {counts['models'] + 1} models: the first was refined and alone is in the file written."
            )
        return told

    def write(self, path: Path, displacements: NDArray[np.float64]) -> None:
        """Write the file with its atoms moved; the text of atoms that did not move stays as it is.

        Parameters
        ----------
        path
            The file; written whole or not at all.
        displacements
            (N, 3) nm, of the atoms that the model sees.

        Raises
        ------
        ConfigError
            If the file cannot be written, or coordinates do not fit the columns of PDB.
        """
        moves = np.zeros((len(self.carrier), 3))
        carried = self.carrier != STAYS
        moves[carried] = displacements[self.carrier[carried]] / ANGSTROM
        text = self._pdb(moves) if self._document is None else _cif(self._document.as_string(), moves)
        write_whole(path, text.encode("latin-1" if self._document is None else "utf-8"))

    def _pdb(self, moves: NDArray[np.float64]) -> str:
        rows, behind = _pdb_rows(self._lines)
        lines: list[str | None] = list(self._lines)
        for row, move in zip(rows, moves, strict=True):
            if move.any():
                line = self._lines[row]
                numbers = [f"{float(line[part]) + step:8.3f}" for part, step in zip(_PDB_COLUMNS, move, strict=True)]
                if any(len(number) > 8 for number in numbers):
                    raise ConfigError(
                        f"{line[:27]!r} moved to {', '.join(numbers)} Å, which does not fit the 8 columns of a PDB "
                        "file; bring the structure nearer to the origin, or give it as mmCIF"
                    )
                lines[row] = line[:30] + "".join(numbers) + line[54:]
        for row in behind:
            lines[row] = None
        return "\n".join(line for line in lines if line is not None)


def read_structure_file(path: Path | str) -> StructureFile:
    """Read a structure to refine.

    Parameters
    ----------
    path
        PDB or mmCIF, plain or gzipped, of any program.

    Raises
    ------
    TopologyError
        If it cannot be read, holds no protein or nucleic acid, or atoms on top of each other: as
        `data_pipeline.refinement.structure.read_structure` says.
    """
    path = Path(path)
    try:
        structure, entry = read_structure(path), read_entry(path, archive=False)
    except EntryError as error:
        raise TopologyError(str(error)) from None
    document = None
    if entry.format == "mmcif":
        document = gemmi.cif.read_string(read_bytes(path).decode("utf-8", "replace"))
        _drop_further_models(document)
    positions, places, heavy = _pdb_atoms(entry) if document is None else _cif_atoms(document)
    carrier, rows = _carriers(structure, positions, places)
    return StructureFile(
        path, structure, positions[rows], carrier, positions[heavy & (carrier == STAYS)], document, entry.lines
    )


def _carriers(
    structure: Structure, positions: NDArray[np.float64], places: list[tuple[str, ...]]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the carrier of each row of a file, and the row of each atom that the model sees.

    Atoms are recognised by their coordinates: the reader lets none lie on top of another.
    """
    distance, rows = cKDTree(positions).query(structure.positions.astype(np.float64))
    if distance.max() > _SAME:
        raise TopologyError(
            f"{structure.name}: {structure.label(int(distance.argmax()))} was not found again in the file; give a file "
            "with one set of coordinates for each atom"
        )
    members: dict[tuple[str, ...], list[int]] = {}
    for atom, row in enumerate(rows.tolist()):
        members.setdefault(places[row], []).append(atom)
    carrier = np.full(len(positions), STAYS, dtype=np.int64)
    for row, place in enumerate(places):
        if place in members:
            own = members[place]
            away = np.linalg.norm(positions[rows[own]] - positions[row], axis=1)
            carrier[row] = own[int(away.argmin())]
    return carrier, np.asarray(rows, dtype=np.int64)


def _pdb_rows(lines: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """Return the lines of the first model's atoms, and those of all further models."""
    atoms: list[int] = []
    behind: list[int] = []
    models = 0
    inside = True
    for number, line in enumerate(lines):
        record = line[:6].rstrip()
        models += record == "MODEL"
        inside = inside or record == "MODEL"
        if models > 1 and inside:
            behind.append(number)
        elif record in ("ATOM", "HETATM"):
            atoms.append(number)
        if record == "ENDMDL":
            inside = False
    return atoms, behind


def _pdb_atoms(entry: Entry) -> tuple[NDArray[np.float64], list[tuple[str, ...]], NDArray[np.bool_]]:
    lines = [entry.lines[row] for row in _pdb_rows(entry.lines)[0]]
    positions = np.array([[float(line[part]) for part in _PDB_COLUMNS] for line in lines]) * ANGSTROM
    heavy = np.array([line[76:78].strip() not in ("H", "D") for line in lines])
    return positions, [(line[20:22], line[22:27]) for line in lines], heavy


def _cif_atoms(document: gemmi.cif.Document) -> tuple[NDArray[np.float64], list[tuple[str, ...]], NDArray[np.bool_]]:
    block = document[0]
    positions = np.array([[gemmi.cif.as_number(value) for value in _column(block, name)] for name in _CIF_COLUMNS])
    columns = [list(_column(block, name)) for name in _CIF_PLACE if len(_column(block, name))]
    symbols = list(_column(block, "type_symbol")) or ["X"] * positions.shape[1]
    heavy = np.array([value.upper() not in ("H", "D") for value in symbols])
    return positions.T * ANGSTROM, list(zip(*columns, strict=True)), heavy


def _cif(text: str, moves: NDArray[np.float64]) -> str:
    document = gemmi.cif.read_string(text)
    for name, steps in zip(_CIF_COLUMNS, moves.T, strict=True):
        column = _column(document[0], name)
        for row in np.flatnonzero(moves.any(axis=1)).tolist():
            column[row] = f"{gemmi.cif.as_number(column[row]) + steps[row]:.3f}"
    return str(document.as_string())


def _drop_further_models(document: gemmi.cif.Document) -> None:
    table = document[0].find("_atom_site.", ["pdbx_PDB_model_num"])
    numbers = [row[0] for row in table]
    for row in reversed(range(len(numbers))):
        if numbers[row] != numbers[0]:
            table.remove_row(row)


def _column(block: gemmi.cif.Block, name: str) -> gemmi.cif.Column:
    return block.find_loop(f"_atom_site.{name}")
