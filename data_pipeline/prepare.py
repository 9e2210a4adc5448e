"""Repair, protonate and solvate one entry: PDBFixer and Modeller, made repeatable.

The protein chain is kept and everything else removed; modified residues become their standard parents; the first
alternative location is taken; short gaps inside the chain are rebuilt, missing ends are not (unless asked for).
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gemmi
import numpy as np
import pdbfixer
from openmm import app, unit

from data_pipeline.errors import EntryError
from data_pipeline.files import whole
from data_pipeline.structure import read_entry
from data_pipeline.systems import DEFAULT_FORCE_FIELD, force_field, protein_mask, single_thread_platform

MAX_PEPTIDE_BOND = 0.25
"""nm; a longer C-N distance between neighbours in the chain means that residues between them are missing."""

MIN_DISTANCE = 0.05
"""nm between atoms that are not bonded; anything nearer is a failed repair, not a strained one."""

BOX_SHAPES = ("cube", "dodecahedron", "octahedron")


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
    padding: float = 0.8,
    ionic_strength: float = 0.0,
    box_shape: str = "cube",
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
    padding
        nm of solvent between the protein's sphere and its nearest copy.
    ionic_strength
        mol/l of NaCl besides the ions that neutralise.
    box_shape
        One of `BOX_SHAPES`.
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
        With kind unreadable, no_protein, unknown_residue, gap, chain_break, clash, no_template, round_trip, ...
    """
    topology, positions = repair(
        path, ph=ph, keep_water=keep_water, max_gap=max_gap, add_missing_ends=add_missing_ends, seed=seed
    )
    check_geometry(topology, positions)
    topology, positions = solvate(
        topology,
        positions,
        padding=padding,
        ionic_strength=ionic_strength,
        box_shape=box_shape,
        force_field_files=force_field_files,
        seed=seed,
    )
    write_prepared(topology, positions, out)
    prepared = read_prepared(out)
    _check_same(topology, prepared.topology)
    return prepared


def repair(
    path: str | Path,
    *,
    ph: float = 7.0,
    keep_water: bool = False,
    max_gap: int = 10,
    add_missing_ends: bool = False,
    seed: int = 0,
) -> tuple[app.Topology, np.ndarray]:
    """Return topology and positions (N, 3) in nm of the repaired protein with hydrogens; see `prepare`."""
    _seed(seed)
    fixer = _open(path)
    _keep_protein_chain(fixer, keep_water)
    try:
        fixer.findMissingResidues()
    except (ValueError, IndexError) as error:
        raise EntryError("numbering", f"the residue numbers cannot be matched with SEQRES: {error}") from error
    _limit_gaps(fixer, max_gap, add_missing_ends)
    fixer.findNonstandardResidues()
    fixer.replaceNonstandardResidues()
    fixer.removeHeterogens(keepWater=keep_water)
    left = sorted({r.name for r in fixer.topology.residues()} - protein_and_water())
    if left:
        raise EntryError(
            "unknown_residue", f"residues {', '.join(left)} have no standard parent; remove or replace them by hand"
        )
    try:
        fixer.findMissingAtoms()
        fixer.addMissingAtoms(seed=seed + 1)
        _seed(seed)
        fixer.addMissingHydrogens(ph)
    except EntryError:
        raise
    except Exception as error:
        # PDBFixer and OpenMM raise plain ValueError, KeyError and Exception for entries they cannot repair.
        raise EntryError("repair", f"PDBFixer could not repair the entry: {error}") from error
    return fixer.topology, np.array(fixer.positions.value_in_unit(unit.nanometer))


def protein_and_water() -> set[str]:
    """Return the residue names that may be left after repair."""
    return {*pdbfixer.pdbfixer.proteinResidues, "HOH"}


def solvate(
    topology: app.Topology,
    positions: np.ndarray,
    *,
    padding: float = 0.8,
    ionic_strength: float = 0.0,
    box_shape: str = "cube",
    force_field_files: Sequence[str] = DEFAULT_FORCE_FIELD,
    seed: int = 0,
) -> tuple[app.Topology, np.ndarray]:
    """Return topology and positions (N, 3) in nm with three-site water and neutralising ions; see `prepare`."""
    if box_shape not in BOX_SHAPES:
        raise EntryError("box_shape", f"no box shape {box_shape!r}. Allowed: {', '.join(BOX_SHAPES)}.")
    single_thread_platform("CPU")
    _seed(seed)
    modeller = app.Modeller(topology, positions * unit.nanometer)
    try:
        modeller.addSolvent(
            force_field(tuple(force_field_files)),
            model="tip3p",
            padding=padding * unit.nanometer,
            ionicStrength=ionic_strength * unit.molar,
            boxShape=box_shape,
            neutralize=True,
        )
    except ValueError as error:
        raise EntryError("no_template", f"the force field does not describe the repaired protein: {error}") from error
    return modeller.topology, np.array(modeller.positions.value_in_unit(unit.nanometer))


def check_geometry(topology: app.Topology, positions: np.ndarray) -> None:
    """Refuse a chain with a hole in it and atoms on top of each other.

    Parameters
    ----------
    topology
        Of the protein, before solvation.
    positions
        (N, 3) in nm.

    Raises
    ------
    EntryError
        Of kind chain_break or clash, naming the atoms.
    """
    atoms = list(topology.atoms())
    bonded = {(a.index, b.index) for a, b in topology.bonds()}
    bonded |= {(j, i) for i, j in bonded}
    for i, j in sorted(bonded):
        distance = float(np.linalg.norm(positions[i] - positions[j]))
        if {atoms[i].name, atoms[j].name} == {"C", "N"} and distance > MAX_PEPTIDE_BOND:
            raise EntryError(
                "chain_break",
                f"{_label(atoms[i])} and {_label(atoms[j])} are neighbours in the chain but {distance:.2f} nm apart: "
                "residues between them are missing and the file's sequence does not say which",
            )
    for start in range(0, len(atoms), 256):
        near = np.linalg.norm(positions[start : start + 256, None] - positions[None], axis=-1) < MIN_DISTANCE
        for row, j in zip(*np.nonzero(near), strict=True):
            i = start + int(row)
            if i < j and (i, int(j)) not in bonded:
                raise EntryError(
                    "clash",
                    f"{_label(atoms[i])} and {_label(atoms[j])} are {np.linalg.norm(positions[i] - positions[j]):.3f} "
                    f"nm apart after repair; at least {MIN_DISTANCE} nm is needed to start a minimisation",
                )


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
    with whole(out) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


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


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - PDBFixer draws from NumPy's global generator


def _open(path: str | Path) -> pdbfixer.PDBFixer:
    path = Path(path)
    entry = read_entry(path)
    platform = single_thread_platform("CPU")
    try:
        if entry.block is None:
            fixer = pdbfixer.PDBFixer(pdbfile=io.StringIO("\n".join(entry.lines) + "\n"))
        else:
            _drop_other_residues(entry.block)
            fixer = pdbfixer.PDBFixer(pdbxfile=io.StringIO(entry.block.as_string() + "#\n"))
    except Exception as error:
        # The parsers raise many types for damaged files: IndexError, KeyError, ValueError, plain Exception.
        raise EntryError("unreadable", f"{path.name}: PDBFixer cannot read it as {entry.format}: {error!r}") from error
    fixer.platform = platform
    # PDBFixer would ask the RCSB for residues it does not know; a pipeline must not depend on the network.
    fixer._downloadCCDDefinition = lambda residueName: None
    return fixer


def _drop_other_residues(block: gemmi.cif.Block) -> None:
    """Keep the first residue where a position has several (microheterogeneity): OpenMM would mix their atoms."""
    for prefix, columns in (
        ("_atom_site.", ("label_asym_id", "label_seq_id", "auth_seq_id", "pdbx_PDB_ins_code", "label_comp_id")),
        ("_entity_poly_seq.", ("entity_id", "num", "mon_id")),
    ):
        present = [name for name in columns if block.find_loop(prefix + name)]
        table = block.find(prefix, present)
        first: dict[tuple[str, ...], str] = {}
        for index in reversed(
            [
                index
                for index, row in enumerate(table)
                if first.setdefault(tuple(list(row)[:-1]), row[len(present) - 1]) != row[len(present) - 1]
            ]
        ):
            table.remove_row(index)


def _keep_protein_chain(fixer: pdbfixer.PDBFixer, keep_water: bool) -> None:
    known = {*pdbfixer.pdbfixer.proteinResidues, *pdbfixer.pdbfixer.substitutions, "UNK"}
    best: Any = max(fixer.topology.chains(), key=lambda chain: sum(r.name in known for r in chain.residues()))
    if not any(residue.name in known for residue in best.residues()):
        raise EntryError("no_protein", "the coordinates hold no amino acid")
    if any(residue.name == "UNK" for residue in best.residues()):
        raise EntryError("unknown_residue", "the chain has UNK residues, whose atoms nobody knows")
    others = [
        residue
        for chain in fixer.topology.chains()
        for residue in chain.residues()
        if chain is not best and not (keep_water and residue.name == "HOH")
    ]
    fixer.positions = _delete(fixer, others)


def _delete(fixer: pdbfixer.PDBFixer, residues: list[Any]) -> Any:
    modeller = app.Modeller(fixer.topology, fixer.positions)
    modeller.delete(residues)
    fixer.topology = modeller.topology
    return modeller.positions


def _limit_gaps(fixer: pdbfixer.PDBFixer, max_gap: int, add_missing_ends: bool) -> None:
    lengths = [len(list(chain.residues())) for chain in fixer.topology.chains()]
    for (chain, index), names in list(fixer.missingResidues.items()):
        at_end = index in (0, lengths[chain])
        if at_end and not add_missing_ends:
            del fixer.missingResidues[chain, index]
        elif len(names) > max_gap:
            raise EntryError(
                "gap",
                f"{len(names)} residues are missing {'at an end' if at_end else 'inside the chain'}; "
                f"prepare.max_gap allows {max_gap}",
            )


def _check_same(written: app.Topology, read: app.Topology) -> None:
    def facts(topology: app.Topology) -> tuple[list[tuple[str, str, int]], set[frozenset[int]], int]:
        atoms = [(a.name, a.residue.name, a.element.atomic_number if a.element else 0) for a in topology.atoms()]
        return atoms, {frozenset((a.index, b.index)) for a, b in topology.bonds()}, int(protein_mask(topology).sum())

    before, after = facts(written), facts(read)
    if before != after:
        raise EntryError(
            "round_trip",
            f"the written mmCIF reads back with {len(after[0])} atoms and {len(after[1])} bonds instead of "
            f"{len(before[0])} and {len(before[1])}, or with other names",
        )


def _label(atom: Any) -> str:
    return f"{atom.residue.name}{atom.residue.id}:{atom.name}"
