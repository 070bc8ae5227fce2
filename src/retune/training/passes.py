"""The gradients of one optimiser step, computed in as many passes as the memory requires.

The records of a step are grouped into units; a unit is one pass if it fits. A pass that runs out of memory is repeated in halves:
its gradients are added only when it has succeeded, and dropout masks belong to the unit (`retune.training.dropout`) or to the
record (`retune.training.record_dropout`), so that losses and gradients are the same but for the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from retune.data.batches import Batch, flatten, passes
from retune.data.tokens import Tokens
from retune.errors import is_out_of_memory
from retune.events import Note
from retune.training import memory, recompute
from retune.training.devices import Devices
from retune.training.dropout import Window, as_default_generator, dropout_window
from retune.training.guarded import OutOfMemory, guarding
from retune.training.memory_budget import MemoryBudget
from retune.training.recompute import rng_states, set_rng_states
from retune.training.record_dropout import RecordGenerators, per_record_dropout, record_generators

UNIT_TOKENS = 16384
"""The most tokens in a unit. Dropout masks depend on the units, so this must not depend on the machine."""
Layout = Literal["flattened", "padded", "alone"]


@dataclass
class Unit:
    """Records whose dropout masks are drawn together.

    Attributes:
        records: their numbers. lengths: their tokens.
        padded: whether they are padded to the longest.
        tails: see `retune.training.attention.Segments`; filled in when a window first needs them.
        rng_states: of the generators before the unit's first pass; every later pass of the unit starts from them.
    """

    records: list[int]
    lengths: list[int]
    padded: bool = False
    tails: list[int] = field(default_factory=list)
    rng_states: list[Tensor] | None = None


@dataclass(frozen=True)
class Pass:
    """Records ``start`` to ``stop`` of a unit."""

    unit: Unit
    start: int
    stop: int

    @property
    def records(self) -> list[int]:
        """Their numbers."""
        return self.unit.records[self.start : self.stop]

    @property
    def tokens(self) -> int:
        """Tokens that are computed, padding included."""
        lengths = self.unit.lengths[self.start : self.stop]
        return max(lengths, default=0) * len(lengths) if self.unit.padded else sum(lengths)

    def window(self, tokens: Tokens) -> Window | None:
        """Return the pass's records among those of its unit; None if it has all of them."""
        unit = self.unit
        if self.stop - self.start == len(unit.records):
            return None
        if not unit.tails:
            unit.tails = flatten(tokens, unit.records).tails
        return Window.of(unit.lengths, unit.tails, self.start, self.stop)

    def halves(self) -> list[Pass]:
        """Return two passes of about as many tokens each; the pass must have more than one record."""
        lengths = self.unit.lengths
        middle, tokens = self.start + 1, lengths[self.start]
        while middle < self.stop - 1 and tokens + lengths[middle] <= sum(lengths[self.start : self.stop]) / 2:
            tokens += lengths[middle]
            middle += 1
        if self.unit.padded:  # each record has its own generator there, so the halves need not share a unit
            parts = slice(self.start, middle), slice(middle, self.stop)
            return [whole_unit(self.unit.records[part], lengths[part], padded=True) for part in parts]
        return [Pass(self.unit, self.start, middle), Pass(self.unit, middle, self.stop)]


def plan(records: Sequence[int], lengths: Sequence[int], limit: int | None) -> list[Pass]:
    """Split the records of a step into units, and each unit into passes of at most `limit` tokens.

    Args:
        records: numbers of records. lengths: tokens of every record, by number.
        limit: None if only `UNIT_TOKENS` limits a pass.
    """
    planned = []
    for indices in passes([lengths[record] for record in records], UNIT_TOKENS):
        own = [records[index] for index in indices]
        unit = Unit(own, [lengths[record] for record in own])
        start = 0
        for part in passes(unit.lengths, UNIT_TOKENS if limit is None else limit):
            planned.append(Pass(unit, start, start + len(part)))
            start += len(part)
    return planned


def whole_unit(records: list[int], lengths: list[int], padded: bool = False) -> Pass:
    """Return a pass that is a unit of its own.

    Args:
        records: numbers of its records. lengths: their tokens, in the same order.
        padded: whether they are padded to the longest.
    """
    return Pass(Unit(records, lengths, padded), 0, len(records))


class Passes:
    """Computes the gradients of one model with its adapter, pass by pass.

    Args:
        model: the base with its adapter, ready for `loss`. core: the transformers model in it.
        tokens: the records. parameters: what is trained.
        devices: the processes that train together.
        loss: returns the sum of -log p over the counted tokens of a batch.
        scale: scales a loss before its backward pass, as float16 needs it.
        report: called with a note when a pass ran out of memory.
        layout: records of a pass one behind the other ("flattened"), padded to the longest ("padded"), or one record per
            pass ("alone").

    Attributes:
        budget: how large a pass may be.
    """

    def __init__(
        self,
        model: Any,
        core: Any,
        tokens: Tokens,
        parameters: Sequence[nn.Parameter],
        devices: Devices,
        loss: Callable[[Any, Batch], Tensor],
        scale: Callable[[Tensor], Tensor],
        report: Callable[[Note], None],
        layout: Layout = "flattened",
    ) -> None:
        self.model, self.core, self.tokens, self.parameters = model, core, tokens, parameters
        self.devices, self.loss, self.scale, self.report, self.layout = devices, loss, scale, report, layout
        self._lengths = tokens.lengths.tolist()
        self.budget = MemoryBudget(core, devices.device, max(self._lengths))

    def add_gradients(self, records: Sequence[int], counted: int, spare: int, seed: str) -> Tensor:
        """Add the gradients of this process's records of a step and return their sum of -log p.

        Args:
            records: of this process; none if the other processes have them all.
            counted: counted tokens of the step over all processes; the loss is divided by it.
            spare: a record for empty passes, in which this process only takes part in the others' communication (FSDP)
                while they have more passes than it has.
            seed: of the step; per-record dropout is seeded by it.
        """
        total = torch.zeros((), device=self.devices.device)
        empty = Pass(Unit([spare], [self._lengths[spare]]), 0, 0)
        waiting = self._plan(records)
        waiting.reverse()
        while self.devices.max_count(len(waiting)):
            run = waiting.pop() if waiting else empty
            result = self._attempt(run, counted, seed)
            if isinstance(result, Tensor):
                total += result
            else:
                # Here, not where the error was caught: until that block ends the traceback keeps the pass's tensors alive.
                memory.release_cached(self.devices.device)
                waiting += reversed(result)
        return total

    def _plan(self, records: Sequence[int]) -> list[Pass]:
        limit = self.devices.min_count(self.budget.tokens())
        if self.layout == "alone":
            limit = 1
        limit = UNIT_TOKENS if limit is None else limit
        if self.layout == "flattened":
            return plan(records, self._lengths, limit)
        padded = self.layout == "padded"
        if padded:  # records of like length together need the least padding
            records = sorted(records, key=lambda record: self._lengths[record])
        lengths = [self._lengths[record] for record in records]
        return [
            whole_unit([records[index] for index in part], [lengths[index] for index in part], padded)
            for part in passes(lengths, min(limit, UNIT_TOKENS), padded)
        ]

    def _attempt(self, run: Pass, counted: int, seed: str) -> Tensor | list[Pass]:
        """Add the gradients of a pass and return its loss; if memory ran out, add none and return the passes to try instead."""
        before = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        try:
            loss = self.gradients(run, counted, seed)
        except Exception as error:
            for parameter, grad in zip(self.parameters, before, strict=True):
                parameter.grad = grad
            agreed = isinstance(error, OutOfMemory)
            if not is_out_of_memory(error) or (self.devices.sharded and not agreed):
                raise
            return self._after_out_of_memory(run, error)
        for parameter, grad in zip(self.parameters, before, strict=True):
            # An empty pass gives zeros, where the record's own process may have no gradient at all
            if run.start == run.stop:
                parameter.grad = grad
            elif grad is not None:
                parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)
        return loss

    def _after_out_of_memory(self, run: Pass, error: Exception) -> list[Pass]:
        """Return the passes to try instead of one that ran out of memory, here or in another process.

        Raises:
            Exception: `error`, if some process has no smaller pass left to try.
        """
        if isinstance(error, OutOfMemory) and not error.local:
            remedy, parts = "", [run]
        else:
            remedy = self.budget.shrink(run.tokens, run.stop - run.start) or ""
            parts = run.halves() if run.stop - run.start > 1 else [run]
            if remedy:
                self.report(Note(f"a pass of {run.tokens} tokens ran out of memory: {remedy}"))
        hopeless = not remedy and (not isinstance(error, OutOfMemory) or error.local)
        if self.devices.max_count(int(hopeless)):
            raise error
        return parts

    def gradients(self, run: Pass, counted: int, seed: str) -> Tensor:
        """Add the gradients of one pass and return its sum of -log p; do not retry if memory runs out.

        Args:
            run: the pass; one without records only takes part in the communication of the processes.
            counted, seed: as in `add_gradients`.
        """
        device, empty = self.devices.device, run.start == run.stop
        batch = flatten(self.tokens, run.unit.records if empty else run.records).to(device)
        before = self.budget.begin()
        window = None if empty else self._window(run)
        generators = None if empty else self._generators(run, seed)
        with ExitStack() as contexts:
            if self.budget.recomputes:
                contexts.enter_context(recompute.recomputing(self.core))
            guard = contexts.enter_context(guarding(self.core))
            if generators:
                contexts.enter_context(recompute.tracking_generators(generators.generators))
            contexts.enter_context(per_record_dropout(generators))
            contexts.enter_context(dropout_window(window))
            if self.layout == "alone" and not empty:
                self._seed_default_generators(contexts, run, seed)
            loss = self.loss(self.model, batch)
            guard.agree(self.devices)
            # False where a base skips layers at random (LayerDrop), if all layers with an adapter were skipped
            if loss.requires_grad:
                self.scale(loss * 0 if empty else loss / counted).backward()  # type: ignore[no-untyped-call]
            guard.agree(self.devices)
        self.budget.end(before, run.tokens)
        return torch.zeros_like(loss) if empty else loss.detach()

    def _generators(self, run: Pass, seed: str) -> RecordGenerators:
        lengths = [self._lengths[record] for record in run.records]
        return record_generators(lengths, self.layout != "flattened", run.records, seed, self.devices.device)

    def _seed_default_generators(self, contexts: ExitStack, run: Pass, seed: str) -> None:
        """Seed the default generators by the pass's only record: noise on routers, dropout in experts and LayerDrop use them."""
        for device in {self.devices.device, torch.device("cpu")}:
            (generator,) = record_generators([0], True, run.records, f"{seed} rest", device).generators
            contexts.enter_context(as_default_generator(generator))

    def _window(self, run: Pass) -> Window | None:
        """Set the generators to their states before the unit, and return the pass's window in the unit."""
        unit, device = run.unit, self.devices.device
        if unit.rng_states is None:
            unit.rng_states = rng_states(device)
        else:
            set_rng_states(unit.rng_states, device)
        return run.window(self.tokens)
