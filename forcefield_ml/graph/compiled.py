"""Search and refresh by compiled C; signatures and numbers of the plain forms in `candidates` and `refresh`."""

from __future__ import annotations

import ctypes
import functools
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from forcefield_ml.graph.box import heights
from forcefield_ml.graph.candidates import Candidates, image_shifts
from forcefield_ml.graph.neighbour_matrix import NeighbourMatrix
from forcefield_ml.kernels.compiler import load

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
    loaded.search_candidates.argtypes = [
        _INTEGER,
        _POINTER,
        _INTEGER,
        *[_POINTER] * 4,
        ctypes.c_double,
        *[_POINTER] * 4,
    ]
    loaded.refresh_nearest.restype = loaded.search_candidates.restype = None
    return loaded


def _pointers(*expected: tuple[Tensor, torch.dtype]) -> list[int]:
    """Return where tensors lie, after a check that they are what compiled code takes them for."""
    for tensor, dtype in expected:
        if tensor.dtype != dtype or not tensor.is_contiguous() or tensor.device.type != "cpu":
            raise TypeError(
                f"the kernel works on contiguous {dtype} on the CPU; got {tensor.dtype} with strides "
                f"{tensor.stride()} on {tensor.device}"
            )
    return [tensor.data_ptr() for tensor, _ in expected]


def _inputs(x: Tensor, candidates: Candidates) -> list[int]:
    dtypes = (torch.int64, torch.int32, torch.uint8, torch.float64)
    return _pointers(*zip(candidates, dtypes, strict=True), (x, torch.float64))


def _outputs(out: NeighbourMatrix) -> list[int]:
    return [out.indices.shape[1], *_pointers(*zip(out, (torch.int64, torch.float32, torch.bool), strict=True))]


def find_candidates(x: Tensor, box: Tensor | None, radii: Tensor) -> Candidates:
    """As `candidates.find_candidates`, on the CPU; pairs of a row stand in another order."""
    if box is None:
        origin = x.min(0).values
        extent = (x.max(0).values - origin).clamp(min=1e-3)
        inverse = (1.0 / extent).diag()
    else:
        origin, extent, inverse = x.new_zeros(3), heights(box), torch.linalg.inv(box).contiguous()
    shifts = image_shifts(box, x.device)
    starts = torch.empty(len(x) + 1, dtype=torch.int64)
    pointers = _pointers(*((t, torch.float64) for t in (origin, inverse, extent, shifts)))
    common = [len(x), *_pointers((x, torch.float64)), int(box is not None), *pointers, float(radii.median())]
    common += _pointers((radii, torch.float64), (starts, torch.int64))
    library().search_candidates(*common, None, None)
    partners = torch.empty(int(starts[-1]), dtype=torch.int32)
    images = torch.empty(len(partners), dtype=torch.uint8)
    library().search_candidates(*common, *_pointers((partners, torch.int32), (images, torch.uint8)))
    return Candidates(starts, partners, images, shifts)


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
