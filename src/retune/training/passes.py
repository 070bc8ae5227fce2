"""The gradients of one optimiser step, computed in as many passes as the memory requires.

The records of a step are taken in units; a unit is one pass if it fits. A pass that runs out of memory is repeated in halves:
its gradients are added only when it is done, and dropout is drawn by unit (`retune.training.dropout`) or by record
(`retune.training.record_dropout`), so that losses and gradients are the same but for the rounding of sums.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
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
from retune.training.dropout import Window, drawing, drawn_by
from retune.training.guarded import RanOut, guarding
from retune.training.recompute import generators, set_generators
from retune.training.record_dropout import RecordDraws, drawn_by_record
from retune.training.record_dropout import draws as record_draws
from retune.training.room import Room

UNIT_TOKENS = 16384
Layout = Literal["flattened", "padded", "alone"]


@dataclass
class Unit:
    """Records whose dropout is drawn together, and the state of the generators before it is."""

    records: list[int]
    lengths: list[int]
    padded: bool = False
    tails: list[int] = field(default_factory=list)
    before: list[Tensor] | None = None


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
        """Tokens that are computed, with what is padded."""
        lengths = self.unit.lengths[self.start : self.stop]
        return max(lengths, default=0) * len(lengths) if self.unit.padded else sum(lengths)

    def window(self, tokens: Tokens) -> Window | None:
        """Return the pass's place in its unit; None if it is all of it."""
        unit = self.unit
        if self.stop - self.start == len(unit.records):
            return None
        if not unit.tails:
            unit.tails = flatten(tokens, unit.records).tails
        return Window.of(unit.lengths, unit.tails, self.start, self.stop)

    def halves(self) -> list[Pass]:
        """Return the same in two, of about as many tokens."""
        lengths = self.unit.lengths
        middle, tokens = self.start + 1, lengths[self.start]
        while middle < self.stop - 1 and tokens + lengths[middle] <= sum(lengths[self.start : self.stop]) / 2:
            tokens += lengths[middle]
            middle += 1
        if self.unit.padded:
            return [_whole(self.unit.records[part], lengths[part], True) for part in (
                slice(self.start, middle), slice(middle, self.stop)
            )]  # fmt: skip
        return [Pass(self.unit, self.start, middle), Pass(self.unit, middle, self.stop)]


def plan(records: Sequence[int], lengths: Sequence[int], limit: int | None) -> list[Pass]:
    """Split the records of a step into units, and each unit into passes of at most `limit` tokens.

    Args:
        records: numbers of records. lengths: tokens of every record, by number.
        limit: None if only a unit's size limits a pass.
    """
    found = []
    for places in passes([lengths[record] for record in records], UNIT_TOKENS):
        mine = [records[place] for place in places]
        unit = Unit(mine, [lengths[record] for record in mine])
        start = 0
        for part in passes(unit.lengths, UNIT_TOKENS if limit is None else limit):
            found.append(Pass(unit, start, start + len(part)))
            start += len(part)
    return found


def _whole(records: list[int], lengths: list[int], padded: bool = False) -> Pass:
    """Return a pass that is a unit of its own."""
    return Pass(Unit(records, lengths, padded), 0, len(records))


class Passes:
    """The passes over one model with its adapter.

    Args:
        model: the base with its adapter, ready for `loss`. core: the transformers model in it.
        tokens: the records. parameters: what is trained.
        devices: the processes that train together.
        loss: returns the sum of -log p over the counted tokens of a batch.
        scale: multiplied into every gradient, as float16 needs it.
        report: told when a pass ran out of memory.
        layout: how the records of a pass lie: one behind the other, padded, or each in a pass of its own.

    Attributes:
        room: how large a pass may be.
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
        self.room = Room(core, devices.device, max(self._lengths))

    def add_gradients(self, records: Sequence[int], counted: int, spare: int, seed: str) -> Tensor:
        """Add the gradients of this process's records of a step and return their sum of -log p.

        Args:
            records: none, if other processes have them all.
            counted: counted tokens of the step over all processes; the loss is divided by it.
            spare: a record to take part with in what the others exchange over a sharded base, where they have more passes.
            seed: of the step; dropout that is drawn by record draws by it.
        """
        total = torch.zeros((), device=self.devices.device)
        nothing = Pass(Unit([spare], [self._lengths[spare]]), 0, 0)
        waiting = self._plan(records)
        waiting.reverse()
        while self.devices.most(len(waiting)):
            run = waiting.pop() if waiting else nothing
            found = self._attempt(run, counted, seed)
            if isinstance(found, Tensor):
                total += found
            else:
                memory.give_back(self.devices.device)
                waiting += reversed(found)
        return total

    def _plan(self, records: Sequence[int]) -> list[Pass]:
        limit = self.devices.least(self.room.tokens())
        if self.layout == "alone":
            limit = 1
        limit = UNIT_TOKENS if limit is None else limit
        padded = self.layout == "padded"
        if padded:
            records = sorted(records, key=lambda record: self._lengths[record])
        if self.layout != "flattened":
            lengths = [self._lengths[record] for record in records]
            return [
                _whole([records[place] for place in part], [lengths[place] for place in part], padded)
                for part in passes(lengths, min(limit, UNIT_TOKENS), padded)
            ]
        return plan(records, self._lengths, limit)

    def _attempt(self, run: Pass, counted: int, seed: str) -> Tensor | list[Pass]:
        """Add the gradients of a pass and return its loss; if it ran out of memory nothing was added: what to do instead."""
        sums = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        try:
            loss = self.gradients(run, counted, seed)
        except Exception as error:
            for parameter, before in zip(self.parameters, sums, strict=True):
                parameter.grad = before
            agreed = isinstance(error, RanOut)
            if not is_out_of_memory(error) or (self.devices.sharded and not agreed):
                raise
            return self._instead(run, error)
        for parameter, before in zip(self.parameters, sums, strict=True):
            if run.start == run.stop:  # zeros, where the record's own process may have none at all
                parameter.grad = before
            elif before is not None:
                parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)
        return loss

    def _instead(self, run: Pass, error: Exception) -> list[Pass]:
        """Return what to do instead of a pass that ran out of memory, here or in another process; raise `error` if nothing."""
        if isinstance(error, RanOut) and not error.here:
            then, parts = "", [run]
        else:
            then = self.room.shrink(run.tokens, run.stop - run.start) or ""
            parts = run.halves() if run.stop - run.start > 1 else [run]
            if then:
                self.report(Note(f"a pass of {run.tokens} tokens ran out of memory: {then}"))
        hopeless = not then and (not isinstance(error, RanOut) or error.here)
        if self.devices.most(int(hopeless)):
            raise error
        return parts

    def gradients(self, run: Pass, counted: int, seed: str) -> Tensor:
        """Add the gradients of one pass, as it is, and return its sum of -log p.

        Args:
            run: the pass; without records it only takes part in what the others exchange.
            counted, seed: as in `add_gradients`.
        """
        device, spare = self.devices.device, run.start == run.stop
        batch = flatten(self.tokens, run.unit.records if spare else run.records).to(device)
        again = recompute.recomputing(self.core) if self.room.recomputes else nullcontext()
        before = self.room.begin()
        window, draws = (None, None) if spare else (self._window(run), self._draws(run, seed))
        drawn = recompute.drawing_from(draws.generators) if draws else nullcontext()
        rest = self._rest(run, seed)
        with again, guarding(self.core) as guard, drawn, drawn_by_record(draws), drawing(window), rest:
            loss = self.loss(self.model, batch)
            guard.agree(self.devices)
            if (
                loss.requires_grad
            ):  # not where a base leaves out layers at random, and all that have an adapter
                self.scale(loss * 0 if spare else loss / counted).backward()  # type: ignore[no-untyped-call]
            guard.agree(self.devices)
        self.room.end(before, run.tokens)
        return torch.zeros_like(loss) if spare else loss.detach()

    def _draws(self, run: Pass, seed: str) -> RecordDraws:
        lengths = [self._lengths[record] for record in run.records]
        return record_draws(lengths, self.layout != "flattened", run.records, seed, self.devices.device)

    def _rest(self, run: Pass, seed: str) -> ExitStack:
        """Return a context in which a record that is alone in its pass draws by its own seed whatever else is drawn.

        That is what routers, experts and layers that are left out draw from the default generators, on the device and the CPU.
        """
        stack = ExitStack()
        if self.layout == "alone" and run.start < run.stop:
            for device in {self.devices.device, torch.device("cpu")}:
                found = record_draws([0], True, run.records, f"{seed} rest", device)
                stack.enter_context(drawn_by(found.generators[0]))
        return stack

    def _window(self, run: Pass) -> Window | None:
        """Set the generators to where the unit begins, and return the window of the pass in it."""
        unit, device = run.unit, self.devices.device
        if unit.before is None:
            unit.before = generators(device)
        else:
            set_generators(unit.before, device)
        return run.window(self.tokens)
