"""The compiled convolution as an operation of PyTorch, with gradients in features and radial weights."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forcefield_ml.kernels.compiler import KernelError, load
from forcefield_ml.kernels.source import convolution_source, make_path, weight_order
from forcefield_ml.nn.spherical import clebsch_gordan

logger = logging.getLogger(__name__)

N_NODES = 1024
"""Rows of a table of radial weights. Cubic interpolation between them is right to about 1e-6 of the largest weight for
32 Gaussians, see docs/decisions/0015-kernels.md."""

TABLE_SCALE = 0.15**2
"""nm²: a in u = a / (a + r²), the table's variable. It resolves distances as exp(-5 r) does, without an exponential."""

_switch: ContextVar[bool] = ContextVar("compiled_kernels", default=True)


@contextlib.contextmanager
def plain_form() -> Iterator[None]:
    """Within this context everything runs in plain PyTorch, compiled kernels or not."""
    token = _switch.set(False)
    try:
        yield
    finally:
        _switch.reset(token)


def serves(vectors: Tensor) -> bool:
    """Return whether compiled kernels are made for these vectors between atoms: float32, on the CPU, no gradient.

    A gradient in the positions is left to the plain form.
    """
    return (
        _switch.get()
        and vectors.device.type == "cpu"
        and vectors.dtype == torch.float32
        and not vectors.requires_grad
        and type(vectors) is Tensor
        and not torch.compiler.is_compiling()
        and not torch._C._functorch.is_functorch_wrapped_tensor(vectors)
        and compiler_works()
    )


@functools.cache
def compiler_works() -> bool:
    """Return whether kernels can be compiled here; says once why not."""
    try:
        load("int answer(void) { return 42; }\n", "probe")
    except KernelError as error:
        logger.warning("no compiled kernels, the plain PyTorch form serves and is slower: %s", error)
        return False
    return True


@dataclass(frozen=True)
class Convolution:
    """Shapes and couplings of a compiled convolution; equal ones share a library.

    Attributes
    ----------
    paths
        (f, i, o) of each coupling.
    n_channels
        C.
    filter_order, in_order, out_order
        Largest orders.
    kinds
        True if each atom has a table of its kind instead of features.
    """

    paths: tuple[tuple[int, int, int], ...]
    n_channels: int
    filter_order: int
    in_order: int
    out_order: int
    kinds: bool = False

    @property
    def scales(self) -> list[float]:
        """What each path's radial weights must be multiplied by: the kernel's couplings begin with 1."""
        return [path.scale for path in _paths(self.paths)]

    @property
    def order(self) -> list[int]:
        """Columns of path-major weights in the order in which the kernel wants them; see `source.weight_order`."""
        return weight_order(len(self.paths), self.n_channels)

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


@functools.cache
def _paths(orders: tuple[tuple[int, int, int], ...]) -> list[Any]:
    return [make_path(path, clebsch_gordan(*path).numpy()) for path in orders]


@functools.cache
def _library(spec: Convolution, width: int) -> ctypes.CDLL:
    source = convolution_source(
        _paths(spec.paths), spec.n_channels, spec.filter_order, spec.in_order, spec.out_order, width, spec.kinds
    )
    library = load(source, f"convolution-{spec.filter_order}{spec.in_order}{spec.out_order}-{spec.n_channels}")
    library.forward.restype = library.backward.restype = None
    return library


def table_first(cutoff: float) -> float:
    """Return u at the cutoff, where a table begins; 0, infinitely far out, for a graph without a cutoff (0)."""
    return TABLE_SCALE / (TABLE_SCALE + cutoff**2) if cutoff > 0 else 0.0


@functools.cache
def table_distances(cutoff: float) -> Tensor:
    """Return the distances (n_nodes,) in nm, float32, at which a table's rows are evaluated.

    The first is the cutoff, the last 0. Without a cutoff the first is 1e6 nm, in place of infinity.
    """
    u = torch.linspace(table_first(cutoff), 1.0, N_NODES, dtype=torch.float64)
    return (TABLE_SCALE * (1.0 / u.clamp(min=1e-14) - 1.0)).clamp(min=0.0).sqrt().clamp(max=1e6).float()


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _common(spec: Convolution, inputs: tuple[Any, ...]) -> list[Any]:
    """Return the arguments that both directions begin with."""
    features, table, indices, vectors, mask, first, kinds = inputs
    return [
        ctypes.c_int64(indices.shape[0]),
        ctypes.c_int64(indices.shape[1]),
        _pointer(features),
        _pointer(table),
        _pointer(indices),
        _pointer(vectors),
        _pointer(mask),
        _pointer(kinds),
        ctypes.c_int32(table.shape[-2]),
        ctypes.c_float(first),
        ctypes.c_float(1.0),
        ctypes.c_float(TABLE_SCALE),
    ]


def _width(places: int) -> int:
    """Return for how many neighbours to compile: the next power of two, so that few libraries are made."""
    return max(16, 1 << (max(places, 1) - 1).bit_length())


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
        inputs = (features, table.contiguous(), indices.contiguous(), vectors.contiguous(), mask.contiguous())
        out = vectors.new_empty(indices.shape[0], (spec.out_order + 1) ** 2, spec.n_channels)
        library = _library(spec, _width(indices.shape[1]))
        library.forward(*_common(spec, (*inputs, first, kinds)), _pointer(out), ctypes.c_int32(torch.get_num_threads()))
        ctx.save_for_backward(*inputs, kinds)
        ctx.first, ctx.spec = first, spec
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        *inputs, kinds = ctx.saved_tensors
        features, table = inputs[0], inputs[1]
        threads = torch.get_num_threads()
        for_table = table.new_zeros(threads, *table.shape)
        for_features = None if features is None else features.new_zeros(threads, *features.shape)
        _library(ctx.spec, _width(inputs[2].shape[1])).backward(
            *_common(ctx.spec, (*inputs, ctx.first, kinds)),
            _pointer(gradient.contiguous()),
            _pointer(for_features),
            ctypes.c_int64(0 if features is None else features.numel()),
            _pointer(for_table),
            ctypes.c_int64(table.numel()),
            ctypes.c_int32(threads),
        )
        total = None if for_features is None else for_features.sum(0)
        return total, for_table.sum(0), None, None, None, None, None, None
