"""Whether compiled kernels serve, or the plain PyTorch form."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import torch
from torch import Tensor

from forcefield_ml.kernels.compiler import KernelError, load

logger = logging.getLogger(__name__)

_switch: ContextVar[bool] = ContextVar("compiled_kernels", default=True)

_slopes: ContextVar[bool | None] = ContextVar("slopes", default=None)

_failures: list[KernelError] = []
"""The first ends the use of kernels in this process: what failed once would cost its time, and a warning, again."""


@contextlib.contextmanager
def plain_form() -> Iterator[None]:
    """Within this context everything runs in plain PyTorch, compiled kernels or not."""
    token = _switch.set(False)
    try:
        yield
    finally:
        _switch.reset(token)


@contextlib.contextmanager
def slopes(recorded: bool) -> Iterator[None]:
    """Within this context kernels serve, too, where vectors want a gradient: that of an energy, as forces are.

    They give gradients by vectors and features once; where these are recorded, also what training on them needs, but
    no second derivative by the vectors.

    Parameters
    ----------
    recorded
        Whether what is found is to be trained on. If not, parameters count as constants.
    """
    token = _slopes.set(recorded)
    try:
        yield
    finally:
        _slopes.reset(token)


def trains() -> bool:
    """Tell whether gradients by parameters are wanted of what is computed now."""
    return torch.is_grad_enabled() and _slopes.get() is not False


def serves(vectors: Tensor, *needed: Callable[[], object]) -> bool:
    """Return whether compiled kernels are made for these vectors between atoms: float32, on the CPU, no gradient.

    A gradient in the positions is left to the plain form but within `slopes`, and so is all that torch transforms or
    records.

    Parameters
    ----------
    vectors
        As they would be given to the kernels.
    needed
        Load the kernels that would run, and may raise `KernelError`. The first failure is told in a warning; from
        then on no kernel serves in this process.
    """
    return (
        _switch.get()
        and vectors.device.type == "cpu"
        and vectors.dtype == torch.float32
        and (not vectors.requires_grad or _slopes.get() is not None)
        and type(vectors) is Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and torch._C._functorch.peek_interpreter_stack() is None
        and _loads(_probe)
        and all(_loads(kernel) for kernel in needed)
    )


def _loads(kernel: Callable[[], object]) -> bool:
    if _failures:
        return False
    try:
        kernel()
    except KernelError as error:
        _failures.append(error)
        logger.warning("no compiled kernels, the plain PyTorch form serves and is slower: %s", error)
        return False
    return True


@functools.cache
def _probe() -> None:
    """Find out with little code whether anything can be compiled."""
    load("int answer(void) { return 42; }\n", "probe")
