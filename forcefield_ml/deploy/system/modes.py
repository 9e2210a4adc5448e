"""How a model joins a System: four modes, each refused where the card says that the physics would be wrong.

| mode         | force on the atoms chosen     | force on the others                  | card must say                 |
|--------------|-------------------------------|--------------------------------------|-------------------------------|
| `system`     | the network's, every atom     | (there are none)                     | predicts total, of all atoms  |
| `solute`     | the network's alone           | full MM, the solute's part included  | predicts total                |
| `embedded`   | network inside, MM across     | full MM                              | predicts solute_alone         |
| `correction` | full MM plus the network's    | full MM                              | predicts reference_minus_mm   |

In modes `system` and `solute` a model that predicts total_minus_reciprocal serves as well: the reciprocal-space sum,
which OpenMM then computes from the charges (`reciprocal`), is added wherever the network's force acts. A model that
predicts refinement serves none: what it predicts are displacements and no forces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import openmm

from forcefield_ml import units
from forcefield_ml.data.target import quantity_of
from forcefield_ml.deploy.force.openmm_force import BOX_TOLERANCE
from forcefield_ml.deploy.system.mm import BAROSTATS, FORCELESS, class_name
from forcefield_ml.errors import BoxError, ForceModeError, closest
from forcefield_ml.units import FORCE

MODES = ("system", "solute", "embedded", "correction")

NEEDED = {
    "system": ("total", "total_minus_reciprocal"),
    "solute": ("total", "total_minus_reciprocal"),
    "embedded": ("solute_alone",),
    "correction": ("reference_minus_mm",),
}
"""What the card may say under ``predicts`` for each mode."""

MEANING = {
    "total": "the total force, as the full system exerts it",
    "total_minus_reciprocal": "the total force without the reciprocal-space sum",
    "solute_alone": "the force that the chosen atoms exert on each other",
    "reference_minus_mm": "the difference between a reference and the MM force",
    "refinement": "where the atoms of a candidate structure should move",
    "magnitude": "how large a force is, without a direction",
}


def modes_of(card: Mapping[str, Any]) -> list[str]:
    """Return the modes that a model serves.

    Parameters
    ----------
    card
        Of the model.
    """
    fitting = [mode for mode in MODES if card["predicts"] in NEEDED[mode]]
    return [mode for mode in fitting if mode != "system" or card["target_atoms"] == "all"]


def require_forces(card: Mapping[str, Any]) -> None:
    """Refuse a model whose vectors are no forces.

    Parameters
    ----------
    card
        Of the model.

    Raises
    ------
    ForceModeError
        If it predicts something else; says what the model is for.
    """
    if quantity_of(card["predicts"]) is not FORCE:
        raise ForceModeError(
            f"by its card this model predicts {card['predicts']!r} ({MEANING[card['predicts']]}): displacements and no "
            "forces, which no simulation, minimisation or energy can be made of. It refines a structure: "
            "forcefield-ml refine MODEL STRUCTURE -o OUT"
        )


def check_mode(card: dict[str, Any], mode: str) -> None:
    """Refuse a mode in which what the model predicts would be counted twice or left out.

    Parameters
    ----------
    card
        Of the model.
    mode
        One of `MODES`.

    Raises
    ------
    ForceModeError
        If there is no such mode or the card does not allow it; names the mode it does allow.
    """
    if mode not in MODES:
        raise ForceModeError(f"no mode {mode!r}.{closest(mode, MODES)}")
    require_forces(card)
    predicts = card["predicts"]
    if predicts not in NEEDED[mode]:
        needed = " or ".join(f"{name!r} ({MEANING[name]})" for name in NEEDED[mode])
        fitting = ", ".join(map(repr, modes_of(card)))
        raise ForceModeError(
            f"mode {mode!r} needs a model that predicts {needed}; by its card this one predicts {predicts!r} "
            f"({MEANING[predicts]}). Modes for it: {fitting or 'none'}"
        )
    if mode == "system" and card["target_atoms"] != "all":
        raise ForceModeError(
            "mode 'system' needs a model trained on the forces of all atoms; by its card this one was trained on "
            "solute atoms only and knows nothing of the forces on water. Use an MM system and mode 'solute': "
            "model.add_to_system(forcefield.createSystem(topology, nonbondedMethod=PME), topology)"
        )


def check_system(
    system: openmm.System,
    box: list[list[float]] | None,
    atoms: Sequence[int],
    mode: str,
    energy: bool,
) -> None:
    """Refuse a System that the model must not join.

    Parameters
    ----------
    system
        The MM system, not yet changed.
    box
        Of the topology, nm; None where it has none.
    atoms
        That will feel the model.
    mode
        One of `MODES`.
    energy
        Whether the model has an energy.

    Raises
    ------
    BoxError
        If one is periodic and the other is not, or their boxes differ.
    ForceModeError
        If the System has constraints on the chosen atoms, a barostat without an energy to act on,
        or, in mode `system`, forces of its own.
    """
    _check_boxes_agree(system, box)
    forces = list(system.getForces())
    if mode != "system" and not any(class_name(force) not in FORCELESS for force in forces):
        raise ForceModeError(
            f"the system has no forces, but mode {mode!r} adds the model to an MM system; make one with "
            "forcefield.createSystem(topology, ...)"
        )
    for force in forces:
        if not energy and class_name(force) in BAROSTATS:
            raise ForceModeError(barostat_message(class_name(force)))
        if mode == "system" and class_name(force) not in FORCELESS:
            raise ForceModeError(
                f"in mode 'system' the model gives the whole force, but the system holds a {force.getName()}, which "
                "would be counted twice; use model.create_system(topology)"
            )
    check_constraints(system, atoms)


def check_constraints(system: openmm.System, atoms: Sequence[int]) -> None:
    """Refuse constraints on atoms that feel a model: all models are trained on forces of flexible molecules.

    Parameters
    ----------
    system
        With constraints or without.
    atoms
        That feel the model.

    Raises
    ------
    ForceModeError
        If a constraint acts on one of them.
    """
    chosen = set(atoms)
    pairs = [system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints())]
    bound = [pair for pair in pairs if chosen.intersection(pair)]
    if bound:
        raise ForceModeError(
            f"{len(bound)} constraints act on the atoms that feel the model (first: atoms {bound[0][0]} and "
            f"{bound[0][1]}), but the model was trained on forces of flexible molecules. Make the MM system with "
            "constraints=None and, where the model acts on water, rigidWater=False (rigidWater=True may stay for a "
            "solvent that the model does not move) and a time step of 0.5 to 1 fs"
        )


def barostat_message(name: str) -> str:
    """Return why a barostat is refused and what to do."""
    return (
        f"a {name} accepts moves by the energy, and this model, or any in mode 'solute', has none: the box would "
        "inflate or collapse. Run at constant volume: equilibrate the box with the MM force field first, then add the "
        "model without a barostat"
    )


def _check_boxes_agree(system: openmm.System, box: list[list[float]] | None) -> None:
    periodic = system.usesPeriodicBoundaryConditions()
    has_forces = any(class_name(force) not in FORCELESS for force in system.getForces())
    if not has_forces:
        return
    if periodic != (box is not None):
        raise BoxError(
            f"the system is {'periodic' if periodic else 'not periodic'}, but the topology has "
            f"{'no box' if box is None else 'a box'}; set it with topology.setPeriodicBoxVectors, or make the system "
            "with the nonbonded method that fits"
        )
    if box is not None:
        default = np.array([units.strip(row, "nanometer") for row in system.getDefaultPeriodicBoxVectors()])
        if np.abs(default - np.array(box)).max() > BOX_TOLERANCE:
            raise BoxError(
                f"the system's box {default.round(4).tolist()} is not the topology's {np.array(box).round(4).tolist()}"
                " (nm); set the topology's with topology.setPeriodicBoxVectors(the current box)"
            )
