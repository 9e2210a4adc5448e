"""Compiled kernels for the CPU: C source made for a model's shapes, compiled at first use, kept in a cache."""

from forcefield_ml.kernels.compiler import KernelError
from forcefield_ml.kernels.convolution import (
    N_NODES,
    Convolution,
    plain_form,
    serves,
    table_distances,
    table_first,
)

__all__ = ["N_NODES", "Convolution", "KernelError", "plain_form", "serves", "table_distances", "table_first"]
