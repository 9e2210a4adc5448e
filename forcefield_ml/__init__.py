"""Equivariant networks that predict forces directly, inside OpenMM."""

__version__ = "0.1.0"
