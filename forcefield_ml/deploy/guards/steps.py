"""How long a time step may be, for any integrator: the bonds that no constraint holds set it."""

from __future__ import annotations

import ast
import math
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import openmm

from forcefield_ml import units
from forcefield_ml.deploy.guards.stability import name_atoms
from forcefield_ml.errors import ForceModeError

WARN_STEP, LONGEST_STEP = 1.0, 2.0
"""fs, for hydrogens of 1 u that no constraint holds: their bonds swing with a period of 9 to 10 fs."""

HYDROGEN, PARTNER = 1.007, 12.011
"""u, of the two atoms of the fastest bond."""


@dataclass(frozen=True)
class FreeAtoms:
    """The fastest atom that no constraint holds.

    Attributes
    ----------
    lightest
        Its mass in u; infinite where every moving particle is held.
    atom
        Its index.
    name
        For messages.
    """

    lightest: float
    atom: int
    name: str = "an atom"

    @property
    def label(self) -> str:
        """Name and mass."""
        return f"{self.name} of {self.lightest:.3g} u"

    @property
    def stretch(self) -> float:
        """By how much slower than a hydrogen of 1 u it swings: the square root of the ratio of reduced masses."""
        if math.isinf(self.lightest):
            return math.inf
        return math.sqrt(_reduced(self.lightest) / _reduced(HYDROGEN))


def free_atoms(system: openmm.System, topology: Any = None) -> FreeAtoms:
    """Return the lightest particle that moves and that no constraint holds.

    Parameters
    ----------
    system
        With masses, heavy hydrogens included.
    topology
        To name it by, or None.
    """
    held = {i for k in range(system.getNumConstraints()) for i in system.getConstraintParameters(k)[:2]}
    lightest, atom = math.inf, -1
    for i in range(system.getNumParticles()):
        mass = float(units.strip(system.getParticleMass(i), "dalton"))
        if 0 < mass < lightest and i not in held:
            lightest, atom = mass, i
    return FreeAtoms(lightest, atom, name_atoms([atom] if atom >= 0 else [], topology))


def check_step(integrator: openmm.Integrator, group: int, free: FreeAtoms, stacklevel: int = 2) -> None:
    """Warn of a time step that is long for the bonds no constraint holds, refuse one that is too long.

    Integrators that evaluate force groups at intervals of their own (`openmm.MTSIntegrator` and its like) are judged
    by the interval of the model's group; those that choose their step, by the longest one they may choose.

    Parameters
    ----------
    integrator
        Any, compound ones included.
    group
        Force group of the model.
    free
        Of `free_atoms`.
    stacklevel
        For the warning.

    Raises
    ------
    ForceModeError
        If the step is too long, or the integrator leaves the model's force out.
    """
    for part in parts(integrator):
        step = interval(part, group)
        name = type(part).__name__
        if step is None:
            warnings.warn(
                f"this {name} chooses its time step by itself and without a limit; set one with "
                "integrator.setMaximumStepSize(0.001) (ps): 0.5 to 1 fs is right for bonds without constraints",
                stacklevel=stacklevel + 1,
            )
        elif 1000 * step > LONGEST_STEP * free.stretch * (1 + 1e-6):
            raise ForceModeError(
                f"the {name} evaluates the model every {1000 * step:.3g} fs, but no constraint holds {free.label}: at "
                f"most {LONGEST_STEP * free.stretch:.2g} fs is possible, {WARN_STEP / 2:g} to {WARN_STEP:g} fs is "
                "right. Use a smaller step, integrator.setStepSize(0.0005) (ps), or heavier hydrogens, "
                "forcefield.createSystem(..., hydrogenMass=3*unit.amu); constraints are no way out, since models are "
                "trained on forces of flexible molecules"
            )
        elif 1000 * step > WARN_STEP * free.stretch * (1 + 1e-6):
            warnings.warn(
                f"a time step of {1000 * step:.3g} fs is long for bonds that no constraint holds, as that of "
                f"{free.label}: up to {WARN_STEP * free.stretch:.2g} fs is usual, {WARN_STEP * free.stretch / 2:.2g} "
                "fs is safe",
                stacklevel=stacklevel + 1,
            )


def interval(integrator: openmm.Integrator, group: int, force: str = "the model's force") -> float | None:
    """Return how long atoms move between two evaluations of a force group, ps; None where nothing limits it.

    Parameters
    ----------
    integrator
        Not a compound one.
    group
        Of the force.
    force
        For the message.

    Raises
    ------
    ForceModeError
        If the integrator never evaluates the group.
    """
    if hasattr(integrator, "getMaximumStepSize"):
        longest = float(units.strip(integrator.getMaximumStepSize(), "picosecond"))
        return longest if longest > 0 else None
    step = float(units.strip(integrator.getStepSize(), "picosecond"))
    share = 1.0
    integrated = bool(integrator.getIntegrationForceGroups() >> group & 1)
    if isinstance(integrator, openmm.CustomIntegrator):
        share = _longest_share(list(_updates(integrator)), group, integrated)
    elif not integrated:
        share = 0.0
    if share == 0:
        raise ForceModeError(
            f"{force} is in force group {group}, which this {type(integrator).__name__} never evaluates: it would do "
            "nothing. Put it into a group that is integrated, force.setForceGroup(...), before the Context is made"
        )
    return share * step


def check_evaluated(integrator: openmm.Integrator, group: int, force: str) -> None:
    """Refuse an integrator, or a part of one, that never evaluates a force group; parameters as of `interval`."""
    for part in parts(integrator):
        interval(part, group, force)


def together(integrator: openmm.Integrator, one: int, other: int) -> bool:
    """Tell whether an integrator treats two force groups alike at all times, as `openmm.MTSIntegrator` does not.

    Parameters
    ----------
    integrator
        Any, compound ones included.
    one, other
        Force groups.
    """
    return all(_treatment(part, one) == _treatment(part, other) for part in parts(integrator))


def uses_energy(integrator: openmm.Integrator) -> bool:
    """Tell whether what a `openmm.CustomIntegrator` computes depends on the potential energy."""
    custom = [part for part in parts(integrator) if isinstance(part, openmm.CustomIntegrator)]
    return any(re.search(r"\benergy\d*\b", text) for part in custom for _, text in _updates(part))


def _treatment(integrator: openmm.Integrator, group: int) -> tuple[bool, list[str]]:
    """Return whether a group is integrated, and the expressions with its own force under one name."""
    texts = []
    if isinstance(integrator, openmm.CustomIntegrator):
        texts = [re.sub(rf"\bf{group}\b", "own", text) for _, text in _updates(integrator)]
    return bool(integrator.getIntegrationForceGroups() >> group & 1), texts


def _reduced(mass: float) -> float:
    return mass * PARTNER / (mass + PARTNER)


def parts(integrator: openmm.Integrator) -> Iterator[openmm.Integrator]:
    """Yield the integrators that a compound one is made of, or the one given."""
    if isinstance(integrator, openmm.CompoundIntegrator):
        for k in range(integrator.getNumIntegrators()):
            yield integrator.getIntegrator(k)
    else:
        yield integrator


def _updates(integrator: openmm.CustomIntegrator) -> Iterator[tuple[str, str]]:
    """Yield variable and expression of each computation, in order; blocks and constraints have neither."""
    for k in range(integrator.getNumComputations()):
        _, variable, expression = integrator.getComputationStep(k)
        if expression:
            yield variable, expression


def _longest_share(updates: list[tuple[str, str]], group: int, integrated: bool) -> float:
    """Return the largest share of a step that positions move between two uses of a group's force; 0 if unused.

    A bare f is the force of the groups to be integrated; f3 is that of group 3 in any case.
    """
    wanted = re.compile(rf"\b(f|f{group})\b" if integrated else rf"\bf{group}\b")
    uses = [bool(wanted.search(expression)) for _, expression in updates]
    if not any(uses):
        return 0.0
    moved, longest = 0.0, 0.0
    for (variable, expression), used in 2 * list(zip(updates, uses, strict=True)):  # twice: steps follow each other
        if used:
            longest, moved = max(longest, moved), 0.0
        if variable == "x":
            moved += _share(expression)
    return longest if 0 < longest <= 1 else 1.0


def _share(expression: str) -> float:
    """Return the share of a step that an update of x such as ``x+(dt/4)*v`` takes; 1 where it cannot be told."""
    try:
        return abs(_value(ast.parse(expression.strip(), mode="eval").body))
    except (SyntaxError, ValueError, ZeroDivisionError):
        return 1.0


def _value(node: Any) -> float:
    """Evaluate sums and products of numbers with x = 0, v = 1 and dt = 1."""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return float(node.value)
    if isinstance(node, ast.Name) and node.id in ("x", "v", "dt"):
        return 0.0 if node.id == "x" else 1.0
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left), _value(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.Div):
            return left / right
    raise ValueError("not a plain sum or product")
