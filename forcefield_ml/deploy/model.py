"""A loaded model, as a user of OpenMM meets it."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openmm
import torch
from openmm import app

from forcefield_ml import pretrained, units
from forcefield_ml.bonded.module import table_of
from forcefield_ml.bonded.table import BondedTable
from forcefield_ml.deploy.force import openmm_force
from forcefield_ml.deploy.force.binding import Binding, bind, bind_atoms, bonded, solute_atoms
from forcefield_ml.deploy.force.device import check_precision, choose_device
from forcefield_ml.deploy.force.indices import read_indices
from forcefield_ml.deploy.force.openmm_force import WITH_ENERGY, BackendChoice, choose_backend
from forcefield_ml.deploy.guards.coordinates import check_unit, read_positions
from forcefield_ml.deploy.guards.order import check_order
from forcefield_ml.deploy.model_file import bundle
from forcefield_ml.deploy.stored.locate import record
from forcefield_ml.deploy.system.masses import repartition
from forcefield_ml.deploy.system.mm import hold_centre, make_subtract_mm, remove_internal_terms
from forcefield_ml.deploy.system.modes import check_mode, check_system, require_forces
from forcefield_ml.deploy.system.present import refuse_overlap
from forcefield_ml.deploy.system.reciprocal import Charges, make_reciprocal, put_on_solute
from forcefield_ml.errors import ConfigError, ForcefieldMLError, ForceModeError
from forcefield_ml.graph.box import check_box
from forcefield_ml.models.interface import Prediction
from forcefield_ml.nn.atom_types import AtomTypes
from forcefield_ml.nn.embedding import types_of

logger = logging.getLogger(__name__)

NEAREST_WARNING = (
    "the model sees the nearest atoms by number, so its force jumps when neighbours change places: fit for single "
    "points and short thermostatted runs, not for energy conservation; a model with a smooth cutoff is better for "
    "dynamics"
)

PART = (
    "remove_net_force=True in mode {!r}: forces on a part of a system do not sum to zero, and taking off their mean "
    "would be wrong; leave it out (it is for mode 'system', where it is the default)"
)


def load(path: Path | str = pretrained.DEFAULT, device: str = "auto") -> DeployedModel:
    """Load a model.pt. Nothing in it is run, and it can do nothing but compute.

    Parameters
    ----------
    path
        The file, or the name of a model that ships with the package (`forcefield_ml.pretrained.names`).
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``; see `device.choose_device`.

    Returns
    -------
    DeployedModel
        Ready to make forces.

    Raises
    ------
    ModelFileError
        If the file is missing, damaged, foreign, of a newer format, or holds more than a network.
    ConfigError
        If there is no such device here.
    """
    chosen = choose_device(device)
    path = pretrained.resolve(path)
    card, module, sha256 = bundle.read(path, device=chosen)
    check_precision(module.precision.dtype, str(path))
    return DeployedModel(Path(path).resolve(), card, sha256, chosen, device)


class DeployedModel:
    """A model read from model.pt; made by `load`.

    Attributes
    ----------
    path : Path
        The file.
    sha256 : str
        Of the file.
    card : dict
        What it is, what it predicts, where it comes from.
    device : str
        Where it runs.
    """

    def __init__(self, path: Path, card: dict[str, Any], sha256: str, device: str, wanted: str):
        self.path = path
        self.card = card
        self.sha256 = sha256
        self.device = device
        self._wanted_device = wanted

    def __repr__(self) -> str:
        card = self.card
        return (
            f"<{card['architecture']} model: predicts {card['predicts']} of {card['target_atoms']} atoms, {self.path}>"
        )

    @property
    def backend_choice(self) -> BackendChoice:
        """What ``backend="auto"`` takes here, and why."""
        return choose_backend("auto")

    @property
    def has_energy(self) -> bool:
        """Whether the forces are the gradient of an energy.

        So that minimisers, barostats and runs at constant energy have a meaning, as long as the forces act on every
        atom the model sees: never in mode `solute`, nor where a correction acts on some atoms alone.
        """
        return bool(self.card["energy"])

    @property
    def atom_types(self) -> AtomTypes | None:
        """The atom types that the model knows; None where it knows elements alone."""
        return types_of(bundle.read_cached(str(self.path), self.sha256, self.device).module)

    @property
    def needs_bonds(self) -> bool:
        """Whether the model wants to know bonds: for atom types, or for bonded terms that it brings."""
        return self.atom_types is not None or self.bonded_table is not None

    @property
    def bonded_table(self) -> BondedTable | None:
        """The bonded terms that the model brings beside its network; None for a model without such."""
        return table_of(bundle.read_cached(str(self.path), self.sha256, self.device).module)

    def tell_bonds(self, binding: Binding, topology: app.Topology) -> Binding:
        """Return a binding with what this model wants to know of bonds; parameters as of `binding.bonded`."""
        return bonded(binding, topology, self.atom_types, self.bonded_table)

    def evaluator(
        self,
        species: torch.Tensor,
        targets: torch.Tensor | None = None,
        bonds: Sequence[Sequence[int]] | None = None,
    ) -> Callable[[torch.Tensor, torch.Tensor | None], Prediction]:
        """Return what predicts for one system, step after step: positions and box in nm to `Prediction`.

        Parameters
        ----------
        species
            (N,) int64, atomic numbers, on the model's device; for a model of atom types their codes (`atom_types`).
        targets
            (N,) bool, the atoms to predict; None for all.
        bonds
            (B, 2) indices of bonded atoms, for a model that brings bonded terms (`bonded_table`); None for another.

        Raises
        ------
        ConfigError
            If the model brings bonded terms and is told no bonds.
        """
        loaded = bundle.read_cached(str(self.path), self.sha256, self.device)
        return openmm_force.evaluator_of(loaded, species, targets, bonds)

    def forces(
        self,
        positions: Any,
        box: Any = None,
        *,
        species: Sequence[int] | None = None,
        topology: app.Topology | None = None,
        atoms: Iterable[int] | None = None,
        allow_residues: Iterable[str] = (),
    ) -> np.ndarray:
        """Return the network's forces without OpenMM; what OpenMM would supply besides is not in them.

        Parameters
        ----------
        positions
            (N, 3), Quantity or nm.
        box
            (3, 3), Quantity or nm, vectors as rows; None where there is no periodicity (the topology's box is not
            taken).
        species
            (N,) atomic numbers; or else give `topology`. That hydrogens are complete, that the model was trained on
            such residues and on forces of these atoms, can be checked only with a topology.
        topology
            With hydrogens; checked as by `create_force`.
        atoms
            Indices of the atoms whose forces are wanted, or a mask. A model of the solute alone sees these atoms and
            no others. None takes what the card says: of a topology the protein or all, of species all.
        allow_residues
            As for `create_force`.

        Returns
        -------
        ndarray
            (n, 3) in kJ/mol/nm, in ascending order of atom.

        Raises
        ------
        ConfigError
            If neither or both of species and topology are given, there is not one position per atom, or an atomic
            number is unknown.
        BoxError, TopologyError, ForceModeError
            As `create_force`.
        """
        require_forces(self.card)
        if (species is None) == (topology is None):
            raise ConfigError("forces() needs to know the elements: give either species=[...] or topology=...")
        coordinates = read_positions(positions)
        cell = None
        if box is not None:
            cell = torch.tensor(np.array(units.strip(box, "nanometer"), dtype=float), device=self.device)
            check_box(cell, float(self.card["neighbours"]["cutoff"]))
        if topology is not None:
            if atoms is None and self._sees_targets_only:
                atoms = solute_atoms(topology)
            binding = bind_atoms(self.card, topology, atoms, self._sees_targets_only, allow_residues)
            binding = self.tell_bonds(binding, topology)
        else:
            assert species is not None
            if allow_residues:
                raise ConfigError(
                    "forces() was given allow_residues with species, which have no residues; give topology=..."
                )
            binding = self._bind_species(list(species), atoms)
        if len(coordinates) != binding.n_particles:
            raise ConfigError(
                f"forces() got {len(coordinates)} positions of {binding.n_particles} atoms; give one for each atom"
            )
        seen = coordinates[binding.inputs]
        check_unit(seen, binding.species)
        mask = None
        if len(binding.targets) < len(binding.inputs):
            mask = torch.from_numpy(np.isin(binding.inputs, binding.targets)).to(self.device)
        evaluate = self.evaluator(torch.tensor(binding.species, device=self.device), mask, binding.bonds)
        forces = evaluate(torch.tensor(seen, device=self.device), cell).forces
        if forces is None:
            raise ForcefieldMLError(f"the model {self.path} returned no forces")
        return forces.cpu().numpy()

    def _bind_species(self, species: list[int], atoms: Iterable[int] | None) -> Binding:
        """Return what `forces` needs of atoms that have an element and nothing else."""
        targets = list(range(len(species))) if atoms is None else read_indices(atoms, len(species))
        inputs = targets if self._sees_targets_only else list(range(len(species)))
        seen = [int(species[i]) for i in inputs]
        unknown = sorted(set(seen) - set(self.card["species"]))
        if self.needs_bonds:
            raise ConfigError("this model knows atoms by their bonds, which species do not tell: give topology=...")
        if unknown:
            raise ConfigError(f"forces() got unknown atomic numbers {unknown}; the model knows {self.card['species']}")
        return Binding(len(species), seen, inputs, targets, None, [f"atom {i}" for i in inputs])

    def create_force(
        self,
        topology: app.Topology,
        atoms: Iterable[int] | None = None,
        backend: str = "auto",
        allow_residues: Iterable[str] = (),
    ) -> openmm.Force:
        """Return an OpenMM force: the model's forces on `atoms`, zero elsewhere.

        Every particle is seen, by a model of the solute alone only `atoms`. Add it to a System by `add_to_system`
        unless you know what else acts on these atoms; `create_reciprocal_force` makes what some models need besides.

        Parameters
        ----------
        topology
            With hydrogens and, where periodic, the box.
        atoms
            Indices of the atoms that get the force; None takes what the card says: the protein, or all.
        backend
            ``"auto"``, ``"pythonforce"`` or ``"torchforce"``; both give the same forces.
        allow_residues
            Names of residues to let pass though the model was not trained on them; forces there are guesses.

        Returns
        -------
        openmm.Force
            Covers all particles of the topology.

        Raises
        ------
        TopologyError
            If an element or a residue is unknown to the model, hydrogens are missing, or `atoms` does not suit the
            topology.
        BoxError
            If the box is malformed or lower than twice the cutoff.
        ForceModeError
            If `atoms` holds solvent and the model was trained on solute only.
        """
        return self.bound_force(topology, atoms, backend, allow_residues)[0]

    @property
    def _sees_targets_only(self) -> bool:
        return bool(self.card["predicts"] == "solute_alone")

    @property
    def needs_reciprocal(self) -> bool:
        """Whether the model leaves the reciprocal-space sum of the Coulomb force to OpenMM."""
        return bool(self.card["predicts"] == "total_minus_reciprocal")

    def create_reciprocal_force(
        self, topology: app.Topology, charges: Charges | None = None
    ) -> openmm.NonbondedForce | None:
        """Return the OpenMM force of what the model leaves out, on every atom; None if it leaves out nothing.

        `add_to_system` and `create_system` add it by themselves.

        Parameters
        ----------
        topology
            With the box.
        charges
            An MM System whose NonbondedForce holds them, or one number for each atom, in e; None takes those of the
            force field that the card names.

        Raises
        ------
        BoxError
            If the topology has no box.
        ForceModeError
            If the charges cannot be found, the MM System has no PME, or charges are given that the model has no use
            for.
        """
        if self.needs_reciprocal:
            return make_reciprocal(self.card, topology, charges)
        if charges is not None:
            raise ForceModeError(
                f"this model predicts {self.card['predicts']!r} and leaves no reciprocal-space sum to OpenMM; leave "
                "out charges"
            )
        return None

    def bound_force(
        self,
        topology: app.Topology,
        atoms: Iterable[int] | None,
        backend: str,
        allow_residues: Iterable[str],
        conserves: bool = True,
        remove_net_force: bool = False,
    ) -> tuple[openmm.Force, Binding]:
        """Return the force of `create_force` and what it was bound to; parameters as there and of `add_to_system`.

        `conserves` tells whether what else acts has an energy; without one the box must not change even if the model
        has an energy of its own.
        """
        require_forces(self.card)
        binding = bind(self.card, topology, atoms, self._sees_targets_only, allow_residues)
        binding = self.tell_bonds(binding, topology)
        binding = replace(binding, remove_net_force=remove_net_force)
        has_energy = self.has_energy and conserves and binding.is_whole
        if self.card["neighbours"]["kind"] == "nearest":
            warnings.warn(NEAREST_WARNING, stacklevel=3)
        choice = choose_backend(backend)
        logger.info("%s serves %s: %s", choice.backend, self.path.name, choice.reason)
        if choice.backend == "torchforce":
            force = openmm_force.make_torch_force(str(self.path), self.sha256, binding, has_energy)
        else:
            force = openmm_force.make_python_force(
                record(self.path), self.sha256, binding, has_energy, self._wanted_device
            )
        return force, binding

    def create_system(
        self,
        topology: app.Topology,
        backend: str = "auto",
        allow_residues: Iterable[str] = (),
        charges: Charges | None = None,
        remove_net_force: bool | None = None,
        hydrogen_mass: Any = None,
    ) -> openmm.System:
        """Return a System in which the model gives the whole force on every atom (mode `system`).

        A model that leaves the reciprocal-space sum to OpenMM brings the force that computes it.

        Parameters
        ----------
        topology
            With hydrogens and, where periodic, the box.
        backend, allow_residues
            As for `create_force`.
        charges
            As for `create_reciprocal_force`.
        remove_net_force
            As for `add_to_system`.
        hydrogen_mass
            u or a quantity, as `hydrogenMass` of OpenMM's `ForceField.createSystem`: taken from the atom that a
            hydrogen is bonded to. Advised for a time step of 1 fs. None: masses of the elements.

        Returns
        -------
        openmm.System
            Masses, no constraints, the model's force, and a `CMMotionRemover` if that has no energy.

        Raises
        ------
        ForceModeError
            If the model was trained on solute atoms only; says how to use it.
        TopologyError, BoxError
            As `create_force`.
        ConfigError
            If the hydrogen mass is not allowed.
        """
        check_mode(self.card, "system")
        system = openmm.System()
        for atom in topology.atoms():
            system.addParticle(0.0 if atom.element is None else atom.element.mass)
        if hydrogen_mass is not None:
            repartition(system, topology, hydrogen_mass)
        return self.add_to_system(
            system,
            topology,
            mode="system",
            backend=backend,
            allow_residues=allow_residues,
            charges=charges,
            remove_net_force=remove_net_force,
        )

    def add_to_system(
        self,
        system: openmm.System,
        topology: app.Topology,
        atoms: Iterable[int] | None = None,
        mode: str = "solute",
        backend: str = "auto",
        mm_platform: str = "auto",
        allow_residues: Iterable[str] = (),
        charges: Charges | None = None,
        remove_net_force: bool | None = None,
    ) -> openmm.System:
        """Add the model to a System, in place where the mode allows it.

        Forces without an energy do not sum to zero, and in mode `solute` Newton's third law does not hold between
        solute and solvent, so that the centre of mass would drift: there a `CMMotionRemover` is added if there is
        none. In mode `solute` all that acts on the solute at this moment is replaced by the model, and no energy
        belongs to what is left, even if the model has one; restraints added afterwards act beside it. Where the model
        leaves the reciprocal-space sum to OpenMM, that is added on the same atoms as the model's force.

        Parameters
        ----------
        system
            The MM system made from `topology`, flexible where the model acts.
        topology
            With hydrogens and, where periodic, the box.
        atoms
            Indices of the atoms that feel the model; None takes the protein, in mode `system` all.
        mode
            One of `modes.MODES`; see there.
        backend
            As for `create_force`.
        mm_platform
            Of the inner MM Context of mode `solute`: ``"auto"`` takes the fastest there is.
        allow_residues
            As for `create_force`.
        charges
            As for `create_reciprocal_force`; None takes those of the MM system where there is one.
        remove_net_force
            Take the mean of the model's forces off every atom, so that they sum to zero, as those of a whole system
            do. None does so in mode `system`, unless the model has an energy, whose gradient sums to zero by itself.
            True is refused in the other modes: what acts on a part of a system has a net force.

        Returns
        -------
        openmm.System
            The same object, in mode `system` with the topology's box; in mode `embedded` a changed copy.

        Raises
        ------
        ForceModeError
            If the card does not allow the mode, or something in the System forbids it: another model on some of
            these atoms, a barostat.
        TopologyError, BoxError
            As `create_force`, or if system and topology do not fit together.
        """
        check_mode(self.card, mode)
        if atoms is None and mode != "system" and (mode != "correction" or self.card["target_atoms"] == "solute"):
            atoms = solute_atoms(topology)
        if mode == "system":
            atoms = range(topology.getNumAtoms())
        if remove_net_force and mode != "system":
            raise ForceModeError(PART.format(mode))
        if remove_net_force is None:
            remove_net_force = mode == "system" and not self.has_energy
        conserves = mode != "solute"  # nothing there is the gradient of an energy: MM is taken off some atoms alone
        force, binding = self.bound_force(topology, atoms, backend, allow_residues, conserves, remove_net_force)
        has_energy = force.getName() == WITH_ENERGY
        check_order(system, topology)
        refuse_overlap(system, binding, mode)
        check_system(system, binding.box, binding.targets, mode, has_energy)
        if charges is None and self.needs_reciprocal and mode != "system":
            charges = system
        reciprocal = self.create_reciprocal_force(topology, charges)
        if mode == "system" and topology.getPeriodicBoxVectors() is not None:
            system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
        if mode == "embedded":
            system = remove_internal_terms(system, binding.targets)
        if mode == "solute":
            system.addForce(make_subtract_mm(system, binding.targets, mm_platform))
        if not has_energy:
            hold_centre(system)
        if reciprocal is not None and mode == "solute":
            system.addForce(put_on_solute(reciprocal, system, binding.targets, mm_platform))
        elif reciprocal is not None:
            system.addForce(reciprocal)
        system.addForce(force)
        return system
