"""Units: nm, kJ/mol and ps inside, `openmm.unit.Quantity` at the door, meV/Å, Å and degrees on paper.

This is the only file that converts.
"""

from __future__ import annotations

from typing import Any

from data_pipeline.schema import FORCES, PAPER, REFINEMENT

KJ_PER_MOL_IN_MEV = 10.364269656
"""1 kJ/mol in meV (CODATA 2018: 1 / (6.02214076e23 x 1.602176634e-19) x 1e6)."""

MEV_PER_ANGSTROM = KJ_PER_MOL_IN_MEV / 10.0
"""1 kJ/mol/nm in meV/Å."""

ANGSTROM = 0.1
"""1 Å in nm."""

EV = 1000.0 / KJ_PER_MOL_IN_MEV
"""1 eV in kJ/mol."""

BOLTZMANN = 0.00831446261815324
"""Boltzmann constant in kJ/mol/K (CODATA 2018)."""


FORCE, DISPLACEMENT = PAPER[FORCES], PAPER[REFINEMENT]
"""What models predict, with the units on paper."""


def strip(value: Any, unit_name: str) -> Any:
    """Return a plain number or array in the named OpenMM unit.

    Parameters
    ----------
    value
        A Quantity of any compatible unit, or a plain value that is taken to be in `unit_name` already.
    unit_name
        Attribute of ``openmm.unit``: ``"nanometer"``, ``"picosecond"``, ``"kelvin"``, ...

    Raises
    ------
    TypeError
        If the Quantity's unit has another dimension.
    """
    from openmm import unit

    return value.value_in_unit(getattr(unit, unit_name)) if unit.is_quantity(value) else value
