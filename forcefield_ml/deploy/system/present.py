"""What already acts in a System besides OpenMM's own forces: our models, and programs of others; and on which atoms."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import openmm

from forcefield_ml.deploy.force.binding import Binding, some
from forcefield_ml.deploy.force.openmm_force import OURS, REFERENCE
from forcefield_ml.deploy.stored.pickles import RefusedPickle
from forcefield_ml.deploy.stored.serialise import PYTHON_FORCE, TORCH_FORCE
from forcefield_ml.deploy.system.bound import BoundModel, callable_of, of_torch_force
from forcefield_ml.errors import ForceModeError


class Present(NamedTuple):
    """A force in a System that is none of OpenMM's own.

    Attributes
    ----------
    name
        Of the force.
    kind
        ``"model"`` for one of ours, ``"mm"`` for what our mode `solute` adds beside a model, ``"reference"`` for what
        multiple time stepping takes in place of them, ``"foreign"``.
    atoms
        Those it acts on, ascending; None where that is not known, so that it may be all.
    backend
        `PYTHON_FORCE`, `TORCH_FORCE` or ``"plugin"``.
    """

    name: str
    kind: str
    atoms: tuple[int, ...] | None
    backend: str


def present(system: openmm.System) -> list[Present]:
    """Return the forces of a System that run Python or TorchScript, or belong to a plugin that Python cannot see.

    Parameters
    ----------
    system
        Made here or read from XML.
    """
    return [found for force in system.getForces() if (found := look(force)) is not None]


def refuse_overlap(system: openmm.System, binding: Binding, mode: str) -> None:
    """Refuse a System in which the atoms chosen feel a model already, or may do so.

    Two models on atoms of their own are two models: each force is counted once.

    Parameters
    ----------
    system
        Not yet changed.
    binding
        Of the model that shall join.
    mode
        In which it shall join.

    Raises
    ------
    ForceModeError
        Naming the atoms, or what is not known.
    """
    labels = dict(zip(binding.inputs, binding.labels, strict=True))
    for other in present(system):
        if other.kind in ("mm", "reference"):
            continue  # acts on the same atoms as its model
        if other.atoms is None:
            raise ForceModeError(
                f"the system holds {_what(other)}, which may act on every atom, so that forces could be counted twice. "
                "Add the model of forcefield-ml first and the other force afterwards, restricted to other atoms "
                "(PythonForce.setParticles, or the atoms of MLPotential.createMixedSystem)"
            )
        common = sorted(set(other.atoms).intersection(binding.targets))
        if common:
            raise ForceModeError(
                f"the system holds a model already: {_what(other)} acts on {len(common)} of the atoms chosen "
                f"({some([labels.get(i, f'atom {i}') for i in common])}); a second would count their forces twice. "
                "Choose other atoms (atoms=[...]), or make the MM system anew"
            )
        if mode == "solute":
            raise ForceModeError(
                f"the system holds {_what(other)}. Mode 'solute' replaces all that acts on its atoms and cannot tell "
                "what that force does; add the model with mode 'solute' first and the other afterwards, or give all "
                "atoms to one model"
            )
        if mode == "embedded" and other.backend != PYTHON_FORCE:
            raise ForceModeError(
                f"the system holds {_what(other)}. Mode 'embedded' works on a copy of the System, which OpenMM cannot "
                "make with a TorchForce in it; add both models with backend='pythonforce'"
            )


def refuse_overlaps_within(models: Sequence[BoundModel]) -> None:
    """Refuse models of one System of which two act on the same atom.

    Parameters
    ----------
    models
        Of `bound.bound_models`.

    Raises
    ------
    ForceModeError
        Naming the atoms by index.
    """
    for one, other in combinations(models, 2):
        common = sorted(set(one.targets) & set(other.targets))
        if common:
            raise ForceModeError(
                f"the system holds two models that both act on atoms {some([str(i) for i in common])}; their forces "
                "would add up. Keep one of them there (atoms=[...] when adding a model)"
            )


def look(force: openmm.Force) -> Present | None:
    """Return what a force of a System is, or None for one of OpenMM's own.

    Parameters
    ----------
    force
        Of ``System.getForces``.
    """
    kind = type(force).__name__
    if force.getName().startswith(REFERENCE):
        return Present(force.getName(), "reference", None, kind)
    if kind == PYTHON_FORCE:
        return _python_force(force)
    if kind not in ("Force", TORCH_FORCE):
        return None
    module = sys.modules.get("openmmtorch")  # whoever made a TorchForce in this process has imported it
    if module is None or not module.TorchForce.isinstance(force):
        return Present(force.getName(), "foreign", None, "plugin")
    if not force.getName().startswith(OURS):
        return Present(force.getName(), "foreign", None, TORCH_FORCE)
    return Present(force.getName(), "model", tuple(of_torch_force(force).targets), TORCH_FORCE)


def _python_force(force: Any) -> Present:
    name = force.getName()
    try:
        ours = callable_of(force)
    except RefusedPickle:
        return Present(name, "foreign", tuple(force.getParticles()) or None, PYTHON_FORCE)
    if hasattr(ours, "system_xml"):
        return Present(name, "mm", tuple(sorted(ours.atoms)), PYTHON_FORCE)
    return Present(name, "model", tuple(sorted(ours.binding["targets"])), PYTHON_FORCE)


def _what(found: Present) -> str:
    if found.kind == "model":
        return f"a model of forcefield-ml (the {found.backend} {found.name!r})"
    return f"the {found.backend} {found.name!r} of another package"
