"""Several processes that train one model, as torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from forcefield_ml.errors import ConfigError, ProcessError


@dataclass(frozen=True)
class Processes:
    """The present process among those that train together.

    Parameters
    ----------
    rank
        Its number, from 0; number 0 writes log and checkpoints and holds the clock.
    size
        How many there are.
    local_size
        How many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @staticmethod
    def here() -> Processes:
        """Return what torchrun says; one process where torchrun did not start this one."""
        if not torch.distributed.is_torchelastic_launched():
            return Processes()
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"))
        return Processes(rank, size, local)

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.rank == 0

    def trainer_settings(self, cuda: bool) -> dict[str, Any]:
        """Return what Lightning's Trainer needs to know.

        Parameters
        ----------
        cuda
            Train on CUDA devices, one for each process.

        Raises
        ------
        ConfigError
            If there are fewer devices than processes, or not the same number of processes on every machine.
        """
        if self.size == 1:
            return {"devices": 1}
        if self.size % self.local_size:
            raise ConfigError(
                f"{self.size} processes, {self.local_size} of them on this machine: give every machine the same "
                "--nproc-per-node"
            )
        if cuda and torch.cuda.device_count() < self.local_size:
            raise ConfigError(
                f"{self.local_size} processes on this machine, but {torch.cuda.device_count()} CUDA devices: set "
                "--nproc-per-node to at most that, or device to 'cpu'"
            )
        from lightning.pytorch.strategies import DDPStrategy

        # weights begin and statistics stay equal (nn.synchronise): nothing to broadcast
        strategy = DDPStrategy(process_group_backend="nccl" if cuda else "gloo", broadcast_buffers=False)
        return {"devices": self.local_size, "num_nodes": self.size // self.local_size, "strategy": strategy}

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the processes, the same bits on each."""
        if self.size == 1:
            return value
        total = value.detach().clone()
        torch.distributed.all_reduce(total)
        return total / self.size

    def gather(self, value: Any) -> list[Any]:
        """Return an object of every process, in order of rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, value)
        return values

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Turn the failure of a common step into a message: another process ended, and its own message says why.

        Raises
        ------
        ProcessError
            If another process has ended in the middle of the work.
        """
        try:
            yield
        except (torch.distributed.DistError, RuntimeError) as error:
            if self.size == 1 or not _lost_another(error):
                raise
            raise ProcessError(
                f"process {self.rank} of {self.size} lost the others: one of them has ended, its message says why. "
                "The last checkpoint is whole: the same command goes on from it"
            ) from None
        finally:
            if self.size > 1 and torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()


def _lost_another(error: Exception) -> bool:
    """Tell a lost connection from other errors: gloo and NCCL raise no type of their own for it."""
    signs = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL")
    return isinstance(error, torch.distributed.DistError) or any(sign in str(error) for sign in signs)
