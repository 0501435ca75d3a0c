"""Several processes, one batch: each takes some of its rows, and gradients are summed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, distributed


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; a lone one is number 0 of 1."""

    rank: int = 0
    world_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that validates, reports and writes files."""
        return self.rank == 0

    def rows(self, batch_size: int) -> slice:
        """This process's rows of a batch.

        Raises:
            ValueError: there are more processes than images.
        """
        if batch_size < self.world_size:
            raise ValueError(
                f"batch_size must be at least the number of processes, {self.world_size}, got {batch_size}"
            )
        return slice(self.rank * batch_size // self.world_size, (self.rank + 1) * batch_size // self.world_size)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over all processes, in place."""
        if self.world_size == 1:
            return
        joined = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(joined)
        for tensor, total in zip(tensors, joined.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def wait(self) -> None:
        """Return when all processes are here."""
        if self.world_size > 1:
            distributed.barrier()


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join the other processes if ``torchrun`` started this one, and leave them at the end.

    A process group that exists already is used and left as it is.
    """
    if distributed.is_available() and distributed.is_initialized():
        yield Processes(distributed.get_rank(), distributed.get_world_size())
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            yield Processes(distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()
    else:
        yield Processes()
