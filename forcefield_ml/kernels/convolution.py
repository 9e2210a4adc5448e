"""The compiled convolution as an operation of PyTorch, with gradients in features, radial weights and vectors."""

from __future__ import annotations

import ctypes
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcefield_ml.kernels.choice import trains
from forcefield_ml.kernels.compiler import load, pointers
from forcefield_ml.kernels.slope_source import slope_source
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
        return _library(self, _width(places))

    def slope_library(self, places: int) -> ctypes.CDLL:
        """Return the kernels of derivatives by vectors; as `library`."""
        return _slope_library(self, _width(places))

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
            (n_out, K), (n_out, K, 3) float32, (n_out, K): leading rows of a neighbour matrix. Where the vectors want a
            gradient, they get one, see `choice.slopes`.
        first
            u of the first row of the table.
        kinds
            (n_in,) int32, which table each atom has as a neighbour.
        """
        if features is not None:
            features = features.float().contiguous()  # bfloat16 where autocast is on
        kernel = _ConvolveInSpace if vectors.requires_grad else _Convolve
        return kernel.apply(  # type: ignore[no-any-return]
            features, table.float().contiguous(), indices, vectors.contiguous(), mask, first, kinds, self, trains()
        )


def _paths(spec: Convolution) -> list[Path]:
    return [
        make_path((f, i, o), np.reshape(numbers, (2 * f + 1, 2 * i + 1, 2 * o + 1)))
        for (f, i, o), numbers in zip(spec.paths, spec.couplings, strict=True)
    ]


_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float
_COMMON: list[Any] = [*[_INTEGER] * 3, *[_POINTER] * 6, ctypes.c_int32, *[_FLOAT] * 3]
"""Arguments that all kernels begin with, see `_common`."""


@functools.cache
def _library(spec: Convolution, width: int) -> ctypes.CDLL:
    source = convolution_source(
        _paths(spec), spec.n_channels, spec.filter_order, spec.in_order, spec.out_order, width, spec.kinds
    )
    library = load(source, f"convolution-{spec.filter_order}{spec.in_order}{spec.out_order}-{spec.n_channels}")
    library.forward.argtypes = [*_COMMON, _POINTER, ctypes.c_int32]
    library.forward.restype = _INTEGER
    library.backward.argtypes = [*_COMMON, *[_POINTER] * 2, _INTEGER, _POINTER, _INTEGER, ctypes.c_int32]
    library.backward.restype = None
    return library


@functools.cache
def _slope_library(spec: Convolution, width: int) -> ctypes.CDLL:
    source = slope_source(
        _paths(spec), spec.n_channels, spec.filter_order, spec.in_order, spec.out_order, width, spec.kinds
    )
    library = load(source, f"slope-{spec.filter_order}{spec.in_order}{spec.out_order}-{spec.n_channels}")
    features: list[Any] = [_POINTER, _INTEGER]
    table: list[Any] = [_POINTER, _INTEGER]
    library.slope.argtypes = [*_COMMON, _POINTER, *features, _POINTER, ctypes.c_int32]
    library.curve.argtypes = [*_COMMON, *[_POINTER] * 4, *features, *table, ctypes.c_int32]
    library.slope.restype = library.curve.restype = None
    return library


def _width(places: int) -> int:
    return max(16, 1 << (max(places, 1) - 1).bit_length())


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
        learns: bool,
    ) -> Tensor:
        inputs = (table, indices.contiguous(), vectors, mask.contiguous())
        out = vectors.new_empty(indices.shape[0], (spec.out_order + 1) ** 2, spec.n_channels)
        arguments = _common(features, inputs, first, kinds)
        foreign = spec.library(indices.shape[1]).forward(*arguments, out.data_ptr(), torch.get_num_threads())
        if foreign:
            raise IndexError(
                f"{foreign} rows of the neighbour matrix name atoms that have no features: an index is below 0, or not "
                f"below {arguments[2]}, the number of atoms that have some. Give those of every atom that a row names"
            )
        ctx.save_for_backward(features, kinds, *inputs)
        ctx.first, ctx.spec, ctx.learns = first, spec, learns
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return *_transposed(ctx, gradient), None, None, None, None, None, None, None


def _transposed(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return the gradients by features and table."""
    features, kinds, *inputs = ctx.saved_tensors
    table, indices = inputs[:2]
    for_features, for_table = _copies(features), _copies(table)
    assert for_table is not None
    ctx.spec.library(indices.shape[1]).backward(
        *_common(features, inputs, ctx.first, kinds),
        *pointers((gradient.contiguous(), torch.float32)),
        *_pointer(for_features),
        *_pointer(for_table),
        torch.get_num_threads(),
    )
    return None if for_features is None else for_features.sum(0), for_table.sum(0)


def _copies(tensor: Tensor | None) -> Tensor | None:
    """Return zeros of the shape of a tensor, if there is one, for each thread."""
    return None if tensor is None else tensor.new_zeros(torch.get_num_threads(), *tensor.shape)


def _pointer(copies: Tensor | None) -> tuple[int | None, int]:
    """Return where copies of a tensor begin, and the numbers in each."""
    return (None, 0) if copies is None else (copies.data_ptr(), copies[0].numel())


class _ConvolveInSpace(_Convolve):
    """The same with a gradient by the vectors, which comes first: that of an energy, for the sake of its forces.

    While that is found nothing else is asked for. What is trained on the result asks for the rest, in a second pass,
    when no graph is recorded any more.
    """

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.learns and not torch.is_grad_enabled():
            return *_transposed(ctx, gradient), None, None, None, None, None, None, None
        features, kinds, table, indices, vectors, mask = ctx.saved_tensors
        for_features, for_vectors = _Slope.apply(
            gradient, features, table, indices, vectors, mask, ctx.first, kinds, ctx.spec
        )
        return for_features, None, None, for_vectors, None, None, None, None, None


class _Slope(torch.autograd.Function):
    """The gradients by features and vectors, of the gradient by a convolution's result."""

    @staticmethod
    def forward(
        ctx: Any,
        gradient: Tensor,
        features: Tensor | None,
        table: Tensor,
        indices: Tensor,
        vectors: Tensor,
        mask: Tensor,
        first: float,
        kinds: Tensor | None,
        spec: Convolution,
    ) -> tuple[Tensor | None, Tensor]:
        gradient, inputs = gradient.contiguous(), (table, indices, vectors, mask)
        for_features, for_vectors = _copies(features), torch.zeros_like(vectors)
        spec.slope_library(indices.shape[1]).slope(
            *_common(features, inputs, first, kinds),
            *pointers((gradient, torch.float32)),
            *_pointer(for_features),
            for_vectors.data_ptr(),
            torch.get_num_threads(),
        )
        ctx.save_for_backward(gradient, features, kinds, *inputs)
        ctx.first, ctx.spec = first, spec
        return None if for_features is None else for_features.sum(0), for_vectors

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, moved: Tensor | None, by: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        gradient, features, kinds, *inputs = ctx.saved_tensors
        table, indices = inputs[:2]
        out = torch.empty_like(gradient)
        for_features, for_table = _copies(features), _copies(table)
        assert for_table is not None
        moved = None if features is None or moved is None else moved.contiguous()
        ctx.spec.slope_library(indices.shape[1]).curve(
            *_common(features, inputs, ctx.first, kinds),
            *pointers((gradient, torch.float32)),
            *([None] if moved is None else pointers((moved, torch.float32))),
            *pointers((by.contiguous(), torch.float32)),
            out.data_ptr(),
            *_pointer(for_features),
            *_pointer(for_table),
            torch.get_num_threads(),
        )
        found = None if for_features is None else for_features.sum(0)
        return out, found, for_table.sum(0), None, None, None, None, None, None
