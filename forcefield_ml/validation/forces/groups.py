"""Classes of a protein's atoms, and the metrics of each class.

| class    | of an atom                                                                                              |
|----------|---------------------------------------------------------------------------------------------------------|
| residue  | the amino acid's name, protonation states and cystine taken together                                    |
| part     | backbone: N, CA, C, O, their hydrogens and those of the termini; side chain: the rest                   |
| charge   | charged: the partial charges of its residue sum to beyond half an elementary charge; neutral: the rest  |
| place    | buried: its residue's solvent accessible area is below a fifth of what it can be at most; exposed: else |
| end      | first or last: residue of its chain, caps included; inside: the rest                                    |

The solvent accessible area is Shrake and Rupley's (MDTraj, probe 0.14 nm), of the protein without water, in the first
frame of each entry; the largest possible areas are the theoretical ones of Tien et al. Caps have none: no place.

References
----------
Tien et al., PLOS ONE 8, e80635 (2013), table 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data_pipeline.systems.residues import VARIANTS, amber_name
from forcefield_ml.data import ForceDataset
from forcefield_ml.training.evaluate import ENDS, end_of
from forcefield_ml.training.metrics import grouped

BACKBONE = frozenset("N CA C O OXT H HA HA2 HA3 H1 H2 H3 HXT".split())
"""PDB names; the alpha hydrogens of glycine are backbone, too."""

CHARGED = 0.5
"""Elementary charges; sums are near integers, termini included."""

BURIED = 0.2
"""Of a residue's largest possible area."""

LARGEST_AREA = {
    "ALA": 1.29, "ARG": 2.74, "ASN": 1.95, "ASP": 1.93, "CYS": 1.67, "GLN": 2.25, "GLU": 2.23, "GLY": 1.04,
    "HIS": 2.24, "ILE": 1.97, "LEU": 2.01, "LYS": 2.36, "MET": 2.24, "PHE": 2.40, "PRO": 1.59, "SER": 1.55,
    "THR": 1.72, "TRP": 2.85, "TYR": 2.63, "VAL": 1.74,
}  # fmt: skip
"""nm², theoretical, of X in Gly-X-Gly."""

CLASSES = ("residue", "part", "charge", "place", "end")


@dataclass(frozen=True)
class ProteinAtoms:
    """Names and classes of the n marked atoms of an entry, in ascending order of atom.

    Parameters
    ----------
    number
        (n,) number of the atom in the file.
    species
        (n,) atomic numbers.
    name
        (n,) PDB names.
    residue_number
        (n,) residue, counted from 0 over the entry.
    positions
        (n, 3) nm, of the entry's first frame.
    bonds
        (B, 2) between these atoms, places in these arrays.
    classes
        Each of `CLASSES` to (n,) names; empty where an atom is in none.
    """

    number: NDArray[np.int32]
    species: NDArray[np.uint8]
    name: NDArray[np.str_]
    residue_number: NDArray[np.int32]
    positions: NDArray[np.float32]
    bonds: NDArray[np.int32]
    classes: Mapping[str, NDArray[np.str_]]

    def label(self, place: int) -> str:
        """Return a name such as ``GLU7:OE1``; residues count from 1 over the entry as it was prepared."""
        return f"{self.classes['residue'][place]}{self.residue_number[place] + 1}:{self.name[place]}"


def protein_atoms(frames: ForceDataset, entry: str) -> ProteinAtoms:
    """Return names and classes of an entry's marked atoms.

    Parameters
    ----------
    frames
        The dataset.
    entry
        Name of one of its entries.
    """
    told = frames.described(entry)
    number = np.flatnonzero(told["target_mask"]).astype(np.int32)
    residue = told["residue_index"][number]
    amino_acid = np.array([_amino_acid(str(name)) for name in told["residue_names"][number]])
    name = told["atom_names"][number]
    charge = np.zeros(int(residue.max()) + 1)
    np.add.at(charge, residue, told["charges"][number].astype(np.float64))
    first = next(each.frames[0] for each in frames.entries if each.name == entry and each.frames)
    positions = frames.positions(entry, first)[number]
    return ProteinAtoms(
        number=number,
        species=told["species"][number],
        name=name,
        residue_number=residue,
        positions=positions,
        bonds=_bonds_between(told["bonds"], number),
        classes={
            "residue": amino_acid,
            "part": np.where(np.isin(name, list(BACKBONE)), "backbone", "side chain"),
            "charge": np.where(np.abs(charge[residue]) > CHARGED, "charged", "neutral"),
            "place": _places(told["species"][number], residue, amino_acid, positions),
            "end": np.array(ENDS)[end_of(residue)],
        },
    )


def by_class(
    predicted: NDArray[Any],
    target: NDArray[Any],
    entry: NDArray[Any],
    atom: NDArray[Any],
    described: Mapping[int, ProteinAtoms],
) -> dict[str, dict[str, Any]]:
    """Return the metrics of each class of atoms, pooled over entries and frames.

    Parameters
    ----------
    predicted
        (m, 3) forces or (m,) magnitudes, kJ/mol/nm.
    target
        (m, 3) true forces, kJ/mol/nm.
    entry
        (m,) number of the entry.
    atom
        (m,) number of the atom in the file's entry.
    described
        Number of the entry to its atoms.

    Returns
    -------
    dict
        Each of `CLASSES` to name to metrics with ``n_atoms`` and ``naive``, names sorted.
    """
    found: dict[str, dict[str, Any]] = {}
    for kind in CLASSES:
        names = np.full(len(target), "", dtype="U16")
        for which, atoms in described.items():
            rows = np.flatnonzero(entry == which)
            names[rows] = atoms.classes[kind][np.searchsorted(atoms.number, atom[rows])]
        known, index = np.unique(names, return_inverse=True)
        metrics = grouped(predicted, target, index, known.tolist())
        found[kind] = {name: values for name, values in metrics.items() if name}
    return found


def _amino_acid(name: str) -> str:
    plain = amber_name(name)
    return VARIANTS.get(plain, plain)


def _bonds_between(bonds: NDArray[Any], number: NDArray[np.int32]) -> NDArray[np.int32]:
    inside = np.isin(bonds, number).all(axis=1)
    return np.searchsorted(number, bonds[inside]).astype(np.int32).reshape(-1, 2)


def _places(
    species: NDArray[Any], residue: NDArray[Any], amino_acid: NDArray[np.str_], positions: NDArray[Any]
) -> NDArray[np.str_]:
    """Return (n,) "buried", "exposed" or, where a residue's largest area is not known, ""."""
    import mdtraj

    topology = mdtraj.Topology()
    chain = topology.add_chain()
    groups: dict[int, Any] = {}
    for number, which, name in zip(species, residue, amino_acid, strict=True):
        if which not in groups:
            groups[which] = topology.add_residue(str(name), chain)
        element = mdtraj.element.Element.getByAtomicNumber(int(number))
        topology.add_atom(element.symbol, element, groups[which])
    # atoms of a residue are neighbours in every file the pipeline writes; MDTraj numbers them as they come
    order = np.array([atom.residue.index for atom in topology.atoms])
    frame = mdtraj.Trajectory(positions[None], topology)
    area = mdtraj.shrake_rupley(frame, mode="residue")[0]
    largest = np.array([LARGEST_AREA.get(each.name, np.nan) for each in topology.residues])
    share = (area / largest)[order]
    return np.where(np.isnan(share), "", np.where(share < BURIED, "buried", "exposed"))
