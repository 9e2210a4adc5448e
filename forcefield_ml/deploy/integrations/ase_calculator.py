"""A model as an ASE calculator: eV and Å outside, the engine that also serves OpenMM inside."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openmm import app

from forcefield_ml import units
from forcefield_ml.deploy.force.binding import bind_atoms, some
from forcefield_ml.deploy.force.indices import read_indices, read_values
from forcefield_ml.deploy.guards.coordinates import check_unit
from forcefield_ml.deploy.guards.stability import MAX_FORCE
from forcefield_ml.deploy.model import PART, DeployedModel, load
from forcefield_ml.deploy.model_file.script import forces_complaint, positions_complaint
from forcefield_ml.deploy.system.modes import check_mode
from forcefield_ml.errors import BoxError, ForceModeError, TopologyError, UnstableError
from forcefield_ml.graph.box import check_box
from forcefield_ml.models.interface import Prediction

try:
    from ase import Atoms
    from ase.calculators.calculator import Calculator, all_changes
    from ase.constraints import FixAtoms
    from ase.data import chemical_symbols
    from ase.geometry import minkowski_reduce
except ImportError as error:
    raise ImportError(f'the ASE calculator needs ASE ({error}): pip install "forcefield-ml[ase]"') from None


class ForcefieldMLCalculator(Calculator):
    """Forces of a model for ASE, and the energy of a model that has one, where all atoms it sees get its forces.

    Without an energy, what ASE does by energy (its optimisers, ``MDLogger``, NPT) raises
    ``PropertyNotImplementedError``; molecular dynamics at constant volume works. The neighbour list is kept from step
    to step.

    ASE's atoms have no bonds and no residues. A model of atom types needs them: give the topology of the same atoms.
    With it, that hydrogens are complete and that the model was trained on such molecules is checked as in OpenMM;
    without, it is not.

    Parameters
    ----------
    model
        A model.pt, the name of a model that ships with the package, or what `forcefield_ml.load` returned.
    mode
        What the atoms are, checked against the model's card as `DeployedModel.add_to_system` does: ``"system"``, all
        there is; ``"embedded"``, the solute alone, or `targets`, the only atoms that the model sees;
        ``"correction"``, for a sum with an MM calculator; ``"solute"``, all there is, of which the model moves
        `targets`.
    targets
        Indices of the atoms whose forces are predicted, or a mask of all atoms; all others get none and, but for mode
        ``"correction"``, must be held by ``FixAtoms``. Needed in mode ``"solute"``, and in mode ``"correction"`` if
        the model was trained on solute atoms only.
    device
        As for `forcefield_ml.load`.
    remove_net_force
        As for `DeployedModel.add_to_system`: by default in mode ``"system"``, unless there are targets.
    topology
        OpenMM's, of the same atoms in the same order; with bonds.
    allow_residues
        As for `DeployedModel.add_to_system`.

    Raises
    ------
    ForceModeError
        If the card does not allow the mode, the model leaves a part of the force to OpenMM, targets or the topology
        are lacking, or the net force is to be removed from a part of the atoms.
    TopologyError
        If targets are neither whole numbers nor a mask.
    ModelFileError, ConfigError
        As `forcefield_ml.load`.
    """

    # What a force field has no use for must not make it compute anew.
    ignored_changes = {"initial_charges", "initial_magmoms"}  # noqa: RUF012  ASE reads it off the class

    def __init__(
        self,
        model: DeployedModel | Path | str,
        mode: str = "system",
        targets: Iterable[int] | None = None,
        device: str = "auto",
        remove_net_force: bool | None = None,
        topology: app.Topology | None = None,
        allow_residues: Iterable[str] = (),
    ):
        super().__init__()
        self.model = model if isinstance(model, DeployedModel) else load(model, device)
        check_mode(self.model.card, mode)
        if self.model.needs_reciprocal:
            raise ForceModeError(
                "this model leaves the reciprocal-space sum of the Coulomb force to OpenMM, which ASE does not have: "
                "its forces alone would be wrong. Use it in OpenMM (model.create_system, model.add_to_system), or take "
                "a model that predicts 'total'"
            )
        if self.model.needs_bonds and topology is None:
            raise ForceModeError(
                "this model knows atoms by their bonds, which ASE's Atoms do not hold; pass topology=, OpenMM's of the "
                "same atoms in the same order (openmm.app.PDBFile('system.pdb').topology), or take a model of elements "
                "alone"
            )
        self._topology, self._allowed = topology, tuple(allow_residues)
        solute_only = mode == "correction" and self.model.card["target_atoms"] == "solute"
        if (mode == "solute" or solute_only) and targets is None:
            raise ForceModeError(
                f"mode {mode!r} needs targets=[indices of the solute's atoms]"
                + (", since the model was trained on these only" if solute_only else "")
                + ": ASE's atoms do not say what is solvent"
            )
        self.mode = mode
        self._chosen = None if targets is None else read_values(targets, "targets")
        whole = mode == "system" and targets is None
        if remove_net_force and not whole:
            raise ForceModeError(PART.format(mode))
        self._remove_net_force = whole and not self.model.has_energy if remove_net_force is None else remove_net_force
        self._has_energy = self.model.has_energy and (targets is None or mode == "embedded")
        self.implemented_properties = ["energy", "free_energy", "forces"] if self._has_energy else ["forces"]
        self._evaluate: Callable[[torch.Tensor, torch.Tensor | None], Prediction] | None = None
        self._numbers = np.empty(0, dtype=np.int64)
        self._targets = np.empty(0, dtype=np.int64)
        self._seen = np.empty(0, dtype=np.int64)
        self._labels: list[str] = []

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Iterable[str] = ("forces",),
        system_changes: Iterable[str] = all_changes,
    ) -> None:
        """Fill ``results``: forces (N, 3) in eV/Å, and the energy in eV if the model has one.

        Parameters
        ----------
        atoms
            Periodic along all three axes or none; positions need not be wrapped.
        properties, system_changes
            As ASE passes them; all that the model has is computed at once.

        Raises
        ------
        TopologyError
            If an element is unknown to the model, or targets are not among the atoms.
        BoxError
            If the atoms are periodic along some axes only, or the cell is too small for the cutoff.
        ForceModeError
            If atoms other than the targets are free to move.
        UnstableError
            If positions are not finite, or forces not finite or absurd.
        ConfigError
            If the positions are most likely not in Å.
        """
        super().calculate(atoms, list(properties), list(system_changes))
        atoms = self.atoms
        assert atoms is not None
        evaluate = self._prepared(atoms)
        cell, rotation = _cell(atoms, float(self.model.card["neighbours"]["cutoff"]))
        positions = torch.tensor(units.ANGSTROM * atoms.positions[self._seen] @ rotation)
        complaint = positions_complaint(positions, self._labels)
        if complaint:
            raise UnstableError(complaint)
        device = self.model.device
        prediction = evaluate(positions.to(device), None if cell is None else torch.tensor(cell, device=device))
        assert prediction.forces is not None
        found = prediction.forces.cpu()
        rows = np.searchsorted(self._seen, self._targets)
        complaint = forces_complaint(found, torch.from_numpy(rows), self._labels, MAX_FORCE)
        if complaint:
            raise UnstableError(complaint)
        forces = np.zeros((len(atoms), 3))
        forces[self._targets] = found.numpy().astype(float) @ rotation.T * (units.ANGSTROM / units.EV)
        if self._remove_net_force:
            forces -= forces.mean(axis=0)
        self.results = {"forces": forces}
        if self._has_energy and prediction.energy is not None:
            energy = float(prediction.energy) / units.EV
            self.results |= {"energy": energy, "free_energy": energy}

    def _prepared(self, atoms: Atoms) -> Callable[[torch.Tensor, torch.Tensor | None], Prediction]:
        """Return the evaluator for atoms that were checked; the former one where the elements are the same."""
        if self._evaluate is None or not np.array_equal(atoms.numbers, self._numbers):
            self._evaluate = None
            self._choose(atoms)
            self._evaluate = self._make_evaluator(atoms)
            self._numbers = atoms.numbers.copy()
            self._labels = [f"{chemical_symbols[atoms.numbers[i]]} (atom {i})" for i in self._seen]
        if self.mode != "correction":
            self._check_held(atoms)
        return self._evaluate

    def _make_evaluator(self, atoms: Atoms) -> Callable[[torch.Tensor, torch.Tensor | None], Prediction]:
        known = self.model.card["species"]
        unknown = self._seen[~np.isin(atoms.numbers[self._seen], known)]
        if len(unknown):
            raise TopologyError(
                f"the model does not know {_named(atoms, unknown)}; it was trained on "
                f"{', '.join(chemical_symbols[number] for number in known)}. Remove them, or set their elements "
                "(X means none)"
            )
        if np.isfinite(atoms.positions[self._seen]).all():
            check_unit(units.ANGSTROM * atoms.positions[self._seen], atoms.numbers[self._seen])
        device = self.model.device
        mask = None
        if len(self._targets) < len(self._seen):
            mask = torch.from_numpy(np.isin(self._seen, self._targets)).to(device)
        species, bonds = self._species(atoms)
        return self.model.evaluator(torch.tensor(species, device=device), mask, bonds)

    def _species(self, atoms: Atoms) -> tuple[list[int], list[list[int]]]:
        """Return what the model is told of the atoms it sees: elements, or types by the topology; and their bonds."""
        if self._topology is None:
            return atoms.numbers[self._seen].tolist(), []
        if self._topology.getNumAtoms() != len(atoms):
            raise TopologyError(
                f"the topology has {self._topology.getNumAtoms()} atoms, ASE's Atoms {len(atoms)}; give the topology "
                "of the same atoms in the same order"
            )
        alone = self.mode == "embedded"
        chosen = self._targets if alone or self._chosen is not None else np.arange(len(atoms))
        binding = bind_atoms(self.model.card, self._topology, chosen, alone, self._allowed)
        if not np.array_equal(binding.species, atoms.numbers[self._seen]):
            other = self._seen[np.asarray(binding.species) != atoms.numbers[self._seen]]
            raise TopologyError(
                f"the topology has other elements than ASE's Atoms at {_named(atoms, other)}; give the topology of the "
                "same atoms in the same order"
            )
        told = self.model.tell_bonds(binding, self._topology)
        return told.species, told.bonds

    def _choose(self, atoms: Atoms) -> None:
        """Set which atoms get forces, and which the model sees."""
        everything = np.arange(len(atoms))
        if not len(atoms):
            raise TopologyError("there are no atoms to compute forces of")
        self._targets = everything
        if self._chosen is not None:
            self._targets = np.array(read_indices(self._chosen, len(atoms), "targets"))
        self._seen = self._targets if self.mode == "embedded" else everything

    def _check_held(self, atoms: Atoms) -> None:
        held = [c.index for c in atoms.constraints if isinstance(c, FixAtoms)]
        free = np.setdiff1d(np.arange(len(atoms)), np.concatenate([self._targets, *held]))
        if len(free):
            raise ForceModeError(
                f"the model predicts forces on {len(self._targets)} targets only, and {len(free)} other atoms are free "
                f"to move without any ({_named(atoms, free)}); hold them: atoms.set_constraint(FixAtoms([...]))"
            )


def _cell(atoms: Atoms, cutoff: float) -> tuple[np.ndarray | None, np.ndarray]:
    """Return the cell in OpenMM's orientation (3, 3) nm, None without periodicity, and the rotation to it (3, 3)."""
    if not atoms.pbc.any():
        return None, np.eye(3)
    if not atoms.pbc.all():
        raise BoxError(
            f"the atoms are periodic along some axes only (pbc = {atoms.pbc.tolist()}); the model knows all or none. "
            "Set atoms.pbc = True with vacuum in the cell, or atoms.pbc = False"
        )
    rows = units.ANGSTROM * np.asarray(atoms.cell)
    check_box(torch.tensor(rows), 0.0)
    rows = minkowski_reduce(rows)[0]  # the same lattice in its shortest vectors
    if np.linalg.det(rows) < 0:
        rows[2] *= -1
    rotation, upper = np.linalg.qr(rows.T)
    signs = np.sign(np.diag(upper))
    rotation, lower = rotation * signs, (upper * signs[:, None]).T
    check_box(torch.tensor(lower), cutoff)
    return np.ascontiguousarray(lower), rotation


def _named(atoms: Atoms, indices: np.ndarray[Any, np.dtype[Any]]) -> str:
    """Return symbols and indices of the first atoms of some, and how many more there are."""
    return some([f"{chemical_symbols[atoms.numbers[i]]} (atom {i})" for i in indices])
