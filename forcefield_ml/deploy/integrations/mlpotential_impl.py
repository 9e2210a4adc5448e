"""What openmm-ml calls: a model as one of its potentials, with the modes and refusals of `DeployedModel`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import openmm
from openmm import app
from openmmml.mlpotential import MLPotentialImpl

from forcefield_ml.deploy.force.indices import read_indices
from forcefield_ml.deploy.force.openmm_force import NO_ENERGY, WITH_ENERGY
from forcefield_ml.deploy.guards.order import check_order
from forcefield_ml.deploy.integrations.mlpotential import refuse_unknown
from forcefield_ml.deploy.model import PART, load
from forcefield_ml.deploy.system.mm import class_name, hold_centre, require_separable, silence_offsets
from forcefield_ml.deploy.system.modes import check_mode, check_system
from forcefield_ml.deploy.system.present import refuse_overlap
from forcefield_ml.deploy.system.reciprocal import RECIPROCAL
from forcefield_ml.errors import ForceModeError

EMBEDDINGS = ("solute", "embedded", "correction")
"""Our modes that openmm-ml's ``createMixedSystem(..., embedding=...)`` takes beside its own ``"mechanical"``."""

INTERPOLATION = (
    "interpolate=True mixes the energies of two potentials by lambda_interpolate, and {}: free energies along it would "
    "have no meaning. Leave interpolate out"
)


class ForcefieldMLPotential(MLPotentialImpl):
    """A model in openmm-ml's words.

    ``createSystem`` is mode `system`. ``createMixedSystem`` with openmm-ml's ``"mechanical"`` embedding, its default,
    is mode `embedded`; with `EMBEDDINGS` it is the mode of that name, by our own code. Constraints among the ML atoms
    are always removed, with ``removeConstraints=False``, too: models are trained on forces of flexible molecules.

    Parameters
    ----------
    model
        A model.pt, or the name of a model that ships with the package.
    device
        As for `forcefield_ml.load`.
    """

    def __init__(self, model: Path | str, device: str = "auto"):
        self.model = load(model, device)

    def addForces(
        self,
        topology: app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        *,
        backend: str = "auto",
        allow_residues: Iterable[str] = (),
        charges: Any = None,
        remove_net_force: bool | None = None,
        **args: Any,
    ) -> None:
        """Add the model to a System that openmm-ml has prepared.

        Parameters
        ----------
        topology
            With hydrogens and, where periodic, the box.
        system
            Without forces if `atoms` is None; else the MM system without the terms among `atoms`.
        atoms
            Indices of the ML atoms, None for all.
        forceGroup
            Of the model's force, and of the reciprocal-space sum if it brings one.
        backend, allow_residues
            As for `DeployedModel.create_force`.
        charges
            As for `DeployedModel.create_system`.
        remove_net_force
            As for `DeployedModel.create_system`; for a part of a system leave it out.
        args
            Must be empty.

        Raises
        ------
        ForceModeError
            If the card does not allow the mode, something in the System forbids it, or without an energy there is
            nothing to interpolate.
        TopologyError, BoxError
            As `DeployedModel.create_force`.
        """
        options = ("backend", "allow_residues", "charges", "remove_net_force")
        refuse_unknown("createSystem or createMixedSystem", args, options)
        if atoms is None:
            self.model.add_to_system(
                system,
                topology,
                mode="system",
                backend=backend,
                allow_residues=allow_residues,
                charges=charges,
                remove_net_force=remove_net_force,
            )
            _set_group(system, forceGroup)
            _leave_the_remover(system)
            return
        self._require("embedded")
        if remove_net_force:
            raise ForceModeError(PART.format("embedded"))
        atoms = list(atoms)
        if any(isinstance(atom, bool | np.bool_) for atom in atoms):
            raise ForceModeError(
                "openmm-ml itself takes atoms as indices, and a mask for atoms 0 and 1; with NumPy, "
                "give atoms=numpy.flatnonzero(mask)"
            )
        self.model.create_reciprocal_force(topology, charges)  # refuses charges that nobody needs
        interpolating = system.getNumParticles() == 0  # openmm-ml collects the forces in a System of its own
        if interpolating and not self.model.has_energy:
            raise ForceModeError(INTERPOLATION.format("this model has none"))
        force, binding = self.model.bound_force(topology, atoms, backend, allow_residues)
        if not interpolating:
            check_order(system, topology)
            refuse_overlap(system, binding, "embedded")
            require_separable(system, binding.targets)
            _release(system, set(binding.targets))
            check_system(system, binding.box, binding.targets, "embedded", self.model.has_energy)
            for other in system.getForces():
                if isinstance(other, openmm.NonbondedForce):
                    silence_offsets(other, set(binding.targets))
            if not self.model.has_energy:
                hold_centre(system)
        force.setForceGroup(forceGroup)
        system.addForce(force)

    def getSupportedEmbeddings(self) -> list[str]:
        """Return `EMBEDDINGS`."""
        return list(EMBEDDINGS)

    def createMixedSystem(
        self,
        topology: app.Topology,
        system: openmm.System,
        atoms: list[int],
        forceGroup: int,
        interpolate: bool,
        embedding: str,
        returnInfo: bool = False,
        *,
        backend: str = "auto",
        mm_platform: str = "auto",
        allow_residues: Iterable[str] = (),
        **args: Any,
    ) -> openmm.System:
        """Return a copy of an MM system with the model in the mode named `embedding`.

        Parameters
        ----------
        topology
            With hydrogens and, where periodic, the box.
        system
            The MM system.
        atoms
            Indices of the ML atoms.
        forceGroup
            Of the model's force, and of the reciprocal-space sum if it brings one. The force that takes the MM forces
            off the solute in mode `solute` stays in group 0, where MM is: the two must act together.
        interpolate
            Must be False.
        embedding
            One of `EMBEDDINGS`.
        returnInfo
            Not needed: topology and indices stay as they are.
        backend, mm_platform, allow_residues
            As for `DeployedModel.add_to_system`.
        args
            Must be empty.

        Raises
        ------
        ForceModeError, TopologyError, BoxError
            As `DeployedModel.add_to_system`, or if `interpolate` is asked for.
        """
        refuse_unknown("createMixedSystem", args, ("backend", "mm_platform", "allow_residues"))
        if interpolate:
            raise ForceModeError(INTERPOLATION.format(f'embedding "{embedding}" has no energy of its own'))
        self._require(embedding)
        mixed = copy.deepcopy(system)
        atoms = read_indices(atoms, topology.getNumAtoms())
        _release(mixed, set(atoms))
        mixed = self.model.add_to_system(
            mixed,
            topology,
            atoms,
            mode=embedding,
            backend=backend,
            mm_platform=mm_platform,
            allow_residues=allow_residues,
        )
        _set_group(mixed, forceGroup)
        return mixed

    def getMLLongRange(self) -> bool:
        """Return False: a network sees as far as its cutoff."""
        return False

    def _require(self, mode: str) -> None:
        """Refuse a mode by the card, and say what openmm-ml calls the one that fits."""
        try:
            check_mode(self.model.card, mode)
        except ForceModeError as error:
            raise ForceModeError(
                f"{error}. In openmm-ml, mode 'system' is createSystem(topology), mode 'embedded' "
                "createMixedSystem(topology, system, atoms), the other modes "
                "createMixedSystem(..., embedding=MODE)"
            ) from None


def _set_group(system: openmm.System, group: int) -> None:
    for force in system.getForces():
        if force.getName() in (NO_ENERGY, WITH_ENERGY, RECIPROCAL):
            force.setForceGroup(group)


def _leave_the_remover(system: openmm.System) -> None:
    """Take out our `CMMotionRemover`: openmm-ml's createSystem adds its own, or none where removeCMMotion=False."""
    for index in reversed(range(system.getNumForces())):
        if class_name(system.getForce(index)) == "CMMotionRemover":
            system.removeForce(index)


def _release(system: openmm.System, atoms: set[int]) -> None:
    """Remove the constraints among some atoms, and say so."""
    inside = [k for k in range(system.getNumConstraints()) if atoms.issuperset(system.getConstraintParameters(k)[:2])]
    for k in reversed(inside):
        system.removeConstraint(k)
    if inside:
        warnings.warn(
            f"{len(inside)} constraints among the ML atoms are removed, since the model was trained on flexible "
            "molecules: take a time step of 0.5 to 1 fs",
            stacklevel=4,
        )
