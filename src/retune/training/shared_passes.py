"""One step of several trials on one base, in as few passes as the memory allows.

The base's matrices multiply the tokens of all trials at once; each record's LoRA products use its own trial's A and B. A trial
learns what it learns alone (`retune.training.passes`), up to the rounding of sums: its records keep their units of dropout
and their generator, its loss is divided by its own counted tokens, and no sum runs over the records of two trials.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from retune.data.batches import flatten, passes
from retune.data.tokens import Tokens
from retune.errors import is_out_of_memory
from retune.events import Note
from retune.training import lora_linear, memory, recompute
from retune.training.detached import Adapter
from retune.training.dropout import Draws
from retune.training.lora_linear import Layer, Shared
from retune.training.loss import losses
from retune.training.passes import UNIT_TOKENS, Pass, plan
from retune.training.room import Room


@dataclass(frozen=True)
class Step:
    """The next step of one trial.

    Attributes:
        adapter: what is trained. generator: draws its dropout.
        records: of the step. counted: their counted tokens.
    """

    adapter: Adapter
    generator: torch.Generator
    records: Sequence[int]
    counted: int


Run = list[tuple[Step, Pass]]
"""A pass: the records of each trial that takes part."""


class SharedPasses:
    """The passes over one base for several trials.

    Args:
        core: the transformers model, inside `retune.training.model_attention.by_segments`.
        tokens: the records. device: where the model is.
        report: told when a pass ran out of memory.
    """

    def __init__(
        self, core: Any, tokens: Tokens, device: torch.device, report: Callable[[Note], None]
    ) -> None:
        self.core, self.tokens, self.device, self.report = core, tokens, device, report
        self._lengths = tokens.lengths.tolist()
        self._counts = tokens.counts.tolist()
        self.longest = max(self._lengths)
        self.room = Room(core, device, self.longest)

    def add_gradients(self, steps: Sequence[Step]) -> list[Tensor | Exception]:
        """Add each trial's gradients and return its sum of -log p, or what it failed by: then the others are unharmed.

        A pass that runs out of memory is repeated in halves, and so is one that fails otherwise, until the trial that is at
        fault is alone.
        """
        limit = self.room.tokens()
        plans = [plan(step.records, self._lengths, limit) for step in steps]
        waiting: deque[Run] = deque()
        for turn in range(max(len(parts) for parts in plans)):
            row = [(step, parts[turn]) for step, parts in zip(steps, plans, strict=True) if turn < len(parts)]
            most = UNIT_TOKENS if limit is None else min(limit, UNIT_TOKENS)
            for places in passes([part.tokens for _, part in row], most):
                waiting.append([row[place] for place in places])
        sums = {id(step): torch.zeros((), device=self.device) for step in steps}
        failed: dict[int, Exception] = {}
        while waiting:
            run = [(step, part) for step, part in waiting.popleft() if id(step) not in failed]
            if not run:
                continue
            found = self._attempt(run)
            if isinstance(found, Tensor):
                for (step, _), loss in zip(run, found, strict=True):
                    sums[id(step)] += loss
            elif isinstance(found, Exception):
                failed[id(run[0][0])] = found
            else:
                memory.give_back(self.device)
                waiting.extendleft(reversed(_halves(run)))
        return [failed.get(id(step), sums[id(step)]) for step in steps]

    def _attempt(self, run: Run) -> Tensor | Exception | None:
        """Add the gradients of a pass and return each trial's loss; else nothing was added.

        Returns:
            an error if it is to be given up, None if it is to be repeated in halves.
        """
        parameters = [parameter for step, _ in run for parameter in step.adapter.parameters()]
        sums = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        try:
            found = self.gradients(run)
        except Exception as error:
            for parameter, before in zip(parameters, sums, strict=True):
                parameter.grad = before
            if not is_out_of_memory(error):
                return error if len(run) == 1 else None
            tokens = sum(part.tokens for _, part in run)
            then = self.room.shrink(tokens, sum(part.stop - part.start for _, part in run))
            if then is None:
                return error
            self.report(Note(f"a pass of {tokens} tokens of {len(run)} trials ran out of memory: {then}"))
            return None
        for parameter, before in zip(parameters, sums, strict=True):
            if before is not None:
                parameter.grad = before if parameter.grad is None else before.add_(parameter.grad)
        return found

    def gradients(self, run: Run) -> Tensor:
        """Compute the gradients of one pass and return each trial's sum of -log p, shape ``(trials,)``."""
        batch = flatten(self.tokens, [record for _, part in run for record in part.records]).to(self.device)
        counts = [sum(self._counts[record] for record in part.records) for _, part in run]
        draws = [Draws(_at_unit(step, part), part.window(self.tokens)) for step, part in run]
        before = self.room.begin()
        again = recompute.recomputing(self.core) if self.room.recomputes else nullcontext()
        with (
            again,
            recompute.drawing_from([step.generator for step, _ in run]),
            _lent(self.core, run, draws, batch.tails),
        ):
            each = losses(self.core, batch)
            found = torch.stack([own.sum() for own in torch.split(each, counts)])
            # A loss that is not finite gives its own records bad gradients, and none to the other trials.
            shares = torch.tensor([1 / step.counted for step, _ in run], device=self.device)
            found.backward(shares)  # type: ignore[no-untyped-call]
        self.room.end(before, sum(batch.lengths))
        return found.detach()


def _at_unit(step: Step, part: Pass) -> torch.Generator:
    """Set a trial's generator to where the part's unit begins, and return it."""
    if part.unit.before is None:
        part.unit.before = [step.generator.get_state()]
    else:
        step.generator.set_state(part.unit.before[0])
    return step.generator


def _halves(run: Run) -> list[Run]:
    """Return the same in two, of about as many tokens; one record of one trial stays as it is."""
    if len(run) == 1:
        ((step, part),) = run
        return [[(step, half)] for half in part.halves()] if part.stop - part.start > 1 else [run]
    total, before, middle = sum(part.tokens for _, part in run), run[0][1].tokens, 1
    while middle < len(run) - 1 and before + run[middle][1].tokens <= total / 2:
        before += run[middle][1].tokens
        middle += 1
    return [run[:middle], run[middle:]]


@contextmanager
def _lent(core: Any, run: Run, draws: Sequence[Draws], tails: Sequence[int]) -> Iterator[None]:
    """Let the base's layers compute with the adapters of the trials in a pass inside the block."""
    tokens = tuple(part.tokens for _, part in run)
    ends = iter(tails)
    own_tails = tuple(sum(next(ends) for _ in part.records) for _, part in run)

    def layer(name: str, module: Any) -> Layer:
        parts = tuple(step.adapter.on(name, module, own) for (step, _), own in zip(run, draws, strict=True))
        return parts[0] if len(parts) == 1 else Shared(module.weight, module.bias, parts, tokens, own_tails)

    names = list(dict.fromkeys(name for step, _ in run for name in step.adapter.layers))
    with _lending(core, names, layer):
        yield


@contextmanager
def alone(core: Any, adapter: Adapter) -> Iterator[None]:
    """Let the base compute with one adapter, without dropout, inside the block."""
    with _lending(core, list(adapter.layers), lambda name, module: adapter.on(name, module, None)):
        yield


@contextmanager
def _lending(core: Any, names: Sequence[str], layer: Callable[[str, Any], Layer]) -> Iterator[None]:
    modules = [(name, core.get_submodule(name)) for name in names]
    try:
        for name, module in modules:
            lora_linear.lend(module, layer(name, module))
        yield
    finally:
        for _, module in modules:
            lora_linear.lend(module, None)
