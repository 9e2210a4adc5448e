"""Bind a model to a topology: species, atom subset and box as plain values, each checked before the first step."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from openmm import app

from data_pipeline.systems.residues import (
    AMINO_ACIDS,
    CAPS,
    PROTEIN_RESIDUES,
    amber_name,
    is_ion,
    is_protein,
    is_water,
    parent_name,
)
from forcefield_ml import units
from forcefield_ml.bonded.table import BondedTable, Parameters
from forcefield_ml.deploy.force.indices import read_indices
from forcefield_ml.errors import ForceModeError, SurroundingsWarning, TopologyError, closest
from forcefield_ml.graph.box import check_box
from forcefield_ml.nn.atom_types import CODE_STEP, AtomTypes, distinct

FEWEST_HYDROGENS = {
    "ALA": 5, "ARG": 12, "ASH": 5, "ASN": 6, "ASP": 4, "CYM": 4, "CYS": 4, "CYX": 4, "GLH": 7, "GLN": 8, "GLU": 6,
    "GLY": 3, "HID": 7, "HIE": 7, "HIP": 8, "HIS": 7, "ILE": 11, "LEU": 11, "LYN": 12, "LYS": 12, "MET": 9, "PHE": 9,
    "PRO": 7, "SER": 5, "THR": 7, "TRP": 10, "TYR": 8, "VAL": 9, "ACE": 3, "NME": 4, "HOH": 2,
}  # fmt: skip
"""Hydrogens of a residue in mid-chain in the state with the fewest protons."""

FEWEST_BONDS = {6: 3, 7: 2, 8: 1, 16: 2}
"""Atomic number to the fewest bonds that such an atom has in a protein, by far most often; others: one."""

LACKS_BONDS = (
    "the topology lacks bonds (it has {}): topology.createStandardBonds() and createDisulfideBonds(positions) add "
    "those of proteins; other molecules need a file that holds them, or a model trained on such"
)

NAMED = 5
"""Residues or atoms that a message names before it says how many more there are."""


@dataclass(frozen=True)
class Binding:
    """What a force needs of a topology, as plain values that can be stored.

    Attributes
    ----------
    n_particles
        Of the whole system.
    species
        What the model is told of the atoms it sees: atomic numbers, or for a model of atom types their codes
        (`bonded`).
    inputs
        Their indices among all particles, ascending.
    targets
        Indices of the particles that get the model's force, ascending; among `inputs`.
    box
        Three rows in nm, or None where there is no periodicity.
    labels
        Chain, residue and atom name of each of `inputs`.
    remove_net_force
        Take the mean force off every atom, so that the forces sum to zero; for a whole system alone.
    bonds
        (B, 2) places among `inputs` of bonded atoms, for a model that brings bonded terms; else empty.
    """

    n_particles: int
    species: list[int]
    inputs: list[int]
    targets: list[int]
    box: list[list[float]] | None
    labels: list[str]
    remove_net_force: bool = False
    bonds: list[list[int]] = field(default_factory=list)

    @property
    def is_whole(self) -> bool:
        """Whether every atom that the model sees gets its force: on a part of them no force has an energy."""
        return len(self.targets) == len(self.inputs)


def bind(
    card: dict[str, Any],
    topology: app.Topology,
    atoms: Iterable[int] | None,
    only_subset: bool,
    allow_residues: Iterable[str] = (),
) -> Binding:
    """Check a topology against the card and return what a force needs of it.

    Parameters
    ----------
    card
        Of the model.
    topology
        With hydrogens and, where periodic, the box.
    atoms
        Indices of the atoms that get the model's force, or a mask (see `read_indices`); None takes what the card
        says (the protein, or all).
    only_subset
        True if the model sees `atoms` alone (mode ``embedded``), False if it sees all particles.
    allow_residues
        Names of residues to let pass though the model was not trained on them.

    Returns
    -------
    Binding
        The plain values.

    Raises
    ------
    TopologyError
        If an element or a residue is unknown to the model, hydrogens are missing, or `atoms` does not suit the
        topology.
    BoxError
        If the box is malformed or lower than twice the cutoff.
    ForceModeError
        If `atoms` holds solvent and the model was trained on solute atoms only.
    """
    binding = bind_atoms(card, topology, atoms, only_subset, allow_residues)
    vectors = topology.getPeriodicBoxVectors()
    if vectors is None:
        return binding
    box = [[float(x) for x in row] for row in units.strip(vectors, "nanometer")]
    check_box(torch.tensor(box, dtype=torch.float64), float(card["neighbours"]["cutoff"]))
    return replace(binding, box=box)


def bind_atoms(
    card: dict[str, Any],
    topology: app.Topology,
    atoms: Iterable[int] | None,
    only_subset: bool,
    allow_residues: Iterable[str] = (),
) -> Binding:
    """Do what `bind` does but for the box, which is left None and not checked; parameters and errors as there."""
    everything = list(topology.atoms())
    targets = _targets(card, everything, atoms)
    inputs = targets if only_subset else list(range(len(everything)))
    seen = [everything[i] for i in inputs]
    if only_subset:
        _check_whole(topology, set(targets))
    _check_species(card, seen)
    _check_residues(card, seen, topology, allow_residues)
    if not only_subset:
        _check_water(card, topology)
    _check_hydrogens(seen)
    return Binding(
        n_particles=len(everything),
        species=[atom.element.atomic_number for atom in seen],
        inputs=inputs,
        targets=targets,
        box=None,
        labels=[label(atom) for atom in seen],
    )


def bonded(
    binding: Binding, topology: app.Topology, types: AtomTypes | None, table: BondedTable | None = None
) -> Binding:
    """Return a binding that tells a model what it wants to know of bonds: atom types, and bonded terms.

    Parameters
    ----------
    binding
        Of `bind` or `bind_atoms`.
    topology
        With bonds.
    types
        That the model knows; None for elements alone.
    table
        Of the bonded terms that the model brings; None for none.

    Raises
    ------
    TopologyError
        If the surroundings of an atom, one bond away, are like none that the model was trained on, and it has fewer
        bonds than its element nearly always has in a protein: bonds are missing. Of a model that brings terms: if an
        atom that it moves, and that is no ion, has no bond, or a bond or an angle is of elements that it has not seen
        so.

    Warns
    -----
    UserWarning
        If such surroundings are unknown, but complete: the model sees the element of such an atom alone.
    """
    if types is None and table is None:
        return binding
    place = {index: k for k, index in enumerate(binding.inputs)}
    bonds = [[place[one.index], place[other.index]] for one, other in topology.bonds() if one.index in place]
    species, pairs = np.array(binding.species), distinct(np.array(bonds))
    partners = np.bincount(pairs.reshape(-1), minlength=len(species))
    if table is not None:
        moved = np.isin(binding.inputs, binding.targets)
        _check_bonds(moved & (partners == 0) & np.isin(species, [1, *FEWEST_BONDS]), binding.labels, len(bonds))
        _check_terms(table.parameters(species, pairs, moved), binding.labels)
        binding = replace(binding, bonds=bonds)
    if types is None:
        return binding
    codes = types.codes(species, pairs)
    strange = np.flatnonzero(codes < CODE_STEP)
    bare = [i for i in strange.tolist() if partners[i] < FEWEST_BONDS.get(int(species[i]), 1)]
    if bare:
        raise TopologyError(
            f"{some([binding.labels[i] for i in bare])}: bonded as no atom that the model was trained on. Most often "
            f"{LACKS_BONDS.format(len(bonds))}"
        )
    if len(strange):
        warnings.warn(
            f"{some([binding.labels[i] for i in strange])}: bonded as no atom, or too few, that the model was trained "
            "on. It knows the element alone: forces on and around such atoms are guesses from others",
            SurroundingsWarning,
            stacklevel=4,
        )
    return replace(binding, species=codes.tolist())


def _check_bonds(lonely: np.ndarray, labels: Sequence[str], n_bonds: int) -> None:
    """Refuse atoms without a bond, (N,) bool: the terms that hold them would be lacking without a word."""
    if lonely.any():
        raise TopologyError(
            f"{some([labels[i] for i in np.flatnonzero(lonely).tolist()])}: no bond, so that the terms which the model "
            f"brings would be lacking. Most often {LACKS_BONDS.format(n_bonds)}"
        )


def _check_terms(parameters: Parameters, labels: Sequence[str]) -> None:
    """Refuse bonds and angles without stiffness; a torsion of unknown elements is as free as the network leaves it."""
    for kind in ("bond", "angle"):
        strange = parameters.atoms[kind][~parameters.known[kind]]
        if len(strange):
            raise TopologyError(
                f"{len(strange)} {kind} terms are of elements that the model has seen bonded so never or too rarely "
                f"({some(['-'.join(labels[i] for i in term) for term in strange.tolist()])}). Leave these molecules "
                "out of what the model sees, or train on such"
            )


def solute_atoms(topology: app.Topology) -> list[int]:
    """Return the indices of the protein's atoms, caps included: the atoms the data set marks as targets.

    Raises
    ------
    TopologyError
        If there are none.
    """
    found = [atom.index for atom in topology.atoms() if is_protein(atom.residue.name)]
    if not found:
        names = sorted({residue.name for residue in topology.residues()})
        raise TopologyError(
            f"no residue is an amino acid (there are: {', '.join(names[:20])}), so there is no solute to take by "
            "default; pass atoms=[indices of the atoms that shall feel the model]"
        )
    return found


def label(atom: Any) -> str:
    """Return chain, residue and name of an atom, and its index, for messages."""
    return f"{residue_label(atom.residue)} {atom.name} (atom {atom.index})"


def residue_label(residue: Any) -> str:
    """Return chain, name and number of a residue for messages."""
    return f"{residue.chain.id}:{residue.name}{residue.id}"


def _targets(card: dict[str, Any], everything: Sequence[Any], atoms: Iterable[int] | None) -> list[int]:
    if not everything:
        raise TopologyError("the topology has no atoms")
    if atoms is None:
        if card["target_atoms"] == "all":
            return list(range(len(everything)))
        return solute_atoms(everything[0].residue.chain.topology)
    targets = read_indices(atoms, len(everything))
    if card["target_atoms"] == "solute":
        solvent = [everything[i] for i in targets if _is_solvent(everything[i].residue)]
        if solvent:
            raise ForceModeError(
                f"atoms holds {len(solvent)} atoms of water or ions (first: {label(solvent[0])}), but this model was "
                "trained to predict forces on solute atoms only; leave them out (atoms=None takes the protein), or "
                'use a model trained with target_atoms "all"'
            )
    return targets


def some(names: Sequence[str]) -> str:
    """Return the first `NAMED` names as one phrase, and how many more there are."""
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + rest


def _check_species(card: dict[str, Any], atoms: Sequence[Any]) -> None:
    known = set(card["species"])
    virtual = [label(atom) for atom in atoms if atom.element is None]
    if virtual:
        raise TopologyError(
            f"{some(virtual)}: no element (virtual sites, as of a four-point water?); this model knows atoms only. "
            "Use a three-point water model such as amber14/tip3pfb.xml"
        )
    unknown = [atom for atom in atoms if atom.element.atomic_number not in known]
    if unknown:
        symbols = sorted({atom.element.symbol for atom in unknown})
        allowed = ", ".join(app.Element.getByAtomicNumber(number).symbol for number in sorted(known))
        residues = list(dict.fromkeys(residue_label(atom.residue) for atom in unknown))
        raise TopologyError(
            f"the model does not know {', '.join(symbols)} (in {some(residues)}); it was trained on {allowed}. "
            "Remove these residues, or train a model on data that holds them"
        )


def _is_solvent(residue: Any) -> bool:
    return is_water(residue.name) or is_ion(residue.name, len(residue))


def _check_residues(card: dict[str, Any], atoms: Sequence[Any], topology: app.Topology, allow: Iterable[str]) -> None:
    """Refuse residues that the model was not trained on; amino acids, water and ions among them only warn."""
    allowed = {allow} if isinstance(allow, str) else set(allow)
    present = {residue.name for residue in topology.residues()}
    for name in sorted(allowed - present):
        raise TopologyError(f"allow_residues holds {name!r}, which the topology lacks.{closest(name, present)}")
    listed = card["training"].get("residues")
    trained = None if listed is None else {parent_name(name) for name in listed}
    foreign, unseen = [], set()
    for residue in {atom.residue.index: atom.residue for atom in atoms}.values():
        if residue.name in allowed:
            continue
        name = parent_name(residue.name)
        common = name in AMINO_ACIDS | CAPS or _is_solvent(residue)
        if trained is None:
            known = common or name in PROTEIN_RESIDUES
        else:
            known = name in trained and not (is_ion(name, 1) and len(residue) > 1)
        if not known and common:
            unseen.add(residue.name)
        elif not known:
            foreign.append(residue)
    if foreign:
        names = list(dict.fromkeys(residue.name for residue in foreign))
        known_to = "amino acids, water and ions" if trained is None else ", ".join(sorted(trained))
        raise TopologyError(
            f"the model was not trained on {some([residue_label(residue) for residue in foreign])}; it knows "
            f"{known_to}. Forces on and around such residues would be guesses: remove them, use a model trained on "
            f"data that holds them, or, if you mean it, pass allow_residues={names[:NAMED]}"
        )
    if unseen:
        warnings.warn(
            f"the model's training data held no {', '.join(sorted(unseen))}: its forces there are guesses from other "
            "residues of the same elements",
            stacklevel=4,
        )


def _check_water(card: dict[str, Any], topology: app.Topology) -> None:
    """Warn of a vacuum where all that was learnt was in water."""
    trained = {parent_name(name) for name in card["training"].get("residues") or ()}
    if any(is_water(name) for name in trained) and not any(is_water(each.name) for each in topology.residues()):
        warnings.warn(
            "there is no water, but the model was trained on molecules in water: at a surface or in a vacuum its "
            "forces may be absurd. Solvate the system, as forcefield-ml simulate does",
            stacklevel=4,
        )


def _check_whole(topology: app.Topology, subset: set[int]) -> None:
    """Refuse a subset that cuts a bond: alone, it would be a molecule with a hole."""
    cut = [bond for bond in topology.bonds() if (bond[0].index in subset) != (bond[1].index in subset)]
    if cut:
        raise TopologyError(
            f"atoms cuts {len(cut)} bonds (first: {label(cut[0][0])} to {label(cut[0][1])}), but the model sees these "
            "atoms alone and was trained on whole molecules; choose whole molecules"
        )


def _check_hydrogens(atoms: Sequence[Any]) -> None:
    residues = {atom.residue.index: atom.residue for atom in atoms}
    poor = []
    for residue in residues.values():
        fewest = FEWEST_HYDROGENS.get(amber_name(residue.name), 0)
        found = sum(atom.element is not None and atom.element.atomic_number == 1 for atom in residue.atoms())
        if found < fewest:
            poor.append(f"{residue_label(residue)} ({found} of at least {fewest})")
    if poor:
        raise TopologyError(
            f"hydrogens are missing in {some(poor)}; the model was trained on complete molecules. Add them with "
            "openmm.app.Modeller.addHydrogens(forcefield, pH=7.0), or prepare the file with forcefield-ml simulate"
        )
