"""Equivariant networks that predict forces directly, inside OpenMM.

``forcefield_ml.load(path)`` reads a model.pt, ``forcefield_ml.check(simulation)`` looks a simulation over and
``forcefield_ml.read_system(xml)`` reads a stored System, ``forcefield_ml.ForcefieldMLCalculator`` is for ASE; they
bring torch and openmm with them, which importing this package alone does not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from forcefield_ml.deploy.guards.check import check
    from forcefield_ml.deploy.integrations.ase_calculator import ForcefieldMLCalculator
    from forcefield_ml.deploy.model import DeployedModel, load
    from forcefield_ml.deploy.stored.serialise import read_system, read_xml

__version__ = "0.2.0"
__all__ = ["DeployedModel", "ForcefieldMLCalculator", "check", "load", "read_system", "read_xml"]

_HOMES = {
    "DeployedModel": "forcefield_ml.deploy.model",
    "ForcefieldMLCalculator": "forcefield_ml.deploy.integrations.ase_calculator",
    "check": "forcefield_ml.deploy.guards.check",
    "load": "forcefield_ml.deploy.model",
    "read_system": "forcefield_ml.deploy.stored.serialise",
    "read_xml": "forcefield_ml.deploy.stored.serialise",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'forcefield_ml' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
