"""Neighbours among candidates by compiled C; same signatures and numbers as the plain forms in `graph.refresh`."""

from __future__ import annotations

import ctypes
import functools
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from forcefield_ml.kernels.compiler import load

if TYPE_CHECKING:  # graph imports this module
    from forcefield_ml.graph.candidates import Candidates
    from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix

_POINTER, _INTEGER = ctypes.c_void_p, ctypes.c_int64


@functools.cache
def library() -> ctypes.CDLL:
    """Return the compiled kernels.

    Raises
    ------
    KernelError
        If they cannot be compiled here.
    """
    source = resources.files("forcefield_ml.kernels").joinpath("neighbours.c").read_text(encoding="ascii")
    loaded = load(source, "neighbours")
    candidates: list[Any] = [_INTEGER, *[_POINTER] * 5]
    rows: list[Any] = [_INTEGER, *[_POINTER] * 3]
    loaded.refresh_cutoff.argtypes = [*candidates, ctypes.c_double, *rows]
    loaded.refresh_cutoff.restype = _INTEGER
    loaded.refresh_nearest.argtypes = [*candidates, *rows, _POINTER]
    loaded.refresh_nearest.restype = None
    return loaded


def _pointers(x: Tensor, candidates: Candidates) -> list[int]:
    arguments = ((candidates.starts, torch.int64), (candidates.partners, torch.int32), (candidates.images, torch.uint8))
    for tensor, dtype in (*arguments, (candidates.shifts, torch.float64), (x, torch.float64)):
        if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise TypeError(f"the kernel reads contiguous {dtype} on the CPU, got {tensor.dtype} on {tensor.device}")
    return [t.data_ptr() for t in (candidates.starts, candidates.partners, candidates.images, candidates.shifts, x)]


def _outputs(out: NeighbourMatrix) -> list[int]:
    for tensor, dtype in zip(out, (torch.int64, torch.float32, torch.bool), strict=True):
        if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise TypeError(f"the kernel writes contiguous {dtype} on the CPU, got {tensor.dtype} on {tensor.device}")
    return [out.indices.shape[1], *(tensor.data_ptr() for tensor in out)]


def refresh_cutoff(x: Tensor, candidates: Candidates, cutoff: float, out: NeighbourMatrix) -> int:
    """As `graph.refresh.refresh_cutoff`, for float32 vectors on the CPU."""
    n_rows = out.indices.shape[0]
    return library().refresh_cutoff(n_rows, *_pointers(x, candidates), cutoff, *_outputs(out))


def refresh_nearest(x: Tensor, candidates: Candidates, out: NeighbourMatrix) -> Tensor:
    """As `graph.refresh.refresh_nearest`, for float32 vectors on the CPU."""
    n_rows = out.indices.shape[0]
    reached = torch.empty(n_rows, dtype=torch.float64)
    library().refresh_nearest(n_rows, *_pointers(x, candidates), *_outputs(out), reached.data_ptr())
    return reached
