"""What the MM side of a mixed system needs: subtract MM forces on the solute, or remove terms inside a subset."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar

import numpy as np
import openmm

from forcefield_ml.deploy.stored.serialise import read_system
from forcefield_ml.deploy.system.present import look
from forcefield_ml.errors import ForceModeError

SUBTRACT_MM = "forcefield_ml:minus-mm-on-solute"
"""Name of the OpenMM force that takes the MM forces off the solute."""

BAROSTATS = (
    "MonteCarloBarostat",
    "MonteCarloAnisotropicBarostat",
    "MonteCarloMembraneBarostat",
    "MonteCarloFlexibleBarostat",
)
FORCELESS = ("CMMotionRemover", "AndersenThermostat", *BAROSTATS)
"""Classes that OpenMM calls forces and that exert none."""

SEPARABLE = (
    "HarmonicBondForce",
    "HarmonicAngleForce",
    "PeriodicTorsionForce",
    "RBTorsionForce",
    "CMAPTorsionForce",
    "CustomBondForce",
    "CustomAngleForce",
    "CustomTorsionForce",
    "NonbondedForce",
    "CustomNonbondedForce",
)
"""Forces whose terms inside a subset can be told from the others."""


def class_name(force: openmm.Force) -> str:
    """Return the class of a force; forces of plugins come out of a System as plain Force with their name."""
    return type(force).__name__


def hold_centre(system: openmm.System) -> None:
    """Add a `CMMotionRemover` if there is none: forces without an energy do not sum to zero."""
    if not any(class_name(force) == "CMMotionRemover" for force in system.getForces()):
        system.addForce(openmm.CMMotionRemover())


@dataclass
class InnerForces:
    """What PythonForce calls to put the forces of another System, times `FACTOR`, on some atoms and on no others.

    OpenMM's forces act on both partners; a Context of its own makes one act on some atoms only, with any integrator.
    Pickles as plain data.

    Parameters
    ----------
    system_xml
        The other System, as `openmm.XmlSerializer` writes it; holds no PythonForce.
    atoms
        Indices of these atoms.
    periodic
        Whether the other System is.
    platform
        Of the inner Context; ``"auto"`` takes the fastest there is.
    """

    FACTOR: ClassVar[float]

    system_xml: str
    atoms: list[int]
    periodic: bool
    platform: str = "auto"
    _context: Any = field(default=None, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        """Return plain data alone."""
        return {key: value for key, value in self.__dict__.items() if key != "_context"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _context=None)

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Return no energy, and the forces (N, 3) in kJ/mol/nm."""
        if self._context is None:
            system = read_system(self.system_xml)
            integrator = openmm.VerletIntegrator(0.001)
            where = () if self.platform == "auto" else (openmm.Platform.getPlatformByName(self.platform),)
            self._context = openmm.Context(system, integrator, *where)
        context: openmm.Context = self._context
        if self.periodic:
            context.setPeriodicBoxVectors(*state.getPeriodicBoxVectors())
        outer = state.getParameters()
        for name in context.getParameters():
            context.setParameter(name, outer[name])
        context.setPositions(state.getPositions(asNumpy=True)._value)
        full = context.getState(forces=True).getForces(asNumpy=True)._value
        forces = np.zeros_like(full)
        forces[self.atoms] = self.FACTOR * full[self.atoms]
        return 0.0, forces


class SubtractMM(InnerForces):
    """Take the MM forces off the solute: full MM on the solvent comes with MM on the solute, which the model replaces.

    Costs one more MM evaluation a step.
    """

    FACTOR = -1.0


class AddToSolute(InnerForces):
    """Put forces on the solute alone, as of the reciprocal-space sum that a model leaves to OpenMM."""

    FACTOR = 1.0


def make_subtract_mm(system: openmm.System, atoms: Sequence[int], platform: str = "auto") -> openmm.Force:
    """Return a PythonForce that takes off the solute all that a System's forces exert on it.

    Parameters
    ----------
    system
        The MM system as it is now; forces added to it later are not subtracted.
    atoms
        Indices of the solute atoms.
    platform
        Of the inner Context.

    Raises
    ------
    ForceModeError
        If the System holds forces that cannot be copied as plain data.
    """
    copy = openmm.XmlSerializer.clone(system) if not _foreign(system) else None
    if copy is None:
        raise ForceModeError(
            f"the system holds {', '.join(_foreign(system))}, whose part on the solute cannot be subtracted; add the "
            "model to the plain MM system first, other forces afterwards"
        )
    for index in reversed(range(copy.getNumForces())):
        if class_name(copy.getForce(index)) in FORCELESS:
            copy.removeForce(index)
    periodic = copy.usesPeriodicBoundaryConditions()
    force = openmm.PythonForce(
        SubtractMM(openmm.XmlSerializer.serialize(copy), [int(i) for i in atoms], periodic, platform)
    )
    force.setUsesPeriodicBoundaryConditions(periodic)
    force.setName(SUBTRACT_MM)
    return force


def _foreign(system: openmm.System) -> list[str]:
    """Return the names of forces that run Python or belong to a plugin."""
    return [f.getName() for f in system.getForces() if class_name(f) in ("PythonForce", "Force", "TorchForce")]


def require_separable(system: openmm.System, atoms: Sequence[int]) -> None:
    """Refuse a System that holds a force whose terms inside a subset cannot be told from the others.

    Parameters
    ----------
    system
        The MM system; models on atoms outside the subset may be in it.
    atoms
        Indices of the subset.

    Raises
    ------
    ForceModeError
        Naming the force.
    """
    for force in system.getForces():
        known = None if class_name(force) != "PythonForce" else look(force)
        elsewhere = known is not None and known.atoms is not None and not set(known.atoms).intersection(atoms)
        if class_name(force) not in SEPARABLE + FORCELESS and not elsewhere:
            raise ForceModeError(
                f'the system holds a {force.getName()}, whose part inside the subset mode="embedded" cannot remove. '
                f"It handles {', '.join(SEPARABLE)}; build the MM system from these and add others afterwards"
            )


def silence_offsets(force: openmm.NonbondedForce, subset: set[int]) -> None:
    """Set to zero what parameters add to the exceptions inside a subset: an exception of zero would come back by it.

    Parameters
    ----------
    force
        Changed in place.
    subset
        Indices of atoms.
    """
    for k in range(force.getNumExceptionParameterOffsets()):
        parameter, exception, *_ = force.getExceptionParameterOffset(k)
        if subset.issuperset(force.getExceptionParameters(exception)[:2]):
            force.setExceptionParameterOffset(k, parameter, exception, 0.0, 0.0, 0.0)


def remove_internal_terms(system: openmm.System, atoms: Sequence[int]) -> openmm.System:
    """Return a copy of a System without the interactions among the atoms of a subset.

    Bonded terms that lie wholly inside the subset go; non-bonded pairs inside become exclusions (OpenMM corrects
    the reciprocal space of PME for them). Terms across the border stay: mechanical embedding.

    Parameters
    ----------
    system
        The MM system.
    atoms
        Indices of the subset.

    Raises
    ------
    ForceModeError
        If the System holds a force whose terms inside the subset cannot be told from the others.
    """
    require_separable(system, atoms)
    subset = set(atoms)
    try:
        root = ElementTree.fromstring(openmm.XmlSerializer.serialize(system))
    except Exception as error:  # of any type: what pickle says of a function in a PythonForce
        raise ForceModeError(
            f"mode 'embedded' works on a copy of the System, and this one cannot be copied ({error}); add the force "
            "in question afterwards"
        ) from None
    for parent in root.findall("./Forces/Force/*"):
        if parent.tag not in ("Bonds", "Angles", "Torsions"):
            continue
        for term in list(parent):
            named = "ab" if "a1" in term.attrib else "p"  # CMAP names its two dihedrals a1..a4 and b1..b4
            members = [int(v) for k, v in term.attrib.items() if k[0] in named and k[1:].isdigit()]
            if members and subset.issuperset(members):
                parent.remove(term)
    copy = openmm.XmlSerializer.deserialize(ElementTree.tostring(root, encoding="unicode"))
    for force in copy.getForces():
        if isinstance(force, openmm.NonbondedForce):
            for i, j in combinations(sorted(subset), 2):
                force.addException(i, j, 0.0, 1.0, 0.0, True)
            silence_offsets(force, subset)
        elif isinstance(force, openmm.CustomNonbondedForce):
            excluded = {frozenset(force.getExclusionParticles(k)) for k in range(force.getNumExclusions())}
            for i, j in combinations(sorted(subset), 2):
                if frozenset((i, j)) not in excluded:
                    force.addExclusion(i, j)
    return copy
