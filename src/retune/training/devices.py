"""The processes that train one trial together: one on a laptop, several under torchrun or `accelerate launch`.

Each process takes its share of the records of every step. Every process holds the whole adapter; its gradients, a few MiB,
are summed over the processes once a step. Every process holds the whole frozen base too (as in DDP), or a shard of each
layer (FSDP2, torch's `fully_shard`) with ``accelerate launch --use_fsdp`` or ``ACCELERATE_USE_FSDP=true``. A single process
runs the same code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn

from retune.errors import RetuneError, TrialFailed
from retune.training import failures

_T = TypeVar("_T")


@lru_cache(maxsize=1)
def _hosts() -> Any:
    """Return the group in which the processes exchange numbers without waiting for their GPUs."""
    return distributed.new_group(backend="gloo")


class Devices:
    """The device of this process, and the collective operations over all processes of the trial.

    Attributes:
        rank: this process's number, from 0. world: the number of processes.
        device: where this process computes.
        sharded: whether the base's weights are sharded over the processes (FSDP).
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
        """Return the model of a folder, sharded over the processes; no device ever holds all of its weights.

        A layer's weights are gathered while it computes. An adapter that is added later is not sharded.
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

    def max_count(self, count: int) -> int:
        """Return the largest count of all processes if the base is sharded, else `count`.

        Every pass over a sharded base gathers weights from all processes, so all must run the same number of passes.
        """
        if not self.sharded:
            return count
        largest = torch.tensor(count, device=self.device)
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return int(largest)

    def min_count(self, count: int | None) -> int | None:
        """Return the smallest count of all processes if the base is sharded, else `count`."""
        if not self.sharded or count is None:
            return count
        smallest = torch.tensor(count, device=self.device)
        distributed.all_reduce(smallest, distributed.ReduceOp.MIN)
        return int(smallest)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Copy the values of the first process to all others, in place."""
        if self.world > 1:
            for tensor in tensors:
                distributed.broadcast(tensor.data, 0)

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the parameters' gradients over all processes, in place; one that a process lacks counts as zeros there.

        A process lacks one if its records skipped a layer or chose other experts, or if it has no record in this step.
        One that all lack stays None: AdamW skips it, as it does with one process.
        """
        if self.world == 1:
            return
        there = self._on_hosts([parameter.grad is not None for parameter in parameters])
        used = [parameter for parameter, count in zip(parameters, there, strict=True) if count]
        if not used:
            return
        # One message instead of one per matrix: an adapter has hundreds of small ones.
        flat = torch.cat(
            [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in used]
        )
        distributed.all_reduce(flat)
        for parameter, part in zip(used, torch.split(flat, [p.numel() for p in used]), strict=True):
            parameter.grad = part.view_as(parameter)

    def gather_object(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            distributed.all_gather_object(values, value, self._group)
        return values

    def of_first(self, value: _T) -> _T:
        """Return the first process's value: files may look different to the others, as on a machine of their own."""
        values = [value]
        if self.world > 1:
            distributed.broadcast_object_list(values, 0, self._group)
        return values[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Raise an error of one process in the block in all of them, so that none waits for one that has ended.

        Inside, the processes exchange nothing. Over a sharded base they do, and `retune.training.guarded` sees to errors.

        Raises:
            TrialFailed, RetuneError: what another process failed by, where this one did not.
        """
        if self.world == 1 or self.sharded:
            yield
            return
        mine: Exception | None = None
        try:
            yield
        except Exception as error:
            mine = error
        if not self._on_hosts([mine is not None])[0]:
            return
        fault = mine is not None and failures.is_fault_of_setting(mine)
        faults = self.gather_object(None if mine is None else (fault, *failures.describe(mine)))
        if mine is not None:
            raise mine
        rank, (fault, kind, reason) = next((rank, entry) for rank, entry in enumerate(faults) if entry)
        if not fault:
            raise RetuneError(f"process {rank} of this trial stopped: {reason}")
        raise TrialFailed(f"{reason} (in process {rank} of {self.world})", kind)

    @property
    def _group(self) -> Any:
        """The group for what is on the CPU; None is the one of all."""
        return _hosts() if self.device.type != "cpu" else None

    def _on_hosts(self, flags: Sequence[bool]) -> list[int]:
        """Return in how many processes each flag is set."""
        counts = torch.tensor(flags, dtype=torch.int32)
        distributed.all_reduce(counts, group=self._group)
        return counts.tolist()

    def barrier(self) -> None:
        """Wait until every process has come here."""
        if self.world > 1:
            distributed.barrier()
