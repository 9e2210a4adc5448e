"""One entry from deposited to ready: repaired, protonated, in water and neutral, in one file.

docs/preparation.md says what is done in which order, and what is refused.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openmm import app, unit

from data_pipeline.errors import EntryError
from data_pipeline.files import write_text
from data_pipeline.systems.box import BoxShape
from data_pipeline.systems.build import DEFAULT_FORCE_FIELD
from data_pipeline.systems.repair import Termini, repair
from data_pipeline.systems.solvate import solvate


@dataclass(frozen=True)
class Prepared:
    """A solvated system as read from prepared/ID.cif.

    Parameters
    ----------
    topology
        Atoms, bonds and box.
    positions
        (N, 3) in nm.
    """

    topology: app.Topology
    positions: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """Box vectors as rows, (3, 3) in nm."""
        return np.array(self.topology.getPeriodicBoxVectors().value_in_unit(unit.nanometer))


def prepare(
    path: str | Path,
    out: str | Path,
    *,
    ph: float = 7.0,
    termini: Termini = "charged",
    padding: float = 0.8,
    ionic_strength: float = 0.0,
    box_shape: BoxShape = "cube",
    cutoff: float = 0.9,
    max_atoms: int = 100_000,
    keep_water: bool = False,
    max_gap: int = 10,
    add_missing_ends: bool = False,
    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD,
    seed: int = 0,
) -> Prepared:
    """Write one entry as a repaired, protonated, solvated and neutral system.

    Parameters
    ----------
    path
        A PDB or mmCIF file, gzipped or not.
    out
        The mmCIF file to write.
    ph
        For the protonation states, by each residue's own default pKa.
    termini
        See `repair.Termini`.
    padding
        nm of solvent between the protein and each of its copies.
    ionic_strength
        mol/l of NaCl besides the ions that neutralise.
    box_shape
        See `box.BoxShape`; ``"brick"`` also turns the system.
    cutoff
        nm that the box will be used with; a box that would be too small for it is made larger.
    max_atoms
        A system that would have more atoms is refused before it is built.
    keep_water
        Whether the crystal's water stays.
    max_gap
        Longest run of residues missing inside the chain that is rebuilt; a longer one rejects the entry.
    add_missing_ends
        Whether residues missing at either end of the chain are built too.
    force_field_files
        Gives radii and charges when solvent is added.
    seed
        Seeds Python's and NumPy's generators and PDBFixer's minimiser: the same seed gives the same file.

    Returns
    -------
    The system as it reads back from `out`.

    Raises
    ------
    EntryError
        With the kinds of `structure.read_entry`, or no_protein, unknown_residue, gap, chain_break, clash, chirality,
        repair, too_large, no_template, solvent, round_trip.
    """
    topology, positions = repair(
        path,
        ph=ph,
        termini=termini,
        keep_water=keep_water,
        max_gap=max_gap,
        add_missing_ends=add_missing_ends,
        seed=seed,
    )
    topology, positions = solvate(
        topology,
        positions,
        padding=padding,
        ionic_strength=ionic_strength,
        box_shape=box_shape,
        cutoff=cutoff,
        max_atoms=max_atoms,
        force_field_files=force_field_files,
        seed=seed,
    )
    write_prepared(topology, positions, out)
    prepared = read_prepared(out)
    _check_same(topology, prepared.topology)
    return prepared


def write_prepared(topology: app.Topology, positions: np.ndarray, out: str | Path) -> None:
    """Write an mmCIF file without a date, so that the same system gives the same bytes; `out` appears complete.

    Residues are numbered afresh, since insertion codes would make bonds ambiguous.
    """
    for index, chain in enumerate(topology.chains()):
        if not chain.id.strip():  # old PDB files name no chain, and mmCIF has no blank value
            chain.id = f"X{index}"
        for number, residue in enumerate(chain.residues(), start=1):
            residue.id, residue.insertionCode = str(number), ""
    buffer = io.StringIO()
    app.PDBxFile.writeFile(topology, positions * unit.nanometer, buffer, keepIds=True)
    lines = [line for line in buffer.getvalue().splitlines() if not line.startswith("# Created with OpenMM")]
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, "\n".join(lines) + "\n")


def read_prepared(path: str | Path) -> Prepared:
    """Read a file written by `write_prepared`.

    Raises
    ------
    EntryError
        Of kind unreadable.
    """
    try:
        pdbx = app.PDBxFile(str(path))
    except Exception as error:
        raise EntryError("unreadable", f"{path} is not a prepared system: {error}. Run prepare again.") from error
    return Prepared(pdbx.topology, np.array(pdbx.getPositions(asNumpy=True).value_in_unit(unit.nanometer)))


def _check_same(written: app.Topology, read: app.Topology) -> None:
    def facts(topology: app.Topology) -> tuple[list[Any], set[tuple[int, int]]]:
        atoms = [(a.name, a.residue.name, a.residue.index, a.element) for a in topology.atoms()]
        return atoms, {(min(a.index, b.index), max(a.index, b.index)) for a, b in topology.bonds()}

    before, after = facts(written), facts(read)
    if before != after:
        raise EntryError(
            "round_trip",
            f"the written mmCIF reads back with {len(after[0])} atoms and {len(after[1])} bonds instead of "
            f"{len(before[0])} and {len(before[1])}, or with other names",
        )
