"""Compiled kernels for the CPU: C source made for a model's shapes, compiled at first use, kept in a cache."""

from forcefield_ml.kernels.choice import plain_form, serves, slopes, trains
from forcefield_ml.kernels.compiler import KernelError
from forcefield_ml.kernels.convolution import (
    MAX_PLACES,
    N_NODES,
    TABLE_SCALE,
    Convolution,
    table_distances,
    table_first,
)

__all__ = [
    "MAX_PLACES",
    "N_NODES",
    "TABLE_SCALE",
    "Convolution",
    "KernelError",
    "plain_form",
    "serves",
    "slopes",
    "table_distances",
    "table_first",
    "trains",
]
