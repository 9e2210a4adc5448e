"""Find the models in a System: which force, which atoms, what it was bound to."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import openmm

from forcefield_ml.deploy.force.openmm_force import NO_ENERGY, REFERENCE, WITH_ENERGY, ModelCallable
from forcefield_ml.deploy.stored.pickles import RefusedPickle
from forcefield_ml.deploy.stored.serialise import PYTHON_FORCE, unpickle
from forcefield_ml.errors import ForceModeError


@dataclass(frozen=True)
class BoundModel:
    """A model's force in a System.

    Attributes
    ----------
    force
        In the System.
    backend
        "pythonforce" or "torchforce".
    has_energy
        Whether minimisers and barostats have a meaning.
    targets
        Indices of the particles that get the model's force, ascending.
    inputs, species
        Indices and atomic numbers of the particles that the model sees.
    box
        Three rows in nm as bound, None where there is no periodicity.
    device
        As asked for: "auto", "cpu", ...; TorchForce follows the platform, "auto".
    removes_net_force
        Whether the mean force is taken off, so that the forces sum to zero.
    """

    force: openmm.Force
    backend: str
    has_energy: bool
    targets: list[int]
    inputs: list[int]
    species: list[int]
    box: list[list[float]] | None
    device: str
    removes_net_force: bool


def bound_models(system: openmm.System, made: dict[int, Any] | None = None) -> list[BoundModel]:
    """Return the models whose forces a System holds; a PythonForce is known by what it calls, not by its name.

    Parameters
    ----------
    system
        Made in this process, or read from XML.
    made
        What `callables` returned of it, where that is known already: in mode `solute` a whole MM system is read.

    Raises
    ------
    ForceModeError
        If a force has a model's name and is none.
    """
    made = callables(system) if made is None else made
    models = []
    for index, force in enumerate(system.getForces()):
        if force.getName().startswith(REFERENCE):
            continue  # the conservative reference of multiple time stepping may be a model, and is none that acts
        if isinstance(made.get(index), ModelCallable) or force.getName() in (NO_ENERGY, WITH_ENERGY):
            python = type(force).__name__ == PYTHON_FORCE
            models.append(_of_python_force(force, made.get(index)) if python else of_torch_force(force))
    return models


def callables(system: openmm.System) -> dict[int, Any]:
    """Return what the PythonForces of ours in a System call, by the index of the force.

    Parameters
    ----------
    system
        Made in this process, or read from XML; forces of others in it are left out.
    """
    made = {}
    for index, force in enumerate(system.getForces()):
        if type(force).__name__ == PYTHON_FORCE:
            with suppress(RefusedPickle):
                made[index] = callable_of(force)
    return made


def callable_of(force: openmm.Force) -> Any:
    """Return what a PythonForce of ours calls, without running anything.

    Raises
    ------
    RefusedPickle
        If it is not one of ours.
    """
    try:
        stored = ElementTree.fromstring(openmm.XmlSerializer.serialize(force)).get("function", "")
    except Exception as error:  # of any type: what pickle says of a function of others
        raise RefusedPickle(f"a function that cannot be stored ({error})") from None
    return unpickle(bytes.fromhex(stored))


def _of_python_force(force: openmm.Force, made: Any) -> BoundModel:
    if not isinstance(made, ModelCallable):
        raise ForceModeError(_foreign(force, "it calls a function of another program"))
    bound = made.binding
    try:
        return BoundModel(
            force,
            "pythonforce",
            made.has_energy,
            bound["targets"],
            bound["inputs"],
            bound["species"],
            bound["box"],
            made.device,
            bound.get("remove_net_force", False),  # Systems stored by 0.2.0 before it was there
        )
    except KeyError as error:
        raise ForceModeError(_foreign(force, f"its binding lacks {error}")) from None


def of_torch_force(force: openmm.Force) -> BoundModel:
    """Return what a TorchForce of ours was bound to.

    Parameters
    ----------
    force
        In a System.

    Raises
    ------
    ForceModeError
        If it is none of ours.
    """
    import openmmtorch

    try:
        module = openmmtorch.TorchForce.cast(force).getModule()
        return BoundModel(
            force,
            "torchforce",
            bool(module.box_may_change),
            module.rows.tolist(),
            module.inputs.tolist(),
            module.species.tolist(),
            module.box.tolist() if module.periodic else None,
            "auto",
            bool(module.remove_net_force),
        )
    except (AttributeError, RuntimeError) as error:
        raise ForceModeError(_foreign(force, str(error))) from None


def _foreign(force: openmm.Force, why: str) -> str:
    name = force.getName()
    return f"the force named {name} is none that this program made ({why}); give forces of your own another name"
