"""Complete, protonate and check a protein chain: PDBFixer and Modeller, made repeatable."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Literal

import gemmi
import numpy as np
import pdbfixer
from openmm import app, unit

from data_pipeline.entries.structure import read_entry
from data_pipeline.errors import EntryError
from data_pipeline.systems.build import single_thread_platform
from data_pipeline.systems.chain import STANDARD, ProteinChain, protein_chain, refuse_unknown
from data_pipeline.systems.geometry import check_geometry
from data_pipeline.systems.regularise import regularise

Termini = Literal["charged", "capped", "capped_if_cut"]
"""What a chain ends in. charged: NH3+ and COO-; capped: ACE and NME; capped_if_cut: caps only where the deposited
chain goes on, be it with residues that are missing or with a cap of its own."""

_ONE_STATE_AT_ENDS = frozenset({"ASP", "CYS", "GLU", "LYS"})
"""Residues that AMBER's templates with a charged end know in their state at pH 7 only."""

MIN_CARBOXYLATE = 0.19
"""nm between O and OXT; they are 0.22 apart."""

_INSERTED = "+"
"""In the number of a residue that the file lacks: 19+2 is the second one after 19."""


def repair(
    path: str | Path,
    *,
    ph: float = 7.0,
    termini: Termini = "charged",
    keep_water: bool = False,
    max_gap: int = 10,
    add_missing_ends: bool = False,
    seed: int = 0,
) -> tuple[app.Topology, np.ndarray]:
    """Return topology and positions (N, 3) in nm of one complete, protonated chain.

    Hydrogens of the file are dropped and placed anew, so that the protonation is that of the pH. Atoms that the file
    has keep their coordinates.

    Parameters
    ----------
    path
        A PDB or mmCIF file, gzipped or not.
    ph, termini, keep_water, max_gap, add_missing_ends, seed
        As in `prepare.prepare`.

    Raises
    ------
    EntryError
        As `prepare.prepare`, of the kinds that do not come from the solvent.
    """
    try:
        chain = protein_chain(read_entry(path).structure)
    except (RuntimeError, ValueError, IndexError) as error:
        raise EntryError("unreadable", f"{Path(path).name}: the chain cannot be told: {error!r}") from error
    platform = single_thread_platform("CPU")
    seed_generators(seed)
    try:
        fixer = pdbfixer.PDBFixer(pdbfile=io.StringIO(_pdb(chain, keep_water)), platform=platform)
        # PDBFixer would ask the RCSB for residues it does not know; a pipeline must not depend on the network.
        fixer._downloadCCDDefinition = lambda residueName: None
        _standardise(fixer, chain)
        built = _to_build(chain, max_gap, add_missing_ends, termini)
        fixer.missingResidues = {(0, index): names for index, names in built.items()}
        fixer.findMissingAtoms()
        fixer.addMissingAtoms(seed=seed + 1)
        _name_as_deposited(fixer.topology, chain, built)
        seed_generators(seed)
        modeller = app.Modeller(fixer.topology, fixer.positions)
        modeller.addHydrogens(pH=ph, variants=_variants(fixer.topology), platform=platform)
    except EntryError:
        raise
    except Exception as error:
        # PDBFixer and OpenMM raise plain ValueError, KeyError and Exception for entries they cannot repair.
        raise EntryError("repair", f"PDBFixer could not repair the entry: {error}") from error
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    moving = _built(modeller.topology, positions, chain)
    if moving.any():
        positions = regularise(modeller.topology, positions, moving, seed=seed)
    check_geometry(modeller.topology, positions)
    return modeller.topology, positions


def seed_generators(seed: int) -> None:
    """Seed the generators that Modeller and PDBFixer draw from."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - PDBFixer draws from NumPy's global generator


def _pdb(chain: ProteinChain, keep_water: bool) -> str:
    """Write the chain as PDB records under the names of its standard residues, numbered from 1."""
    structure = gemmi.Structure()
    structure.add_model(gemmi.Model(1))
    protein = gemmi.Chain("A")
    for number, (residue, parent) in enumerate(zip(chain.residues, chain.parents, strict=True), start=1):
        new = residue.clone()
        new.name, new.seqid = parent, gemmi.SeqId(number, " ")
        protein.add_residue(new)
    structure[0].add_chain(protein)
    if keep_water:
        water = gemmi.Chain("W")
        for number, oxygen in enumerate(chain.waters, start=1):
            residue = gemmi.Residue()
            residue.name, residue.seqid = "HOH", gemmi.SeqId(number, " ")
            residue.add_atom(oxygen)
            residue[0].altloc = "\0"
            water.add_residue(residue)
        structure[0].add_chain(water)
    return structure.make_pdb_string(gemmi.PdbWriteOptions(minimal=True, cryst1_record=False))


def _standardise(fixer: pdbfixer.PDBFixer, chain: ProteinChain) -> None:
    """Delete atoms that the standard residue does not have, and those of modified residues that would be too near."""
    residues = list(next(fixer.topology.chains()).residues())
    positions = np.array(fixer.positions.value_in_unit(unit.nanometer))
    surplus = []
    for residue, deposited in zip(residues, chain.residues, strict=True):
        names = {atom.name for atom in fixer.templates[residue.name].topology.atoms()}
        if residue is residues[-1]:
            names.add("OXT")
        surplus += [atom for atom in residue.atoms() if atom.name not in names]
        if deposited.name != residue.name:
            bonded = {frozenset(bond) for bond in residue.internal_bonds()}
            # A ring of the modified residue that its parent does not have, as in pyroglutamate, is opened.
            nitrogen = next(atom for atom in residue.atoms() if atom.name == "N")
            surplus += [
                atom
                for atom in residue.atoms()
                if atom is not nitrogen
                and frozenset((atom, nitrogen)) not in bonded
                and np.linalg.norm(positions[atom.index] - positions[nitrogen.index]) < 0.19
            ]
    if surplus:
        modeller = app.Modeller(fixer.topology, fixer.positions)
        modeller.delete(surplus)
        fixer.topology, fixer.positions = modeller.topology, modeller.positions


def _to_build(chain: ProteinChain, max_gap: int, add_missing_ends: bool, termini: Termini) -> dict[int, list[str]]:
    """Return what is to be inserted, caps included: index of the residue that it comes before -> names."""
    end = len(chain.residues)
    built: dict[int, list[str]] = {}
    for index, names in chain.missing.items():
        at_end = index in (0, end)
        if at_end and not add_missing_ends:
            continue
        if len(names) > max_gap:
            where = "at an end" if at_end else f"inside the chain, before {_name(chain.residues[index])}"
            raise EntryError(
                "gap",
                f"{len(names)} residues are missing {where}; prepare.max_gap allows {max_gap}",
            )
        refuse_unknown([name for name in names if name not in STANDARD])
        built[index] = list(names)
    for index, cap, cut in ((0, "ACE", chain.capped[0]), (end, "NME", chain.capped[1])):
        if termini == "capped" or (termini == "capped_if_cut" and cut and index not in built):
            to_cap = built.setdefault(index, [])
            to_cap.insert(0 if index == 0 else len(to_cap), cap)
    return built


def _built(topology: app.Topology, positions: np.ndarray, chain: ProteinChain) -> np.ndarray:
    """Return (N,) bool, true for the atoms that the file lacks, and for the hydrogens of their residues.

    An OXT alone does not count: PDBFixer mirrors O, which is right unless O itself is drawn wrongly.
    """
    deposited = {str(residue.seqid): {atom.name for atom in residue} for residue in chain.residues}
    built = np.zeros(topology.getNumAtoms(), dtype=bool)
    for residue in next(topology.chains()).residues():
        known = deposited.get(residue.id, set())
        heavy = {atom.name: atom.index for atom in residue.atoms() if atom.element.symbol != "H"}
        new = heavy.keys() - known
        if new == {"OXT"} and np.linalg.norm(positions[heavy["OXT"]] - positions[heavy["O"]]) > MIN_CARBOXYLATE:
            continue
        if new:
            built[[atom.index for atom in residue.atoms() if atom.name in new or atom.name not in heavy]] = True
    return built


def _variants(topology: app.Topology) -> list[str | None]:
    """Return the protonation states that the pH does not decide: those of residues at charged ends."""
    variants: list[str | None] = [None] * topology.getNumResidues()
    bridged = {atom.residue for bond in topology.bonds() if bond[0].name == bond[1].name == "SG" for atom in bond}
    residues = list(next(topology.chains()).residues())
    for residue in (residues[0], residues[-1]):
        if residue not in bridged:
            variants[residue.index] = residue.name if residue.name in _ONE_STATE_AT_ENDS else None
    return variants


def _name_as_deposited(topology: app.Topology, chain: ProteinChain, built: dict[int, list[str]]) -> None:
    """Give residues the file's numbers for messages; what was built is counted from the residue before it, as 19+1."""
    numbers = []
    before = "0"
    for index in range(len(chain.residues) + 1):
        numbers += [f"{before}{_INSERTED}{i}" for i in range(1, len(built.get(index, ())) + 1)]
        if index < len(chain.residues):
            before = str(chain.residues[index].seqid)
            numbers.append(before)
    for residue, number in zip(next(topology.chains()).residues(), numbers, strict=True):
        residue.id, residue.insertionCode = number, ""


def _name(residue: gemmi.Residue) -> str:
    return f"{residue.name} {residue.seqid}"
