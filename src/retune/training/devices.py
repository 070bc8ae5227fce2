"""The processes that train one trial together: one on a laptop, several under torchrun or `accelerate launch`.

Each process takes its share of the records of every step. The adapter lies whole in every process and its gradients,
a few MiB, are averaged once a step. The frozen base lies whole in every process too (as in DDP), or is spread over them
layer by layer (FSDP2, torch's `fully_shard`) if ``accelerate launch --use_fsdp`` or ``ACCELERATE_USE_FSDP=true`` says
so. One process takes the same path.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn


class Devices:
    """The device of this process, and its place among the others.

    Attributes:
        rank, world: this process's number and how many there are.
        device: where this process computes.
        sharded: whether the base model's weights are spread over the processes.
    """

    def __init__(self) -> None:
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        self.rank: int = state.process_index
        self.world: int = state.num_processes
        self.device: torch.device = state.device
        wanted = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true")
        self.sharded: bool = wanted and self.world > 1

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def load(self, folder: Path, dtype: torch.dtype, attention: str | None) -> Any:
        """Return the model of a folder with its weights spread over the processes; no device ever holds all of them.

        While a layer computes, its weights are gathered; an adapter that is put in later is not spread.
        """
        from torch.distributed.device_mesh import init_device_mesh

        from retune.training import sharded

        mesh = init_device_mesh(self.device.type, (self.world,))
        return sharded.load(folder, dtype, attention, mesh)

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes."""
        if self.world > 1:
            tensor = tensor.clone()
            distributed.all_reduce(tensor)
        return tensor

    def most(self, count: int) -> int:
        """Return the largest of the processes' counts, if they must all take part equally often, else `count`.

        Every pass over a sharded base gathers weights from all processes.
        """
        if not self.sharded:
            return count
        largest = torch.tensor(count, device=self.device)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def least(self, count: int | None) -> int | None:
        """Return the smallest of the processes' counts where they must all have the same, else `count`."""
        if not self.sharded or count is None:
            return count
        smallest = torch.tensor(count, device=self.device)
        distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
        return int(smallest)

    def same(self, tensors: Sequence[Tensor]) -> None:
        """Give all processes the values of the first, in place."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.data, 0)

    def add_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the parameters' gradients over all processes, in place."""
        if self.world == 1:
            return
        flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
        distributed.all_reduce(flat)
        for parameter, part in zip(
            parameters, torch.split(flat, [p.numel() for p in parameters]), strict=True
        ):
            assert parameter.grad is not None
            parameter.grad.copy_(part.view_as(parameter))

    def gather_object(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        found: list[Any] = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for the others."""
        if self.world > 1:
            distributed.barrier()
