"""Means over the atoms of all processes that train together. Compiles to TorchScript, where there is one process."""

from typing import Any

import torch
from torch import Tensor


class _SumOverProcesses(torch.autograd.Function):
    """Sum a tensor over the processes; so is its gradient, for each process's loss depends on every addend."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(total)
        return total


@torch.jit.unused
def _mean_over_processes(values: Tensor) -> Tensor:
    count = values.new_full((1,), values.shape[0])
    sums: Tensor = _SumOverProcesses.apply(torch.cat([values.sum(0).reshape(-1), count]))
    return (sums[:-1] / sums[-1]).view(values.shape[1:])


def in_processes() -> bool:
    """Tell whether several processes train together (torch.distributed has begun)."""
    if torch.jit.is_scripting():
        return False
    else:  # the compiler skips this branch
        return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_over_atoms(values: Tensor) -> Tensor:
    """Return the mean over the leading dimension, over the atoms of all processes where several train together.

    Every process must call it, equally often and in the same order. The gradient is that of the sum of the
    processes' losses, as if one process held all atoms.

    Parameters
    ----------
    values
        (n, ...), n may differ between the processes.

    Returns
    -------
    Tensor
        (...), the same on every process.
    """
    if torch.jit.is_scripting():
        return values.mean(0)
    else:
        return _mean_over_processes(values) if in_processes() else values.mean(0)
