"""The compiled convolution as an operation of PyTorch, with gradients in features and radial weights."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcefield_ml.kernels.compiler import load, pointers
from forcefield_ml.kernels.source import Path, convolution_source, make_path, weight_order

N_NODES = 1024
"""Rows of a table of radial weights. Cubic interpolation between them is right to about 1e-6 of the largest weight for
32 Gaussians, see docs/decisions/0015-kernels.md."""

MAX_PLACES = 4096
"""Of a row: what a thread must know of its neighbours lies on the stack, which has room for some megabytes."""

TABLE_SCALE = 0.15**2
"""nm²: a in u = a / (a + r²), the table's variable. It resolves distances as exp(-5 r) does, without an exponential."""


@dataclass(frozen=True)
class Convolution:
    """Shapes and couplings of a compiled convolution; equal ones share a library.

    Attributes
    ----------
    paths
        (f, i, o) of each coupling.
    couplings
        Of each path, (2 f + 1) (2 i + 1) (2 o + 1) numbers, the output's component running fastest.
    n_channels
        C.
    filter_order, in_order, out_order
        Largest orders.
    kinds
        True if each atom has a table of its kind instead of features.
    """

    paths: tuple[tuple[int, int, int], ...]
    couplings: tuple[tuple[float, ...], ...]
    n_channels: int
    filter_order: int
    in_order: int
    out_order: int
    kinds: bool = False

    @property
    def scales(self) -> list[float]:
        """What each path's radial weights must be multiplied by: the kernel's couplings begin with 1."""
        return [path.scale for path in _paths(self)]

    @property
    def order(self) -> list[int]:
        """Columns of path-major weights in the order in which the kernel wants them; see `source.weight_order`."""
        return weight_order(len(self.paths), self.n_channels)

    def library(self, places: int) -> ctypes.CDLL:
        """Return the kernel for rows of so many places; compiled at the first call for the next power of two.

        Raises
        ------
        KernelError
            If it cannot be compiled or loaded.
        """
        return _library(self, max(16, 1 << (max(places, 1) - 1).bit_length()))

    def __call__(
        self,
        features: Tensor | None,
        table: Tensor,
        indices: Tensor,
        vectors: Tensor,
        mask: Tensor,
        first: float,
        kinds: Tensor | None = None,
    ) -> Tensor:
        """Return (n_out, (out_order + 1)², C).

        Parameters
        ----------
        features
            (n_in, (in_order + 1)², C), or None where there are kinds; the kernel sees float32 whatever their type is.
        table
            (n_nodes, columns) or (n_kinds, n_nodes, columns) float32: radial weights at evenly spaced u from `first`
            to 1, see `table_distances`.
        indices, vectors, mask
            (n_out, K), (n_out, K, 3) float32, (n_out, K): leading rows of a neighbour matrix.
        first
            u of the first row of the table.
        kinds
            (n_in,) int32, which table each atom has as a neighbour.
        """
        if features is not None:
            features = features.float()  # bfloat16 where autocast is on
        return _Convolve.apply(  # type: ignore[no-any-return]
            features, table.float(), indices, vectors, mask, first, kinds, self
        )


def _paths(spec: Convolution) -> list[Path]:
    return [
        make_path((f, i, o), np.reshape(numbers, (2 * f + 1, 2 * i + 1, 2 * o + 1)))
        for (f, i, o), numbers in zip(spec.paths, spec.couplings, strict=True)
    ]


_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float


@functools.cache
def _library(spec: Convolution, width: int) -> ctypes.CDLL:
    source = convolution_source(
        _paths(spec), spec.n_channels, spec.filter_order, spec.in_order, spec.out_order, width, spec.kinds
    )
    library = load(source, f"convolution-{spec.filter_order}{spec.in_order}{spec.out_order}-{spec.n_channels}")
    common: list[Any] = [*[_INTEGER] * 3, *[_POINTER] * 6, ctypes.c_int32, *[_FLOAT] * 3]
    library.forward.argtypes = [*common, _POINTER, ctypes.c_int32]
    library.forward.restype = _INTEGER
    library.backward.argtypes = [*common, *[_POINTER] * 2, _INTEGER, _POINTER, _INTEGER, ctypes.c_int32]
    library.backward.restype = None
    return library


def table_first(cutoff: float) -> float:
    """Return u at the cutoff, where a table begins; 0, infinitely far out, for a graph without a cutoff (0)."""
    return TABLE_SCALE / (TABLE_SCALE + cutoff**2) if cutoff > 0 else 0.0


def table_distances(cutoff: float) -> Tensor:
    """Return the distances (n_nodes,) in nm, float32, at which a table's rows are evaluated.

    The first is the cutoff, the last 0. Without a cutoff the first is 1e6 nm, in place of infinity.
    """
    u = torch.linspace(table_first(cutoff), 1.0, N_NODES, dtype=torch.float64)
    return (TABLE_SCALE * (1.0 / u.clamp(min=1e-14) - 1.0)).clamp(min=0.0).sqrt().clamp(max=1e6).float()


def _common(features: Tensor | None, inputs: tuple[Any, ...], first: float, kinds: Tensor | None) -> list[Any]:
    """Return the arguments that both directions begin with."""
    table, indices, vectors, mask = inputs
    seen = features if kinds is None else kinds
    assert seen is not None, "a convolution has features or kinds"
    return [
        *indices.shape,
        len(seen),
        *([None] if features is None else pointers((features, torch.float32))),
        *pointers((table, torch.float32), (indices, torch.int64), (vectors, torch.float32), (mask, torch.bool)),
        *([None] if kinds is None else pointers((kinds, torch.int32))),
        table.shape[-2],
        first,
        1.0,
        TABLE_SCALE,
    ]


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor | None,
        table: Tensor,
        indices: Tensor,
        vectors: Tensor,
        mask: Tensor,
        first: float,
        kinds: Tensor | None,
        spec: Convolution,
    ) -> Tensor:
        features = None if features is None else features.contiguous()
        inputs = (table.contiguous(), indices.contiguous(), vectors.contiguous(), mask.contiguous())
        out = vectors.new_empty(indices.shape[0], (spec.out_order + 1) ** 2, spec.n_channels)
        arguments = _common(features, inputs, first, kinds)
        foreign = spec.library(indices.shape[1]).forward(*arguments, out.data_ptr(), torch.get_num_threads())
        if foreign:
            raise IndexError(
                f"{foreign} rows of the neighbour matrix name atoms that have no features: an index is below 0, or not "
                f"below {arguments[2]}, the number of atoms that have some. Give those of every atom that a row names"
            )
        ctx.save_for_backward(features, kinds, *inputs)
        ctx.first, ctx.spec = first, spec
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        features, kinds, *inputs = ctx.saved_tensors
        table, indices = inputs[:2]
        gradient = gradient.contiguous()
        threads = torch.get_num_threads()
        for_table = table.new_zeros(threads, *table.shape)
        for_features = None if features is None else features.new_zeros(threads, *features.shape)
        ctx.spec.library(indices.shape[1]).backward(
            *_common(features, inputs, ctx.first, kinds),
            gradient.data_ptr(),
            None if for_features is None else for_features.data_ptr(),
            0 if features is None else features.numel(),
            for_table.data_ptr(),
            table.numel(),
            threads,
        )
        total = None if for_features is None else for_features.sum(0)
        return total, for_table.sum(0), None, None, None, None, None, None
