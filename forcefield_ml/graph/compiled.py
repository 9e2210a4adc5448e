"""Search and refresh by compiled C; signatures and numbers of the plain forms in `candidates` and `refresh`."""

from __future__ import annotations

import ctypes
import functools
import weakref
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from forcefield_ml.graph.box import heights
from forcefield_ml.graph.candidates import Candidates, image_shifts
from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.kernels.compiler import load, pointers

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
    loaded.make_grid.argtypes = [_INTEGER, *[_POINTER] * 5, _INTEGER, ctypes.c_double]
    loaded.make_grid.restype = _POINTER
    loaded.search_grid.argtypes = [_POINTER, _INTEGER, *[_POINTER] * 5]
    loaded.free_grid.argtypes = [_POINTER]
    loaded.refresh_nearest.restype = loaded.search_grid.restype = loaded.free_grid.restype = None
    return loaded


def _inputs(x: Tensor, candidates: Candidates) -> list[int]:
    dtypes = (torch.int64, torch.int32, torch.uint8, torch.float64)
    return pointers(*zip(candidates, dtypes, strict=True), (x, torch.float64))


def _outputs(out: NeighbourMatrix) -> list[int]:
    return [out.indices.shape[1], *pointers(*zip(out, (torch.int64, torch.float32, torch.bool), strict=True))]


class CompiledSearch:
    """As `candidates.PlainSearch`, by cells, on the CPU; pairs of a row stand in another order."""

    def __init__(self, x: Tensor, box: Tensor | None):
        if box is None:
            origin = x.min(0).values
            extent = (x.max(0).values - origin).clamp(min=1e-3)
            inverse = (1.0 / extent).diag()
        else:
            origin, extent, inverse = x.new_zeros(3), heights(box), torch.linalg.inv(box).contiguous()
        self._held = (x, origin, inverse, extent, image_shifts(box, x.device))  # compiled code reads them
        self._periodic = box is not None
        self._grid: int | None = None

    def __call__(self, rows: Tensor, radii: Tensor) -> Candidates:
        """As `PlainSearch.__call__`."""
        if self._grid is None:
            held = pointers(*((tensor, torch.float64) for tensor in self._held))
            typical = float(radii.median())
            self._grid = library().make_grid(len(self._held[0]), *held, self._periodic, typical)
            weakref.finalize(self, library().free_grid, self._grid)
        starts = torch.empty(len(rows) + 1, dtype=torch.int64)
        common = pointers((rows, torch.int64), (radii, torch.float64), (starts, torch.int64))
        library().search_grid(self._grid, len(rows), *common, None, None)
        partners = torch.empty(int(starts[-1]), dtype=torch.int32)
        images = torch.empty(len(partners), dtype=torch.uint8)
        found = pointers((partners, torch.int32), (images, torch.uint8))
        library().search_grid(self._grid, len(rows), *common, *found)
        return Candidates(starts, partners, images, self._held[-1])


def refresh_cutoff(x: Tensor, candidates: Candidates, cutoff: float, out: NeighbourMatrix) -> int:
    """As `refresh.refresh_cutoff`, for float32 vectors on the CPU."""
    n_rows = out.indices.shape[0]
    return library().refresh_cutoff(n_rows, *_inputs(x, candidates), cutoff, *_outputs(out))


def refresh_nearest(x: Tensor, candidates: Candidates, out: NeighbourMatrix) -> Tensor:
    """As `refresh.refresh_nearest`, for float32 vectors on the CPU."""
    n_rows = out.indices.shape[0]
    reached = torch.empty(n_rows, dtype=torch.float64)
    library().refresh_nearest(n_rows, *_inputs(x, candidates), *_outputs(out), reached.data_ptr())
    return reached
